"""The explorer of diffusers' schedulers, at its extremes."""

import pytest

from tt_lib.errors import BadValue
from tt_lib.lessons.diffusers import SCHEDULERS, calls_explorer, calls_figure, make_scheduler, toy_timing

pytest.importorskip("diffusers")
pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_call_is_drawn_and_times_repeat_with_taus_of_their_own():
    timing = toy_timing("Heun", 5)
    left, right = calls_figure(timing).axes
    nominal, told = left.lines
    assert list(nominal.get_ydata()) == list(timing.times) and list(told.get_ydata()) == list(timing.taus)
    assert list(right.lines[1].get_ydata()) == list(timing.ratios) and timing.nfe == 9
    assert timing.times[1] == timing.times[2] and timing.taus[1] != timing.taus[2]
    with pytest.raises(BadValue, match="'Euler'"):
        make_scheduler("Euler")


def test_every_choice_redraws():
    scheduler, steps, picture = calls_explorer().children
    seen = {bytes(picture.value)}
    for name in SCHEDULERS:
        scheduler.value = name
        for value in (steps.min, steps.max):
            steps.value = value
            seen.add(bytes(picture.value))
    # With two steps only the first call is tuned, and there DPM-Solver++ and UniPC are the same method.
    assert len(seen) == 2 * len(SCHEDULERS)
