"""The errors of this library: each names the bad value and says what to do about it."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any, get_type_hints

IN_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
"""What the values of each plain type are called."""


class TTError(Exception):
    """Base of every error that a user can cause and mend; the command line prints it as one line."""


class BadValue(TTError, ValueError):
    """An argument outside its range, or of an unknown name."""


class MissingFile(TTError, FileNotFoundError):
    """A file or a folder that is needed is not there; the message says where to put it."""


class CorruptFile(TTError):
    """A file is there but its content is not what its hash, size or format says."""


class TimingMismatch(TTError, ValueError):
    """A timing (or a gamma) belongs to another solver, grid, schedule, model or timing than the one it is used with."""


class NotFinite(TTError, ArithmeticError):
    """The network returned NaN or infinity, or a measure is not finite; the message says where."""


class NothingLearned(TTError):
    """Learning gave no sampler that is better than the one it began with; nothing is written."""


class AlreadyDone(TTError, FileExistsError):
    """The output exists and ``--force`` was not given."""


def all_there(*loads: Callable[[], Any]) -> list[Any]:
    """What each function loads; if files are missing, one error that names them all.

    Raises:
        MissingFile
    """
    loaded, missing = [], []
    for load in loads:
        try:
            loaded.append(load())
        except MissingFile as error:
            missing.append(str(error))
    if missing:
        raise MissingFile("; and ".join(missing))
    return loaded


def choose(kind: str, name: str, options) -> None:
    """Raise :class:`BadValue` unless ``name`` is one of ``options``; the message lists them."""
    if name not in options:
        raise BadValue(f"unknown {kind} {name!r}; choose one of: {', '.join(sorted(options))}")


def check_type(name: str, value: Any, kind: type) -> None:
    """Raise :class:`BadValue` unless ``value`` is of a plain type: a whole number is a number, a switch is none."""
    fits = isinstance(value, (int, float) if kind is float else kind) and isinstance(value, bool) == (kind is bool)
    if not fits or (kind is float and not abs(value) <= sys.float_info.max):
        got = f"the text {value!r}" if isinstance(value, str) else repr(value)
        raise BadValue(f"{name} must be {IN_WORDS[kind]}, got {got}")


def check_range(name: str, value: float, least: float, most: float = math.inf) -> None:
    """Raise :class:`BadValue` unless ``value`` lies between the two, which it may equal."""
    if not value >= least:
        raise BadValue(f"{name} must be at least {least:,}, got {value:,}")
    if value > most:
        raise BadValue(f"{name} must be at most {most:,}, got {value:,}")


def check_types(record: Any) -> None:
    """:func:`check_type` of each field of a dataclass that is declared as a plain type."""
    for name, kind in get_type_hints(type(record)).items():
        if kind in IN_WORDS:
            check_type(name, getattr(record, name), kind)
