"""The tuner: which steps are tuned in which order, what is kept, and how an interrupted run goes on."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from scipy.stats import ttest_rel
from torch import Tensor

from tt_lib.errors import BadValue, CorruptFile
from tt_lib.files import atomic_path
from tt_lib.grids import Grid
from tt_lib.noise import derive_seed
from tt_lib.predictors import Predictor
from tt_lib.rows import provenance
from tt_lib.schedules import Schedule
from tt_lib.solvers.layout import layout, stages_of
from tt_lib.solvers.registry import Solver
from tt_lib.timing import Timing
from tt_lib.tuning.config import TuneConfig
from tt_lib.tuning.optimisers import OPTIMISER_FUNCTIONS, SEARCH_TRIES, Rows
from tt_lib.tuning.problems import Problem, Setting, parallel_problem, sequential_problem

HISTORY_COLUMNS = ("step", "iteration", "loss", "tau", "t")
Progress = Callable[[int, int, str], None]


@dataclass
class TuneResult:
    """A tuned timing and how it was reached.

    Attributes:
        timing: the timing, with its provenance. ``loss_untuned`` and ``loss_tuned`` in its ``tuning`` are the losses of each tuned
            evaluation at tau = t and at the tau found, both on all the images, whose states are those of the (last) sweep.
        history: one row for each step and iteration: step, iteration, loss, tau, t.
    """

    timing: Timing
    history: pd.DataFrame


def tune(
    predictor: Predictor,
    schedule: Schedule,
    solver: Solver,
    grid: Grid,
    images: Tensor,
    config: TuneConfig | None = None,
    *,
    model: str = "",
    weights: str = "",
    source: str = "real",
    held_out: Tensor | None = None,
    state: Path | str | None = None,
    save_seconds: float = 20.0,
    progress: Progress | None = None,
) -> TuneResult:
    """Tune the conditioning times of one few-step sampler.

    Args:
        predictor: ``(x, t, tau) -> eps``, frozen.
        schedule: its noise schedule.
        solver: any; one that draws noise draws the same for every tau.
        grid: the nominal times.
        images: x0 [P, ...] in [-1, 1] on the predictor's device: real images, or the network's own.
        config: the choices; by default the authors'.
        model, weights: the model's name and its weights' sha256, for the timing.
        source: where the images come from, for the timing: ``real`` or ``generated``.
        held_out: other images, at least two, which the gate judges by; only ``config.gate`` wants them.
        state: a file to keep the state of the run in; if it is there, the run goes on from it. It is
            removed when the run ends.
        save_seconds: seconds between two writes of ``state``.
        progress: called with (done, total, message).

    Raises:
        BadValue: ``truncation`` or the gate for a solver that draws noise, a gate without held-out images, or ``state``
            belongs to another tuning.
        NotFinite: the network answered NaN or infinity.
    """
    return _Tuning(
        predictor,
        schedule,
        solver,
        grid,
        images,
        config or TuneConfig(),
        model,
        weights,
        source,
        held_out,
        state,
        save_seconds,
        progress,
    ).run()


def check_objective(solver: Solver, objective: str) -> None:
    """Raise :class:`BadValue` for an objective that means nothing for the solver."""
    if solver.stochastic and objective == "truncation":
        raise BadValue(
            f"cannot tune {solver.name} with eta {solver.eta} by truncation: it draws noise and follows no trajectory that "
            "a fine solution could be; choose --objective consistency, or frechet"
        )


@dataclass(frozen=True)
class _Group:
    """Evaluations that are tuned together: their indices, and their number within the step."""

    indices: list[int]
    stage: int


class _Tuning:
    """One tuning run: its inputs, and its state as far as it got."""

    def __init__(
        self,
        predictor,
        schedule,
        solver,
        grid,
        images,
        config,
        model,
        weights,
        source,
        held_out,
        state,
        save_seconds,
        progress,
    ):
        check_objective(solver, config.objective)
        if len(images) < 1:
            raise BadValue("tuning needs at least one image, got none")
        self.predictor, self.schedule, self.solver, self.grid = predictor, schedule, solver, grid
        self.images, self.config, self.model, self.weights, self.source = images, config, model, weights, source
        self.times = torch.tensor(grid.times, dtype=torch.float64)
        self.noise = _noise(images, config.seed)
        self.setting = Setting(
            solver,
            schedule,
            predictor,
            config.objective,
            config.substeps,
            self.times,
            layout(solver, self.times, schedule),
            config.seed,
        )
        self.held_out, self.held_noise, self.judged = self._held_out(held_out)
        self.taus = [each.t for each in self.setting.evaluations]
        self.records: list[dict[str, Any]] = []
        self.stages = self._stages()
        self.done_stages, self.rows, self.elapsed = 0, [], 0.0
        self.losses: dict[int, tuple[float, float]] = {}
        self.partial: dict[str, Any] | None = None
        self.state, self.save_seconds, self.progress = Path(state) if state else None, save_seconds, progress
        self.begun = self.last_saved = time.monotonic()
        self.ticks = 0
        self._load()

    def run(self) -> TuneResult:
        sequential = self.config.strategy == "sequential"
        answers: list[Tensor] = []
        held_answers: list[Tensor] = []
        for number, group in enumerate(self.stages):
            if not sequential and number < self.done_stages:
                continue
            self._tell(group, "preparing states and targets")
            problem = self._problem(group, answers)
            held = self._problem(group, held_answers, gate=True) if sequential and self.config.gate else None
            if number >= self.done_stages:
                self._tune_stage(problem, group)
                if held:
                    self._gate([(held, group)])
                self.done_stages += 1
                self._save()
            if sequential:
                tau = self.taus[group.indices[0]]
                answers.append(problem.answer_at(tau))
                held_answers += [held.answer_at(tau)] if held else []
        if self.config.gate and not sequential:
            # Every step is judged with the tuned taus of the others, before any is refused.
            self._gate([(self._problem(group, [], gate=True), group) for group in self._sweep()])
        if self.state:
            self.state.unlink(missing_ok=True)
        return TuneResult(self._timing(), pd.DataFrame(self.rows, columns=list(HISTORY_COLUMNS)))

    def _held_out(self, images: Tensor | None) -> tuple[Tensor | None, Tensor | None, Setting]:
        """The gate's images, the noise on them, and what its problems share."""
        judged = replace(self.setting, objective="truncation")
        if not self.config.gate:
            return None, None, judged
        if self.solver.stochastic:
            raise BadValue(
                f"there is no gate for {self.solver.name}: it draws noise and has no truncation error; leave gate out"
            )
        if images is None or len(images) < 2:
            raise BadValue(
                "a gate judges by images that are held out: give at least 2 of them, other than those tuned on"
            )
        return images, _noise(images, derive_seed(self.config.seed, HELD_OUT_NOISE)), judged

    def _gate(self, held: list[tuple[Problem, _Group]]) -> None:
        """Judge the taus of some groups, and let those that are refused go back to t."""
        found = [(judge(problem, [self.taus[index] for index in group.indices]), group) for problem, group in held]
        for records, group in found:
            self.records += records
            for index, record in zip(group.indices, records, strict=True):
                self.taus[index] = self.taus[index] if record["kept"] else self.setting.evaluations[index].t

    def _sweep(self) -> list[_Group]:
        """What is tuned together: one evaluation after another, or all that run alike."""
        last = self.grid.steps - self.config.freeze_last
        groups: dict[Any, list[int]] = {}
        for index, each in enumerate(self.setting.evaluations):
            if each.step >= last:
                continue
            history = min(each.step, self.solver.history)
            stages = stages_of(self.setting.evaluations, each.step)
            options = repr(self.solver.part(each.step - history, history + 1, self.grid.steps - each.step - 1).options)
            alone = index if self.config.strategy == "sequential" else None
            groups.setdefault((alone, history, options, stages, each.stage), []).append(index)
        return [_Group(indices, key[-1]) for key, indices in groups.items()]

    def _stages(self) -> list[_Group]:
        """All that is done: one sweep, or several."""
        # Without history the states do not depend on the taus, and a second sweep would find the same again.
        again = self.config.strategy == "parallel" and self.solver.history
        return self._sweep() * (self.config.sweeps if again else 1)

    def _problem(self, group: _Group, answers: list[Tensor], gate: bool = False) -> Problem:
        """The problem of a group on the images that are tuned on, or on the gate's.

        Args:
            answers: of the evaluations before it (sequential only).
        """
        setting = self.judged if gate else self.setting
        images, noise = (self.held_out, self.held_noise) if gate else (self.images, self.noise)
        assert images is not None and noise is not None
        if self.config.strategy == "sequential":
            # x_T = alpha_T x_0 + sigma_T eps at the grid's first time.
            t = self.times[0]
            start = self.schedule.alpha(t).to(images.dtype).item() * images + self.schedule.sigma(t).item() * noise
            return sequential_problem(setting, group.indices[0], start, list(answers))
        steps = [setting.evaluations[index].step for index in group.indices]
        return parallel_problem(setting, steps, group.stage, images, noise, self.taus)

    def _tune_stage(self, problem: Problem, group: _Group) -> None:
        optimise = OPTIMISER_FUNCTIONS[self.config.optimiser]
        taus, rows = optimise(problem, self.config, watch=self._watch, resume=self.partial)
        for index, tau in zip(group.indices, taus.tolist(), strict=True):
            self.taus[index] = tau
        self.rows += rows
        if self.config.optimiser == "adam":
            # Its iterations have a batch each: untuned and tuned are compared on all the images.
            with torch.no_grad():
                pairs = zip(*(problem.losses(each).tolist() for each in (problem.t, taus)), strict=True)
            self.losses |= dict(zip(problem.steps, pairs, strict=True))
        self.partial = None

    def _watch(self, partial: dict[str, Any]) -> None:
        self.ticks += 1
        self.partial = partial or None
        # Saved before the progress is reported: whoever interrupts there loses nothing that was reported.
        if time.monotonic() - self.last_saved > self.save_seconds:
            self._save()
        self._tell(self.stages[self.done_stages], "tuning")

    def _tell(self, group: _Group, doing: str) -> None:
        if self.progress:
            first, last = (self.setting.evaluations[group.indices[end]].step + 1 for end in (0, -1))
            where = f"step {first}" if first == last else f"steps {first}-{last}"
            self.progress(self.ticks, self._total_ticks(), f"{doing}, {where} of {self.grid.steps}")

    def _total_ticks(self) -> int:
        each = self.config.iterations if self.config.optimiser == "adam" else SEARCH_TRIES
        return each * len(self.stages)

    def _fingerprint(self) -> str:
        """What must agree for a state file to be this tuning's."""
        content = _digest(self.images)
        parts = [
            self.model,
            self.weights,
            self.schedule.name,
            self.solver.name,
            self.solver.options,
            self.grid,
            asdict(self.config),
            content,
            _digest(self.held_out) if self.held_out is not None else None,
        ]
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def _save(self) -> None:
        self.last_saved = time.monotonic()
        if not self.state:
            return
        content = {
            "fingerprint": self._fingerprint(),
            "taus": self.taus,
            "done_stages": self.done_stages,
            "rows": self.rows,
            "partial": self.partial,
            "ticks": self.ticks,
            "elapsed": self._elapsed(),
            "records": self.records,
            "losses": self.losses,
        }
        with atomic_path(self.state) as temporary:
            torch.save(content, temporary)

    def _load(self) -> None:
        if not (self.state and self.state.exists()):
            return
        try:
            content = torch.load(self.state, weights_only=True)
        except Exception as error:  # zip, pickle and torch name no single type
            raise CorruptFile(f"{self.state} is no state of a tuning; delete it to begin again") from error
        if content["fingerprint"] != self._fingerprint():
            raise BadValue(
                f"{self.state} is the state of another tuning (other model, solver, grid, images or options); delete it"
            )
        self.taus, self.done_stages = content["taus"], content["done_stages"]
        self.rows, self.partial = content["rows"], content["partial"]
        self.elapsed, self.records, self.losses = content["elapsed"], content["records"], content.get("losses", {})
        # A search that was interrupted begins its stage again, and so does its count.
        self.ticks = content["ticks"] if self.partial else self.done_stages * self._total_ticks() // len(self.stages)

    def _elapsed(self) -> float:
        return self.elapsed + time.monotonic() - self.begun

    def _timing(self) -> Timing:
        losses = [pair for _, pair in sorted((_first_and_last(self.rows) | self.losses).items())]
        tuning = {
            **asdict(self.config),
            "images": len(self.images),
            "source": self.source,
            "seconds": round(self._elapsed(), 2),
            "loss_untuned": [first for first, _ in losses],
            "loss_tuned": [last for _, last in losses],
            **({"gated": self.records, "gate_images": len(self.held_out)} if self.held_out is not None else {}),
        }
        return Timing(
            name=self.config.name,
            taus=tuple(self.taus),
            times=tuple(each.t for each in self.setting.evaluations),
            model=self.model,
            schedule=self.schedule.name,
            solver=self.solver.name,
            options=self.solver.choices_made,
            grid=self.grid.name,
            grid_times=self.grid.times,
            tuning=tuning,
            provenance=provenance(),
            weights=self.weights,
        )


def _noise(images: Tensor, seed: int) -> Tensor:
    """The noise on images of a tuning, of their shape."""
    drawn = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    return drawn.to(images.device, images.dtype)


def _digest(images: Tensor) -> str:
    return hashlib.sha256(images.detach().cpu().numpy().tobytes()).hexdigest()


def _first_and_last(rows: Rows) -> dict[int, tuple[float, float]]:
    """For each tuned step the loss at tau = t and the lowest loss that was seen in its last sweep."""
    steps = sorted({row[0] for row in rows})
    result = {}
    for step in steps:
        mine = [row for row in rows if row[0] == step]
        last_sweep = mine[max(i for i, row in enumerate(mine) if row[1] == 0) :]
        result[step] = (last_sweep[0][2], min(row[2] for row in last_sweep))
    return result


# FOLDED tt_lib.tuning.tuner
# The gate: a step keeps its tuned tau only if that is better than tau = t beyond noise, on images it was not tuned on.
#
# Whatever the objective was, better means a lower truncation error of the step: the squared distance of its end from a fine
# solution's (see :mod:`tt_lib.tuning.objectives`). The images and the noise on them are held out. Each image is tried with
# both times, and a one-sided paired t-test over the images asks whether the mean of the differences lies below 0, at the level
# :data:`LEVEL` for each evaluation by itself (no correction for their number). A tau that is refused goes back to t.
#


LEVEL = 0.05
HELD_OUT_NOISE = 777_777
"""Counter of :func:`tt_lib.noise.derive_seed` for the noise on held-out images."""


@torch.no_grad()
def judge(problem: Problem, taus: Sequence[float]) -> list[dict[str, Any]]:
    """A record for each of a problem's S evaluations: whether its tau may stay, and why.

    Args:
        problem: of the truncation objective on held-out images.
        taus: S tuned times.

    Returns:
        ``evaluation`` (its index in the run), ``t``, ``tau``, ``loss_untuned`` and ``loss_tuned`` (means over the images),
        ``p`` of the test (1 where the two times are one) and ``kept``.
    """
    tuned = problem.each(torch.tensor(taus, dtype=torch.float64)).double().cpu()
    untuned = problem.each(problem.t).double().cpu()
    records = []
    for evaluation, t, tau, with_t, with_tau in zip(
        problem.steps, problem.t.tolist(), taus, untuned, tuned, strict=True
    ):
        p = lower(with_tau, with_t)
        records.append(
            {
                "evaluation": evaluation,
                "t": t,
                "tau": tau,
                "loss_untuned": float(with_t.mean()),
                "loss_tuned": float(with_tau.mean()),
                "p": p,
                "kept": p < LEVEL,
            }
        )
    return records


def lower(a: Tensor, b: Tensor) -> float:
    """p of the one-sided paired t-test that the mean of ``a`` [P] lies below that of ``b`` [P]; 1 where they are equal."""
    if torch.equal(a, b):
        return 1.0
    p = float(ttest_rel(a.numpy(), b.numpy(), alternative="less").pvalue)
    return 1.0 if math.isnan(p) else p
