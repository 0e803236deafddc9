"""Metrics that need single feature vectors: the kernel distance, and precision and recall.

The kernel distance is a squared maximum mean discrepancy, ``KID`` (Bińkowski et al. 2018, arXiv 1801.01401) where the
features are those of Inception-2015. Unlike a Fréchet distance it fits no Gaussian and is unbiased: its expectation
does not depend on the number of samples, and it may come out below 0.

Precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991) say how many samples look real, and how much of what
is real they reach. The manifold of a set of features is the union of balls, one around each vector, that reach to its
k-th nearest neighbour in the set. Precision is the share of samples within the manifold of the real images, recall the
share of real images within that of the samples. A Fréchet distance mixes the two.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tt_lib.errors import BadValue

ROWS = 1000
"""Distances are taken for so many vectors at a time."""


def kernel_distance(
    samples: Tensor, reference: Tensor, *, blocks: int = 50, size: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """The kernel distance of samples from reference images, with a 95 % confidence interval: (value, low, high).

    The mean over ``blocks`` of the unbiased estimate with the kernel ``k(a, b) = (a.b / D + 1)^3``, each from ``size``
    vectors of either side drawn without replacement. The interval is Student's over the blocks. It says how well the
    blocks agree; blocks of a small set overlap, so it is honest where ``blocks * size`` is not much more than the set.

    Args:
        samples, reference: features [N, D] and [M, D].
        blocks: at least 2.
        size: vectors in a block, at least 2; cut to the smaller set.
        seed: of the draw.

    Raises:
        BadValue: other shapes, too few vectors, or a number out of range.
    """
    from scipy.stats import t as student

    _check_pair(samples, reference)
    size = min(size, len(samples), len(reference))
    if blocks < 2 or size < 2:
        raise BadValue(f"need 2 blocks of 2 vectors or more, got {blocks} of {size}")
    generator = torch.Generator().manual_seed(seed)

    def draw(vectors: Tensor) -> Tensor:
        return vectors[torch.randperm(len(vectors), generator=generator)[:size].to(vectors.device)].double()

    values = torch.tensor([_unbiased(draw(samples), draw(reference)) for _ in range(blocks)], dtype=torch.float64)
    value = float(values.mean())
    margin = float(student.ppf(0.975, blocks - 1)) * float(values.std()) / math.sqrt(blocks)
    return value, value - margin, value + margin


def _unbiased(a: Tensor, b: Tensor) -> float:
    """Of two blocks [n, D]: means of the kernel within each, a vector with itself left out, less twice that across."""
    n, dimension = a.shape

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / dimension + 1) ** 3

    within = sum(((k := kernel(x, x)).sum() - k.diagonal().sum()) / (n * (n - 1)) for x in (a, b))
    return float(within - 2 * kernel(a, b).mean())


def precision_recall(samples: Tensor, reference: Tensor, k: int = 3) -> tuple[float, float]:
    """(precision, recall), each a share in [0, 1].

    Both depend on the number of vectors: compare only values of equal N and equal M.

    Args:
        samples, reference: features [N, D] and [M, D].
        k: which neighbour a ball reaches to; 3 in the paper.

    Raises:
        BadValue: other shapes, or no k-th neighbour.
    """
    _check_pair(samples, reference)
    if k < 1 or min(len(samples), len(reference)) <= k:
        raise BadValue(
            f"the {k}-th neighbour needs more than {k} vectors on both sides, got {len(samples)} and {len(reference)}"
        )
    return _share_inside(samples, reference, k), _share_inside(reference, samples, k)


def _share_inside(points: Tensor, centres: Tensor, k: int) -> float:
    """The share of ``points`` that lie in the ball of any of the ``centres``."""

    def distances(some: Tensor) -> Tensor:
        return torch.cdist(some.double(), centres.double())

    # A vector's nearest is itself, so its k-th neighbour is the (k + 1)-th smallest distance.
    radii = torch.cat([distances(part).kthvalue(k + 1, dim=1).values for part in centres.split(ROWS)])
    return sum(int((distances(part) <= radii).any(1).sum()) for part in points.split(ROWS)) / len(points)


def _check_pair(samples: Tensor, reference: Tensor) -> None:
    """Raise :class:`BadValue` unless both are feature vectors of one kind, [N, D] and [M, D], all finite."""
    if samples.ndim != 2 or reference.ndim != 2 or samples.shape[1] != reference.shape[1] or not samples.shape[1]:
        raise BadValue(f"features must be [N, D] and [M, D], got {list(samples.shape)} and {list(reference.shape)}")
    if not (samples.isfinite().all() and reference.isfinite().all()):
        raise BadValue("features hold NaN or infinity; look at the images they were taken from")
