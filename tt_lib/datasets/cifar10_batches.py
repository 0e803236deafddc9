"""CIFAR-10's official files: pickled batches, in an extracted folder or inside the archive."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tt_lib.errors import CorruptFile, MissingFile

FOLDER = "cifar-10-batches-py"
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
