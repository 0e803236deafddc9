"""Guidance: predictors made of predictors, so that a tuned timing works under each of them.

A guided evaluation counts as one evaluation, whatever the number of networks it calls: each gets the same (x, t, tau).
"""

from __future__ import annotations

import torch
from torch import Tensor

from tt_lib.errors import BadValue
from tt_lib.predictors import Predictor, to_direction, to_x0
from tt_lib.schedules import Schedule


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


class Clipped:
    """Keeps the clean image that eps stands for in ``[-1, 1]``, and derives eps from the clipped image again.

    (Ho et al. 2020 clip x0. Going on with the old eps after that, as diffusers' DDIM does by default, mixes two
    directions that contradict each other.)

    Args:
        predictor: of the direction.
        schedule: gives alpha and sigma at t.
        percentile: None clips at 1. Otherwise dynamic thresholding (Saharia et al. 2022, arXiv 2205.11487, section
            2.3): each image is clipped at this quantile of its own ``|x0|`` if that is above 1, and divided by it.
    """

    def __init__(self, predictor: Predictor, schedule: Schedule, percentile: float | None = None) -> None:
        if percentile is not None and not 0 < percentile <= 1:
            raise BadValue(f"percentile must lie in (0, 1], got {percentile}; Imagen takes 0.995")
        self.predictor, self.schedule, self.percentile = predictor, schedule, percentile

    def __call__(self, x: Tensor, t: Tensor, tau: Tensor) -> Tensor:
        x0 = to_x0(self.predictor(x, t, tau), x, t, self.schedule)
        if self.percentile is None:
            x0 = x0.clamp(-1, 1)
        else:
            bound = torch.quantile(x0.detach().abs().flatten(1), self.percentile, dim=1).clamp(min=1)
            bound = bound.reshape(-1, *[1] * (x.ndim - 1))
            x0 = x0.clamp(-bound, bound) / bound
        return to_direction("x0", x0, x, t, self.schedule)
