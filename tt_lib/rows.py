"""Results are rows: every number that is shown anywhere comes from a row of ``data/results/*.csv``.

A row is written by a command, says what made it, and is replaced (not doubled) when the same command
runs again. The files are small, so they are read whole, changed and written back atomically, under a
lock: several processes may write to one file.

What may be written may be read, and nothing else: a number is written as Python writes it, a distance lies within its
interval, and no two rows have one key. A file in which that does not hold is damaged, and is refused.
"""

from __future__ import annotations

import csv
import datetime
import math
import os
import platform
import re
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
from tt_lib.files import PACKAGE_ROOT, atomic_path, data_folder, hold

PROVENANCE = ("versions", "date", "commit", "command")
"""The columns that :func:`provenance` fills in."""
_CELL = ("solver", "grid", "nfe", "eta", "timing")
"""The columns of a cell: which sampler of a model it is."""
_MODEL = ("model", "weights")
"""The columns of a network: its name, and :func:`short_hash`, by which those of one name are told apart."""
_MEASURED = ("dataset", *_MODEL, *_CELL, "metric", "features", "reference", "n")
FD_KEY = (*_MEASURED, "seed")
FD_COLUMNS = (*_MEASURED, "value", "low", "high", "seed", "device", *PROVENANCE)
TRAINING_KEY = ("run", "step")
TRAINING_COLUMNS = ("run", "step", "images", "loss", "images_per_s", "devices", "elapsed_s", *PROVENANCE)
DIRECTION_KEY = (*_MODEL, *_CELL, "step", "n", "seed", "substeps")
_MEANS = tuple(name + end for name in ("angle", "relative", "local", "accumulated") for end in ("", "_margin"))
DIRECTION_COLUMNS = (
    *(*_MODEL, *_CELL, "step", "t", "s", *_MEANS, "doubt"),
    *("n", "seed", "substeps", "device", *PROVENANCE),
)
SPEED_KEY = ("what", "device")
SPEED_COLUMNS = ("what", "ours", "peer", "ratio", "unit", "device", *PROVENANCE)
_FILES = (
    (FD_COLUMNS, FD_KEY),
    (TRAINING_COLUMNS, TRAINING_KEY),
    (DIRECTION_COLUMNS, DIRECTION_KEY),
    (SPEED_COLUMNS, SPEED_KEY),
)
_INTERVAL = ("low", "value", "high")
_OR_EMPTY = ("low", "high", "peer", "ratio")
"""Columns of numbers in which a row may have none."""
_NUMBERS = {
    *("nfe", "eta", "n", "seed", "value", "step", "images", "loss", "images_per_s", "elapsed_s"),
    *("t", "s", *_MEANS, "doubt", "substeps", "ours", *_OR_EMPTY),
}
"""Columns of numbers, whichever file they are in; all others are of text."""
_WEIGHTS = re.compile("([0-9a-f]{16})?")
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?")
_REMEDY = "restore it from git or move it away"


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
        processes = os.environ.get("WORLD_SIZE", "")
        several = processes.isdecimal() and int(processes) > 1
        start = f"torchrun --nproc_per_node {processes} -m tt_lib" if several else "tt"
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


def short_hash(weights: str) -> str:
    """The first 16 hex digits of a hash of weights, as rows have it; nothing for images that no network made."""
    return weights[:16]


def device_name(device: torch.device | str, count: int = 1) -> str:
    """A device in words: the GPU's product name, or ``cpu`` and the number of threads used; ``2 x ...`` for several."""
    device = torch.device(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({torch.get_num_threads()} threads)"
    return name if count == 1 else f"{count} x {name}"


def read_rows(path: Path | str, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """The rows of a results file; an empty table with ``columns`` where there is no file.

    Raises:
        CorruptFile: as in :func:`write_rows`.
    """
    if not Path(path).exists():
        return pd.DataFrame(columns=list(columns or ()))
    header, rows = _read_text(path, columns)
    return pd.DataFrame({name: _column(name, [row[name] for row in rows]) for name in header})


def matching(rows: pd.DataFrame, values: Mapping[str, Any]) -> np.ndarray:
    """Which rows have these values in these columns, [N] bool."""
    # One mask: cutting the frame column by column takes five times as long.
    return np.logical_and.reduce([rows[column].to_numpy() == value for column, value in values.items()])


def write_rows(path: Path | str, rows: Iterable[Mapping[str, Any]], columns: Sequence[str], key: Sequence[str]) -> None:
    """Add ``rows`` to a results file; a row with the same ``key`` as an old one takes its place.

    Raises:
        BadValue: a row lacks a column or has an unknown one, or what cannot be written (NaN where there must be a
            number, a distance outside of its interval), or the file cannot be written.
        CorruptFile: the file that is there is no CSV, has other columns, is cut, or holds what cannot be written.
    """
    path, new = Path(path), []
    for row in rows:
        if set(row) != set(columns):
            raise BadValue(f"a row of {path} needs exactly the columns {list(columns)}, got {sorted(row)}")
        text = {name: _text(row[name]) for name in columns}
        if fault := _fault(text):
            raise BadValue(f"a row of {path} cannot be written: {fault}; look at what it was measured from: {text}")
        new.append(text)
    with hold(path.parent / f".{path.name}.lock", wait=True):
        # As text, not as numbers: rows that are not replaced keep every digit they were written with.
        old = _read_text(path, columns)[1] if path.exists() else []
        table = {_key(row, key): row for row in [*old, *new]}
        with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(columns), lineterminator="\n")
            writer.writeheader()
            writer.writerows(table.values())


def _read_text(path: Path | str, columns: Sequence[str] | None) -> tuple[list[str], list[dict[str, str]]]:
    """The columns of a results file, and its rows as text: what every reader and the writer take from a file.

    pandas alone would fill up short lines and take a cut number for a number.
    """
    try:
        with open(path, newline="", encoding="utf-8") as stream:
            lines = stream.readlines()
        header, *cells = csv.reader(lines, strict=True) if lines else [[]]
    except (csv.Error, ValueError, OSError) as error:
        raise CorruptFile(f"{path} is not a results file ({error}); {_REMEDY}") from error
    names = set(columns or header)
    faults = {
        "lacks the columns": sorted(names - set(header)),
        "has unknown columns": sorted(set(header) - names),
        "has columns twice": sorted({name for name in header if header.count(name) > 1}),
    }
    wrong = [f"{what} {', '.join(map(repr, which))}" for what, which in faults.items() if which]
    if wrong or not header:
        raise CorruptFile(f"{path} {' and '.join(wrong) or 'is empty'}; {_REMEDY}")
    if not lines[-1].endswith("\n") or any(len(row) != len(header) for row in cells):
        raise CorruptFile(f"{path} has a line that is cut or has too many cells; {_REMEDY}")
    rows = [dict(zip(header, row, strict=True)) for row in cells]
    key = next((key for known, key in _FILES if set(known) == set(header)), header)
    first: dict[tuple[str, ...], int] = {}
    for line, row in enumerate(rows, 2):
        if fault := _fault(row):
            raise CorruptFile(f"{path}, line {line}: {fault}; {_REMEDY}")
        if (other := first.setdefault(_key(row, key), line)) != line:
            raise CorruptFile(f"{path}, lines {other} and {line} are of one and the same measurement; {_REMEDY}")
    return header, rows


def _fault(row: Mapping[str, str]) -> str:
    """What a row as text has that may not stand in a file; nothing if all is well."""
    for name, text in row.items():
        if name not in _NUMBERS:
            if not _is_text(text):
                return f"{name} is {text[:40]!r}, which a row cannot hold"
            if name == "weights" and not _WEIGHTS.fullmatch(text):
                return f"{name} is {text!r} and must be 16 hex digits of a hash, or nothing where there is no network"
        elif not (_NUMBER.fullmatch(text) or (text == "" and name in _OR_EMPTY)):
            return f"{name} is {text!r} and must be a number"
        elif not math.isfinite(float(text or 0)):
            return f"{name} is {text[:40]!r}, more than a number holds"
    interval = [row.get(name, "") for name in _INTERVAL]
    if bool(interval[0]) != bool(interval[2]):
        return f"its interval [{interval[0]}, {interval[2]}] has one end only"
    if all(interval) and sorted(map(float, interval)) != list(map(float, interval)):
        return "its value {1} lies outside of its interval [{0}, {2}]".format(*interval)
    return ""


def _is_text(text: str) -> bool:
    """Whether a text can be read back: csv splits a line at a carriage return, and UTF-8 has no half letters."""
    odd = any(letter in "\0\r" or "\ud800" <= letter <= "\udfff" for letter in text)
    return not odd and len(text) <= csv.field_size_limit()


def _column(name: str, texts: list[str]) -> pd.Series:
    """A column of a table. A commit such as 61e5298 is no number, whatever it looks like."""
    if name not in _NUMBERS:
        return pd.Series([text or np.nan for text in texts])
    whole = all(text.lstrip("-").isdecimal() for text in texts)
    return pd.Series([int(text) if whole else float(text or "nan") for text in texts])


def _text(value: Any) -> str:
    return "" if value is None or value != value else str(value)


def _key(row: Mapping[str, str], names: Sequence[str]) -> tuple[str, ...]:
    """The key of a row, in which the numbers 10, 10.0 and "10" are one."""
    return tuple(repr(float(row[name])) if name in _NUMBERS and row[name] else row[name] for name in names)
