"""Values that others have published, to stand beside measured ones: never results of this project."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tt_lib.files import data_folder
from tt_lib.results import read_rows
from tt_lib.timing import UNTUNED

COLUMNS = ("dataset", "metric", "solver", "grid", "nfe", "eta", "value", "source")


def published_beside(row: Mapping[str, Any]) -> str:
    """What was published for the untuned sampler of a row of ``fd.csv``, with the source; nothing if there is none.

    The values are in ``data/tables/published.csv``. Their networks, grids and last steps are their authors': small differences
    in these move an FID by more than its interval.
    """
    if row["timing"] != UNTUNED:
        return ""
    rows = read_rows(data_folder() / "tables" / "published.csv", COLUMNS)
    for name in ("dataset", "metric", "solver", "grid", "nfe", "eta"):
        rows = rows[rows[name] == row[name]]
    return "".join(f"; published {value:g} ({source})" for value, source in zip(rows["value"], rows["source"], strict=True))
