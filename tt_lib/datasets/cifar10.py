"""CIFAR-10 (Krizhevsky 2009), read from whichever of its three forms is at hand.

The forms: torchvision's extracted folder ``cifar-10-batches-py``, the official archive ``cifar-10-python.tar.gz``
(read in place), and the Hub's parquet files, whose rows hold an encoded image and a label. Images keep the order of the
files. Each form is checked: by hash where the authors published one, by counts and shapes always.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tt_lib.datasets.images import Images
from tt_lib.errors import CorruptFile, MissingFile, choose
from tt_lib.files import data_folder

CLASSES = 10
COUNTS = {"train": 50_000, "test": 10_000}
FOLDER = "cifar-10-batches-py"
ARCHIVE = "cifar-10-python.tar.gz"
ARCHIVE_URL = f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}"
PARQUET_FOLDERS = (".", "plain_text", "data")
ENVIRONMENT = "TT_CIFAR10"
REMEDIES = (
    f"give the folder (--data, root=), set {ENVIRONMENT} to it, put {ARCHIVE_URL} there, or fetch it with "
    "torchvision.datasets.CIFAR10('data/cifar10', download=True)"
)
FORMS = f"{FOLDER}/ (torchvision), {ARCHIVE}, or train-*.parquet and test-*.parquet, here or in plain_text/ or data/"
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


def load_cifar10(split: str = "train", root: str | Path | None = None) -> Images:
    """The 50,000 training or 10,000 test images, uint8 [N, 3, 32, 32], in the order of the files.

    Args:
        split: ``train`` or ``test``.
        root: a folder that holds one of the forms, ``cifar-10-batches-py`` itself, or the archive; by default
            ``$TT_CIFAR10``, else ``data/cifar10``.

    Raises:
        BadValue: an unknown split.
        MissingFile: there is no such folder, or it holds none of the forms.
        CorruptFile: a hash, a count or a shape is not that of CIFAR-10.
    """
    choose("split", split, COUNTS)
    usual = data_folder() / "cifar10"
    path = Path(root or os.environ.get(ENVIRONMENT) or usual).expanduser()
    if not path.exists():
        asked = "root" if root else f"${ENVIRONMENT}" if os.environ.get(ENVIRONMENT) else f"${ENVIRONMENT} is not set"
        raise MissingFile(f"CIFAR-10 not found: no such file or folder as {path} ({asked}); {REMEDIES}")
    pixels, labels = _read(path, split)
    if pixels.shape != (COUNTS[split], 3, 32, 32) or len(labels) != len(pixels):
        raise CorruptFile(
            f"CIFAR-10 {split} has {list(pixels.shape)} pixels and {len(labels)} labels, expected "
            f"{[COUNTS[split], 3, 32, 32]}: a file is missing or incomplete; restore the folder"
        )
    bad = sorted(set(labels.tolist()) - set(range(CLASSES)))[:5]
    if bad:
        raise CorruptFile(f"CIFAR-10 {split} has labels outside 0..9: {bad}; these are not CIFAR-10's files")
    return Images(pixels, labels, f"cifar10-{split}")


def _read(path: Path, split: str) -> tuple[Tensor, Tensor]:
    """Pixels uint8 [N, 3, 32, 32] and labels int64 [N]: from the extracted folder, else the archive, else parquet."""
    if path.is_file():
        if not path.name.endswith((".tar.gz", ".tgz")):
            raise MissingFile(f"{path} is a file but not {ARCHIVE}; give that archive or a folder with {FORMS}")
        return _decode_batches(_archive_contents(path, split), split, path)
    for folder in (path, path / FOLDER):
        if any((folder / name).is_file() for names in BATCH_MD5.values() for name in names):
            return _decode_batches(_folder_contents(folder, split), split, folder)
    if (path / ARCHIVE).is_file():
        return _read(path / ARCHIVE, split)
    for name in PARQUET_FOLDERS:
        shards = [_read_parquet(shard) for shard in sorted((path / name).glob(f"{split}-*.parquet"))]
        if shards:
            return torch.cat([pixels for pixels, _ in shards]), torch.cat([labels for _, labels in shards])
    names = sorted(entry.name for entry in path.iterdir())
    inside = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    raise MissingFile(f"{path} holds no CIFAR-10 {split} images but {inside or 'nothing'}; expected {FORMS}")


def _folder_contents(folder: Path, split: str) -> dict[str, bytes]:
    """The batch files by name."""
    missing = [name for name in BATCH_MD5[split] if not (folder / name).is_file()]
    if missing:
        raise MissingFile(f"{folder} lacks the batch files {', '.join(missing)}; extract the archive again")
    return {name: (folder / name).read_bytes() for name in BATCH_MD5[split]}


def _archive_contents(path: Path, split: str) -> dict[str, bytes]:
    """The batch files by name, read without writing them to disk."""
    paths = {f"{FOLDER}/{name}": name for name in BATCH_MD5[split]}
    contents = {}
    remedy = f"it may be truncated: delete it and fetch {ARCHIVE_URL} again"
    try:
        with tarfile.open(path, "r|gz") as archive:  # a stream: the archive is decompressed once
            for member in archive:
                stream = archive.extractfile(member) if member.name in paths else None
                if stream:
                    contents[paths[member.name]] = stream.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise CorruptFile(f"{path} is no readable archive ({error}); {remedy}") from error
    missing = sorted(set(paths.values()) - set(contents))
    if missing:
        raise CorruptFile(f"{path} lacks {', '.join(missing)}; {remedy}")
    return contents


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that makes numpy arrays and plain containers and refuses every other class.

    A pickle can run any code, so nothing else is admitted even where the hash was right.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR-10 file needs")
        # numpy 2 moved the module; the files name the old place, whose use warns.
        if name == "_reconstruct":
            return np.ndarray(0).__reduce__()[0]
        return super().find_class(module, name)


def _decode_batches(contents: dict[str, bytes], split: str, place: Path) -> tuple[Tensor, Tensor]:
    """Batch files: ``data`` uint8 [n, 3072] (red, green, blue planes of 32 rows) and ``labels``, in pickles."""
    pixels, labels = [], []
    for name, expected in BATCH_MD5[split].items():
        digest = hashlib.md5(contents[name]).hexdigest()
        if digest != expected:
            raise CorruptFile(f"{name} in {place} is damaged: md5 {digest}, expected {expected}; extract it again")
        try:
            # Latin-1, as Python 2 wrote these files and their strings are bytes.
            batch = _ArraysOnly(io.BytesIO(contents[name]), encoding="latin1").load()
            pixels.append(torch.from_numpy(np.array(batch["data"], dtype=np.uint8)).reshape(-1, 3, 32, 32))
            labels.append(torch.tensor(batch["labels"], dtype=torch.int64))
        except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CorruptFile(f"{name} in {place} is not a CIFAR-10 batch: {error}") from error
    return torch.cat(pixels), torch.cat(labels)


def _read_parquet(path: Path) -> tuple[Tensor, Tensor]:
    """Pixels uint8 [N, 3, 32, 32] and labels int64 [N] of one file."""
    import pyarrow.parquet

    try:
        # Not read_table: that would take a folder's name such as split=train for a column.
        table = pyarrow.parquet.ParquetFile(path).read().to_pydict()
        rows, labels = table.get("img") or table["image"], table["label"]
        encoded = [row["bytes"] for row in rows]
    except (pyarrow.ArrowException, OSError, KeyError, TypeError) as error:
        raise CorruptFile(f"{path} is not CIFAR-10 in parquet form ({error}); fetch it again") from error
    if None in labels:
        raise CorruptFile(f"{path} has rows without a label; fetch it again")
    pixels = np.stack([_decode_image(content, f"row {row} of {path}") for row, content in enumerate(encoded)])
    return torch.from_numpy(pixels), torch.tensor(labels, dtype=torch.int64)


def _decode_image(content: bytes | None, place: str) -> np.ndarray:
    """One encoded image as uint8 [3, 32, 32]."""
    from PIL import Image

    try:
        # The lossless formats; naming them skips the search for one, which takes longer than decoding 32x32 pixels.
        pixels = np.asarray(Image.open(io.BytesIO(content or b""), formats=("PNG", "WEBP")).convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise CorruptFile(f"{place} is not an image ({error}); fetch the file again") from error
    if pixels.shape != (32, 32, 3):
        raise CorruptFile(f"{place} is {pixels.shape[1]}x{pixels.shape[0]}, not 32x32: it is not CIFAR-10")
    return pixels.transpose(2, 0, 1)
