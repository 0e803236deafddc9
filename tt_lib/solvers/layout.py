"""Which evaluations a solver makes on a grid: a run on zeros shows it, so that no solver has to declare it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tt_lib.engine import drive
from tt_lib.schedules import Schedule
from tt_lib.solvers.registry import Solver


class Evaluation(NamedTuple):
    """One evaluation: the step it belongs to, its number within the step, its nominal time."""

    step: int
    stage: int
    t: float


def layout(solver: Solver, times: Tensor, schedule: Schedule) -> tuple[Evaluation, ...]:
    """The evaluations of a run over the grid ``times`` [K + 1], in order."""
    x = torch.zeros(1, 1, dtype=torch.float64)
    run = drive(solver(x, times, schedule, torch.zeros_like), lambda x, t, tau: torch.zeros_like(x), keep=True)
    evaluations: list[Evaluation] = []
    step = -1
    for request in run.trajectory:
        step += request.stage == 0
        evaluations.append(Evaluation(step, request.stage, float(request.t)))
    return tuple(evaluations)


def stages_of(evaluations: tuple[Evaluation, ...], step: int) -> int:
    """How many evaluations a step makes."""
    return sum(each.step == step for each in evaluations)
