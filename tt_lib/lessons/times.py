"""How long the lessons take at larger scales: measured, kept as rows of ``speed.csv``, and told to the reader.

``python -m tt_lib.lessons.times SCALE [NOTEBOOK ...]`` runs lessons (all of them, unless some are named) at that scale on this
machine and writes a row for each; the notebooks stay as they are. ``python -m tt_lib.lessons.index`` then writes what the rows
say into their first cells. (What ``TT_SCALE=ci`` takes is in :mod:`tt_lib.lessons.budgets`, cell by cell.)
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from tt_lib.errors import BadValue, choose
from tt_lib.lessons.books import command, lessons, named, read, run
from tt_lib.lessons.scale import SCALES
from tt_lib.results import SPEED_COLUMNS, SPEED_KEY, read_rows, results_folder, write_rows

HEADING = "**Larger scales, measured.**"
_BEFORE = "**How long it takes.**"


def label(name: str, scale: str) -> str:
    """What the row of a lesson is called."""
    return f"notebook {name}, TT_SCALE={scale}"


def measure(paths: list[Path], scale: str, results: Path) -> None:
    """Run lessons at a scale, each in a fresh kernel, and write a row for each as soon as it is done.

    Raises:
        BadValue: an unknown scale, or a cell ends in an error.
    """
    import torch

    from tt_lib.speed import speed_row

    choose("TT_SCALE", scale, SCALES)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for number, path in enumerate(paths, 1):
        print(f"{number} of {len(paths)}: {path.name} at {scale} ...", flush=True)
        row = speed_row(label(path.stem, scale), sum(run(read(path), path.parent, scale)), None, "s", device)
        write_rows(results, [{**row, "command": f"python -m tt_lib.lessons.times {scale}"}], SPEED_COLUMNS, SPEED_KEY)
        print(f"{row['what']}: {row['ours']} s on {row['device']}", flush=True)


def told(name: str) -> str:
    """What the rows say of a lesson, as a sentence; empty if none of them is of it."""
    rows = read_rows(results_folder() / "speed.csv", SPEED_COLUMNS)
    parts = [
        f"`TT_SCALE={scale}` took {duration(float(row['ours']))} on {machine(str(row['device']))}"
        for scale in SCALES for row in rows[rows["what"] == label(name, scale)].to_dict("records")
    ]  # fmt: skip
    return f"{', '.join(parts)}." if parts else ""


def duration(seconds: float) -> str:
    """Seconds in words: "45 s", "7 min"."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def machine(device: str) -> str:
    """A row's device in words."""
    threads = re.fullmatch(r"cpu \((\d+) threads?\)", device)
    return f"{threads[1]} CPU cores" if threads else f"a machine with an {device}"


def set_times(book: Any, name: str) -> bool:
    """Write what was measured into a lesson's first cell, behind how long it takes; return whether anything changed."""
    cell, said = book.cells[0], told(name)
    bare = re.sub(rf"\n\n{re.escape(HEADING)}[^\n]*", "", cell.source)
    paragraph = re.compile(rf"{re.escape(_BEFORE)}.*?(?=\n\n|\Z)", re.S)
    wanted = paragraph.sub(lambda found: f"{found[0]}\n\n{HEADING} {said} <!-- constant -->", bare, count=1) if said else bare
    changed = wanted != cell.source
    cell.source = wanted
    return changed


def main(arguments: list[str]) -> int:
    """The command; 0 where all is well."""

    def job() -> None:
        if not arguments or arguments[0] not in SCALES:
            raise BadValue(f"usage: python -m tt_lib.lessons.times {'|'.join(SCALES)} [NOTEBOOK ...]")
        paths = named(arguments[1:], "give the paths of lessons, or none for all of them")
        measure(paths or lessons(), arguments[0], results_folder() / "speed.csv")

    return command(job)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
