"""The leading bias of a Fréchet distance, against its closed form and against samples."""

import pytest
import torch

from tt_lib.errors import BadValue
from tt_lib.metrics.frechet import frechet_distance, leading_bias
from tt_lib.metrics.statistics import FeatureStatistics


@pytest.mark.parametrize("dimension", [1, 5, 40])
def test_closed_form_of_the_standard_gaussian(dimension):
    expected = dimension + dimension * (dimension + 1) / 4
    assert leading_bias(torch.eye(dimension, dtype=torch.float64), 1) == pytest.approx(expected, rel=1e-12)


def test_it_scales_with_the_covariance_and_ignores_what_never_varies():
    covariance = torch.diag(torch.tensor([4.0, 1.0, 0.0, 0.0], dtype=torch.float64))
    assert leading_bias(3 * covariance, 10) == pytest.approx(3 * leading_bias(covariance, 10))
    assert leading_bias(covariance, 10) == pytest.approx(leading_bias(covariance[:2, :2], 10))


def test_samples_agree():
    values = torch.tensor([4.0, 2.0, 1.0, 0.5, 0.1], dtype=torch.float64)
    exact = FeatureStatistics(5, "toy")
    exact.n, exact.scatter = 2, torch.diag(values)
    n, generator = 400, torch.Generator().manual_seed(0)
    draws = [torch.randn(n, 5, generator=generator, dtype=torch.float64) * values.sqrt() for _ in range(400)]
    mean = sum(frechet_distance(FeatureStatistics(5, "toy").update(one), exact) for one in draws) / len(draws)
    # The standard error of the mean of 400 is about 3 %.
    assert mean == pytest.approx(leading_bias(exact.covariance, n), rel=0.1)


def test_errors():
    with pytest.raises(BadValue, match=r"got \[2, 3\] and 5"):
        leading_bias(torch.zeros(2, 3), 5)
    with pytest.raises(BadValue, match="and 0"):
        leading_bias(torch.eye(2), 0)
