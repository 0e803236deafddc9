"""The tuner: which steps are tuned in which order, what is kept, and how an interrupted run goes on.

**The gate.** With a gate a step keeps its tuned tau only if that is better than tau = t beyond noise, on images it was
not tuned on. Whatever the objective was, better means a lower truncation error of the step, the squared distance of its
end from a converged solution's. Each image is tried with both times, and a one-sided paired t-test over the images asks
whether the mean of the differences lies below 0, at the level :data:`LEVEL` for each evaluation by itself (no
correction for their number). A tau that is refused goes back to t.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from tt_lib.errors import BadValue, CorruptFile
from tt_lib.files import atomic_path
from tt_lib.noise import HELD_OUT_NOISE, derive_seed
from tt_lib.rows import provenance
from tt_lib.sampling import Progress, Sampler
from tt_lib.solvers.layout import stages_of
from tt_lib.solvers.registry import Solver
from tt_lib.timing import Timing
from tt_lib.tuning.config import TuneConfig
from tt_lib.tuning.optimisers import OPTIMISER_FUNCTIONS, SEARCH_TRIES, Bounds, Rows
from tt_lib.tuning.problems import Problem, Problems

HISTORY_COLUMNS = ("evaluation", "iteration", "loss", "tau", "t")
SWEEPS = 2
"""Rounds of a parallel tuning of a multistep solver: its states depend on the taus before."""
LEVEL = 0.05


@dataclass
class TuneResult:
    """A tuned timing and how it was reached.

    Attributes:
        timing: the timing, with its provenance. ``loss_untuned`` and ``loss_tuned`` in its ``tuning`` are the losses of
            each tuned evaluation at tau = t and at the tuned tau, both on all the images, with the states of the last
            sweep.
        history: one row for each tuned evaluation and iteration: evaluation (its index in a run), iteration, loss, tau,
            t.
    """

    timing: Timing
    history: pd.DataFrame


def tune(
    sampler: Sampler,
    images: Tensor,
    config: TuneConfig | None = None,
    *,
    source: str = "real",
    held_out: Tensor | None = None,
    state: Path | str | None = None,
    save_seconds: float = 20.0,
    progress: Progress | None = None,
) -> TuneResult:
    """Tune the conditioning times of a few-step sampler, with the network frozen.

    Args:
        sampler: untuned; a solver that draws noise draws the same noise for every tau.
        images: x0 [P, ...] in [-1, 1] on the sampler's device: real images, or the network's own.
        config: the options; by default those of the authors.
        source: where the images come from, for the timing: ``real`` or ``generated``.
        held_out: other images, at least two, for the gate; needed with ``config.gate``.
        state: a file for the state of an unfinished run, which resumes from it. Remove it once the timing is saved.
        save_seconds: seconds between two writes of ``state``.
        progress: called with (done, total, message).

    Raises:
        BadValue: ``truncation`` or the gate for a solver that draws noise, a gate without held-out images, no step that
            may move, or ``state`` belongs to another tuning.
        CorruptFile: ``state`` is damaged.
        NotFinite: the network returned NaN or infinity.
    """
    return _Tuning(sampler, images, config or TuneConfig(), source, held_out, state, save_seconds, progress).run()


def check_tuning(solver: Solver, steps: int, config: TuneConfig) -> None:
    """Raise :class:`BadValue` for a tuning that means nothing for the solver, or moves none of the grid's steps."""
    freeze = config.freeze_last
    if freeze >= steps:  # a timing in which nothing was tuned is none
        raise BadValue(
            f"there is nothing to tune: the grid has {steps} {'step' if steps == 1 else 'steps'} and freeze_last = "
            f"{freeze} leaves the last {freeze} alone; take more steps, or freeze fewer, as in "
            "truncation-parallel-freeze0"
        )
    if solver.stochastic and config.gate:
        raise BadValue(
            f"there is no gate for {solver.name}: it draws noise and has no truncation error; leave gate=true out"
        )
    if solver.stochastic and config.objective == "truncation":
        raise BadValue(
            f"cannot tune {solver.name} by truncation: it draws noise and follows no trajectory that a converged "
            "solution could be; choose the objective consistency"
        )


@dataclass
class _Place:
    """How far a tuning has come: what its state file holds."""

    taus: list[float]
    stages: int = 0
    rows: Rows = field(default_factory=list)
    losses: dict[int, tuple[float, float]] = field(default_factory=dict)
    gated: list[dict[str, Any]] = field(default_factory=list)
    optimiser: dict[str, Any] | None = None
    iterations: int = 0
    """Of the stage that is being tuned."""
    seconds: float = 0.0


class _Tuning:
    """One tuning run. A stage tunes one group of evaluations together; the state file is written between iterations."""

    def __init__(
        self,
        sampler: Sampler,
        images: Tensor,
        config: TuneConfig,
        source: str,
        held_out: Tensor | None,
        state: Path | str | None,
        save_seconds: float,
        progress: Progress | None,
    ) -> None:
        check_tuning(sampler.solver, sampler.grid.steps, config)
        if len(images) < 1:
            raise BadValue("tuning needs at least one image, got none")
        self.sampler, self.images, self.config, self.source, self.held_out = sampler, images, config, source, held_out
        self.state, self.save_seconds, self.progress = Path(state) if state else None, save_seconds, progress
        self.problems = Problems(sampler, images, config.objective, config.substeps, config.seed)
        self.gate = _gate_problems(sampler, held_out, config) if config.gate else None
        self.groups = _groups(self.problems, config)
        self._check_room()
        # Without history the states do not depend on the taus, and a second sweep would give the same again.
        again = config.strategy == "parallel" and sampler.solver.history
        self.stages = self.groups * (SWEEPS if again else 1)
        self.begun = self.last_saved = time.monotonic()
        self.fingerprint = self._fingerprint()
        self.place = self._load()

    def run(self) -> TuneResult:
        if self.config.strategy == "sequential":
            self._sequential()
        else:
            self._parallel()
        history = pd.DataFrame(self.place.rows, columns=list(HISTORY_COLUMNS))
        return TuneResult(self._timing(), history)

    def _check_room(self) -> None:
        """Raise unless some tau may differ from its t: within the bounds, and where the network knows times."""
        t = torch.tensor([self.problems.evaluations[i].t for group in self.groups for i in group], dtype=torch.float64)
        room = Bounds(t, self.sampler.schedule.t_min, self.config.bounds)
        if not (room.low < room.high).any():
            raise BadValue(
                f"there is nothing to tune: no tau can differ from its t, of {t.tolist()}, within bounds = "
                f"{self.config.bounds}; widen them"
            )

    def _sequential(self) -> None:
        answers: list[Tensor] = []
        gate_answers: list[Tensor] = []
        for number, (index,) in enumerate(self.stages):
            self._report(number, "preparing states and targets")
            problem = self.problems.sequential(index, answers)
            gate = self.gate.sequential(index, gate_answers) if self.gate else None
            if number == self.place.stages:
                self._tune(problem)
                if gate:
                    self._apply_gate([gate])
                self._end_stage()
            answers.append(problem.answer_at(self.place.taus[index]))
            if gate:
                gate_answers.append(gate.answer_at(self.place.taus[index]))

    def _parallel(self) -> None:
        for number in range(self.place.stages, len(self.stages)):
            self._report(number, "preparing states and targets")
            self._tune(self.problems.parallel(self.stages[number], self.place.taus))
            self._end_stage()
        if self.gate:
            # Every step is tested with the tuned taus of the others, before any is refused.
            self._apply_gate([self.gate.parallel(group, self.place.taus) for group in self.groups])

    def _tune(self, problem: Problem) -> None:
        optimise = OPTIMISER_FUNCTIONS[self.config.optimiser]
        outcome = optimise(problem, self.config, watch=self._watch, resume=self.place.optimiser)
        for index, tau, losses in zip(problem.evaluations, outcome.taus.tolist(), outcome.losses, strict=True):
            self.place.taus[index], self.place.losses[index] = tau, losses
        self.place.rows += outcome.rows

    def _apply_gate(self, problems: list[Problem]) -> None:
        taus = self.place.taus
        records = [record for problem in problems for record in gate_records(problem, taus)]
        for record in records:
            if not record["kept"]:
                taus[record["evaluation"]] = record["t"]
        self.place.gated += records

    def _end_stage(self) -> None:
        self.place.stages += 1
        self.place.optimiser, self.place.iterations = None, 0
        self._save()

    def _watch(self, iterations: int, optimiser: dict[str, Any] | None) -> None:
        self.place.iterations, self.place.optimiser = iterations, optimiser
        # Saved before the progress is reported: whoever interrupts there loses nothing that was reported.
        if time.monotonic() - self.last_saved > self.save_seconds:
            self._save()
        self._report(self.place.stages, "tuning")

    def _report(self, stage: int, doing: str) -> None:
        if self.progress:
            evaluations = self.problems.evaluations
            each = self.config.iterations if self.config.optimiser == "adam" else SEARCH_TRIES
            first, last = (evaluations[self.stages[stage][end]].step + 1 for end in (0, -1))
            steps = f"step {first}" if first == last else f"steps {first}-{last}"
            done = self.place.stages * each + self.place.iterations
            self.progress(done, len(self.stages) * each, f"{doing}, {steps} of {self.sampler.grid.steps}")

    def _fingerprint(self) -> str:
        """What must agree for a state file to be this tuning's."""
        sampler, solver = self.sampler, self.sampler.solver
        parts = [sampler.model, sampler.weights, sampler.schedule.name, solver.name, repr(solver.options)]
        parts += [repr(sampler.grid), repr(asdict(self.config)), digest_of(self.images)]
        parts += [] if self.held_out is None else [digest_of(self.held_out)]
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def _save(self) -> None:
        self.last_saved = time.monotonic()
        if self.state:
            content = {"fingerprint": self.fingerprint, **vars(self.place), "seconds": self._seconds()}
            with atomic_path(self.state) as temporary:
                torch.save(content, temporary)

    def _load(self) -> _Place:
        if not (self.state and self.state.exists()):
            return _Place([each.t for each in self.problems.evaluations])
        try:
            content = torch.load(self.state, weights_only=True)
            place = _Place(**content) if content.pop("fingerprint") == self.fingerprint else None
            if place and not self._is_possible(place):
                raise ValueError("it is damaged")
        except Exception as error:  # zip, pickle and torch name no single type
            raise CorruptFile(f"{self.state} is not the state of a tuning; delete it to begin again") from error
        if place is None:
            raise BadValue(
                f"{self.state} is the state of another tuning (other model, solver, grid, images or options); delete it"
            )
        # A search that was interrupted begins its stage again, and so does its count.
        place.iterations = place.iterations if place.optimiser else 0
        return place

    def _is_possible(self, place: _Place) -> bool:
        count = len(self.problems.evaluations)
        return 0 <= place.stages <= len(self.stages) and [0 < tau <= 1 for tau in place.taus] == [True] * count

    def _seconds(self) -> float:
        return self.place.seconds + time.monotonic() - self.begun

    def _timing(self) -> Timing:
        losses = [pair for _, pair in sorted(self.place.losses.items())]
        tuning = {
            **asdict(self.config),
            "images": len(self.images),
            "images_sha256": digest_of(self.images),
            "source": self.source,
            "seconds": round(self._seconds(), 2),
            "loss_untuned": [untuned for untuned, _ in losses],
            "loss_tuned": [tuned for _, tuned in losses],
        }
        if self.held_out is not None and self.gate:
            tuning |= {"gated": self.place.gated, "gate_images": len(self.held_out)}
        return self.sampler.make_timing(self.config.name, self.place.taus, tuning=tuning, provenance=provenance())


def _groups(problems: Problems, config: TuneConfig) -> list[list[int]]:
    """What is tuned together, as indices of evaluations: one after another, or all that run alike."""
    solver, steps = problems.sampler.solver, problems.sampler.grid.steps
    groups: dict[Any, list[int]] = {}
    for index, each in enumerate(problems.evaluations):
        if each.step >= steps - config.freeze_last:
            continue
        history = min(each.step, solver.history)
        options = repr(solver.part(each.step - history, history + 1, steps - each.step - 1).options)
        alike = (history, options, stages_of(problems.evaluations, each.step), each.stage)
        groups.setdefault(index if config.strategy == "sequential" else alike, []).append(index)
    return list(groups.values())


def _gate_problems(sampler: Sampler, images: Tensor | None, config: TuneConfig) -> Problems:
    if images is None or len(images) < 2:
        raise BadValue("a gate needs at least 2 held-out images, other than those tuned on")
    return Problems(sampler, images, "truncation", config.substeps, derive_seed(config.seed, HELD_OUT_NOISE))


@torch.no_grad()
def gate_records(problem: Problem, taus: Sequence[float]) -> list[dict[str, Any]]:
    """A record for each of a problem's S evaluations: whether its tau may stay, and why.

    Args:
        problem: of the truncation objective on held-out images.
        taus: the tuned times of all evaluations of the run.

    Returns:
        ``evaluation`` (its index in the run), ``t``, ``tau``, ``loss_untuned`` and ``loss_tuned`` (means over the
        images), ``p`` of the test (1 where the two times are one) and ``kept``.
    """
    own = [taus[index] for index in problem.evaluations]
    tuned = problem.each(torch.tensor(own, dtype=torch.float64)).double().cpu()
    untuned = problem.each(problem.t).double().cpu()
    records = []
    for row in zip(problem.evaluations, problem.t.tolist(), own, untuned, tuned, strict=True):
        evaluation, t, tau, at_t, at_tau = row
        p = p_lower(at_tau, at_t)
        losses = {"loss_untuned": float(at_t.mean()), "loss_tuned": float(at_tau.mean())}
        records.append({"evaluation": evaluation, "t": t, "tau": tau, **losses, "p": p, "kept": p < LEVEL})
    return records


def p_lower(a: Tensor, b: Tensor) -> float:
    """p of the one-sided paired t-test for a mean of ``a`` [P] below that of ``b`` [P]; 1 where they are equal."""
    from scipy.stats import ttest_rel

    if torch.equal(a, b):
        return 1.0
    p = float(ttest_rel(a.numpy(), b.numpy(), alternative="less").pvalue)
    return 1.0 if math.isnan(p) else p


def digest_of(images: Tensor) -> str:
    """sha256 of images, by which a timing says which it was tuned on."""
    return hashlib.sha256(images.detach().cpu().numpy().tobytes()).hexdigest()
