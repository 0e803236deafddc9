"""Numbers in a notebook's prose: each is read from a row of ``data/results/``, so that none can be out of date.

A sentence with a number is a code cell, ``prose(f"... {fact('fd', nfe=10, ...)} ...")``: its output is text, and nbval compares
it with what the rows say today.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from tt_lib.errors import BadValue
from tt_lib.results import results_folder


def fact(file: str, column: str = "value", digits: int = 2, **where: Any) -> str:
    """One number of one row, as text.

    Args:
        file: name of a file of rows, without ``.csv``: ``fd``, ``direction``, ``speed``, ``correlation`` or ``training``.
        column: which number.
        digits: behind the point.
        where: columns and the values that single the row out; a column of text may be given by a part of it, if it is the only one.

    Raises:
        BadValue: no such file or column, no such row, or several.
    """
    path = results_folder() / f"{file}.csv"
    if not path.exists():
        known = ", ".join(sorted(each.stem for each in results_folder().glob("*.csv")))
        raise BadValue(f"no rows {file!r}; choose one of {known}")
    rows = pd.read_csv(path)
    for name in (column, *where):
        if name not in rows:
            raise BadValue(f"{file}.csv has no column {name!r}; it has {', '.join(rows.columns)}")
    for name, value in where.items():
        exact = rows[rows[name] == value]
        if exact.empty and isinstance(value, str):
            exact = rows[rows[name].astype(str).str.contains(value, regex=False)]
        rows = exact
    if len(rows) != 1:
        asked = ", ".join(f"{name}={value!r}" for name, value in where.items())
        raise BadValue(f"{len(rows)} rows of {file}.csv fit {asked or 'no condition'}; name more columns, or measure the row first")
    return f"{rows[column].iloc[0]:,.{digits}f}"


def prose(text: str) -> None:
    """Show a paragraph of Markdown as a cell's output."""
    from IPython.display import display

    # As plain text too: that is what nbval and a terminal see.
    display({"text/markdown": text, "text/plain": text}, raw=True)
