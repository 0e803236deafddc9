"""Sampling images: a predictor, a solver, a grid and perhaps a timing, over any number of seeds.

Beside few-step samplers there are accurate ones to compare with: :func:`fine_sampler` over a whole run,
:func:`fine_solution` over one interval.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tt_lib.baselines import Correction
from tt_lib.engine import Run, drive
from tt_lib.errors import BadValue, TimingMismatch
from tt_lib.grids import LEARNED, Grid, make_grid
from tt_lib.networks.running import make_predictor
from tt_lib.networks.unet import Model
from tt_lib.noise import SampleNoise, StartNoise, check_seeds
from tt_lib.predictors import Predictor, predictor_of
from tt_lib.schedules import Schedule, along
from tt_lib.solvers.dpmpp import dpmpp_2m
from tt_lib.solvers.layout import Evaluation, layout
from tt_lib.solvers.registry import Solver, make_solver
from tt_lib.timing import Timing

Progress = Callable[[int, int, str], None]
"""Called with (done, of all, message) while something long runs."""
FINE_STEPS = 20
"""Steps of :func:`fine_sampler`."""


@dataclass(frozen=True)
class Sampler:
    """A few-step sampler, ready to run.

    Attributes:
        predictor: ``(x, t, tau) -> direction`` of the schedule.
        schedule: its noise schedule.
        solver: the update rule.
        grid: the nominal times.
        shape: of one sample, without the batch.
        timing: the conditioning times; None is untuned (tau = t).
        model: the model's name, which a timing is checked against.
        device: where to run.
        weights: sha256 of the model's weights, if they come from a file.
        correction: a change of the network's inputs or outputs while sampling, in place of a timing.

    Raises:
        BadValue: a timing and a correction, or a solver that cannot run on the schedule from the grid's first time.
        TimingMismatch: the timing belongs to another sampler.
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
        self.solver.check(self.schedule, self.grid.tensor()[0])
        if self.timing is not None and self.correction is not None:
            raise BadValue(
                f"a sampler has a timing or a correction, not both: got {self.timing.name} and {self.correction.name}; "
                "leave one out"
            )
        if self.timing is not None:
            self.timing.check(
                model=self.model, schedule=self.schedule.name, solver=self.solver, grid=self.grid, weights=self.weights
            )

    @property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """The network evaluations of a run, in order; their number is the NFE."""
        return layout(self.solver, self.grid.tensor(), self.schedule)

    def make_timing(self, name: str, taus: Sequence[float], **more: Any) -> Timing:
        """A timing for just this sampler, a tau for each of its evaluations; ``more`` as in Timing."""
        return Timing(
            name=name,
            taus=tuple(taus),
            times=tuple(each.t for each in self.evaluations),
            model=self.model,
            schedule=self.schedule.name,
            solver=self.solver.name,
            options=self.solver.choices_made,
            grid=self.grid.name,
            grid_times=self.grid.times,
            weights=self.weights,
            **more,
        )

    def __call__(self, seeds: Sequence[int], *, start: Tensor | None = None, keep: bool = False) -> Run:
        """Sample one image for each seed; ``run.x`` is float32 [B, *shape] in about [-1, 1].

        Args:
            seeds: one for each sample; a seed gives the same image in any batch.
            start: the noise [B, *shape] of the start, if it has been drawn from these seeds already (deterministic
                solvers only); x_T is ``schedule.scale(t_0)`` times it, which is 1 on a variance-preserving schedule.
            keep: keep the trajectory.
        """
        noise = None
        if start is None:
            noise = SampleNoise(seeds)
            start = noise.start(self.shape).to(self.device)
        elif self.solver.stochastic:
            raise BadValue("a stochastic solver draws its start and its steps from one stream: give seeds, not start")
        x = along(self.schedule.scale(self.grid.tensor()[0]), start) * start
        taus, gains = (self.timing.taus, self.timing.gains or None) if self.timing else (None, None)
        predictor = predictor_of(self.predictor, seeds)
        if self.correction is not None:
            predictor = self.correction.wrap(predictor, self.schedule, self.grid.times[0])
        solution = self.solver(x, self.grid, self.schedule, noise)
        return drive(solution, predictor, taus, gains=gains, keep=keep)


def make_sampler(
    model: Model,
    solver: str = "ddim",
    grid: str = "uniform",
    nfe: int = 10,
    timing: Timing | None = None,
    *,
    eta: float = 0.0,
    predictor: Predictor | None = None,
    device: torch.device | str | None = None,
    correction: Correction | None = None,
) -> Sampler:
    """A sampler of a network, by names.

    Args:
        model: see :func:`tt_lib.networks.unet.load_model`.
        solver: a name of :mod:`tt_lib.solvers.registry`, with options as in ``unipc,order=2``.
        grid: a name of :mod:`tt_lib.grids`, or ``learned``: the one that a learned timing brings.
        nfe: number of network evaluations.
        timing: tuned for just this sampler.
        eta: share of ancestral noise, for solvers that take it.
        predictor: of the network; by default in float32, as it is.
        device: where to run; by default where the network is.
        correction: see :mod:`tt_lib.baselines`.

    Raises:
        BadValue: an unknown name, or a number of evaluations that the solver cannot make.
        TimingMismatch: the timing belongs to another sampler.
    """
    made, steps = make_solver(solver, **({"eta": eta} if eta else {})).for_nfe(nfe)
    brought = Grid(LEARNED, timing.grid_times) if grid == LEARNED and timing and timing.grid == LEARNED else None
    if brought and timing and brought.steps != steps:
        raise TimingMismatch(
            f"the timing was learned for {timing.nfe} evaluations in {brought.steps} steps and is used with {nfe} "
            f"evaluations in {steps}; ask for {timing.nfe}, or learn one with `tt learn`"
        )
    return Sampler(
        predictor=predictor or make_predictor(model),
        schedule=model.schedule,
        solver=made,
        grid=brought or make_grid(grid, steps, model.schedule),
        shape=model.shape,
        timing=timing,
        model=model.name,
        device=device or next(model.network.parameters()).device,
        weights=model.digest,
        correction=correction,
    )


def batches(first: int, count: int, size: int) -> list[range]:
    """The seeds ``first .. first + count - 1`` in batches of ``size``."""
    if count < 1 or size < 1:
        raise BadValue(f"need at least one sample and a batch of at least 1, got n {count} and batch {size}")
    return [range(begin, min(begin + size, first + count)) for begin in range(first, first + count, size)]


def run_batches(
    sampler: Sampler, parts: Sequence[range], start: StartNoise | None = None
) -> Generator[tuple[range, Run], None, None]:
    """Run a sampler on one batch of seeds after another: yields (seeds, run).

    The CPU draws the next batch's x_T while the device works on this one. To leave the generator early, close it.

    Args:
        start: where to take x_T from. A stochastic solver draws its own, from the stream of its steps.
    """
    if sampler.solver.stochastic or not parts:
        yield from ((seeds, sampler(seeds)) for seeds in parts)
        return
    draw = start or StartNoise(sampler.shape, sampler.device, most=0)
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(draw, parts[0])
        for seeds, following in zip(parts, [*parts[1:], None], strict=True):
            x = coming.result()
            if following is not None:
                coming = thread.submit(draw, following)
            yield seeds, sampler(seeds, start=x)


def sample_images(
    sampler: Sampler,
    count: int,
    *,
    first_seed: int = 0,
    batch: int = 64,
    progress: Progress | None = None,
) -> Tensor:
    """The samples of ``count`` seeds as float32 [count, C, H, W] on the CPU.

    Args:
        progress: called with (images done, count, message).

    Raises:
        BadValue: seeds that there are not, see :func:`tt_lib.noise.check_seeds`.
    """
    check_seeds(first_seed, count)
    images: list[Tensor] = []
    for seeds, run in run_batches(sampler, batches(first_seed, count, batch)):
        images.append(run.x.cpu())
        if progress:
            progress(seeds.stop - first_seed, count, f"{run.nfe} evaluations an image")
    return torch.cat(images)


def fine_sampler(sampler: Sampler, steps: int = FINE_STEPS, start: float | None = None) -> Sampler:
    """A converged sampler to compare with: DPM-Solver++(2M), untuned, in ``steps`` steps from the same noise.

    It starts at the same time, unless ``start`` is another one.
    """
    grid = make_grid("karras", steps, sampler.schedule, start=sampler.grid.times[0] if start is None else start)
    return replace(sampler, solver=make_solver("dpmpp-2m"), grid=grid, timing=None, correction=None)


def fine_solution(predictor: Predictor, schedule: Schedule, x: Tensor, t: Tensor, s: Tensor, substeps: int) -> Tensor:
    """The interval from t to s (scalars or [B]) in ``substeps`` equal steps of time, by DPM-Solver++(2M), untuned."""
    fractions = torch.linspace(0, 1, substeps + 1, dtype=torch.float64)
    times = torch.lerp(t.expand(t.shape), s, fractions.reshape(-1, *[1] * t.ndim))
    # The ends are exact: rounding in the interpolation must not move a time below 0.
    times[0], times[-1] = t, s
    return drive(dpmpp_2m(x, times, schedule, None), predictor).x


def end_distances(ends: Tensor, exact: Tensor) -> Tensor:
    """Root mean square difference of each image from the accurate one of the same noise: [n, ...] -> [n]."""
    return (ends[: len(exact)] - exact).square().flatten(1).mean(1).sqrt()
