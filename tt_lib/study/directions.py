"""Direction errors of many samplers as rows of ``direction.csv``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from tt_lib.baselines import read_correction
from tt_lib.errors import BadValue, check_range
from tt_lib.metrics.direction import measure_directions, reference_trajectory
from tt_lib.networks.running import cudnn_flags
from tt_lib.noise import SampleNoise, check_seeds
from tt_lib.rows import DIRECTION_COLUMNS, DIRECTION_KEY, device_name, matching, provenance, read_rows, short_hash
from tt_lib.sampling import Sampler
from tt_lib.schedules import along
from tt_lib.study.cells import Cell, require_timing, timing_path
from tt_lib.study.run_cells import Report, Row, run_cells
from tt_lib.study.workbench import Bench, Progress
from tt_lib.timing import UNTUNED


@dataclass(frozen=True)
class Protocol:
    """How directions are measured.

    Attributes:
        n: samples, each its own trajectory.
        seed: of the first sample; a sample's seed is its own, so these are the first samples of a table's cells.
        substeps: steps of the converged solution in each interval.
    """

    n: int = 64
    seed: int = 0
    substeps: int = 16

    def __post_init__(self) -> None:
        check_range("n of directions", self.n, 2, 10_000)  # an interval needs two, and all are in memory at once
        check_range("substeps of directions", self.substeps, 1, 1000)
        check_seeds(self.seed, self.n)


@cudnn_flags(allow_tf32=False)
@torch.no_grad()
def run_directions(
    bench: Bench,
    cells: Sequence[Cell],
    protocol: Protocol,
    results: Path,
    work: Path,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Measure the directions of each cell and write a row for each step, by :func:`run_cells`.

    Args:
        bench: the model.
        cells: deterministic samplers; tuned ones need their timing in ``data/timings``. Those of one grid share the
            true trajectory where they follow each other.
        results: the ``direction.csv`` to write to.
        work: folder for the locks of the cells that are being measured.
        force: measure again what has rows.
        progress: called with (intervals done, of all that this call has to do, message).

    Returns:
        The rows of these cells, in order; none of a cell that another process has not yet measured.

    Raises:
        BadValue: a cell draws noise.
        MissingFile: a cell's timing is not there.
    """
    # All is looked at before anything is measured: a missing timing is not found out after an hour.
    samplers = {cell: _sampler(bench, cell) for cell in cells}
    x = SampleNoise(range(protocol.seed, protocol.seed + protocol.n)).start(bench.model.shape).to(bench.device)
    trajectory: tuple[tuple[float, ...], tuple[Tensor, ...]] | None = None

    def pending(rows: pd.DataFrame, cell: Cell) -> bool:
        return force or not matching(rows, _where(bench, cell, protocol)).any()

    def run(cell: Cell, _: bool, report: Report) -> Iterator[list[Row]]:
        nonlocal trajectory
        sampler = samplers[cell]
        if trajectory is None or trajectory[0] != sampler.grid.times:
            start = along(sampler.schedule.scale(sampler.grid.tensor()[0]), x) * x
            truth = reference_trajectory(bench.predictor, sampler.schedule, sampler.grid, start, protocol.substeps)
            trajectory = sampler.grid.times, truth
        frame = measure_directions(
            bench.predictor,
            sampler.schedule,
            sampler.solver,
            sampler.grid,
            trajectory[1][0],
            sampler.timing.taus if sampler.timing else None,
            gains=(sampler.timing.gains or None) if sampler.timing else None,
            substeps=protocol.substeps,
            reference=trajectory[1],
            progress=lambda step, of, message: report(step, cell.label),
        ).frame()
        yield _rows(frame, bench, cell, protocol)

    run_cells(
        cells,
        results,
        DIRECTION_COLUMNS,
        DIRECTION_KEY,
        bench.work_in(work),
        pending=pending,
        run=run,
        cost=lambda cell: samplers[cell].grid.steps,
        progress=progress,
    )
    rows = read_rows(results, DIRECTION_COLUMNS)
    own = [rows[matching(rows, _where(bench, cell, protocol))].sort_values("step") for cell in cells]
    return pd.concat(own, ignore_index=True)


def order(cell: Cell) -> tuple:
    """Few evaluations first, and cells of one grid one after another: they share the true trajectory."""
    return cell.nfe, cell.grid, cell.make_solver().for_nfe(cell.nfe)[1]


def measurable(bench: Bench, cells: Sequence[Cell], most_nfe: int) -> tuple[list[Cell], int]:
    """The cells of a table that have a direction error, and how many have no timing yet and are left out.

    A cell that draws noise, or whose network is corrected while it samples, has none. Those of more than ``most_nfe``
    evaluations are left out, too.
    """
    plain = [cell for cell in cells if cell.nfe <= most_nfe and read_correction(cell.timing) is None]
    plain = [cell for cell in dict.fromkeys(plain) if not cell.make_solver().stochastic]
    ready = [cell for cell in plain if cell.timing == UNTUNED or timing_path(bench.model.name, cell).exists()]
    return ready, len(plain) - len(ready)


def _sampler(bench: Bench, cell: Cell) -> Sampler:
    if cell.make_solver().stochastic:
        raise BadValue(
            f"{cell.solver} draws noise and follows no trajectory; leave it out, its direction error is not defined"
        )
    if read_correction(cell.timing) is not None:
        raise BadValue(
            f"{cell.timing} corrects the network while it samples; leave it out, direction errors are not defined"
        )
    return bench.sampler(cell, require_timing(bench.model.name, cell))


def _rows(frame: pd.DataFrame, bench: Bench, cell: Cell, protocol: Protocol) -> list[Row]:
    facts = {**_where(bench, cell, protocol), "device": device_name(bench.device), **provenance()}
    return [
        {**facts, **{name: float(f"{value:.6g}") for name, value in row.items()}, "step": int(row["step"])}
        for row in frame.to_dict("records")
    ]


def _where(bench: Bench, cell: Cell, protocol: Protocol) -> dict:
    """The columns that name a cell's rows."""
    weights = short_hash(bench.model.digest)
    return {"model": bench.model.name, "weights": weights, **asdict(cell), **asdict(protocol)}
