"""Notebook 06: what a Fréchet distance depends on: the number of samples, the features, and how images are prepared."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from tt_lib.errors import BadValue
from tt_lib.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    KINDS,
    ORANGE,
    VERMILLION,
    legend_below,
    log_axis,
    relplot,
    style,
)
from tt_lib.lessons.kit import fact
from tt_lib.lessons.tables import LABELS, converged, study
from tt_lib.metrics.frechet import frechet_distance, jackknife_interval, leading_bias, square_root
from tt_lib.metrics.reference import reference_path
from tt_lib.metrics.statistics import FeatureStatistics, merge_all
from tt_lib.study.compare import FEATURES

CLASSIFIER = FEATURES[1]
DIMENSIONS = (2, 4, 8, 16, 32, 64, 128)
SIZES = (50, 100, 200, 500, 1000, 2000)
SETS = 10
MARKED = {
    "better by both": (("ddim", "quadratic", 10, "consistency-parallel"), GREEN),
    "better by one, worse by the other": (("ddim", "uniform", 5, "truncation-parallel"), VERMILLION),
}
"""Tunings that :func:`both_figure` marks: solver, grid, number of evaluations and timing."""
ALT = {
    "both": "A cloud of grey points on logarithmic axes, a point for each sampler: the distance by ImageNet features "
    "across, by the classifier's upwards. It rises along the diagonal. A green arrow, DDIM with ten quadratic steps "
    "before and after tuning, points down and to the left. An orange one, five uniform steps, points down and a little "
    "to the right. A star at the lower left is the converged solution: no point lies left of it, a few below it.",
    "clouds": "Three clouds of points with the same mean and covariance: a round Gaussian, one that is crowded in a "
    "corner with tails to the right and to the top, and eight spots on a ring.",
    "bias": "Two panels, ImageNet features and the classifier's, on logarithmic axes. The distance of n draws from "
    "the Gaussian they came from falls about as 1 / n, near the predicted line. By ImageNet features it comes down to "
    "the distance of the test images at about 10,000 draws. By the classifier's it lies far below theirs throughout.",
    "strip": "Three panels for 2, 16 and 128 dimensions, on logarithmic axes: the distance of n draws from the "
    "Gaussian they came from falls along a line as 1 / n. The line lies higher with more dimensions.",
    "player": "The distance of n draws from the Gaussian they came from, against n, with the predicted line; the "
    "slider sets the dimension from 2 to 128.",
    "intervals": "Twenty intervals side by side, of sets of samples from one distribution. Nearly all contain the "
    "dashed line of their mean. Most lie above the dotted line, the distance of infinitely many samples. The lowest of "
    "the twenty is marked with a star.",
    "changes": "Six changes of the same photographs on a logarithmic axis of distances. Cutting off decimals costs "
    "least by far, then mirroring. Shrinking without smoothing, JPEG, turning upside down and exchanging red and blue "
    "cost much more.",
}
"""What the figures show, in words."""


@style()
def both_figure() -> Figure:
    """Each sampler's distance by both kinds of features, the tunings of :data:`MARKED`, and the converged solution.

    Samplers far from the data, and the test images, lie outside the axes.
    """
    frame = study()
    frame = frame[frame["path"] == "diffusion"]
    points = frame.set_index(["solver", "grid", "nfe", "timing", "eta"])[list(LABELS)].sort_index()
    figure = Figure(figsize=(6.8, 5))
    axes = figure.subplots()
    axes.plot(*points.to_numpy().T, "o", color=GREY, alpha=0.4, markersize=5, markeredgewidth=0, label="a sampler")
    for name, (tuned, colour) in MARKED.items():
        ends = [points.loc[(*tuned[:3], timing, 0)].to_numpy().ravel() for timing in ("untuned", tuned[3])]
        arrow = {"arrowstyle": "-|>", "color": colour, "linewidth": 3, "mutation_scale": 20}
        axes.annotate("", ends[1], ends[0], arrowprops=arrow | {"shrinkA": 0, "shrinkB": 0})
        axes.plot(*ends[0], "o", color=colour, markersize=9)
        axes.plot([], [], color=colour, linewidth=3, label=f"untuned (dot) to tuned (tip): {name}")
    color, marker, _ = KINDS["converged solution"]
    options: dict[str, Any] = {
        "markersize": 15,
        "markeredgewidth": 2,
        "fillstyle": "none",
        "label": "converged solution",
    }
    axes.plot(*converged(frame)[list(LABELS)], marker, color=color, **options)
    log_axis(axes, "x", [5.3, 100])
    log_axis(axes, "y", [2.2, 20])
    axes.set(**dict(zip(("xlabel", "ylabel"), LABELS.values(), strict=True)))
    legend_below(figure, *axes.get_legend_handles_labels())
    return figure


def shipped_statistics(features: str, split: str = "train") -> FeatureStatistics:
    """The shipped statistics of CIFAR-10's images of a split."""
    return FeatureStatistics.load(reference_path("cifar10", split, features))


def exact_gaussian(dimension: int) -> FeatureStatistics:
    """Statistics of the standard Gaussian itself: mean 0 and covariance 1, without the error of a sample."""
    exact = FeatureStatistics(dimension, "toy")
    # n cancels in the covariance.
    exact.n, exact.scatter = 1_000_001, 1_000_000 * torch.eye(dimension, dtype=torch.float64)
    return exact


def drawn_sets(like: FeatureStatistics, sets: int, size: int, seed: int, factor: float = 1) -> list[FeatureStatistics]:
    """Statistics of ``sets`` sets of draws from the Gaussian of others, spread out from its mean by a factor."""
    generator = torch.Generator().manual_seed(seed)
    root, made = factor * square_root(like.covariance), []
    for _ in range(sets):
        x = torch.randn(size, like.dimension, generator=generator, dtype=torch.float64)
        made.append(FeatureStatistics(like.dimension, like.features, like.sha256).update(x @ root + like.mean))
    return made


def own_distances(like: FeatureStatistics, sizes: Sequence[int], seed: int = 0) -> list[float]:
    """The distance of n draws of a Gaussian from that Gaussian, for rising n, all multiples of the first.

    Raises:
        BadValue: sizes that do not rise by multiples of the first.
    """
    first = sizes[0]
    if any(size % first for size in sizes) or list(sizes) != sorted(sizes):
        raise BadValue(f"the sizes must rise and be multiples of the first, got {list(sizes)}")
    sets = drawn_sets(like, sizes[-1] // first, first, seed)
    return [frechet_distance(merge_all(sets[: size // first]), like) for size in sizes]


@style()
def bias_figure(sizes: Sequence[int]) -> Figure:
    """:func:`own_distances` of the training images' Gaussians in both features, the prediction and the floor."""
    figure = Figure(figsize=(9, 3.7))
    for axes, name, label in zip(figure.subplots(1, 2), FEATURES, LABELS.values(), strict=True):
        like, floor = shipped_statistics(name), float(fact("fd", solver="floor", features=name))
        found, predicted = own_distances(like, sizes), [leading_bias(like.covariance, n) for n in sizes]
        axes.plot(sizes, predicted, color=ORANGE, linestyle="--", label="predicted, c / n")
        axes.plot(sizes, found, "o", color=BLUE, label="n draws, against the Gaussian they came from")
        axes.axhline(floor, color=GREY, linestyle=(0, (1.5, 2)), label="10,000 test images: the floor")
        log_axis(axes, "x", sizes)
        log_axis(axes, "y", [*found, *predicted, floor])
        axes.set(xlabel="number of draws n", ylabel=label)
    legend_below(figure, *axes.get_legend_handles_labels())
    return figure


@cache
def _toy_bias(dimension: int) -> list[float]:
    runs = [own_distances(exact_gaussian(dimension), SIZES, seed) for seed in range(4)]
    return [sum(each) / len(each) for each in zip(*runs, strict=True)]


def draw_bias(axes: Axes, dimension: int) -> None:
    """:func:`own_distances` of the standard Gaussian, mean of four seeds, and what is predicted."""
    predicted = [leading_bias(exact_gaussian(dimension).covariance, n) for n in SIZES]
    axes.plot(SIZES, predicted, color=ORANGE, linestyle="--", label="predicted, c / n")
    axes.plot(SIZES, _toy_bias(dimension), "o", color=BLUE, label="n draws, against the Gaussian they came from")
    axes.set(xscale="log", yscale="log", ylim=(5e-4, 200), xlabel="number of draws n", ylabel="Fréchet distance")
    axes.set_title(f"D = {dimension}")


def twenty_intervals(n: int, factor: float, count: int = 20) -> list[tuple[float, float, float]]:
    """Distances with intervals of ``count`` sets of samples: draws from the classifier's Gaussian, spread out."""
    like = shipped_statistics(CLASSIFIER)
    return [jackknife_interval(drawn_sets(like, SETS, n // SETS, seed, factor), like) for seed in range(count)]


def true_distance(factor: float) -> float:
    """The distance of the classifier's Gaussian from itself spread out by a factor: ``(factor - 1)^2 tr S``."""
    return (factor - 1) ** 2 * shipped_statistics(CLASSIFIER).covariance.trace().item()


@style()
def intervals_figure(intervals: Sequence[tuple[float, float, float]], truth: float) -> Figure:
    """Intervals (value, low, high) side by side, their mean, the lowest, and the truth: infinitely many samples."""
    values, low, high = np.array(intervals).T
    figure = Figure(figsize=(7, 3.4))
    axes = figure.subplots()
    places = np.arange(1, len(values) + 1)
    axes.vlines(places, low, high, color=BLUE, linewidth=2, label="95 % interval")
    axes.plot(places, values, "o", color=BLUE, label="measured")
    best = int(values.argmin())
    axes.plot(best + 1, values[best], "*", color=VERMILLION, markersize=15, label="the lowest")
    axes.axhline(values.mean(), color=BLACK, linestyle="--", linewidth=1.2, label="mean of the twenty")
    axes.axhline(truth, color=GREY, linestyle=(0, (1.5, 2)), label="infinitely many samples")
    axes.set(xlabel="set of samples", ylabel="Fréchet distance", xticks=[1, 5, 10, 15, 20], ylim=(0, None))
    legend_below(figure, *axes.get_legend_handles_labels())
    return figure


def rank_correlations() -> pd.DataFrame:
    """Do both kinds of features order samplers alike? Of all samplers, and of DDIM's timings on each grid.

    Learned samplers are left out, as a loss in the classifier's features trained them. Samplers whose distances are
    equal count once.

    Returns:
        For each group of ``samplers`` how ``many`` they are, and Spearman's rank correlation ``rank``.
    """
    frame, both = study(), list(LABELS)
    frame = frame[(frame["path"] == "diffusion") & ~frame["timing"].str.startswith("learned")].drop_duplicates(both)
    ddim = frame[(frame["solver"] == "ddim") & (frame["eta"] == 0)]
    groups = {"all samplers": frame}
    for grid in ("quadratic", "uniform"):
        for nfe in (5, 10):
            groups[f"DDIM, {grid}, {nfe} evaluations"] = ddim[(ddim["grid"] == grid) & (ddim["nfe"] == nfe)]
    rows = [(name, len(each), each[both].corr("spearman").iloc[0, 1]) for name, each in groups.items()]
    return pd.DataFrame(rows, columns=["samplers", "many", "rank"])


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


def rounded(x: Tensor) -> Tensor:
    """Pixels as uint8, rounded."""
    return x.round().clamp(0, 255).to(torch.uint8)


def jpeg(pixels: Tensor) -> Tensor:
    """The uint8 images [N, 3, H, W] written as JPEG files of quality 75 and read again."""
    found = []
    for image in pixels.permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=75)
        found.append(torch.tensor(np.array(Image.open(file))))
    return torch.stack(found).permute(0, 3, 1, 2)


def photographs() -> Tensor:
    """52 squares of 96 by 96 pixels cut from the two photographs of scikit-learn: float32 [52, 3, 96, 96]."""
    from sklearn.datasets import load_sample_images

    photos = [torch.tensor(photo).permute(2, 0, 1) for photo in load_sample_images().images]
    squares = [each.unfold(1, 96, 55).unfold(2, 96, 54).permute(1, 2, 0, 3, 4).flatten(0, 1) for each in photos]
    return torch.cat(squares)[::3].float()


@style()
def change_figure(distances: Mapping[str, float]) -> Figure:
    """What each change of the same images costs, on a logarithmic axis."""
    figure = Figure(figsize=(7, 0.42 * len(distances) + 0.9))
    axes = figure.subplots()
    axes.plot(list(distances.values()), list(distances), "o", color=BLUE, markersize=9)
    for name, distance in distances.items():
        axes.annotate(f"{distance:#.2g}", (distance, name), (7, 0), textcoords="offset points", va="center")
    log_axis(axes, "x", [*distances.values(), 2 * max(distances.values())])
    axes.set(xlabel=LABELS["classifier"], ylim=(len(distances) - 0.5, -0.5))
    return figure
