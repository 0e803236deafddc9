"""Notebook 02: how direction errors fall with the number of steps, on a toy whose true flow is known."""

from __future__ import annotations

from typing import Any

import ipywidgets
import pandas as pd
import torch
from matplotlib.figure import Figure

from tt_lib.errors import BadValue
from tt_lib.figures.style import relplot
from tt_lib.grids import Grid
from tt_lib.lessons.kit import explorer
from tt_lib.metrics.direction import measure_directions
from tt_lib.schedules import linear_betas
from tt_lib.solvers.registry import make_solver
from tt_lib.toy import MixturePredictor, ring_2d

BEGIN, END = 0.9, 0.1
SAMPLES = 64


def toy_directions(solver: str, steps: int) -> pd.DataFrame:
    """Direction errors of each of ``steps`` even steps on a ring of eight Gaussians (:meth:`Directions.frame`).

    Raises:
        BadValue: no step.
    """
    if steps < 1:
        raise BadValue(f"steps must be at least 1, got {steps}")
    schedule = linear_betas()
    grid = Grid("even", tuple(torch.linspace(BEGIN, END, steps + 1, dtype=torch.float64).tolist()))
    start = torch.randn(SAMPLES, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    predictor = MixturePredictor(ring_2d(), schedule)
    return measure_directions(predictor, schedule, make_solver(solver), grid, start).frame()


def direction_figure(steps: int) -> Figure:
    """Relative direction error and accumulated error over the time at which each step begins, for two solvers."""
    frame = pd.concat([toy_directions(name, steps).assign(solver=name) for name in ("ddim", "dpmpp-2m")])
    labels = {"relative": "relative direction error", "accumulated": "accumulated truncation error"}
    long = frame.melt(["solver", "t"], list(labels), "measure")
    grid = relplot(long, "solver", (4, 3.4), x="t", y="value", col="measure", kind="line", facet_kws={"sharey": False})
    grid.set_titles("").set_axis_labels("time t at which the step begins")
    grid.set(xlim=(1.02 * BEGIN, 0), ylim=(0, None))
    for measure, axes in grid.axes_dict.items():
        axes.set_ylabel(labels[measure])
    return grid.figure


def direction_explorer() -> Any:
    """A slider for the number of steps, and :func:`direction_figure`."""
    steps = ipywidgets.IntSlider(value=5, min=2, max=20, description="steps", continuous_update=False)
    return explorer([steps], direction_figure, width=720)
