"""How long the notebooks take: measured, written down, enforced by the tests and told to the reader.

``python notebooks/tools/times.py [NOTEBOOK ...]`` runs notebooks (all, unless some are named) at ``TT_SCALE=ci`` on two threads and
writes the seconds of each cell to ``notebooks/budgets.toml``, which the tests enforce with a margin; a lesson's metadata
(``tt.minutes_cpu``) is set with it. With a scale, ``python notebooks/tools/times.py laptop``, it runs lessons at that scale and
writes a row of ``speed.csv`` for each; ``python notebooks/tools/index.py`` then writes what the rows say into their first cells.
"""

from __future__ import annotations

import os
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

from books import NOTEBOOKS, command, exercises, lessons, named, read, run, write

from tt_lib.errors import BadValue, choose
from tt_lib.files import write_text
from tt_lib.lessons.kit import SCALES
from tt_lib.rows import SPEED_COLUMNS, SPEED_KEY, read_rows, results_folder, write_rows

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

    from tt_lib.study.speed import speed_row

    choose("TT_SCALE", scale, SCALES)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for number, path in enumerate(paths, 1):
        print(f"{number} of {len(paths)}: {path.name} at {scale} ...", flush=True)
        row = speed_row(label(path.stem, scale), sum(run(read(path), path.parent, scale)), None, "s", device)
        write_rows(results, [{**row, "command": f"python notebooks/tools/times.py {scale}"}], SPEED_COLUMNS, SPEED_KEY)
        print(f"{row['what']}: {row['ours']} s on {row['device']}", flush=True)


def told(name: str) -> str:
    """What the rows say of a lesson, as a sentence; empty if none of them is of it."""
    rows = read_rows(results_folder() / "speed.csv", SPEED_COLUMNS)
    parts = [
        f"`TT_SCALE={scale}` took {duration(float(row['ours']))} on {machine(str(row['device']))}"
        for scale in SCALES
        for row in rows[rows["what"] == label(name, scale)].to_dict("records")
    ]
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
    wanted = (
        paragraph.sub(lambda found: f"{found[0]}\n\n{HEADING} {said} <!-- constant -->", bare, count=1)
        if said
        else bare
    )
    changed = wanted != cell.source
    cell.source = wanted
    return changed


# ---- cell by cell, at TT_SCALE=ci


FILE = "budgets.toml"
MARGIN = 5.0
"""How many times as long as measured a cell may take in a test: other machines are slower, and other processes run."""
LEAST = 10.0
"""Seconds that every cell may take in a test, so that a slow disk is no failure."""
THREADS = "2"
HEADER = f"""\
# Seconds that each code cell takes at TT_SCALE=ci on {THREADS} CPU cores, in order; written by `python notebooks/tools/times.py`.
# A test fails where a cell takes {MARGIN:g} times as long, and more than {LEAST:g} s.
"""
_NUMBERS = {
    "a": 1.0,
    "an": 1.0,
    "one": 1.0,
    "two": 2.0,
    "three": 3.0,
    "four": 4.0,
    "five": 5.0,
    "ten": 10.0,
    "half": 0.5,
    "half a": 0.5,
}
_DURATION = re.compile(
    r"(?<![\w.])(\d+(?:\.\d+)?|half an?|an?|one|two|three|four|five|ten)(?: (?:or|to) (\w+))?[ -](s|seconds?|min|minutes?)\b",
    re.I,
)


def load(folder: Path = NOTEBOOKS) -> dict[str, list[float]]:
    """The file: seconds of each code cell, by the notebook's path in ``folder``."""
    path = folder / FILE
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def save(budgets: dict[str, list[float]], folder: Path = NOTEBOOKS) -> None:
    """Write the file."""
    lines = [
        f'"{name}" = [{", ".join(f"{each:.1f}" for each in seconds)}]' for name, seconds in sorted(budgets.items())
    ]
    write_text(folder / FILE, HEADER + "\n" + "\n".join(lines) + "\n")


def allowed(seconds: float) -> float:
    """Seconds that a cell may take in a test, from those that it took when it was measured."""
    return max(MARGIN * seconds, LEAST)


def durations(text: str) -> list[float]:
    """The seconds that a text speaks of: "about 30 seconds" is 30, "a minute or two" and "1 to 2 minutes" are 60 and 120."""
    found = []
    for first, second, unit in _DURATION.findall(
        re.sub(r"\b(an?|one) minute or two\b", r"\1 or two minutes", text, flags=re.I)
    ):
        scale = 60.0 if unit.lower().startswith("min") else 1.0
        for word in (first, second):
            word = re.sub(r"^half an?$", "half", word.lower())
            if word in _NUMBERS or re.fullmatch(r"\d+(?:\.\d+)?", word):
                found.append(scale * (_NUMBERS[word] if word in _NUMBERS else float(word)))
    return found


def agrees(said: list[float], measured: float) -> bool:
    """Whether one of the durations that a reader is told is about the measured one: within a factor of 2.5, or of 20 s."""
    return any(measured / 2.5 <= each <= measured * 2.5 or abs(each - measured) <= 20 for each in said)


def measure_cells(paths: list[Path], folder: Path = NOTEBOOKS) -> dict[str, list[float]]:
    """Run notebooks and write how long their cells took; entries of notebooks that are gone are dropped.

    Returns:
        What the file holds now.
    """
    os.environ["OMP_NUM_THREADS"] = THREADS
    known = {str(path.relative_to(folder)) for path in (*lessons(folder), *exercises(folder))}
    budgets = {name: seconds for name, seconds in load(folder).items() if name in known}
    for path in paths:
        name = str(path.resolve().relative_to(folder.resolve()))
        budgets[name] = [round(each, 1) for each in run(read(path), path.parent)]
        save(budgets, folder)
        book = read(path)
        if "minutes_cpu" in book.metadata.get("tt", {}):
            book.metadata["tt"]["minutes_cpu"] = round(sum(budgets[name]) / 60, 1)
            write(path, book)
        print(f"{name}: {sum(budgets[name]):.0f} s, the longest cell {max(budgets[name], default=0):.0f} s")
    return budgets


def main(arguments: list[str]) -> int:
    """The command; 0 where all is well."""

    def job() -> None:
        if arguments and arguments[0] in SCALES:
            paths = named(arguments[1:], "give the paths of lessons, or none for all of them")
            measure(paths or lessons(), arguments[0], results_folder() / "speed.csv")
        else:
            usage = f"usage: python notebooks/tools/times.py [{'|'.join(SCALES)}] [NOTEBOOK ...]"
            measure_cells(named(arguments, usage) or [*lessons(), *exercises()])

    return command(job)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
