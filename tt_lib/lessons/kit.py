"""What every notebook is written with: sizes, numbers from rows, and checks of exercises.

- ``TT_SCALE`` is ``ci`` (seconds, for the tests; what the stored outputs are of, all but the lab's), ``laptop``
  (minutes on a CPU) or ``full`` (a GPU). It changes sizes only, never what is computed.
- A sentence with a number is a code cell, ``prose(f"... {fact('fd', nfe=10, ...)} ...")``. Its output is text, and
  nbval compares it with what the rows say today, so that no number can be out of date.
- A check stands below an exercise. The same cell stands in the exercise and in its solution, and runs in both.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tt_lib.errors import BadValue, choose
from tt_lib.rows import read_rows, results_folder

if TYPE_CHECKING:
    import pandas as pd

SCALES = ("ci", "laptop", "full")
TODO = "your code here"
"""What an unsolved exercise raises as NotImplementedError (notebooks/tools/exercises.py writes it)."""
T = TypeVar("T")


def scale() -> str:
    """The scale of this run, from the environment variable ``TT_SCALE``; ``ci`` where it is not set.

    Raises:
        BadValue: it is none of :data:`SCALES`.
    """
    chosen = os.environ.get("TT_SCALE", "ci")
    choose("TT_SCALE", chosen, SCALES)
    return chosen


def scaled(ci: T, laptop: T, full: T) -> T:
    """The one of three sizes that this run's :func:`scale` asks for."""
    return {"ci": ci, "laptop": laptop, "full": full}[scale()]


@lru_cache(maxsize=8)
def _rows(path: Path, changed: int) -> pd.DataFrame:
    # A file is read strictly, which takes a moment, and a lesson asks it for dozens of numbers.
    return read_rows(path)


def fact(file: str, column: str = "value", digits: int = 2, **where: Any) -> str:
    """One number of one row, as text.

    Args:
        file: name of a file of rows in ``data/results``, without ``.csv``.
        column: which number.
        digits: behind the point.
        where: columns and the values that single the row out; a part of a text will do where no row has it as it
            stands.

    Raises:
        BadValue: no such file or column, no such row, or several.
        CorruptFile: the file is damaged.
    """
    path = results_folder() / f"{file}.csv"
    if not path.exists():
        files = ", ".join(sorted(each.stem for each in results_folder().glob("*.csv")))
        raise BadValue(f"no rows {file!r}; choose one of {files}")
    rows = _rows(path, path.stat().st_mtime_ns)
    for name in (column, *where):
        if name not in rows:
            raise BadValue(f"{file}.csv has no column {name!r}; it has {', '.join(rows.columns)}")
    for name, value in where.items():
        exact = rows[rows[name] == value]
        if exact.empty and isinstance(value, str):
            exact = rows[rows[name].astype(str).str.contains(value, regex=False)]
        rows = exact
    if len(rows) != 1:
        asked = ", ".join(f"{name}={value!r}" for name, value in where.items()) or "no condition"
        raise BadValue(f"{len(rows)} rows of {file}.csv fit {asked}; name more columns, or measure the row first")
    return f"{rows[column].iloc[0]:,.{digits}f}"


def prose(text: str) -> None:
    """Show a paragraph of Markdown as a cell's output."""
    from IPython.display import display

    # As plain text too: that is what nbval and a terminal see.
    display({"text/markdown": text, "text/plain": text}, raw=True)


def check(name: str, test: Callable[[], None]) -> None:
    """Run a test of the reader's own code and say how it went, without stopping the notebook.

    Args:
        name: what is tested.
        test: raises AssertionError, with words that help, where the code is wrong.
    """
    try:
        test()
    except NotImplementedError:
        print(f"{name}: not written yet")
    except AssertionError as error:
        print(f"{name}: not yet. {error}")
    except Exception as error:  # the reader's code may do anything
        print(f"{name}: stopped with {type(error).__name__}: {error}")
    else:
        print(f"{name}: well done")
