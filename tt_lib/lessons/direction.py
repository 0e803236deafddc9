"""The explorer of direction errors on a toy whose true flow is known: how they fall with the number of steps."""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure

from tt_lib.errors import BadValue
from tt_lib.figures.style import line_styles, style
from tt_lib.grids import Grid
from tt_lib.lessons.start import explorer
from tt_lib.metrics.direction import measure_directions
from tt_lib.schedules import linear_betas
from tt_lib.solvers.registry import make_solver
from tt_lib.toy import MixturePredictor, ring_2d

SOLVERS = ("ddim", "dpmpp-2m")
BEGIN, END = 0.9, 0.1
SAMPLES = 64


def toy_directions(solver: str, steps: int) -> pd.DataFrame:
    """The direction errors of each of ``steps`` even steps on a ring of eight Gaussians: rows as :meth:`Directions.frame` gives.

    Raises:
        BadValue: no step.
    """
    if steps < 1:
        raise BadValue(f"steps must be at least 1, got {steps}")
    schedule = linear_betas()
    times = torch.linspace(BEGIN, END, steps + 1, dtype=torch.float64)
    start = torch.randn(SAMPLES, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    predictor = MixturePredictor(ring_2d(), schedule)
    return measure_directions(
        predictor, schedule, make_solver(solver), Grid("even", tuple(times.tolist())), start
    ).frame()


def direction_figure(steps: int) -> Figure:
    """Relative direction error and accumulated error over the time at which each step begins, for both solvers."""
    frames = {solver: toy_directions(solver, steps) for solver in SOLVERS}
    measures = {"relative": "relative direction error", "accumulated": "accumulated truncation error"}
    with style():
        figure = Figure(figsize=(8, 3.8))
        for axes, (measure, label) in zip(figure.subplots(1, 2), measures.items(), strict=True):
            for (solver, look), marker in zip(line_styles(list(SOLVERS)).items(), "os", strict=True):
                look = look._replace(marker=marker)  # told apart without colours, too
                axes.plot(frames[solver]["t"], frames[solver][measure], label=solver, **look._asdict())
            axes.set(xlabel="time t at which the step begins", ylabel=label, xlim=(1.02 * BEGIN, 0), ylim=(0, None))
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def direction_explorer() -> Any:
    """A slider for the number of steps, and :func:`direction_figure`."""
    import ipywidgets

    steps = ipywidgets.IntSlider(value=5, min=2, max=20, description="steps", continuous_update=False)
    return explorer([steps], direction_figure, width=720)
