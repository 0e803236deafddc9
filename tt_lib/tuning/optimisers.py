"""How the scalar of each step is found: Adam, as the authors do, or a search without gradients.

Both take a :class:`Bounds`, which keeps tau in the network's range and in the user's bounds, and both
report every iteration as rows ``(step, iteration, loss, tau, t)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tt_lib.noise import derive_seed
from tt_lib.tuning.config import TuneConfig
from tt_lib.tuning.problems import Problem

COARSE, FINE = 13, 9
SEARCH_TRIES = 1 + COARSE + (FINE - 1) + 1
"""Losses that a search computes: tau = t, the scan, the finer scan but its centre, and the parabola's vertex."""
Rows = list[tuple[int, int, float, float, float]]
Watch = Callable[[dict[str, Any]], None]
"""Called after each iteration with a state from which the optimiser can go on."""


class Bounds:
    """The allowed range of tau of each step, and what is learnt: the ratio tau / t or the offset tau - t.

    Args:
        t: [S], the nominal times.
        t_min: the smallest time that the network knows; the largest is 1.
    """

    def __init__(self, t: Tensor, t_min: float, config: TuneConfig, pair: tuple[float, float] | None) -> None:
        self.t, self.ratio = t, config.value == "ratio"
        low, high = (t * pair[0], t * pair[1]) if pair else (torch.zeros_like(t), torch.ones_like(t))
        # A step whose own time lies outside the range keeps at least that time.
        self.low = torch.minimum(low.clamp(min=t_min), t)
        self.high = torch.maximum(high.clamp(max=1.0), t)

    def start(self) -> Tensor:
        """The value at which tau = t."""
        return torch.ones_like(self.t) if self.ratio else torch.zeros_like(self.t)

    def tau(self, value: Tensor) -> Tensor:
        """tau [S] of a learnt value, kept in range (differentiable inside it)."""
        tau = self.t * value if self.ratio else self.t + value
        return torch.minimum(torch.maximum(tau, self.low), self.high)

    def value(self, tau: Tensor) -> Tensor:
        """The value of a tau: the inverse of :meth:`tau` in range."""
        return tau / self.t if self.ratio else tau - self.t


def adam(
    problem: Problem, config: TuneConfig, watch: Watch | None = None, resume: dict[str, Any] | None = None
) -> tuple[Tensor, Rows]:
    """Adam on the values of all S steps at once; the steps do not see each other.

    Args:
        watch: called after each iteration with a resumable state.
        resume: such a state.

    Returns:
        taus [S] float64, and the rows of every iteration.
    """
    bounds = Bounds(problem.t, problem.schedule.t_min, config, config.bounds)
    value = bounds.start().requires_grad_(True)
    optimiser = torch.optim.Adam([value], lr=config.lr, betas=config.betas)
    rows: Rows = []
    if resume:
        with torch.no_grad():
            value.copy_(resume["value"])
        optimiser.load_state_dict(resume["optimiser"])
        rows = list(resume["rows"])
    done = len(rows) // len(problem.steps)
    for iteration in range(done, config.iterations):
        batch = _batch(problem, config, iteration)
        taus = bounds.tau(value)
        losses = problem.losses(taus, batch)
        optimiser.zero_grad()
        losses.sum().backward()
        optimiser.step()
        with torch.no_grad():
            # Keep the value itself in range, or it would wander where the loss is flat and never come back.
            value.copy_(bounds.value(bounds.tau(value)))
        rows += _rows(problem, iteration, losses, taus)
        if watch:
            watch({"value": value.detach().clone(), "optimiser": optimiser.state_dict(), "rows": rows})
    return bounds.tau(value).detach(), rows


@torch.no_grad()
def search(
    problem: Problem, config: TuneConfig, watch: Watch | None = None, resume: dict[str, Any] | None = None
) -> tuple[Tensor, Rows]:
    """A scan of the range, a finer scan around its best value, and the vertex of a parabola through the best three.

    A scalar needs no gradient: ``SEARCH_TRIES`` evaluations on all the images, with the same noise for each, find the
    minimum that Adam approaches in hundreds of iterations, and no starting point decides which one.
    tau = t is among the values, so the result is never worse than untuned on the images it was found on.
    """
    bounds = Bounds(problem.t, problem.schedule.t_min, config, config.bounds or config.search_range)
    low, high = bounds.low, bounds.high
    tried: list[Tensor] = []
    found: list[Tensor] = []

    def attempt(taus: Tensor) -> None:
        tried.append(taus)
        found.append(problem.losses(taus).double().cpu())
        if watch:
            watch({})

    attempt(problem.t.clone())
    for fraction in torch.linspace(0, 1, COARSE, dtype=torch.float64):
        attempt(torch.lerp(low, high, fraction))
    spacing = (high - low) / (COARSE - 1)
    centre = _best(tried, found)
    for offset in torch.linspace(-1, 1, FINE, dtype=torch.float64):
        if offset:
            attempt((centre + offset * spacing).clamp(min=low, max=high))
    attempt(_vertex(tried, found, spacing / (FINE // 2)).clamp(min=low, max=high))
    rows: Rows = []
    for iteration, (taus, losses) in enumerate(zip(tried, found, strict=True)):
        rows += _rows(problem, iteration, losses, taus)
    return _best(tried, found), rows


def _best(tried: list[Tensor], found: list[Tensor]) -> Tensor:
    """[S]: for each step the tau with the lowest loss (the earliest of equals, so an unmoved tau stays)."""
    taus, losses = torch.stack(tried), torch.stack(found)
    return taus.gather(0, losses.argmin(0, keepdim=True))[0]


def _vertex(tried: list[Tensor], found: list[Tensor], near: Tensor) -> Tensor:
    """[S]: the minimum of the least-squares parabola through the losses within 2 fine spacings of the best tau."""
    taus, losses = torch.stack(tried), torch.stack(found)
    best = _best(tried, found)
    result = best.clone()
    for step in range(len(best)):
        close = (taus[:, step] - best[step]).abs() <= 2.001 * near[step]
        u = (taus[close, step] - best[step]) / near[step].clamp(min=1e-12)
        if len(u.unique()) < 3:
            continue
        design = torch.stack([u * u, u, torch.ones_like(u)], dim=1)
        a, b, _ = torch.linalg.lstsq(design, losses[close, step : step + 1]).solution[:, 0]
        if a > 0:
            result[step] = best[step] + (-b / (2 * a)).clamp(-1, 1) * near[step]
    return result


def _batch(problem: Problem, config: TuneConfig, iteration: int) -> Tensor:
    """Rows for one iteration, drawn from (seed, first step, iteration), so that a resumed run draws the same."""
    count = min(config.batch, problem.images)
    seed = derive_seed(config.seed, 10_007 * problem.steps[0] + iteration)
    return torch.randperm(problem.images, generator=torch.Generator().manual_seed(seed))[:count]


def _rows(problem: Problem, iteration: int, losses: Tensor, taus: Tensor) -> Rows:
    columns = zip(problem.steps, losses.detach().tolist(), taus.detach().tolist(), problem.t.tolist(), strict=True)
    return [(step, iteration, loss, tau, t) for step, loss, tau, t in columns]


OPTIMISER_FUNCTIONS: dict[str, Callable[..., tuple[Tensor, Rows]]] = {"adam": adam, "search": search}
