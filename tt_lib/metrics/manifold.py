"""Precision and recall of samples: how many look real, and how much of what is real they reach.

Kynkäänniemi et al. 2019 (arXiv 1904.06991): the manifold of a set of features is the union of balls, one around each vector, that
reach to its k-th nearest neighbour in the set. Precision is the share of samples within the manifold of the real images, recall the
share of real images within that of the samples. A Fréchet distance mixes the two; here a sampler that gives few, but good images
(or all kinds, but poor ones) is told apart.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tt_lib.errors import BadValue
from tt_lib.metrics.kernel import check_pair

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
        raise BadValue(f"the {k}-th neighbour needs more than {k} vectors on both sides, got {len(samples)} and {len(reference)}")
    return _share_inside(samples, reference, k), _share_inside(reference, samples, k)


def _share_inside(points: Tensor, centres: Tensor, k: int) -> float:
    """The share of ``points`` that lie in the ball of any of the ``centres``."""
    radii = torch.cat([
        # A vector's nearest is itself, so its k-th neighbour is the (k + 1)-th smallest distance.
        torch.cdist(part.double(), centres.double()).kthvalue(k + 1, dim=1).values
        for part in centres.split(ROWS)
    ])  # fmt: skip
    inside = sum(
        int((torch.cdist(part.double(), centres.double()) <= radii).any(1).sum()) for part in points.split(ROWS)
    )
    return inside / len(points)
