"""The explorer of the bias, at its extremes."""

import pytest

from tt_lib.errors import BadValue
from tt_lib.lessons.frechet import TRUTH, bias_explorer, sample_bias


def test_few_samples_are_too_far_and_extrapolation_mends_it():
    found = sample_bias(5000, 32)
    assert found.sizes == (500, 1000, 2500, 5000)
    assert all(a > b for a, b in zip(found.distances, found.distances[1:], strict=False))
    excess = (found.distances[0] - TRUTH) * found.sizes[0]
    assert excess == pytest.approx(found.slope, rel=0.15)
    value, low, high = found.limit
    assert low < TRUTH < high and abs(value - TRUTH) < (found.distances[0] - TRUTH) / 3


def test_extrapolation_fails_with_fewer_samples_than_dimensions():
    found = sample_bias(100, 128)
    assert found.limit[1] > 2 * TRUTH


def test_errors():
    with pytest.raises(BadValue, match="20 samples or more, got 3 and 19"):
        sample_bias(19, 3)
    with pytest.raises(BadValue, match="got 0 and 100"):
        sample_bias(100, 0)


def test_the_sliders_redraw():
    size, dimension, picture = bias_explorer().children
    seen = {bytes(picture.value)}
    for slider in (size, dimension):
        for value in (slider.options[0], slider.options[-1]):
            slider.value = value
            seen.add(bytes(picture.value))
    assert len(seen) == 5
