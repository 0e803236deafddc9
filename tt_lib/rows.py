"""Results are rows: every number that is shown anywhere comes from a row of ``data/results/*.csv``.

A row is written by a command, says what made it, and is replaced (not doubled) when the same command
runs again. The files are small, so they are read whole, changed and written back atomically, under a
lock: several processes may write to one file.
"""

from __future__ import annotations

import csv
import datetime
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from tt_lib.errors import BadValue, CorruptFile
from tt_lib.files import PACKAGE_ROOT, atomic_path, data_folder, locked

FD_COLUMNS = (
    "dataset",
    "model",
    "solver",
    "grid",
    "nfe",
    "eta",
    "timing",
    "metric",
    "features",
    "reference",
    "n",
    "value",
    "low",
    "high",
    "seed",
    "device",
    "versions",
    "date",
    "commit",
    "command",
)
FD_KEY = (
    "dataset",
    "model",
    "solver",
    "grid",
    "nfe",
    "eta",
    "timing",
    "metric",
    "features",
    "reference",
    "n",
    "seed",
)
TRAINING_COLUMNS = (
    "run",
    "step",
    "images",
    "loss",
    "images_per_s",
    "devices",
    "elapsed_s",
    "versions",
    "date",
    "commit",
    "command",
)
DIRECTION_COLUMNS = (
    "model",
    "solver",
    "grid",
    "nfe",
    "eta",
    "timing",
    "step",
    "t",
    "s",
    "angle",
    "angle_margin",
    "relative",
    "relative_margin",
    "local",
    "local_margin",
    "accumulated",
    "accumulated_margin",
    "doubt",
    "n",
    "seed",
    "substeps",
    "device",
    "versions",
    "date",
    "commit",
    "command",
)
DIRECTION_KEY = ("model", "solver", "grid", "nfe", "eta", "timing", "step", "n", "seed", "substeps")
CORRELATION_COLUMNS = (
    "what",
    "among",
    "cells",
    "spearman",
    "low",
    "high",
    "n",
    "substeps",
    "versions",
    "date",
    "commit",
    "command",
)
CORRELATION_KEY = ("what", "among", "n", "substeps")
SPEED_COLUMNS = ("what", "ours", "peer", "ratio", "unit", "device", "versions", "date", "commit", "command")
SPEED_KEY = ("what", "device")


def results_folder() -> Path:
    """``data/results/`` of the project, or under ``$TT_DATA``."""
    return data_folder() / "results"


def provenance() -> dict[str, str]:
    """The columns that say where a row comes from: versions, date (UTC), commit and command."""
    return {
        "versions": f"python {platform.python_version()}, torch {torch.__version__}",
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "commit": git_commit(),
        "command": command_line(),
    }


def git_commit() -> str:
    """The commit of the code that runs: ``$TT_COMMIT`` (for copies without ``.git``), else git's word, else unknown."""
    if os.environ.get("TT_COMMIT"):
        return os.environ["TT_COMMIT"]
    try:
        answer = subprocess.run(
            ["git", "-C", str(PACKAGE_ROOT), "rev-parse", "--short=12", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answer.stdout.strip()


def command_line() -> str:
    """The command as a reader would type it: ``$TT_COMMAND`` if set, else ``tt`` (or torchrun) and its arguments."""
    if os.environ.get("TT_COMMAND"):
        return os.environ["TT_COMMAND"]
    program = Path(sys.argv[0]).name
    if program in ("tt", "__main__.py"):
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        start = f"torchrun --nproc_per_node {processes} -m tt_lib" if processes > 1 else "tt"
        return " ".join([start, *(shlex.quote(_from_here(argument)) for argument in sys.argv[1:])])
    # A notebook kernel's arguments name files of one machine: the program's name says enough.
    return "jupyter" if "kernel" in program else program


def _from_here(argument: str) -> str:
    """An argument with a path below the current folder as a reader would type it there: relative."""
    option, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    path = Path(value)
    if path.is_absolute() and path.is_relative_to(Path.cwd()):
        value = str(path.relative_to(Path.cwd()))
    return f"{option}{equals}{value}"


def device_name(device: torch.device | str, count: int = 1) -> str:
    """A device in words: the GPU's product name, or ``cpu`` and the number of threads used; ``2 x ...`` for several."""
    device = torch.device(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({torch.get_num_threads()} threads)"
    return name if count == 1 else f"{count} x {name}"


def read_rows(path: Path | str, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """The rows of a results file; an empty table with ``columns`` where there is no file.

    Raises:
        CorruptFile: the file is no CSV or lacks a column.
    """
    path = Path(path)
    if not path.exists():
        return pd.DataFrame(columns=list(columns or ()))
    try:
        # A commit such as 61e5298 is no number, whatever it looks like.
        words = dict.fromkeys(("versions", "date", "commit", "command"), str)
        frame = pd.read_csv(path, keep_default_na=False, na_values=[""], dtype=words)
    except (ValueError, pd.errors.ParserError) as error:
        raise CorruptFile(f"{path} is not a results file ({error}); restore it from git") from error
    missing = [name for name in columns or () if name not in frame.columns]
    if missing:
        raise CorruptFile(f"{path} lacks the columns {missing}; restore it from git or move it away")
    return frame


def matching(rows: pd.DataFrame, wanted: Mapping[str, Any]) -> np.ndarray:
    """Which rows have these values in these columns, [N] bool. One mask: cutting the frame column by column takes five times as long."""
    return np.logical_and.reduce([rows[column].to_numpy() == value for column, value in wanted.items()])


def write_rows(path: Path | str, rows: Iterable[Mapping[str, Any]], columns: Sequence[str], key: Sequence[str]) -> None:
    """Add ``rows`` to a results file; a row with the same ``key`` as an old one takes its place.

    Raises:
        BadValue: a row lacks a column or has an unknown one.
    """
    new = list(rows)
    for row in new:
        if set(row) != set(columns):
            raise BadValue(f"a row of {path} needs exactly the columns {list(columns)}, got {sorted(row)}")
    with locked(path):
        # As text, not as numbers: rows that are not replaced keep every digit they were written with.
        table = {_key(row, key): row for row in _read_text(Path(path), columns)}
        for row in new:
            text = {name: _text(row[name]) for name in columns}
            table[_key(text, key)] = text
        with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(columns), lineterminator="\n")
            writer.writeheader()
            writer.writerows(table.values())


def _read_text(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a results file as text, in which nothing stands for None."""
    if not path.exists():
        return []
    try:
        with open(path, newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream, strict=True)
            rows, found = list(reader), list(reader.fieldnames or ())
    except (csv.Error, UnicodeDecodeError) as error:
        raise CorruptFile(f"{path} is not a results file ({error}); restore it from git") from error
    if set(found) != set(columns) or any(None in row or None in row.values() for row in rows):
        raise CorruptFile(
            f"{path} has the columns {found} where {list(columns)} are needed; restore it from git or move it"
        )
    return rows


def _text(value: Any) -> str:
    return "" if value is None or value != value else str(value)


def _key(row: Mapping[str, str], names: Sequence[str]) -> tuple[str, ...]:
    """The key of a row, in which 10, 10.0 and "10" are one, and so are None, NaN and nothing."""
    return tuple(_canonical(row[name]) for name in names)


def _canonical(text: str) -> str:
    try:
        return "" if text in ("", "nan") else repr(float(text))
    except ValueError:
        return text
