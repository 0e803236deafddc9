"""The loss of one conditioning time: two objectives for a step from t to s.

``consistency`` is the paper's objective (Xia et al. 2024, eq. 5, and the authors' code):

    ``L(tau) = E || sg[eps(x_t, t)] - eps(x_s(tau), s) ||^2``

where ``x_s(tau)`` is one solver step from t to s made with ``eps(x_t, tau)``: after the step, the network
should still see the direction it saw before, as it would along a straight trajectory. The target itself
carries truncation error: true trajectories are curved.

``truncation`` measures what consistency stands in for:

    ``L(tau) = E || x_s(tau) - x_s* ||^2``

where ``x_s*`` is a converged solution of the same interval from the same ``x_t``. It needs no gradient through
a second evaluation. Both are sums over pixels and means over images.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from tt_lib.predictors import Predictor
from tt_lib.sampling import fine_solution
from tt_lib.schedules import Schedule


class Objective(ABC):
    """A target, computed once for each state, and the loss of a step's result against it. Times are scalars or [B]."""

    @abstractmethod
    def target(
        self, predictor: Predictor, schedule: Schedule, x: Tensor, t: Tensor, s: Tensor, substeps: int
    ) -> Tensor:
        """The target [B, ...] of a step from ``x`` [B, ...] at t to s; ``substeps`` of a converged solution."""

    @abstractmethod
    def loss(self, predictor: Predictor, schedule: Schedule, x_next: Tensor, s: Tensor, target: Tensor) -> Tensor:
        """The loss [B] of the step's result ``x_next`` [B, ...] at s, differentiable in it."""


class Consistency(Objective):
    """The paper's objective."""

    def target(
        self, predictor: Predictor, schedule: Schedule, x: Tensor, t: Tensor, s: Tensor, substeps: int
    ) -> Tensor:
        return predictor(x, t, t)

    def loss(self, predictor: Predictor, schedule: Schedule, x_next: Tensor, s: Tensor, target: Tensor) -> Tensor:
        # There is no network at t = 0: the result of a step to clean data is evaluated at the cleanest level.
        s = s.clamp(min=schedule.t_min)
        return squared_distance(predictor(x_next, s, s), target)


class Truncation(Objective):
    """The distance of the step's result from a converged solution of its interval."""

    def target(
        self, predictor: Predictor, schedule: Schedule, x: Tensor, t: Tensor, s: Tensor, substeps: int
    ) -> Tensor:
        return fine_solution(predictor, schedule, x, t, s, substeps)

    def loss(self, predictor: Predictor, schedule: Schedule, x_next: Tensor, s: Tensor, target: Tensor) -> Tensor:
        return squared_distance(x_next, target)


OBJECTIVE_FUNCTIONS: dict[str, Objective] = {"consistency": Consistency(), "truncation": Truncation()}


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """``|| a - b ||^2`` of each sample: [B, ...] -> [B]."""
    return (a - b).square().flatten(1).sum(1)
