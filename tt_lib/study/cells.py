"""Cells: samplers by names, with the one grammar of a timing's name for tables, rows, files and the command line.

A timing is ``untuned``, ``constant-0.95`` (one ratio for all steps), ``epsilon-1.005`` or ``time-shift``
(corrections, see :mod:`tt_lib.baselines`), or it is named by the objective and the strategy of its tuning:
``truncation-parallel``. Options of the tuning may follow, as they do behind a solver's name:
``truncation-parallel,images=16,seed=3``. They override a table's [tuning]. The number of last steps that keep tau = t
has a spelling of its own, ``consistency-parallel-freeze2``, which ``freeze_last=2`` is read as.

What is learned end to end is named by its knobs, ``learned-grid-timing``, or by its method, ``learned-gits`` and
``learned-ld3``. Where the grid is learned, the cell's grid is ``learned``, and ``start=logsnr`` names the one that
learning begins from. ``learned-grid-timing,of_solver=unipc+final=lower`` learns nothing: it is what was learned for
that solver, read for the cell's. ``of_nfe=10`` and ``of_model=NAME`` name another number of evaluations or network.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from tt_lib.baselines import CONSTANT, read_constant, read_correction
from tt_lib.errors import IN_WORDS, BadValue, MissingFile, check_range, check_type, check_types, choose
from tt_lib.files import data_folder, file_name, spell
from tt_lib.grids import GRIDS, LEARNED, spell_grid
from tt_lib.solvers.registry import Solver, make_solver
from tt_lib.timing import UNTUNED, Timing, load_timing
from tt_lib.tuning.config import OBJECTIVES, STRATEGIES, TuneConfig
from tt_lib.tuning.gamma import LEAST_IMAGES
from tt_lib.tuning.learn import KNOBS, LearnConfig, check_learn
from tt_lib.tuning.tuner import check_tuning

IMAGE_SOURCES, IMAGES = ("real", "generated"), 256
"""Where images to tune on come from, and how many there are where nothing is said; the first source is the default."""
METHODS = ("gits", "ld3")
"""Learning as others do it, see :mod:`tt_lib.tuning.gits` and :mod:`tt_lib.tuning.ld3`."""
LOSSES, STARTS = ("features", "pixels"), "uniform"
"""What distances are taken in while learning, the first by default, and the grid where learning begins."""
NAMES = [
    *(f"{o}-{s}" for o in OBJECTIVES for s in STRATEGIES),
    *(f"{LEARNED}-{'-'.join(some)}" for n in (1, 2, 3) for some in combinations(KNOBS, n)),
    *(f"{LEARNED}-{method}" for method in METHODS),
]
FIELDS = {"learning_rate": "lr"}
"""The field of the configuration that an option sets, where that is spelled otherwise."""
SWITCH = {"true": True, "false": False}
COMMA = "+"
"""Stands for the comma of a solver's name inside the name of a timing."""


class Origin(NamedTuple):
    """Where a timing was learned that is read for another sampler; what is empty is as in that sampler.

    Attributes:
        timing: its name.
    """

    timing: str
    solver: str = ""
    nfe: int = 0
    model: str = ""


class Recipe(NamedTuple):
    """How a timing is made.

    Attributes:
        config: the configuration of a tuning step by step or of learning, or one of :data:`METHODS`.
        images, source: of a tuning step by step: how many images, and whether they are ``real`` or ``generated``.
        loss, start: of learning: what distances are taken in, and the name of the grid that it begins from.
        origin: of what was learned elsewhere.
    """

    config: TuneConfig | LearnConfig | str
    images: int = IMAGES
    source: str = IMAGE_SOURCES[0]
    loss: str = LOSSES[0]
    start: str = STARTS
    origin: Origin | None = None

    @property
    def learned(self) -> bool:
        """Whether grid, times or gains are learned by finished samples, as :mod:`tt_lib.tuning.learn` does it."""
        return isinstance(self.config, LearnConfig | str)


def parse_timing(name: str, defaults: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe that a timing's name stands for.

    Args:
        name: objective and strategy, and options: the numbers, words and switches of :class:`TuneConfig`, ``images``
            and ``source``; for a learned sampler those of :class:`LearnConfig`, ``loss`` and ``start``.
        defaults: what holds where the name says nothing, as in a table's [tuning]: fields of TuneConfig, ``images`` and
            ``source``.

    Raises:
        BadValue: no such name, an option that is unknown or named twice, or a value that it cannot have.
    """
    options = _read(name)
    given = {FIELDS.get(key, key): value for key, value in (defaults or {}).items()}
    if len(given) < len(defaults or {}):
        raise BadValue("lr and learning_rate are the same option; give one of them")
    try:
        if options["objective"] == LEARNED:
            del options["objective"]
            origin = {key: options.pop(f"of_{key}") for key in Origin._fields[1:] if f"of_{key}" in options}
            recipe = _learn_recipe(options.pop("strategy"), options)
            return recipe._replace(origin=_origin(name, origin)) if origin else recipe
        options = {**given, **options}
        images = {key: options.pop(key) for key in ("images", "source") if key in options}
        recipe = Recipe(TuneConfig(**options), **images)
        check_type("images", recipe.images, int)
        choose("source of images", recipe.source, IMAGE_SOURCES)
        check_range("images", recipe.images, 1)
        return recipe
    except BadValue as error:
        raise BadValue(f"timing {name!r}: {error}") from error


def _origin(name: str, named: dict[str, Any]) -> Origin:
    check_range("of_nfe", named.get("nfe", 1), 1)
    named = {**named, "solver": named.get("solver", "").replace(COMMA, ",")}
    return Origin(",".join(word for word in name.split(",") if not word.startswith("of_")), **named)


def _learn_recipe(knobs: str, options: dict[str, Any]) -> Recipe:
    words = {key: options.pop(key) for key in ("loss", "start") if key in options}
    choose("loss", words.get("loss", LOSSES[0]), LOSSES)
    choose("start grid", words.get("start", STARTS), GRIDS)
    if knobs not in METHODS:
        if "start" in words and not brings_grid(f"{LEARNED}-{knobs}"):
            raise BadValue("its grid is not learned: name the start as its grid, and leave start out")
        return Recipe(LearnConfig(tuple(knobs.split("-")), **options), **words)
    if options or "start" in words or (knobs == "gits" and words):
        raise BadValue(f"{LEARNED}-{knobs} takes {'no option' if knobs == 'gits' else 'no option but loss'}")
    return Recipe(knobs, **words)


def brings_grid(timing: str) -> bool:
    """Whether a name is that of a timing that was learned with its grid."""
    knobs = timing.split(",")[0].split("-")
    return knobs[0] == LEARNED and bool({"grid", *METHODS} & set(knobs))


def usual_grid(timing: str) -> str:
    """The grid of a timing where none is named: its own, or ``uniform``."""
    return LEARNED if brings_grid(timing) else STARTS


def spell_timing(name: str) -> str:
    """The one spelling of a name: options sorted, frozen steps as ``-freezeN`` and only where N is not the default.

    Raises:
        BadValue: see :func:`parse_timing`.
    """
    if name == UNTUNED:
        return name
    correction, ratio = read_correction(name), read_constant(name)
    if correction is not None:
        return correction.name
    if ratio is not None:
        return f"{CONSTANT}-{spell(ratio)}"
    parse_timing(name)
    options = _read(name)
    plain = f"{options.pop('objective')}-{options.pop('strategy')}"
    frozen = options.pop("freeze_last", TuneConfig.freeze_last)
    spelled = {field: option for option, field in FIELDS.items()}
    words = sorted(f"{spelled.get(key, key)}={_spell(value)}" for key, value in options.items())
    return ",".join([plain if frozen == TuneConfig.freeze_last else f"{plain}-freeze{frozen}", *words])


def _options_of(config: type) -> dict[str, type]:
    """The options of a configuration with their types: its numbers, words and switches."""
    spelled = {field: option for option, field in FIELDS.items()}
    kinds = {spelled.get(field.name, field.name): type(field.default) for field in fields(config)}
    plain = (bool, int, float, str)
    return {
        name: kind for name, kind in sorted(kinds.items()) if kind in plain and name not in ("objective", "strategy")
    }


OPTIONS = dict(sorted({**_options_of(TuneConfig), "images": int, "source": str}.items()))
WORDS = dict.fromkeys(("loss", "start", "of_model", "of_solver"), str)
LEARN_OPTIONS: dict[str, type] = dict(sorted({**_options_of(LearnConfig), **WORDS, "of_nfe": int}.items()))


def _read(name: str) -> dict[str, Any]:
    """``truncation-parallel,images=16`` -> objective, strategy and the options that are named, as fields."""
    plain, *words = name.split(",")
    match = re.fullmatch(rf"({'|'.join(NAMES)})(?:-freeze(\d+))?", plain)
    if not match:
        names = ", ".join([UNTUNED, "constant-0.95", "epsilon-1.005", "time-shift", *NAMES])
        raise BadValue(
            f"unknown timing {name!r}; choose one of: {names} (-freeze2 at the end leaves the last 2 steps alone)"
        )
    objective, strategy = match[1].split("-", 1)
    values: dict[str, Any] = {"objective": objective, "strategy": strategy}
    if match[2]:
        values["freeze_last"] = int(match[2])
        if objective == LEARNED:
            raise BadValue(f"timing {name!r}: a learned sampler moves in all steps; leave -freeze{match[2]} out")
    options = LEARN_OPTIONS if objective == LEARNED else OPTIONS
    for word in words:
        key, equals, text = word.partition("=")
        if key not in options or not equals:
            raise BadValue(
                f"timing {name!r}: {word!r} is not an option; write name=value with one of: {', '.join(options)}"
            )
        if FIELDS.get(key, key) in values:
            raise BadValue(f"timing {name!r}: {key} is given twice; give it once")
        kind = options[key]
        try:
            values[FIELDS.get(key, key)] = SWITCH[text] if kind is bool else kind(text)
        except (ValueError, KeyError) as error:
            raise BadValue(f"timing {name!r}: {key} must be {IN_WORDS[kind]}, got {text!r}") from error
    if "of_solver" in values:
        # One solver, one spelling: rows and files are found by it.
        values["of_solver"] = make_solver(values["of_solver"].replace(COMMA, ",")).spelling.replace(",", COMMA)
    return values


def _spell(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return spell(value) if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Cell:
    """One sampler of a table, by names.

    Attributes:
        solver: a name of :mod:`tt_lib.solvers.registry`, with options as in ``unipc,order=2``.
        grid: a name of :mod:`tt_lib.grids`, or ``learned`` where the timing brings its grid.
        nfe: number of network evaluations.
        timing: see the module's text.
        eta: share of ancestral noise, for solvers that take it.
    """

    solver: str
    grid: str
    nfe: int
    timing: str = UNTUNED
    eta: float = 0.0

    def __post_init__(self) -> None:
        check_types(self)
        # One solver or grid, one spelling: rows, timings and files are found by it.
        if "," in self.solver:
            object.__setattr__(self, "solver", make_solver(self.solver).spelling)
        if "," in self.grid:
            object.__setattr__(self, "grid", spell_grid(self.grid))
        object.__setattr__(self, "timing", spell_timing(self.timing))
        if brings_grid(self.timing) != (self.grid == LEARNED):
            if self.grid == LEARNED:
                why = f"only a timing that was learned with its grid, such as {LEARNED}-grid-timing, has it"
            else:
                why = f"this timing was learned with its own grid; leave --grid out, or write {LEARNED!r} in a table"
            raise BadValue(f"the timing {self.timing} and the grid {self.grid!r} do not go together: {why}")

    @property
    def start(self) -> str:
        """The name of the grid without the timing: where learning begins."""
        return parse_timing(self.timing).start if self.grid == LEARNED else self.grid

    @property
    def label(self) -> str:
        """For progress bars and file names."""
        eta = f"-eta{spell(self.eta)}" if self.eta else ""
        return f"{self.solver}{eta}-{self.grid}-{self.nfe}-{self.timing}"

    def make_solver(self) -> Solver:
        """The cell's solver; eta is named only where it is not 0, since not every solver takes it."""
        return make_solver(self.solver, **({"eta": self.eta} if self.eta else {}))

    def fitted_solver(self) -> tuple[Solver, int]:
        """The cell's solver for its number of evaluations, and the steps of its grid.

        Raises:
            BadValue: the solver cannot make so many; the message names the cell.
        """
        try:
            return self.make_solver().for_nfe(self.nfe)
        except BadValue as error:
            raise BadValue(f"{self.label}: {error}") from error


def check_recipe(cell: Cell, recipe: Recipe) -> None:
    """Raise :class:`BadValue` if a cell cannot be tuned so: asked before images, gamma and all other work."""
    solver, steps = cell.fitted_solver()
    try:
        match recipe.config:
            case TuneConfig() as config:
                check_tuning(solver, steps, config)
                check_gamma_images(solver, recipe.images)
            case _:
                check_learn(solver)
    except BadValue as error:
        raise BadValue(f"{cell.label}: {error}") from error


def check_gamma_images(solver: Solver, images: int) -> None:
    """Raise :class:`BadValue` if gamma of an analytic solver cannot be measured on so few images."""
    if solver.needs_gamma and images < LEAST_IMAGES:
        raise BadValue(f"{solver.name} needs gamma, which takes at least {LEAST_IMAGES} images, got images = {images}")


def is_tuned(timing: str) -> bool:
    """Whether a name is that of tuned times: not untuned, and neither a correction nor one constant ratio."""
    return timing != UNTUNED and read_correction(timing) is None and read_constant(timing) is None


def timing_path(model: str, cell: Cell) -> Path:
    """Where the shipped timing of a cell lies: ``data/timings/<model>/<cell>.json``."""
    return data_folder() / "timings" / file_name(model) / f"{cell.label}.json"


def find_timing(model: str, cell: Cell) -> Timing | None:
    """The shipped timing of a cell; None if it is untuned or there is none."""
    path = timing_path(model, cell)
    return load_timing(path) if cell.timing != UNTUNED and path.exists() else None


def _numbers_beside(path: Path, cell: Cell) -> list[int]:
    """The numbers of evaluations for which the same sampler has a timing."""
    before, after = cell.label.rsplit(f"-{cell.nfe}-", 1)
    form = re.compile(rf"{re.escape(before)}-(\d+)-{re.escape(after)}")
    return sorted(int(match[1]) for file in path.parent.glob("*.json") if (match := form.fullmatch(file.stem)))


def require_timing(model: str, cell: Cell) -> Timing | None:
    """The shipped timing of a cell; None for an untuned cell, and for one that names a correction.

    Raises:
        MissingFile: the cell names a timing that is not there.
    """
    timing = find_timing(model, cell)
    if timing is None and cell.timing != UNTUNED and read_correction(cell.timing) is None:
        path, plain = timing_path(model, cell), cell.timing.split(",")[0]
        by_gradient = plain.startswith(LEARNED) and plain.removeprefix(f"{LEARNED}-") not in METHODS
        by_gradient = by_gradient and ",of_" not in cell.timing
        command = "tt learn" if by_gradient else "tt tune"
        there = _numbers_beside(path, cell)
        more = f", or take a number of evaluations that has one: {', '.join(map(str, there))}" if there else ""
        raise MissingFile(f"no timing at {path}; make it with `{command}`{more}")
    return timing
