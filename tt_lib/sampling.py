"""Sampling images: a predictor, a solver, a grid and perhaps a timing, over as many seeds as wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tt_lib.corrections import Correction
from tt_lib.datasets import to_uint8
from tt_lib.engine import Run, drive
from tt_lib.errors import BadValue
from tt_lib.grids import Grid
from tt_lib.noise import SampleNoise, StartNoise, drawn_ahead
from tt_lib.predictors import Predictor
from tt_lib.schedules import Schedule
from tt_lib.solvers import Solver
from tt_lib.timing import Timing


@dataclass(frozen=True)
class Sampler:
    """A few-step sampler, ready to run.

    Attributes:
        predictor: ``(x, t, tau) -> eps``.
        schedule: its noise schedule.
        solver: the update rule.
        grid: the nominal times.
        shape: of one sample, without the batch.
        timing: the conditioning times; None is untuned (tau = t).
        model: the model's name, which a timing is checked against.
        device: where to run.
        weights: sha256 of the model's weights, if they come from a file.
        correction: what is done to the network's questions or answers while sampling; it takes the place of a timing.
    """

    predictor: Predictor
    schedule: Schedule
    solver: Solver
    grid: Grid
    shape: tuple[int, ...]
    timing: Timing | None = None
    model: str = ""
    device: torch.device | str = "cpu"
    weights: str = ""
    correction: Correction | None = None

    def __post_init__(self) -> None:
        if self.timing is not None and self.correction is not None:
            raise BadValue(
                f"a sampler has a timing or a correction, not both: got {self.timing.name} and {self.correction.name}; leave one out"
            )
        if self.timing is not None:
            self.timing.check(
                model=self.model, schedule=self.schedule.name, solver=self.solver, grid=self.grid, weights=self.weights
            )
        if self.grid.times[-1] == 0 and not self.solver.ends_at_zero:
            raise BadValue(f"solver {self.solver.name} cannot end at t = 0; make the grid with end > 0")

    def make_timing(self, name: str, taus: tuple[float, ...], times: tuple[float, ...], **more: Any) -> Timing:
        """A timing for just this sampler: ``taus`` at the nominal ``times`` of its evaluations; ``more`` as in Timing."""
        return Timing(
            name=name, taus=taus, times=times, model=self.model, schedule=self.schedule.name, solver=self.solver.name,
            options=self.solver.choices_made, grid=self.grid.name, grid_times=self.grid.times, weights=self.weights, **more,
        )  # fmt: skip

    def __call__(self, seeds: Sequence[int], *, start: Tensor | None = None, keep: bool = False, progress=None) -> Run:
        """Sample one image for each seed; ``run.x`` is float32 [B, *shape] in about [-1, 1].

        Args:
            seeds: one for each sample; a seed gives the same image in any batch.
            start: x_T [B, *shape], if it has been drawn from these seeds already (deterministic solvers only).
            keep: keep the trajectory.
            progress: called with the number of evaluations done.
        """
        noise = None
        if start is None:
            noise = SampleNoise(seeds)
            start = noise.start(self.shape).to(self.device)
        elif self.solver.stochastic:
            raise BadValue("a stochastic solver draws its start and its steps from one stream: give seeds, not start")
        taus = self.timing.taus if self.timing else None
        predictor = self.predictor
        if self.correction is not None:
            predictor = self.correction.wrap(predictor, self.schedule, self.grid.times[0])
        return drive(self.solver(start, self.grid, self.schedule, noise), predictor, taus, keep=keep, progress=progress)


def batches(first: int, count: int, size: int) -> Iterator[range]:
    """The seeds ``first .. first + count - 1`` in batches of ``size``."""
    if count < 1 or size < 1:
        raise BadValue(f"need at least one sample and a batch of at least 1, got n {count} and batch {size}")
    for begin in range(first, first + count, size):
        yield range(begin, min(begin + size, first + count))


def sample_pixels(
    sampler: Sampler,
    count: int,
    *,
    first_seed: int = 0,
    batch: int = 64,
    start: Callable[[range], Tensor] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Tensor:
    """Sample ``count`` images as uint8 [count, C, H, W] on the CPU, rounded to nearest.

    Args:
        start: gives x_T of a range of seeds, where it is kept from an earlier run; else it is drawn here.
        progress: called with (images done, count, message).
    """
    parts: list[Tensor] = []
    draw = None if sampler.solver.stochastic else start or StartNoise(sampler.shape, sampler.device, most=0)
    for seeds, noise in drawn_ahead(list(batches(first_seed, count, batch)), draw):
        run = sampler(seeds, start=noise)
        parts.append(to_uint8(run.x).cpu())
        if progress:
            progress(seeds[-1] + 1 - first_seed, count, f"{run.nfe} evaluations an image")
    return torch.cat(parts)
