"""Notebook 00: what one constant ratio tau / t does to DDIM on a toy whose exact end is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ipywidgets
import pandas as pd
import torch
from matplotlib.figure import Figure

from tt_lib.engine import drive
from tt_lib.figures.style import count_axis, log_axis, relplot
from tt_lib.grids import Grid
from tt_lib.lessons.kit import explorer
from tt_lib.schedules import linear_betas
from tt_lib.solvers.registry import make_solver
from tt_lib.toy import MixturePredictor, exact_flow, two_modes_1d

STEPS = (2, 3, 4, 5, 7, 10, 15, 20)
START, END = 0.9, 0.05
POINTS = 65


def constant_ratio_errors(ratio: float, steps: Sequence[int] = STEPS) -> list[float]:
    """How far DDIM with tau = ratio * t ends from the exact end, on a mixture of two Gaussians in one dimension.

    Args:
        ratio: tau / t, the same at every step (tau is kept in the network's range of times).
        steps: numbers of DDIM steps, evenly spaced in time from :data:`START` to :data:`END`.

    Returns:
        Root mean square distance over :data:`POINTS` states, spread evenly over the noise's quantiles from 1 % to 99 %;
        one number for each of ``steps``.
    """
    schedule, mixture = linear_betas(), two_modes_1d()
    predictor = MixturePredictor(mixture, schedule)
    x = torch.special.ndtri(torch.linspace(0.01, 0.99, POINTS, dtype=torch.float64))[:, None]
    exact = exact_flow(mixture, x, START, END, schedule, rtol=1e-8)
    errors = []
    for count in steps:
        grid = Grid("even", tuple(torch.linspace(START, END, count + 1, dtype=torch.float64).tolist()))
        taus = [min(max(ratio * t, schedule.t_min), 1.0) for t in grid.times[:-1]]
        end = drive(make_solver("ddim")(x, grid, schedule), predictor, taus).x
        errors.append((end - exact).square().mean().sqrt().item())
    return errors


def ratio_figure(ratios: Sequence[float]) -> Figure:
    """:func:`constant_ratio_errors` against the number of steps, a line for each ratio."""
    errors = {f"tau / t = {ratio:g}": constant_ratio_errors(ratio) for ratio in ratios}
    frame = pd.DataFrame(errors, index=STEPS).melt(var_name="ratio", value_name="error", ignore_index=False)
    grid = relplot(frame.reset_index(names="steps"), "ratio", (7, 3.6), x="steps", y="error", kind="line")
    grid.set_axis_labels("DDIM steps", "RMS distance from the exact end")
    count_axis(grid.ax, STEPS)
    log_axis(grid.ax, "y", frame["error"])
    return grid.figure


def ratio_explorer() -> Any:
    """A slider for one constant ratio tau / t, and the figure that it gives beside that of tau = t."""
    ratio = ipywidgets.FloatSlider(value=0.97, min=0.85, max=1.15, step=0.01, description="tau / t")
    return explorer([ratio], lambda value: ratio_figure(sorted({1.0, value})))
