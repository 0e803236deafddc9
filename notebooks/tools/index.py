"""The index of the notebooks, made from their own metadata.

``python notebooks/tools/index.py`` writes ``notebooks/README.md``, the table in the project's ``README.md``, and into every
notebook the badge and install cell, which hold the project's address, and what larger scales were measured to take; ``--check`` only says what is out of date.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from books import NOTEBOOKS, SOLVED, code, command, exercises, lessons, read, text
from times import set_times, told

from tt_lib.errors import BadValue
from tt_lib.files import PACKAGE_ROOT, write_text

BEGIN = "<!-- notebooks: written by `python notebooks/tools/index.py` from the notebooks' metadata -->"
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
        needs = (
            ", ".join(f"[{each}]({known[each].name})" if each in known else each for each in tt["needs"])
            or "nothing before it"
        )
        lines = [f"## [{number} {tt['title']}]({path.name})", "", colab_badge(path.name), "", tt["teaches"], ""]
        lines += [
            f"- Needs: {needs}",
            f"- Time: {' '.join(filter(None, [minutes(tt['minutes_cpu']) + '.', told(path.stem)]))}",
        ]
        links = exercise_links(number, folder)
        parts.append("\n".join(lines + ([f"- Practice: {links}"] if links else [])) + "\n")
    return "\n".join(parts)


def block(folder: Path = NOTEBOOKS) -> str:
    """The table in the project's README, with its marks."""
    rows = ["| notebook | what it teaches | time | practice |", "| --- | --- | --- | --- |"]
    for path in lessons(folder):
        tt = facts(path)
        links = exercise_links(tt["number"], folder, "notebooks/")
        rows.append(
            f"| [{tt['number']} {tt['title']}](notebooks/{path.name}) | {tt['teaches']} | {minutes(tt['minutes_cpu'])} | {links} |"
        )
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
    return [
        (path, content)
        for path, content in wanted(folder)
        if not path.exists() or path.read_text(encoding="utf-8") != content
    ]


def main(arguments: list[str]) -> int:
    """The command; 0 where all is well."""
    if arguments not in ([], ["--check"]):
        print("usage: python notebooks/tools/index.py [--check]", file=sys.stderr)
        return 2

    def job() -> int:
        found = stale()
        for path, content in found:
            name = path.relative_to(PACKAGE_ROOT)
            if arguments:
                print(f"{name} is out of date; run python notebooks/tools/index.py", file=sys.stderr)
            else:
                write_text(path, content)
                print(f"wrote {name}")
        return 1 if arguments and found else 0

    return command(job)


# ---- The top of every notebook: the badge that opens it on Colab, and the cell that installs the library there.

MARK = 'find_spec("tt_lib") is None'
"""What tells an install cell from others."""


_CELL = """\
import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path

# Only where the library is missing (on Colab, say): fetch it with its data, and install what it needs and is not there yet.
if importlib.util.find_spec("tt_lib") is None:
    if not Path("timetuner").exists():
        subprocess.run(["git", "clone", "-q", "--depth", "1", "{url}", "timetuner"], check=True)
    # The torch that is here stays, whatever its version: pip stops rather than exchange it.
    kept = [f"torch=={{importlib.metadata.version('torch')}}"] if importlib.util.find_spec("torch") else []
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-e", "./timetuner", *kept], check=True)
    sys.path.insert(0, str(Path("timetuner").resolve()))"""


def install_cell() -> str:
    """Source of the first code cell of every notebook."""
    return _CELL.format(url=repository_url())


def set_links(book: Any, name: str) -> bool:
    """Write the badge and the install cell into a notebook that has them; return whether anything changed.

    Args:
        book: the notebook.
        name: its path in ``notebooks/``, with slashes.
    """
    changed = False
    cells = [cell for cell in code(book) if MARK in cell.source]
    for cell, wanted in [(cell, install_cell()) for cell in cells[:1]] + [
        (book.cells[0], _with_badge(book.cells[0].source, name))
    ]:
        changed |= cell.source != wanted
        cell.source = wanted
    return changed


def _with_badge(source: str, name: str) -> str:
    return re.sub(r"\[!\[Open in Colab\]\([^)]*\)\]\([^)]*\)", lambda _: colab_badge(name), source)


# ---- addresses of the project, made from one name

REPOSITORY = "timetuner-lessons/timetuner"


def repository_url() -> str:
    """Where the project lives."""
    return f"https://github.com/{REPOSITORY}"


def colab_badge(notebook: str) -> str:
    """Markdown of the badge that opens a notebook (a file name in ``notebooks/``) on Colab."""
    address = f"https://colab.research.google.com/github/{REPOSITORY}/blob/main/notebooks/{notebook}"
    return f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({address})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
