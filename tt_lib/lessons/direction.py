"""Notebook 02: the direction error of a step, on a ring of eight Gaussians whose true flow is known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise

import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from tt_lib.errors import check_range
from tt_lib.figures.style import (
    BLACK,
    BLUE,
    FIXED,
    GREEN,
    GREY,
    ORANGE,
    VERMILLION,
    legend_below,
    log_axis,
    style,
)
from tt_lib.grids import Grid
from tt_lib.lessons.tables import markdown, step_by_step
from tt_lib.metrics.direction import measure_directions
from tt_lib.rows import DIRECTION_COLUMNS, read_rows, results_folder
from tt_lib.schedules import linear_betas
from tt_lib.solvers.registry import make_solver
from tt_lib.study.cells import Cell, timing_path
from tt_lib.study.compare import BETTER, MODEL, SAMPLER, WORSE
from tt_lib.timing import UNTUNED, load_timing
from tt_lib.toy import MixturePredictor, exact_flow, exact_trajectory, ring_2d

BEGIN, END = 0.9, 0.1
SAMPLES = 64
RUN_ERRORS = {"relative": "mean direction error", "accumulated": "accumulated error at the end"}
"""Columns of :func:`tuned_runs`, in words."""
TIME = "time t at which the step begins  (1 = noise, 0 = data)"
ALT = {
    "hook": "Two panels in the plane of y, the whole ring of eight clusters and one step enlarged. From the start, "
    "between two clusters, the true path goes towards the middle of the ring, then turns sharply into the nearer "
    "cluster. The direction used goes straight on and ends far inside the ring. The right direction points from the "
    "start to the end of the path, about 19 degrees away and shorter. The area between path and step is shaded.",
    "errors": "Two panels for five DDIM steps against time, both on logarithmic axes. The direction error rises from "
    "about 0.0002 in the first step to 0.28 in the last, the truncation error from about 0.0005 to 0.12.",
    "strip": "The direction error of each step with 3, 5, 8, 12 and 20 steps. In each panel it rises towards the data. "
    "With more steps it is smaller at the same time, but the last step begins nearer to the data.",
    "player": "Direction error of each DDIM step against time; the slider sets the number of steps from 2 to 20. With "
    "more steps the line lies lower and reaches farther towards the data.",
    "change": "Three panels over time for ten steps on the ring. Top: the direction error rises from 0.0001 in the "
    "noise to 0.4 near the data; tuned, it lies below, far below on the left, hardly on the right. Middle: the share "
    "that tuning removes falls from nine tenths to a fifth half way, rises to two fifths at t = 0.2 and ends at a "
    "tenth; the predicted share lies above most bars and has nearly the same shape. Bottom: tau is moved down by 13 to "
    "25 per cent, in the first five steps beyond the end of the step.",
    "shared": "Two scatter plots of the error of the direction against the change of the answer with tau, a point for "
    "each coordinate of each sample. In the first step, in the noise, all points lie on one straight line through 0. "
    "In the last step they form a wide cloud with little slope.",
    "cifar": "Three panels over time for ten uniform DDIM steps on CIFAR-10. Top: the direction error rises from 0.001 "
    "to above 0.1 near the data. Middle: tuning removes half of it in the steps from t = 0.8 and 0.7, a sixth in those "
    "from 0.9 and 0.6, and next to nothing later; from t = 0.5 to 0.3 the bars lie below 0. "
    "The bar of the last step, which is not tuned, is hollow. Bottom: tau is moved down by up to 3 per cent, and up by "
    "1 in the ninth step.",
    "runs": "Two scatter plots of 48 samplers, logarithmic, with both axes from what tuning improved to what it made "
    "worse. Upwards: the Fréchet distance, tuned over untuned. To the right, left panel: the mean direction error; the "
    "points lie in a cloud, in all four quarters. Right panel: the accumulated error; the points rise from the lower "
    "left, where most of truncation's lie, to the upper right, but some lie in the other quarters.",
    "doubt": "Measured truncation error of each of five steps, divided by the exact one. With 16 substeps "
    "all bars reach 1. With 4 substeps they stop a little below, and with 2 at about 0.7 in the first four steps.",
}
"""What the figures show, in words."""


def even(steps: int, end: float = END) -> Grid:
    """A grid of equal steps in time, from :data:`BEGIN`.

    Raises:
        BadValue: no step.
    """
    check_range("steps", steps, 1)
    return Grid("even", tuple(torch.linspace(BEGIN, end, steps + 1, dtype=torch.float64).tolist()))


def starts() -> Tensor:
    """Noise [64, 2] that the steps begin at."""
    return torch.randn(SAMPLES, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@cache
def toy_directions(solver: str, steps: int) -> pd.DataFrame:
    """Direction errors of each of ``steps`` even steps on the ring (:meth:`Directions.frame`).

    Raises:
        BadValue: no step.
    """
    schedule = linear_betas()
    predictor = MixturePredictor(ring_2d(), schedule)
    return measure_directions(predictor, schedule, make_solver(solver), even(steps), starts()).frame()


def what_one_tau_removes(steps: int = 10, samples: int = 256) -> pd.DataFrame:
    """The best single tau for each step of DDIM on the ring, for noised samples.

    Returns:
        For each step its times ``t`` and ``s``; the direction error with tau = t and with the best tau (root mean
        square over samples, as a share of the right direction's) as ``untuned`` and ``tuned``; the ``ratio`` tau / t;
        the share of the error that a small change of tau would remove, ``fit``, 1 - sqrt(1 - r^2) for the correlation
        r of error and motion; and the share of it that the answers have made good at tau = s, ``reach``.
    """
    rows = []
    for x, t, s, right in _steps(steps, samples):
        ratios = torch.linspace(0.4, 1.3, 451, dtype=torch.float64)
        errors = torch.stack([_rms(_eps(x, (ratio * t).clamp(max=1)) - right) for ratio in ratios])
        best = int(errors.argmin())
        error, moves, size = _eps(x, t) - right, _moves(x, t), _rms(right)
        r = (error * moves).mean() / (_rms(error) * _rms(moves))
        reach = (error * (_eps(x, t) - _eps(x, s))).mean() / error.square().mean()
        row = t, s, _rms(error) / size, errors[best] / size, ratios[best], 1 - (1 - r**2).sqrt(), reach
        rows.append([value.item() for value in row])
    return pd.DataFrame(rows, columns=["t", "s", "untuned", "tuned", "ratio", "fit", "reach"])


def cifar_steps() -> pd.DataFrame:
    """Ten uniform DDIM steps of the shipped network, from data/results/direction.csv and a shipped timing.

    Returns:
        ``t``, ``s``, ``untuned``, ``tuned`` and ``ratio`` as :func:`what_one_tau_removes`; of the untuned steps the
        ``doubt``, as a share of the truncation error; ``before`` and ``after``, the accumulated errors at the end of
        the step, untuned and tuned.
    """
    tuning = "truncation-parallel"  # the objective: the truncation error of every step, from noised images
    rows = read_rows(results_folder() / "direction.csv", DIRECTION_COLUMNS)
    rows = rows.query("solver == 'ddim' and grid == 'uniform' and nfe == 10")
    untuned, tuned = (rows[rows["timing"] == name].set_index("step").sort_index() for name in ("untuned", tuning))
    columns = {"untuned": untuned["relative"], "tuned": tuned["relative"]}
    columns |= {"doubt": untuned["doubt"] / untuned["local"]}
    columns |= {"before": untuned["accumulated"], "after": tuned["accumulated"]}
    frame = untuned[["t", "s"]].assign(**columns)
    timing = load_timing(timing_path(MODEL, Cell("ddim", "uniform", 10, tuning)))
    return frame.assign(ratio=timing.ratios).reset_index(drop=True)


def tuned_runs() -> pd.DataFrame:
    """What tuning step by step did to the errors of whole runs and to the distances of their samples, on CIFAR-10.

    Returns:
        A row for each tuned sampler of data/results/direction.csv: ``solver``, ``grid``, ``nfe``, ``eta``, ``timing``;
        ``relative``, the mean direction error of its steps, ``accumulated``, the error at its end, and ``distance``,
        in ImageNet features from 50,000 samples, each tuned over untuned; ``verdict`` of the distance.
    """
    rows = read_rows(results_folder() / "direction.csv", DIRECTION_COLUMNS).sort_values("step")
    runs = rows.groupby([*SAMPLER, "timing"]).agg({"relative": "mean", "accumulated": "last"})
    untuned = runs.xs(UNTUNED, level="timing")
    tuned = runs.div(untuned).drop(UNTUNED, level="timing").reset_index()
    found = tuned.merge(step_by_step(n=50_000), on=[*SAMPLER, "timing"], validate="1:1")
    return found.assign(distance=1 + found["change_first"], verdict=found["verdict_first"])


@style()
def runs_figure(runs: pd.DataFrame) -> Figure:
    """:func:`tuned_runs`: the distance against the mean direction error, and against the accumulated error."""
    figure = Figure(figsize=(9, 4.2))
    for axes, (column, name) in zip(figure.subplots(1, 2, sharey=True), RUN_ERRORS.items(), strict=True):
        for objective in ("consistency", "truncation"):
            own, look = runs[runs["timing"].str.startswith(objective)], FIXED[f"{objective}-parallel"]
            axes.plot(own[column], own["distance"], look.marker, color=look.color, alpha=0.7, label=objective)
        for line in (axes.axhline, axes.axvline):
            line(1, color=GREY, linewidth=0.8)
        log_axis(axes, "x", runs[column])
        log_axis(axes, "y", runs["distance"])
        axes.set(xlabel=f"{name}, tuned / untuned")
    figure.axes[0].set_ylabel("FD (ImageNet features),\ntuned / untuned")
    legend_below(figure, *figure.axes[0].get_legend_handles_labels())
    return figure


def verdict_table(runs: pd.DataFrame) -> str:
    """A Markdown table: how many of :func:`tuned_runs` have less of an error, and what became of their samples."""
    lines = []
    for name, own in {"any": runs, **{words: runs[runs[each] < 1] for each, words in RUN_ERRORS.items()}}.items():
        for nfe, verdicts in own.groupby("nfe")["verdict"]:
            lines.append([name, nfe, len(verdicts), *((verdicts == verdict).sum() for verdict in (BETTER, WORSE))])
    return markdown(["smaller", "NFE", "samplers", "better", "worse"], lines)


@style()
def hook_figure() -> Figure:
    """One step between two clusters, with the direction that is used and the right one."""
    schedule, ring = linear_betas(), ring_2d()
    t, s = (torch.tensor(time, dtype=torch.float64) for time in (0.3, 0.02))
    angle = math.radians(22.5 - 4)  # a little to one side of the middle between two clusters
    start = 1.35 * torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
    state = schedule.alpha(t) * start[None]
    times = torch.linspace(t.item(), s.item(), 201, dtype=torch.float64)
    path = exact_trajectory(ring, state, times, schedule)[:, 0] / schedule.alpha(times)[:, None]
    landed = start + (schedule.rho(s) - schedule.rho(t)) * ring.eps(state, t, schedule)[0]
    figure = Figure(figsize=(9, 4.2))
    whole, near = figure.subplots(1, 2)
    for axes in (whole, near):
        axes.plot(*ring.sample(800, torch.Generator().manual_seed(0)).T, ".", color=GREY, alpha=0.3, markersize=4)
        # The sliver between path and step: along the one and back along the other.
        axes.fill(
            *torch.cat([path, landed[None]]).T, color=ORANGE, alpha=0.35, linewidth=0, label="gap between step and path"
        )
        # Dashed and above the arrow that it leaves only late.
        axes.plot(*path.T, color=BLACK, linestyle=(0, (2, 1.5)), zorder=5, label="true path")
        for end, colour, marker, name in (
            (landed, VERMILLION, "X", "direction used, and its end"),
            (path[-1], BLUE, "D", "right direction, and the end of the path"),
        ):
            axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 2})
            axes.plot(*end, color=colour, marker=marker, markersize=9, linestyle="none", label=name)
        axes.plot(*start, "o", color=BLACK, markersize=8, label="start of the step")
        axes.set(aspect="equal", xlabel="first coordinate of y")
    whole.set(xlim=(-1.6, 1.6), ylim=(-1.6, 1.6), ylabel="second coordinate of y", title="eight clusters of data")
    near.set(xlim=(0.37, 1.42), ylim=(-0.25, 0.8), title=f"one step, from t = {t:g} to {s:g}, enlarged")
    legend_below(figure, *whole.get_legend_handles_labels())
    return figure


def draw_errors(axes: Axes, steps: int) -> None:
    """Direction error of each step of DDIM, against the time at which it begins."""
    frame = toy_directions("ddim", steps)
    axes.plot(frame["t"], frame["relative"], color=VERMILLION, marker="^", label="direction error")
    axes.set(xlabel=TIME, xlim=(0.95, 0.05), yscale="log", ylim=(1e-5, 1), title=f"{steps} steps")


@style()
def errors_figure(steps: int) -> Figure:
    """:func:`draw_errors`, and the truncation errors beside it."""
    figure = Figure(figsize=(9, 3.6))
    direction, truncation = figure.subplots(1, 2)
    draw_errors(direction, steps)
    frame = toy_directions("ddim", steps)
    truncation.plot(frame["t"], frame["local"], color=BLUE, marker="D")
    truncation.set(xlim=(0.95, 0.05), yscale="log", ylim=(1e-5, 1), title="truncation error, RMS over coordinates")
    direction.set(title="direction error, share of the typical |d*|")
    for axes in (direction, truncation):
        axes.set(xlabel="time t at which the step begins")
    return figure


@style()
def change_figure(frame: pd.DataFrame) -> Figure:
    """The direction error of each step untuned and tuned, the share that tuning removes, and where tau was moved.

    Args:
        frame: ``t``, ``s``, ``untuned``, ``tuned``, ``ratio`` and, if it is to be drawn, ``fit``, as of
            :func:`what_one_tau_removes` and :func:`cifar_steps`. Bars of steps that are not tuned are hollow.
    """
    figure = Figure(figsize=(7, 7.4))
    error, removed, moved = figure.subplots(3, 1, sharex=True)
    error.plot(frame["t"], frame["untuned"], color=BLACK, marker="o", label="untuned")
    error.plot(frame["t"], frame["tuned"], color=BLUE, marker="D", linestyle="--", label="tuned")
    error.vlines(frame["t"], frame["tuned"], frame["untuned"], color=GREY, linewidth=0.8)
    error.set(yscale="log", ylabel="direction error")
    error.legend()
    width = 0.35 * frame["t"].diff().abs().min()
    share, still = 1 - frame["tuned"] / frame["untuned"], frame["ratio"] == 1
    removed.bar(frame["t"][~still], share[~still], width, color=GREEN)
    removed.set(ylabel="share of it\nremoved by tuning")
    if still.any():
        hollow = {"facecolor": "none", "edgecolor": GREY, "linewidth": 1.4}
        removed.bar(frame["t"][still], share[still], width, label="not tuned", **hollow)
    if "fit" in frame:
        removed.plot(frame["t"], frame["fit"], "o", color=BLACK, label="predicted: 1 − √(1 − r²)")
    removed.legend()
    shift, ends = frame["ratio"] - 1, frame["s"] / frame["t"] - 1
    moved.bar(frame["t"], shift, width, color=ORANGE)
    moved.plot(
        frame["t"],
        ends,
        "_",
        color=BLACK,
        markersize=16,
        markeredgewidth=2,
        label="end of the step (missing: below the axis)",
    )
    # Near the data s / t is far below: the first ends set the frame.
    deepest = 1.3 * min(shift.min(), ends[:3].min())
    moved.set(
        ylabel="move of τ\nτ/t − 1",
        xlabel=TIME,
        xlim=(0.95, -0.03),
        ylim=(deepest, max(0.01, 1.3 * shift.max())),
    )
    for axes in (removed, moved):
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.axhline(0, color=GREY, linewidth=0.8)
    legend_below(figure, *moved.get_legend_handles_labels())  # within the panel its dash looks like one of the marks
    return figure


@style()
def shared_figure(steps: int = 10, samples: int = 128) -> Figure:
    """The error of the direction against how the answer moves with tau, in the first step and in the last."""
    figure = Figure(figsize=(8.5, 3.8))
    every = _steps(steps, samples)
    for axes, name, (x, t, _, right) in zip(
        figure.subplots(1, 2), ("first step", "last step"), (every[0], every[-1]), strict=True
    ):
        moves, error = _moves(x, t), _eps(x, t) - right
        moves, error = (moves / _rms(moves)).flatten(), (error / _rms(error)).flatten()
        axes.plot(moves, error, ".", color=VERMILLION, markersize=4, label="one coordinate of one sample")
        slope = (moves * error).mean() / moves.square().mean()
        ends = torch.tensor([-4.0, 4.0], dtype=torch.float64)
        axes.plot(ends, slope * ends, color=BLUE, label="least-squares line: what one τ can remove")
        axes.set(
            xlim=(-4.5, 4.5),
            ylim=(-4.5, 4.5),
            title=f"{name}, from t = {t:.2f}",
            xlabel="change of the answer with τ, m",
        )
    figure.axes[0].set_ylabel("error of the direction, e")
    legend_below(figure, *figure.axes[0].get_legend_handles_labels())
    return figure


@style()
def local_figure(frames: Mapping[str, pd.DataFrame]) -> Figure:
    """Local errors of the steps of several grids, against the time at which each step begins."""
    figure = Figure(figsize=(7, 3.4))
    axes = figure.subplots()
    for (name, frame), (colour, marker) in zip(frames.items(), ((BLACK, "o"), (BLUE, "D")), strict=False):
        axes.plot(frame["t"], frame["local"], color=colour, marker=marker, label=name)
    axes.set(xlabel=TIME, ylabel="truncation error", xlim=(0.95, 0.05), ylim=(0, None))
    legend_below(figure, *axes.get_legend_handles_labels())
    return figure


@style()
def doubt_figure(exact: pd.Series, local: pd.DataFrame) -> Figure:
    """Local errors as they were measured against references, a column each, divided by the exact ones."""
    figure = Figure(figsize=(7, 3.4))
    axes = figure.subplots()
    shares = local.div(exact, axis=0)
    shares.index = pd.RangeIndex(1, len(shares) + 1)
    shares.plot.bar(ax=axes, rot=0, width=0.8, color=[BLUE, ORANGE, VERMILLION], legend=False)
    axes.axhline(1, color=BLACK, linewidth=1.4, label="exact")
    axes.set(xlabel="step", ylabel="truncation error, measured / exact", ylim=(0, 1.15))
    axes.grid(visible=False, axis="x")
    legend_below(figure, *axes.get_legend_handles_labels())
    return figure


def _steps(steps: int, samples: int) -> Sequence[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """For each step noised samples x [samples, 2] at t, t, s and the right direction [samples, 2]."""
    schedule, ring, draw = linear_betas(), ring_2d(), torch.Generator().manual_seed(0)
    made = []
    for t, s in pairwise(even(steps, 0.02).tensor()):
        noise = torch.randn(samples, 2, generator=draw, dtype=torch.float64)
        x = schedule.alpha(t) * ring.sample(samples, draw) + schedule.sigma(t) * noise
        y, y_end = x / schedule.alpha(t), exact_flow(ring, x, t, s, schedule) / schedule.alpha(s)
        made.append((x, t, s, (y_end - y) / (schedule.rho(s) - schedule.rho(t))))
    return made


def _eps(x: Tensor, tau: Tensor) -> Tensor:
    return ring_2d().eps(x, tau, linear_betas())


def _moves(x: Tensor, t: Tensor, h: float = 1e-3) -> Tensor:
    """How the answers at x move with tau, at tau = t, for each unit of tau / t."""
    return (_eps(x, t * (1 + h)) - _eps(x, t * (1 - h))) / (2 * h)


def _rms(values: Tensor) -> Tensor:
    return values.square().mean().sqrt()
