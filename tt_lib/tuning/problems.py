"""One-step problems: the states on which a tau is judged, and the loss of a tau there.

A problem holds S steps of the sampler and P states for each. Its states, histories and targets are fixed
when it is made; only the taus move. A sequential tuning makes one problem after another with S = 1, a
parallel one makes problems with all the steps that have a history of the same length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tt_lib.engine import Request, check_finite, drive, replay
from tt_lib.predictors import Predictor
from tt_lib.schedules import Schedule
from tt_lib.solvers import Solver
from tt_lib.solvers.arithmetic import along
from tt_lib.tuning.objectives import OBJECTIVE_FUNCTIONS, Objective


@dataclass
class Problem:
    """S one-step problems with P states each; rows are laid out [S * P], step by step.

    Attributes:
        steps: the indices of the S steps.
        x: [S * P, ...], where the solver starts.
        times: [W, S] nominal times that the solver runs through from there. The tuned step is the last one,
            except in a sequential problem, which holds the whole grid.
        answers: the answers of the solver's evaluations before the tuned one, each [S * P, ...].
        state, t, s: [S * P, ...], [S], [S]: the state at the tuned evaluation, its time, the next time.
        target: [S * P, ...], what the objective compares with.
    """

    solver: Solver
    schedule: Schedule
    predictor: Predictor
    objective: Objective
    steps: list[int]
    x: Tensor
    times: Tensor
    answers: list[Tensor]
    state: Tensor
    t: Tensor
    s: Tensor
    target: Tensor

    @property
    def images(self) -> int:
        """P, the number of states for each step."""
        return len(self.x) // len(self.steps)

    def losses(self, taus: Tensor, rows: Tensor | None = None) -> Tensor:
        """The objective of each step.

        Args:
            taus: [S], one conditioning time for each step (gradients flow to it).
            rows: which of the P states to use, the same for each step (default: all).

        Returns:
            [S]: sum over pixels, mean over states.
        """
        rows = torch.arange(self.images) if rows is None else rows
        pick = (torch.arange(len(self.steps))[:, None] * self.images + rows).flatten()
        tau, t, s = (_each(value, len(rows)) for value in (taus, self.t, self.s))
        here = pick.to(self.x.device)
        answer = self.predictor(self.state[here], t, tau)
        check_finite(answer, self.steps[0], t, tau)
        earlier = [recorded[here] for recorded in self.answers]
        x_next = self._advance(here, len(rows), [*earlier, answer])
        loss = self.objective.loss(self, x_next, s, self.target[here])
        return loss.reshape(len(self.steps), -1).mean(1)

    def _advance(self, here: Tensor, count: int, answers: Sequence[Tensor]) -> Tensor:
        times = self.times[:, 0] if len(self.steps) == 1 else self.times.repeat_interleave(count, dim=1)
        item = replay(self.solver(self.x[here], times, self.schedule), answers)
        return item.x if isinstance(item, Request) else item


def _each(values: Tensor, count: int) -> Tensor:
    """[S] -> [S * count]; one step stays a scalar, which is what an engine run sends."""
    return values[0] if len(values) == 1 else values.repeat_interleave(count)


def sequential_problem(
    solver: Solver, schedule: Schedule, predictor: Predictor, objective: str, substeps: int,
    times: Tensor, step: int, x: Tensor, answers: list[Tensor],
) -> Problem:  # fmt: skip
    """The problem of one step of a run.

    Args:
        times: [K + 1], the grid.
        step: the index k of the step to tune.
        x: [P, ...], the states at ``times[0]``.
        answers: the k answers that the tuned sampler got so far, each [P, ...].
    """
    request = replay(solver(x, times, schedule), answers)
    assert isinstance(request, Request)
    t, s = times[step : step + 1], times[step + 1 : step + 2]
    return _with_target(
        solver, schedule, predictor, objective, substeps, [step], x, times[:, None], answers, request.x, t, s
    )


def parallel_problem(
    solver: Solver, schedule: Schedule, predictor: Predictor, objective: str, substeps: int,
    times: Tensor, steps: list[int], images: Tensor, noise: Tensor, taus: Sequence[float],
) -> Problem:  # fmt: skip
    """All of ``steps`` in one batch, each starting from noised images.

    The solver starts ``history`` steps before the tuned one (fewer at the run's start), at
    ``alpha x0 + sigma eps``, and makes those steps with the taus given, so that the tuned step has the
    history that the solver needs.

    Args:
        times: [K + 1], the grid.
        steps: indices of steps that all have the same length of history, ``min(k, solver.history)``.
        images: x0 [P, ...] in [-1, 1].
        noise: eps [P, ...].
        taus: [K], the conditioning times of the evaluations before.
    """
    history = min(steps[0], solver.history)
    windows = torch.stack([times[k - history : k + 2] for k in steps], dim=1)  # [history + 2, S]
    count = len(images)
    start = windows[0].repeat_interleave(count)
    x0, eps = (part.repeat(len(steps), *[1] * (part.ndim - 1)) for part in (images, noise))
    x = along(schedule.alpha(start), x0) * x0 + along(schedule.sigma(start), eps) * eps
    each = windows.repeat_interleave(count, dim=1) if len(steps) > 1 else windows[:, 0]
    answers: list[Tensor] = []
    state = x
    with torch.no_grad():
        for back in range(history, 0, -1):
            tau = torch.tensor([taus[k - back] for k in steps], dtype=torch.float64)
            answers.append(predictor(state, each[history - back], _each(tau, count)))
            request = replay(solver(x, each, schedule), answers)
            assert isinstance(request, Request)
            state = request.x
    return _with_target(
        solver, schedule, predictor, objective, substeps, steps, x, windows, answers, state,
        windows[history], windows[history + 1],
    )  # fmt: skip


def _with_target(solver, schedule, predictor, objective, substeps, steps, x, times, answers, state, t, s) -> Problem:
    chosen = OBJECTIVE_FUNCTIONS[objective]
    count = len(x) // len(steps)
    with torch.no_grad():
        target = chosen.target(predictor, schedule, state, _each(t, count), _each(s, count), substeps)
    return Problem(solver, schedule, predictor, chosen, steps, x, times, answers, state, t, s, target)


@torch.no_grad()
def advance(problem: Problem, tau: float) -> Tensor:
    """The answer of a sequential problem's evaluation at its final tau, for the next step's history."""
    return problem.predictor(problem.state, problem.t[0], torch.tensor(tau, dtype=torch.float64))


@torch.no_grad()
def generate_images(predictor: Predictor, solver: Solver, times: Tensor, schedule: Schedule, noise: Tensor) -> Tensor:
    """Images [P, ...] that the network itself makes from ``noise``, for tuning without a data set."""
    return drive(solver(noise, times, schedule), predictor).x.clamp(-1, 1)
