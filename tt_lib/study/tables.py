"""Tables: a list of cells in a TOML file, each tuned if need be, measured, and written as rows of ``fd.csv``.

The file::

    [table]
    dataset = "cifar10"              # its reference statistics and tuning images; or a folder or .npz of one's own
    model = "cifar10-ddpm-w96"
    features = "cifar10-resnet"      # or a list: all are taken from the same samples
    n = 50000                        # samples for each cell
    seed = 0                         # the first sample's seed

    [tuning]                         # any field of TuneConfig, `images`, `source` ("real" or "generated")
    optimiser = "search"
    images = 256

    [[cells]]                        # every combination of the lists; a block may have an `n` of its own
    solver = ["ddim"]
    grid = ["uniform", "quadratic"]
    nfe = [5, 10]
    timing = ["untuned", "constant-0.95", "truncation-parallel"]
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from tt_lib.baselines import read_constant
from tt_lib.errors import BadValue, CorruptFile, MissingFile, NothingLearned, TimingMismatch, check_type, check_types
from tt_lib.files import check_writable, data_folder, hold
from tt_lib.grids import read_grid
from tt_lib.metrics.evaluate import check_n, fd_row, forget_sets, measure_all
from tt_lib.metrics.features import metric_of
from tt_lib.metrics.reference import Metric, check_names, dataset_label
from tt_lib.metrics.world import ALONE, World
from tt_lib.networks.unet import Model
from tt_lib.noise import StartNoise, check_seeds
from tt_lib.rows import FD_COLUMNS, FD_KEY, matching, read_rows, short_hash, write_rows
from tt_lib.study.cells import (
    IMAGE_SOURCES,
    IMAGES,
    Cell,
    Recipe,
    check_gamma_images,
    check_recipe,
    find_timing,
    is_tuned,
    parse_timing,
    timing_path,
)
from tt_lib.study.workbench import Bench, Progress, constant_timing
from tt_lib.timing import Timing
from tt_lib.tuning import TuneConfig
from tt_lib.tuning.gamma import gamma_path
from tt_lib.tuning.tuner import digest_of

Row = dict[str, Any]
Report = Callable[[int, str], None]
"""Called with what is done of a cell, and a message."""
TUNING = {*(field.name for field in fields(TuneConfig)), "learning_rate", "images", "source"}
NAMED = {"objective", "strategy", "freeze_last"}
"""What only a timing's name may say."""
PUBLISHED = ("dataset", "metric", "solver", "grid", "nfe", "eta", "timing", "value", "source")
"""Columns of ``data/tables/published.csv``."""


@dataclass(frozen=True)
class Table:
    """What a table's file says; see the module's text.

    Raises:
        BadValue: a value of another type, ``n`` that does not divide into sets, or seeds that there are not.
    """

    dataset: str
    model: str
    features: tuple[str, ...]
    n: int
    seed: int
    cells: tuple[Cell, ...]
    tuning: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self)
        check_n(self.n)
        check_seeds(self.seed, self.n)

    def recipe(self, cell: Cell) -> Recipe | None:
        """How the timing of a cell is tuned; None for what is not: untuned, one ratio for all steps, a correction."""
        return parse_timing(cell.timing, self.tuning) if is_tuned(cell.timing) else None

    def cost(self, cell: Cell) -> int:
        """Network evaluations of a cell's samples."""
        return cell.nfe * self.n


def find_table(name: Path | str) -> Path:
    """The file of a table that is given by a path, or by the name of a shipped one, such as ``paper``."""
    shipped = data_folder() / "tables" / f"{name}.toml"
    return shipped if not Path(name).exists() and shipped.is_file() else Path(name)


def read_tables(path: Path | str) -> tuple[Table, ...]:
    """Read a table's TOML file: a table for each number of samples in it, in order.

    Raises:
        MissingFile, CorruptFile: no such file, or not TOML.
        BadValue: an entry is missing, unknown or out of range.
    """
    path = Path(path)
    if not path.is_file():
        shipped = sorted(file.stem for file in (data_folder() / "tables").glob("*.toml"))
        raise MissingFile(
            f"no table file at {path}; give a TOML file, or the name of a shipped one: {', '.join(shipped) or 'none'}"
        )
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # TOMLDecodeError, or UnicodeDecodeError of a file that is no text
        raise CorruptFile(f"{path} is not TOML: {error}") from error
    _check_entries(f"{path}", content, {"table", "tuning", "cells"})
    head, tuning, blocks = content.get("table", {}), content.get("tuning", {}), content.get("cells", [])
    if not isinstance(blocks, list) or not isinstance(head, dict) or not isinstance(tuning, dict):
        raise BadValue(f"{path} may hold [table], [tuning] and [[cells]], the last in two brackets")
    if named := sorted(NAMED & set(tuning)):
        raise BadValue(
            f"{path}: [tuning] may not hold {', '.join(named)}: a cell's timing names them, as "
            "consistency-parallel-freeze2"
        )
    _check_entries(f"{path}, [tuning]", tuning, TUNING - NAMED)
    _check_entries(f"{path}, [table]", head, *_entries_of(Table, {"cells", "tuning"}))
    try:
        return _make_tables(head, tuning, blocks)
    except BadValue as error:
        raise BadValue(f"{path}: {error}") from error


def _make_tables(head: dict[str, Any], tuning: dict[str, Any], blocks: list[dict[str, Any]]) -> tuple[Table, ...]:
    cells: dict[int | None, list[Cell]] = {}  # by a number of samples of their own
    for block in blocks:
        if not isinstance(block, dict):
            raise BadValue(f"[[cells]] hold entries such as solver and grid, got {block!r}")
        if empty := [name for name, value in block.items() if value == []]:
            raise BadValue(f"[[cells]]: {', '.join(empty)} is an empty list, which makes no cell; give a value")
        allowed, needed = _entries_of(Cell)
        _check_entries("[[cells]]", block, allowed | {"n"}, needed)
        if (n := block.get("n")) is not None:
            check_type("n of [[cells]]", n, int)
        lists = {key: value if isinstance(value, list) else [value] for key, value in block.items() if key != "n"}
        cells.setdefault(n, []).extend(
            Cell(**dict(zip(lists, values, strict=True))) for values in product(*lists.values())
        )
    if not cells:
        raise BadValue("there are no [[cells]]; add one or more")
    names = head["features"] if isinstance(head["features"], list) else [head["features"]]
    for name in names:
        check_type("each of features", name, str)
    check_names(names)
    head = {**head, "features": tuple(names), "tuning": tuning}
    tables = tuple(Table(**{**head, "cells": tuple(own)} | ({} if n is None else {"n": n})) for n, own in cells.items())
    # What no cell is tuned by is looked at, too.
    images = tuning.get("images", IMAGES)
    parse_timing("truncation-parallel", tuning)
    for table in tables:
        for cell in table.cells:
            read_grid(cell.start)
            solver, _ = cell.fitted_solver()  # a dry run refuses what a run would
            check_gamma_images(solver, images)
            if recipe := table.recipe(cell):
                check_recipe(cell, recipe)
    return tables


def _entries_of(kind: Any, without: Collection[str] = ()) -> tuple[set[str], set[str]]:
    """The fields of a dataclass, and those that must be given."""
    all_of_them = {each.name: each for each in fields(kind) if each.name not in without}
    needed = {name for name, each in all_of_them.items() if each.default is each.default_factory is MISSING}
    return set(all_of_them), needed


def _check_entries(where: str, entries: Mapping[str, Any], allowed: set[str], needed: Collection[str] = ()) -> None:
    """Raise :class:`BadValue` for an entry that is unknown or missing."""
    choices = f"; the entries are: {', '.join(sorted(allowed))}"
    for name in entries:
        if name not in allowed:
            raise BadValue(f"{where}: unknown entry {name!r}{choices}")
    for name in sorted(needed):
        if name not in entries:
            raise BadValue(f"{where}: the entry {name!r} is missing{choices}")


def run_table(
    table: Table,
    bench: Bench,
    metrics: Sequence[Metric],
    results: Path,
    work: Path,
    *,
    data: Path | str | None = None,
    force: bool = False,
    world: World = ALONE,
    progress: Progress | None = None,
    failed: list[NothingLearned] | None = None,
) -> list[Row]:
    """Tune and measure the cells of a table that lack rows, and write the rows.

    A cell that has its rows is skipped, so a killed run goes on where it was. Several processes may work on one file
    (one for each GPU, say): a cell that another one holds is left to it.

    Args:
        metrics: one for each of the table's features. All are measured from the same samples. Rows name the data set
            as they do.
        results: the ``fd.csv`` to write to.
        work: folder for locks and the state of unfinished cells.
        data: where the data set is, for tuning on real images.
        force: measure cells again that have their rows.
        world: the processes that share the samples of each cell; the main one tunes and writes.
        progress: called with (network evaluations done, of all that this call has to do, message).
        failed: is given an error for each cell whose learning found nothing better than its start. Such a cell has no
            rows, and the others go on.

    Returns:
        The rows that this call wrote.

    Raises:
        BadValue: a metric's real images are of another shape than the model's.
        NothingLearned: a cell's learning found nothing, and there is no ``failed``.
    """
    for metric in metrics:
        metric.require_shape(bench.model.shape, bench.model.name)
    labelled = replace(table, dataset=metrics[0].dataset)
    start = StartNoise(bench.model.shape, bench.device)
    work = bench.work_in(work)
    names = [metric.features.name for metric in metrics]

    def pending(rows: pd.DataFrame, cell: Cell) -> list[int]:
        missing = [i for i, name in enumerate(names) if force or not has_rows(rows, labelled, bench.model, name, cell)]
        if missing:
            check_stored(bench, cell)
            check_images(table, bench, cell, metrics[0], data)
            check_places(table, bench, cell)
        return missing

    def tuned(cell: Cell, report: Report) -> Timing | NothingLearned | None:
        try:
            return tune_cell(table, bench, cell, work, data, report)
        except NothingLearned as error:
            return error

    def run(cell: Cell, missing: list[int], report: Report) -> None:
        chosen = [metrics[i] for i in missing]
        # The others wait here until the main process has tuned and written what the cell needs.
        timing = world.decide(tuned(cell, report) if world.main else None)
        if isinstance(timing, NothingLearned):
            if failed is None:
                raise timing
            return failed.append(timing)
        sampler, sets = bench.sampler(cell, timing), work / "sets"
        measured = measure_all(
            sampler,
            chosen,
            table.n,
            first_seed=table.seed,
            batch=bench.batch,
            work=sets,
            start=start,
            world=world,
            progress=lambda done, of, message: report(done * cell.nfe, cell.label),
        )
        for metric, each in zip(chosen, measured, strict=True):
            row = fd_row(each, sampler, metric, seed=table.seed, timing=cell.timing, world=world)
            written.append(row)
            if world.main:
                write_rows(results, [row], FD_COLUMNS, FD_KEY)
                forget_sets(sampler, metric.features, table.n, table.seed, sets)

    rows = read_rows(results, FD_COLUMNS) if world.main else pd.DataFrame()
    todo = world.decide([cell for cell in table.cells if pending(rows, cell)] if world.main else [])
    done, total, written = 0, sum(table.cost(cell) for cell in todo), list[Row]()
    for cell in todo:
        with hold(work / f"{cell.label}.lock") if world.main else nullcontext(False) as held:
            # Another process may have done it since, or be at it.
            missing = world.decide(pending(read_rows(results, FD_COLUMNS), cell) if held else [])
            if missing:

                def report(count: int, message: str, base: int = done, of: int = total) -> None:
                    if progress:
                        progress(base + count, of, message)

                run(cell, missing, report)
                done += table.cost(cell)
            else:
                # No work of this process: the time left is judged without it.
                total -= table.cost(cell)
        if progress:
            progress(done, total, f"{cell.label} done")
    return written


def dry_run(table: Table, model: Model, results: Path, data: Path | str | None = None) -> Iterator[str]:
    """A line for each cell, whether it is done, and the network evaluations for the samples of the others.

    Args:
        model: whose rows are looked for.
        results: the ``fd.csv`` in which rows are looked for.
        data: as in :func:`run_table`.
    """
    rows, todo = read_rows(results, FD_COLUMNS), []
    table = replace(table, dataset=dataset_label(table.dataset, table.features[0], data))
    for cell in table.cells:
        done = all(has_rows(rows, table, model, features, cell) for features in table.features)
        yield f"{cell.label}: {'done' if done else 'to do'}"
        todo += [] if done else [table.cost(cell)]
    yield f"{len(todo)} of {len(table.cells)} cells to do, {sum(todo):,} evaluations for their samples"


def check_stored(bench: Bench, cell: Cell) -> None:
    """Raise :class:`TimingMismatch` if the stored timing of a cell, or its gamma, is of something else.

    It is asked before any work is done. Nothing is replaced: another network of this name may need it.
    """
    try:
        bench.sampler(cell, find_timing(bench.model.name, cell))
    except TimingMismatch as error:
        path = timing_path(bench.model.name, cell)
        raise TimingMismatch(f"{path}: {error}; or move it away, or give the network another name") from error


def check_images(table: Table, bench: Bench, cell: Cell, metric: Metric, data: Path | str | None) -> None:
    """Raise :class:`TimingMismatch` if the stored timing of a cell was tuned on real images that are not the table's.

    The shipped ones do not say which those were. Images that are not here, as where the reference is a file of
    pytorch-fid, cannot be compared.
    """
    timing = find_timing(bench.model.name, cell)
    tuning = timing.tuning if timing else {}
    same = tuning.get("dataset") in (None, "", metric.dataset)
    if tuning.get("source") == "real" and "images_sha256" in tuning:
        with suppress(BadValue, MissingFile):
            images = bench.tuning_images("real", tuning["images"], table.dataset, data)
            same = digest_of(images) == tuning["images_sha256"]
    if not same:
        path = timing_path(bench.model.name, cell)
        raise TimingMismatch(f"{path}: the timing was tuned on other images than {table.dataset}'s; move it away")


def check_places(table: Table, bench: Bench, cell: Cell) -> None:
    """Raise :class:`BadValue` if what a cell lacks cannot be written: its timing, and gamma of an analytic solver."""
    timing = find_timing(bench.model.name, cell)
    if timing is None and (table.recipe(cell) or read_constant(cell.timing)):
        check_writable(timing_path(bench.model.name, cell))
    solver = bench.sampler(cell, timing).solver
    if solver.needs_gamma and not solver.options.get("gamma"):
        check_writable(gamma_path(bench.model.name, cell.grid, cell.nfe, timing))


def has_rows(rows: pd.DataFrame, table: Table, model: Model, features: str, cell: Cell) -> bool:
    """Whether rows of ``fd.csv`` hold the distance of a cell in these features.

    Args:
        table: with the data set as rows call it.
    """
    where = {"dataset": table.dataset, "model": model.name, "weights": short_hash(model.digest), **asdict(cell)}
    where |= {"n": table.n, "seed": table.seed, "features": features, "metric": metric_of(features)}
    return bool(matching(rows, where).any())


def tune_cell(
    table: Table, bench: Bench, cell: Cell, work: Path, data: Path | str | None, report: Report
) -> Timing | None:
    """The timing of a cell: the shipped one, or one that is tuned now and saved where the shipped ones are.

    gamma of an analytic solver is measured where it is missing, before the tuning and for the tuned times.
    """
    images, source = table.tuning.get("images", IMAGES), table.tuning.get("source", IMAGE_SOURCES[0])

    def ensure_gamma(timing: Timing | None) -> None:
        bench.ensure_gamma(cell, timing, lambda: bench.tuning_images(source, images, table.dataset, data), source)

    def tell(done: int, of: int, message: str) -> None:
        report(0, f"tuning {cell.label}: {done}/{of}")

    timing, ratio, recipe = find_timing(bench.model.name, cell), read_constant(cell.timing), table.recipe(cell)
    if (ratio or recipe) and timing is None:
        path, state = timing_path(bench.model.name, cell), work / f"{cell.label}.tuning"
        check_writable(path)
        ensure_gamma(None)
        if recipe:
            timing = bench.tune_by(cell, recipe, table.dataset, data, state, tell)
        else:
            timing = constant_timing(bench.sampler(cell), ratio or 1.0)
        timing.save(path)
        state.unlink(missing_ok=True)
    ensure_gamma(timing)
    return timing


def published_rows() -> pd.DataFrame:
    """The rows of ``data/tables/published.csv``."""
    return read_rows(data_folder() / "tables" / "published.csv", PUBLISHED)


def published_beside(row: Mapping[str, Any]) -> str:
    """What was published for the sampler of a row of ``fd.csv``, with the source; nothing if there is none.

    The values are in ``data/tables/published.csv``. Their networks, grids and last steps are their authors': small
    differences in these move an FID by more than its interval. A user's own images are known by their name here.
    """
    if ",path=" in row["model"]:
        return ""  # nothing was published for the network of a diffusion on another path
    rows, dataset = published_rows(), row["dataset"].rpartition("@")[0] or row["dataset"]
    rows = rows[matching(rows, {**{name: row[name] for name in PUBLISHED[:7]}, "dataset": dataset})]
    return "".join(f"; published {row['value']:g} ({row['source']})" for row in rows.to_dict("records"))
