"""Figures of what a Fréchet distance depends on: the number of samples, what Gaussians hide, and how images were prepared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from tt_lib.errors import BadValue
from tt_lib.plots import BLUE, line_styles, style


def distances_over_n(frame: pd.DataFrame, slopes: Mapping[str, float]) -> Figure:
    """Distances of n real images over 1/n, a panel for each network of features and a line for each reference.

    Args:
        frame: columns ``features``, ``reference`` (at most three), ``n`` and ``distance``.
        slopes: the leading bias times n, by name of the features; drawn as a line through the value extrapolated from the largest n.

    Raises:
        BadValue: no rows.
    """
    if frame.empty:
        raise BadValue("no distances to draw; measure some first")
    looks = line_styles(list(dict.fromkeys(frame["reference"])))
    kinds = list(dict.fromkeys(frame["features"]))
    with style():
        figure = Figure(figsize=(4 * len(kinds), 3.8))
        for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
            # Told apart without colours, too.
            for (reference, look), marker, dashes in zip(looks.items(), "osD", ("-", "--", ":"), strict=False):
                rows = frame[(frame["features"] == kind) & (frame["reference"] == reference)].sort_values("n")
                inverse = 1 / rows["n"]
                axes.plot(
                    inverse,
                    rows["distance"],
                    color=look.color,
                    marker=marker,
                    linestyle="",
                    label=f"against {reference}",
                )
                start = rows["distance"].iloc[-1] - slopes[kind] * inverse.iloc[-1]
                ends = [0.0, float(inverse.max())]
                line = [start + slopes[kind] * end for end in ends]
                axes.plot(ends, line, color=look.color, linestyle=dashes, label="predicted slope")
            axes.set(title=kind, xlabel="1 / number of images", ylim=(min(0.0, axes.get_ylim()[0]), None))
        figure.axes[0].set_ylabel("Fréchet distance (features squared)")
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def point_clouds(clouds: Mapping[str, Tensor]) -> Figure:
    """A scatter plot of each cloud of points [N, 2], on equal axes that end at 4: points farther away are not drawn.

    Raises:
        BadValue: no cloud.
    """
    if not clouds:
        raise BadValue("no points to draw; give at least one cloud")
    with style():
        figure = Figure(figsize=(3 * len(clouds), 3.6), layout="constrained")
        panels = figure.subplots(1, len(clouds), squeeze=False, sharex=True, sharey=True)[0]
        for axes, (name, points) in zip(panels, clouds.items(), strict=True):
            axes.scatter(points[:, 0], points[:, 1], s=3, color=BLUE)
            axes.set(title=name, xlabel="first coordinate", aspect="equal", xlim=(-4, 4), ylim=(-4, 4))
        panels[0].set_ylabel("second coordinate")
    return figure


def change_dots(table: pd.DataFrame, names: Sequence[str]) -> Figure:
    """What each change of the same images costs, a panel for each network of features, on logarithmic axes.

    Args:
        table: a row for each change (its index), a column of distances above 0 for each network.
        names: the columns.
    """
    with style():
        figure = Figure(figsize=(9, 0.45 * len(table) + 1.4))
        panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
        for axes, name in zip(panels, names, strict=True):
            axes.plot(table[name], list(table.index), color=BLUE, marker="o", markersize=9, linestyle="")
            axes.set(
                xscale="log", title=name, xlabel="Fréchet distance (features squared)", ylim=(-0.6, len(table) - 0.4)
            )
        panels[0].invert_yaxis()
    return figure
