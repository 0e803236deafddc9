"""Run the notebooks: store what they give, and write down how long they take, for the tests and for readers.

``python notebooks/tools/times.py [NOTEBOOK ...]`` runs notebooks (all, unless some are named) at ``TT_SCALE=ci`` on two
threads, stores them executed, and writes the seconds of each cell to ``notebooks/budgets.toml``; a test refuses a cell
that took too long. One whose metadata ``tt.stored`` names a larger scale is then run again, and stored as it is there:
the tests compare only what is the same at both. ``python notebooks/tools/index.py`` then says in their first cells and
in the index what was measured, and how long a lesson takes to read.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
import tomllib
from pathlib import Path

from books import INSTALL_MARK, NOTEBOOKS, command, exercises, lessons, read, run, write
from nbformat import NotebookNode

from tt_lib.errors import BadValue
from tt_lib.files import write_text

FILE = "budgets.toml"
THREADS = "2"
WORDS, LINES, FIGURES = 150, 15, 2
"""What a reader of a second language takes in a minute: words, lines of code, figures."""
HEADER = f"""\
# Seconds that each code cell takes at TT_SCALE=ci on {THREADS} CPU cores; written by `python notebooks/tools/times.py`.
"""


def load(folder: Path = NOTEBOOKS) -> dict[str, list[float]]:
    """The file: seconds of each code cell, by the notebook's path in ``folder``."""
    path = folder / FILE
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def save(budgets: dict[str, list[float]], folder: Path = NOTEBOOKS) -> None:
    """Write the file."""
    rows = [f'"{name}" = [{", ".join(f"{each:.1f}" for each in cells)}]\n' for name, cells in sorted(budgets.items())]
    write_text(folder / FILE, f"{HEADER}\n{''.join(rows)}")


def measure_cells(paths: list[Path], folder: Path = NOTEBOOKS) -> None:
    """Run notebooks, store them executed, and write how long their cells took; what is gone loses its entry.

    Raises:
        BadValue: a cell ends in an error.
    """
    os.environ["OMP_NUM_THREADS"] = THREADS
    names = {path.relative_to(folder).as_posix() for path in (*lessons(folder), *exercises(folder))}
    for path in paths:
        book = read(path)
        with tempfile.TemporaryDirectory() as fresh:  # what a notebook keeps in runs/ would hide what it costs
            seconds = run(book, Path(fresh))
            if larger := book.metadata.get("tt", {}).get("stored"):
                run(book, Path(fresh), larger)
        write(path, book)
        name = path.resolve().relative_to(folder.resolve()).as_posix()
        save({each: cells for each, cells in load(folder).items() if each in names} | {name: seconds}, folder)
        print(f"{name}: {sum(seconds):.0f} s, the longest cell {max(seconds, default=0):.0f} s", flush=True)


def duration(seconds: float) -> str:
    """Seconds in words, to what another machine would say: "30 s", "7 min"."""
    return f"{max(10, round(seconds, -1)):.0f} s" if seconds < 95 else f"{seconds / 60:.0f} min"


def reading(book: NotebookNode) -> int:
    """Minutes to read a notebook, to the next five: text, code but for what installs the library, figures."""
    words = sum(len(cell.source.split()) for cell in book.cells if cell.cell_type == "markdown")
    code = [cell for cell in book.cells if cell.cell_type == "code" and INSTALL_MARK not in cell.source]
    lines = sum(len(cell.source.splitlines()) for cell in code)
    figures = sum("image/png" in output.get("data", {}) for cell in code for output in cell.outputs)
    return 5 * math.ceil((words / WORDS + lines / LINES + figures / FIGURES) / 5)


def measured(path: Path) -> str:
    """How long a lesson takes, as a sentence: to read, and to run by ``budgets.toml`` beside it."""
    seconds = sum(load(path.parent).get(path.name, []))
    return f"About {reading(read(path))} minutes to read. Its cells run in {duration(seconds)} on {THREADS} CPU cores."


def main(arguments: list[str]) -> int:
    """The command; 0 where all is well."""

    def job() -> None:
        for name in arguments:
            if not Path(name).is_file():
                raise BadValue(f"no notebook {name!r}; usage: python notebooks/tools/times.py [NOTEBOOK ...]")
        measure_cells([Path(name) for name in arguments] or [*lessons(), *exercises()])

    return command(job)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
