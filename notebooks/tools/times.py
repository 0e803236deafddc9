"""Run the notebooks: store what they give, and write down how long they take, for the tests and for readers.

``python notebooks/tools/times.py [NOTEBOOK ...]`` runs notebooks (all, unless some are named) at ``TT_SCALE=ci`` on two
threads, stores them executed, and writes the seconds of each cell to ``notebooks/budgets.toml``; a test refuses a cell
that took too long. One whose metadata ``tt.stored`` names a larger scale is then run again, and stored as it is there:
the tests compare only what is the same at both. With a larger scale, ``python notebooks/tools/times.py laptop [LESSON
...]``, it stores nothing in them and writes a row of ``speed.csv`` for each. ``python notebooks/tools/index.py`` then
says in their first cells and in the index what was measured.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import tomllib
from pathlib import Path

from books import NOTEBOOKS, command, exercises, lessons, read, run, write

from tt_lib.errors import BadValue
from tt_lib.files import write_text
from tt_lib.lessons.kit import SCALES
from tt_lib.rows import SPEED_COLUMNS, SPEED_KEY, read_rows, results_folder, write_rows

FILE = "budgets.toml"
THREADS = "2"
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


def label(name: str, scale: str) -> str:
    """What the row of a lesson is called."""
    return f"notebook {name}, TT_SCALE={scale}"


def measure_scale(paths: list[Path], scale: str, results: Path) -> None:
    """Run lessons at a larger scale, each in a fresh kernel, and write a row for each as soon as it is done.

    Raises:
        BadValue: a cell ends in an error.
    """
    import torch

    from tt_lib.study.speed import speed_row

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    read_rows(results, SPEED_COLUMNS)  # a damaged file is refused now, and not when a lesson has run
    for path in paths:
        row = speed_row(label(path.stem, scale), sum(run(read(path), path.parent, scale)), None, "s", device)
        write_rows(results, [{**row, "command": f"python notebooks/tools/times.py {scale}"}], SPEED_COLUMNS, SPEED_KEY)
        print(f"{row['what']}: {row['ours']} s on {row['device']}", flush=True)


def duration(seconds: float) -> str:
    """Seconds in words, to what another machine would say: "30 s", "7 min"."""
    return f"{max(10, round(seconds, -1)):.0f} s" if seconds < 95 else f"{seconds / 60:.0f} min"


def measured(path: Path) -> str:
    """How long a lesson takes, as a sentence: to read, where its metadata ``tt.minutes`` says so, and to run.

    The times to run are those of ``budgets.toml`` beside it and, without ``tt.minutes``, the rows of larger scales.
    """
    seconds = sum(load(path.parent).get(path.name, []))
    if minutes := read(path).metadata.get("tt", {}).get("minutes"):
        return f"About {minutes} minutes to read. Its cells run in {duration(seconds)} on {THREADS} CPU cores."
    took = [(SCALES[0], seconds, f"cpu ({THREADS} threads)")]
    rows = read_rows(results_folder() / "speed.csv", SPEED_COLUMNS).set_index("what")
    for scale in SCALES[1:]:
        for row in rows.loc[rows.index == label(path.stem, scale)].to_dict("records"):
            took.append((scale, float(row["ours"]), str(row["device"])))
    return f"{', '.join(f'`TT_SCALE={scale}` {duration(time)} on {machine(device)}' for scale, time, device in took)}."


def machine(device: str) -> str:
    """A row's device in words."""
    threads = re.fullmatch(r"cpu \((\d+) threads?\)", device)
    return f"{threads[1]} CPU cores" if threads else f"a machine with an {device}"


def main(arguments: list[str]) -> int:
    """The command; 0 where all is well."""

    def job() -> None:
        scale, names = (
            (arguments[0], arguments[1:]) if arguments[:1] in [[each] for each in SCALES] else (SCALES[0], arguments)
        )
        for name in names:
            if not Path(name).is_file():
                usage = f"python notebooks/tools/times.py [{'|'.join(SCALES)}] [NOTEBOOK ...]"
                raise BadValue(f"no notebook {name!r}; usage: {usage}")
        paths = [Path(name) for name in names]
        if scale == SCALES[0]:
            measure_cells(paths or [*lessons(), *exercises()])
        else:
            measure_scale(paths or lessons(), scale, results_folder() / "speed.csv")

    return command(job)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
