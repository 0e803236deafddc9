"""How far too large a Fréchet distance of few samples is: the leading term of its bias."""

from __future__ import annotations

import torch
from torch import Tensor

from tt_lib.errors import BadValue


def leading_bias(covariance: Tensor, n: float) -> float:
    """The mean distance of ``n`` samples of a Gaussian from that Gaussian itself, to leading order in 1/n.

    The mean of n samples is off by ``tr(S) / n``. Their covariance is off by a matrix E, which costs ``sum_ij E_ij^2 / (2 (l_i +
    l_j))`` in the basis of eigenvectors of S (second order of the root), and ``E_ij^2`` is ``l_i l_j / n`` on average, twice that on the
    diagonal. So the bias is ``c / n``. The next orders matter where n is not much larger than the dimension. Features that are not
    Gaussian have another spread of E; on those that ship the formula is right within
    about a quarter.

    Args:
        covariance: S, float64 [D, D], symmetric.
        n: samples, above 0. For a sample of n and a reference of m, both estimated, take n m / (n + m).

    Returns:
        The bias in the features' units squared.

    Raises:
        BadValue: no square matrix, or n not above 0.
    """
    if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1] or not n > 0:
        raise BadValue(
            f"a bias needs a covariance [D, D] and a number of samples above 0, got {list(covariance.shape)} and {n}"
        )
    values = torch.linalg.eigvalsh(covariance.double()).clamp(min=0)
    # Pairs of which both eigenvalues are 0 have nothing to be wrong about.
    pairs = values[:, None] * values / (values[:, None] + values).clamp(min=torch.finfo(torch.float64).tiny)
    # The diagonal counts twice; l l / (l + l) is l / 2.
    return float(values.sum() + pairs.sum() / 2 + values.sum() / 4) / n
