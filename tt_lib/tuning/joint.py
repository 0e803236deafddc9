"""All times at once, by the finished samples.

The objectives of :mod:`tt_lib.tuning.objectives` are of one step; what is wanted are good samples. Here the loss is of
a whole timing, ``L(tau_1 .. tau_K)``, of the samples that it makes:

- ``frechet``: the Fréchet distance of their features from those of the training images. It is the very metric that is
  measured in the end, so it shows what tuned times can do at best. The samples that it tunes on are never measured, but
  a gain in these features only says little: measure it in others, too.
- ``end``: ``E |x - x*|^2``, mean over pixels, where x* is the end of a converged solution from the same noise. It is
  the truncation error of the whole run, which the objectives of single steps hope to lower by lowering each step's.

Watson et al. 2022 (arXiv 2202.05830) find fast samplers by differentiating such a loss through the run. A handful of
scalars needs no gradient: SciPy's COBYQA (Ragonneau 2022, "Model-based derivative-free optimization methods and
software") fits a quadratic model to the losses of the ratios tau / t that it has tried, within a trust region. CMA-ES
(Hansen & Ostermeier 2001, "Completely derandomized self-adaptation in evolution strategies"), the other choice, needs
more tries and sees farther.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cma
import numpy as np
import pandas as pd
import torch
from scipy.optimize import OptimizeResult, minimize

from tt_lib.errors import BadValue, CorruptFile, NotFinite, check_range, check_types, choose
from tt_lib.files import read_json, write_json
from tt_lib.metrics.evaluate import fingerprint, sample_statistics
from tt_lib.metrics.frechet import frechet_distance
from tt_lib.metrics.reference import Metric
from tt_lib.noise import JOINT_FIRST_SEED, StartNoise, check_seeds
from tt_lib.rows import provenance
from tt_lib.sampling import FINE_STEPS, Progress, Sampler, batches, fine_sampler
from tt_lib.solvers.registry import Solver
from tt_lib.tuning.config import check_movable
from tt_lib.tuning.tuner import HISTORY_COLUMNS, TuneResult

END = "end"
JOINT_OBJECTIVES = ("frechet", END)
JOINT = "joint"
JOINT_OPTIMISERS = ("cobyqa", "cma-es")
BOUNDS = (0.5, 1.5)
"""Smallest and largest tau / t."""
RADIUS, SHRINK, SMALLEST = 0.1, 0.7, 0.01
"""How far from the best ratios the first round of COBYQA looks, the factor for each later one, and the last radius."""
LINE_TRIES = 20
"""Tries for the straight line, where they are a small part of all."""
PRECISION = 0.02
"""A round ends when it looks no farther than this share of the radius that it began with."""
Taus = tuple[float, ...]
Loss = Callable[[Taus], float]
SamplesLoss = Callable[[Sampler, range], float]
"""The loss of a sampler by its samples of some seeds."""


@dataclass(frozen=True)
class JointConfig:
    """The choices of a joint tuning.

    Attributes:
        objective: ``frechet`` or ``end``, see the module's text.
        samples: samples that the loss of one timing is taken from.
        freeze_last: how many of the last steps keep tau = t. (0: unlike the objectives of single steps, this loss sees
            what the last step does.)
        tries: timings tried for each step that may move, at most.
        seed: added to the seeds of the samples, and the seed of the optimiser; ``seed + samples`` is at most 10^9.
        optimiser: ``cobyqa`` or ``cma-es``, see :func:`search`.

    Raises:
        BadValue: naming the choice and the value.
    """

    objective: str = "frechet"
    samples: int = 1000
    freeze_last: int = 0
    tries: int = 120
    seed: int = 0
    optimiser: str = "cobyqa"

    def __post_init__(self) -> None:
        check_types(self)
        choose("objective of a joint tuning", self.objective, JOINT_OBJECTIVES)
        choose("optimiser of a joint tuning", self.optimiser, JOINT_OPTIMISERS)
        for name, least in (("samples", 2), ("freeze_last", 0), ("tries", 3)):
            check_range(f"{name} of a joint tuning", getattr(self, name), least)
        check_seeds(self.seed, self.samples)

    @property
    def name(self) -> str:
        """Objective and strategy, as timings are called by."""
        return f"{self.objective}-{JOINT}"


def check_joint(solver: Solver, steps: int, config: JointConfig) -> None:
    """Raise :class:`BadValue` for a tuning that means nothing for the solver, or moves none of the grid's steps."""
    check_movable(steps, config.freeze_last)
    if solver.stochastic and config.objective == END:
        raise BadValue(
            f"cannot tune {solver.name} by the end of a converged solution: it draws noise and follows no "
            "trajectory; choose the objective consistency, or frechet"
        )


def tune_joint(
    sampler: Sampler,
    metric: Metric | None,
    config: JointConfig | None = None,
    *,
    batch: int = 500,
    state: Path | None = None,
    progress: Progress | None = None,
) -> TuneResult:
    """Tune all conditioning times of a sampler by the samples that it makes.

    Args:
        sampler: untuned. A solver that draws noise draws the same for every timing.
        metric: what the Fréchet distance is taken in and from; the objective ``end`` needs none.
        batch: samples at a time.
        state: file for the losses computed so far; an interrupted run goes on from it. Whoever has saved the timing
            removes it.
        progress: called with (timings tried, of all, message).

    Raises:
        BadValue: ``state`` belongs to another tuning, a Fréchet distance without a metric, the objective ``end`` for a
            solver that draws noise, no step that may move, too few tries for CMA-ES, or a metric of images of another
            shape.
        CorruptFile: ``state`` is damaged.
        NotFinite: a loss is NaN or infinite.
    """
    config = config or JointConfig()
    check_joint(sampler.solver, sampler.grid.steps, config)
    times = tuple(each.t for each in sampler.evaluations)
    tuned = sum(each.step < sampler.grid.steps - config.freeze_last for each in sampler.evaluations)
    if config.optimiser == "cma-es" and tuned * config.tries < _generation(tuned):
        least = -(-_generation(tuned) // tuned)
        raise BadValue(
            f"tries = {config.tries} for each of {tuned} times are fewer than one generation of cma-es, "
            f"{_generation(tuned)}; give tries={least} or more, or take optimiser=cobyqa"
        )
    first_seed = JOINT_FIRST_SEED + config.seed
    seeds = range(first_seed, first_seed + config.samples)
    start = StartNoise(sampler.shape, sampler.device)
    if config.objective == END:
        samples_loss, identity, facts = _end_loss(sampler, batch, start)
    elif metric is None:
        raise BadValue(f"{config.name} is tuned by a Fréchet distance: give the metric")
    else:
        samples_loss, identity, facts = _frechet_loss(sampler, metric, seeds, batch, start)
    untuned = sampler.make_timing(config.name, times)
    losses = _Losses(state, [*identity, first_seed, asdict(config)])
    total, done = 1 + tuned * config.tries, 0

    @torch.no_grad()
    def loss(taus: Taus) -> float:
        nonlocal done
        if taus not in losses.of:
            value = samples_loss(replace(sampler, timing=replace(untuned, taus=taus)), seeds)
            if not math.isfinite(value):
                raise NotFinite(f"the loss of the taus {taus} is {value}; check the network's weights and its answers")
            losses.add(taus, value)
        done += 1
        if progress:
            progress(done, total, f"timing {done} of at most {total}")
        return losses.of[taus]

    search = Search(loss, times, tuned, BOUNDS, sampler.schedule.t_min)
    search.run(tuned * config.tries, config.optimiser, config.seed)
    tuning: dict[str, Any] = {
        "strategy": JOINT,
        **asdict(config),
        **facts,
        "first_seed": first_seed,
        "source": "samples",
        "seconds": round(losses.seconds(), 2),
        "loss_untuned": [losses.of[times]],
        "loss_tuned": [search.lowest],
    }
    timing = replace(untuned, taus=search.best, tuning=tuning, provenance=provenance())
    return TuneResult(timing, pd.DataFrame(search.rows, columns=list(HISTORY_COLUMNS)))


def _frechet_loss(
    sampler: Sampler, metric: Metric, seeds: range, batch: int, start: StartNoise
) -> tuple[SamplesLoss, list[Any], dict[str, Any]]:
    """The loss, what it depends on beside the taus, and facts for the timing."""
    metric.require_shape(sampler.shape, sampler.model or "the sampler")

    def loss(trial: Sampler, seeds: range) -> float:
        statistics = sample_statistics(trial, metric.features, seeds, batch=batch, start=start)
        return frechet_distance(statistics, metric.reference)

    digest = hashlib.sha256(metric.reference.mean.cpu().numpy().tobytes()).hexdigest()
    facts = {"features": metric.features.name, "dataset": metric.dataset}
    return loss, [fingerprint(sampler, metric.features, seeds), digest], facts


def _end_loss(sampler: Sampler, batch: int, start: StartNoise) -> tuple[SamplesLoss, list[Any], dict[str, Any]]:
    """The loss, what it depends on beside the taus, and facts for the timing."""
    fine, ends = fine_sampler(sampler, FINE_STEPS), {}

    def loss(trial: Sampler, seeds: range) -> float:
        total = 0.0
        for part in batches(seeds.start, len(seeds), batch):
            x = start(part)
            if part not in ends:
                ends[part] = fine(part, start=x).x
            total += float((trial(part, start=x).x - ends[part]).square().flatten(1).mean(1).sum())
        return total / len(seeds)

    identity = [sampler.model, sampler.weights, sampler.schedule.name, sampler.solver.name, sampler.solver.options]
    return loss, [*identity, sampler.grid.times, FINE_STEPS], {"fine_steps": FINE_STEPS}


class Search:
    """A search for the ratios tau / t of the lowest loss, from 1 on.

    Args:
        loss: of all K taus.
        times: the K nominal times.
        tuned: the first so many times may move, at least one.
        bounds: smallest and largest tau / t.
        t_min: the smallest time at which the network can be evaluated; the largest is 1.

    Attributes:
        best, lowest: the taus of the lowest loss, and the loss: never above the untuned one's.
        rows: (evaluation, try, loss, tau, t) for each try and each evaluation that may move; try 0 is untuned.
    """

    def __init__(
        self, loss: Loss, times: Sequence[float], tuned: int, bounds: tuple[float, float], t_min: float
    ) -> None:
        self.loss, self.times, self.tuned, self.bounds, self.t_min = loss, tuple(times), tuned, bounds, t_min
        self.rows: list[tuple[int, int, float, float, float]] = []
        self.lowest, self.best, self.ratios = math.inf, self.times, [1.0] * tuned
        self.count = 0

    def run(self, tries: int, optimiser: str = "cobyqa", seed: int = 0) -> None:
        """Try the untuned times, and at most ``tries`` more.

        Args:
            optimiser: one of :data:`JOINT_OPTIMISERS`.
            seed: of the optimiser, where it draws numbers.
        """
        self(self.ratios)
        if optimiser == "cma-es":
            self._evolve(tries, seed)
        else:
            self._descend_thrice(tries)

    def __call__(self, ratios: Sequence[float]) -> float:
        """Try some ratios."""
        # A frozen step's own time stays as it is, wherever it lies.
        moved = (min(1.0, max(self.t_min, t * float(r))) for t, r in zip(self.times[: self.tuned], ratios, strict=True))
        taus = (*moved, *self.times[self.tuned :])
        loss = self.loss(taus)
        self.rows += [(k, self.count, loss, taus[k], self.times[k]) for k in range(self.tuned)]
        self.count += 1
        if loss < self.lowest:
            self.lowest, self.best, self.ratios = loss, taus, [float(r) for r in ratios]
        return loss

    def _descend_thrice(self, tries: int) -> None:
        """COBYQA. The loss has several minima, so there are three descents, each with a third of the tries: from the
        best straight line of ratios over the steps, from ratio 1, and from the better of what these two reached.
        """
        share = tries
        if self._line_pays(tries):
            share = tries // 3
            line, spent = self._best_line()
            self._rounds(line, share - spent)
            self._rounds([1.0] * self.tuned, share)
        self._rounds(self.ratios, share)

    def _rounds(self, start: list[float], tries: int) -> None:
        """A descent in rounds: one that begins at its best ratios with a wide view again leaves many minima."""
        radius = RADIUS
        # A round begins with a model of the loss from 2 K + 1 tries; fewer are no use.
        while tries > 2 * self.tuned:
            result = self._descend(self, start, radius, tries)
            tries -= result.nfev
            if radius <= SMALLEST:
                break
            start, radius = list(result.x), max(radius * SHRINK, SMALLEST)

    def _descend(
        self, loss: Callable[[Any], float], start: Sequence[float], radius: float, tries: int
    ) -> OptimizeResult:
        options = {"maxfev": tries, "initial_tr_radius": radius, "final_tr_radius": radius * PRECISION}
        return minimize(loss, start, method="COBYQA", bounds=[self.bounds] * len(start), options=options)

    def _line_pays(self, tries: int) -> bool:
        """Whether a straight line is simpler than the ratios, and its tries are a small part of all."""
        return self.tuned > 2 and tries >= 12 * LINE_TRIES

    def _best_line(self) -> tuple[list[float], int]:
        """The best ratios on a straight line over the steps, and the tries that they took; its ends decide the line."""

        def line(ends: Sequence[float]) -> list[float]:
            return np.linspace(ends[0], ends[1], self.tuned).tolist()

        result = self._descend(lambda ends: self(line(ends)), [1.0, 1.0], RADIUS, LINE_TRIES)
        return line(result.x), result.nfev

    def _evolve(self, tries: int, seed: int) -> None:
        """CMA-ES, by its author's package: a cloud of ratios that learns its shape, and leaves small minima.

        It begins around the best straight line, with generations twice as large as usual. When one run has come to its
        end, the next begins around the best ratios so far.
        """
        draw = np.random.default_rng(seed)
        generation = _generation(self.tuned)
        start, spent = self._best_line() if self._line_pays(tries) else (self.ratios, 0)
        options = {
            "bounds": list(self.bounds),
            "popsize": generation,
            "verbose": -9,
            # Its own numbers: NumPy's global generator stays as it is.
            "seed": math.nan,
            "randn": lambda *size: draw.standard_normal(size),
        }
        while tries - spent >= generation:
            strategy = cma.CMAEvolutionStrategy(start, RADIUS, options)
            while not strategy.stop() and tries - spent >= generation:
                cloud = strategy.ask()
                strategy.tell(cloud, [self(ratios) for ratios in cloud])
                spent += generation
            start = self.ratios


def _generation(tuned: int) -> int:
    """Timings in one generation of CMA-ES: twice as many as usual."""
    return 2 * (4 + int(3 * math.log(tuned)))


class _Losses:
    """The losses computed so far, in a file: the search is deterministic, so a resumed one asks for the same again."""

    def __init__(self, path: Path | None, parts: list[Any]) -> None:
        self.path, self.elapsed, self.begun = path, 0.0, time.monotonic()
        self.of: dict[Taus, float] = {}
        self.fingerprint = hashlib.sha256(repr(parts).encode()).hexdigest()
        if path is None or not path.exists():
            return
        try:
            content = read_json(path)
            other = content["fingerprint"] != self.fingerprint
            self.of = {tuple(map(float, taus)): float(value) for taus, value in content["losses"]}
            self.elapsed = float(content["elapsed"])
        except (CorruptFile, TypeError, KeyError, ValueError) as error:
            raise CorruptFile(f"{path} is no state of a joint tuning ({error}); delete it to begin again") from error
        if other:
            raise BadValue(
                f"{path} is the state of another tuning (other model, solver, grid, features or options); delete it"
            )

    def add(self, taus: Taus, value: float) -> None:
        self.of[taus] = value
        if self.path:
            losses = [[list(key), loss] for key, loss in self.of.items()]
            write_json(self.path, {"fingerprint": self.fingerprint, "elapsed": self.seconds(), "losses": losses})

    def seconds(self) -> float:
        """Spent so far, interrupted runs included."""
        return self.elapsed + time.monotonic() - self.begun
