"""How the scalar of each step is tuned: Adam, as the authors do, or a search without gradients.

Both keep tau in the network's range and in the bounds of the configuration, and both report every iteration as rows
``(evaluation, iteration, loss, tau, t)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tt_lib.noise import derive_seed
from tt_lib.tuning.config import TuneConfig
from tt_lib.tuning.problems import Problem

SEARCH_RANGE = (0.7, 1.3)
"""The range of tau / t that a search scans where the configuration has no bounds."""
COARSE, FINE = 13, 9
SEARCH_TRIES = 1 + COARSE + (FINE - 1) + 1
"""Losses that a search computes: tau = t, the scan, the finer scan but its centre, and the parabola's vertex."""
Rows = list[tuple[int, int, float, float, float]]
Watch = Callable[[int, dict[str, Any] | None], None]
"""Called after each iteration with their number, and a state to go on from if the optimiser has one."""


class Outcome(NamedTuple):
    """What an optimiser gives: taus [S] float64, the rows of every iteration, and losses on all the images.

    ``losses`` has a pair for each step, at tau = t and at the tau returned.
    """

    taus: Tensor
    rows: Rows
    losses: list[tuple[float, float]]


class Bounds:
    """The allowed range of tau of each step, and what is learnt: the ratio tau / t or the offset tau - t.

    Args:
        t: [S], the nominal times.
        t_min: the smallest time at which the network can be evaluated; the largest is 1.
        pair: the smallest and largest tau / t; None: any.
        value: ``ratio`` or ``offset``.
    """

    def __init__(self, t: Tensor, t_min: float, pair: tuple[float, float] | None, value: str = "ratio") -> None:
        self.t, self.ratio = t, value == "ratio"
        low, high = (t * pair[0], t * pair[1]) if pair else (torch.zeros_like(t), torch.ones_like(t))
        # A step whose own time lies outside the range keeps at least that time.
        self.low = torch.minimum(low.clamp(min=t_min), t)
        self.high = torch.maximum(high.clamp(max=1.0), t)

    def tau(self, value: Tensor) -> Tensor:
        """tau [S] of a learnt value, kept in range (differentiable inside it)."""
        tau = self.t * value if self.ratio else self.t + value
        return torch.minimum(torch.maximum(tau, self.low), self.high)

    def value(self, tau: Tensor) -> Tensor:
        """The value of a tau: the inverse of :meth:`tau` in range."""
        return tau / self.t if self.ratio else tau - self.t


def adam(
    problem: Problem, config: TuneConfig, watch: Watch | None = None, resume: dict[str, Any] | None = None
) -> Outcome:
    """Adam on the values of all S steps at once; the steps do not see each other.

    Args:
        watch: called after each iteration.
        resume: a state that ``watch`` got.
    """
    bounds = Bounds(problem.t, problem.t_min, config.bounds, config.value)
    value = bounds.value(problem.t).requires_grad_(True)
    optimiser = torch.optim.Adam([value], lr=config.lr)
    rows: Rows = []
    if resume:
        with torch.no_grad():
            value.copy_(resume["value"])
        optimiser.load_state_dict(resume["optimiser"])
        rows = list(resume["rows"])
    for iteration in range(len(rows) // len(problem.t), config.iterations):
        taus = bounds.tau(value)
        losses = problem.losses(taus, _batch(problem, config, iteration))
        optimiser.zero_grad()
        losses.sum().backward()
        optimiser.step()
        with torch.no_grad():
            # Keep the value itself in range, or it would wander where the loss is flat and never come back.
            value.copy_(bounds.value(bounds.tau(value)))
        rows += _rows(problem, iteration, losses, taus)
        if watch:
            state = {"value": value.detach().clone(), "optimiser": optimiser.state_dict(), "rows": rows}
            watch(iteration + 1, state)
    taus = bounds.tau(value).detach()
    with torch.no_grad():
        # Each iteration has a batch of its own: untuned and tuned are compared on all the images.
        untuned, tuned = (problem.losses(each).tolist() for each in (problem.t, taus))
    return Outcome(taus, rows, list(zip(untuned, tuned, strict=True)))


@torch.no_grad()
def search(
    problem: Problem, config: TuneConfig, watch: Watch | None = None, resume: dict[str, Any] | None = None
) -> Outcome:
    """A scan of the range, a finer scan around its best value, and the vertex of a parabola through the best three.

    A scalar needs no gradient: :data:`SEARCH_TRIES` losses on all the images, with the same noise for each, find the
    minimum that Adam approaches in hundreds of iterations, and no starting point decides which one.
    tau = t is among the values, so the result is never worse than untuned on the images it was tuned on.
    """
    bounds = Bounds(problem.t, problem.t_min, config.bounds or SEARCH_RANGE)
    low, high = bounds.low, bounds.high
    taus: list[Tensor] = []
    losses: list[Tensor] = []

    def attempt(tau: Tensor) -> None:
        taus.append(tau)
        losses.append(problem.losses(tau).double().cpu())
        if watch:
            watch(len(taus), None)

    attempt(problem.t.clone())
    for fraction in torch.linspace(0, 1, COARSE, dtype=torch.float64):
        attempt(torch.lerp(low, high, fraction))
    spacing = (high - low) / (COARSE - 1)
    centre = _best(taus, losses)
    for offset in torch.linspace(-1, 1, FINE, dtype=torch.float64):
        if offset:
            attempt((centre + offset * spacing).clamp(low, high))
    attempt(_vertex(taus, losses, spacing / (FINE // 2)).clamp(low, high))
    rows = [
        row for iteration, pair in enumerate(zip(losses, taus, strict=True)) for row in _rows(problem, iteration, *pair)
    ]
    lowest = torch.stack(losses).amin(0).tolist()
    return Outcome(_best(taus, losses), rows, list(zip(losses[0].tolist(), lowest, strict=True)))


def _best(taus: list[Tensor], losses: list[Tensor]) -> Tensor:
    """[S]: for each step the tau with the lowest loss (the earliest of equals, so an unmoved tau stays)."""
    return torch.stack(taus).gather(0, torch.stack(losses).argmin(0, keepdim=True))[0]


def _vertex(taus: list[Tensor], losses: list[Tensor], spacing: Tensor) -> Tensor:
    """[S]: the minimum of the least-squares parabola through the losses within 2 fine spacings of the best tau."""
    best, all_taus, all_losses = _best(taus, losses), torch.stack(taus), torch.stack(losses)
    result = best.clone()
    for step in range(len(best)):
        u = (all_taus[:, step] - best[step]) / spacing[step].clamp(min=1e-12)
        near = u.abs() <= 2.001
        if len(u[near].unique()) < 3:
            continue
        design = torch.stack([u[near] ** 2, u[near], torch.ones_like(u[near])], dim=1)
        a, b, _ = torch.linalg.lstsq(design, all_losses[near, step : step + 1]).solution[:, 0]
        if a > 0:
            result[step] = best[step] + (-b / (2 * a)).clamp(-1, 1) * spacing[step]
    return result


def _batch(problem: Problem, config: TuneConfig, iteration: int) -> Tensor:
    """Rows for one iteration, drawn from (seed, first evaluation, iteration), so that a resumed run draws the same."""
    count = min(config.batch, problem.images)
    seed = derive_seed(config.seed, 10_007 * problem.evaluations[0] + iteration)
    return torch.randperm(problem.images, generator=torch.Generator().manual_seed(seed))[:count]


def _rows(problem: Problem, iteration: int, losses: Tensor, taus: Tensor) -> Rows:
    columns = losses.detach().tolist(), taus.detach().tolist(), problem.t.tolist()
    return [(index, iteration, *values) for index, *values in zip(problem.evaluations, *columns, strict=True)]


OPTIMISER_FUNCTIONS: dict[str, Callable[..., Outcome]] = {"adam": adam, "search": search}
