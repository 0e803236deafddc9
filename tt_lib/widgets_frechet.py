"""The explorer of the Fréchet distance's bias: samples of a known Gaussian, and what extrapolation makes of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure

from tt_lib.errors import BadValue
from tt_lib.metrics.bias import leading_bias
from tt_lib.metrics.frechet import extrapolated_interval, frechet_distance
from tt_lib.metrics.statistics import FeatureStatistics, merge_all
from tt_lib.plots import GREY, line_styles, style
from tt_lib.widgets import explorer

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
