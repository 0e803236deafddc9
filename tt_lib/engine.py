"""The engine drives any solver: it asks the timing for tau, calls the predictor and counts evaluations.

A solver (see :mod:`tt_lib.solvers`) is a generator: it yields a :class:`Request` ``(x, t)`` whenever it
needs the network, is sent the answer, the schedule's direction (eps, or the velocity), and returns ``x`` at the end of
its grid. It knows nothing of tau, of counting or of gradients; all of that is here, once, for every solver.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from tt_lib.errors import NotFinite
from tt_lib.predictors import Predictor
from tt_lib.schedules import along


class Request(NamedTuple):
    """What a solver asks: the direction at state ``x`` [B, ...] and nominal time ``t`` (scalar or [B], float64).

    ``stage`` is 0 for the first evaluation of a step and counts the others: only a tuner looks at it.
    """

    x: Tensor
    t: Tensor
    stage: int = 0


Solution = Generator[Request, Tensor, Tensor]
"""A running solver: yields requests, is sent directions, returns the final state."""


@dataclass
class Run:
    """What a sampling run gave.

    Attributes:
        x: [B, ...], the state at the end of the grid.
        nfe: number of network evaluations, counted.
        trajectory: the requests in order (only if ``keep``), each with the state and its nominal time.
        answers: the directions that were sent back (only if ``keep``).
    """

    x: Tensor
    nfe: int
    trajectory: list[Request] = field(default_factory=list)
    answers: list[Tensor] = field(default_factory=list)


def drive(
    solution: Solution,
    predictor: Predictor,
    taus: Sequence[float] | Tensor | None = None,
    *,
    gains: Sequence[float] | Tensor | None = None,
    keep: bool = False,
    grad: bool = False,
) -> Run:
    """Run a solver to its end.

    Args:
        solution: a solver's generator, not yet started.
        predictor: ``(x, t, tau) -> direction``.
        taus: the conditioning time of each evaluation, in order; None is untuned, every tau is its t.
            A row of a tensor may itself be a vector over samples.
        gains: the factor on each answer, in the form of ``taus``; None leaves the answers as they are.
        keep: keep the trajectory and the answers.
        grad: keep gradients through the whole run: to the taus, the gains, the start and the solver's times.

    Raises:
        NotFinite: an answer holds NaN or infinity.
        ValueError: ``taus`` or ``gains`` has another length than the number of evaluations.
    """
    run, watch = Run(x=torch.empty(0), nfe=0), _Watch()
    with torch.set_grad_enabled(grad):
        try:
            request = next(solution)
            while True:
                tau = request.t if taus is None else _nth("conditioning times", taus, run.nfe)
                answer = predictor(request.x, request.t, tau)
                if gains is not None:
                    answer = along(_nth("gains", gains, run.nfe), answer) * answer
                watch.add(answer, run.nfe, request.t, tau)
                run.nfe += 1
                if keep:
                    run.trajectory.append(request)
                    run.answers.append(answer)
                request = solution.send(answer)
        except StopIteration as stop:
            run.x = stop.value
    watch.check()
    for what, values in (("conditioning times", taus), ("gains", gains)):
        if values is not None and len(values) != run.nfe:
            raise ValueError(f"{len(values)} {what} were given, the solver made {run.nfe} evaluations")
    return run


def replay(solution: Solution, answers: Sequence[Tensor]) -> Request | Tensor:
    """Send recorded ``answers`` to a fresh solver; return its next request, or its result if it ended.

    Generators cannot be copied, but they can be run again: a tuner tries one tau after another at
    evaluation k by replaying the k answers before it, which costs arithmetic and no network.
    """
    try:
        item: Request | Tensor = next(solution)
        for answer in answers:
            item = solution.send(answer)
    except StopIteration as stop:
        return stop.value
    return item


def check_finite(answer: Tensor, evaluation: int, t: Tensor, tau: Tensor | float) -> None:
    """Raise :class:`NotFinite` unless ``answer`` is finite; ``evaluation`` counts from 0, the message from 1."""
    watch = _Watch()
    watch.add(answer, evaluation, t, tau)
    watch.check()


class _Watch:
    """Finds NaN and infinity in answers, several at once on a GPU.

    While a GPU works on one evaluation the CPU prepares the next ones. Reading a result at each would end that.
    """

    AT_ONCE = 16

    def __init__(self) -> None:
        self.sums: list[Tensor] = []
        self.where: list[tuple[int, Tensor, Tensor | float]] = []

    def add(self, answer: Tensor, evaluation: int, t: Tensor, tau: Tensor | float) -> None:
        # A NaN or infinity anywhere survives in the sum.
        self.sums.append(answer.detach().sum(dtype=torch.float64))
        self.where.append((evaluation, t, tau))
        if answer.device.type == "cpu" or len(self.sums) == self.AT_ONCE:
            self.check()

    def check(self) -> None:
        """Raise :class:`NotFinite` for the first of the answers since the last call that is not finite."""
        finite = torch.stack(self.sums).isfinite().tolist() if self.sums else []
        where, self.sums, self.where = self.where, [], []
        if all(finite):
            return
        evaluation, t, tau = where[finite.index(False)]
        raise NotFinite(
            f"the network returned NaN or infinity at evaluation {evaluation + 1}, "
            f"t = {_brief(t)}, tau = {_brief(tau)}; "
            "check its weights and its input range, and run it in float32 if it is run in float16"
        )


def _nth(what: str, values: Sequence[float] | Tensor, index: int) -> Tensor:
    if index >= len(values):
        raise ValueError(f"{len(values)} {what} were given, the solver asks for evaluation {index + 1}")
    return torch.as_tensor(values[index], dtype=torch.float64)


def _brief(t: Tensor | float) -> str:
    low, high = torch.as_tensor(t).detach().double().aminmax()
    return f"{low:.6g}" if low == high else f"{low:.6g}..{high:.6g}"
