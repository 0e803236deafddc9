"""Names of timings, as tables, rows, files and commands spell them: read here and nowhere else.

``untuned``, ``constant-0.95`` (one ratio for all steps), ``epsilon-1.005`` and ``time-shift`` (corrections, see
:mod:`tt_lib.baselines`), or objective and strategy of a tuning, ``truncation-parallel``. Options stand behind such a name as
they do behind a solver's: ``truncation-parallel,images=16,seed=3``. Each overrides what a table's [tuning] says, and
what a name does not say is not part of it. How many last steps keep tau = t has a spelling of its own:
``consistency-parallel-freeze2``, which ``freeze_last=2`` is read as.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tt_lib.baselines import CONSTANT, read_constant, read_correction
from tt_lib.errors import BadValue, MissingFile, choose
from tt_lib.files import data_folder
from tt_lib.solvers.registry import Solver, make_solver
from tt_lib.timing import UNTUNED, Timing, load_timing
from tt_lib.tuning.config import OBJECTIVES, STRATEGIES, TuneConfig
from tt_lib.tuning.joint import JOINT, JOINT_OBJECTIVES, JointConfig

IMAGE_SOURCES = ("real", "generated")
SWITCH = {"true": True, "false": False}
TUNED_OPTIONS: dict[str, type] = {
    "batch": int,
    "freeze_last": int,
    "gate": bool,
    "images": int,
    "iterations": int,
    "learning_rate": float,
    "optimiser": str,
    "seed": int,
    "source": str,
    "substeps": int,
    "sweeps": int,
    "value": str,
}
"""The options that a name may carry, with their types: fields of TuneConfig, and where how many images come from."""
JOINT_OPTIONS: dict[str, type] = {"freeze_last": int, "optimiser": str, "samples": int, "seed": int, "tries": int}
FIELDS = {"learning_rate": "lr"}
"""What an option sets, where that is spelled otherwise."""


def parse_timing(name: str) -> dict[str, Any]:
    """``truncation-parallel,images=16`` -> objective, strategy and the options that are named (``learning_rate`` as ``lr``).

    Raises:
        BadValue: not of that form, an option that is unknown or named twice, or a value that it cannot have.
    """
    plain, *options = name.split(",")
    plains = [*(f"{o}-{s}" for o in OBJECTIVES for s in STRATEGIES), *(f"{o}-{JOINT}" for o in JOINT_OBJECTIVES)]
    found = re.fullmatch(rf"({'|'.join(plains)})(?:-freeze(\d+))?", plain)
    if not found:
        names = ", ".join([UNTUNED, "constant-0.95", "epsilon-1.005", "time-shift", *plains])
        raise BadValue(
            f"unknown timing {name!r}; choose one of: {names} (-freeze2 at the end leaves the last 2 steps alone)"
        )
    objective, strategy = found[1].split("-")
    named: dict[str, Any] = {"objective": objective, "strategy": strategy}
    if found[2]:
        named["freeze_last"] = int(found[2])
    known = JOINT_OPTIONS if strategy == JOINT else TUNED_OPTIONS
    for option in options:
        key, value = _read_option(name, option, known)
        if FIELDS.get(key, key) in named:
            raise BadValue(f"timing {name!r}: {key} is given twice; give it once")
        named[FIELDS.get(key, key)] = value
    _check(name, named)
    return named


def spell_timing(name: str) -> str:
    """The one spelling of a timing's name: options sorted, the frozen steps as ``-freezeN`` and only where N is not the default.

    Raises:
        BadValue: unknown, see :func:`parse_timing`.
    """
    if name == UNTUNED:
        return name
    correction, ratio = read_correction(name), read_constant(name)
    if correction is not None:
        return correction.name
    if ratio is not None:
        return f"{CONSTANT}-{ratio:g}"
    named = parse_timing(name)
    joint = named["strategy"] == JOINT
    plain = f"{named.pop('objective')}-{named.pop('strategy')}"
    frozen = named.pop("freeze_last", None)
    if frozen is not None and frozen != (JointConfig if joint else TuneConfig).freeze_last:
        plain += f"-freeze{frozen}"
    options = {
        option: named[FIELDS.get(option, option)]
        for option in (*TUNED_OPTIONS, *JOINT_OPTIONS)
        if FIELDS.get(option, option) in named
    }
    return ",".join([plain, *(f"{option}={_spell(value)}" for option, value in sorted(options.items()))])


def _read_option(name: str, text: str, known: dict[str, type]) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if key not in known or not equals:
        raise BadValue(
            f"timing {name!r}: {text!r} is no option; write name=value with one of: {', '.join(sorted(known))}"
        )
    kind = known[key]
    try:
        return key, SWITCH[value] if kind is bool else kind(value)
    except (ValueError, KeyError) as error:
        wanted = {int: "a whole number", float: "a number", bool: "true or false"}[kind]
        raise BadValue(f"timing {name!r}: {key} must be {wanted}, got {value!r}") from error


def _check(name: str, named: dict[str, Any]) -> None:
    """What a name says must be a possible tuning, whatever a table adds."""
    fields = {key: value for key, value in named.items() if key not in ("images", "source")}
    try:
        if named["strategy"] == JOINT:
            JointConfig(**{key: value for key, value in fields.items() if key != "strategy"})
        else:
            TuneConfig(**fields)
        choose("source of images", named.get("source", IMAGE_SOURCES[0]), IMAGE_SOURCES)
        if named.get("images", 1) < 1:
            raise BadValue(f"images must be at least 1, got {named['images']}")
    except BadValue as error:
        raise BadValue(f"timing {name!r}: {error}") from error


def _spell(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


# FOLDED tt_lib.study.workbench
# A workbench: one loaded model with all that tuning and measuring it takes, and samplers made from it by name.


@dataclass(frozen=True)
class Cell:
    """One sampler of a table, by names: :attr:`timing` is ``untuned``, or see :mod:`tt_lib.study.cells`."""

    solver: str
    grid: str
    nfe: int
    timing: str = UNTUNED
    eta: float = 0.0

    def __post_init__(self) -> None:
        # One solver, one spelling: rows, timings and files are found by it.
        if "," in self.solver:
            object.__setattr__(self, "solver", make_solver(self.solver).spelling)
        object.__setattr__(self, "timing", spell_timing(self.timing))

    @property
    def label(self) -> str:
        """For progress bars and file names."""
        eta = f"-eta{self.eta:g}" if self.eta else ""
        return f"{self.solver}{eta}-{self.grid}-{self.nfe}-{self.timing}"

    def make_solver(self) -> Solver:
        """The cell's solver; eta is named only where it is not 0, since not every solver takes it."""
        return make_solver(self.solver, **({"eta": self.eta} if self.eta else {}))


def timing_path(model: str, cell: Cell) -> Path:
    """Where the shipped timing of a cell lies: ``data/timings/<model>/<cell>.json``."""
    return data_folder() / "timings" / model.replace("/", "--") / f"{cell.label}.json"


def find_timing(model: str, cell: Cell) -> Timing | None:
    """The shipped timing of a cell; None if it is untuned or there is none."""
    path = timing_path(model, cell)
    return load_timing(path) if cell.timing != UNTUNED and path.exists() else None


def require_timing(model: str, cell: Cell) -> Timing | None:
    """The shipped timing of a cell; None for an untuned cell, and for one that names a correction.

    Raises:
        MissingFile: the cell names a timing that is not there.
    """
    timing = find_timing(model, cell)
    if timing is None and cell.timing != UNTUNED and read_correction(cell.timing) is None:
        raise MissingFile(f"no timing at {timing_path(model, cell)}; make it with `tt tune` or `tt table` first")
    return timing
