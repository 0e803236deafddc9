"""The explorers of the notebooks, at their extremes."""

import itertools
import math

import pytest

from tt_lib.lessons import start as widgets


def test_untuned_error_falls_with_the_number_of_steps():
    errors = widgets.constant_ratio_errors(1.0)
    assert all(later < earlier for earlier, later in itertools.pairwise(errors)), errors


def test_some_constant_ratio_below_one_beats_untuned_at_few_steps():
    assert widgets.constant_ratio_errors(0.97, [5])[0] < widgets.constant_ratio_errors(1.0, [5])[0]


@pytest.mark.parametrize("ratio", [0.01, 0.85, 1.15, 5.0])
def test_extreme_ratios_give_finite_errors(ratio):
    assert all(math.isfinite(error) and error > 0 for error in widgets.constant_ratio_errors(ratio, [2, 20]))


def test_moving_the_slider_redraws_the_picture():
    explorer = widgets.ratio_explorer()
    slider, picture = explorer.children
    seen = {bytes(picture.value)}
    for value in (slider.min, 1.0, slider.max):
        slider.value = value
        assert bytes(picture.value).startswith(b"\x89PNG")
        seen.add(bytes(picture.value))
    assert len(seen) == 4
