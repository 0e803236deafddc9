"""Notebook 05: the timings that are shipped for a network."""

from __future__ import annotations

from typing import Any

import ipywidgets
from matplotlib.figure import Figure

from tt_lib.errors import MissingFile
from tt_lib.figures.results import timing_plot
from tt_lib.files import data_folder, file_name
from tt_lib.lessons.kit import explorer
from tt_lib.timing import Timing, load_timing

PLAIN = ("consistency-parallel", "truncation-parallel")
"""The timings of the explorer: one for each objective, as they come without options."""


def shipped_timings(model: str, solver: str | None = None, nfe: int | None = None) -> list[Timing]:
    """The timings in ``data/timings`` for a model, perhaps only those of one solver and one number of evaluations.

    Raises:
        MissingFile: there is none for this model.
    """
    folder = data_folder() / "timings" / file_name(model)
    timings = [load_timing(path) for path in sorted(folder.glob("*.json"))]
    if not timings:
        raise MissingFile(f"no timing of {model!r} in {folder}; tune one with `tt tune` or `tt table`")
    return [each for each in timings if solver in (None, each.solver) and nfe in (None, each.nfe)]


def timings_figure(timings: list[Timing]) -> Figure:
    """The ratios tau / t of some timings over their times, a line each."""
    return timing_plot({f"{each.name} ({each.grid})": each for each in timings})


def timing_explorer(model: str) -> Any:
    """Choices of grid, solver and NFE among the :data:`PLAIN` timings that are shipped, and :func:`timings_figure`."""
    timings = [each for each in shipped_timings(model) if each.name in PLAIN]
    samplers: dict[str, list[Timing]] = {}
    for each in sorted(timings, key=lambda timing: (timing.solver, timing.grid, timing.nfe)):
        samplers.setdefault(f"{each.solver}, {each.grid}, NFE {each.nfe}", []).append(each)
    choice = ipywidgets.Dropdown(options=list(samplers), value=next(iter(samplers)), description="sampler")
    return explorer([choice], lambda name: timings_figure(samplers[name]), width=720)
