"""Exercises made from their solutions, so that the two cannot drift apart.

``python notebooks/tools/exercises.py`` makes ``notebooks/exercises/NN_name.ipynb`` from each ``NN_name_solutions.ipynb`` and stores
it executed; with ``--check`` it only says which are not what their solutions give.

In a code cell the lines from ``# BEGIN SOLUTION`` to ``# END SOLUTION`` become ``raise NotImplementedError("your code here")`` at
the same indentation; in a text cell those from ``<!-- BEGIN SOLUTION -->`` to ``<!-- END SOLUTION -->`` go. The title loses its
"solutions", and the badge opens the exercise.
"""

from __future__ import annotations

import copy
import re
import sys
from pathlib import Path
from typing import Any

from books import NOTEBOOKS, SOLVED, command, read, run, solutions, write

from tt_lib.errors import BadValue
from tt_lib.lessons.kit import TODO

CODE = re.compile(
    r"^([ \t]*)# BEGIN SOLUTION[^\n]*\n(?:(?!^[ \t]*# (?:BEGIN|END) SOLUTION)[^\n]*\n)*[ \t]*# END SOLUTION[^\n]*$",
    re.M,
)
PROSE = re.compile(
    r"^<!-- BEGIN SOLUTION -->\n(?:(?!<!-- (?:BEGIN|END) SOLUTION)[^\n]*\n)*<!-- END SOLUTION -->\n?", re.M
)
MARK = re.compile(r"\b(?:BEGIN|END) SOLUTION\b")
TITLE = re.compile(r"[ ,:–—-]*\(?\b(?:with )?solutions?\b\)?(?: (?:to|of)(?: the)?\b)?", re.I)


def unsolved(source: str, kind: str = "code") -> str:
    """A cell's source without its solution.

    Raises:
        BadValue: a solution begins and does not end, or the other way round.
    """
    if kind == "code":
        found = CODE.sub(lambda match: f'{match[1]}raise NotImplementedError("{TODO}")', source)
    else:
        found = PROSE.sub("", source)
    if MARK.search(found):
        raise BadValue(f"each BEGIN SOLUTION needs its END SOLUTION on a line of its own, in this cell:\n{source}")
    return found


def exercise_path(solved: Path) -> Path:
    """Where the exercise of a solved one lies."""
    return solved.with_name(solved.name.replace(f"{SOLVED}.ipynb", ".ipynb"))


def untitled(source: str) -> str:
    """A first cell whose title no longer speaks of solutions."""
    title, *rest = source.split("\n")
    return "\n".join([TITLE.sub("", title).rstrip(), *rest])


def exercise(book: Any, name: str) -> Any:
    """The exercise that a solved one gives, not yet executed.

    Args:
        book: the solutions' notebook; it is left as it is.
        name: its file name.

    Raises:
        BadValue: there is no solution in it, or one is not marked as it should be.
    """
    made = copy.deepcopy(book)
    if not any("# BEGIN SOLUTION" in cell.source for cell in made.cells if cell.cell_type == "code"):
        raise BadValue(f"{name} has no solution in it; put one between # BEGIN SOLUTION and # END SOLUTION")
    own = exercise_path(Path(name)).name
    for cell in made.cells:
        if cell.cell_type == "code":
            cell.source, cell.outputs, cell.execution_count = unsolved(cell.source), [], None
        else:
            # Its badge opens this notebook; a link to the solutions' file stays one.
            badge = re.sub(rf"(colab\.research\.google\.com/[^)\s]*/){re.escape(name)}", rf"\g<1>{own}", cell.source)
            cell.source = unsolved(badge, "prose")
    made.cells[0].source = untitled(made.cells[0].source)
    if "title" in made.metadata.get("tt", {}):
        made.metadata["tt"]["title"] = untitled(made.metadata["tt"]["title"])
    return made


def same_sources(one: Any, other: Any) -> bool:
    """Whether two notebooks are the same but for their outputs."""
    parts = [
        [(cell.id, cell.cell_type, cell.source, cell.metadata) for cell in book.cells] + [book.metadata]
        for book in (one, other)
    ]
    return parts[0] == parts[1]


def stale(folder: Path = NOTEBOOKS) -> list[str]:
    """What is wrong with the exercises beside their solutions, one line each: nothing where they are up to date."""
    found = []
    for solved in solutions(folder):
        path = exercise_path(solved)
        if not path.exists():
            found.append(f"{path.name} is missing")
        elif not same_sources(read(path), exercise(read(solved), solved.name)):
            found.append(f"{path.name} is not what {solved.name} gives")
    known = {exercise_path(solved) for solved in solutions(folder)} | set(solutions(folder))
    return found + [
        f"{path.name} has no solutions" for path in sorted((folder / "exercises").glob("*.ipynb")) if path not in known
    ]


def generate(folder: Path = NOTEBOOKS) -> list[Path]:
    """Write every exercise whose solutions changed, executed; return their paths."""
    written = []
    for solved in solutions(folder):
        path = exercise_path(solved)
        made = exercise(read(solved), solved.name)
        if path.exists() and same_sources(read(path), made):
            continue
        run(made, path.parent)
        write(path, made)
        written.append(path)
    return written


def main(arguments: list[str]) -> int:
    """The command; 0 where all is well."""
    if arguments not in ([], ["--check"]):
        print("usage: python notebooks/tools/exercises.py [--check]", file=sys.stderr)
        return 2

    def job() -> int:
        if arguments:
            found = stale()
            for line in found:
                print(f"{line}; run python notebooks/tools/exercises.py", file=sys.stderr)
            return 1 if found else 0
        for path in generate():
            print(f"wrote {path.relative_to(NOTEBOOKS.parent)}")
        return 0

    return command(job)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
