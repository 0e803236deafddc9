"""Baselines that need no training: what tuned conditioning times have to beat.

**One ratio** tau / t for all steps, ``constant-0.95``, is a timing that nothing was tuned for. The two others are
no timings: they change the network's input or its answer while sampling, by a predictor around the predictor.
Both are meant against exposure bias: a sampler feeds the network states that it made itself, and these are not
distributed like those that it was trained on.

**Epsilon scaling** (Ning et al. 2024, "Elucidating the Exposure Bias in Diffusion Models", arXiv 2308.15321): the
predicted eps is divided by lambda(t), a little above 1, since along a run it comes out too large. The paper takes
lambda(t) = k t + b and recommends k = 0, the *uniform* schedule, which is what is here. b is found by trying: the
authors' code for CIFAR-10 has 1.017 for 100 steps of their network with the cosine schedule. Ours: the answers of all
evaluations are divided, those of multistep and multi-stage solvers, too.

**Time-shift sampler** (Li et al. 2024, "Alleviating Exposure Bias in Diffusion Models through Sampling with Shifted
Time Steps", arXiv 2305.15583): a state that was made for time t may fit another time s better. The variance over the
pixels of each sample is compared with sigma(s)^2 at all levels s in a window about t, and the nearest one is taken.
As in the paper: the window [t - w/2, t + w/2] in the network's levels; the unbiased variance of all pixels of a
sample; sigma^2 as what is expected, which leaves out the image's own share, alpha^2 var(x_0) (the
paper assumes a large t); no shift of the first evaluation, whose state is true noise, and none at or below the
cutoff. Our reading: s is only what the network is conditioned on, while the solver's coefficients stay those of t; in
the authors' code they move, too. The cutoff of 300 levels and a window of 80 are in the authors' command for CIFAR-10
in 5 DDIM steps with another network and schedule. The narrower window of 40 is our choice; neither was tuned here.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tt_lib.errors import BadValue
from tt_lib.files import spell
from tt_lib.predictors import Predictor
from tt_lib.schedules import Schedule

CONSTANT, EPSILON, SHIFT = "constant", "epsilon", "time-shift"
WINDOW, CUTOFF = 40, 300
"""Of the time-shift sampler: w, and where times stay as they are; levels of the network, of 1000 as a rule."""
NUMBER = r"(\d+(?:\.\d+)?)"


class Correction(Protocol):
    """Makes a corrected predictor of a plain one; equal corrections have equal names."""

    @property
    def name(self) -> str: ...

    def wrap(self, predictor: Predictor, schedule: Schedule, first: float) -> Predictor:
        """``predictor`` corrected, for runs that start at time ``first``; each call of it calls ``predictor`` once."""
        ...


@dataclass(frozen=True)
class EpsilonScaling:
    """``eps / scale``, see the module's text.

    Attributes:
        scale: lambda, greater than 0; 1 changes nothing.
    """

    scale: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise BadValue(
                f"eps is divided by a positive number a little above 1, got {self.scale}; write {EPSILON}-1.005"
            )

    @property
    def name(self) -> str:
        return f"{EPSILON}-{spell(self.scale)}"

    def wrap(self, predictor: Predictor, schedule: Schedule, first: float) -> Predictor:
        if schedule.direction != "eps":
            raise BadValue(
                f"{self.name} divides eps, and the direction on the schedule {schedule.name!r} is the velocity; leave "
                "it out"
            )
        return lambda x, t, tau: predictor(x, t, tau) / self.scale


@dataclass(frozen=True)
class TimeShift:
    """The time of each sample from its own variance, see the module's text."""

    @property
    def name(self) -> str:
        return SHIFT

    def shifted(self, x: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
        """The times [B] that fit the samples ``x`` [B, ...] at nominal ``t`` (scalar or [B]); float64, where x is."""
        half = WINDOW // 2
        # Offsets from the nearest to the farthest, so that of equally good times the one nearest to t wins.
        offsets = torch.tensor(sorted(range(-half, half + 1), key=abs), dtype=torch.float64, device=x.device)
        t = t.to(x.device).expand(len(x))
        times = (t[:, None] + offsets / schedule.levels).clamp(schedule.t_min, 1.0)
        variance = x.double().flatten(1).var(1, keepdim=True)
        best = times.gather(1, (variance - schedule.sigma(times).square()).abs().argmin(1, keepdim=True))[:, 0]
        return torch.where(t * schedule.levels > CUTOFF + 1e-6, best, t)

    def wrap(self, predictor: Predictor, schedule: Schedule, first: float) -> Predictor:
        def shifting(x: Tensor, t: Tensor, tau: Tensor) -> Tensor:
            # Before the first step there is nothing to correct: x_T is drawn, not predicted.
            at_start = t.to(x.device).expand(len(x)) >= first - 1e-12
            own = tau.to(x.device, torch.float64).expand(len(x))
            return predictor(x, t, torch.where(at_start, own, self.shifted(x, t, schedule)))

        return shifting


def read_correction(name: str) -> EpsilonScaling | TimeShift | None:
    """``epsilon-1.005`` or ``time-shift`` -> the correction; None for other names.

    Raises:
        BadValue: it begins like one and goes on otherwise.
    """
    if name.startswith(EPSILON):
        match = re.fullmatch(f"{EPSILON}-{NUMBER}", name)
        if not match:
            raise BadValue(f"unknown timing {name!r}; write what eps is divided by behind it, as in {EPSILON}-1.005")
        return EpsilonScaling(float(match[1]))
    if not name.startswith(SHIFT):
        return None
    if name != SHIFT:
        raise BadValue(f"unknown timing {name!r}; write {SHIFT}")
    return TimeShift()


def read_constant(name: str) -> float | None:
    """``constant-0.95`` -> 0.95; None for names of another form.

    Raises:
        BadValue: no positive ratio follows.
    """
    if not name.startswith(CONSTANT):
        return None
    match = re.fullmatch(f"{CONSTANT}-{NUMBER}", name)
    if not match or not float(match[1]) > 0:
        raise BadValue(f"unknown timing {name!r}; write the ratio tau / t behind it, as in {CONSTANT}-0.95")
    return float(match[1])
