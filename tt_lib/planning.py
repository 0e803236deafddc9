"""What a table will cost before it is run: for each cell what is done, and the network evaluations of what is not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch

from tt_lib.bench import HELD_OUT, Cell, find_timing
from tt_lib.grids import make_grid
from tt_lib.models import load_model
from tt_lib.results import FD_COLUMNS, read_rows
from tt_lib.schedules import Schedule
from tt_lib.solvers import Solver
from tt_lib.tables import Table, has_row
from tt_lib.timing import UNTUNED
from tt_lib.tuning.config import TuneConfig
from tt_lib.tuning.joint import JointConfig
from tt_lib.tuning.layout import layout
from tt_lib.tuning.tuner import count_evaluations


@dataclass(frozen=True)
class Plan:
    """One cell of a table.

    Attributes:
        measured, tuned: whether its row and its timing are there (a cell that needs no tuning counts as tuned).
        sampling, tuning: network evaluations of one image each that making them takes, whether or not they are there;
            a joint tuning may end sooner. The few that measure gamma are left out.
    """

    cell: Cell
    measured: bool
    tuned: bool
    sampling: int
    tuning: int

    @property
    def left(self) -> tuple[int, int]:
        """Evaluations for sampling and for tuning that are still to be made."""
        return (0, 0) if self.measured else (self.sampling, 0 if self.tuned else self.tuning)


def plan_table(table: Table, results: Path) -> Iterator[Plan]:
    """The cells of a table, in order; the model must be there, for its schedule and its weights' hash.

    Args:
        results: the ``fd.csv`` in which rows are looked for.
    """
    model = load_model(table.model)
    rows = read_rows(results, FD_COLUMNS)
    for cell in table.cells:
        config = table.config(cell)
        timing = find_timing(model.name, cell) if config else None
        ready = config is None or (timing is not None and timing.weights == model.digest)
        cost = tuning_cost(table, cell, model.schedule)
        measured = all(has_row(rows, table, model.name, name, cell) for name in (table.features, *table.also))
        yield Plan(cell, measured, ready, table.cost(cell), cost)


def tuning_cost(table: Table, cell: Cell, schedule: Schedule) -> int:
    """Evaluations that tuning a cell takes, at most where it is tuned jointly; 0 where nothing is tuned."""
    config = table.config(cell)
    if config is None:
        return 0
    solver, steps = _solver(cell)
    if isinstance(config, JointConfig):
        grid = make_grid(cell.grid, steps, schedule)
        tuned = sum(each.step < steps - config.freeze_last for each in layout(solver, torch.tensor(grid.times, dtype=torch.float64), schedule))
        return (1 + tuned * config.tries) * config.samples * cell.nfe
    # The grid says at which times, not how often.
    return _steps_cost(replace(cell, timing=UNTUNED, grid="logsnr"), config, table.images_of(cell)[1], schedule)


@lru_cache(maxsize=4096)
def _steps_cost(cell: Cell, config: TuneConfig, images: int, schedule: Schedule) -> int:
    solver, steps = _solver(cell)
    return count_evaluations(schedule, solver, make_grid(cell.grid, steps, schedule), config, images, HELD_OUT)


def _solver(cell: Cell) -> tuple[Solver, int]:
    """The solver of a cell and its steps; a gamma that is yet to be measured is taken as 1, which costs the same."""
    solver, steps = cell.make_solver().for_nfe(cell.nfe)
    gamma = {"gamma": (1.0,) * steps} if solver.needs_gamma else {}
    return replace(solver, options={**solver.options, **gamma}), steps


def plan_lines(table: Table, results: Path) -> Iterator[str]:
    """A line for each cell, and the sums."""
    sampling = tuning = cells = 0
    for plan in plan_table(table, results):
        state = "done" if plan.measured else "tuned" if plan.tuned and table.config(plan.cell) else "to do"
        cost = "" if plan.measured else f", {plan.left[0]:,} for sampling, {plan.left[1]:,} for tuning"
        yield f"{plan.cell.label}: {state}{cost}"
        sampling, tuning, cells = sampling + plan.left[0], tuning + plan.left[1], cells + (not plan.measured)
    yield f"{cells} of {len(table.cells)} cells to do: {sampling:,} evaluations for sampling, {tuning:,} for tuning"
