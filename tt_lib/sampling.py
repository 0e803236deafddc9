"""Sampling images: a predictor, a solver, a grid and perhaps a timing, over as many seeds as wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tt_lib.baselines import Correction
from tt_lib.datasets import to_uint8
from tt_lib.engine import Run, drive
from tt_lib.errors import BadValue
from tt_lib.grids import Grid, make_grid
from tt_lib.noise import SampleNoise, StartNoise, drawn_ahead
from tt_lib.predictors import Predictor
from tt_lib.schedules import Schedule
from tt_lib.solvers.dpmpp import dpmpp_2m
from tt_lib.solvers.registry import Solver, make_solver
from tt_lib.timing import Timing

FINE_STEPS = 20


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
            name=name,
            taus=taus,
            times=times,
            model=self.model,
            schedule=self.schedule.name,
            solver=self.solver.name,
            options=self.solver.choices_made,
            grid=self.grid.name,
            grid_times=self.grid.times,
            weights=self.weights,
            **more,
        )

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


# FOLDED tt_lib.study.demo
# The main job in a few minutes on a CPU: sample, tune, sample again from the same noise, measure both.


def sample_floats(sampler: Sampler, n: int, batch: int) -> Tensor:
    """The samples of seeds 0 .. n - 1 as float32 [n, C, H, W] on the CPU."""
    return torch.cat([sampler(seeds).x.cpu() for seeds in batches(0, n, batch)])


def fine_ends(sampler: Sampler, n: int, batch: int, steps: int = FINE_STEPS) -> Tensor:
    """The ends of fine runs from the noise of seeds 0 .. n - 1, started at the time where the sampler starts."""
    parts = []
    for seeds in batches(0, n, batch):
        start = SampleNoise(seeds).start(sampler.shape).to(sampler.device)
        parts.append(fine_end(sampler, start, steps).cpu())
    return torch.cat(parts)


def end_distances(ends: Tensor, exact: Tensor) -> Tensor:
    """Root mean square difference of each image's end from its fine solution: [n, ...] -> [n]."""
    return (ends[: len(exact)] - exact).square().flatten(1).mean(1).sqrt()


# FOLDED tt_lib.tuning.joint
# What a joint tuning is judged by: one number for the samples of a whole run, the lower the better.


@torch.no_grad()
def fine_end(sampler: Sampler, start: Tensor, steps: int = FINE_STEPS) -> Tensor:
    """The end [B, ...] of a fine run from ``start`` [B, ...] at the time where the sampler starts, untuned."""
    grid = make_grid("karras", steps, sampler.schedule, start=sampler.grid.times[0])
    return drive(make_solver("dpmpp-2m")(start, grid, sampler.schedule), sampler.predictor).x


# FOLDED tt_lib.tuning.objectives
# What a tau is judged by.
#
# ``consistency`` is the paper's objective (Xia et al. 2024, eq. 5, and the authors' code):
#
#     ``L(tau) = E || sg[eps(x_t, t)] - eps(x_s(tau), s) ||^2``
#
# where ``x_s(tau)`` is one solver step from t to s made with ``eps(x_t, tau)``: after the step, the network
# should still see the direction it saw before, as it would along a straight trajectory. The target itself
# carries truncation error: true trajectories are curved.
#
# ``truncation`` measures what consistency stands in for:
#
#     ``L(tau) = E || x_s(tau) - x_s* ||^2``
#
# where ``x_s*`` is a fine solution of the same interval from the same ``x_t``. It needs no gradient through
# a second evaluation. Both are sums over pixels and means over images.
#


def fine_solution(predictor: Predictor, schedule: Schedule, x: Tensor, t: Tensor, s: Tensor, substeps: int) -> Tensor:
    """The interval from t to s (scalars or [B]) in ``substeps`` equal steps of time, by DPM-Solver++(2M), untuned."""
    fractions = torch.linspace(0, 1, substeps + 1, dtype=torch.float64)
    times = torch.lerp(t.expand(t.shape), s, fractions.reshape(-1, *[1] * t.ndim))
    # The ends are exact: rounding in the interpolation must not move a time below 0.
    times[0], times[-1] = t, s
    return drive(dpmpp_2m(x, times, schedule, None), predictor).x


# FOLDED tt_lib.tuning.problems
# One-step problems: the states on which a tau is judged, and the loss of a tau there.
#
# A problem holds one evaluation of each of S steps of the sampler, and P states for each. Its states, histories and targets are fixed when it is made; only the taus move. A sequential
# tuning makes one problem after another with S = 1, a parallel one makes problems with all the steps that run alike.
#
# An evaluation is judged at the state for which the solver asks next: at the end of the step for its last evaluation, inside
# the step for the others. What it is compared with always starts from the state at the beginning of the step.
#


@torch.no_grad()
def generate_images(predictor: Predictor, solver: Solver, times: Tensor, schedule: Schedule, noise: Tensor) -> Tensor:
    """Images [P, ...] that the network itself makes from ``noise``, for tuning without a data set."""
    return drive(solver(noise, times, schedule), predictor).x.clamp(-1, 1)
