"""The explorer of the Fréchet distance's bias: samples of a known Gaussian, and what extrapolation makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from tt_lib.errors import BadValue
from tt_lib.figures.style import BLUE, GREY, line_styles, style
from tt_lib.lessons.start import explorer
from tt_lib.metrics.frechet import extrapolated_interval, frechet_distance, leading_bias
from tt_lib.metrics.statistics import FeatureStatistics, merge_all

SETS = 10
TRUTH = 1.0
"""The true distance of the samples' distribution from the reference: its mean is shifted by 1 along the first axis."""
DIMENSIONS = (2, 4, 8, 16, 32, 64, 128)
SIZES = (100, 200, 500, 1000, 2000, 5000, 10_000)


@dataclass(frozen=True)
class Bias:
    """What a sample of a shifted standard Gaussian says of a distance that is truly :data:`TRUTH`.

    Attributes:
        sizes: numbers of samples in the parts of the sample.
        distances: the mean distance of the parts of each size.
        limit: (value, low, high) for infinitely many samples, from :func:`extrapolated_interval`.
        slope: what the distance times n should exceed the truth by, to leading order.
    """

    sizes: tuple[int, ...]
    distances: tuple[float, ...]
    limit: tuple[float, float, float]
    slope: float


def exact_gaussian(dimension: int) -> FeatureStatistics:
    """Statistics of the standard Gaussian itself: mean 0 and covariance 1, without the error of a sample."""
    exact = FeatureStatistics(dimension, "toy")
    # n cancels in the covariance.
    exact.n, exact.scatter = 1_000_001, 1_000_000 * torch.eye(dimension, dtype=torch.float64)
    return exact


def sample_bias(n: int, dimension: int, seed: int = 0) -> Bias:
    """Draw ``n`` vectors of ``dimension`` numbers, and take the distance of parts of them and of all.

    Raises:
        BadValue: fewer than two vectors for each of ten sets, or no dimension.
    """
    if n < 2 * SETS or dimension < 1:
        raise BadValue(f"need a dimension of 1 or more and {2 * SETS} samples or more, got {dimension} and {n}")
    reference = exact_gaussian(dimension)
    x = torch.randn(n, dimension, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x[:, 0] += TRUTH**0.5
    sets = [FeatureStatistics(dimension, "toy").update(part) for part in x[: n // SETS * SETS].chunk(SETS)]
    sizes, distances = [], []
    for together in (1, 2, 5, 10):
        parts = [merge_all(sets[i : i + together]) for i in range(0, SETS, together)]
        sizes.append(parts[0].n)
        distances.append(sum(frechet_distance(part, reference) for part in parts) / len(parts))
    slope = leading_bias(reference.covariance, 1)
    return Bias(tuple(sizes), tuple(distances), extrapolated_interval(sets, reference), slope)


def bias_figure(n: int, dimension: int) -> Figure:
    """The distance of parts of a sample over 1/n, the leading bias, and the value extrapolated to infinitely many samples."""
    found = sample_bias(n, dimension)
    value, low, high = found.limit
    largest = 1 / found.sizes[0]
    looks = line_styles(["measured", "leading order", "extrapolated"])
    with style():
        figure = Figure(figsize=(7, 4.2))
        axes = figure.subplots()
        axes.axhline(TRUTH, color=GREY, linestyle=(0, (1.5, 2)), label="truth")
        leading = looks["leading order"]
        line = [TRUTH, TRUTH + found.slope * largest]
        axes.plot([0, largest], line, color=leading.color, linestyle=leading.linestyle, label="truth + c / n")
        measured = looks["measured"]
        axes.plot(
            [1 / size for size in found.sizes],
            found.distances,
            color=measured.color,
            marker="o",
            linestyle="",
            label="parts of the sample",
        )
        limit = looks["extrapolated"]
        # The library cuts an interval at 0, so a value below 0 lies outside.
        bars = [[max(0.0, value - low)], [max(0.0, high - value)]]
        axes.errorbar(
            [0], [value], bars, color=limit.color, marker="s", linestyle="", capsize=4, label="extrapolated, 95 %"
        )
        axes.set(
            xlabel="1 / number of samples",
            ylabel="Fréchet distance (units squared)",
            title=f"{n:,} samples, {dimension} dimensions",
            xlim=(-0.04 * largest, 1.06 * largest),
            ylim=(min(0.0, 1.2 * value), None),
        )
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def bias_explorer() -> Any:
    """Sliders for the number of samples and the dimension, and :func:`bias_figure`."""
    import ipywidgets

    size = ipywidgets.SelectionSlider(options=SIZES, value=1000, description="samples", continuous_update=False)
    dimension = ipywidgets.SelectionSlider(
        options=DIMENSIONS, value=32, description="dimensions", continuous_update=False
    )
    return explorer([size, dimension], bias_figure)


# FOLDED tt_lib.lessons.frechet
# Figures of what a Fréchet distance depends on: the number of samples, what Gaussians hide, and how images were prepared.


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
