"""Exercises made from their solutions, so that the two cannot drift apart.

``python notebooks/tools/exercises.py`` makes ``notebooks/exercises/NN_name.ipynb`` from each
``NN_name_solutions.ipynb`` and stores it executed; with ``--check`` it only says which are not what their solutions
give.

In a code cell the lines from ``# BEGIN SOLUTION`` to ``# END SOLUTION`` become ``raise NotImplementedError("your code
here")`` at the same indentation. In a text cell those from ``<!-- BEGIN SOLUTION -->`` to ``<!-- END SOLUTION -->`` go.
The title loses its "with solutions", and the badge opens the exercise.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

from books import NOTEBOOKS, SOLVED, command, exercises, read, run, solutions, write

from tt_lib.errors import BadValue
from tt_lib.lessons.kit import TODO

MARKS = {
    "code": ("# BEGIN SOLUTION", "# END SOLUTION"),
    "markdown": ("<!-- BEGIN SOLUTION -->", "<!-- END SOLUTION -->"),
}


def unsolved(source: str, kind: str = "code") -> str:
    """A cell's source without its solutions.

    Raises:
        BadValue: a solution begins and does not end, or the other way round.
    """
    begin, end = MARKS[kind]
    kept, inside = [], False
    for line in source.split("\n"):
        if line.strip() == (end if inside else begin):
            inside = not inside
            if inside and kind == "code":
                kept.append(line.replace(begin, f'raise NotImplementedError("{TODO}")'))
        elif " SOLUTION" in line:
            inside = True
            break
        elif not inside:
            kept.append(line)
    if inside:
        raise BadValue(f"each {begin} needs its {end} on a line of its own, in this cell:\n{source}")
    return "\n".join(kept)


def exercise_path(solved: Path) -> Path:
    """Where the exercise of a solved one lies."""
    return solved.with_name(solved.name.replace(f"{SOLVED}.ipynb", ".ipynb"))


def exercise(book: Any, name: str) -> Any:
    """The exercise that a solved one gives, not yet executed.

    Args:
        book: the solutions' notebook; it is left as it is.
        name: its file name.

    Raises:
        BadValue: there is no solution in it, or one is not marked as it should be.
    """
    made = copy.deepcopy(book)
    for cell in made.cells:
        cell.source = unsolved(cell.source, cell.cell_type)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    if not any(TODO in cell.source for cell in made.cells):
        raise BadValue(f"{name} has no solution in it; put one between {' and '.join(MARKS['code'])}")
    first = made.cells[0]
    # The badge's address ends in the name; a link to the solutions, which lie beside, begins with it.
    first.source = first.source.replace(" with solutions", "", 1).replace(f"/{name})", f"/{exercise_path(Path(name))})")
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
    lines = []
    for solved in solutions(folder):
        path = exercise_path(solved)
        if not path.exists():
            lines.append(f"{path.name} is missing")
        elif not same_sources(read(path), exercise(read(solved), solved.name)):
            lines.append(f"{path.name} is not what {solved.name} gives")
    paired = {*solutions(folder), *map(exercise_path, solutions(folder))}
    return lines + [f"{path.name} has no solutions" for path in exercises(folder) if path not in paired]


def generate(folder: Path = NOTEBOOKS) -> list[Path]:
    """Write every exercise whose solutions changed, executed; return their paths."""
    written = []
    for solved in solutions(folder):
        path = exercise_path(solved)
        made = exercise(read(solved), solved.name)
        if not (path.exists() and same_sources(read(path), made)):
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
            lines = stale()
            print(
                "".join(f"{line}; run python notebooks/tools/exercises.py\n" for line in lines), end="", file=sys.stderr
            )
            return int(bool(lines))
        for path in generate():
            print(f"wrote {path.relative_to(NOTEBOOKS.parent)}")
        return 0

    return command(job)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
