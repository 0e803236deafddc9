"""Learning a whole sampler end to end: its grid, its conditioning times and a gain on each network output.

The scalars are moved by the gradient of one loss, the distance between a finished sample and the end of the converged
solution from the same noise. (Watson et al. 2022, arXiv 2202.05830, learn samplers by differentiating through them.
LD3, Tong et al. 2024, arXiv 2405.15506, learns grids and conditioning times.) Each knob is the identity where learning
begins, and bounded:

====== ============================================================================================
grid   the nodes t_0 > ... > t_(K-1), by the shares of their distances in lambda between t = 1 and the smallest level.
       The first and the last node move, too. x starts as the solver's start noise, whatever t_0 becomes. (Where
       alpha(1) = 0 lambda is infinite at t = 1: there a first node at 1 stays, and knobs begin from ``t_max``.)
timing the conditioning time of each evaluation, ``lambda(tau) = lambda(t) + 1.5 tanh(offset)``
gain   one factor on each network output, ``1 + 0.2 tanh(offset)``
====== ============================================================================================
"""

from __future__ import annotations

import hashlib
import math
import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tt_lib.engine import drive
from tt_lib.errors import BadValue, CorruptFile, NothingLearned, check_range, check_types
from tt_lib.files import atomic_path
from tt_lib.grids import LEARNED, Grid
from tt_lib.networks.feature_nets import FeatureNet
from tt_lib.noise import LEARN_FIRST_SEED, VALIDATION_FIRST_SEED, SampleNoise, derive_seed
from tt_lib.predictors import Predictor, predictor_of
from tt_lib.rows import provenance
from tt_lib.sampling import Progress, Sampler, batches, fine_sampler
from tt_lib.schedules import Schedule, along, float64
from tt_lib.solvers.registry import Solver
from tt_lib.timing import Timing

KNOBS = ("grid", "timing", "gain")
LARGEST_SHIFT, LARGEST_GAIN = 1.5, 0.2
"""How far lambda of tau may lie from lambda of t, and a gain from 1."""
SMALLEST_SHARE = 0.001
"""No two nodes lie closer than this share of the range of lambda, so that a grid always falls."""
CONVERGED_STEPS = 60
SEEDS = 100_000
"""Start noises that belong to one seed of learning."""
PAIRS_AT_ONCE = 500
"""Converged solutions that are made at a time where memory sets no bound."""
VALIDATIONS = 12
"""How often the loss on held-out noises is taken while learning."""
HISTORY = ("iteration", "loss", "validation")
_DAMAGE = (RuntimeError, AttributeError, KeyError, IndexError, TypeError, ValueError)
REMEMBERED = ("iteration", "seconds", "history", "best", "lowest", "start")


@dataclass(frozen=True)
class Distance:
    """How far two batches of samples are apart, sample by sample.

    Attributes:
        name: what a timing's provenance calls it.
        function: two batches [B, ...] to distances [B], differentiable in the first.
    """

    name: str
    function: Callable[[Tensor, Tensor], Tensor]


PIXELS = Distance("pixels", lambda x, y: (x - y).square().flatten(1).mean(1))
"""Mean squared difference. It serves any data, latents included."""


def feature_distance(network: FeatureNet, name: str) -> Distance:
    """The distance of a classifier's feature maps after each of its stages, as LPIPS takes it without learned weights.

    At each place of a map the vector of channels is divided by its norm; squared differences are summed over channels,
    averaged over places and summed over stages (Zhang et al. 2018, arXiv 1801.03924, eq. 1 with w = 1).

    Args:
        network: on the device of the samples; [B, C, H, W] in [-1, 1].
        name: of the features.
    """

    def function(x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            targets = network.maps(y)
        total = torch.zeros(len(x), device=x.device)
        for own, target in zip(network.maps(x), targets, strict=True):
            difference = nn.functional.normalize(own.float(), dim=1) - nn.functional.normalize(target.float(), dim=1)
            total = total + difference.square().sum(1).flatten(1).mean(1)
        return total

    return Distance(f"features of {name}", function)


@dataclass(frozen=True)
class LearnConfig:
    """The options of learning a sampler.

    Attributes:
        knobs: what is learned, of :data:`KNOBS`.
        noises: start noises to learn from, each with its converged solution.
        validation: other start noises, which decide which of the learned samplers is kept.
        batch: noises of one iteration; all of them where there are fewer.
        iterations: steps of Adam.
        lr: learning rate, which falls to 0 by a cosine.
        seed: of the noises, and of the order in which they come.

    Raises:
        BadValue: an option that is unknown or out of range.
    """

    knobs: tuple[str, ...] = ("grid", "timing")
    noises: int = 4096
    validation: int = 512
    batch: int = 128
    iterations: int = 300
    lr: float = 0.03
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [knob for knob in self.knobs if knob not in KNOBS]
        if unknown or not self.knobs or len(set(self.knobs)) < len(self.knobs):
            raise BadValue(f"knobs must be one or more of {', '.join(KNOBS)}, each once, got {list(self.knobs)}")
        object.__setattr__(self, "knobs", tuple(knob for knob in KNOBS if knob in self.knobs))
        check_types(self)
        most = {"noises": SEEDS, "validation": SEEDS, "batch": math.inf, "iterations": 1_000_000}
        for name, limit in most.items():
            check_range(f"{name} of learning", getattr(self, name), 1, limit)
        check_range("seed of learning", self.seed, 0, 999)
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise BadValue(f"lr of learning must be above 0, got {self.lr}")

    @property
    def name(self) -> str:
        """The name of the timing, such as ``learned-grid-timing``."""
        return "-".join([LEARNED, *self.knobs])


class Knobs:
    """The knobs of one solver on one grid.

    Args:
        grid: where learning begins.
        nfe: network evaluations of a run.
        schedule: of the network.
        names: which knobs move; the others keep what the grid and tau = t say.

    Attributes:
        parameters: for each knob float64 [K + 1] (grid) or [NFE].
    """

    def __init__(self, grid: Grid, nfe: int, schedule: Schedule, names: Sequence[str]) -> None:
        self.schedule, self.names, self.nfe = schedule, tuple(names), nfe
        self.start = grid.tensor()
        self.low, self.high = (float(schedule.lam(t)) for t in (schedule.t_max, schedule.t_min))
        # Where nothing of an image is left at t = 1, a run that begins there with noise alone does so all along: no
        # pipeline scales its noise for another time.
        self.from_noise = bool(self.start[0] == 1) and schedule.t_max < 1
        inner = schedule.lam(self.start[:-1]).clamp(min=self.low)
        edges = torch.cat([float64([self.low]), inner, float64([self.high])])
        shares = edges.diff() / (self.high - self.low)
        # A share of 0, where the grid begins at t = 1, would have no gradient: it begins at the smallest one.
        logits = (shares - SMALLEST_SHARE).clamp(min=SMALLEST_SHARE).log()
        begin = {"grid": logits, "timing": torch.zeros(nfe).double(), "gain": torch.zeros(nfe).double()}
        self.parameters = {name: nn.Parameter(value) for name, value in begin.items()}

    def moving(self) -> list[nn.Parameter]:
        """The parameters of the knobs that move."""
        return [self.parameters[name] for name in self.names]

    def times(self) -> Tensor:
        """The grid, float64 [K + 1]; its last time is the start grid's, clean data."""
        if "grid" not in self.names:
            return self.start
        logits = self.parameters["grid"]
        shares = SMALLEST_SHARE + (1 - len(logits) * SMALLEST_SHARE) * logits.softmax(0)
        lam = self.low + (self.high - self.low) * shares.cumsum(0)[:-1]
        nodes = self.schedule.time_of_lam(lam)
        if self.from_noise:
            nodes = torch.cat([self.start[:1], nodes[1:]])
        return torch.cat([nodes, self.start[-1:]])

    def tau(self, evaluation: int, t: Tensor) -> Tensor:
        """The conditioning time of an evaluation at nominal time ``t``, inside the range that the network knows."""
        if "timing" not in self.names:
            return t
        offset = self.parameters["timing"][evaluation]
        # An infinite lambda, where alpha is 0, would never move.
        lam = self.schedule.lam(t)
        lam = torch.where(lam.isinf(), self.low, lam) + LARGEST_SHIFT * offset.tanh()
        # Not torch.clamp: its slope at the ends is 0, and a tau that begins there would never move.
        lam = torch.where(lam > self.high, self.high, torch.where(lam < self.low, self.low, lam))
        return self.schedule.time_of_lam(lam)

    def gains(self) -> Tensor | None:
        """The factor on each answer, float64 [NFE]; None where they do not move."""
        if "gain" not in self.names:
            return None
        return 1 + LARGEST_GAIN * self.parameters["gain"].tanh()

    def predictor(self, predictor: Predictor) -> Predictor:
        """``predictor`` for one run, conditioned on the learned times."""
        count = iter(range(self.nfe))
        return lambda x, t, tau: predictor(x, t, self.tau(next(count), t))


@dataclass
class LearnResult:
    """What was learned.

    Attributes:
        timing: grid, conditioning times and gains, with their provenance; ``validation_start`` and
            ``validation_learned`` in its ``tuning`` are the losses on held-out noises.
        history: :data:`HISTORY` for each iteration; ``validation`` where it was taken.
    """

    timing: Timing
    history: pd.DataFrame


def check_learn(solver: Solver) -> None:
    """Raise :class:`BadValue` if a solver cannot be learned."""
    if solver.stochastic:
        raise BadValue(
            f"cannot learn {solver.name}: it draws noise, so no sample has a converged solution; learn a deterministic "
            "solver, such as unipc"
        )
    if solver.needs_gamma:
        raise BadValue(f"cannot learn {solver.name}: its gamma is measured for fixed times; learn another solver")


def converged_sampler(sampler: Sampler) -> Sampler:
    """The converged solution that learning aims at: 60 steps of DPM-Solver++(2M) on the Karras grid from t = 1."""
    return fine_sampler(sampler, CONVERGED_STEPS, start=1.0)


def noises_and_ends(
    converged: Sampler, first: int, count: int, batch: int, progress: Progress | None = None
) -> tuple[Tensor, Tensor]:
    """Start noises [count, ...] of the seeds from ``first`` on, and where ``converged`` ends from them."""
    noises, ends = [], []
    for seeds in batches(first, count, batch):
        noises.append(SampleNoise(seeds).start(converged.shape).to(converged.device))
        ends.append(converged(seeds, start=noises[-1]).x)
        if progress:
            progress(min(len(noises) * batch, count), count, "converged solutions")
    return torch.cat(noises), torch.cat(ends)


def learn(
    sampler: Sampler,
    distance: Distance = PIXELS,
    config: LearnConfig | None = None,
    *,
    converged: Sampler | None = None,
    known: dict[int, tuple[Tensor, Tensor]] | None = None,
    at_once: int = 0,
    facts: Mapping[str, Any] | None = None,
    state: Path | None = None,
    progress: Progress | None = None,
) -> LearnResult:
    """Learn a sampler end to end by gradient, with the network frozen: its grid, its timing, its gains.

    Args:
        sampler: untuned, deterministic, with a predictor that gradients pass through.
        distance: between a sample and its converged solution.
        converged: the sampler of the converged solutions; by default :func:`converged_sampler` of the same predictor.
        known: converged solutions that were made earlier, by their first seed; new ones are added.
        at_once: noises in one call of the network, to save memory: the gradients of an iteration are summed over the
            parts of its batch. 0 is the whole batch.
        facts: what else the result depends on. It is stored in the timing's ``tuning``, and only a run with the same
            facts resumes from ``state``.
        state: file for the state of an unfinished run, which resumes from it exactly. Remove it once the result is
            stored.
        progress: called with (iterations done, of all, message).

    Raises:
        BadValue: a sampler that draws noise or is tuned already, or a state of another run.
        CorruptFile: the state is damaged.
        NothingLearned: no learned sampler has a lower loss on held-out noises than the one it began with.
    """
    config = config or LearnConfig()
    check_learn(sampler.solver)
    if sampler.timing is not None or sampler.correction is not None:
        raise BadValue("learning begins from an untuned sampler; leave its timing or correction out")
    check_range("at_once", at_once, 0)
    converged = converged or converged_sampler(sampler)
    known = {} if known is None else known
    return _Learning(sampler, distance, config, converged, known, state, progress, at_once, dict(facts or {})).run()


class _Learning:
    """One run of :func:`learn`."""

    def __init__(
        self,
        sampler: Sampler,
        distance: Distance,
        config: LearnConfig,
        converged: Sampler,
        known: dict[int, tuple[Tensor, Tensor]],
        state: Path | None,
        progress: Progress | None,
        at_once: int,
        facts: dict[str, Any],
    ) -> None:
        self.sampler, self.distance, self.config, self.converged = sampler, distance, config, converged
        self.known, self.state, self.progress, self.facts = known, state, progress, facts
        self.at_once = min(at_once or config.batch, config.batch)
        self.pairs_at_once = at_once or PAIRS_AT_ONCE
        self.knobs = Knobs(sampler.grid, len(sampler.evaluations), sampler.schedule, config.knobs)
        self.optimizer = torch.optim.Adam(self.knobs.moving(), lr=config.lr)
        self.iteration, self.seconds = 0, 0.0
        self.history: list[tuple[int, float, float]] = []
        self.best = self.values()
        self.lowest, self.start = math.inf, math.nan

    def run(self) -> LearnResult:
        config, begun = self.config, time.monotonic()
        self.load()
        before = self.seconds
        x, y = self.pairs(LEARN_FIRST_SEED, config.noises, "noises to learn from")
        held_x, held_y = self.pairs(VALIDATION_FIRST_SEED, config.validation, "noises held out")
        if not self.history:
            self.start = self.validate(held_x, held_y, learned=False)
        every = max(1, config.iterations // VALIDATIONS)
        while self.iteration < config.iterations:
            rows = torch.randperm(config.noises, generator=self.generator())[: config.batch]
            loss, validation = self.step(x, y, rows), math.nan
            self.iteration += 1
            checked = self.iteration % every == 0 or self.iteration == config.iterations
            if checked:
                validation = self.validate(held_x, held_y)
                if validation < self.lowest:
                    self.lowest, self.best = validation, self.values()
            self.history.append((self.iteration, loss, validation))
            if checked:
                self.seconds = before + time.monotonic() - begun
                self.save()
            if self.progress:
                ratio = self.lowest / self.start
                message = f"loss {loss:.4g}, best on held-out noises {ratio:.2f} of the start's"
                self.progress(self.iteration, config.iterations, message)
        if not self.lowest < self.start:
            raise NothingLearned(
                f"learning {', '.join(config.knobs)} of {self.sampler.solver.spelling} came no nearer to the "
                f"converged solution than its start (loss on held-out noises {self.lowest:.4g}, start "
                f"{self.start:.4g}); try a lower lr, more iterations or another start grid"
            )
        return LearnResult(self.timing(), pd.DataFrame(self.history, columns=list(HISTORY)))

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self.config.seed, self.iteration))

    def values(self) -> dict[str, Tensor]:
        """The knobs' parameters as they are now."""
        return {name: value.detach().clone() for name, value in self.knobs.parameters.items()}

    def pairs(self, first: int, count: int, what: str) -> tuple[Tensor, Tensor]:
        """:func:`noises_and_ends` of this run's seeds."""

        def tell(done: int, of: int, _: str) -> None:
            if self.progress:
                self.progress(0, self.config.iterations, f"converged solutions of {what}: {done} of {of}")

        first += self.config.seed * SEEDS
        if first not in self.known or len(self.known[first][0]) < count:
            self.known[first] = noises_and_ends(self.converged, first, count, self.pairs_at_once, tell)
        x, y = self.known[first]
        return x[:count], y[:count]

    def losses(self, x: Tensor, y: Tensor, rows: Tensor, first: int, *, grad: bool, learned: bool = True) -> Tensor:
        """The distances [B] of samples from the converged solutions.

        Args:
            x, y: all noises and the ends of their converged solutions.
            rows: those of the batch [B].
            first: see :meth:`pairs`.
            learned: false for the sampler as it was before.
        """
        seeds = (first + self.config.seed * SEEDS + rows).tolist()
        x, y = x[rows.to(x.device)], y[rows.to(y.device)]
        sampler, knobs = self.sampler, self.knobs
        if not learned:
            knobs = Knobs(sampler.grid, knobs.nfe, sampler.schedule, ())
        predictor = predictor_of(sampler.predictor, seeds)
        predictor = _checkpointed(predictor) if grad else predictor
        times = knobs.times()
        start = along(sampler.schedule.scale(times[0]), x) * x
        solution = sampler.solver(start, times, sampler.schedule, None)
        return self.distance.function(drive(solution, knobs.predictor(predictor), gains=knobs.gains(), grad=grad).x, y)

    def step(self, x: Tensor, y: Tensor, rows: Tensor) -> float:
        """One step of Adam on these rows of noises and ends; the loss before it."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * 0.5 * (1 + math.cos(math.pi * self.iteration / self.config.iterations))
        self.optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for part in rows.split(self.at_once):
            loss = self.losses(x, y, part, LEARN_FIRST_SEED, grad=True).mean() * (len(part) / len(rows))
            loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(self.knobs.moving(), 1.0, error_if_nonfinite=True)
        self.optimizer.step()
        return total

    @torch.no_grad()
    def validate(self, x: Tensor, y: Tensor, learned: bool = True) -> float:
        """The mean distance on held-out noises."""
        parts = torch.arange(len(x)).split(self.at_once)
        losses = [self.losses(x, y, rows, VALIDATION_FIRST_SEED, grad=False, learned=learned) for rows in parts]
        return float(torch.cat(losses).double().mean())

    @torch.no_grad()
    def timing(self) -> Timing:
        """The best knobs as numbers."""
        config, sampler, knobs = self.config, self.sampler, self.knobs
        for name, value in self.best.items():
            knobs.parameters[name].copy_(value)
        name = LEARNED if "grid" in config.knobs else sampler.grid.name
        learned = replace(sampler, grid=Grid(name, tuple(knobs.times().tolist())))
        taus = [float(knobs.tau(k, float64(each.t))) for k, each in enumerate(learned.evaluations)]
        tuning = {
            "objective": "end",
            **asdict(config),
            "knobs": list(config.knobs),
            "distance": self.distance.name,
            "start_grid": sampler.grid.name,
            "validation_start": self.start,
            "validation_learned": self.lowest,
            "seconds": round(self.seconds, 2),
            **self.facts,
        }
        gains = knobs.gains()
        own = () if gains is None else tuple(gains.tolist())
        return learned.make_timing(config.name, taus, tuning=tuning, provenance=provenance(), gains=own)

    @property
    def fingerprint(self) -> str:
        own = self.sampler
        parts: list[Any] = [asdict(self.config), self.distance.name, self.converged.grid.times]
        parts += [own.model, own.weights, own.schedule.name, own.solver.name, own.solver.options, own.grid.times]
        parts += [self.facts] if self.facts else []
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def save(self) -> None:
        if self.state is None:
            return
        content: dict[str, Any] = {"fingerprint": self.fingerprint, "now": self.values()}
        content |= {name: getattr(self, name) for name in REMEMBERED} | {"optimizer": self.optimizer.state_dict()}
        with atomic_path(self.state) as temporary:
            torch.save(content, temporary)

    def load(self) -> None:
        if self.state is None or not self.state.exists():
            return
        try:
            content = torch.load(self.state, weights_only=True)
            fingerprint = content["fingerprint"]
        except (*_DAMAGE, OSError, EOFError, pickle.UnpicklingError) as error:
            raise CorruptFile(
                f"{self.state} is not the state of learning ({error}); delete it and begin again"
            ) from error
        if fingerprint != self.fingerprint:
            raise BadValue(f"{self.state} is the state of another run (sampler, network or choices differ); delete it")
        try:
            with torch.no_grad():
                for name, parameter in self.knobs.parameters.items():
                    parameter.copy_(content["now"][name])
            self.optimizer.load_state_dict(content["optimizer"])
            for name in REMEMBERED:
                setattr(self, name, content[name])
            if not len(self.history) == self.iteration <= self.config.iterations:
                raise ValueError(f"{len(self.history)} of {self.iteration} iterations")
        except _DAMAGE as error:
            what = " ".join(str(error).split())
            raise CorruptFile(f"{self.state} is a damaged state of learning ({what}); delete it") from error


def _checkpointed(predictor: Predictor) -> Predictor:
    """``predictor`` that forgets its activations and makes them again for the gradient: memory of one evaluation."""
    if getattr(predictor, "remakes", False):
        return predictor
    return lambda x, t, tau: checkpoint(predictor, x, t, tau, use_reentrant=False)
