"""The explorer of shipped timings, over all that it offers."""

import pytest

from tt_lib.errors import MissingFile
from tt_lib.lessons.cifar10 import shipped_timings, timing_explorer

MODEL = "cifar10-ddpm-w64"


def test_timings_are_picked_by_solver_and_budget():
    everything = shipped_timings(MODEL)
    mine = shipped_timings(MODEL, "ddim", 5)
    assert mine and {(each.solver, each.nfe) for each in mine} == {("ddim", 5)} and len(mine) < len(everything)
    with pytest.raises(MissingFile, match="no timing of 'nobody'"):
        shipped_timings("nobody")


def test_every_choice_gives_a_picture():
    solver, budget, picture = timing_explorer(MODEL).children
    seen = {bytes(picture.value)}
    for name in (solver.options[0], solver.options[-1]):
        solver.value = name
        for nfe in (budget.options[0], budget.options[-1]):
            budget.value = nfe
            seen.add(bytes(picture.value))
    assert len(seen) >= 4 and all(each.startswith(b"\x89PNG") for each in seen)
