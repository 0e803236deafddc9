"""Timings: the conditioning time tau_k of every network evaluation, with where they come from.

A tuned timing belongs to one model, schedule, solver and grid. It is saved as JSON with all of them,
and using it with another solver or grid is an error that names both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from tt_lib.errors import IN_WORDS, BadValue, TimingMismatch, check_type, check_types
from tt_lib.files import read_record, spell, write_json
from tt_lib.grids import Grid
from tt_lib.solvers.orders import one_each
from tt_lib.solvers.registry import SOLVERS, Solver

FORMAT, FORMAT_1 = "tt-timing-2", "tt-timing-1"
"""What is written, and what is read besides: a timing without gains."""
UNTUNED = "untuned"
NOT_NAMED = "not named"
"""What errors call the hash of weights where there is none."""
SAME_TIME = 1e-9
"""Times that differ by no more are one: it is rounding."""


@dataclass(frozen=True)
class Timing:
    """The conditioning times of one few-step sampler.

    Attributes:
        name: objective and strategy, as ``truncation-parallel``, perhaps with options.
        taus: the conditioning time of each evaluation, in order.
        times: the nominal time t of each evaluation, in order.
        model: the name of the model they were tuned for.
        schedule: the name of its schedule.
        solver: the solver's name.
        options: the solver's options, such as ``eta``, without those that are measured, such as ``gamma``.
        grid: the grid's name.
        grid_times: the grid's K + 1 nominal times.
        tuning: how they were tuned: objective, strategy, optimiser, images, final losses, seconds, ...
        provenance: versions, date, commit and command.
        weights: the hash of the model's weights (:class:`tt_lib.networks.unet.Model`), which tells two networks of
            one name apart.
        gains: the factor on each output of the network, in order; without gains the outputs stay as they are.

    Raises:
        BadValue: no name or that of untuned samplers, a tau outside (0, 1], a gain that is not above 0, another number
            of gains than of taus, times that no run over the grid has, or a value of another type.
    """

    name: str
    taus: tuple[float, ...]
    times: tuple[float, ...]
    model: str
    schedule: str
    solver: str
    options: dict[str, Any]
    grid: str
    grid_times: tuple[float, ...]
    tuning: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, str] = field(default_factory=dict)
    weights: str = ""
    gains: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_types(self)
        if self.name in ("", UNTUNED):
            raise BadValue(
                f"a timing cannot be called {self.name!r}, the name of samples without one; give another name"
            )
        if len(self.taus) != len(self.times):
            raise BadValue(
                f"a timing needs one tau for each evaluation, got {len(self.taus)} taus, {len(self.times)} times"
            )
        for tau in self.taus:
            if not (math.isfinite(tau) and 0 < tau <= 1):
                raise BadValue(f"a conditioning time must lie in (0, 1], got {tau}")
        if self.gains and len(self.gains) != len(self.taus):
            raise BadValue(
                f"a timing needs one gain for each evaluation or none, got {len(self.taus)} taus, {self.gains}"
            )
        for gain in self.gains:
            if not (math.isfinite(gain) and gain > 0):
                raise BadValue(f"a gain must be above 0, got {gain}")
        check_run(self.times, Grid(self.grid, self.grid_times), self.solver)
        if not all(isinstance(part, dict) for part in (self.options, self.tuning, self.provenance)):
            raise BadValue("options, tuning and provenance of a timing must be tables of names and values")
        for name, value in self.options.items():
            check_type(f"option {name} of the solver", value, type(value) if type(value) in IN_WORDS else float)
        for name, text in self.provenance.items():
            check_type(f"{name} of the provenance", text, str)

    @property
    def nfe(self) -> int:
        """Number of network evaluations that the timing is for."""
        return len(self.taus)

    @property
    def ratios(self) -> tuple[float, ...]:
        """tau / t of each evaluation."""
        return tuple(tau / t for tau, t in zip(self.taus, self.times, strict=True))

    def check(self, *, model: str, schedule: str, solver: Solver, grid: Grid, weights: str = "") -> None:
        """Raise unless the timing was tuned for just this sampler.

        A timing without a hash of weights is refused for a model that has one, and the other way round.

        Raises:
            TimingMismatch: naming what the timing has and what it is used with.
        """
        check_same(
            "the timing was tuned",
            {
                "model": (self.model, model),
                "weights of the model": (self.weights[:16] or NOT_NAMED, weights[:16] or NOT_NAMED),
                "schedule": (self.schedule, schedule),
                "solver": (_label(self.solver, self.options), _label(solver.name, solver.choices_made)),
                "grid": (f"{self.grid} with {len(self.grid_times) - 1} steps", f"{grid.name} with {grid.steps} steps"),
                "time of the grid": differing_time(self.grid_times, grid.times),
            },
            "tune one for it with `tt tune`, or sample with what it was tuned for",
        )

    def save(self, path: Path | str) -> None:
        """Write the timing as JSON, atomically."""
        write_json(path, {"format": FORMAT, **asdict(self)})


def load_timing(path: Path | str) -> Timing:
    """Read a timing.

    Raises:
        MissingFile, CorruptFile
    """
    times = ("taus", "times", "grid_times")
    return read_record(path, Timing, {FORMAT: (*times, "gains"), FORMAT_1: times}, "timing", "tt tune")


def check_run(times: Sequence[float], grid: Grid, solver: str) -> None:
    """Raise :class:`BadValue` unless a run over the grid can have evaluations at these times.

    Its times never rise, and each step begins with an evaluation at its own time. A solver with one evaluation a step
    has no others.
    """
    falls = all(s <= t for t, s in pairwise(times)) and all(grid.times[-1] <= t <= 1 for t in times)
    starts = all(any(abs(t - start) <= SAME_TIME for t in times) for start in grid.times[:-1])
    single = solver in SOLVERS and SOLVERS[solver].plan is one_each
    if not (falls and starts) or (single and len(times) != grid.steps):
        raise BadValue(
            f"no run of {solver} over the grid of {grid.steps} steps {list(grid.times)} has its {len(times)} "
            f"evaluations at {list(times)}"
        )


def check_same(subject: str, pairs: dict[str, tuple[str, str]], remedy: str) -> None:
    """Raise :class:`TimingMismatch` unless a record's own values and those that it is used with, the pairs, agree."""
    for what, (own, used) in pairs.items():
        if own != used:
            raise TimingMismatch(f"{subject} for {what} {own!r} and is used with {what} {used!r}; {remedy}")


def differing_time(own: Sequence[float], used: Sequence[float]) -> tuple[str, str]:
    """The first pair of times that differ by more than rounding, for :func:`check_same`."""
    pairs = ((f"{a:.9g}", f"{b:.9g}") for a, b in zip(own, used, strict=False) if abs(a - b) > SAME_TIME)
    return next(pairs, ("", ""))


def _label(solver: str, options: dict[str, Any]) -> str:
    # An option at its default says nothing, so eta=0 and no eta are one solver.
    values = {key: value if isinstance(value, str) else spell(value) for key, value in sorted(options.items()) if value}
    shown = ", ".join(f"{key}={value}" for key, value in values.items())
    return f"{solver}({shown})" if shown else solver
