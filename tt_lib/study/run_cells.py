"""The loop that fills a file of rows, cell by cell: the same for tables of distances and for direction errors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from tt_lib.files import hold
from tt_lib.metrics.world import ALONE, World
from tt_lib.rows import read_rows, write_rows
from tt_lib.study.cells import Cell
from tt_lib.study.workbench import Progress

T = TypeVar("T")
Row = dict[str, Any]
Report = Callable[[int, str], None]
"""Called with what is done of a cell, and a message."""


def run_cells(
    cells: Sequence[Cell],
    results: Path,
    columns: Sequence[str],
    key: Sequence[str],
    work: Path,
    *,
    pending: Callable[[pd.DataFrame, Cell], T],
    run: Callable[[Cell, T, Report], Iterable[list[Row]]],
    cost: Callable[[Cell], int],
    world: World = ALONE,
    progress: Progress | None = None,
) -> list[Row]:
    """Run what the cells have no rows of, and write the rows.

    A cell that has its rows is skipped, so a killed run goes on where it was. Several processes may work on one file
    (one for each GPU, say): a cell that another one holds is left to it.

    Args:
        results, columns, key: the file, and its columns and key (:mod:`tt_lib.rows`).
        work: folder for the locks.
        pending: given all rows, what a cell still needs; something false where it is done.
        run: does that for a cell, and yields rows. They are written before it goes on.
        cost: of a cell, in the unit of the progress.
        world: the processes that do each cell together; the main one asks, locks and writes.
        progress: called with (done, of all that this call has to do, message).

    Returns:
        The rows that this call wrote.
    """
    rows = read_rows(results, columns) if world.main else pd.DataFrame()
    todo = world.decide([cell for cell in cells if pending(rows, cell)] if world.main else [])
    done, total, written = 0, sum(cost(cell) for cell in todo), []
    for cell in todo:
        with hold(work / f"{cell.label}.lock") if world.main else nullcontext(False) as held:
            # Another process may have done it since, or be at it.
            needed = world.decide(pending(read_rows(results, columns), cell) if held else None)
            if needed:

                def report(count: int, message: str, base: int = done, of: int = total) -> None:
                    if progress:
                        progress(base + count, of, message)

                for new in run(cell, needed, report):
                    if world.main:
                        write_rows(results, new, columns, key)
                    written += new
                done += cost(cell)
            else:
                # No work of this process: the time left is judged without it.
                total -= cost(cell)
        if progress:
            progress(done, total, f"{cell.label} done")
    return written
