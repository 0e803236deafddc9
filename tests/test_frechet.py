"""The Fréchet distance against closed forms and scipy, the coverage of its intervals, and its bias."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch

from tt_lib.errors import BadValue, NotFinite
from tt_lib.metrics import frechet
from tt_lib.metrics.frechet import (
    frechet_distance,
    jackknife_interval,
    leading_bias,
    square_root,
)
from tt_lib.metrics.statistics import FeatureStatistics, merge_all

pytestmark = pytest.mark.usefixtures("one_thread")


def statistics(x: torch.Tensor, name: str = "made") -> FeatureStatistics:
    return FeatureStatistics(x.shape[1], name, "abc").update(x)


def planted(mean, covariance) -> FeatureStatistics:
    """Statistics with exactly this mean and covariance."""
    mean = torch.as_tensor(mean, dtype=torch.float64)
    exact = FeatureStatistics(len(mean), "made", "abc")
    exact.n, exact.mean, exact.scatter = 11, mean, 10 * torch.as_tensor(covariance, dtype=torch.float64)
    return exact


def normal(generator: torch.Generator, n: int, dimension: int) -> torch.Tensor:
    return torch.randn(n, dimension, generator=generator, dtype=torch.float64)


def test_closed_form_for_independent_features():
    """|mu_a - mu_b|^2 + sum of (s_a - s_b)^2."""
    a = planted([0.0, 1.0, 2.0], np.diag([1.0, 4.0, 9.0]))
    b = planted([1.0, 1.0, 0.0], np.diag([4.0, 4.0, 1.0]))
    assert frechet_distance(a, b) == pytest.approx(1 + 4 + 1 + 0 + 4, rel=1e-12)


def test_against_scipys_root():
    generator = torch.Generator().manual_seed(0)
    a = statistics(normal(generator, 200, 12) @ normal(generator, 12, 12))
    b = statistics(normal(generator, 200, 12) @ normal(generator, 12, 12) + 0.3)
    sa, sb = a.covariance.numpy(), b.covariance.numpy()
    root = scipy.linalg.sqrtm(sa @ sb).real
    expected = ((a.mean - b.mean).numpy() ** 2).sum() + np.trace(sa + sb - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


def test_equal_statistics_are_at_no_distance():
    x = normal(torch.Generator().manual_seed(0), 50, 8)
    assert 0 <= frechet_distance(statistics(x), statistics(x)) < 1e-12


def test_fewer_samples_than_dimensions():
    """Singular covariances: the distance is still that of the formula, and no NaN."""
    generator = torch.Generator().manual_seed(0)
    a, b = statistics(normal(generator, 6, 20)), statistics(normal(generator, 300, 20))
    whitened = np.linalg.eigvals(a.covariance.numpy() @ b.covariance.numpy()).real.clip(0)
    expected = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace()
    assert frechet_distance(a, b) == pytest.approx(float(expected) - 2 * np.sqrt(whitened).sum(), rel=1e-5)


def test_what_cannot_be_compared():
    x = normal(torch.Generator().manual_seed(0), 20, 4)
    sets = [statistics(part[:, :3]) for part in x.tensor_split(5)]
    for other, message in (
        (statistics(x[:, :3], "others"), r"'made' \(3 .* and 'others' \(3 "),
        (statistics(x), r"'made' \(3 .* and 'made' \(4 "),
        (FeatureStatistics(3, "made", "xyz").update(x[:, :3]), "weights abc.* weights xyz"),
        (statistics(x[:1, :3]), "at least 2 samples"),
    ):
        with pytest.raises(BadValue, match=message):
            frechet_distance(sets[0], other)
        with pytest.raises(BadValue, match=message):
            jackknife_interval(sets, other)


# The interval


def test_interval_covers_what_other_samples_give():
    generator = torch.Generator().manual_seed(1)
    reference = statistics(normal(generator, 20_000, 4))
    intervals, small = [], []
    for _ in range(150):
        parts = [statistics(part) for part in (normal(generator, 400, 4) * 1.2 + 0.3).tensor_split(10)]
        intervals.append(jackknife_interval(parts, reference))
        small.append(np.mean([frechet_distance(part, reference) for part in parts]))
    value, low, high = np.array(intervals).T
    expected = value.mean()  # over 150 samples: what one sample gives on average
    covered = ((low <= expected) & (expected <= high)).mean()
    # 95 % of 150 runs, give or take three standard errors.
    assert 0.89 <= covered <= 0.995
    # The mean of the small sets' own distances lies above, by more than the interval is wide to that side.
    assert (small > value).all() and np.mean(small) - expected > 0.1 * expected
    # And the interval is not simply wide: it is what t times the true spread would be, within 20 %.
    assert np.mean(high - value) == pytest.approx(2.262 * value.std(), rel=0.2)


def test_interval_by_hand():
    """The jackknife's definition, on five sets."""
    generator = torch.Generator().manual_seed(0)
    reference = statistics(normal(generator, 100, 2))
    x = (normal(generator, 100, 2) * 1.5).reshape(5, 20, 2)
    value, low, high = jackknife_interval([statistics(part) for part in x], reference)
    assert value == pytest.approx(frechet_distance(statistics(x.reshape(100, 2)), reference), rel=1e-9)
    others = [np.delete(x.numpy(), i, axis=0).reshape(-1, 2) for i in range(5)]
    without = [frechet_distance(statistics(torch.from_numpy(other)), reference) for other in others]
    margin = 2.7764 * np.sqrt(0.8 * np.square(without - np.mean(without)).sum())
    assert [high - value, value - low] == pytest.approx([margin, margin], rel=1e-4)


def test_interval_is_cut_at_zero():
    parts = [statistics(x) for x in normal(torch.Generator().manual_seed(0), 60, 2).reshape(5, 12, 2)]
    value, low, high = jackknife_interval(parts, merge_all(parts))
    assert value < 1e-12 and low == 0 <= high


def test_impossible_intervals():
    x = normal(torch.Generator().manual_seed(0), 100, 2)
    reference = statistics(x)
    with pytest.raises(BadValue, match="at least 5 disjoint sets, got 4"):
        jackknife_interval([statistics(part) for part in x.tensor_split(4)], reference)
    with pytest.raises(BadValue, match=r"equal size .*\[60, 10, 10, 10, 10\]"):
        jackknife_interval([statistics(part) for part in x.tensor_split([60, 70, 80, 90])], reference)


# How far too large


@pytest.mark.parametrize("dimension", [1, 5, 40])
def test_leading_bias_of_the_standard_gaussian(dimension):
    expected = dimension + dimension * (dimension + 1) / 4
    assert leading_bias(torch.eye(dimension, dtype=torch.float64), 1) == pytest.approx(expected, rel=1e-12)


def test_the_bias_scales_with_the_covariance_and_ignores_what_never_varies():
    covariance = torch.diag(torch.tensor([4.0, 1.0, 0.0, 0.0], dtype=torch.float64))
    assert leading_bias(3 * covariance, 10) == pytest.approx(3 * leading_bias(covariance, 10))
    assert leading_bias(covariance, 10) == pytest.approx(leading_bias(covariance[:2, :2], 10))


def test_samples_have_the_leading_bias():
    values = torch.tensor([4.0, 2.0, 1.0, 0.5, 0.1], dtype=torch.float64)
    exact = FeatureStatistics(5, "toy")
    exact.n, exact.scatter = 2, torch.diag(values)
    n, generator = 400, torch.Generator().manual_seed(0)
    draws = [torch.randn(n, 5, generator=generator, dtype=torch.float64) * values.sqrt() for _ in range(400)]
    mean = sum(frechet_distance(FeatureStatistics(5, "toy").update(one), exact) for one in draws) / len(draws)
    # The standard error of the mean of 400 is about 3 %.
    assert mean == pytest.approx(leading_bias(exact.covariance, n), rel=0.1)


def test_a_bias_that_is_not_defined():
    with pytest.raises(BadValue, match=r"got \[2, 3\] and 5"):
        leading_bias(torch.zeros(2, 3), 5)
    with pytest.raises(BadValue, match="and 0"):
        leading_bias(torch.eye(2), 0)


# What is no distance


def damaged(what: str) -> FeatureStatistics:
    """Statistics that a NaN, an infinity or a lost sign went into after they were gathered."""
    bad = planted([0.0, 1.0, 2.0], np.diag([1.0, 4.0, 9.0]))
    if what == "sign":
        bad.scatter = -bad.scatter
    elif what == "huge":
        bad.mean = bad.mean * 1e200
    else:
        tensor = bad.mean if what.endswith("mean") else bad.scatter
        tensor.view(-1)[1] = float(what.split()[0])
    return bad


@pytest.mark.parametrize("what", ["nan mean", "nan scatter", "inf mean", "inf scatter", "sign", "huge"])
def test_nan_is_no_perfect_score(what):
    """max(0.0, nan) is 0.0: each of these was a distance of 0 or infinity, with the interval [0, 0]."""
    generator = torch.Generator().manual_seed(0)
    good = [statistics(normal(generator, 20, 3)) for _ in range(5)]
    bad, reference = damaged(what), statistics(normal(generator, 50, 3))
    bad.n = 20
    broken = [*good[:4], bad]
    for measure in (
        lambda: frechet_distance(bad, reference),
        lambda: frechet_distance(reference, bad),
        lambda: jackknife_interval(good, bad),
        lambda: jackknife_interval(broken, reference),
    ):
        with pytest.raises(NotFinite):
            measure()


def test_only_rounding_is_forgiven_below_0(monkeypatch):
    """A root that is too large, as of a matrix with eigenvalues lost, gives a distance clearly below 0."""
    a = planted([0.0, 0.0], np.eye(2))
    for scale, expected in ((1 + 1e-7, 0.0), (1 + 1e-5, None)):
        with monkeypatch.context() as patch:
            patch.setattr(frechet, "square_root", lambda covariance, scale=scale: square_root(covariance) * scale)
            if expected is None:
                with pytest.raises(NotFinite, match="comes out as -"):
                    frechet_distance(a, a)
            else:
                assert frechet_distance(a, a) == expected


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_bias_of_no_covariance(value):
    with pytest.raises(NotFinite, match="a covariance holds NaN or infinity"):
        leading_bias(torch.full((2, 2), value), 10)
