"""One-step problems: the states on which a tau is judged, and the loss of a tau there.

A problem holds one evaluation of each of S steps of the sampler, and P states for each. Its states, histories and targets are fixed when it is made; only the taus move. A sequential
tuning makes one problem after another with S = 1, a parallel one makes problems with all the steps that run alike.

An evaluation is judged at the state for which the solver asks next: at the end of the step for its last evaluation, inside
the step for the others. What it is compared with always starts from the state at the beginning of the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tt_lib.engine import Request, check_finite, replay
from tt_lib.predictors import Predictor
from tt_lib.schedules import Schedule, along
from tt_lib.solvers.layout import Evaluation, layout
from tt_lib.solvers.registry import Noise, Solver
from tt_lib.tuning.objectives import OBJECTIVE_FUNCTIONS, Objective


class CommonNoise:
    """The same random numbers for every replay of a stochastic solver, so that two taus differ in nothing but tau.

    Args:
        shape: of the full state, [S * P, ...].
        seed: of the draws.
    """

    def __init__(self, shape: Sequence[int], seed: int) -> None:
        self.shape, self.generator = tuple(shape), torch.Generator().manual_seed(seed)
        self.draws: list[Tensor] = []

    def source(self, rows: Tensor | None = None) -> Noise:
        """A noise function that gives the draws from the first on, of all rows or of some."""
        drawn = 0

        def noise(x: Tensor) -> Tensor:
            nonlocal drawn
            if drawn == len(self.draws):
                self.draws.append(torch.randn(self.shape, generator=self.generator))
            drawn += 1
            draw = self.draws[drawn - 1]
            return (draw if rows is None else draw[rows.cpu()]).to(x.device, x.dtype)

        return noise


@dataclass
class Problem:
    """S one-step problems with P states each; rows are laid out [S * P], step by step.

    Attributes:
        steps: for each of the S problems the index of its evaluation in the whole run.
        x: [S * P, ...], where the solver starts.
        times: [W, S] nominal times that the solver runs through from there. The tuned step is the last one,
            except in a sequential problem, which holds the whole grid.
        answers: the answers of the solver's evaluations before the tuned one, each [S * P, ...].
        state, t, s: [S * P, ...], [S], [S]: the state at the tuned evaluation, its time, the time of the state that it is
            judged at.
        target: [S * P, ...], what the objective compares with.
        noise: the draws of a stochastic solver.
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
    noise: CommonNoise

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
        return self.each(taus, rows).mean(1)

    def each(self, taus: Tensor, rows: Tensor | None = None) -> Tensor:
        """:meth:`losses` of each state by itself, [S, P] or as many as there are rows."""
        rows = torch.arange(self.images) if rows is None else rows
        pick = (torch.arange(len(self.steps))[:, None] * self.images + rows).flatten()
        here = pick.to(self.x.device)
        x_next = self._tuned(_each(taus, len(rows)), here, len(rows))[1]
        loss = self.objective.loss(self, x_next, _each(self.s, len(rows)), self.target[here])
        return loss.reshape(len(self.steps), -1)

    def _tuned(self, tau: Tensor, here: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The answer of the tuned evaluation at ``tau`` (scalar or [S * count]), and the state after it."""
        t = _each(self.t, count)
        answer = self.predictor(self.state[here], t, tau)
        check_finite(answer, self.steps[0], t, tau)
        item = self._advance(here, count, [*(recorded[here] for recorded in self.answers), answer])
        return answer, item.x if isinstance(item, Request) else item

    def _advance(self, here: Tensor, count: int, answers: Sequence[Tensor]) -> Request | Tensor:
        times = self.times[:, 0] if len(self.steps) == 1 else self.times.repeat_interleave(count, dim=1)
        return replay(self.solver(self.x[here], times, self.schedule, self.noise.source(here)), answers)

    @torch.no_grad()
    def answer_at(self, tau: float) -> Tensor:
        """The answer of a sequential problem's evaluation at its final tau, for the history of the next ones."""
        return self._tuned(
            torch.tensor(tau, dtype=torch.float64), torch.arange(len(self.x), device=self.x.device), len(self.x)
        )[0]


def _each(values: Tensor, count: int) -> Tensor:
    """[S] -> [S * count]; one step stays a scalar, which is what an engine run sends."""
    return values[0] if len(values) == 1 else values.repeat_interleave(count)


@dataclass(frozen=True)
class Setting:
    """What all problems of one tuning share.

    Attributes:
        objective: its name.
        substeps: of a fine solution.
        times: [K + 1], the grid.
        evaluations: all evaluations of the solver on it.
        seed: of a stochastic solver's draws.
    """

    solver: Solver
    schedule: Schedule
    predictor: Predictor
    objective: str
    substeps: int
    times: Tensor
    evaluations: tuple[Evaluation, ...]
    seed: int = 0


def sequential_problem(setting: Setting, index: int, x: Tensor, answers: list[Tensor]) -> Problem:
    """The problem of one evaluation of a run.

    Args:
        index: the evaluation's, in ``setting.evaluations``.
        x: [P, ...], the states at the grid's first time.
        answers: the ``index`` answers that the tuned sampler got so far, each [P, ...].
    """
    evaluations, times = setting.evaluations, setting.times
    noise = CommonNoise(x.shape, setting.seed)
    begins = index - evaluations[index].stage

    def state(count: int) -> Tensor:
        request = replay(setting.solver(x, times, setting.schedule, noise.source()), answers[:count])
        assert isinstance(request, Request)
        return request.x

    t, t_step = (torch.tensor([evaluations[at].t], dtype=torch.float64) for at in (index, begins))
    after = evaluations[index + 1].t if index + 1 < len(evaluations) else float(times[-1])
    s = torch.tensor([after], dtype=torch.float64)
    return _with_target(
        setting,
        setting.solver,
        [index],
        x,
        times[:, None],
        answers,
        (state(index), t, s),
        (state(begins), t_step),
        noise,
    )


def parallel_problem(
    setting: Setting, steps: list[int], stage: int, images: Tensor, noise: Tensor, taus: Sequence[float]
) -> Problem:
    """The evaluations number ``stage`` of all of ``steps`` in one batch, each starting from noised images.

    The solver starts ``history`` steps before the tuned one (fewer at the run's start), at
    ``alpha x0 + sigma eps``, and makes those steps with the taus given, so that the tuned step has the
    history that the solver needs.

    Args:
        steps: steps that all have the same length of history, ``min(k, solver.history)``, and run alike (``solver.part``).
        images: x0 [P, ...] in [-1, 1].
        noise: eps [P, ...].
        taus: the conditioning times of all evaluations of the run; those before the tuned one are used.
    """
    times, schedule = setting.times, setting.schedule
    history = min(steps[0], setting.solver.history)
    solver = setting.solver.part(steps[0] - history, history + 1, len(times) - 2 - steps[0])
    windows = torch.stack([times[k - history : k + 2] for k in steps], dim=1)  # [history + 2, S]
    count = len(images)
    start = windows[0].repeat_interleave(count)
    x0, eps = (part.repeat(len(steps), *[1] * (part.ndim - 1)) for part in (images, noise))
    x = along(schedule.alpha(start), x0) * x0 + along(schedule.sigma(start), eps) * eps
    each = windows.repeat_interleave(count, dim=1) if len(steps) > 1 else windows[:, 0]
    draws = CommonNoise(x.shape, setting.seed)

    rows = [layout(solver, column, schedule) for column in windows.T]  # S layouts that differ in their times only
    begins = next(i for i, each_one in enumerate(rows[0]) if each_one.step == history)
    index = begins + stage
    tuned_at = {(e.step, e.stage): tau for e, tau in zip(setting.evaluations, taus, strict=True)}

    def column(at: int) -> Tensor:
        ends = windows[-1].tolist()
        values = [row[at].t if at < len(row) else end for row, end in zip(rows, ends, strict=True)]
        return torch.tensor(values, dtype=torch.float64)

    def tau_of(at: int) -> Tensor:
        # A multistep solver may warm up at a window's start with evaluations that the whole run has not: those are untuned.
        known = [
            tuned_at.get((k - history + row[at].step, row[at].stage), row[at].t)
            for k, row in zip(steps, rows, strict=True)
        ]
        return torch.tensor(known, dtype=torch.float64)

    answers: list[Tensor] = []
    states: list[Tensor] = []
    with torch.no_grad():
        for at in range(index + 1):
            request = replay(solver(x, each, schedule, draws.source()), answers)
            assert isinstance(request, Request)
            states.append(request.x)
            if at < index:
                answers.append(setting.predictor(request.x, request.t, _each(tau_of(at), count)))
    indices = {(e.step, e.stage): i for i, e in enumerate(setting.evaluations)}
    return _with_target(
        setting,
        solver,
        [indices[k, stage] for k in steps],
        x,
        windows,
        answers,
        (states[index], column(index), column(index + 1)),
        (states[begins], column(begins)),
        draws,
    )


def _with_target(setting, solver, steps, x, times, answers, tuned, begin, noise) -> Problem:
    """``tuned``: state, time and time after of the tuned evaluation; ``begin``: state and time at the step's beginning."""
    chosen = OBJECTIVE_FUNCTIONS[setting.objective]
    count = len(x) // len(steps)
    (state, t, s), (x_step, t_step) = tuned, begin
    with torch.no_grad():
        target = chosen.target(
            setting.predictor, setting.schedule, x_step, _each(t_step, count), _each(s, count), setting.substeps
        )
    return Problem(
        solver, setting.schedule, setting.predictor, chosen, steps, x, times, answers, state, t, s, target, noise
    )
