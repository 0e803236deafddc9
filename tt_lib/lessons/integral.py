"""Notebook 01: the integral view, drawn on a mixture of two Gaussians in one dimension.

Its eps and its trajectories are known exactly (:mod:`tt_lib.toy`). In (rho, y) a DDIM step is a straight line.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from tt_lib.engine import drive
from tt_lib.errors import BadValue, check_range
from tt_lib.figures.style import BLACK, BLUE, GREEN, GREY, ORANGE, SKY, VERMILLION, legend_below, style
from tt_lib.grids import Grid
from tt_lib.schedules import linear_betas
from tt_lib.solvers.registry import make_solver
from tt_lib.toy import MixturePredictor, exact_trajectory, two_modes_1d

BEGIN, END = 0.5, 0.02
"""Times that the figures begin and end at: rho from about 3.4 to 0.07."""
STARTS = (-1.6, -0.5, 0.1, 0.4, 1.5)
POINTS = 201
RHO, Y = "ρ = σ/α  (noise on the left, data on the right)", "y = x/α"
ALT = {
    "hook": "Two panels over rho, which falls from left to right. Left: eight paths run from the noise to ends "
    "around the two centres of the data, 1 and -1. One is black, and an arrow marks the tangent at its start. Right: "
    "the end of the step, enlarged. The black path bends down towards -1; the tangent goes straight on and ends near "
    "0, between the centres. An upright bar marks the gap between the two ends.",
    "paths": "Five true paths over rho, from the noise on the left to the data on the right, and four straight "
    "DDIM steps for each. Path and steps lie together on the left. Near the data, in the enlarged panel on the right, "
    "the paths bend towards 1 or -1, and the straight steps leave them. The areas between them are shaded.",
    "strip": "The same five paths with 1, 2, 4, 8 and 16 DDIM steps. The shaded area between steps and paths "
    "shrinks from panel to panel; with 16 steps it can hardly be seen.",
    "player": "Five true paths and DDIM steps that follow them; the slider sets the number of steps from 1 to "
    "16, and the shaded area between steps and paths shrinks as it grows.",
    "integrand": "eps along one long step over rho, from 0.30 at the beginning down to about -0.1 at the end. A level "
    "line at the value of the beginning is what DDIM takes. A level line at 0.21 is the mean. The area between the "
    "two lines is shaded: it is the truncation error in y.",
    "answers": "Two curves over time, from 0.5 on the left to 0.2 on the right. Both start at 0.30 and cross the right "
    "value, 0.21. Along the true path, where the state moves, eps falls to -0.12 and crosses at t = 0.35. At the state "
    "where the step begins, held fixed, the answer falls to -0.44 and crosses at tau = 0.40.",
    "one step": "Two histograms of 1000 ends. The true ends form two humps, at -1 and 1. All ends of one DDIM step "
    "fall into one narrow spike at 0.3, between the humps, many times as high as they are. There are hardly any data "
    "there.",
}
"""What the figures show, in words."""


def integrand(t: float, s: float, start: float) -> tuple[Tensor, Tensor]:
    """rho [P] and the exact eps [P] along the true trajectory from ``x_t = start``, from time t to time s.

    Raises:
        BadValue: the times do not fall.
    """
    if not 0 < s < t <= 1:
        raise BadValue(f"a step goes from a later time to an earlier one above 0, got t = {t} and s = {s}")
    schedule, mixture = linear_betas(), two_modes_1d()
    times = torch.linspace(t, s, POINTS, dtype=torch.float64)
    x = exact_trajectory(mixture, torch.tensor([[start]], dtype=torch.float64), times, schedule)[:, 0]
    return schedule.rho(times), mixture.eps(x, times, schedule)[:, 0]


def mean_of(rho: Tensor, eps: Tensor) -> float:
    """The mean of eps over rho (trapezoidal rule): the right direction of the step."""
    return (torch.trapezoid(eps, rho) / (rho[-1] - rho[0])).item()


def paths(steps: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """True and DDIM's trajectories from :data:`STARTS`.

    Returns:
        rho [P] and y [P, 5] of the true ones; at DDIM's stops rho [steps + 1] and y [steps + 1, 5].

    Raises:
        BadValue: no step.
    """
    check_range("steps", steps, 1)
    schedule, mixture = linear_betas(), two_modes_1d()
    start = torch.tensor(STARTS, dtype=torch.float64)[:, None]
    rho, exact = _true_paths()
    stops = torch.linspace(BEGIN, END, steps + 1, dtype=torch.float64)
    solution = make_solver("ddim")(start, Grid("even", tuple(stops.tolist())), schedule)
    run = drive(solution, MixturePredictor(mixture, schedule), keep=True)
    states = torch.stack([*(request.x for request in run.trajectory), run.x])[..., 0]
    return rho, exact, schedule.rho(stops), states / schedule.alpha(stops)[:, None]


@cache
def _true_paths() -> tuple[Tensor, Tensor]:
    schedule, fine = linear_betas(), torch.linspace(BEGIN, END, POINTS, dtype=torch.float64)
    start = torch.tensor(STARTS, dtype=torch.float64)[:, None]
    y = exact_trajectory(two_modes_1d(), start, fine, schedule)[..., 0] / schedule.alpha(fine)[:, None]
    return schedule.rho(fine), y


@style()
def hook_figure() -> Figure:
    """One trajectory among others, and the tangent that DDIM follows instead."""
    schedule, mixture = linear_betas(), two_modes_1d()
    times = torch.linspace(BEGIN, END, POINTS, dtype=torch.float64)
    starts = torch.tensor([-0.5, -1.6, -1.0, -0.25, 0.05, 0.4, 0.8, 1.3], dtype=torch.float64)[:, None]
    y = exact_trajectory(mixture, starts, times, schedule)[..., 0] / schedule.alpha(times)[:, None]
    rho = schedule.rho(times)
    slope = mixture.eps(starts[:1], times[0], schedule)[0, 0]
    tangent = y[0, 0] + slope * (rho - rho[0])
    figure = Figure(figsize=(9, 3.8))
    for axes in figure.subplots(1, 2, width_ratios=(1.5, 1)):
        axes.plot(rho, y[:, 1:], color=GREY, linewidth=0.8, alpha=0.7)
        error = [tangent[-1], y[-1, 0]]
        axes.plot([rho[-1]] * 2, error, color=ORANGE, linewidth=5, solid_capstyle="butt", label="error of the step")
        axes.plot(rho, y[:, 0], color=BLACK, label="true path")
        axes.plot(rho, tangent, color=VERMILLION, linestyle="--", label="one DDIM step: its tangent")
        axes.plot(rho[0], y[0, 0], "o", color=BLACK, markersize=9, label="start of the step")
        axes.plot(rho[-1], tangent[-1], "X", color=VERMILLION, markersize=9, label="end of the step")
        axes.plot(rho[-1], y[-1, 0], "D", color=BLACK, markersize=8, label="end of the path")
        axes.set(xlabel="ρ = σ/α", xlim=(3.6, 0))
    figure.axes[0].set(ylabel=Y, ylim=(-6, 6), title="from noise (left) to data (right)")
    arrow = {"arrowstyle": "-|>", "color": VERMILLION, "linewidth": 2.5}
    head = (rho[0] - 1).item(), (y[0, 0] - slope).item()
    figure.axes[0].annotate("", head, (rho[0].item(), y[0, 0].item()), arrowprops=arrow)
    figure.axes[1].set(xlim=(1.4, 0), ylim=(-1.6, 1.6), title="the end of the step, enlarged")
    legend_below(figure, *figure.axes[0].get_legend_handles_labels())
    return figure


def draw_paths(axes: Axes, steps: int) -> None:
    """:func:`paths`, with the area between curves and steps."""
    rho, exact, stops, coarse = (values.numpy() for values in paths(steps))
    for k in range(len(STARTS)):
        # np.interp wants rising abscissae, and rho falls.
        followed = np.interp(rho, stops[::-1], coarse[::-1, k])
        axes.fill_between(
            rho,
            exact[:, k],
            followed,
            color=SKY,
            alpha=0.35,
            linewidth=0,
            label="" if k else "gap between steps and path",
        )
    (true, *_), (ddim, *_) = (
        axes.plot(rho, exact, color=BLACK, linewidth=1.4),
        axes.plot(stops, coarse, color=VERMILLION, linestyle="--", marker="o", markersize=4, linewidth=1.4),
    )
    true.set_label("true path")
    ddim.set_label("DDIM")
    axes.set(xlabel=RHO, ylabel=Y, xlim=(1.6, 0), ylim=(-2.4, 2.4), title=f"{steps} step{'s' * (steps > 1)}")


@style()
def paths_figure(steps: int) -> Figure:
    """:func:`draw_paths`, whole and enlarged near the data."""
    figure = Figure(figsize=(9, 3.8))
    whole, near = figure.subplots(1, 2)
    for axes in (whole, near):
        draw_paths(axes, steps)
    whole.set(xlim=(3.5, 0), ylim=(-5.8, 5.8))
    near.set(ylabel="", title="enlarged near the data")
    legend_below(figure, *whole.get_legend_handles_labels())
    return figure


@style()
def integrand_figure(t: float, s: float, start: float) -> Figure:
    """eps over one step, with the value that DDIM takes and the mean that would be right."""
    rho, eps = integrand(t, s, start)
    left, mean = eps[0].item(), mean_of(rho, eps)
    figure = Figure(figsize=(7, 3.8))
    axes = figure.subplots()
    axes.fill_between(rho, mean, left, color=ORANGE, alpha=0.3, linewidth=0, label="area: truncation error, in y")
    axes.plot(rho, eps, color=BLACK, label="ε along the true path")
    axes.axhline(left, color=VERMILLION, linestyle="--", label="value at the beginning: DDIM's direction")
    axes.axhline(mean, color=BLUE, linestyle=(0, (9, 1.5)), label="mean over the step: the right direction")
    axes.plot(rho[0], left, "o", color=BLACK, markersize=9)
    axes.set(xlabel=f"ρ  (the step runs from t = {t:g} on the left to s = {s:g} on the right)", ylabel="direction ε")
    axes.set_xlim(1.03 * rho[0].item(), 0.8 * rho[-1].item())
    legend_below(figure, *axes.get_legend_handles_labels())
    return figure


@style()
def answers_figure(t: float, s: float, start: float) -> Figure:
    """What the network answers at one state, over the time that it is conditioned on, and eps along the true path."""
    schedule, mixture = linear_betas(), two_modes_1d()
    rho, along = integrand(t, s, start)
    right, taus = mean_of(rho, along), torch.linspace(t, s, POINTS, dtype=torch.float64)
    state = torch.tensor([[start]], dtype=torch.float64)
    answers = torch.stack([mixture.eps(state, tau, schedule)[0, 0] for tau in taus])
    best = int((answers - right).abs().argmin())
    figure = Figure(figsize=(7, 3.8))
    axes = figure.subplots()
    axes.plot(taus, along, color=BLACK, label="along the true path: the state moves with the time")
    axes.plot(taus, answers, color=GREEN, linestyle="--", label="at the state where the step begins, conditioned on τ")
    axes.axhline(right, color=BLUE, linestyle=(0, (9, 1.5)), label="the right direction")
    axes.plot(t, answers[0], "o", color=VERMILLION, markersize=9, label=f"τ = t = {t:g}: DDIM")
    axes.plot(taus[best], answers[best], "D", color=BLUE, markersize=9, label=f"τ = {taus[best]:.2f}: right")
    axes.set(xlabel="time on the path, or τ", ylabel="direction ε", xlim=(1.02 * t, s))
    legend_below(figure, *axes.get_legend_handles_labels())
    return figure


@style()
def one_step_figure(true: Tensor, ends: Tensor) -> Figure:
    """Histograms of true ends [N, 1] and of those of one single step."""
    figure = Figure(figsize=(7, 3.4))
    axes = figure.subplots()
    for values, colour, name in ((true, BLACK, "true ends"), (ends, VERMILLION, "one DDIM step")):
        axes.hist(values[:, 0].numpy(), bins=np.linspace(-2, 2, 81).tolist(), color=colour, alpha=0.75, label=name)
    axes.set(xlabel="x", ylabel="samples in each bin")
    legend_below(figure, *axes.get_legend_handles_labels())
    return figure


@style()
def ends_figure(runs: Mapping[str, tuple[Tensor, Tensor]]) -> Figure:
    """Ends of a few steps against true ends, [N, 1] each: a panel for each set of data; right is the diagonal."""
    figure = Figure(figsize=(3.6 * len(runs), 3.6))
    for axes, (name, (true, ends)) in zip(figure.subplots(1, len(runs), squeeze=False)[0], runs.items(), strict=True):
        axes.plot(true, true, color=BLACK, linewidth=1)
        axes.plot(true, ends, ".", color=VERMILLION, markersize=4)
        axes.set(title=name, xlabel="true end", ylabel="end of the steps")
    return figure
