"""The Fréchet distance between Gaussians fitted to features, how uncertain it is, and how far too large.

``|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a^1/2 S_b S_a^1/2)^1/2)`` (Dowson & Landau 1982, J. Multivariate
Analysis 12, 450-455; Heusel et al. 2017, arXiv 1706.08500). It is called FID only where the features are
those of Inception-2015.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tt_lib.errors import BadValue, NotFinite
from tt_lib.metrics.statistics import FeatureStatistics, merge_all, require_same_features
from tt_lib.metrics.world import ALONE, World

FEWEST_SETS = 5
ROUNDING = 1e-6
"""How far below 0 rounding brings a distance, as a share of the sum of both traces. What is lower is no distance."""


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """The (squared) Fréchet distance of two sets of features, in the features' units squared; 0 if equal.

    In float64 through two symmetric eigen-decompositions. (In float32 it comes out 0.7-2.4 % low.)

    Raises:
        BadValue: statistics of different features, of images of different shapes, or of fewer than two samples.
        NotFinite: statistics with NaN, infinity or a variance below 0, or with which the distance comes out so.
    """
    require_same_features(a.check(), b.check())
    return _distance(a, b, square_root(b.covariance))


def square_root(covariance: Tensor) -> Tensor:
    """The symmetric root of a covariance, float64 [D, D]; eigenvalues below 0 (rounding) count as 0."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def _distance(a: FeatureStatistics, b: FeatureStatistics, root_b: Tensor) -> float:
    """The distance, given ``S_b^1/2``, which serves many ``a``."""
    covariance = a.covariance.to(root_b.device)
    shift = a.mean.to(root_b.device) - b.mean.to(root_b.device)
    product = root_b @ covariance @ root_b
    if not bool(product.isfinite().all()):
        raise _no_distance(a, b, math.nan)
    # The eigenvalues of S_b^1/2 S_a S_b^1/2 are those of S_a S_b.
    cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    traces = covariance.trace() + b.covariance.to(root_b.device).trace()
    distance = (shift.square().sum() + traces - 2 * cross).item()
    # max(0, NaN) is 0: a perfect score.
    if not math.isfinite(distance) or distance < -ROUNDING * traces.item():
        raise _no_distance(a, b, distance)
    return max(0.0, distance)


def _no_distance(a: FeatureStatistics, b: FeatureStatistics, value: float) -> NotFinite:
    return NotFinite(
        f"the distance of {a.n} samples from {b.n} in the features {a.features!r} comes out as {value}: their "
        "statistics are damaged, or too large for float64; make them again"
    )


def jackknife_interval(
    sets: Sequence[FeatureStatistics], reference: FeatureStatistics, world: World = ALONE
) -> tuple[float, float, float]:
    """The distance of a whole sample from the reference, with a 95 % confidence interval: (value, low, high).

    The sample comes in m >= 5 disjoint sets of equal size, for example 50,000 images as 10 sets of 5,000.

    Why not just take the distance of each set and look at their spread? Because a distance from few samples
    is too large: noise in the estimated covariance adds to it, in proportion to 1/n. Ten sets of 5,000 give
    ten numbers that all lie above the distance of the 50,000, so their mean is the wrong centre and the
    interval around it can miss the reported value altogether. The delete-one jackknife (Quenouille, Tukey;
    Efron & Stein 1981) leaves out one set at a time instead: m distances from (m - 1)/m of the sample, all
    with nearly the bias of the whole, and all with the same, so that it drops out of their spread. That
    spread, times (m - 1)/sqrt(m) as they overlap, is the standard error of the distance of the whole.

    The interval is ``value +- t * error``, t being Student's with m - 1 degrees of freedom, and is cut at 0.
    It covers what the same number of samples from other seeds would give on average; it does not remove
    the bias that this number of samples has, which published values share, and takes the reference as given.
    In simulations with Gaussians it covers 95-96 %; at the floor, where sample and reference are of one
    distribution, the distance is no longer linear in the samples and the interval is too wide (98 %).

    Args:
        sets: statistics of disjoint sets of one sample.
        reference: what the distance is taken from.
        world: processes that all hold the same sets and share the work; each gets the result.

    Raises:
        BadValue: fewer than 5 sets, unequal sets, or different features.
    """
    from scipy.stats import t as student

    if len(sets) < FEWEST_SETS:
        raise BadValue(f"an interval needs at least {FEWEST_SETS} disjoint sets, got {len(sets)}; split it further")
    sizes = [one.n for one in sets]
    if max(sizes) > 1.05 * min(sizes):
        # The bias depends on n: with unequal sets it would not drop out of the spread.
        raise BadValue(f"the sets must be of equal size (within 5 %), got {sizes}")
    reference.check()
    for one in sets:
        require_same_features(one.check(), reference)
    root, count = square_root(reference.covariance), len(sets)
    # Nothing is left out of the last.
    subsets = [[one for j, one in enumerate(sets) if j != i] for i in range(count + 1)]
    parts = world.gather([_distance(merge_all(subset), reference, root) for subset in world.share(subsets)])
    # Process r had every size-th subset from the r-th on.
    *left_out, value = (parts[i % len(parts)][i // len(parts)] for i in range(count + 1))
    mean = sum(left_out) / count
    error = math.sqrt((count - 1) / count * sum((one - mean) ** 2 for one in left_out))
    margin = float(student.ppf(0.975, count - 1)) * error
    if not (math.isfinite(value) and math.isfinite(margin)):
        raise NotFinite(
            f"a distance is {value} ± {margin}: the statistics are out of range; look at the samples they are of"
        )
    return value, max(0.0, value - margin), value + margin


def leading_bias(covariance: Tensor, n: float) -> float:
    """How far too large a Fréchet distance of few samples is, in the features' units squared.

    It is the mean distance of ``n`` samples of a Gaussian from that Gaussian itself, to leading order in 1/n. The mean
    of n samples is off by ``tr(S) / n``. Their covariance is off by a matrix E, which costs
    ``sum_ij E_ij^2 / (2 (l_i + l_j))`` in the basis of eigenvectors of S (second order of the root), and ``E_ij^2`` is
    ``l_i l_j / n`` on average, twice that on the diagonal. So the bias is ``c / n``. The next orders matter where n is
    not much larger than the dimension. Features that are not Gaussian have another spread of E; on those that ship the
    formula is right within about a quarter.

    Args:
        covariance: S, float64 [D, D], symmetric.
        n: samples, above 0. For a sample of n and a reference of m, both estimated, take n m / (n + m).

    Raises:
        BadValue: no square matrix, or n not above 0.
        NotFinite: a matrix with NaN or infinity.
    """
    if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1] or not n > 0:
        raise BadValue(
            f"a bias needs a covariance [D, D] and a number of samples above 0, got {list(covariance.shape)} and {n}"
        )
    if not bool(covariance.isfinite().all()):
        raise NotFinite("a covariance holds NaN or infinity; make the statistics again")
    values = torch.linalg.eigvalsh(covariance.double()).clamp(min=0)
    # Pairs of which both eigenvalues are 0 have nothing to be wrong about.
    pairs = values[:, None] * values / (values[:, None] + values).clamp(min=torch.finfo(torch.float64).tiny)
    # The diagonal counts twice; l l / (l + l) is l / 2.
    return float(values.sum() + pairs.sum() / 2 + values.sum() / 4) / n
