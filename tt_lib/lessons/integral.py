"""The integral view of sampling, drawn: trajectories in (rho, y), where a DDIM step is a straight line, and the integrand of one step.

All on a mixture of two Gaussians in one dimension, whose eps and trajectories are known exactly (:mod:`tt_lib.toy`).
"""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from tt_lib.engine import drive
from tt_lib.errors import BadValue
from tt_lib.figures.style import BLACK, BLUE, GREEN, VERMILLION, style
from tt_lib.grids import Grid
from tt_lib.lessons.start import explorer
from tt_lib.schedules import linear_betas
from tt_lib.solvers.registry import make_solver
from tt_lib.toy import MixturePredictor, exact_trajectory, two_modes_1d

BEGIN, END = 0.5, 0.02
"""Times that the figures begin and end at: rho from about 3.4 to 0.07."""
STARTS = (-1.6, -0.5, 0.1, 0.4, 1.5)


def integrand(t: float, s: float, start: float, points: int = 201) -> tuple[Tensor, Tensor]:
    """rho [points] and the exact eps [points] along the true trajectory from ``x_t = start``, from time t to time s.

    Raises:
        BadValue: the times do not fall.
    """
    if not 0 < s < t <= 1:
        raise BadValue(f"a step goes from a later time to an earlier one above 0, got t = {t} and s = {s}")
    schedule, mixture = linear_betas(), two_modes_1d()
    times = torch.linspace(t, s, points, dtype=torch.float64)
    x = exact_trajectory(mixture, torch.tensor([[start]], dtype=torch.float64), times, schedule)[:, 0]
    return schedule.rho(times), mixture.eps(x, times, schedule)[:, 0]


def mean_of(rho: Tensor, eps: Tensor) -> float:
    """The mean of eps over rho (trapezoidal rule): the right direction of the step."""
    return (torch.trapezoid(eps, rho) / (rho[-1] - rho[0])).item()


def paths(steps: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """True and DDIM's trajectories from :data:`STARTS`: rho [P], y [P, 5], and at DDIM's stops rho [steps + 1], y [steps + 1, 5]."""
    if steps < 1:
        raise BadValue(f"steps must be at least 1, got {steps}")
    schedule, mixture = linear_betas(), two_modes_1d()
    fine = torch.linspace(BEGIN, END, 201, dtype=torch.float64)
    start = torch.tensor(STARTS, dtype=torch.float64)[:, None]
    exact = exact_trajectory(mixture, start, fine, schedule)[..., 0] / schedule.alpha(fine)[:, None]
    stops = torch.linspace(BEGIN, END, steps + 1, dtype=torch.float64)
    run = drive(
        make_solver("ddim")(start, Grid("even", tuple(stops.tolist())), schedule),
        MixturePredictor(mixture, schedule),
        keep=True,
    )
    states = torch.stack([*(request.x for request in run.trajectory), run.x])[..., 0]
    return schedule.rho(fine), exact, schedule.rho(stops), states / schedule.alpha(stops)[:, None]


def paths_figure(steps: int) -> Figure:
    """:func:`paths` drawn; sampling runs from right to left."""
    rho, exact, stops, made = paths(steps)
    with style():
        figure = Figure(figsize=(7, 4.2))
        axes = figure.subplots()
        for k in range(exact.shape[1]):
            axes.plot(rho, exact[:, k], color=BLACK, linestyle="-", label="true trajectory" if k == 0 else None)
            axes.plot(
                stops,
                made[:, k],
                color=VERMILLION,
                linestyle="--",
                marker="o",
                label=f"DDIM, {steps} steps" if k == 0 else None,
            )
        axes.set(xlabel="rho = sigma / alpha (noise on the right, data on the left)", ylabel="y = x / alpha")
        axes.legend()
    return figure


def integrand_figure(t: float, s: float, start: float) -> Figure:
    """eps over one step, with the value that DDIM takes and the mean that would be right."""
    rho, eps = integrand(t, s, start)
    left, mean = eps[0].item(), mean_of(rho, eps)
    with style():
        figure = Figure(figsize=(7, 3.8))
        axes = figure.subplots()
        axes.plot(rho, eps, color=BLACK, linestyle="-", label="eps along the true trajectory")
        axes.axhline(left, color=VERMILLION, linestyle="--", label="at the beginning: what DDIM takes")
        axes.axhline(mean, color=BLUE, linestyle=(0, (9, 1.5)), label="mean over the step: what would be right")
        axes.fill_between(rho, mean, left, color=GREEN, alpha=0.2, linewidth=0, label="error of the step")
        axes.set(xlabel=f"rho (from {rho[0]:.2f} at t = {t:g} down to {rho[-1]:.2f} at s = {s:g})", ylabel="eps")
        axes.legend(loc="best")
    return figure


def integral_explorer() -> Any:
    """A slider for the number of DDIM steps, and :func:`paths_figure`."""
    import ipywidgets

    steps = ipywidgets.IntSlider(value=3, min=1, max=20, description="steps")
    return explorer([steps], paths_figure)
