"""Notebook 01: the integral view, drawn on a mixture of two Gaussians in one dimension.

Its eps and its trajectories are known exactly (:mod:`tt_lib.toy`). In (rho, y) a DDIM step is a straight line.
"""

from __future__ import annotations

from typing import Any

import ipywidgets
import torch
from matplotlib.figure import Figure
from torch import Tensor

from tt_lib.engine import drive
from tt_lib.errors import BadValue
from tt_lib.figures.style import BLACK, BLUE, GREEN, VERMILLION, style
from tt_lib.grids import Grid
from tt_lib.lessons.kit import explorer
from tt_lib.schedules import linear_betas
from tt_lib.solvers.registry import make_solver
from tt_lib.toy import MixturePredictor, exact_trajectory, two_modes_1d

BEGIN, END = 0.5, 0.02
"""Times that the figures begin and end at: rho from about 3.4 to 0.07."""
STARTS = (-1.6, -0.5, 0.1, 0.4, 1.5)
POINTS = 201


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
    if steps < 1:
        raise BadValue(f"steps must be at least 1, got {steps}")
    schedule, mixture = linear_betas(), two_modes_1d()
    fine = torch.linspace(BEGIN, END, POINTS, dtype=torch.float64)
    start = torch.tensor(STARTS, dtype=torch.float64)[:, None]
    exact = exact_trajectory(mixture, start, fine, schedule)[..., 0] / schedule.alpha(fine)[:, None]
    stops = torch.linspace(BEGIN, END, steps + 1, dtype=torch.float64)
    solution = make_solver("ddim")(start, Grid("even", tuple(stops.tolist())), schedule)
    run = drive(solution, MixturePredictor(mixture, schedule), keep=True)
    states = torch.stack([*(request.x for request in run.trajectory), run.x])[..., 0]
    return schedule.rho(fine), exact, schedule.rho(stops), states / schedule.alpha(stops)[:, None]


@style()
def paths_figure(steps: int) -> Figure:
    """:func:`paths` drawn; sampling runs from right to left."""
    rho, exact, stops, coarse = paths(steps)
    figure = Figure(figsize=(7, 4.2))
    axes = figure.subplots()
    true, *_ = axes.plot(rho, exact, color=BLACK)
    ddim, *_ = axes.plot(stops, coarse, color=VERMILLION, linestyle="--", marker="o")
    axes.set(xlabel="rho = sigma / alpha (noise on the right, data on the left)", ylabel="y = x / alpha")
    axes.legend([true, ddim], ["true trajectory", f"DDIM, {steps} steps"])
    return figure


@style()
def integrand_figure(t: float, s: float, start: float) -> Figure:
    """eps over one step, with the value that DDIM takes and the mean that would be right."""
    rho, eps = integrand(t, s, start)
    left, mean = eps[0].item(), mean_of(rho, eps)
    figure = Figure(figsize=(7, 3.8))
    axes = figure.subplots()
    axes.plot(rho, eps, color=BLACK, label="eps along the true trajectory")
    axes.axhline(left, color=VERMILLION, linestyle="--", label="at the beginning: what DDIM takes")
    axes.axhline(mean, color=BLUE, linestyle=(0, (9, 1.5)), label="mean over the step: what would be right")
    axes.fill_between(rho, mean, left, color=GREEN, alpha=0.2, linewidth=0, label="error of the step")
    axes.set(xlabel=f"rho (from {rho[0]:.2f} at t = {t:g} down to {rho[-1]:.2f} at s = {s:g})", ylabel="eps")
    axes.legend(loc="best")
    return figure


def integral_explorer() -> Any:
    """A slider for the number of DDIM steps, and :func:`paths_figure`."""
    return explorer([ipywidgets.IntSlider(value=3, min=1, max=20, description="steps")], paths_figure)
