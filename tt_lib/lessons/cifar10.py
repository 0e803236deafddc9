"""The explorer of the timings that are shipped."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from tt_lib.errors import MissingFile
from tt_lib.files import data_folder
from tt_lib.timing import Timing, load_timing


def shipped_timings(model: str, solver: str | None = None, nfe: int | None = None) -> list[Timing]:
    """The timings in ``data/timings`` for a model, perhaps only those of one solver and one number of evaluations.

    Raises:
        MissingFile: there is none for this model.
    """
    folder = data_folder() / "timings" / model.replace("/", "--")
    found = [load_timing(path) for path in sorted(folder.glob("*.json"))]
    if not found:
        raise MissingFile(f"no timing of {model!r} in {folder}; tune one with `tt tune` or `tt table`")
    return [
        timing for timing in found if timing.solver == (solver or timing.solver) and timing.nfe == (nfe or timing.nfe)
    ]


def timings_figure(timings: list[Timing]) -> Figure:
    """The ratios tau / t of some timings over their times, a line each."""
    from tt_lib.figures.results import timing_plot

    return timing_plot({f"{each.name} ({each.grid})": (each.times, each.taus) for each in timings})


def timing_explorer(model: str) -> Any:
    """Choices of solver and NFE, and :func:`timings_figure` of what is shipped for them."""
    import ipywidgets

    from tt_lib.figures.style import png_bytes

    known = shipped_timings(model)
    solver = ipywidgets.Dropdown(options=sorted({each.solver for each in known}), description="solver")
    budget = ipywidgets.SelectionSlider(options=[1], description="NFE")
    picture = ipywidgets.Image(format="png", width=720)

    def offer(_change: Any = None) -> None:
        budget.options = sorted({each.nfe for each in known if each.solver == solver.value})
        draw()

    def draw(_change: Any = None) -> None:
        mine = [each for each in known if each.solver == solver.value and each.nfe == budget.value]
        picture.value = png_bytes(timings_figure(mine))

    solver.observe(offer, names="value")
    budget.observe(draw, names="value")
    offer()
    return ipywidgets.VBox([solver, budget, picture])
