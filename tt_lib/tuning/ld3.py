"""LD3's recipe (Tong et al. 2024, arXiv 2405.15506) as a baseline: grid and conditioning times from a hundred noises.

The grid has both ends fixed, at t = 1 and at the smallest level, where the sample is taken as it is. Between them
softmax and cumulative sum spread the nodes in lambda. A conditioning time is its node plus an offset of at most half of
the smallest gap between nodes; the first is fixed. The grid learns alone for two rounds over 50 pairs of noise and
converged solution, then both learn for five. 50 other pairs decide what is kept: after five worse iterations in
a row the best is taken up again with learning rates of 0.8 times. Batches of two, gradients clipped to norm 1.

What differs from the published recipe: the distance is any of :mod:`tt_lib.tuning.learn` (theirs is LPIPS), the
converged solutions are ours, the best is told by all 50 pairs from the beginning, and the start noises stay as they are
(theirs move a little towards what the sampler can reach).
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from tt_lib.engine import drive
from tt_lib.errors import BadValue, NothingLearned
from tt_lib.grids import LEARNED, Grid
from tt_lib.noise import LEARN_FIRST_SEED, VALIDATION_FIRST_SEED
from tt_lib.rows import provenance
from tt_lib.sampling import Progress, Sampler
from tt_lib.schedules import Schedule, along
from tt_lib.timing import Timing
from tt_lib.tuning.learn import PIXELS, Distance, converged_sampler, noises_and_ends

PAIRS, BATCH = 50, 2
GRID_ROUNDS, JOINT_ROUNDS = 2, 5
GRID_RATE, MOMENTUM, OFFSET_RATE = 5e-3, 0.9, 0.1
PATIENCE, DECAY = 5, 0.8


class _Times:
    """LD3's parameters for N steps, and the times that they stand for."""

    def __init__(self, steps: int, schedule: Schedule) -> None:
        self.schedule = schedule
        self.logits = nn.Parameter(torch.ones(steps, dtype=torch.float64))
        self.offsets = nn.Parameter(torch.zeros(steps, dtype=torch.float64))

    def __call__(self) -> tuple[Tensor, Tensor]:
        """The grid [N + 1] and the conditioning times [N]."""
        low, high = (self.schedule.lam(t) for t in (self.schedule.t_max, self.schedule.t_min))
        places = torch.cat([torch.zeros(1, dtype=torch.float64), self.logits.softmax(0).cumsum(0)])
        times = self.schedule.time_of_lam(low + (high - low) * places)
        most = float(times.detach().diff().abs().min()) / 2
        offsets = self.offsets.clamp(-most, most) * (torch.arange(len(self.offsets)) > 0)
        return times, times[:-1] + offsets


def learn_ld3(sampler: Sampler, distance: Distance = PIXELS, *, progress: Progress | None = None) -> Timing:
    """A sampler's grid and conditioning times by LD3's recipe.

    Args:
        sampler: untuned, deterministic, one evaluation a step; its grid counts by its number of steps alone.
        distance: between a sample and its converged solution.
        progress: called with (iterations done, of all, message).

    Raises:
        BadValue: a sampler that draws noise, or that evaluates several times a step.
        NothingLearned: nothing better than the start was found.
    """
    steps, schedule = sampler.grid.steps, sampler.schedule
    if sampler.solver.stochastic or len(sampler.evaluations) != steps:
        raise BadValue(f"LD3 is for deterministic solvers of one evaluation a step, not {sampler.solver.spelling}")
    converged = converged_sampler(sampler)
    (x, y), (held_x, held_y) = (
        noises_and_ends(converged, first, PAIRS, PAIRS) for first in (LEARN_FIRST_SEED, VALIDATION_FIRST_SEED)
    )
    model = _Times(steps, schedule)
    optimizers = (
        torch.optim.RMSprop([model.logits], lr=GRID_RATE, momentum=MOMENTUM),
        torch.optim.SGD([model.offsets], lr=OFFSET_RATE / steps),
    )

    def losses(x: Tensor, y: Tensor) -> Tensor:
        times, taus = model()
        grad = torch.is_grad_enabled()
        solution = sampler.solver(along(schedule.scale(times[0]), x) * x, times, schedule)
        return distance.function(drive(solution, sampler.predictor, taus, grad=grad).x, y)

    def held_out() -> float:
        with torch.no_grad():
            return float(losses(held_x, held_y).mean())

    start = lowest = held_out()
    best, worse, done = [value.detach().clone() for value in (model.logits, model.offsets)], 0, 0
    per_round = math.ceil(PAIRS / BATCH)
    order = torch.Generator().manual_seed(0)
    for round in range(GRID_ROUNDS + JOINT_ROUNDS):
        _restore(model, best)
        worse, joint = 0, round >= GRID_ROUNDS
        for rows in torch.randperm(PAIRS, generator=order).to(x.device).split(BATCH):
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
            losses(x[rows], y[rows]).mean().backward()
            for optimizer, value in zip(optimizers[: 1 + joint], (model.logits, model.offsets), strict=False):
                nn.utils.clip_grad_norm_([value], 1.0, error_if_nonfinite=True)
                optimizer.step()
            done, loss = done + 1, held_out()
            if loss < lowest:
                lowest, worse, best = loss, 0, [value.detach().clone() for value in (model.logits, model.offsets)]
            else:
                worse += 1
            if worse == PATIENCE:
                _restore(model, best)
                worse = 0
                for optimizer in optimizers[: 1 + joint]:
                    optimizer.param_groups[0]["lr"] *= DECAY
            if progress:
                total = per_round * (GRID_ROUNDS + JOINT_ROUNDS)
                progress(done, total, f"LD3, best on held-out noises {lowest / start:.2f} of the start's")
    if not lowest < start:
        raise NothingLearned(f"LD3's recipe came no nearer to the converged solution than its start ({start:.4g})")
    _restore(model, best)
    with torch.no_grad():
        times, taus = model()
    tuning = {"objective": "end", "distance": distance.name, "validation_start": start, "validation_learned": lowest}
    learned = replace(sampler, grid=Grid(LEARNED, tuple(times.tolist())))
    return learned.make_timing(f"{LEARNED}-ld3", taus.tolist(), tuning=tuning, provenance=provenance())


def _restore(model: _Times, best: list[Tensor]) -> None:
    with torch.no_grad():
        for value, kept in zip((model.logits, model.offsets), best, strict=True):
            value.copy_(kept)
