"""The top of every notebook: the badge that opens it on Colab, and the cell that installs the library there.

Both hold the project's address, which is one variable (:data:`tt_lib.links.REPOSITORY`); ``python -m tt_lib.lessons.index``
writes them into the notebooks again.
"""

from __future__ import annotations

import re
from typing import Any

from tt_lib.lessons.books import code
from tt_lib.links import colab_badge, repository_url

MARK = 'find_spec("tt_lib") is None'
"""What tells an install cell from others."""

_CELL = '''\
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
    sys.path.insert(0, str(Path("timetuner").resolve()))'''


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
    for cell, wanted in [(cell, install_cell()) for cell in cells[:1]] + [(book.cells[0], _with_badge(book.cells[0].source, name))]:
        changed |= cell.source != wanted
        cell.source = wanted
    return changed


def _with_badge(source: str, name: str) -> str:
    return re.sub(r"\[!\[Open in Colab\]\([^)]*\)\]\([^)]*\)", lambda _: colab_badge(name), source)
