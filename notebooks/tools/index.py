"""The index of the notebooks, made from their own metadata, and what each notebook's top repeats of the project.

``python notebooks/tools/index.py`` writes ``notebooks/README.md`` and the list in the project's ``README.md``. Into
every notebook it writes the badge that opens it on Colab and the cell that installs the library there, which hold the
project's address; into every lesson how long it takes. ``--check`` only says what is out of date.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from books import INSTALL_MARK, NOTEBOOKS, SOLVED, code, command, exercises, lessons, read, text
from times import measured

from tt_lib.errors import BadValue
from tt_lib.files import PACKAGE_ROOT, write_text

REPOSITORY = "timetuner-lessons/timetuner"
BEGIN = "<!-- notebooks: written by `python notebooks/tools/index.py` from the notebooks' metadata -->"
END = "<!-- end of notebooks -->"
FIELDS = ("title", "teaches", "needs")
TIME = "**How long it takes.**"
"""The rest of its line in a lesson's first cell is written here; what is to be said besides stands below it."""
HEAD = f"""\
{BEGIN}

# The notebooks

Read them as they stand, outputs included, run them on a laptop, or open them on Colab. Stored outputs are
those of `TT_SCALE=ci`, the default (seconds of each cell: [budgets.toml](budgets.toml)), and the lab's those of
`TT_SCALE=laptop`. This and `TT_SCALE=full` (a GPU) change sizes only. *Needs* names the notebooks to read first.
JupyterLab folds the output after a prediction ("Before you run the next cell"); a click opens it. Exercises check
themselves, and their solutions lie beside them. [TEACHING.md](TEACHING.md) has plans, slides and typical
misunderstandings for teachers.
"""
INSTALL = f"""\
import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path

# Only where the library is missing (on Colab, say): fetch it with its data, and install what it needs and is not there
# yet.
if importlib.util.{INSTALL_MARK}:
    if not Path("timetuner").exists():
        subprocess.run(["git", "clone", "-q", "--depth", "1", "{{url}}", "timetuner"], check=True)
    # The torch that is here stays, whatever its version: pip stops rather than exchange it.
    kept = [f"torch=={{{{importlib.metadata.version('torch')}}}}"] if importlib.util.find_spec("torch") else []
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-e", "./timetuner", *kept], check=True)
    sys.path.insert(0, str(Path("timetuner").resolve()))"""


def repository_url() -> str:
    """Where the project lives."""
    return f"https://github.com/{REPOSITORY}"


def install_cell() -> str:
    """Source of the first code cell of every notebook."""
    return INSTALL.format(url=repository_url())


def colab_badge(notebook: str) -> str:
    """Markdown of the badge that opens a notebook (its path in ``notebooks/``) on Colab."""
    address = f"https://colab.research.google.com/github/{REPOSITORY}/blob/main/notebooks/{notebook}"
    return f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({address})"


def facts(path: Path) -> dict[str, Any]:
    """A lesson's metadata ``tt``.

    Raises:
        BadValue: a field is missing.
    """
    tt = dict(read(path).metadata.get("tt", {}))
    for name in FIELDS:
        if name not in tt:
            raise BadValue(f"{path.name} has no metadata tt.{name}; it needs tt.{', tt.'.join(FIELDS)}")
    return tt


def practice(number: str, folder: Path, before: str = "") -> str:
    """Links to the exercises of a lesson and to their solutions."""
    paths = [path for path in exercises(folder) if path.name.startswith(f"{number}_")]
    kinds = ["solutions" if path.stem.endswith(SOLVED) else "exercises" for path in paths]
    return ", ".join(f"[{kind}]({before}exercises/{path.name})" for kind, path in zip(kinds, paths, strict=True))


def page(folder: Path = NOTEBOOKS) -> str:
    """``notebooks/README.md``."""
    names = {path.name[:2]: path.name for path in lessons(folder)}
    parts = [HEAD]
    for path in lessons(folder):
        number, tt = path.name[:2], facts(path)
        needs = ", ".join(f"[{each}]({names[each]})" for each in tt["needs"]) or "nothing before it"
        lines = [f"## [{number} {tt['title']}]({path.name})", colab_badge(path.name), tt["teaches"]]
        lines.append(f"- Needs: {needs}\n- Time: {measured(path)}")
        if links := practice(number, folder):
            lines[-1] += f"\n- Practice: {links}"
        parts.append("\n\n".join(lines) + "\n")
    return "\n".join(parts)


def block(folder: Path = NOTEBOOKS) -> str:
    """The list in the project's README, with its marks: a line for each lesson."""
    rows = []
    for path in lessons(folder):
        number, links = path.name[:2], practice(path.name[:2], folder, "notebooks/")
        rows.append(f"- [{number} {facts(path)['title']}](notebooks/{path.name})" + (f": {links}" if links else ""))
    return "\n".join([BEGIN, "", *rows, "", END])


def with_block(readme: str, table: str) -> str:
    """A README with the list between its marks exchanged.

    Raises:
        BadValue: the marks are missing.
    """
    place = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.S)
    if not place.search(readme):
        raise BadValue(f"README.md has no place for the list of notebooks; put in two lines:\n{BEGIN}\n{END}")
    return place.sub(lambda _: table, readme, count=1)


def with_top(path: Path, folder: Path) -> str:
    """The text of a notebook with its badge, its install cell and, in a lesson, its measured time."""
    book, before = read(path), path.read_text(encoding="utf-8")
    first, badge = book.cells[0], colab_badge(path.relative_to(folder).as_posix())
    first.source = re.sub(r"\[!\[Open in Colab\]\([^)]*\)\]\([^)]*\)", lambda _: badge, first.source)
    if path.parent == folder:
        line = f"{TIME} {measured(path)} <!-- constant -->"
        first.source = re.sub(rf"(?m)^{re.escape(TIME)}.*$", lambda _: line, first.source)
    for cell in code(book)[:1]:
        cell.source = install_cell() if INSTALL_MARK in cell.source else cell.source
    return text(book) if book != read(path) else before


def contents(folder: Path = NOTEBOOKS) -> Iterator[tuple[Path, str]]:
    """Every file that this tool writes, and what it should hold."""
    for path in (*lessons(folder), *exercises(folder)):
        yield path, with_top(path, folder)
    yield folder / "README.md", page(folder)
    readme = folder.parent / "README.md"
    yield readme, with_block(readme.read_text(encoding="utf-8"), block(folder))


def stale(folder: Path = NOTEBOOKS) -> list[tuple[Path, str]]:
    """The files that are not as they should be, with what they should hold."""
    return [
        (path, new) for path, new in contents(folder) if not path.exists() or path.read_text(encoding="utf-8") != new
    ]


def main(arguments: list[str]) -> int:
    """The command; 0 where all is well."""
    if arguments not in ([], ["--check"]):
        print("usage: python notebooks/tools/index.py [--check]", file=sys.stderr)
        return 2

    def job() -> int:
        files = stale()
        for path, new in files:
            name = path.relative_to(PACKAGE_ROOT)
            if arguments:
                print(f"{name} is out of date; run python notebooks/tools/index.py", file=sys.stderr)
            else:
                write_text(path, new)
                print(f"wrote {name}")
        return 1 if arguments and files else 0

    return command(job)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
