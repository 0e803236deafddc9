"""The errors of this library: each names the bad value and says what to do about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


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
    """The network answered NaN or infinity; the message says at which evaluation and time."""


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
