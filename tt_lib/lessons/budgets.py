"""How long each cell takes: measured, written to ``notebooks/budgets.toml``, and enforced by the tests with a margin.

``python -m tt_lib.lessons.budgets`` runs every notebook at ``TT_SCALE=ci`` on two threads and writes the file; given paths, it
measures those notebooks only and leaves the other entries as they are. A lesson's metadata (``tt.minutes_cpu``) is set with it.
"""

from __future__ import annotations

import os
import re
import sys
import tomllib
from pathlib import Path

from tt_lib.files import write_text
from tt_lib.lessons.books import NOTEBOOKS, command, exercises, lessons, named, read, run, write

FILE = "budgets.toml"
MARGIN = 5.0
"""How many times as long as measured a cell may take in a test: other machines are slower, and other processes run."""
LEAST = 10.0
"""Seconds that every cell may take in a test, so that a slow disk is no failure."""
THREADS = "2"
HEADER = f"""\
# Seconds that each code cell takes at TT_SCALE=ci on {THREADS} CPU cores, in order; written by `python -m tt_lib.lessons.budgets`.
# A test fails where a cell takes {MARGIN:g} times as long, and more than {LEAST:g} s.
"""
_NUMBERS = {"a": 1.0, "an": 1.0, "one": 1.0, "two": 2.0, "three": 3.0, "four": 4.0, "five": 5.0, "ten": 10.0, "half": 0.5, "half a": 0.5}
_DURATION = re.compile(
    r"(?<![\w.])(\d+(?:\.\d+)?|half an?|an?|one|two|three|four|five|ten)(?: (?:or|to) (\w+))?[ -](s|seconds?|min|minutes?)\b", re.I
)


def load(folder: Path = NOTEBOOKS) -> dict[str, list[float]]:
    """The file: seconds of each code cell, by the notebook's path in ``folder``."""
    path = folder / FILE
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def save(budgets: dict[str, list[float]], folder: Path = NOTEBOOKS) -> None:
    """Write the file."""
    lines = [f'"{name}" = [{", ".join(f"{each:.1f}" for each in seconds)}]' for name, seconds in sorted(budgets.items())]
    write_text(folder / FILE, HEADER + "\n" + "\n".join(lines) + "\n")


def allowed(seconds: float) -> float:
    """Seconds that a cell may take in a test, from those that it took when it was measured."""
    return max(MARGIN * seconds, LEAST)


def durations(text: str) -> list[float]:
    """The seconds that a text speaks of: "about 30 seconds" is 30, "a minute or two" and "1 to 2 minutes" are 60 and 120."""
    found = []
    for first, second, unit in _DURATION.findall(re.sub(r"\b(an?|one) minute or two\b", r"\1 or two minutes", text, flags=re.I)):
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


def main_cells(arguments: list[str]) -> int:
    """The command; 0 where all is well."""

    def job() -> None:
        measure_cells(named(arguments, "usage: python -m tt_lib.lessons.budgets [NOTEBOOK ...]") or [*lessons(), *exercises()])

    return command(job)


if __name__ == "__main__":
    sys.exit(main_cells(sys.argv[1:]))
