"""The forms in which a folder may hold images of one split: pictures by class, an npz, or the Hub's parquet files.

Nothing is guessed and nothing is converted: what is not 8 bits, is mixed, or is not read completely is an error that
says what was found and what is accepted.
"""

from __future__ import annotations

import io
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tt_lib.datasets.images import Images, by_hash
from tt_lib.errors import CorruptFile, MissingFile, TTError

PARQUET_FOLDERS = (".", "plain_text", "data")
PICTURES = "PNG or WebP of 8 bits, all RGB or all grey, of one size"
ARRAYS = "images uint8 [N, H, W, 3] or [N, H, W, 1] with values 0..255, and labels, integers [N]"
COLUMNS = "img or image ({bytes, path}: PNG or WebP) and label (integer)"


def forms(split: str) -> str:
    """What a folder may hold, in the words of errors."""
    return (
        f"{split}/CLASS/*.png, {split}.npz ({ARRAYS}) or {split}-*.parquet (columns {COLUMNS}; "
        "here, in plain_text/ or in data/)"
    )


def load_folder(name: str, split: str, root: Path | str) -> Images:
    """The images of a user's own data set, in an order that depends on the images alone.

    Args:
        name: of the data set.
        split: the folder has each split by itself, see :func:`forms`.
        root: the folder.

    Raises:
        MissingFile: no such folder, or it does not hold this split.
        CorruptFile: what it holds is damaged or not of the accepted kinds.
    """
    root = Path(os.path.expanduser(root))
    with reading(root):
        if not root.is_dir():
            found = "is a file" if root.exists() else "does not exist"
            raise MissingFile(f"{root} {found}; give a folder with {forms(split)}")
        images = read_split(root, split)
        if images is None:
            raise MissingFile(f"{root} holds no {split} images of {name} but {inside(root)}; expected {forms(split)}")
    pixels, labels = images
    if pixels.max() <= 1:
        raise CorruptFile(
            f"the {split} images in {root} have no value above 1: they may have been scaled to 0..1 before they were "
            "stored; store 0..255"
        )
    order, digest = by_hash(pixels, labels)
    return Images(pixels[order], labels[order], f"{name}-{split}", digest)


@contextmanager
def reading(root: Path) -> Iterator[None]:
    """Turn what the system says of a file or folder that cannot be read into :class:`CorruptFile`."""
    try:
        yield
    except TTError:
        raise
    except OSError as error:
        place, reason = error.filename or root, error.strerror or error
        raise CorruptFile(f"cannot read {place}: {reason}; restore it or mend its permissions") from error


def read_split(root: Path, split: str) -> tuple[Tensor, Tensor] | None:
    """Pixels uint8 [N, C, H, W] and labels int64 [N] of the one form that ``root`` holds; None if it holds none.

    Raises:
        CorruptFile: two forms (which is meant?), or one that cannot be read.
    """
    # An entry that is not what its name says, a folder x.parquet or a broken link, is read, and fails by its name.
    found: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {}
    if (root / split).is_dir():
        found[f"{split}/"] = partial(_read_classes, root / split, root)
    if (root / f"{split}.npz").exists():
        found[f"{split}.npz"] = partial(_read_npz, root / f"{split}.npz")
    for folder in PARQUET_FOLDERS:
        shards = sorted((root / folder).glob(f"{split}-*.parquet"))
        if shards:
            found[str(Path(folder, f"{split}-*.parquet"))] = partial(_read_shards, shards)
    if len(found) > 1:
        raise CorruptFile(f"{root} holds the {split} images twice, {' and '.join(found)}; leave one of them there")
    return next(iter(found.values()))() if found else None


def inside(folder: Path) -> str:
    """The first names in a folder, for errors."""
    names = sorted(entry.name for entry in folder.iterdir())
    return (", ".join(names[:8]) or "nothing") + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _read_classes(folder: Path, root: Path) -> tuple[Tensor, Tensor]:
    """``CLASS/*.png``: classes are numbered in the order of their names, or named by their numbers."""
    classes = _class_names(folder)
    for other in ("train", "test"):
        if (root / other).is_dir() and _class_names(root / other) != classes:
            raise CorruptFile(
                f"train/ and test/ in {root} do not have the same classes ({_differing(root)} is in one of them): a "
                "class would not have the same number in both; make them alike"
            )
    numbered = all(name.isdecimal() for name in classes)
    if numbered and len({int(name) for name in classes}) < len(classes):
        raise CorruptFile(f"two class folders in {folder} have one number: {', '.join(classes)}; rename one")
    files, labels = [], []
    for number, name in enumerate(classes):
        pictures = _visible(folder / name)
        for path in pictures:
            if path.suffix.lower() != ".png":
                raise CorruptFile(f"{path} is not a PNG file; {folder} must hold CLASS/*.png and nothing else")
        if not pictures:
            raise CorruptFile(f"{folder / name} holds no PNG files; remove the folder or restore it")
        files += pictures
        labels += [int(name) if numbered else number] * len(pictures)
    pixels = _stack((decode(path.read_bytes(), str(path)), str(path)) for path in files)
    return pixels, _labels(np.array(labels), str(folder))


def _class_names(folder: Path) -> list[str]:
    """The names of the folders in ``folder``, in the order of their text."""
    entries = _visible(folder)
    for entry in entries:
        if not entry.is_dir():
            raise CorruptFile(
                f"{entry} is in no class folder; {folder} must hold CLASS/*.png and nothing else (EDM's folders are "
                "not classes: sort its files into classes by dataset.json)"
            )
    names = [entry.name for entry in entries]
    if not names:
        raise CorruptFile(f"{folder} is empty; put a folder of PNG files for each class there")
    if len({name.casefold() for name in names}) < len(names):
        raise CorruptFile(f"two class folders in {folder} differ only by case: {', '.join(names)}; rename one")
    return names


def _differing(root: Path) -> str:
    train, test = (set(_class_names(root / split)) for split in ("train", "test"))
    return ", ".join(sorted(train ^ test)[:5])


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _read_npz(path: Path) -> tuple[Tensor, Tensor]:
    """``images`` and ``labels``; Python objects in it are not unpickled, since a pickle can run any code."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = archive.files
            # What is no array in it is read as bytes.
            arrays = [np.asarray(archive[name]) for name in ("images", "labels") if name in names]
    except (
        OSError,
        ValueError,
        EOFError,
        MemoryError,
        AttributeError,
        TypeError,
        RuntimeError,  # encrypted, or compressed in a way that Python does not know
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        if "allow_pickle" in str(error):
            raise CorruptFile(f"{path} holds Python objects; accepted: {ARRAYS}") from error
        raise CorruptFile(f"{path} is no readable npz file ({error}); accepted: {ARRAYS}") from error
    if len(arrays) < 2:
        raise CorruptFile(f"{path} holds the arrays {', '.join(names) or 'none'}; accepted: {ARRAYS}")
    images, labels = arrays
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or not images.size:
        first = images.ndim == 4 and images.shape[1] in (1, 3)
        raise CorruptFile(
            f"images in {path} are {images.dtype} {list(images.shape)}{' (channels first?)' if first else ''}; "
            f"accepted: {ARRAYS}"
        )
    if labels.shape != images.shape[:1]:
        raise CorruptFile(f"labels in {path} are {list(labels.shape)} for {len(images)} images; accepted: {ARRAYS}")
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))), _labels(labels, str(path))


def _read_shards(shards: list[Path]) -> tuple[Tensor, Tensor]:
    """The parquet files of a split, all of them: their names say how many there are (``-of-00002``)."""
    numbers = [re.search(r"-(\d+)-of-(\d+)", shard.stem) for shard in shards]
    count = next((int(number[2]) for number in numbers if number), None)
    if count is not None:
        if count != len(shards):
            named = next(shard.name for shard, number in zip(shards, numbers, strict=True) if number)
            raise CorruptFile(
                f"{named} is one of {count} files, {shards[0].parent} holds {len(shards)}; restore the folder"
            )
        if {(int(number[1]), int(number[2])) for number in numbers if number} != {(i, count) for i in range(count)}:
            names = ", ".join(shard.name for shard in shards[:5])
            raise CorruptFile(
                f"{shards[0].parent} must hold each of {count} files once, numbered 0 to {count - 1}, and holds "
                f"{names}; restore the folder"
            )
    parts = [_read_parquet(shard) for shard in shards]
    pixels = _stack(image for images, _ in parts for image in images)
    return pixels, torch.cat([labels for _, labels in parts])


def _read_parquet(path: Path) -> tuple[list[tuple[np.ndarray, str]], Tensor]:
    """The decoded images of one file, each with its place, and their labels."""
    import pyarrow.parquet
    from pyarrow import types

    try:
        # Not read_table: that would take a folder's name such as split=train for a column.
        with pyarrow.parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            found = {name: schema.field(name).type for name in schema.names}
            column = "img" if "img" in found else "image" if "image" in found else None
            column = None if {"img", "image"} <= set(found) else column  # which is meant?
            kind = found[column] if column else pyarrow.null()
            encoded = types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and kind.field("bytes").type
            if (
                not encoded
                or not (types.is_binary(encoded) or types.is_large_binary(encoded))
                or not types.is_integer(found.get("label", pyarrow.null()))
            ):
                columns = ", ".join(f"{name} ({kind})" for name, kind in found.items())
                raise CorruptFile(f"{path} has the columns {columns or 'none'}; accepted: {COLUMNS}")
            table = file.read([column, "label"])
        rows, labels = table[column].to_pylist(), table["label"]
    except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
        raise CorruptFile(f"{path} is no readable parquet file ({error}); restore it") from error
    if not rows:
        raise CorruptFile(f"{path} has no rows; restore it")
    if labels.null_count:
        raise CorruptFile(f"{path} has rows without a label; restore it")
    places = [f"row {row} of {path}" for row in range(len(rows))]
    images = [(decode((row or {}).get("bytes") or b"", place), place) for row, place in zip(rows, places, strict=True)]
    return images, _labels(labels.to_numpy(), str(path))


def decode(content: bytes, place: str) -> np.ndarray:
    """One encoded picture as uint8 [H, W, 3], or [H, W, 1] if it is grey.

    Raises:
        CorruptFile: another format, 16 bits, transparency, a palette, several frames, or damage.
    """
    from PIL import Image

    try:
        # Naming the formats skips the search for one, which takes longer than decoding 32x32 pixels.
        image = Image.open(io.BytesIO(content), formats=("PNG", "WEBP"))
        pixels = np.asarray(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise CorruptFile(f"{place} is {_kind_of(content)}; accepted: {PICTURES}") from error
    # Pillow drops the lower 8 of 16 bits without a word; the depth stands at byte 24 of a PNG.
    bits = content[24] if image.format == "PNG" else 8
    if (
        bits != 8
        or image.mode not in ("RGB", "L")
        or "transparency" in image.info
        or getattr(image, "is_animated", False)
    ):
        kind = f"{bits} bits, mode {image.mode}" + (", transparent" if "transparency" in image.info else "")
        kind += ", of several frames" if getattr(image, "is_animated", False) else ""
        raise CorruptFile(f"{place} is {image.format} of {kind}; accepted: {PICTURES}")
    return pixels.reshape(*pixels.shape[:2], -1)


def _kind_of(content: bytes) -> str:
    """What a file is that is no readable PNG or WebP."""
    from PIL import Image

    if not content:
        return "empty"
    try:
        kind = Image.open(io.BytesIO(content)).format
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return "no picture or a damaged one"
    return f"a damaged or truncated {kind} file" if kind in ("PNG", "WEBP") else f"a {kind} file"


def _stack(images: Iterable[tuple[np.ndarray, str]]) -> Tensor:
    """Pictures [H, W, C] with their places as uint8 [N, C, H, W]."""
    pixels: list[np.ndarray] = []
    for picture, place in images:
        if pixels and picture.shape != pixels[0].shape:
            (height, width, channels), first = picture.shape, pixels[0].shape
            raise CorruptFile(
                f"{place} is {width}x{height} with {channels} channels, the first picture {first[1]}x{first[0]} with "
                f"{first[2]}; accepted: {PICTURES}"
            )
        pixels.append(picture)
    return torch.from_numpy(np.ascontiguousarray(np.stack(pixels).transpose(0, 3, 1, 2)))


def _labels(labels: np.ndarray, place: str) -> Tensor:
    """Labels as int64 [N]."""
    if labels.dtype.kind not in "iu":
        raise CorruptFile(f"labels in {place} are {labels.dtype}, such as {labels[0]!r}; accepted: integers from 0 on")
    bad = labels[(labels < 0) | (labels >= 2**31)]
    if len(bad):
        raise CorruptFile(f"labels in {place} are outside 0..{2**31 - 1}: {sorted(set(bad.tolist()))[:5]}; mend them")
    return torch.from_numpy(labels.astype(np.int64))
