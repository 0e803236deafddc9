"""CIFAR-10 (Krizhevsky 2009), read from whichever of its forms is at hand.

The forms: torchvision's extracted folder ``cifar-10-batches-py``, the official archive ``cifar-10-python.tar.gz``
(read in place), and those of :mod:`tt_lib.datasets.folder`, pictures by class, npz and the Hub's parquet files. They
differ in the order of the images. A digest that no order changes says whether the images are CIFAR-10's, and they are
put into one order, so that a tuning on the first 256 of a shuffle is the same whichever form was read.
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

from tt_lib.datasets.folder import forms, inside, read_split, reading
from tt_lib.datasets.images import Images, by_hash
from tt_lib.errors import CorruptFile, MissingFile, choose
from tt_lib.files import data_folder

DIGESTS = {
    "train": "b9d611034c5ab66df5792aa79e3d25ac505910d86354ef8df4a30530ad2c76e1",
    "test": "b66d6f981320cd6c9a6bec9c104e57746ca132a1a37f8378192b33739703da2e",
}
"""What :func:`~tt_lib.datasets.images.by_hash` says of the images of each split."""
ORDER = Path(__file__).with_name("cifar10_order.npz")
"""For each split uint16 [N]: the place of each image in the order by hash. The images stand as in the copy from which
all shipped timings, statistics and rows were made; it was shuffled once."""
FOLDER = "cifar-10-batches-py"
ARCHIVE = "cifar-10-python.tar.gz"
ARCHIVE_URL = f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}"
ENVIRONMENT = "TT_CIFAR10"
REMEDIES = (
    f"give its folder by --data, root= or ${ENVIRONMENT}, put the archive {ARCHIVE_URL} there, or fetch it with "
    "torchvision.datasets.CIFAR10('data/cifar10', download=True)"
)
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
    """The 50,000 training or 10,000 test images, uint8 [N, 3, 32, 32], in one order whatever form is read.

    Args:
        split: ``train`` or ``test``.
        root: a folder that holds one of the forms, ``cifar-10-batches-py`` itself, or the archive; by default
            ``$TT_CIFAR10``, else ``data/cifar10``.

    Raises:
        BadValue: an unknown split.
        MissingFile: there is no such folder, or it holds none of the forms.
        CorruptFile: a file is damaged, or the images are not those of CIFAR-10.
    """
    choose("split", split, DIGESTS)
    usual = data_folder() / "cifar10"
    path = Path(os.path.expanduser(root or os.environ.get(ENVIRONMENT) or usual))
    with reading(path):
        if not path.exists():
            asked = ENVIRONMENT if os.environ.get(ENVIRONMENT) else f"{ENVIRONMENT} is not set"
            asked = "root" if root else f"${asked}"
            raise MissingFile(f"CIFAR-10 not found: no such file or folder as {path} ({asked}); {REMEDIES}")
        pixels, labels = _read(path, split)
    order, digest = by_hash(pixels, labels)
    if digest != DIGESTS[split]:
        raise CorruptFile(
            f"{path} holds {_description(pixels, labels, digest)}, which are not CIFAR-10's {split} images: "
            "a file is missing, damaged, mixed up or stored with loss, or the classes are not numbered by the alphabet "
            "(0 airplane to 9 truck); restore the folder. Images of your own are --dataset FOLDER"
        )
    rows = order[torch.from_numpy(np.load(ORDER)[split].astype(np.int64))]
    return Images(pixels[rows], labels[rows], f"cifar10-{split}", digest)


def _description(pixels: Tensor, labels: Tensor, digest: str) -> str:
    """What images are that are not those expected, in the words of an error."""
    for split, expected in DIGESTS.items():
        if digest == expected:
            return f"CIFAR-10's {split} images"
    different = len({image.tobytes() for image in pixels.numpy()})
    classes = labels.unique(return_counts=True)[1]
    return (
        f"{len(pixels)} images of {list(pixels.shape[1:])}, {different} of them different, in {len(classes)} classes "
        f"of {classes.min()} to {classes.max()}"
    )


def _read(path: Path, split: str) -> tuple[Tensor, Tensor]:
    """Pixels uint8 [N, C, H, W] and labels int64 [N] of the official files, else of what :func:`read_split` finds."""
    accepted = f"{FOLDER}/ (torchvision), {ARCHIVE}, {forms(split)}"
    if path.is_file():
        if not path.name.endswith((".tar.gz", ".tgz")):
            raise MissingFile(f"{path} is a file but not {ARCHIVE}; give that archive or a folder with {accepted}")
        return _decode_batches(_archive_contents(path, split), split, path)
    for folder in (path, path / FOLDER):
        if any((folder / name).is_file() for names in BATCH_MD5.values() for name in names):
            return _decode_batches(_folder_contents(folder, split), split, folder)
    if (path / ARCHIVE).is_file():
        return _read(path / ARCHIVE, split)
    images = read_split(path, split)
    if images is None:
        raise MissingFile(f"no CIFAR-10 {split} images in {path}, which holds {inside(path)}; expected {accepted}")
    return images[:], images.labels()


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
        raise CorruptFile(f"{path} is not a readable archive ({error}); {remedy}") from error
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
