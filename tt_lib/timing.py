"""Timings: the conditioning time tau_k of every network evaluation, with where they come from.

A tuned timing belongs to one model, schedule, solver and grid. It is saved as JSON with all of them,
and using it with another solver or grid is an error that names both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tt_lib.errors import BadValue, TimingMismatch
from tt_lib.files import read_record, write_json
from tt_lib.grids import Grid
from tt_lib.solvers.registry import Solver

FORMAT = "tt-timing-1"
UNTUNED = "untuned"


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
        weights: sha256 of the model's weights, so that a retrained model of the same name is told apart.
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

    def __post_init__(self) -> None:
        if len(self.taus) != len(self.times):
            raise BadValue(f"a timing needs one tau an evaluation: {len(self.taus)} taus, {len(self.times)} times")
        for tau in self.taus:
            if not (math.isfinite(tau) and 0 < tau <= 1):
                raise BadValue(f"a conditioning time must lie in (0, 1], got {tau}")

    @property
    def nfe(self) -> int:
        """Number of network evaluations that the timing is for."""
        return len(self.taus)

    @property
    def ratios(self) -> tuple[float, ...]:
        """tau / t of each evaluation."""
        return tuple(tau / t for tau, t in zip(self.taus, self.times, strict=True))

    def check(self, *, model: str, schedule: str, solver: Solver, grid: Grid, weights: str = "") -> None:
        """Raise unless the timing was tuned for just this sampler (weights count where both sides name them).

        Raises:
            TimingMismatch: naming what the timing has and what it is used with.
        """
        check_same(
            "the timing was tuned",
            {
                "model": (self.model, model),
                "weights of the model": same_weights(self.weights, weights),
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
    return read_record(path, Timing, FORMAT, ("taus", "times", "grid_times"), "timing", "tt tune")


def check_same(subject: str, pairs: dict[str, tuple[str, str]], remedy: str) -> None:
    """Raise :class:`TimingMismatch` unless a record's own values and those that it is used with, the pairs, agree."""
    for what, (own, used) in pairs.items():
        if own != used:
            raise TimingMismatch(f"{subject} for {what} {own!r} and is used with {what} {used!r}; {remedy}")


def same_weights(own: str, used: str) -> tuple[str, str]:
    """Two hashes for :func:`check_same`; they count where both are there."""
    return (own[:16], used[:16]) if own and used else ("", "")


def differing_time(own: Sequence[float], used: Sequence[float]) -> tuple[str, str]:
    """The first pair of times that differ by more than rounding, for :func:`check_same`."""
    pairs = ((f"{a:.9g}", f"{b:.9g}") for a, b in zip(own, used, strict=False) if abs(a - b) > 1e-9)
    return next(pairs, ("", ""))


def _label(solver: str, options: dict[str, Any]) -> str:
    # An option at its default says nothing, so eta=0 and no eta are one solver.
    values = {key: value if isinstance(value, str) else f"{value:g}" for key, value in sorted(options.items()) if value}
    shown = ", ".join(f"{key}={value}" for key, value in values.items())
    return f"{solver}({shown})" if shown else solver
