"""What a joint tuning is judged by: one number for the samples of a whole run, the lower the better."""

from __future__ import annotations

import hashlib
from typing import Any, Protocol

import torch
from torch import Tensor

from tt_lib.engine import drive
from tt_lib.errors import BadValue
from tt_lib.evaluating import fingerprint, sample_statistics
from tt_lib.grids import make_grid
from tt_lib.metrics.features import Features
from tt_lib.metrics.frechet import frechet_distance
from tt_lib.metrics.statistics import FeatureStatistics
from tt_lib.noise import StartNoise
from tt_lib.sampling import Sampler, batches
from tt_lib.solvers import make_solver

FINE_STEPS = 20


class Judge(Protocol):
    """Judges a sampler by the samples that it makes of some seeds.

    Attributes:
        facts: for the timing's provenance.
    """

    facts: dict[str, Any]

    def __call__(self, trial: Sampler, seeds: range) -> float: ...

    def identity(self, sampler: Sampler, seeds: range) -> list[Any]:
        """What the losses depend on, beside the taus."""
        ...


class FrechetJudge:
    """``FD(features of the samples, features of the training images)``.

    Args:
        features, reference: what the distance is taken in and from.
        batch: samples at a time.
        start: keeps the noise.
    """

    def __init__(self, features: Features, reference: FeatureStatistics, batch: int, start: StartNoise) -> None:
        self.features, self.reference, self.batch, self.start = features, reference, batch, start
        self.facts = {"features": features.name}

    def __call__(self, trial: Sampler, seeds: range) -> float:
        found, _ = sample_statistics(trial, self.features, seeds, batch=self.batch, start=self.start)
        return frechet_distance(found, self.reference)

    def identity(self, sampler: Sampler, seeds: range) -> list[Any]:
        digest = hashlib.sha256(self.reference.mean.cpu().numpy().tobytes()).hexdigest()
        return [fingerprint(sampler, self.features, seeds), digest]


class EndJudge:
    """``E |x - x*|^2``, mean over pixels, where x* is the end of a fine run from the same noise.

    The truncation error of the whole run: what the objectives of single steps hope to lower by lowering each step's.

    Args:
        batch: samples at a time.
        start: keeps the noise.
        steps: of the fine run.
    """

    def __init__(self, batch: int, start: StartNoise, steps: int = FINE_STEPS) -> None:
        self.batch, self.start, self.steps = batch, start, steps
        self.facts = {"fine_steps": steps}
        self.ends: dict[range, Tensor] = {}

    def __call__(self, trial: Sampler, seeds: range) -> float:
        if trial.solver.stochastic:
            raise BadValue(
                f"cannot tune {trial.solver.name} by the end of a fine run: it draws noise and follows no trajectory; "
                "choose --objective consistency, or frechet"
            )
        total = 0.0
        for part in batches(seeds.start, len(seeds), self.batch):
            start = self.start(part)
            if part not in self.ends:
                self.ends[part] = fine_end(trial, start, self.steps)
            total += float((trial(part, start=start).x - self.ends[part]).square().flatten(1).mean(1).sum())
        return total / len(seeds)

    def identity(self, sampler: Sampler, seeds: range) -> list[Any]:
        parts = [sampler.model, sampler.weights, sampler.schedule.name, sampler.solver.name, sampler.solver.options]
        return [*parts, sampler.grid.times, self.steps, seeds.start, len(seeds)]


@torch.no_grad()
def fine_end(sampler: Sampler, start: Tensor, steps: int = FINE_STEPS) -> Tensor:
    """The end [B, ...] of a fine run from ``start`` [B, ...] at the time where the sampler starts, untuned."""
    grid = make_grid("karras", steps, sampler.schedule, start=sampler.grid.times[0])
    return drive(make_solver("dpmpp-2m")(start, grid, sampler.schedule), sampler.predictor).x
