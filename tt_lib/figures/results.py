"""Figures of results: timings, tuning, direction errors and Fréchet distances, each from rows and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import seaborn
from matplotlib.figure import Figure

from tt_lib.errors import BadValue
from tt_lib.figures.style import GREY, LOOKS, count_axis, legend_below, log_axis, looks, relplot, style
from tt_lib.timing import Timing

LINES: dict[str, Any] = {"ceiling": (0, (6, 3)), "floor": (0, (1.5, 2))}
"""Dashes of horizontal lines: the best that a network does, with many steps, and real images against real images."""
CURVES = (LOOKS[0], LOOKS[2], LOOKS[4])
"""Looks of curves that are named in the figure, in turn."""


def timing_plot(timings: Mapping[str, Timing]) -> Figure:
    """The ratio tau/t of each evaluation against its nominal time, a line for each label; sampling runs to the right.

    Raises:
        BadValue: no timing.
    """
    ratios = {label: pd.DataFrame({"t": each.times, "ratio": each.ratios}) for label, each in timings.items()}
    frame = pd.concat([each.assign(label=label) for label, each in ratios.items()] or [pd.DataFrame()])
    # A solver may ask twice at one time: the points stay in the order of the calls.
    grid = relplot(frame, "label", (7, 3.2), x="t", y="ratio", kind="line", sort=False)
    grid.ax.axhline(1, color=GREY, linewidth=1, zorder=1)
    grid.set(xlim=(1.04 * frame["t"].max(), -0.02))
    grid.set_axis_labels("nominal time t (1 = noise, 0 = data)", "ratio τ/t (1 = untuned)")
    return grid.figure


def fd_against_nfe(frame: pd.DataFrame) -> Figure:
    """Fréchet distance against NFE with its interval: a line for each timing, a panel for each solver and grid.

    The points of one NFE are set slightly apart, so that their intervals can be told apart.

    Args:
        frame: rows of ``fd.csv``. Rows whose timing, solver or grid is one of :data:`LINES` become horizontal lines in
            every panel.

    Raises:
        BadValue: no row of a timing, two rows of one point, or rows on different scales.
    """
    line = pd.Series("", index=frame.index)
    for name in LINES:
        line[(frame[["timing", "solver", "grid"]] == name).any(axis=1)] = name
    points = frame[line == ""]
    if points.empty:
        raise BadValue("no row but ceilings and floors; give rows of at least one timing")
    for column in ("dataset", "metric", "features", "model", "weights", "reference", "n"):
        values = (frame if column in ("dataset", "metric", "features") else points)[column].unique()
        if len(values) > 1:
            raise BadValue(f"rows differ in {column} ({', '.join(sorted(map(str, values)))}); plot one at a time")
    # eta is said only where one solver comes with several.
    several = points.groupby("solver")["eta"].transform("nunique") > 1
    solver = points["solver"] + points["eta"].map(", η = {:g}".format).where(several, "")
    points = points.assign(panel=solver + " · " + points["grid"])
    repeated = points[points.duplicated(["panel", "timing", "nfe"])]
    if len(repeated):
        row = repeated.iloc[0]
        raise BadValue(f"several rows for {row['panel']}, {row['timing']}, NFE {row['nfe']}; keep one")
    panels = [f"{name} · {grid}" for name in solver.unique() for grid in points["grid"].unique()]
    panels = [panel for panel in panels if panel in set(points["panel"])]
    order = {name: place for place, name in enumerate(looks(points["timing"]))}
    apart = 1.02 ** (points["timing"].map(order) - (len(order) - 1) / 2)
    grid = relplot(
        points.assign(x=points["nfe"] * apart),
        "timing",
        (3.9, 3.1),
        x="x",
        y="value",
        col="panel",
        col_order=panels,
        col_wrap=min(len(panels), points["grid"].nunique()),
        kind="line",
    )
    _intervals(grid, "x")
    is_fid = points["metric"].iloc[0] == "FID"
    distance = "FID" if is_fid else f"Fréchet distance\n({points['features'].iloc[0]} features)"
    grid.set_titles("{col_name}").set_axis_labels("NFE (network evaluations a sample)", distance)
    values = frame[["value", "low", "high"]].stack().dropna()
    handles = dict(zip(order, grid.figure.legends[0].legend_handles, strict=True))
    for axes in grid.axes.flat:
        count_axis(axes, points["nfe"])
        log_axis(axes, "y", values)
        for name, value in zip(line, frame["value"], strict=True):
            if name:
                handles[name] = axes.axhline(value, color=GREY, linestyle=LINES[name], linewidth=1.4, zorder=1)
    legend_below(grid.figure, list(handles.values()), list(handles))
    return grid.figure


def _intervals(grid: seaborn.FacetGrid, x: str) -> None:
    """Draw the columns ``low`` to ``high`` of each point of a :func:`relplot` by timing."""
    own = looks(grid.data["timing"])
    for (i, j, _), rows in grid.facet_data():
        colours = [own[name].color for name in rows["timing"]]
        grid.facet_axis(i, j, modify_state=False).vlines(rows[x], rows["low"], rows["high"], colours, linewidth=1.2)


@style()
def distance_curves(curves: Mapping[str, pd.DataFrame], lines: Mapping[str, float]) -> Figure:
    """Fréchet distances against NFE, a curve for each name with its name beside its last point.

    Args:
        curves: columns ``value``, ``low`` and ``high``, indexed by NFE.
        lines: horizontal lines by name, such as a network's ceiling.

    Raises:
        BadValue: no point.
    """
    points = pd.concat(curves.values()) if curves else pd.DataFrame()
    if points.empty:
        raise BadValue("no distance to draw; give a curve of one point or more")
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    for (name, rows), look in zip(curves.items(), CURVES, strict=False):
        axes.plot(rows.index, rows["value"], color=look.color, marker=look.marker)
        axes.vlines(rows.index, rows["low"], rows["high"], look.color, linewidth=1.2)
        if len(rows):
            place = (rows.index[-1], rows["value"].iloc[-1])
            axes.annotate(name, place, (9, 0), textcoords="offset points", va="center", color=look.color)
    count_axis(axes, points.index)
    log_axis(axes, "y", [*points["value"], *points["low"], *points["high"], *lines.values()])
    for name, value in lines.items():
        axes.axhline(value, color=GREY, linestyle=LINES["ceiling"], linewidth=1.4, zorder=1)
        place = (axes.get_xlim()[0], value)
        axes.annotate(name, place, (4, 4), textcoords="offset points", va="bottom", color=GREY)
    axes.set(xlabel="network evaluations for an image", ylabel="Fréchet distance\n(ImageNet features, logarithmic)")
    axes.set_xlim(axes.get_xlim()[0], axes.get_xlim()[1] * 1.35)
    return figure
