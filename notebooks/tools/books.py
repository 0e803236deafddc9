"""The notebooks as files: which there are, how they are read and written, and how they are run."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tt_lib.errors import BadValue, CorruptFile, TTError
from tt_lib.files import PACKAGE_ROOT, write_text
from tt_lib.lessons.kit import SCALES

NOTEBOOKS = PACKAGE_ROOT / "notebooks"
"""Where the lessons lie: ``NN_name.ipynb``, and in ``exercises/`` ``NN_name.ipynb`` beside ``NN_name_solutions.ipynb``."""

NAME = re.compile(r"\d\d_\w+\.ipynb")
SOLVED = "_solutions"
TIMEOUT = 600
"""Seconds that one cell may take at the smallest scale."""


def lessons(folder: Path = NOTEBOOKS) -> list[Path]:
    """The lessons, in order."""
    return [path for path in sorted(folder.glob("*.ipynb")) if NAME.fullmatch(path.name)]


def exercises(folder: Path = NOTEBOOKS) -> list[Path]:
    """The exercises and their solutions, in order."""
    return lessons(folder / "exercises")


def solutions(folder: Path = NOTEBOOKS) -> list[Path]:
    """The solved exercises, which the others are made from, in order."""
    return [path for path in exercises(folder) if path.stem.endswith(SOLVED)]


def named(names: list[str], remedy: str) -> list[Path]:
    """The notebooks that a command was given.

    Raises:
        BadValue: one of them is not there.
    """
    for name in names:
        if not Path(name).is_file():
            raise BadValue(f"no notebook {name!r}; {remedy}")
    return [Path(name) for name in names]


def command(job: Callable[[], int | None]) -> int:
    """What a command of the lessons ends with: what its job gives, 0 for nothing, and 1 with one line for an error that a user can mend."""
    try:
        return job() or 0
    except TTError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def read(path: Path) -> Any:
    """A notebook, in nbformat 4.

    Raises:
        CorruptFile: it is not one.
    """
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat raises many kinds
        raise CorruptFile(f"{path} is not a notebook ({error}); restore it") from error


def text(book: Any) -> str:
    """A notebook as the text of its file."""
    import nbformat

    nbformat.validate(book)
    return nbformat.writes(book).rstrip("\n") + "\n"


def write(path: Path, book: Any) -> None:
    """Write a notebook, whole or not at all."""
    write_text(path, text(book))


def code(book: Any) -> list[Any]:
    """The code cells that hold something, in order."""
    return [cell for cell in book.cells if cell.cell_type == "code" and cell.source.strip()]


def skipped(cell: Any) -> bool:
    """Whether the tests leave a cell out: its output needs a running kernel, as a slider's does."""
    return "nbval-skip" in cell.metadata.get("tags", ())


def run(book: Any, folder: Path, scale: str = SCALES[0]) -> list[float]:
    """Run a notebook from top to bottom in a fresh kernel, and store what it gives in ``book``.

    Args:
        folder: the kernel's folder, where the notebook lies.
        scale: its ``TT_SCALE``; what is stored with a notebook is of ``ci``.

    Returns:
        Seconds, one for each of :func:`code`; the start of the kernel is not among them.

    Raises:
        BadValue: a cell ends in an error.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    # The kernel's library is this one, whatever is installed, and no progress bar is stored.
    paths = [str(PACKAGE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment |= {"TT_SCALE": scale, "TQDM_DISABLE": "1", "PYTHONPATH": os.pathsep.join(paths)}
    client = NotebookClient(
        book,
        timeout=TIMEOUT if scale == SCALES[0] else None,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    seconds = []
    with client.setup_kernel(env=environment):
        for index, cell in enumerate(book.cells):
            if cell.cell_type != "code":
                continue
            cell.outputs, cell.execution_count = [], None
            if not cell.source.strip():
                continue
            start = time.perf_counter()
            try:
                client.execute_cell(cell, index)
            except CellExecutionError as error:
                raise BadValue(f"cell {index} of the notebook ends in an error; mend it:\n{error}") from error
            seconds.append(time.perf_counter() - start)
            if skipped(cell):
                cell.outputs = []
    return seconds
