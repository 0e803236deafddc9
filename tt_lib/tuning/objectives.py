"""What a tau is judged by.

``consistency`` is the paper's objective (Xia et al. 2024, eq. 5, and the authors' code):

    ``L(tau) = E || sg[eps(x_t, t)] - eps(x_s(tau), s) ||^2``

where ``x_s(tau)`` is one solver step from t to s made with ``eps(x_t, tau)``: after the step, the network
should still see the direction it saw before, as it would along a straight trajectory. The target itself
carries truncation error: true trajectories are curved.

``truncation`` measures what consistency stands in for:

    ``L(tau) = E || x_s(tau) - x_s* ||^2``

where ``x_s*`` is a fine solution of the same interval from the same ``x_t``. It needs no gradient through
a second evaluation. Both are sums over pixels and means over images.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from tt_lib.predictors import Predictor
from tt_lib.sampling import fine_solution
from tt_lib.schedules import Schedule


class Objective(Protocol):
    """A target, computed once for each state, and the loss [B] of a step's result ``x_next`` against it."""

    def target(
        self, predictor: Predictor, schedule: Schedule, x: Tensor, t: Tensor, s: Tensor, substeps: int
    ) -> Tensor: ...

    def loss(self, problem, x_next: Tensor, s: Tensor, target: Tensor) -> Tensor: ...


class Consistency:
    """The paper's objective."""

    def target(
        self, predictor: Predictor, schedule: Schedule, x: Tensor, t: Tensor, s: Tensor, substeps: int
    ) -> Tensor:
        return predictor(x, t, t)

    def loss(self, problem, x_next: Tensor, s: Tensor, target: Tensor) -> Tensor:
        # There is no network at t = 0: where the last step is tuned, its result is judged at the cleanest level.
        s = s.clamp(min=problem.schedule.t_min)
        return squared_distance(problem.predictor(x_next, s, s), target)


class Truncation:
    """The distance of the step's result from a fine solution of its interval."""

    def target(
        self, predictor: Predictor, schedule: Schedule, x: Tensor, t: Tensor, s: Tensor, substeps: int
    ) -> Tensor:
        return fine_solution(predictor, schedule, x, t, s, substeps)

    def loss(self, problem, x_next: Tensor, s: Tensor, target: Tensor) -> Tensor:
        return squared_distance(x_next, target)


OBJECTIVE_FUNCTIONS: dict[str, Objective] = {"consistency": Consistency(), "truncation": Truncation()}


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """``|| a - b ||^2`` of each sample: [B, ...] -> [B]."""
    return (a - b).square().flatten(1).sum(1)
