"""Guidance: predictors made of predictors, so that a tuned timing works under each of them.

A guided evaluation counts as one evaluation, whatever the number of networks it calls: each gets the same (x, t, tau).
"""

from __future__ import annotations

from torch import Tensor

from tt_lib.predictors import Predictor


class ClassifierFree:
    """Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598, eq. 6).

    ``eps = eps_u + scale (eps_c - eps_u)``: scale 0 is unconditional, **scale 1 is the conditional network as it is**,
    and more than 1 exaggerates the condition. (The paper's w is ``scale - 1``.)

    Args:
        conditional, unconditional: predictors of the direction; that of the velocity mixes alike.
        scale: any number.
    """

    def __init__(self, conditional: Predictor, unconditional: Predictor, scale: float) -> None:
        self.conditional, self.unconditional, self.scale = conditional, unconditional, scale

    def __call__(self, x: Tensor, t: Tensor, tau: Tensor) -> Tensor:
        plain = self.unconditional(x, t, tau)
        return plain + self.scale * (self.conditional(x, t, tau) - plain)
