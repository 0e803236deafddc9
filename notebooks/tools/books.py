"""The notebooks as files: which there are, how they are read and written, and how they are run."""

from __future__ import annotations

import copy
import os
import re
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import nbformat

from tt_lib.errors import BadValue, CorruptFile, TTError
from tt_lib.files import PACKAGE_ROOT, write_text
from tt_lib.lessons.kit import SCALES

NOTEBOOKS = PACKAGE_ROOT / "notebooks"
"""Where the lessons lie, ``NN_name.ipynb``, and the exercises, ``exercises/NN_name.ipynb`` beside their solutions."""
NAME = re.compile(r"\d\d_\w+\.ipynb")
SOLVED = "_solutions"
INSTALL_MARK = 'find_spec("tt_lib") is None'
"""What tells an install cell from others."""
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


def command(job: Callable[[], int | None]) -> int:
    """What a tool ends with: what its job gives, 0 for nothing, and 1 with one line for an error to mend."""
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
    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat raises many kinds
        raise CorruptFile(f"{path} is not a notebook ({error}); restore it") from error


def text(book: Any) -> str:
    """A notebook as the text of its file."""
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
    """Run a notebook from top to bottom in a fresh kernel, and keep in ``book`` what it gives.

    Args:
        folder: the kernel's folder, where the notebook lies.
        scale: its ``TT_SCALE``; what is stored with a notebook is of ``ci``, or of what its ``tt.stored`` says.

    Returns:
        Seconds, one for each of :func:`code`, as nbclient records them; the start of the kernel is not among them.

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
        coalesce_streams=True,
        store_widget_state=False,
        resources={"metadata": {"path": str(folder)}},
    )
    metadata = copy.deepcopy(book.metadata)
    # Widgets are for readers: nbclient now and then waits for ever for one that `interact` draws into.
    widgets = [(cell, cell.source) for cell in code(book) if skipped(cell)]
    for cell, source in widgets:
        compile(source, "widget", "exec")
        cell.source = "pass"
    try:
        client.execute(env=environment)
    except CellExecutionError as error:
        raise BadValue(f"a cell of the notebook ends in an error; mend it:\n{error}") from error
    finally:
        for cell, source in widgets:
            cell.source = source
    book.metadata = metadata  # without this machine's version of Python
    seconds = []
    for cell in code(book):
        times = cell.metadata.pop("execution")
        busy, idle = (datetime.fromisoformat(times[f"iopub.status.{state}"]) for state in ("busy", "idle"))
        seconds.append((idle - busy).total_seconds())
        if skipped(cell):
            cell.outputs = []
    return seconds
