"""The explorer of direction errors, at its extremes."""

import pytest

from tt_lib.errors import BadValue
from tt_lib.lessons.direction import direction_explorer, toy_directions


def test_errors_fall_with_steps_and_with_order():
    ends = {
        (solver, steps): toy_directions(solver, steps)["accumulated"].iloc[-1]
        for solver in ("ddim", "dpmpp-2m")
        for steps in (5, 20)
    }
    assert ends["ddim", 20] < ends["ddim", 5] / 2 and ends["dpmpp-2m", 20] < ends["ddim", 20]
    with pytest.raises(BadValue, match="at least 1, got 0"):
        toy_directions("ddim", 0)


def test_the_slider_redraws():
    steps, picture = direction_explorer().children
    seen = {bytes(picture.value)}
    for value in (steps.min, steps.max):
        steps.value = value
        seen.add(bytes(picture.value))
    assert len(seen) == 3
