"""The explorer of diffusers' schedulers: which time each call of the network is nominally for, and which it is told."""

from __future__ import annotations

import functools
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Generator

from tt_lib.errors import choose
from tt_lib.interop import Adapted, from_scheduler
from tt_lib.plots import BLACK, GREY, VERMILLION, style
from tt_lib.timing import Timing
from tt_lib.toy import MixturePredictor, ring_2d
from tt_lib.tuning import TuneConfig, tune
from tt_lib.widgets import explorer

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "DDIM": ("DDIMScheduler", {"clip_sample": False}),
    "DDIM, trailing": ("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}),
    "DPM-Solver++": ("DPMSolverMultistepScheduler", {}),
    "UniPC": ("UniPCMultistepScheduler", {}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "PLMS": ("PNDMScheduler", {"skip_prk_steps": True}),
}
"""Schedulers of diffusers that the explorer offers: the class and what is set otherwise than by default."""
LINEAR = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
"""The noise levels that the networks here know; not every scheduler of diffusers has them by default."""
SAMPLES, SUBSTEPS = 32, 8


def make_scheduler(name: str) -> Any:
    """A scheduler of diffusers by its name in :data:`SCHEDULERS`.

    Raises:
        BadValue: there is none.
    """
    import diffusers

    choose("scheduler", name, SCHEDULERS)
    kind, options = SCHEDULERS[name]
    return getattr(diffusers, kind)(**LINEAR, **options)


@functools.lru_cache
def toy_timing(name: str, steps: int) -> Timing:
    """The times of a scheduler with ``steps`` steps, tuned by truncation on a ring of eight Gaussians.

    Raises:
        BadValue: no such scheduler, or it cannot make so many steps.
    """
    adapted: Adapted = from_scheduler(make_scheduler(name), steps)
    mixture = ring_2d()
    points = mixture.sample(SAMPLES, generator=Generator().manual_seed(1)).float()
    config = TuneConfig(objective="truncation", optimiser="search", substeps=SUBSTEPS)
    predictor = MixturePredictor(mixture, adapted.schedule)
    return tune(predictor, adapted.schedule, adapted.solver, adapted.grid, points, config, model="ring").timing


def calls_figure(timing: Timing) -> Figure:
    """Nominal time t and conditioning time tau of each call of the network, and their ratio."""
    calls = range(1, timing.nfe + 1)
    with style():
        figure = Figure(figsize=(8, 3.6))
        left, right = figure.subplots(1, 2)
        left.plot(
            calls,
            timing.times,
            color=BLACK,
            marker="o",
            markersize=9,
            fillstyle="none",
            linestyle="",
            label="nominal t",
        )
        left.plot(calls, timing.taus, color=VERMILLION, marker="x", linestyle="", label="told: τ")
        left.set(xlabel="call of the network", ylabel="time (1 = noise, 0 = data)", ylim=(-0.03, 1.05))
        right.axhline(1, color=GREY, linewidth=1)
        right.plot(calls, timing.ratios, color=VERMILLION, marker="x", linestyle=(0, (5, 1.5)))
        right.set(xlabel="call of the network", ylabel="ratio τ/t (1 = untuned)")
        for axes in (left, right):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def calls_explorer() -> Any:
    """A choice of schedulers, a slider for the number of steps, and :func:`calls_figure` of their :func:`toy_timing`."""
    import ipywidgets

    scheduler = ipywidgets.Dropdown(options=list(SCHEDULERS), value="Heun", description="scheduler")
    steps = ipywidgets.IntSlider(value=5, min=2, max=10, description="steps", continuous_update=False)
    return explorer([scheduler, steps], lambda name, count: calls_figure(toy_timing(name, count)), width=720)
