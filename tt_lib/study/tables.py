"""Tables: a list of cells in a TOML file, each tuned if need be, measured, and written as a row.

Cells that have their row are skipped, so a killed table goes on where it was. Several processes (one for
each GPU, say) may work on one table: a cell that another process holds is left to it.

The file::

    [table]
    dataset = "cifar10"              # its reference statistics and tuning images
    model = "cifar10-ddpm-w64"
    features = "cifar10-resnet"      # or a list: all are taken from the same samples, frechet-joint tunes by the first
    n = 50000                        # samples for each cell
    seed = 0                         # the first sample's seed
    more = true                      # also what `tt evaluate --more` measures (needs the reference bank), and the gain of
                                     # tuned cells over the table's untuned one, compared seed by seed

    [tuning]                         # any field of TuneConfig, and where the images come from
    optimiser = "search"
    images = 256
    source = "real"                  # or "generated"

    [[cells]]                        # every combination of the lists
    solver = ["ddim"]
    grid = ["uniform", "quadratic"]
    nfe = [5, 10]
    timing = ["untuned", "constant-0.95", "truncation-parallel"]
"""

from __future__ import annotations

import contextlib
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from tt_lib.baselines import read_constant, read_correction
from tt_lib.errors import BadValue, CorruptFile, MissingFile, choose
from tt_lib.files import data_folder, hold
from tt_lib.grids import GRIDS
from tt_lib.metrics.evaluate import SETS, Measured, fd_row, forget_sets, measure_all, more_rows, sample_sets
from tt_lib.metrics.features import Features, gain_of, metric_of
from tt_lib.metrics.frechet import paired_interval
from tt_lib.metrics.reference import SIZE, FeatureBank, Yardstick, check_names
from tt_lib.metrics.statistics import FeatureStatistics
from tt_lib.metrics.world import ALONE, World
from tt_lib.noise import StartNoise
from tt_lib.rows import FD_COLUMNS, FD_KEY, matching, read_rows, write_rows
from tt_lib.sampling import Sampler
from tt_lib.study.cells import IMAGE_SOURCES, Cell, find_timing, parse_timing, timing_path
from tt_lib.study.workbench import Bench, constant_timing
from tt_lib.timing import UNTUNED, Timing
from tt_lib.tuning import TuneConfig
from tt_lib.tuning.joint import JOINT, JointConfig

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Table:
    """What a table's file says; see the module's text."""

    dataset: str
    model: str
    features: str
    n: int
    seed: int
    cells: tuple[Cell, ...]
    tuning: dict[str, Any] = field(default_factory=dict)
    images: int = 256
    source: str = "real"
    samples: int = JointConfig.samples
    more: bool = False
    also: tuple[str, ...] = ()
    """Further features, which samples are measured in and nothing is tuned by."""

    def config(self, cell: Cell) -> TuneConfig | JointConfig | None:
        """How the timing of a cell is tuned; None for what is not: untuned, one ratio for all steps, a correction."""
        if cell.timing == UNTUNED or read_constant(cell.timing) is not None or read_correction(cell.timing) is not None:
            return None
        named = {key: value for key, value in parse_timing(cell.timing).items() if key not in ("images", "source")}
        if named["strategy"] == JOINT:
            return JointConfig(
                **{"samples": self.samples, **{key: value for key, value in named.items() if key != "strategy"}}
            )
        return TuneConfig(**{**self.tuning, **named})

    def images_of(self, cell: Cell) -> tuple[str, int]:
        """Where the images come from that a cell is tuned on, and how many: what its timing's name says, else [tuning]."""
        named = parse_timing(cell.timing) if self.config(cell) is not None else {}
        return named.get("source", self.source), named.get("images", self.images)

    def cost(self, cell: Cell) -> int:
        """Network evaluations of a cell's samples."""
        return cell.nfe * self.n

    def rival(self, cell: Cell) -> Cell | None:
        """The untuned cell that a tuned one's gain is taken over; None where no gain is asked for, or the table has no such cell."""
        untuned = replace(cell, timing=UNTUNED)
        return untuned if self.more and cell != untuned and untuned in self.cells else None


def find_table(name: Path | str) -> Path:
    """The file of a table that is given by a path, or by the name of a shipped one, such as ``paper``."""
    shipped = data_folder() / "tables" / f"{name}.toml"
    return shipped if not Path(name).exists() and shipped.is_file() else Path(name)


def read_table(path: Path | str) -> Table:
    """Read a table's TOML file.

    Raises:
        MissingFile, CorruptFile: no such file, or not TOML.
        BadValue: an entry is missing, unknown or out of range.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFile(f"no table file at {path}; the shipped ones are in data/tables/")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # TOMLDecodeError, or UnicodeDecodeError of a file that is no text
        raise CorruptFile(f"{path} is not TOML: {error}") from error
    unknown = sorted(set(content) - {"table", "tuning", "cells"})
    if unknown or not isinstance(content.get("cells", []), list):
        raise BadValue(f"{path} may hold [table], [tuning] and [[cells]] (twice bracketed), got {unknown or '[cells]'}")
    head, tuning = dict(content.get("table", {})), dict(content.get("tuning", {}))
    images, source = tuning.pop("images", 256), tuning.pop("source", "real")
    samples = tuning.pop("samples", JointConfig.samples)
    names = head.get("features", [])
    if isinstance(names, list) and "features" in head:
        check_names(names)
        head["features"], head["also"] = names[0], tuple(names[1:])
    named = sorted({"objective", "strategy", "freeze_last"} & set(tuning))
    if named:
        raise BadValue(
            f"{path}: [tuning] may not hold {', '.join(named)}: a cell's timing names them, as consistency-parallel-freeze2"
        )
    try:
        cells = tuple(cell for block in content.get("cells", []) for cell in _cells(block))
        table = Table(**head, cells=cells, tuning=tuning, images=images, source=source, samples=samples)
        for cell in cells:
            if cell.timing != UNTUNED:
                table.config(cell)
            cell.make_solver()
            choose("grid", cell.grid, GRIDS)
            if not isinstance(cell.nfe, int) or cell.nfe < 1:
                raise BadValue(f"{path}: nfe must be a whole number of at least 1, got {cell.nfe}")
    except TypeError as error:
        raise BadValue(f"{path}: {error}; see `tt table --help` for the entries") from error
    choose("source of images", source, IMAGE_SOURCES)
    if not isinstance(table.n, int) or table.n % SETS or table.n < 2 * SETS:
        raise BadValue(f"{path}: n must be a multiple of {SETS} and at least {2 * SETS}, got {table.n}")
    if not cells:
        raise BadValue(f"{path} has no [[cells]]")
    return table


def _cells(block: dict[str, Any]) -> Iterator[Cell]:
    lists = {key: value if isinstance(value, list) else [value] for key, value in block.items()}
    for values in product(*lists.values()):
        yield Cell(**dict(zip(lists, values, strict=True)))


def run_table(
    table: Table,
    bench: Bench,
    features: Features,
    reference: FeatureStatistics,
    results: Path,
    work: Path,
    *,
    data: str | None = None,
    force: bool = False,
    bank: FeatureBank | None = None,
    also: Sequence[Yardstick] = (),
    world: World = ALONE,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Fill in the rows of a table.

    Args:
        features, reference: what ``frechet-joint`` tunes by, and what every cell is measured in.
        results: the ``fd.csv`` to write to.
        work: folder for the state of unfinished cells.
        data: where the data set is, for tuning on real images.
        force: measure cells again that have a row already.
        bank: the reference's, for a table with ``more``.
        also: what else every cell is measured in, from the same samples. A cell that has a row in some of the features is
            sampled again for the others only.
        world: the processes that share the samples of each cell; the main one tunes and writes.
        progress: called with (network evaluations done, of all that this call has to do, message).

    Returns:
        The rows that this call wrote.
    """
    start = StartNoise(bench.model.shape, bench.device)
    yardsticks = [Yardstick(features, reference, bank), *also]

    def lacks(known: pd.DataFrame, cell: Cell) -> list[bool]:
        """In which of the features a cell has no row."""
        return [not has_row(known, table, bench.model.name, each.features.name, cell) for each in yardsticks]

    known = read_rows(results, FD_COLUMNS)
    to_do = world.decide([cell for cell in table.cells if force or any(lacks(known, cell))])
    total = sum(table.cost(cell) for cell in to_do)
    spent, rows = 0, []
    for cell in to_do:
        with hold(work / f"{cell.label}.lock") if world.main else contextlib.nullcontext(False) as mine:
            wanted = [mine and force for _ in yardsticks]
            if mine and not force:
                wanted = lacks(read_rows(results, FD_COLUMNS), cell)
            lacking = [each for each, want in zip(yardsticks, world.decide(wanted), strict=True) if want]
            if lacking:
                timing = None
                if world.main:
                    timing = cell_timing(table, bench, cell, features, reference, work, data, progress, spent, total)
                    ensure_gamma(table, bench, cell, timing, data)
                # The others wait here until the main process has tuned and written what the cell needs.
                timing = world.decide(timing)

                def tell(
                    done: int, _: int, message: str, base: int = spent, of: int = total, cell: Cell = cell
                ) -> None:
                    if progress:
                        progress(base + done * cell.nfe, of, cell.label)

                sampler = bench.sampler(cell, timing)
                samples: dict[str, Any] = {
                    "first_seed": table.seed,
                    "batch": bench.batch,
                    "work": work / "sets",
                    "start": start,
                    "world": world,
                }
                measured = measure_all(
                    sampler, lacking, table.n, keep=SIZE if lacking[0].bank else 0, progress=tell, **samples
                )
                rival = table.rival(cell)
                # Its sets were kept when it was measured, and are read. Where they are not there it is sampled again.
                rivals = (
                    sample_sets(bench.sampler(rival), lacking, table.n, **samples) if rival else [[] for _ in lacking]
                )
                for each, one, other in zip(lacking, measured, rivals, strict=True):
                    found = cell_rows(one, [part for part, _ in other], each, sampler, table, cell, world)
                    if world.main:
                        write_rows(results, found, FD_COLUMNS, FD_KEY)
                        # The untuned sets are what the tuned ones will be compared with.
                        if not (each.bank and cell.timing == UNTUNED):
                            forget_sets(sampler, each.features, table.n, table.seed, work / "sets")
                    rows += found
                spent += table.cost(cell)
            else:
                # Another process has done it since, or is at it: no work of this one, and the time left is judged without it.
                total -= table.cost(cell)
        if progress:
            progress(spent, total, f"{cell.label} done")
    return rows


def cell_rows(
    measured: Measured,
    rival: Sequence[FeatureStatistics],
    by: Yardstick,
    sampler: Sampler,
    table: Table,
    cell: Cell,
    world: World,
) -> list[dict[str, Any]]:
    """The rows of a cell in one of its features, a gain over its rival's sets if there are any; the processes beside the main one make only the first."""
    row = fd_row(
        measured,
        sampler,
        by.features,
        dataset=table.dataset,
        reference="train",
        n=table.n,
        seed=table.seed,
        timing=cell.timing,
        world=world,
    )
    if not (by.bank and world.main):
        return [row]
    more = more_rows(row, measured, by.reference, by.bank, by.features)
    return [row, *more, *([gain_row(row, measured, rival, by)] if rival else [])]


def dry_run(table: Table, model: str, results: Path) -> Iterator[str]:
    """A line for each cell of a table, whether it is done, and the sum of the network evaluations that the samples of the others take.

    Args:
        model: the name that rows have.
        results: the ``fd.csv`` in which rows are looked for.
    """
    rows = read_rows(results, FD_COLUMNS)
    left = []
    for cell in table.cells:
        done = all(has_row(rows, table, model, features, cell) for features in (table.features, *table.also))
        yield f"{cell.label}: {'done' if done else 'to do'}"
        left += [] if done else [table.cost(cell)]
    yield f"{len(left)} of {len(table.cells)} cells to do, {sum(left):,} evaluations for their samples"


def gain_row(
    row: dict[str, Any], measured: Measured, rival: Sequence[FeatureStatistics], by: Yardstick
) -> dict[str, Any]:
    """How much lower a distance is than that of a rival's sets, from the same seeds (:func:`paired_interval`)."""
    gain, low, high = paired_interval(rival, measured.sets, by.reference)
    return {
        **row,
        "metric": gain_of(by.features.name),
        "value": round(gain, 6),
        "low": round(low, 6),
        "high": round(high, 6),
    }


def tune_table(
    table: Table,
    bench: Bench,
    features: Features | None,
    reference: FeatureStatistics | None,
    work: Path,
    *,
    data: str | None = None,
    progress: Progress | None = None,
) -> int:
    """Tune what the cells of a table need and ``data/timings`` lacks, and measure nothing; returns how many were tuned.

    Args:
        features, reference: only ``frechet-joint`` timings need them.
    """
    cells = [cell for cell in table.cells if _has_timing(cell)]
    tuned = 0
    for done, cell in enumerate(cells):
        with hold(work / f"{cell.label}.lock") as mine:
            if mine and _ready_timing(bench, cell) is None:
                cell_timing(table, bench, cell, features, reference, work, data, progress, done, len(cells))
                tuned += 1
        if progress:
            progress(done + 1, len(cells), f"{cell.label} done")
    return tuned


def cell_timing(
    table: Table,
    bench: Bench,
    cell: Cell,
    features: Features | None,
    reference: FeatureStatistics | None,
    work: Path,
    data: str | None,
    progress: Progress | None = None,
    spent: int = 0,
    total: int = 1,
) -> Timing | None:
    """The timing of a cell: the shipped one, or one that is tuned now and saved where the shipped ones are."""
    if not _has_timing(cell):
        return None
    timing = _ready_timing(bench, cell)
    if timing is not None:
        return timing

    def tell(done: int, of: int, message: str) -> None:
        if progress:
            progress(spent, total, f"tuning {cell.label}: {done}/{of}")

    ensure_gamma(table, bench, cell, None, data)
    config, state = table.config(cell), work / f"{cell.label}.tuning"
    if config is None:
        timing = constant_timing(bench.sampler(cell), read_constant(cell.timing) or 1.0)
        timing.save(timing_path(bench.model.name, cell))
        return timing
    if isinstance(config, JointConfig):
        result = bench.tune_joint(cell, features, reference, config, state, tell)
    else:
        source, count = table.images_of(cell)
        images = bench.tuning_images(source, count, table.dataset, data)
        held_out = bench.held_out_images(source, count, table.dataset, data) if config.gate else None
        with torch.no_grad() if config.optimiser == "search" else contextlib.nullcontext():
            result = bench.tune(cell, config, images, source, state, tell, held_out)
    # Two timings that differ in an option are told apart by their names.
    timing = replace(result.timing, name=cell.timing)
    timing.save(timing_path(bench.model.name, cell))
    return timing


def _has_timing(cell: Cell) -> bool:
    """Whether a cell has a timing of its own: it is neither untuned nor corrected while sampling."""
    return cell.timing != UNTUNED and read_correction(cell.timing) is None


def _ready_timing(bench: Bench, cell: Cell) -> Timing | None:
    """The timing of a cell that was tuned for just these weights, if there is one."""
    timing = find_timing(bench.model.name, cell)
    return timing if timing is not None and timing.weights == bench.model.digest else None


def ensure_gamma(table: Table, bench: Bench, cell: Cell, timing: Timing | None, data: str | None) -> None:
    """gamma for a cell whose solver needs it: the stored one, or one that is measured now on the tuning images."""
    bench.ensure_gamma(
        cell, timing, lambda: bench.tuning_images(table.source, table.images, table.dataset, data), table.source
    )


def has_row(rows: pd.DataFrame, table: Table, model: str, features: str, cell: Cell) -> bool:
    """Whether rows of ``fd.csv`` hold all that a table asks of a cell in these features.

    A row has the model's name and not its weights' hash, so one of other weights under that name counts, too.
    """
    metrics = (
        [f"FD-infinity ({features})", *([gain_of(features)] if table.rival(cell) else [])]
        if table.more
        else [metric_of(features)]
    )
    wanted = {
        "dataset": table.dataset,
        "model": model,
        "solver": cell.solver,
        "grid": cell.grid,
        "nfe": cell.nfe,
        "eta": cell.eta,
        "timing": cell.timing,
        "features": features,
        "n": table.n,
        "seed": table.seed,
    }
    return all(bool(matching(rows, {**wanted, "metric": metric}).any()) for metric in metrics)
