"""Notebook 03: what one conditioning time can repair, by the losses of one DDIM step over tau on toys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import NamedTuple

import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from tt_lib.engine import drive
from tt_lib.errors import BadValue, choose
from tt_lib.figures.style import BLACK, BLUE, GREY, VERMILLION, count_axis, legend_below, log_axis, style
from tt_lib.grids import Grid
from tt_lib.sampling import Sampler
from tt_lib.schedules import linear_betas
from tt_lib.solvers.ddim import ddim
from tt_lib.solvers.registry import make_solver
from tt_lib.toy import (
    GaussianMixture,
    MixturePredictor,
    exact_flow,
    exact_trajectory,
    ring_2d,
    single_gaussian,
    two_modes_1d,
)
from tt_lib.tuning import TuneConfig, tune
from tt_lib.tuning.objectives import squared_distance

TOYS: dict[str, GaussianMixture] = {
    "one Gaussian at 0": single_gaussian(0.0, 0.25),
    "one Gaussian at 0.5": single_gaussian(0.5, 0.25),
    "two modes": two_modes_1d(),
    "ring of eight": ring_2d(),
}
SAMPLES = 1024
LOWEST = 0.02
"""The smallest tau that is tried."""
ALT = {
    "hook": "Left: where one step lands in the plane, for some samples. A line joins the true end of each to where the "
    "untuned step lands and to where the tuned one lands, with a ratio of 0.66. Most tuned ends lie between, nearer to "
    "the true ones; two at the lower left lie farther than untuned. Right: the mean squared error against the ratio "
    "tau / t. It starts at 1 for the untuned step, and falls to less than a half at a ratio of 0.66, along an "
    "arrow named way of the tuner.",
    "scan": "Both losses of one step against the ratio tau / t. The truncation loss falls from 1 at tau = t to "
    "less than 0.6 at a ratio of 0.78. The consistency loss falls more slowly and is lowest at about 0.64. There a "
    "hollow mark shows the truncation loss: more than 1.7.",
    "descent": "The ratio over 500 iterations of Adam, for both losses. Both start at 1, fall in straight lines for "
    "about a hundred iterations, and bend into the levels of the minima of the scan: 0.78 and 0.64.",
    "strip": "Both losses against the ratio for five steps of equal length, from t = 0.9 to t = 0.24. In every one the "
    "consistency loss has its minimum at a smaller ratio than the truncation loss. There hollow marks show the "
    "truncation loss: about 2, and 0.8 in the last step. In the first two the truncation loss is lowest left of the "
    "end of the step.",
    "player": "Both losses of a step on the ring against the ratio; the slider moves the step from noise to data.",
    "cifar": "Both losses of the first of five DDIM steps on CIFAR-10, against the ratio. The truncation loss is "
    "lowest near 0.95, at less than half its value at 1. The consistency loss is lowest near 0.9, where the truncation "
    "loss is about twice its value at 1.",
    "short": "The best ratio of one step against its length, logarithmic and falling to the right. By the truncation "
    "loss it rises to 1. By the consistency loss it rises from 0.65 to about 0.82 and ends there.",
    "runs": "Error at the end of whole DDIM runs against the number of steps, 3 to 20, both axes logarithmic. Untuned "
    "falls in a straight line, parallel to a dotted one in proportion to 1 / steps. Truncation falls below it, "
    "parallel. Consistency begins a little above truncation with 3 steps, and hardly falls after 5: it is below "
    "untuned with 3 and 5 steps, above it with 10 and 20.",
    "ruined": "Three rows of five images from the same noise. Untuned: smooth shapes, an animal among them. Tuned by "
    "the paper's loss: their outlines under thick coloured noise. With the last two steps untuned: clean, and two are "
    "cars.",
}
"""What the figures show, in words."""


class StepLosses(NamedTuple):
    """Losses of one step for each tau that its network may be conditioned on; all float64."""

    taus: Tensor
    """[P], rising, the step's own time among them."""
    truncation: Tensor
    """[P], squared distance from the true end, mean over samples."""
    consistency: Tensor
    """[P], the paper's objective."""
    untuned: int
    """Where in ``taus`` the step's own time is."""

    def left(self, at: int) -> float:
        """The step's squared error with the tau at this place, as a share of its error without tuning."""
        return (self.truncation[at] / self.truncation[self.untuned]).item()


def step_losses(toy: str, t: float, s: float, points: int = 200) -> StepLosses:
    """Both objectives of one DDIM step from t to s, on diffused samples of a toy, over tau from :data:`LOWEST` to 1.

    Raises:
        BadValue: no such toy, or times that do not fall.
    """
    choose("toy", toy, tuple(TOYS))
    if not LOWEST < s < t < 1:
        raise BadValue(f"a step goes from a later time to an earlier one in ({LOWEST}, 1), got t = {t} and s = {s}")
    mixture, schedule = TOYS[toy], linear_betas()
    predictor = MixturePredictor(mixture, schedule)
    times = torch.tensor([t, s], dtype=torch.float64)
    x = _states(mixture, times[0], SAMPLES)
    true, before = exact_flow(mixture, x, times[0], times[1], schedule), predictor(x, times[0], times[0])
    taus = torch.cat([torch.linspace(LOWEST, 1, points, dtype=torch.float64), times[:1]]).sort().values
    truncation, consistency = [], []
    for tau in taus:
        end = drive(ddim(x, times, schedule, None), predictor, [tau.item()]).x
        truncation.append(squared_distance(end, true).mean())
        consistency.append(squared_distance(predictor(end, times[1], times[1]), before).mean())
    return StepLosses(taus, torch.stack(truncation), torch.stack(consistency), int((taus == times[0]).nonzero()[0]))


COLOURS = {"truncation": (BLUE, "-", "D"), "consistency": (VERMILLION, "--", "^")}


def draw_scan(axes: Axes, ratios: Tensor, losses: Mapping[str, Tensor], end: float) -> None:
    """Losses of a step over tau / t, each as a share of its value at the ratio nearest to 1, with its minimum.

    A hollow mark is the truncation loss at the ratio that consistency asks for.

    Args:
        ratios: [P], rising.
        losses: [P] for ``truncation`` and ``consistency``.
        end: s / t of the step.
    """
    untuned = int((ratios - 1).abs().argmin())
    axes.axvline(1, color=BLACK, linewidth=1, label="start: τ = t, untuned")
    axes.axvline(end, color=GREY, linewidth=1, linestyle=":", label="τ = s, the end of the step")
    shares = {name: (values / values[untuned]).detach().cpu() for name, values in losses.items()}
    points = "." if len(ratios) < 20 else ""
    for name, share in shares.items():
        colour, line, marker = COLOURS[name]
        lowest = int(share.argmin())
        axes.plot(ratios, share, color=colour, linestyle=line, marker=points, label=f"{name} loss")
        (mark,) = axes.plot(ratios[lowest], share[lowest], marker, color=colour, label=f"{name}'s minimum")
        mark.set(markersize=9)
    asked = int(shares["consistency"].argmin())
    (hollow,) = axes.plot(ratios[asked], shares["truncation"][asked], "D", color=BLUE, markersize=8)
    hollow.set(markerfacecolor="white", label="truncation at consistency's τ")
    axes.plot(1, 1, "o", color=BLACK, markersize=7)
    axes.set(
        xlabel="ratio τ / t", ylabel="loss (1 = untuned)", ylim=(0, 2.5), xlim=(min(ratios[0], end - 0.02), ratios[-1])
    )


def draw_losses(axes: Axes, t: float, length: float = 0.16, toy: str = "ring of eight") -> None:
    """:func:`step_losses` of a step from t that is ``length`` long, or ends a little above t = 0."""
    s = max(t - length, 2 * LOWEST)
    losses = step_losses(toy, t, s)
    draw_scan(axes, losses.taus / t, {name: getattr(losses, name) for name in COLOURS}, s / t)
    axes.set(xlim=(0.4, 1.2), title=f"t = {t:.2f} to {s:.2f}")


@style()
def hook_figure(t: float = 0.36, s: float = 0.1, count: int = 48) -> Figure:
    """One step on the ring with tau = t and with the best tau: where its samples land, and the loss over tau.

    Of ``count`` samples those are drawn whose three ends lie in the window, and none at its frame.
    """
    losses, (schedule, ring) = step_losses("ring of eight", t, s), (linear_betas(), TOYS["ring of eight"])
    lowest = int(losses.truncation.argmin())
    times = torch.tensor([t, s], dtype=torch.float64)
    x = _states(ring, times[0], count)
    true = exact_flow(ring, x, times[0], times[1], schedule)
    ends = [
        drive(ddim(x, times, schedule, None), MixturePredictor(ring, schedule), [tau]).x
        for tau in (t, losses.taus[lowest].item())
    ]
    low, high = torch.tensor([[-1.4, -1.2], [0.1, 0.3]], dtype=torch.float64)
    three = torch.stack([true, *ends])
    inside = ((three > low + 0.04) & (three < high - 0.04)).all(2).all(0)
    true, ends = true[inside], [end[inside] for end in ends]
    figure = Figure(figsize=(9.4, 4.2))
    plane, valley = figure.subplots(1, 2)
    for end, colour, width in zip(ends, ("#BBBBBB", BLUE), (4, 1.2), strict=True):
        plane.plot(*torch.stack([true, end], 1).permute(2, 1, 0).numpy(), color=colour, linewidth=width)
    for end, colour, marker, name in (
        (true, BLACK, "o", "true end of the step"),
        (ends[0], GREY, "X", "untuned, τ = t"),
        (ends[1], BLUE, "D", f"tuned, τ = {losses.taus[lowest] / t:.2f} t"),
    ):
        plane.plot(*end.T, linestyle="none", color=colour, marker=marker, markersize=5, label=name)
    plane.set(aspect="equal", xlim=(low[0].item(), high[0].item()), ylim=(low[1].item(), high[1].item()))
    plane.set(xlabel="first coordinate of x", ylabel="second coordinate of x")
    plane.set_title(f"one step, from t = {t:g} to {s:g}")
    share, ratios = losses.truncation / losses.truncation[losses.untuned], losses.taus / t
    valley.plot(ratios, share, color=BLUE)
    valley.plot(1, 1, "X", color=GREY, markersize=10)
    valley.plot(ratios[lowest], share[lowest], "D", color=BLUE, markersize=9)
    arrow = {"arrowstyle": "-|>", "color": BLACK, "linewidth": 1.8}
    valley.annotate("", (ratios[lowest].item() + 0.02, 1.2), (1, 1.2), arrowprops=arrow)
    valley.annotate("way of the tuner", ((1 + ratios[lowest].item()) / 2, 1.25), ha="center")
    valley.set(xlim=(0.5, 1.1), ylim=(0, 1.6), xlabel="ratio τ / t", ylabel="mean squared error (1 = untuned)")
    valley.set_title("the knob of this step")
    legend_below(figure, *plane.get_legend_handles_labels())
    return figure


@style()
def descent_figure(ways: Mapping[str, Sequence[float]], minima: Mapping[str, float]) -> Figure:
    """The ratios of Adam's iterations for each loss, and level lines at the minima of a scan."""
    figure = Figure(figsize=(7, 3.2))
    axes = figure.subplots()
    for name, ratios in ways.items():
        colour, line, _ = COLOURS[name]
        axes.plot(ratios, color=colour, linestyle=line, label=f"{name}: Adam")
        axes.axhline(minima[name], color=colour, linewidth=0.8, label=f"{name}: minimum of the scan")
    axes.plot(0, 1, "o", color=BLACK, markersize=7, label="start: τ = t", clip_on=False)
    axes.set(xlabel="iteration of Adam", ylabel="ratio τ / t", xlim=(0, None))
    legend_below(figure, *axes.get_legend_handles_labels())
    return figure


@style()
def short_steps_figure(found: pd.DataFrame) -> Figure:
    """The best ratio by each loss (a column each) over the length of the step, logarithmic and falling to the right."""
    figure = Figure(figsize=(7, 3.6))
    axes = figure.subplots()
    for name, (colour, line, marker) in COLOURS.items():
        axes.plot(found.index, found[name], color=colour, marker=marker, linestyle=line, label=f"{name} loss")
    axes.axhline(1, color=BLACK, linewidth=1, label="untuned")
    axes.set(xlabel="length h = t − s of the step", ylabel="best ratio τ / t")
    log_axis(axes, "x", found.index)
    axes.set_xticks(found.index, [f"{length:g}" for length in found.index])
    axes.invert_xaxis()
    legend_below(figure, *axes.get_legend_handles_labels())
    return figure


def run_errors(steps: Sequence[int], samples: int = SAMPLES) -> pd.DataFrame:
    """How far DDIM ends from the true end on the ring (RMS over coordinates), untuned and tuned by each loss.

    Args:
        steps: numbers of even steps from t = 0.9 to 0.1, a row for each.
        samples: that each timing is tuned on, by search, and as many others that it is measured on.
    """
    x, schedule = _start(samples), linear_betas()
    true, rows = exact_flow(TOYS["ring of eight"], x, 0.9, 0.1, schedule), []
    for count in steps:
        sampler, taus = _tuned_on_ring(count, samples)
        solve = partial(sampler.solver, x, sampler.grid.tensor(), schedule, None)
        rows.append({name: _rms(drive(solve(), sampler.predictor, own).x - true) for name, own in taus.items()})
    return pd.DataFrame(rows, index=pd.Index(steps, name="steps"))


def error_parts(count: int, samples: int = SAMPLES) -> pd.DataFrame:
    """What makes up the error of a run of :func:`run_errors`: a row for each choice of steps tuned by consistency.

    The difference from the true end is a sum. One part is the last step's own, begun on the exact path; the rest comes
    from the steps before it. The columns hold the RMS of both, the cosine of the angle between them over all samples
    and coordinates, and the RMS of their sum.

    Args:
        count: number of steps.
        samples: as in :func:`run_errors`.
    """
    (sampler, taus), x, schedule = _tuned_on_ring(count, samples), _start(samples), linear_betas()
    ring, times, before = TOYS["ring of eight"], sampler.grid.tensor(), f"first {count - 1}"
    plain, tuned = taus["untuned"], taus["consistency"]
    chosen = {
        "untuned": plain,
        f"{before} tuned": (*tuned[:-1], plain[-1]),
        "last tuned": (*plain[:-1], tuned[-1]),
        "all tuned": tuned,
    }
    middle, true = exact_trajectory(ring, x, times[[0, -2, -1]], schedule)[1:]
    rows = {}
    for name, own in chosen.items():
        end = drive(sampler.solver(x, times, schedule, None), sampler.predictor, own).x
        alone = drive(sampler.solver(middle, times[-2:], schedule, None), sampler.predictor, own[-1:]).x
        first, last = end - alone, alone - true
        cosine = ((first * last).sum() / (first.norm() * last.norm())).item()
        rows[name] = {before: _rms(first), "last": _rms(last), "cosine": cosine, "run": _rms(end - true)}
    return pd.DataFrame(rows).T


@style()
def runs_figure(errors: pd.DataFrame) -> Figure:
    """Errors at the end of whole runs: a column for each timing, indexed by the number of steps."""
    figure = Figure(figsize=(7, 3.8))
    axes = figure.subplots()
    guide = 0.8 * errors["untuned"].iloc[0] * errors.index[0] / errors.index.to_numpy()
    axes.plot(errors.index, guide, color=GREY, linestyle=":", label="in proportion to 1 / steps")
    for name, (colour, line, marker) in {"untuned": (BLACK, "-", "o"), **COLOURS}.items():
        axes.plot(errors.index, errors[name], color=colour, linestyle=line, marker=marker, label=name)
    axes.set(xlabel="DDIM steps", ylabel="distance from the true end (RMS)")
    count_axis(axes, errors.index)
    log_axis(axes, "y", errors.to_numpy().ravel())
    legend_below(figure, *axes.get_legend_handles_labels())
    return figure


@style()
def left_figure(left: Mapping[str, Mapping[str, float]]) -> Figure:
    """What several losses leave of a step's error, as shares of untuned: bars from 1, a group for each toy."""
    figure = Figure(figsize=(7, 3.4))
    axes = figure.subplots()
    shares = pd.DataFrame(left).T
    (shares - 1).plot.bar(ax=axes, bottom=1, rot=0, color=[VERMILLION, BLUE], legend=False)
    axes.axhline(1, color=BLACK, linewidth=1.2, label="untuned")
    log_axis(axes, "y", [*shares.to_numpy().ravel(), 1])
    axes.set(ylabel="error that is left (1 = untuned)")
    legend_below(figure, *axes.get_legend_handles_labels())
    return figure


def _start(count: int) -> Tensor:
    """States at the start of the whole runs on the ring: [count, 2]."""
    return _states(TOYS["ring of eight"], torch.tensor(0.9, dtype=torch.float64), count)


def _rms(error: Tensor) -> float:
    """Root mean square over samples and coordinates."""
    return error.square().mean().sqrt().item()


@cache
def _tuned_on_ring(count: int, samples: int) -> tuple[Sampler, dict[str, tuple[float, ...]]]:
    """DDIM in even steps from t = 0.9 to 0.1, and its conditioning times: untuned, and found by each loss."""
    ring, schedule = TOYS["ring of eight"], linear_betas()
    grid = Grid("even", tuple(torch.linspace(0.9, 0.1, count + 1, dtype=torch.float64).tolist()))
    sampler = Sampler(MixturePredictor(ring, schedule), schedule, make_solver("ddim"), grid, (ring.dim,))
    taus = {"untuned": grid.times[:-1]}
    for name in COLOURS:
        config = TuneConfig(name, "parallel", "search", bounds=(0.3, 1.5), freeze_last=0)
        taus[name] = tune(sampler, ring.sample(samples, torch.Generator().manual_seed(1)), config).timing.taus
    return sampler, taus


def _states(mixture: GaussianMixture, t: Tensor, count: int) -> Tensor:
    """Noised samples of a toy at time t: [count, D]."""
    generator, schedule = torch.Generator().manual_seed(0), linear_betas()
    noise = torch.randn(count, mixture.dim, generator=generator, dtype=torch.float64)
    return schedule.alpha(t) * mixture.sample(count, generator) + schedule.sigma(t) * noise
