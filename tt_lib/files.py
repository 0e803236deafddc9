"""Files written whole or not at all, files checked by hash, and locks.

Every file of this library is written under a temporary name in the folder where it will lie and then
renamed: a reader, or a run that was killed, sees the old file or the new one and never half of one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from tt_lib.errors import AlreadyDone, BadValue, CorruptFile, MissingFile

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

    Raises:
        BadValue: the folder cannot be made or written to.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise BadValue(
            f"cannot write {path}: {error.strerror}; choose another output folder or mend its permissions"
        ) from error
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files private (0600); give the file the mode that open() would have given it.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path | str, text: str) -> None:
    """Write ``text`` (UTF-8) atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path | str, remedy: str = "") -> Any:
    """Read JSON; a missing or damaged file gives one clear error, with the ``remedy`` for a missing one.

    Raises:
        MissingFile, CorruptFile
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFile(f"no file at {path}" + (f"; {remedy}" if remedy else ""))
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorruptFile(f"{path} is not JSON ({error}); restore it or make it again") from error


def read_record(path: Path | str, kind: type[T], format: str, tuples: Sequence[str], what: str, command: str) -> T:
    """Read a dataclass from the JSON of its fields, with ``format`` among them.

    Args:
        kind: the dataclass.
        tuples: its fields that are tuples of floats.
        what, command: what such a file holds and what makes it, for errors.

    Raises:
        MissingFile, CorruptFile
    """
    content = read_json(path, f"give the path of a {what}, or make one with `{command}`")
    if not isinstance(content, dict) or content.pop("format", None) != format:
        raise CorruptFile(f"{path} is not a {what} (its format is not {format!r}); make one with `{command}`")
    try:
        for name in tuples:
            content[name] = tuple(float(value) for value in content[name])
        return kind(**content)
    except (TypeError, KeyError, ValueError) as error:
        raise CorruptFile(
            f"{path} is a damaged {what} ({error}); restore it or make it again with `{command}`"
        ) from error


def file_hash(path: Path | str, algorithm: str = "sha256") -> str:
    """Hex digest of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()


def check_hash(path: Path | str, expected: str, algorithm: str = "sha256", remedy: str = "restore it") -> None:
    """Raise unless ``path`` exists and has the digest ``expected``.

    Raises:
        MissingFile, CorruptFile
    """
    if not Path(path).is_file():
        raise MissingFile(f"no file at {path}; {remedy}")
    digest = file_hash(path, algorithm)
    if digest != expected:
        raise CorruptFile(
            f"{path} has {algorithm} {digest}, expected {expected}: it is damaged or another file; {remedy}"
        )


def check_png(path: Path | str) -> None:
    """Raise :class:`BadValue` unless a figure may have this path."""
    if Path(path).suffix != ".png":
        raise BadValue(f"figures are PNG files, got {path}; give a path that ends in .png")


def check_writable(path: Path | str) -> None:
    """Raise :class:`BadValue` if there is no place for ``path``: now, and not when hours of work are done."""
    parent = next(folder for folder in Path(path).absolute().parents if folder.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise BadValue(f"cannot write {path}: {parent} is no folder to write to; choose another output folder")


def refuse_overwrite(path: Path | str, force: bool) -> None:
    """:func:`check_writable`, and raise :class:`AlreadyDone` if ``path`` exists and ``force`` is false."""
    if Path(path).exists() and not force:
        raise AlreadyDone(f"{path} exists; give --force to replace it or choose another --out")
    check_writable(path)


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
    except OSError as error:
        raise BadValue(
            f"cannot write to {path.parent}: {error.strerror}; choose another output folder or --work folder"
        ) from error
    try:
        yield True
    finally:
        lock.release()
