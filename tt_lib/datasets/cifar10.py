"""CIFAR-10 (Krizhevsky 2009), read from whichever of its three forms is at hand.

The forms: torchvision's extracted folder ``cifar-10-batches-py``, the official archive
``cifar-10-python.tar.gz`` (read in place), and the Hub's parquet files. Rows keep the order of the
files, and each form is checked: by hash where the authors published one, by counts and shapes always.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from tt_lib.datasets.cifar10_batches import FOLDER, has_batches, read_archive, read_batches
from tt_lib.datasets.cifar10_parquet import find_shards, read_parquet
from tt_lib.datasets.images import Images
from tt_lib.errors import CorruptFile, MissingFile, choose
from tt_lib.files import atomic_path, check_hash, data_folder

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
COUNTS = {"train": 50_000, "test": 10_000}
ARCHIVE = "cifar-10-python.tar.gz"
ARCHIVE_URL = f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}"
ARCHIVE_MD5 = "c58f30108f718f92721af3d95e74349a"
ENVIRONMENT = "TT_CIFAR10"

REMEDIES = f"give the folder (--data, root=), set {ENVIRONMENT} to it, use download=True, or fetch {ARCHIVE_URL}"
FORMS = f"{FOLDER}/ (torchvision), {ARCHIVE}, or train-*.parquet and test-*.parquet, here or in plain_text/ or data/"

Reader = Callable[[], tuple[Tensor, Tensor]]


def load_cifar10(split: str = "train", root: str | Path | None = None, download: bool = False) -> Images:
    """The 50,000 training or 10,000 test images, uint8 [N, 3, 32, 32], in the order of the files.

    Looked for in ``root``, else in ``$TT_CIFAR10``, else in ``data/cifar10`` and ``data/downloads``.

    Args:
        split: ``train`` or ``test``.
        root: a folder that holds one of the forms, ``cifar-10-batches-py`` itself, or the archive.
        download: where none is found, fetch the official archive (170 MB) into ``data/downloads``.

    Raises:
        BadValue: an unknown split.
        MissingFile: nothing found, or a folder that holds none of the forms.
        CorruptFile: a hash, a count or a shape is not that of CIFAR-10.
    """
    choose("split", split, COUNTS)
    pixels, labels = _reader(split, root, download)()
    _check(split, pixels, labels)
    return Images(pixels, labels, f"cifar10-{split}", CLASSES)


def _reader(split: str, root: str | Path | None, download: bool) -> Reader:
    if root is not None:
        return _reader_in(Path(root).expanduser(), split, "the given root")
    if os.environ.get(ENVIRONMENT):
        return _reader_in(Path(os.environ[ENVIRONMENT]).expanduser(), split, f"${ENVIRONMENT}")
    usual, fetched = data_folder() / "cifar10", data_folder() / "downloads" / ARCHIVE
    if usual.exists():
        return _reader_in(usual, split, "the usual place")
    if not fetched.exists():
        if not download:
            looked = f"${ENVIRONMENT} (not set), {usual} and {fetched} (neither exists)"
            raise MissingFile(f"CIFAR-10 not found; looked at {looked}; {REMEDIES}")
        fetch_archive(fetched)
    return _reader_in(fetched, split, "the download")


def _reader_in(root: Path, split: str, whence: str) -> Reader:
    """What reads ``split`` from ``root``: the extracted folder, else the archive, else parquet."""
    if not root.exists():
        raise MissingFile(f"no CIFAR-10 at {root} ({whence}): no such file or folder; {REMEDIES}")
    if root.is_file():
        return _archive_reader(root, split)
    for folder in (root, root / FOLDER):
        if has_batches(folder):
            return lambda: read_batches(folder, split)
    if (root / ARCHIVE).is_file():
        return _archive_reader(root / ARCHIVE, split)
    shards = find_shards(root, split)
    if shards:
        return lambda: read_parquet(shards)
    found = sorted(entry.name for entry in root.iterdir())
    inside = ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "")
    raise MissingFile(
        f"{root} ({whence}) holds no CIFAR-10 {split} images; found: {inside or 'nothing'}; expected {FORMS}"
    )


def _archive_reader(path: Path, split: str) -> Reader:
    if not path.name.endswith((".tar.gz", ".tgz")):
        raise MissingFile(f"{path} is a file but not {ARCHIVE}; give that archive or a folder with {FORMS}")
    check_hash(path, ARCHIVE_MD5, "md5", f"it may be truncated: delete it and fetch {ARCHIVE_URL} again")
    return lambda: read_archive(path, split)


def _check(split: str, pixels: Tensor, labels: Tensor) -> None:
    if pixels.shape != (COUNTS[split], 3, 32, 32) or len(labels) != len(pixels):
        raise CorruptFile(
            f"CIFAR-10 {split} has {list(pixels.shape)} pixels and {len(labels)} labels, expected "
            f"{[COUNTS[split], 3, 32, 32]}: a file is missing or incomplete; restore the folder"
        )
    if not bool(((labels >= 0) & (labels < len(CLASSES))).all()):
        bad = sorted(set(labels.tolist()) - set(range(len(CLASSES))))[:5]
        raise CorruptFile(f"CIFAR-10 {split} has labels outside 0..9: {bad}; these are not CIFAR-10's files")


def fetch_archive(path: Path) -> None:
    """Download the official archive to ``path``, whole or not at all, and check its MD5.

    Raises:
        MissingFile: the address cannot be reached.
        CorruptFile: what came is not the archive.
    """
    import urllib.request

    try:
        with atomic_path(path) as temporary, urllib.request.urlopen(ARCHIVE_URL, timeout=60) as answer:
            _copy(answer, temporary, int(answer.headers.get("Content-Length") or 0))
            check_hash(temporary, ARCHIVE_MD5, "md5", "the download broke off; try again")
    except OSError as error:  # URLError and time-outs are OSErrors
        remedy = f"fetch it elsewhere and put it at {path}"
        raise MissingFile(f"could not fetch {ARCHIVE_URL} ({error}); {remedy}") from error


def _copy(answer, path: Path, total: int) -> None:
    """Write a stream to ``path`` in blocks of 1 MiB; the progress goes to stderr."""
    done = 0
    with open(path, "wb") as out:
        for block in iter(lambda: answer.read(1 << 20), b""):
            done += out.write(block)
            share = f" of {total / 1e6:.0f}" if total else ""
            print(f"\r{ARCHIVE}: {done / 1e6:.0f}{share} MB", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
