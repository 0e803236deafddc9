"""Notebook 06: what a Fréchet distance depends on: the number of samples, Gaussians, and how images are prepared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ipywidgets
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from tt_lib.errors import BadValue
from tt_lib.figures.style import BLUE, GREY, ORANGE, VERMILLION, legend_below, log_axis, looks, relplot, style
from tt_lib.lessons.kit import explorer
from tt_lib.metrics.frechet import extrapolated_interval, frechet_distance, leading_bias
from tt_lib.metrics.statistics import FeatureStatistics, merge_all

SETS = 10
TRUTH = 1.0
"""The true distance of the samples' distribution from the reference: its mean is shifted by 1 along the first axis."""
DIMENSIONS = (2, 4, 8, 16, 32, 64, 128)
SIZES = (100, 200, 500, 1000, 2000, 5000, 10_000)


class Bias(NamedTuple):
    """What a sample of a shifted standard Gaussian says of a distance that is truly :data:`TRUTH`."""

    sizes: list[int]
    """Numbers of samples in the parts of the sample."""
    distances: list[float]
    """The mean distance of the parts of each size."""
    limit: tuple[float, float, float]
    """(value, low, high) for infinitely many samples, from :func:`extrapolated_interval`."""
    slope: float
    """What the distance times n should exceed the truth by, to leading order."""


def exact_gaussian(dimension: int) -> FeatureStatistics:
    """Statistics of the standard Gaussian itself: mean 0 and covariance 1, without the error of a sample."""
    exact = FeatureStatistics(dimension, "toy")
    # n cancels in the covariance.
    exact.n, exact.scatter = 1_000_001, 1_000_000 * torch.eye(dimension, dtype=torch.float64)
    return exact


def sample_bias(n: int, dimension: int) -> Bias:
    """Draw ``n`` vectors of ``dimension`` numbers, and take the distance of parts of them and of all.

    Raises:
        BadValue: fewer than two vectors for each of ten sets, or no dimension.
    """
    if n < 2 * SETS or dimension < 1:
        raise BadValue(f"need a dimension of 1 or more and {2 * SETS} samples or more, got {dimension} and {n}")
    reference = exact_gaussian(dimension)
    x = torch.randn(n, dimension, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[:, 0] += TRUTH**0.5
    sets = [FeatureStatistics(dimension, "toy").update(part) for part in x[: n // SETS * SETS].chunk(SETS)]
    sizes, distances = [], []
    for together in (1, 2, 5, 10):
        parts = [merge_all(sets[i : i + together]) for i in range(0, SETS, together)]
        sizes.append(parts[0].n)
        distances.append(sum(frechet_distance(part, reference) for part in parts) / len(parts))
    slope = leading_bias(reference.covariance, 1)
    return Bias(sizes, distances, extrapolated_interval(sets, reference), slope)


@style()
def bias_figure(n: int, dimension: int) -> Figure:
    """The distance of parts of a sample over 1/n, the leading bias, and the value extrapolated to infinite n."""
    bias = sample_bias(n, dimension)
    value, low, high = bias.limit
    largest = 1 / bias.sizes[0]
    figure = Figure(figsize=(7, 3.6))
    axes = figure.subplots()
    axes.axhline(TRUTH, color=GREY, linestyle=(0, (1.5, 2)), label="truth")
    axes.plot([0, largest], [TRUTH, TRUTH + bias.slope * largest], color=ORANGE, linestyle="--", label="truth + c / n")
    axes.scatter([1 / size for size in bias.sizes], bias.distances, color=BLUE, label="parts of the sample")
    # An interval is cut at 0, so a value below 0 lies outside.
    bars = [[max(0.0, value - low)], [max(0.0, high - value)]]
    axes.errorbar([0], [value], bars, color=VERMILLION, marker="s", linestyle="", capsize=4, label="extrapolated, 95 %")
    axes.set(xlabel="1 / number of samples", ylabel="Fréchet distance (units squared)")
    axes.set(xlim=(-0.04 * largest, 1.06 * largest), ylim=(min(0.0, 1.2 * value), None))
    axes.set_title(f"{n:,} samples, {dimension} dimensions")
    legend_below(figure, *axes.get_legend_handles_labels())
    return figure


def bias_explorer() -> Any:
    """Sliders for the number of samples and the dimension, and :func:`bias_figure`."""
    size = ipywidgets.SelectionSlider(options=SIZES, value=1000, description="samples", continuous_update=False)
    dimension = ipywidgets.SelectionSlider(
        options=DIMENSIONS, value=32, description="dimensions", continuous_update=False
    )
    return explorer([size, dimension], bias_figure)


def distances_over_n(frame: pd.DataFrame, slopes: Mapping[str, float]) -> Figure:
    """Distances of n real images over 1/n, a panel for each network of features and a series for each reference.

    Args:
        frame: columns ``features``, ``reference``, ``n`` and ``distance``.
        slopes: the leading bias times n, by name of the features; drawn as a line through the distance at the largest
            n.

    Raises:
        BadValue: no rows.
    """
    frame = frame.assign(inverse=1 / frame["n"]).sort_values("n")
    series = "against " + frame["reference"]
    grid = relplot(
        frame.assign(series=series),
        "series",
        (4, 3.4),
        x="inverse",
        y="distance",
        col="features",
        s=50,
        facet_kws={"sharey": False},
    )
    for name, axes in grid.axes_dict.items():
        for label, look in looks(series).items():
            last = frame[(frame["features"] == name) & (series == label)].iloc[-1]
            line = [last["distance"] + slopes[name] * (x - last["inverse"]) for x in (0, frame["inverse"].max())]
            axes.plot([0, frame["inverse"].max()], line, color=look.color, linestyle="--", zorder=1)
        axes.set_ylim(min(0.0, axes.get_ylim()[0]), None)
    grid.set_titles("{col_name}").set_axis_labels("1 / number of images", "Fréchet distance (features squared)")
    return grid.figure


def point_clouds(clouds: Mapping[str, Tensor]) -> Figure:
    """Each cloud of points [N, 2] in a panel of its own, on axes that end at 4: points farther away are not drawn.

    Raises:
        BadValue: no cloud.
    """
    frames = [pd.DataFrame(points.numpy(), columns=["x", "y"]).assign(cloud=name) for name, points in clouds.items()]
    frame = pd.concat(frames or [pd.DataFrame()])
    grid = relplot(frame, None, (3, 3.3), x="x", y="y", col="cloud", s=8, color=BLUE, linewidth=0)
    grid.set(xlim=(-4, 4), ylim=(-4, 4), aspect="equal")
    grid.set_titles("{col_name}").set_axis_labels("first coordinate", "second coordinate")
    return grid.figure


def change_dots(table: pd.DataFrame, names: Sequence[str]) -> Figure:
    """What each change of the same images costs, a panel for each network of features, on logarithmic axes.

    Args:
        table: a row for each change (its index), a column of distances above 0 for each network.
        names: the columns.
    """
    long = table.rename_axis("change").reset_index().melt("change", list(names), "features", "distance")
    size = (4.5, 0.45 * len(table) + 1.2)
    grid = relplot(
        long, None, size, x="distance", y="change", col="features", s=70, color=BLUE, facet_kws={"sharex": False}
    )
    for name, axes in grid.axes_dict.items():
        log_axis(axes, "x", table[name])
    grid.set(ylim=(len(table) - 0.4, -0.6))
    grid.set_titles("{col_name}").set_axis_labels("Fréchet distance (features squared)", "")
    return grid.figure
