"""The kernel distance: a squared maximum mean discrepancy between two sets of feature vectors.

``KID`` (Bińkowski et al. 2018, arXiv 1801.01401) where the features are those of Inception-2015. Unlike a Fréchet distance it fits
no Gaussian and is unbiased: its expectation does not depend on the number of samples, and it may come out below 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tt_lib.errors import BadValue


def kernel_distance(
    samples: Tensor, reference: Tensor, *, blocks: int = 50, size: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float, float]:
    """The kernel distance of samples from reference images, with a confidence interval: (value, low, high).

    The mean over ``blocks`` of the unbiased estimate with the kernel ``k(a, b) = (a.b / D + 1)^3``, each from ``size``
    vectors of either side drawn without replacement. The interval is Student's over the blocks. It says how well the blocks agree;
    blocks of a small set overlap, so it is honest where ``blocks * size`` is not much more than the set.

    Args:
        samples, reference: features [N, D] and [M, D].
        blocks: at least 2.
        size: vectors in a block, at least 2; cut to the smaller set.
        seed: of the draw.
        level: the confidence, in (0, 1).

    Raises:
        BadValue: other shapes, too few vectors, or a number out of range.
    """
    from scipy.stats import t as student

    check_pair(samples, reference)
    size = min(size, len(samples), len(reference))
    if blocks < 2 or size < 2 or not 0 < level < 1:
        raise BadValue(f"need 2 blocks of 2 vectors or more and a level in (0, 1), got {blocks}, {size} and {level}")
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(blocks):
        picks = (torch.randperm(len(side), generator=generator)[:size].to(side.device) for side in (samples, reference))
        a, b = (side[pick].double() for side, pick in zip((samples, reference), picks, strict=True))
        found.append(_unbiased(a, b))
    values = torch.tensor(found, dtype=torch.float64)
    margin = float(student.ppf((1 + level) / 2, blocks - 1)) * float(values.std()) / math.sqrt(blocks)
    value = float(values.mean())
    return value, value - margin, value + margin


def _unbiased(a: Tensor, b: Tensor) -> float:
    """Of two blocks [n, D]: means of the kernel within each, without a vector's product with itself, less twice that across."""
    n, dimension = a.shape

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / dimension + 1) ** 3

    within = sum(((k := kernel(x, x)).sum() - k.diagonal().sum()) / (n * (n - 1)) for x in (a, b))
    return float(within - 2 * kernel(a, b).mean())


def check_pair(samples: Tensor, reference: Tensor) -> None:
    """Raise :class:`BadValue` unless both are feature vectors of one kind, [N, D] and [M, D], all finite."""
    if samples.ndim != 2 or reference.ndim != 2 or samples.shape[1] != reference.shape[1]:
        raise BadValue(f"features must be [N, D] and [M, D], got {list(samples.shape)} and {list(reference.shape)}")
    if not (samples.isfinite().all() and reference.isfinite().all()):
        raise BadValue("features hold NaN or infinity; look at the images they were taken from")


# FOLDED tt_lib.metrics.kernel
# Precision and recall of samples: how many look real, and how much of what is real they reach.
#
# Kynkäänniemi et al. 2019 (arXiv 1904.06991): the manifold of a set of features is the union of balls, one around each vector, that
# reach to its k-th nearest neighbour in the set. Precision is the share of samples within the manifold of the real images, recall the
# share of real images within that of the samples. A Fréchet distance mixes the two; here a sampler that gives few, but good images
# (or all kinds, but poor ones) is told apart.
#


NEIGHBOURS = 3
ROWS = 1000
"""Distances are taken for so many vectors at a time."""


def precision_recall(samples: Tensor, reference: Tensor, k: int = NEIGHBOURS) -> tuple[float, float]:
    """(precision, recall), each a share in [0, 1].

    Both depend on the number of vectors: compare only values of equal N and equal M.

    Args:
        samples, reference: features [N, D] and [M, D].
        k: which neighbour a ball reaches to; 3 in the paper.

    Raises:
        BadValue: other shapes, or no k-th neighbour.
    """
    check_pair(samples, reference)
    if k < 1 or min(len(samples), len(reference)) <= k:
        raise BadValue(
            f"the {k}-th neighbour needs more than {k} vectors on both sides, got {len(samples)} and {len(reference)}"
        )
    return _share_inside(samples, reference, k), _share_inside(reference, samples, k)


def _share_inside(points: Tensor, centres: Tensor, k: int) -> float:
    """The share of ``points`` that lie in the ball of any of the ``centres``."""
    radii = torch.cat(
        [
            # A vector's nearest is itself, so its k-th neighbour is the (k + 1)-th smallest distance.
            torch.cdist(part.double(), centres.double()).kthvalue(k + 1, dim=1).values
            for part in centres.split(ROWS)
        ]
    )
    inside = sum(
        int((torch.cdist(part.double(), centres.double()) <= radii).any(1).sum()) for part in points.split(ROWS)
    )
    return inside / len(points)
