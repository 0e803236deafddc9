"""Files written whole or not at all, files checked by hash, and locks.

Every file of this library is written under a temporary name in the folder where it will lie and then
renamed: a reader, or a run that was killed, sees the old file or the new one and never half of one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from tt_lib.errors import AlreadyDone, BadValue, CorruptFile, MissingFile, TTError, check_type

T = TypeVar("T")
PACKAGE_ROOT = Path(__file__).resolve().parent.parent


def data_folder() -> Path:
    """The project's ``data/`` folder: ``$TT_DATA`` if set, else the one beside the package, else ``./data``."""
    if os.environ.get("TT_DATA"):
        return Path(os.environ["TT_DATA"])
    beside = PACKAGE_ROOT / "data"
    return beside if beside.is_dir() else Path("data")


@contextlib.contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` if the block ends without an error.

    Where ``path`` is a link, the file that it leads to is replaced and the link stays.

    Raises:
        BadValue: the folder cannot be made or written to, or the disk is full.
    """
    path = Path(os.path.realpath(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise _unwritable(path, error.strerror) from error
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files private (0600); give the file the mode that open() would have given it.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    except Exception as error:
        if _is_failed_write(error):
            raise _unwritable(path, getattr(error, "strerror", None) or "it could not be written whole") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _is_failed_write(error: Exception) -> bool:
    """Whether a file could not be written: the disk is full, say. safetensors and torch raise errors of their own."""
    if isinstance(error, OSError):
        return not isinstance(error, TTError)
    return type(error).__name__ == "SafetensorError" or any(
        each in str(error) for each in ("inline_container", "iostream", "PytorchStreamWriter")
    )


def _unwritable(path: Path, reason: str | None) -> BadValue:
    return BadValue(
        f"cannot write {path}: {reason}; choose another output folder, free some space or change its permissions"
    )


def write_text(path: Path | str, text: str) -> None:
    """Write ``text`` (UTF-8) atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path | str, remedy: str = "") -> Any:
    """Read JSON; a missing or damaged file gives one clear error, with the ``remedy`` for a missing one.

    NaN, infinity and numbers too large for a float are no JSON: :func:`write_json` never writes them.

    Raises:
        MissingFile, CorruptFile
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFile(f"no file at {path}" + (f"; {remedy}" if remedy else ""))
    try:
        return json.loads(
            path.read_text(encoding="utf-8"), parse_float=_number, parse_int=_whole_number, parse_constant=_number
        )
    except (ValueError, RecursionError) as error:
        raise CorruptFile(f"{path} is not JSON ({error}); restore it or make it again") from error


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is not a finite number")
    return value


def _whole_number(text: str) -> int:
    _number(text)
    return int(text)


def read_record(path: Path | str, kind: type[T], formats: Mapping[str, Sequence[str]], what: str, command: str) -> T:
    """Read a dataclass from the JSON of its fields, with ``format`` among them.

    Args:
        kind: the dataclass.
        formats: the formats that are read, the newest first, each with the fields that are tuples of floats in it.
        what, command: what such a file holds and what makes it, for errors.

    Raises:
        MissingFile, CorruptFile
    """
    content = read_json(path, f"give the path of a {what}, or make one with `{command}`")
    format = str(content.pop("format", "")) if isinstance(content, dict) else ""
    if format not in formats:
        raise CorruptFile(
            f"{path} is not a {what} (its format is not {next(iter(formats))!r}); make one with `{command}`"
        )
    try:
        for name in formats[format]:
            content[name] = _floats(name, content[name])
        return kind(**content)
    except (TypeError, KeyError, ValueError) as error:
        raise CorruptFile(
            f"{path} is a damaged {what} ({error}); restore it, or delete it and make it again with `{command}`"
        ) from error


def _floats(name: str, values: Any) -> tuple[float, ...]:
    """A list of numbers, as JSON has it, as a tuple: a text would be one of its letters, and true would be 1."""
    if not isinstance(values, list):
        raise BadValue(f"{name} must be a list of numbers, got {repr(values)[:60]}")
    for value in values:
        check_type(f"each of {name}", value, float)
    return tuple(map(float, values))


def spell(value: float) -> str:
    """The shortest spelling of a number that reads back as just this number, for names: 0.95, 1, 2e-05."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def read_spelling(what: str, text: str, example: str) -> tuple[str, dict[str, Any]]:
    """A name that may carry options: ``unipc,order=2,variant=bh1`` -> (``unipc``, {order: 2, variant: bh1}).

    Args:
        what: is spelled, for the error.
        example: for the error.

    Raises:
        BadValue: a part is no ``name=value``, or a name is given twice.
    """
    name, *parts = text.split(",")
    options: dict[str, Any] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not (key and equals and value):
            raise BadValue(f"{what} {text!r}: an option is spelled name=value, as in {example}; got {part!r}")
        if key in options:
            raise BadValue(f"{what} {text!r}: {key} cannot be given twice")
        options[key] = _read_number(value)
    return name, options


def _read_number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def file_hash(path: Path | str) -> str:
    """The SHA-256 of a file, in hex digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_hash(path: Path | str, expected: str, remedy: str = "restore it") -> None:
    """Raise unless ``path`` exists and has the SHA-256 ``expected``.

    Raises:
        MissingFile, CorruptFile
    """
    if not Path(path).is_file():
        raise MissingFile(f"no file at {path}; {remedy}")
    digest = file_hash(path)
    if digest != expected:
        raise CorruptFile(f"{path} has sha256 {digest}, expected {expected}: it is damaged or another file; {remedy}")


def check_suffix(path: Path | str, suffix: str) -> None:
    """Raise :class:`BadValue` unless the name of a file ends as its kind does, in ``.png`` say."""
    if Path(path).suffix != suffix:
        raise BadValue(f"give a path that ends in {suffix}, got {path}")


def check_writable(path: Path | str) -> None:
    """Raise :class:`BadValue` if the file ``path`` cannot be written: now, and not when hours of work are done.

    What will be done is tried: permissions alone say nothing of a name that is too long or a read-only disk. Nothing
    is left of it, and no folder is made.
    """
    path = Path(os.path.realpath(path))
    try:
        if path.is_dir():
            raise BadValue(f"cannot write {path}: it is a folder; give the path of a file")
        if path.exists() and not (path.is_file() and os.access(path, os.W_OK)):
            raise BadValue(f"cannot write {path}: it is read-only or not a plain file; choose another output")
        folder = next(parent for parent in path.parents if os.path.lexists(parent))
        for part in (path, *path.parents):
            if part == folder:
                break
            with tempfile.NamedTemporaryFile(prefix=f".{part.name}.", suffix=".tmp", dir=folder):
                pass
    except OSError as error:
        raise _unwritable(path, error.strerror) from error


def refuse_overwrite(path: Path | str, force: bool) -> None:
    """:func:`check_writable`, and raise :class:`AlreadyDone` if ``path`` exists and ``force`` is false."""
    check_writable(path)
    if Path(path).exists() and not force:
        raise AlreadyDone(f"{path} exists; give --force to replace it or choose another --out")


def file_name(text: str) -> str:
    """A text, such as the name of a model, as the name of one file or folder on any system."""
    name = re.sub(r'[<>:"/\\|?*\x00-\x1f]', "--", text).rstrip(". ")
    return name or "--"


@contextlib.contextmanager
def hold(path: Path, wait: bool = False) -> Iterator[bool]:
    """Hold a lock file while the block runs; yields whether it is ours, which with ``wait`` it always is in the end.

    The lock is let go when the process ends, however it ends. The file stays.

    Raises:
        BadValue: the folder cannot be made or written to.
    """
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=wait)
    except Timeout:
        yield False
        return
    except (OSError, NotImplementedError) as error:  # the second: a file system without locks
        reason = getattr(error, "strerror", None) or error
        raise BadValue(
            f"cannot write to {path.parent}: {reason}; choose another output folder or --work folder"
        ) from error
    try:
        yield True
    finally:
        lock.release()
