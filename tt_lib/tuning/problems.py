"""One-step problems: the states on which a tau is tuned, and the loss of a tau there.

A problem holds one evaluation of each of S steps of the sampler, and P states for each. Its states, histories and
targets are fixed when it is made; only the taus move. A sequential tuning makes one problem after another with S = 1,
a parallel one makes problems with all the steps that run alike.

The loss of an evaluation is taken at the state for which the solver asks next: at the end of the step for its last
evaluation, inside the step for the others. The target always starts from the state at the beginning of the step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tt_lib.engine import Request, check_finite, replay
from tt_lib.noise import STEP_NOISE, derive_seed
from tt_lib.sampling import Sampler
from tt_lib.schedules import along
from tt_lib.solvers.layout import Evaluation, layout
from tt_lib.solvers.registry import Noise, Solver
from tt_lib.tuning.objectives import OBJECTIVE_FUNCTIONS


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
        count = 0

        def noise(x: Tensor) -> Tensor:
            nonlocal count
            if count == len(self.draws):
                self.draws.append(torch.randn(self.shape, generator=self.generator))
            draw = self.draws[count]
            count += 1
            return (draw if rows is None else draw[rows.cpu()]).to(x.device, x.dtype)

        return noise


class Problems:
    """Makes the problems of one sampler on one set of noised images.

    Args:
        sampler: any; its timing is not looked at.
        images: x0 [P, ...] in [-1, 1], where the predictor runs.
        objective: a name of :mod:`tt_lib.tuning.objectives`.
        substeps: of a converged solution of an interval.
        seed: of the noise on the images, and of a stochastic solver's draws.
    """

    def __init__(self, sampler: Sampler, images: Tensor, objective: str, substeps: int, seed: int) -> None:
        self.sampler, self.images, self.substeps, self.seed = sampler, images, substeps, seed
        self.objective = OBJECTIVE_FUNCTIONS[objective]
        self.times, self.evaluations = sampler.grid.tensor(), sampler.evaluations
        self.noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed)).to(images)

    def sequential(self, index: int, answers: Sequence[Tensor]) -> Problem:
        """The problem of one evaluation of a run over the whole grid, from ``x_T = alpha_T x_0 + sigma_T eps``.

        Args:
            index: the evaluation's, in a whole run.
            answers: the ``index`` answers that the tuned sampler got so far, each [P, ...].
        """
        begin = index - self.evaluations[index].stage
        windows, layouts = self.times[:, None], [self.evaluations]
        return self._problem([index], begin, self.sampler.solver, windows, layouts, list(answers), [])

    def parallel(self, indices: Sequence[int], taus: Sequence[float]) -> Problem:
        """The problem of evaluations that run alike, each starting from noised images.

        The solver starts ``history`` steps before the tuned one (fewer at the run's start), at
        ``alpha x0 + sigma eps``, and makes those steps with the taus given, so that the tuned step has the
        history that the solver needs.

        Args:
            indices: of the evaluations in a whole run. All have the same number within their step, the same length of
                history, ``min(step, solver.history)``, and the same ``solver.part``.
            taus: of all evaluations of the run; those before the tuned one are used.
        """
        steps, stage = [self.evaluations[index].step for index in indices], self.evaluations[indices[0]].stage
        history = min(steps[0], self.sampler.solver.history)
        solver = self.sampler.solver.part(steps[0] - history, history + 1, self.sampler.grid.steps - 1 - steps[0])
        windows = torch.stack([self.times[k - history : k + 2] for k in steps], dim=1)  # [history + 2, S]
        layouts = [layout(solver, window, self.sampler.schedule) for window in windows.T]
        begin = next(at for at, each in enumerate(layouts[0]) if each.step == history)
        tuned = {(each.step, each.stage): tau for each, tau in zip(self.evaluations, taus, strict=True)}

        def tau_of(k: int, each: Evaluation) -> float:
            # A multistep solver may warm up at a window's start with evaluations that the whole run does not make.
            return tuned.get((k - history + each.step, each.stage), each.t)

        own = [[tau_of(k, row[at]) for k, row in zip(steps, layouts, strict=True)] for at in range(begin + stage)]
        return self._problem(list(indices), begin, solver, windows, layouts, [], own)

    @torch.no_grad()
    def _problem(
        self,
        indices: list[int],
        begin: int,
        solver: Solver,
        windows: Tensor,
        layouts: list[tuple[Evaluation, ...]],
        answers: list[Tensor],
        taus: list[list[float]],
    ) -> Problem:
        """The problem of some evaluations.

        Args:
            begin: which of the window's evaluations begins the tuned step.
            solver, windows, layouts: it runs over ``windows`` [W, S] and makes the evaluations of S layouts there,
                which differ in their times only.
            answers: of the window's evaluations before the tuned one, where they are known.
            taus: the conditioning times of the others, S for each.
        """
        predictor, schedule, count = self.sampler.predictor, self.sampler.schedule, len(self.images)
        end = begin + self.evaluations[indices[0]].stage
        times = windows.repeat_interleave(count, dim=1) if len(indices) > 1 else windows[:, 0]

        def time_of(at: int) -> Tensor:
            last = windows[-1].tolist()
            return _float64(row[at].t if at < len(row) else s for row, s in zip(layouts, last, strict=True))

        start = windows[0].repeat_interleave(count)
        x0, eps = (part.repeat(len(indices), *[1] * (part.ndim - 1)) for part in (self.images, self.noise))
        x = along(schedule.alpha(start), x0) * x0 + along(schedule.sigma(start), eps) * eps
        # Not the seed of the images' noise: then the solver's first draw would be that noise again.
        draws = CommonNoise(x.shape, derive_seed(self.seed, STEP_NOISE))
        states: dict[int, Tensor] = {}
        for at in sorted({begin, end, *range(len(answers), end)}):
            request = replay(solver(x, times, schedule, draws.source()), answers[:at])
            assert isinstance(request, Request)
            states[at] = request.x
            if at == len(answers) < end:
                answers.append(predictor(request.x, request.t, _each(_float64(taus[at]), count)))
        t, s = time_of(end), time_of(end + 1)
        target = self.objective.target(
            predictor, schedule, states[begin], _each(time_of(begin), count), _each(s, count), self.substeps
        )
        return Problem(self, indices, solver, x, times, answers, draws, states[end], t, s, target)


@dataclass
class Problem:
    """S one-step problems with P states each; rows are laid out [S * P], step by step.

    Attributes:
        common: what it shares with the other problems of the tuning.
        evaluations: for each of the S problems the index of its evaluation in the whole run.
        solver: of the window of the grid that ends with the tuned step.
        x: [S * P, ...], where the solver starts.
        times: [W] or [W, S * P], nominal times of the window.
        answers: of the window's evaluations before the tuned one, each [S * P, ...].
        draws: the noise of a stochastic solver.
        state, t: [S * P, ...], [S]: the state at the tuned evaluation and its time.
        s: [S], the time of the state after it.
        target: [S * P, ...], what the objective compares with.
    """

    common: Problems
    evaluations: list[int]
    solver: Solver
    x: Tensor
    times: Tensor
    answers: list[Tensor]
    draws: CommonNoise
    state: Tensor
    t: Tensor
    s: Tensor
    target: Tensor

    @property
    def images(self) -> int:
        """P, the number of states for each step."""
        return len(self.common.images)

    @property
    def t_min(self) -> float:
        """The smallest time at which the network can be evaluated."""
        return self.common.sampler.schedule.t_min

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
        here = (torch.arange(len(self.t))[:, None] * self.images + rows).flatten().to(self.x.device)
        answer = self._answer(_each(taus, len(rows)), here)
        times = self.times if self.times.ndim == 1 else self.times[:, here.cpu()]
        schedule = self.common.sampler.schedule
        running = self.solver(self.x[here], times, schedule, self.draws.source(here))
        item = replay(running, [*(known[here] for known in self.answers), answer])
        x_next = item.x if isinstance(item, Request) else item
        loss = self.common.objective.loss(
            self.common.sampler.predictor, schedule, x_next, _each(self.s, len(rows)), self.target[here]
        )
        # Of several losses a search would take NaN for the lowest.
        check_finite(loss, self.evaluations[0], self.t, taus)
        return loss.reshape(len(self.t), -1)

    @torch.no_grad()
    def answer_at(self, tau: float) -> Tensor:
        """The answer [P, ...] of a sequential problem at its final tau, for the history of the next evaluations."""
        here = torch.arange(len(self.x), device=self.x.device)
        return self._answer(torch.tensor(tau, dtype=torch.float64), here)

    def _answer(self, tau: Tensor, here: Tensor) -> Tensor:
        t = _each(self.t, len(here) // len(self.t))
        answer = self.common.sampler.predictor(self.state[here], t, tau)
        check_finite(answer, self.evaluations[0], t, tau)
        return answer


def _float64(values: Iterable[float]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float64)


def _each(values: Tensor, count: int) -> Tensor:
    """[S] -> [S * count]; one step stays a scalar, which is what an engine run sends."""
    return values[0] if len(values) == 1 else values.repeat_interleave(count)
