"""The index of the notebooks, made from their own metadata.

``python -m tt_lib.lessons.index`` writes ``notebooks/README.md``, the table in the project's ``README.md``, and into every
notebook the badge and install cell, which hold the project's address, and what larger scales were measured to take; ``--check`` only says what is out of date.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tt_lib.errors import BadValue
from tt_lib.files import PACKAGE_ROOT, write_text
from tt_lib.lessons.books import NOTEBOOKS, SOLVED, command, exercises, lessons, read, text
from tt_lib.lessons.colab import set_links
from tt_lib.lessons.times import set_times, told
from tt_lib.links import colab_badge

BEGIN = "<!-- notebooks: written by `python -m tt_lib.lessons.index` from the notebooks' metadata -->"
END = "<!-- end of notebooks -->"
FIELDS = ("title", "teaches", "needs", "minutes_cpu", "number")
HEAD = f"""\
{BEGIN}

# The notebooks

Each can be read as it stands, outputs included, run on a laptop, or opened on Colab with its badge. Stored outputs are those of
`TT_SCALE=ci`, which is the default and takes the minutes given here on two CPU cores (cell by cell in [budgets.toml](budgets.toml));
`TT_SCALE=laptop` and `TT_SCALE=full` (a GPU) change sizes only. *Needs* names the notebooks to read first. Exercises check
themselves, and their solutions lie beside them.
"""


def facts(path: Path) -> dict[str, Any]:
    """A lesson's metadata ``tt``.

    Raises:
        BadValue: a field is missing.
    """
    found = dict(read(path).metadata.get("tt", {}))
    missing = [name for name in FIELDS if name not in found]
    if missing:
        raise BadValue(f"{path.name} has no metadata tt.{missing[0]}; it needs tt.{', tt.'.join(FIELDS)}")
    return found


def minutes(count: float) -> str:
    """Minutes in words: "under 1 min" or "2 min"."""
    return "under 1 min" if count < 0.95 else f"{count:.0f} min"


def exercise_links(number: str, folder: Path, before: str = "") -> str:
    """Links to the exercises of a lesson and to their solutions."""
    names = [path.stem for path in exercises(folder) if path.name.startswith(f"{number}_")]
    solved = {name for name in names if name.endswith(SOLVED)}
    links = []
    for name in names:
        if name not in solved:
            links.append(f"[exercises]({before}exercises/{name}.ipynb)")
            if name + SOLVED in solved:
                links.append(f"[solutions]({before}exercises/{name}{SOLVED}.ipynb)")
    return ", ".join(links)


def page(folder: Path = NOTEBOOKS) -> str:
    """``notebooks/README.md``."""
    known = {path.name[:2]: path for path in lessons(folder)}
    parts = [HEAD]
    for number, path in known.items():
        tt = facts(path)
        needs = ", ".join(f"[{each}]({known[each].name})" if each in known else each for each in tt["needs"]) or "nothing before it"
        lines = [f"## [{number} {tt['title']}]({path.name})", "", colab_badge(path.name), "", tt["teaches"], ""]
        lines += [f"- Needs: {needs}", f"- Time: {' '.join(filter(None, [minutes(tt['minutes_cpu']) + '.', told(path.stem)]))}"]
        links = exercise_links(number, folder)
        parts.append("\n".join(lines + ([f"- Practice: {links}"] if links else [])) + "\n")
    return "\n".join(parts)


def block(folder: Path = NOTEBOOKS) -> str:
    """The table in the project's README, with its marks."""
    rows = ["| notebook | what it teaches | time | practice |", "| --- | --- | --- | --- |"]
    for path in lessons(folder):
        tt = facts(path)
        links = exercise_links(tt["number"], folder, "notebooks/")
        rows.append(f"| [{tt['number']} {tt['title']}](notebooks/{path.name}) | {tt['teaches']} | {minutes(tt['minutes_cpu'])} | {links} |")
    return "\n".join([BEGIN, *rows, END])


def with_block(readme: str, table: str) -> str:
    """A README with the table between its marks exchanged.

    Raises:
        BadValue: the marks are missing.
    """
    found = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.S)
    if not found.search(readme):
        raise BadValue(f"README.md has no place for the table of notebooks; put in two lines:\n{BEGIN}\n{END}")
    return found.sub(lambda _: table, readme, count=1)


def wanted(folder: Path = NOTEBOOKS) -> Iterator[tuple[Path, str]]:
    """Every file that this module writes, and what it should hold."""
    for path in (*lessons(folder), *exercises(folder)):
        book = read(path)
        changed = set_links(book, path.relative_to(folder).as_posix())
        if path.parent == folder:
            changed |= set_times(book, path.stem)
        yield path, text(book) if changed else path.read_text(encoding="utf-8")
    yield folder / "README.md", page(folder)
    readme = folder.parent / "README.md"
    yield readme, with_block(readme.read_text(encoding="utf-8"), block(folder))


def stale(folder: Path = NOTEBOOKS) -> list[tuple[Path, str]]:
    """The files that are not as they should be, with what they should hold."""
    return [(path, content) for path, content in wanted(folder) if not path.exists() or path.read_text(encoding="utf-8") != content]


def main(arguments: list[str]) -> int:
    """The command; 0 where all is well."""
    if arguments not in ([], ["--check"]):
        print("usage: python -m tt_lib.lessons.index [--check]", file=sys.stderr)
        return 2

    def job() -> int:
        found = stale()
        for path, content in found:
            name = path.relative_to(PACKAGE_ROOT)
            if arguments:
                print(f"{name} is out of date; run python -m tt_lib.lessons.index", file=sys.stderr)
            else:
                write_text(path, content)
                print(f"wrote {name}")
        return 1 if arguments and found else 0

    return command(job)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
