"""Direction errors of many samplers as rows of ``direction.csv``, and whether they predict the Fréchet distance."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from tt_lib.baselines import read_correction
from tt_lib.errors import BadValue
from tt_lib.files import hold
from tt_lib.metrics.direction import measure_directions, reference_trajectory
from tt_lib.noise import SampleNoise
from tt_lib.rows import (
    DIRECTION_COLUMNS,
    DIRECTION_KEY,
    device_name,
    matching,
    provenance,
    read_rows,
    write_rows,
)
from tt_lib.study.cells import Cell, require_timing, timing_path
from tt_lib.study.workbench import Bench
from tt_lib.timing import UNTUNED, Timing

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Protocol:
    """How directions are measured.

    Attributes:
        n: samples, each its own trajectory.
        seed: of the first sample; a sample's seed is its own, so these are the first samples of a table's cells.
        substeps: steps of the fine solution in each interval.
    """

    n: int = 64
    seed: int = 0
    substeps: int = 16

    def __post_init__(self) -> None:
        if self.n < 2:
            raise BadValue(f"an interval needs at least 2 samples, got n = {self.n}")


def run_directions(
    bench: Bench,
    cells: Sequence[Cell],
    protocol: Protocol,
    results: Path,
    *,
    work: Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Measure the directions of each cell and write a row for each step; cells that have their rows are not measured again.

    Several processes (one for each GPU, say) may share the cells: one that another process holds is left to it.

    Args:
        bench: the model.
        cells: deterministic samplers; tuned ones need their timing in ``data/timings``.
        results: the ``direction.csv`` to write to.
        work: folder for the locks of the cells that are being measured; without one nothing is locked.
        force: measure again what has rows.
        progress: called with (intervals done, of all that this call has to do, message).

    Returns:
        The rows of these cells, in order; none of a cell that another process has not yet measured.

    Raises:
        BadValue: a cell draws noise.
        MissingFile: a cell's timing is not there.
    """
    # All is looked at before anything is measured: a missing timing is not found out after an hour.
    samplers = {cell: bench.sampler(cell, _timing(bench, cell)) for cell in cells}
    known = read_rows(results, DIRECTION_COLUMNS)
    to_do = {
        cell: sampler
        for cell, sampler in samplers.items()
        if force or _rows_of(known, bench.model.name, cell, protocol).empty
    }
    total, done = sum(sampler.grid.steps for sampler in to_do.values()), 0
    x = SampleNoise(range(protocol.seed, protocol.seed + protocol.n)).start(bench.model.shape).to(bench.device)
    kept: tuple[tuple[float, ...], tuple[Tensor, ...]] | None = None
    for cell, sampler in to_do.items():
        with hold(work / f"{cell.label}.lock") if work else contextlib.nullcontext(True) as mine:
            if mine and (
                force or _rows_of(read_rows(results, DIRECTION_COLUMNS), bench.model.name, cell, protocol).empty
            ):
                if kept is None or kept[0] != sampler.grid.times:
                    with torch.no_grad():
                        truth = reference_trajectory(
                            bench.predictor, sampler.schedule, sampler.grid, x, protocol.substeps
                        )
                    kept = sampler.grid.times, truth

                def tell(step: int, _: int, message: str, base: int = done, of: int = total, cell: Cell = cell) -> None:
                    if progress:
                        progress(base + step, of, cell.label)

                with torch.no_grad():
                    found = measure_directions(
                        bench.predictor,
                        sampler.schedule,
                        sampler.solver,
                        sampler.grid,
                        x,
                        sampler.timing.taus if sampler.timing else None,
                        substeps=protocol.substeps,
                        reference=kept[1],
                        progress=tell,
                    )
                write_rows(results, _rows(found.frame(), bench, cell, protocol), DIRECTION_COLUMNS, DIRECTION_KEY)
                done += sampler.grid.steps
            else:
                # Another process has done it since, or is at it: the time left is judged without it.
                total -= sampler.grid.steps
        if progress:
            progress(done, total, f"{cell.label} done")
    rows = read_rows(results, DIRECTION_COLUMNS)
    return pd.concat([_rows_of(rows, bench.model.name, cell, protocol) for cell in cells], ignore_index=True)


def order(cell: Cell) -> tuple:
    """Few evaluations first, and cells of one grid one after another: they share the true trajectory."""
    return cell.nfe, cell.grid, cell.make_solver().for_nfe(cell.nfe)[1]


def measurable(bench: Bench, cells: Sequence[Cell], most_nfe: int) -> tuple[list[Cell], int]:
    """The cells of a table that have a direction error, and how many of them have no timing yet and are left out.

    A cell that draws noise, or whose network is corrected while it samples, has none; nor are those of more than ``most_nfe``
    evaluations looked at.
    """
    plain = [cell for cell in cells if cell.nfe <= most_nfe and read_correction(cell.timing) is None]
    plain = [cell for cell in dict.fromkeys(plain) if not cell.make_solver().stochastic]
    ready = [cell for cell in plain if cell.timing == UNTUNED or timing_path(bench.model.name, cell).exists()]
    return ready, len(plain) - len(ready)


def _timing(bench: Bench, cell: Cell) -> Timing | None:
    if cell.make_solver().stochastic:
        raise BadValue(
            f"{cell.solver} draws noise and follows no trajectory; leave it out, its direction error is not defined"
        )
    if read_correction(cell.timing) is not None:
        raise BadValue(
            f"{cell.timing} corrects the network while it samples and has no timing; leave it out of a study of directions"
        )
    return require_timing(bench.model.name, cell)


def _rows(frame: pd.DataFrame, bench: Bench, cell: Cell, protocol: Protocol) -> list[dict[str, Any]]:
    facts = {
        "model": bench.model.name,
        "solver": cell.solver,
        "grid": cell.grid,
        "nfe": cell.nfe,
        "eta": cell.eta,
        "timing": cell.timing,
        "n": protocol.n,
        "seed": protocol.seed,
        "substeps": protocol.substeps,
        "device": device_name(bench.device),
        **provenance(),
    }
    rounded = frame.apply(
        lambda column: column if column.name == "step" else column.map(lambda value: float(f"{value:.6g}"))
    )
    return [{**facts, **row, "step": int(row["step"])} for row in rounded.to_dict("records")]


def _rows_of(rows: pd.DataFrame, model: str, cell: Cell, protocol: Protocol) -> pd.DataFrame:
    wanted = {
        "model": model,
        "solver": cell.solver,
        "grid": cell.grid,
        "nfe": cell.nfe,
        "eta": cell.eta,
        "timing": cell.timing,
        "n": protocol.n,
        "seed": protocol.seed,
        "substeps": protocol.substeps,
    }
    return rows[matching(rows, wanted)].sort_values("step")
