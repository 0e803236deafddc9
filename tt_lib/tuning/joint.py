"""All times at once, judged by the finished samples.

The objectives of :mod:`tt_lib.tuning.objectives` judge one step; what is wanted are good samples. Here the loss is of a whole
timing, ``L(tau_1 .. tau_K)``, by what its samples are like (:mod:`tt_lib.tuning.joint`):

- ``frechet``: the Fréchet distance of their features from those of the training images. It is the very metric that is measured
  in the end, so it shows what tuned times can do at best. The samples that it tunes on are never measured, but a gain in these
  features only says little: judge it in others, too.
- ``end``: the distance of each sample from the end of a fine run from the same noise.

Watson et al. 2022 (arXiv 2202.05830) find fast samplers by differentiating such a loss through the run. A handful of scalars
needs no gradient: SciPy's COBYQA (Ragonneau 2022, "Model-based derivative-free optimization methods and software") fits a
quadratic model to the losses of the ratios tau / t that it has tried, within a trust region. CMA-ES, the other choice, needs more
tries and sees farther.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import cma
import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize
from torch import Tensor

from tt_lib.errors import BadValue, choose
from tt_lib.files import read_json, write_json
from tt_lib.metrics.evaluate import fingerprint, sample_statistics
from tt_lib.metrics.features import Features
from tt_lib.metrics.frechet import frechet_distance
from tt_lib.metrics.statistics import FeatureStatistics
from tt_lib.noise import StartNoise
from tt_lib.rows import provenance
from tt_lib.sampling import FINE_STEPS, Sampler, batches, fine_end
from tt_lib.solvers.layout import layout
from tt_lib.tuning.config import check_freeze_last, check_range, full_name
from tt_lib.tuning.tuner import HISTORY_COLUMNS, Progress, TuneResult

END = "end"
JOINT_OBJECTIVES = ("frechet", END)
JOINT = "joint"
JOINT_OPTIMISERS = ("cobyqa", "cma-es")
FIRST_SEED = 2_000_000_000
"""Samples for tuning have the seeds from here on, so that none is also measured."""
RADIUS, SHRINK, SMALLEST = 0.1, 0.7, 0.01
"""How far from the best ratios the first round of the search looks, and by how much less far each later one, down to the last."""
LINE_TRIES = 20
"""Tries for the straight line, where they are a small part of all."""
PRECISION = 0.02
"""A round ends when it looks no farther than this share of the radius that it began with."""
Loss = Callable[[tuple[float, ...]], float]
Row = tuple[int, int, float, float, float]


@dataclass(frozen=True)
class JointConfig:
    """The choices of a joint tuning.

    Attributes:
        objective: ``frechet`` or ``end``, see the module's text.
        samples: samples that judge one timing.
        bounds: smallest and largest tau / t.
        freeze_last: how many of the last steps keep tau = t. (0: unlike the objectives of single steps, this one can
            judge the last step, too.)
        tries: timings judged for each step that may move, at most.
        seed: added to the seeds of the samples, and the seed of the optimiser.
        optimiser: ``cobyqa`` or ``cma-es``, see :func:`search`.
    """

    objective: str = "frechet"
    samples: int = 1000
    bounds: tuple[float, float] = (0.5, 1.5)
    freeze_last: int = 0
    tries: int = 120
    seed: int = 0
    optimiser: str = "cobyqa"

    def __post_init__(self) -> None:
        choose("objective of a joint tuning", self.objective, JOINT_OBJECTIVES)
        choose("optimiser of a joint tuning", self.optimiser, JOINT_OPTIMISERS)
        if self.samples < 2:
            raise BadValue(f"a timing is judged by at least 2 samples, got {self.samples}")
        check_range("bounds", self.bounds)
        check_freeze_last(self.freeze_last)
        if self.tries < 3:
            raise BadValue(f"a search needs at least 3 tries for each step, got {self.tries}")

    @property
    def name(self) -> str:
        """See :func:`tt_lib.tuning.config.full_name`."""
        return full_name(f"{self.objective}-{JOINT}", self.freeze_last, JointConfig.freeze_last)


class _Trials:
    """The loss as a function of the ratios tau / t of the steps that may move, and what was found of it."""

    def __init__(
        self, loss: Loss, times: Sequence[float], tuned: int, bounds: tuple[float, float], t_min: float
    ) -> None:
        self.loss, self.times, self.tuned, self.bounds, self.t_min = loss, times, tuned, bounds, t_min
        self.rows: list[Row] = []
        self.best: tuple[float, tuple[float, ...], list[float]] = (math.inf, tuple(times), [1.0] * tuned)
        """The lowest loss, with its taus and ratios."""

    def __call__(self, ratios: Sequence[float]) -> float:
        # A frozen step's own time stays as it is, wherever it lies.
        moved = (min(1.0, max(self.t_min, t * float(r))) for t, r in zip(self.times[: self.tuned], ratios, strict=True))
        taus = (*moved, *self.times[self.tuned :])
        found = self.loss(taus)
        attempt = self.rows[-1][1] + 1 if self.rows else 0
        self.rows.extend((step, attempt, found, taus[step], self.times[step]) for step in range(max(self.tuned, 1)))
        if found < self.best[0]:
            self.best = (found, taus, list(ratios))
        return found


def search(
    loss: Loss,
    times: Sequence[float],
    tuned: int,
    bounds: tuple[float, float],
    t_min: float,
    tries: int,
    optimiser: str = "cobyqa",
    seed: int = 0,
) -> tuple[tuple[float, ...], list[Row]]:
    """Search for the ratios tau / t of the lowest loss, from 1 on.

    Args:
        loss: of all K taus.
        times: the K nominal times.
        tuned: the first so many steps may move.
        bounds: smallest and largest tau / t.
        t_min: the smallest time that the network knows; the largest is 1.
        tries: losses asked for at most, after the untuned one's.
        optimiser: one of :data:`JOINT_OPTIMISERS`.
        seed: of the optimiser, where it draws numbers.

    Returns:
        The best taus, and a row (step, try, loss, tau, t) for each try and each step that may move; the first try is
        the untuned one. No timing with a higher loss than the untuned one is returned.
    """
    judge = _Trials(loss, times, tuned, bounds, t_min)
    judge([1.0] * tuned)
    if optimiser == "cma-es":
        _evolve(judge, tries, seed)
    else:
        _descend_thrice(judge, tries)
    return judge.best[1], judge.rows


def _descend_thrice(judge: _Trials, tries: int) -> None:
    """COBYQA. The loss has several minima, so there are three descents, each with a third of the tries: from the best straight line
    of ratios over the steps (its two ends decide it), from ratio 1, and from the better of what these two found. A descent goes in
    rounds from the best ratios found so far; a round that begins with a wide view again finds its way out of many minima.
    """
    tuned, share = judge.tuned, tries

    def rounds(start: list[float], most: int) -> None:
        radius = RADIUS
        # A round begins with a model of the loss from 2 K + 1 tries; fewer are no use.
        while tuned and most > 2 * tuned:
            result = _descend(judge, start, judge.bounds, radius, most)
            most -= result.nfev
            if radius <= SMALLEST:
                break
            start, radius = list(result.x), max(radius * SHRINK, SMALLEST)

    if _line_pays(judge, tries):
        share = tries // 3
        line, spent = _best_line(judge)
        rounds(line, share - spent)
        rounds([1.0] * tuned, share)
    rounds(judge.best[2], share)


def _evolve(judge: _Trials, tries: int, seed: int) -> None:
    """CMA-ES (Hansen & Ostermeier 2001, "Completely derandomized self-adaptation in evolution strategies"), by its author's package.

    It looks at a cloud of ratios at once and learns the cloud's shape, so that small minima do not hold it. It begins around the
    best straight line of ratios, with generations twice as large as usual; when one run has come to its end, the next begins around
    the best ratios so far.
    """
    tuned = judge.tuned
    if not tuned:
        return
    draw = np.random.default_rng(seed)
    generation = 2 * (4 + int(3 * math.log(tuned)))
    start, spent = _best_line(judge) if _line_pays(judge, tries) else ([1.0] * tuned, 0)
    while tries - spent >= generation:
        strategy = cma.CMAEvolutionStrategy(
            start,
            RADIUS,
            # Its own numbers: NumPy's global generator stays as it is.
            {
                "bounds": list(judge.bounds),
                "popsize": generation,
                "seed": math.nan,
                "randn": lambda *size: draw.standard_normal(size),
                "verbose": -9,
            },
        )
        while not strategy.stop() and tries - spent >= generation:
            cloud = strategy.ask()
            strategy.tell(cloud, [judge(ratios) for ratios in cloud])
            spent += generation
        start = judge.best[2]


def _descend(
    judged: Callable[[Sequence[float]], float],
    start: list[float],
    bounds: tuple[float, float],
    radius: float,
    most: int,
) -> Any:
    return minimize(
        judged,
        start,
        method="COBYQA",
        bounds=[bounds] * len(start),
        options={"maxfev": most, "initial_tr_radius": radius, "final_tr_radius": radius * PRECISION},
    )


def _line_pays(judge: _Trials, tries: int) -> bool:
    """Whether a straight line is simpler than the ratios, and its tries are a small part of all."""
    return judge.tuned > 2 and tries >= 12 * LINE_TRIES


def _best_line(judge: _Trials) -> tuple[list[float], int]:
    """The best ratios that lie on a straight line over the steps, and the tries that finding them took."""

    def ratios(ends: Sequence[float]) -> list[float]:
        first, last = ends
        return np.linspace(first, last, judge.tuned).tolist()

    line = _descend(lambda ends: judge(ratios(ends)), [1.0, 1.0], judge.bounds, RADIUS, LINE_TRIES)
    return ratios(line.x), line.nfev


def tune_joint(
    sampler: Sampler,
    features: Features | None,
    reference: FeatureStatistics | None,
    config: JointConfig | None = None,
    *,
    batch: int = 500,
    state: Path | None = None,
    progress: Progress | None = None,
) -> TuneResult:
    """Tune all conditioning times of a sampler by what its samples are like.

    Args:
        sampler: untuned. A solver that draws noise draws the same for every timing.
        features, reference: what the Fréchet distance is taken in and from; the objective ``end`` needs neither.
        batch: samples at a time.
        state: file for the losses found so far; an interrupted run goes on from it. It is removed at the end.
        progress: called with (timings judged, of all, message).

    Raises:
        BadValue: ``state`` belongs to another tuning, a Fréchet distance is wanted without features, or the end of a fine run for
            a solver that draws noise.
        CorruptFile: ``state`` is damaged.
    """
    config = config or JointConfig()
    grid_times = torch.tensor(sampler.grid.times, dtype=torch.float64)
    evaluations = layout(sampler.solver, grid_times, sampler.schedule)
    times = tuple(each.t for each in evaluations)
    tuned = sum(each.step < sampler.grid.steps - config.freeze_last for each in evaluations)
    seeds = range(FIRST_SEED + config.seed, FIRST_SEED + config.seed + config.samples)
    judge = _judge(config, features, reference, batch, StartNoise(sampler.shape, sampler.device))
    untuned = sampler.make_timing(config.name, times, times)
    known = _Known(state, [*judge.identity(sampler, seeds), asdict(config)])
    total, done = 1 + tuned * config.tries, 0

    @torch.no_grad()
    def loss(taus: tuple[float, ...]) -> float:
        nonlocal done
        if taus not in known.losses:
            trial = replace(sampler, timing=replace(untuned, taus=taus))
            known.add(taus, judge(trial, seeds))
        done += 1
        if progress:
            progress(done, total, f"timing {done} of at most {total}")
        return known.losses[taus]

    taus, rows = search(
        loss, times, tuned, config.bounds, sampler.schedule.t_min, tuned * config.tries, config.optimiser, config.seed
    )
    losses = [row[2] for row in rows]
    tuning: dict[str, Any] = {
        "strategy": JOINT,
        **asdict(config),
        **judge.facts,
        "first_seed": seeds.start,
        "source": "samples",
        "seconds": round(known.seconds(), 2),
        "loss_untuned": [losses[0]],
        "loss_tuned": [min(losses)],
    }
    known.remove()
    timing = replace(untuned, taus=taus, tuning=tuning, provenance=provenance())
    return TuneResult(timing, pd.DataFrame(rows, columns=list(HISTORY_COLUMNS)))


def _judge(
    config: JointConfig, features: Features | None, reference: FeatureStatistics | None, batch: int, start: StartNoise
) -> Judge:
    if config.objective == END:
        return EndJudge(batch, start)
    if features is None or reference is None:
        raise BadValue(f"{config.name} is tuned by a Fréchet distance: give the features and their reference")
    return FrechetJudge(features, reference, batch, start)


class _Known:
    """The losses found so far, in a file: the search is deterministic, so a resumed one asks for the same timings again."""

    def __init__(self, path: Path | None, parts: list[Any]) -> None:
        self.path, self.elapsed = path, 0.0
        self.losses: dict[tuple[float, ...], float] = {}
        self.mark = hashlib.sha256(repr(parts).encode()).hexdigest()
        self.begun = time.monotonic()
        if path is None or not path.exists():
            return
        content = read_json(path)
        if not isinstance(content, dict) or content.get("fingerprint") != self.mark:
            raise BadValue(
                f"{path} is the state of another tuning (other model, solver, grid, features or options); delete it"
            )
        self.losses = {tuple(taus): value for taus, value in content["losses"]}
        self.elapsed = content["elapsed"]

    def add(self, taus: tuple[float, ...], value: float) -> None:
        self.losses[taus] = value
        if self.path:
            losses = [[list(key), loss] for key, loss in self.losses.items()]
            write_json(self.path, {"fingerprint": self.mark, "elapsed": self.seconds(), "losses": losses})

    def seconds(self) -> float:
        """Spent so far, interrupted runs included."""
        return self.elapsed + time.monotonic() - self.begun

    def remove(self) -> None:
        if self.path:
            self.path.unlink(missing_ok=True)


# FOLDED tt_lib.tuning.joint
# What a joint tuning is judged by: one number for the samples of a whole run, the lower the better.


class Judge(Protocol):
    """Judges a sampler by the samples that it makes of some seeds.

    Attributes:
        facts: for the timing's provenance.
    """

    facts: dict[str, Any]

    def __call__(self, trial: Sampler, seeds: range) -> float: ...

    def identity(self, sampler: Sampler, seeds: range) -> list[Any]:
        """What the losses depend on, beside the taus."""
        ...


class FrechetJudge:
    """``FD(features of the samples, features of the training images)``.

    Args:
        features, reference: what the distance is taken in and from.
        batch: samples at a time.
        start: keeps the noise.
    """

    def __init__(self, features: Features, reference: FeatureStatistics, batch: int, start: StartNoise) -> None:
        self.features, self.reference, self.batch, self.start = features, reference, batch, start
        self.facts = {"features": features.name}

    def __call__(self, trial: Sampler, seeds: range) -> float:
        found, _ = sample_statistics(trial, self.features, seeds, batch=self.batch, start=self.start)
        return frechet_distance(found, self.reference)

    def identity(self, sampler: Sampler, seeds: range) -> list[Any]:
        digest = hashlib.sha256(self.reference.mean.cpu().numpy().tobytes()).hexdigest()
        return [fingerprint(sampler, self.features, seeds), digest]


class EndJudge:
    """``E |x - x*|^2``, mean over pixels, where x* is the end of a fine run from the same noise.

    The truncation error of the whole run: what the objectives of single steps hope to lower by lowering each step's.

    Args:
        batch: samples at a time.
        start: keeps the noise.
        steps: of the fine run.
    """

    def __init__(self, batch: int, start: StartNoise, steps: int = FINE_STEPS) -> None:
        self.batch, self.start, self.steps = batch, start, steps
        self.facts = {"fine_steps": steps}
        self.ends: dict[range, Tensor] = {}

    def __call__(self, trial: Sampler, seeds: range) -> float:
        if trial.solver.stochastic:
            raise BadValue(
                f"cannot tune {trial.solver.name} by the end of a fine run: it draws noise and follows no trajectory; "
                "choose --objective consistency, or frechet"
            )
        total = 0.0
        for part in batches(seeds.start, len(seeds), self.batch):
            start = self.start(part)
            if part not in self.ends:
                self.ends[part] = fine_end(trial, start, self.steps)
            total += float((trial(part, start=start).x - self.ends[part]).square().flatten(1).mean(1).sum())
        return total / len(seeds)

    def identity(self, sampler: Sampler, seeds: range) -> list[Any]:
        parts = [sampler.model, sampler.weights, sampler.schedule.name, sampler.solver.name, sampler.solver.options]
        return [*parts, sampler.grid.times, self.steps, seeds.start, len(seeds)]
