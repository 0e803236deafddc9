"""CIFAR-10 (Krizhevsky 2009), read from whichever of its three forms is at hand.

The forms: torchvision's extracted folder ``cifar-10-batches-py``, the official archive
``cifar-10-python.tar.gz`` (read in place), and the Hub's parquet files. Rows keep the order of the
files, and each form is checked: by hash where the authors published one, by counts and shapes always.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tt_lib.datasets.images import Images
from tt_lib.errors import CorruptFile, MissingFile, choose
from tt_lib.files import atomic_path, check_hash, data_folder

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FOLDER = "cifar-10-batches-py"
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


# FOLDED tt_lib.datasets.cifar10
# CIFAR-10's official files: pickled batches, in an extracted folder or inside the archive.


BATCH_MD5 = {
    "train": {
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    },
    "test": {"test_batch": "40351d587109b95175f43aff81a1287e"},
}
"""The MD5 of each batch file, as torchvision checks it."""
ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("_codecs", "encode"),  # how Python 3 writes bytes in protocol 2
}
"""All that a batch file needs: a dict of an array, lists and strings."""


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that makes numpy arrays and plain containers and refuses every other class.

    A pickle can run any code, so nothing else is admitted even where the hash was right.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it wants {module}.{name}, which no CIFAR-10 file needs")
        # numpy 2 moved the module; the files name the old place, whose use warns.
        if name == "_reconstruct":
            return np.ndarray(0).__reduce__()[0]
        return super().find_class(module, name)


def has_batches(folder: Path) -> bool:
    """Whether ``folder`` holds at least one batch file (a missing one is then an error of its own)."""
    return any((folder / name).is_file() for names in BATCH_MD5.values() for name in names)


def read_batches(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Pixels uint8 [N, 3, 32, 32] and labels int64 [N] from an extracted folder.

    Raises:
        MissingFile, CorruptFile
    """
    contents = {}
    for name in BATCH_MD5[split]:
        if not (folder / name).is_file():
            raise MissingFile(f"{folder} lacks the batch file {name}; extract the archive again")
        contents[name] = (folder / name).read_bytes()
    return _join(_decode(name, contents[name], split, folder) for name in BATCH_MD5[split])


def read_archive(path: Path, split: str) -> tuple[Tensor, Tensor]:
    """The same from ``cifar-10-python.tar.gz``, without writing its contents to disk.

    Raises:
        CorruptFile
    """
    wanted = {f"{FOLDER}/{name}": name for name in BATCH_MD5[split]}
    contents = {}
    try:
        with tarfile.open(path, "r|gz") as archive:  # a stream: the archive is decompressed once
            for member in archive:
                if member.name in wanted and member.isfile():
                    stream = archive.extractfile(member)
                    assert stream is not None  # as it is a regular file
                    contents[wanted[member.name]] = stream.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise CorruptFile(f"{path} is no readable archive ({error}); delete it and fetch it again") from error
    missing = sorted(set(wanted.values()) - set(contents))
    if missing:
        raise CorruptFile(f"{path} lacks {', '.join(missing)}; delete it and fetch it again")
    return _join(_decode(name, contents[name], split, path) for name in BATCH_MD5[split])


def _decode(name: str, content: bytes, split: str, place: Path) -> tuple[Tensor, Tensor]:
    """One batch file: ``data`` uint8 [n, 3072] (red, green, blue planes of 32 rows) and ``labels``."""
    found = hashlib.md5(content).hexdigest()
    expected = BATCH_MD5[split][name]
    if found != expected:
        raise CorruptFile(f"{name} in {place} is damaged: md5 {found}, expected {expected}; extract it again")
    try:
        # Latin-1, as Python 2 wrote these files and their strings are bytes.
        batch = _ArraysOnly(io.BytesIO(content), encoding="latin1").load()
        pixels = torch.from_numpy(np.array(batch["data"], dtype=np.uint8)).reshape(-1, 3, 32, 32)
        labels = torch.tensor(batch["labels"], dtype=torch.int64)
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CorruptFile(f"{name} in {place} is not a CIFAR-10 batch: {error}") from error
    return pixels, labels


def _join(parts: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    pixels, labels = zip(*parts, strict=True)
    return torch.cat(pixels), torch.cat(labels)


# FOLDED tt_lib.datasets.cifar10
# CIFAR-10 in the Hub's layout: parquet files whose rows hold an encoded image and a label.


FOLDERS = (".", "plain_text", "data")
IMAGE_COLUMNS = ("img", "image")
FORMATS = ("PNG", "WEBP")
"""The lossless formats; any other would not hold CIFAR-10's exact pixels."""
BLOCK = 500
"""Images a thread decodes at a time."""


def find_shards(root: Path, split: str) -> list[Path]:
    """The files of ``split``, in order, from the first of ``FOLDERS`` in ``root`` that has any."""
    for folder in FOLDERS:
        shards = sorted((root / folder).glob(f"{split}-*.parquet"))
        if shards:
            return shards
    return []


def read_parquet(shards: list[Path]) -> tuple[Tensor, Tensor]:
    """Pixels uint8 [N, 3, 32, 32] and labels int64 [N] of the files, decoded in threads.

    Raises:
        CorruptFile: a file, a column or an image cannot be read.
    """
    # Pillow lets go of the interpreter lock while it decodes. On so small an image that is half of the work:
    # more than a few threads gain nothing.
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        parts = [_read_shard(shard, pool) for shard in shards]
    return torch.cat([pixels for pixels, _ in parts]), torch.cat([labels for _, labels in parts])


def _read_shard(path: Path, pool: ThreadPoolExecutor) -> tuple[Tensor, Tensor]:
    encoded, labels = _columns(path)
    pixels = np.empty((len(encoded), 3, 32, 32), dtype=np.uint8)

    def decode(start: int) -> None:
        for row in range(start, min(start + BLOCK, len(encoded))):
            pixels[row] = _decode_rows(encoded[row], path, row)

    list(pool.map(decode, range(0, len(encoded), BLOCK)))
    return torch.from_numpy(pixels), torch.tensor(labels, dtype=torch.int64)


def _columns(path: Path) -> tuple[list, list]:
    """The encoded images and the labels of one file."""
    import pyarrow
    import pyarrow.parquet

    try:
        # Not read_table: that would take a folder's name such as split=train for a column.
        table = pyarrow.parquet.ParquetFile(path).read()
        name = next(name for name in IMAGE_COLUMNS if name in table.column_names)
        images: Any = table[name].combine_chunks()
        encoded, labels = images.field("bytes").to_pylist(), table["label"].to_pylist()
    except StopIteration:
        raise CorruptFile(
            f"{path} has the columns {table.column_names}, expected one of {IMAGE_COLUMNS} and label"
        ) from None
    except (pyarrow.ArrowException, OSError, KeyError, AttributeError) as error:
        raise CorruptFile(f"{path} is not CIFAR-10 in parquet form ({error}); fetch it again") from error
    if None in labels:
        raise CorruptFile(f"{path} has rows without a label; fetch it again")
    return encoded, labels


def _decode_rows(content: bytes | None, path: Path, row: int) -> np.ndarray:
    """One encoded image (PNG on the Hub, or lossless WebP) as uint8 [3, 32, 32]."""
    from PIL import Image

    try:
        # Naming the formats skips the search for one, which takes longer than decoding 32x32 pixels.
        opened = Image.open(io.BytesIO(content or b""), formats=FORMATS)
        image: Image.Image = opened if opened.mode == "RGB" else opened.convert("RGB")
        pixels = np.frombuffer(image.tobytes(), np.uint8).reshape(image.height, image.width, 3)
    except (OSError, ValueError, SyntaxError) as error:
        raise CorruptFile(f"row {row} of {path} is not an image ({error}); fetch the file again") from error
    if pixels.shape != (32, 32, 3):
        raise CorruptFile(f"row {row} of {path} is {image.width}x{image.height}, not 32x32: it is not CIFAR-10")
    return pixels.transpose(2, 0, 1)
