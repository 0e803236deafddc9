"""Images in files: a folder of pictures, an npz, or the Hub's parquet files, read when they are asked for.

A data set may be larger than the memory: rows are read as they are asked for, and a large npz is mapped. Nothing is
guessed and nothing is converted: what is not 8 bits, is mixed, or is not read completely is an error that says what was
found and what is accepted.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tt_lib.errors import BadValue, CorruptFile, MissingFile, TTError

SPLITS = ("train", "test")
ONE_SPLIT = "all"
"""What the only split of images is called that do not lie in ``train`` and ``test``."""
PARQUET_FOLDERS = (".", "plain_text", "data")
FORMATS = ("PNG", "WEBP", "JPEG")
ENDINGS = (".png", ".webp", ".jpg", ".jpeg")
PICTURES = "PNG, WebP or JPEG of 8 bits, all RGB or all grey, of one size"
ARRAYS = "images (or arr_0) uint8 [N, H, W, 3] or [N, H, W, 1] with values 0..255"
CLASSES = "labels, integers [N]"
COLUMNS = "img or image ({bytes, path}: PNG, WebP or JPEG)"
MAPPED = 2**31
"""Bytes of an npz from which on it is not read at once, with its checksums, but mapped."""
FEW = 16
"""So many images of which none has a value above 1 are not of 8 bits."""
PART = 500
"""Pictures that are decoded before they are put together."""
SPLIT_WORDS = (*SPLITS, "training", "testing", "val", "valid", "validation")
"""What folders of a split are called elsewhere."""
ORIENTATION = 0x0112
"""The tag of EXIF that says how a picture is turned when it is shown."""
Arrays = Sequence[tuple[np.ndarray, str]]
"""Pictures uint8 [H, W, C], each with its place for errors."""


def forms(split: str) -> str:
    """What a folder may hold, in the words of errors."""
    return (
        f"{split}/ ({PICTURES}; in folders of any depth), {split}.npz ({ARRAYS}) or {split}-*.parquet (columns "
        f"{COLUMNS}; here, in plain_text/ or in data/)"
    )


class Stored:
    """Images in files, uint8 [N, C, H, W], in the order of the files' names. ``stored[rows]`` reads rows.

    Args:
        files: all that belongs to them.
        root: what their names are told from.
        count: N.
        read: gives the pictures at some rows, each with its place.
        labels: gives int64 [N].
        split: ``train``, ``test``, or :data:`ONE_SPLIT`.

    Attributes:
        shape: (N, C, H, W); the first image has it, and any other of another shape is an error when it is read.
        listing: hash of the files' names, sizes and times of change, which changes where anything was touched.

    Raises:
        CorruptFile: a file is not of the accepted kinds, here or when it is read.
    """

    def __init__(
        self,
        files: Sequence[Path],
        root: Path,
        count: int,
        read: Callable[[Sequence[int]], Arrays],
        labels: Callable[[], Tensor],
        split: str,
    ) -> None:
        self._count, self._read, self._place, self.labels, self.split = count, read, root, labels, split
        with reading(root):
            listing = hashlib.sha256()
            for file in files:
                facts = file.stat()
                # ctime as well: copying and unpacking may set the other time, and so hide that a file was replaced.
                times = f"\0{facts.st_size}\0{facts.st_mtime_ns}\0{facts.st_ctime_ns}\n"
                listing.update(os.fsencode(file.relative_to(root)) + times.encode())
            height, width, channels = read([0])[0][0].shape
        self.listing, self.shape = listing.hexdigest(), (count, channels, height, width)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        """uint8 [B, C, H, W]."""
        places = range(len(self))[rows] if isinstance(rows, slice) else rows.tolist()
        _, channels, height, width = self.shape
        pixels = np.empty((len(places), height, width, channels), np.uint8)
        with reading(self._place):
            for begin in range(0, len(places), PART):
                for i, (picture, place) in enumerate(self._read(places[begin : begin + PART]), begin):
                    if picture.shape != pixels.shape[1:]:
                        raise CorruptFile(
                            f"{place} is {picture.shape[1]}x{picture.shape[0]} with {picture.shape[2]} channels, the "
                            f"first picture {width}x{height} with {channels}; accepted: {PICTURES}"
                        )
                    pixels[i] = picture
        if len(pixels) >= min(FEW, len(self)) and pixels.max() <= 1:
            raise CorruptFile(
                f"{len(pixels)} images in {self._place} have no value above 1: they may have been scaled to 0..1 "
                "before they were stored; store 0..255"
            )
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))


def open_images(name: str, split: str, root: Path) -> Stored:
    """A user's own images: an npz file or a folder, which holds them all or has ``train`` and ``test`` by themselves.

    Args:
        name: of the data set, for errors.
        split: ``train`` or ``test``; images in one split are those of ``train``.
        root: the file or the folder.

    Raises:
        BadValue: the images have one split, and ``test`` is asked for; or there are no images but statistics.
        MissingFile: no such folder, or it does not hold this split.
        CorruptFile: what it holds is damaged or not of the accepted kinds.
    """
    with reading(root):
        if root.is_file():
            if root.suffix != ".npz":
                raise MissingFile(f"{root} is a file but no .npz; give an npz of {ARRAYS}, or a folder of pictures")
            stored = _npz(root, ONE_SPLIT)
        elif not root.is_dir():
            raise MissingFile(f"{root} does not exist; give a folder of pictures, or one with {forms(split)}")
        else:
            found = {each: _forms_in(root, each) for each in SPLITS}
            _check_splits(root)
            if found["train"] or found["test"]:
                images = read_split(root, split)
                if images is None:
                    raise MissingFile(
                        f"no {split} images of {name} in {root}, which holds {inside(root)}; expected {forms(split)}"
                    )
                return images
            stored = _pictures(root, root, ONE_SPLIT)
    if split != "train":
        raise BadValue(
            f"{root} has one split, and {split} images are asked for; put the images into {root}/train and {root}/test"
        )
    return stored


def holds_statistics(path: Path) -> bool:
    """Whether a file is an npz with the arrays ``mu`` and ``sigma``, as pytorch-fid writes it, in place of images.

    Raises:
        CorruptFile: it cannot be read, or holds images as well: which is meant?
    """
    if path.suffix != ".npz" or not path.is_file():
        return False
    with _npz_file(path) as archive:
        names = set(archive.files)
    if not {"mu", "sigma"} <= names:
        return False
    if names & {"images", "arr_0"}:
        raise CorruptFile(
            f"{path} holds both images and the statistics mu and sigma ({', '.join(sorted(names))}); "
            "save the images or the statistics in a file of their own"
        )
    return True


def read_moments(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """``mu`` [D] and ``sigma`` [D, D], float64, of a file that :func:`holds_statistics`.

    Raises:
        CorruptFile: other types or shapes, NaN, infinity, or no covariance.
    """
    with _npz_file(path) as archive:
        mean, covariance = (np.asarray(archive[name]) for name in ("mu", "sigma"))
    fits = mean.ndim == 1 and mean.size and covariance.shape == 2 * mean.shape
    if not fits or not {mean.dtype, covariance.dtype} <= {np.dtype(np.float32), np.dtype(np.float64)}:
        raise CorruptFile(
            f"mu in {path} is {mean.dtype} {list(mean.shape)} and sigma {covariance.dtype} {list(covariance.shape)}; "
            "accepted: floats of 32 or 64 bits, [D] and [D, D], as pytorch-fid writes them"
        )
    for name, array in (("mu", mean), ("sigma", covariance)):
        if not np.isfinite(array).all():
            raise CorruptFile(f"{name} in {path} holds NaN or infinity; make the file again with pytorch-fid")
    mean, covariance = mean.astype(np.float64), covariance.astype(np.float64)
    scale = np.abs(covariance).max()
    asymmetric = np.abs(covariance - covariance.T).max() > 1e-6 * scale
    variances = np.linalg.eigvalsh(covariance)
    if asymmetric or variances[0] < -1e-4 * variances[-1]:
        raise CorruptFile(
            f"sigma in {path} is not a covariance (symmetric, and no variance below 0); make the file again"
        )
    return mean, covariance


@contextmanager
def reading(root: Path) -> Iterator[None]:
    """Turn what the system says of a file or folder that cannot be read into :class:`CorruptFile`."""
    try:
        yield
    except TTError:
        raise
    except OSError as error:
        place, reason = error.filename or root, error.strerror or error
        raise CorruptFile(f"cannot read {place}: {reason}; restore it or change its permissions") from error


def read_split(root: Path, split: str) -> Stored | None:
    """The images of a split in the one form that ``root`` holds; None if it holds none.

    Raises:
        CorruptFile: two forms (which is meant?), or one that cannot be read.
    """
    found = _forms_in(root, split)
    if len(found) > 1:
        raise CorruptFile(f"{root} holds the {split} images twice, {' and '.join(found)}; keep one of them")
    return next(iter(found.values()))() if found else None


def _forms_in(root: Path, split: str) -> dict[str, Callable[[], Stored]]:
    # An entry that is not what its name says, a folder x.parquet or a broken link, is read, and fails by its name.
    found: dict[str, Callable[[], Stored]] = {}
    if (root / split).is_dir():
        found[f"{split}/"] = partial(_pictures, root / split, root, split)
    if (root / f"{split}.npz").exists():
        found[f"{split}.npz"] = partial(_npz, root / f"{split}.npz", split)
    for folder in PARQUET_FOLDERS:
        shards = sorted((root / folder).glob(f"{split}-*.parquet"))
        if shards:
            found[str(Path(folder, f"{split}-*.parquet"))] = partial(_shards, shards, root, split)
    return found


def _check_splits(root: Path) -> None:
    """Raise :class:`CorruptFile` where ``train`` or ``test`` may be a class, and a split another name.

    Such are one of them beside other folders, both beside pictures, and none but ``training`` or ``Test``.
    """
    with os.scandir(root) as found:
        entries = [entry for entry in found if not entry.name.startswith(".")]
    folders = {entry.name for entry in entries if entry.is_dir()}
    others = sorted(folders - {*SPLITS, *PARQUET_FOLDERS})
    splits = sorted(folders & set(SPLITS))
    loose = sorted({entry.name for entry in entries if entry.name.lower().endswith(ENDINGS)} - folders)
    beside = loose + (others if len(splits) == 1 else [])
    if not splits:
        splits = [name for name in others if name.casefold() in SPLIT_WORDS]
        beside = [name for name in others if name not in splits] + loose or splits[1:]
    if splits and beside:
        raise CorruptFile(
            f"{root} holds {splits[0]}/ beside {', '.join(beside[:5])}: is it a split or a class? Name the splits "
            f"train/ and test/, or give the folder that is meant, such as {root / splits[0]}"
        )


def inside(folder: Path) -> str:
    """The first names in a folder, for errors."""
    names = sorted(entry.name for entry in folder.iterdir())
    return (", ".join(names[:8]) or "nothing") + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _pictures(folder: Path, root: Path, split: str) -> Stored:
    """All pictures below a folder, by the order of their paths."""
    files = [Path(path) for path in _walk(str(folder), (os.path.realpath(folder),))]
    if not files:
        raise CorruptFile(f"{folder} is empty; put the images there: {PICTURES}")

    def read(rows: Sequence[int]) -> Arrays:
        def one(row: int) -> tuple[np.ndarray, str]:
            return decode(files[row].read_bytes(), str(files[row])), str(files[row])

        if len(rows) < FEW:
            return [one(row) for row in rows]
        with ThreadPoolExecutor() as pool:  # Pillow decodes outside of Python's lock
            return list(pool.map(one, rows))

    def labels() -> Tensor:
        """The classes, CLASS/*.png: numbered in the order of their names, or named by their numbers."""
        classes = [file.relative_to(folder).parts for file in files]
        for file, parts in zip(files, classes, strict=True):
            if len(parts) != 2:
                raise CorruptFile(f"{file} is in no class folder; {folder} must hold CLASS/*.png and nothing else")
        names = sorted({parts[0] for parts in classes})
        numbered = all(name.isdecimal() for name in names)
        numbers = {name: int(name) if numbered else i for i, name in enumerate(names)}
        return _labels(np.array([numbers[parts[0]] for parts in classes]), str(folder))

    return Stored(files, root, len(files), read, labels, split)


def _walk(folder: str, above: tuple[str, ...]) -> Iterator[str]:
    """The paths of the pictures below a folder; links to folders are followed, ``above`` has the way here."""
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            real = os.path.realpath(entry.path)
            if real in above:
                raise CorruptFile(f"{entry.path} leads back to {real}, in which it is; remove the link")
            yield from _walk(entry.path, (*above, real))
        elif entry.is_symlink() and not os.path.exists(entry.path):
            yield entry.path  # a broken link is read, and fails by its name
        elif entry.is_file() and entry.name.lower().endswith(ENDINGS):  # a pipe would be waited for
            yield entry.path
        else:
            raise CorruptFile(
                f"{entry.path} is not a picture ({', '.join(ENDINGS)}); a folder of images holds nothing else: move it "
                "away, or give a file .npz itself"
            )


@contextmanager
def _npz_file(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    """An open npz; Python objects in it are not unpickled, since a pickle can run any code."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            yield archive
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
        if isinstance(error, TTError):
            raise
        if "allow_pickle" in str(error):
            raise CorruptFile(f"{path} holds Python objects; accepted: {ARRAYS}") from error
        raise CorruptFile(f"{path} is not a readable npz file ({error}); accepted: {ARRAYS}") from error


def _npz(path: Path, split: str) -> Stored:
    """The array ``images`` of an npz, or what ``np.savez(path, images)`` calls it."""
    if holds_statistics(path):
        raise BadValue(
            f"{path} holds mu and sigma of pytorch-fid and no images, which are needed here; give the images, or tune "
            "with source=generated"
        )
    with _npz_file(path) as archive:
        names = [name for name in ("images", "arr_0") if name in archive.files]
        if len(names) != 1:  # both: which is meant?
            raise CorruptFile(f"{path} holds the arrays {', '.join(archive.files) or 'none'}; accepted: {ARRAYS}")
        images = _mapped(path, f"{names[0]}.npy") if path.stat().st_size >= MAPPED else None
        images = np.asarray(archive[names[0]]) if images is None else images  # what is no array is read as bytes
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or not images.size:
        first = images.ndim == 4 and images.shape[1] in (1, 3)
        raise CorruptFile(
            f"images in {path} are {images.dtype} {list(images.shape)}{' (channels first?)' if first else ''}; "
            f"accepted: {ARRAYS}"
        )

    def labels() -> Tensor:
        with _npz_file(path) as archive:
            if "labels" not in archive.files:
                raise CorruptFile(f"{path} holds the arrays {', '.join(archive.files)}; accepted: {ARRAYS}, {CLASSES}")
            found = np.asarray(archive["labels"])
        if found.shape != images.shape[:1]:
            raise CorruptFile(f"labels in {path} are {list(found.shape)} for {len(images)} images; accepted: {CLASSES}")
        return _labels(found, str(path))

    return Stored(
        [path], path.parent, len(images), lambda rows: [(images[row], str(path)) for row in rows], labels, split
    )


def _mapped(path: Path, member: str) -> np.ndarray | None:
    """An array of an npz that is mapped and not read; None if it is compressed."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(member)
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        return None
    with open(path, "rb") as stream:
        # The local header has the lengths of name and extra field at 26, and both behind its 30 bytes.
        stream.seek(info.header_offset + 26)
        lengths = stream.read(4)
        stream.seek(int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little"), os.SEEK_CUR)
        begin = stream.tell()
        version = np.lib.format.read_magic(stream)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(stream)
        if stream.tell() - begin + math.prod(shape) * dtype.itemsize != info.file_size:
            raise ValueError(f"{member} is not as long as its header says, {dtype} {list(shape)}")
        return np.memmap(path, dtype, "r", stream.tell(), shape, order="F" if fortran else "C")


def _shards(shards: list[Path], root: Path, split: str) -> Stored:
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
    # One row group after another: where each begins in its file and in all, and its rows.
    groups = [(shard, *group) for shard in shards for group in _row_groups(shard)]
    ends = np.cumsum([rows for *_, rows in groups])
    last: tuple[int, list[bytes]] = (-1, [])

    def read(rows: Sequence[int]) -> Arrays:
        nonlocal last
        pictures = []
        for row in rows:
            i = int(np.searchsorted(ends, row, side="right"))
            shard, group, column, begin, size = groups[i]
            if last[0] != i:
                encoded = _column(shard, group, column)
                last = i, [(each.as_py() or {}).get("bytes") or b"" for each in encoded]
            place = row - int(ends[i]) + size
            name = f"row {begin + place} of {shard}"
            pictures.append((decode(last[1][place], name), name))
        return pictures

    def labels() -> Tensor:
        parts = []
        for shard, group, *_ in groups:
            column = _column(shard, group, "label")
            if column.null_count:
                raise CorruptFile(f"{shard} has rows without a label; restore it")
            parts.append(_labels(column.to_numpy(), str(shard)))
        return torch.cat(parts)

    return Stored(shards, root, int(ends[-1]), read, labels, split)


def _row_groups(path: Path) -> list[tuple[int, str, int, int]]:
    """For each row group of a parquet file its number, the column of images, the first row and the number of rows."""
    from pyarrow import null, types

    with _parquet(path) as file:
        schema = file.schema_arrow
        found = {name: schema.field(name).type for name in schema.names}
        column = "img" if "img" in found else "image" if "image" in found else None
        column = None if {"img", "image"} <= set(found) else column  # which is meant?
        kind = found[column] if column else null()
        encoded = types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and kind.field("bytes").type
        if column is None or not encoded or not (types.is_binary(encoded) or types.is_large_binary(encoded)):
            columns = ", ".join(f"{name} ({kind})" for name, kind in found.items())
            raise CorruptFile(f"{path} has the columns {columns or 'none'}; accepted: {COLUMNS}")
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    if not sum(sizes):
        raise CorruptFile(f"{path} has no rows; restore it")
    return [(i, column, sum(sizes[:i]), size) for i, size in enumerate(sizes) if size]


def _column(path: Path, group: int, name: str):
    with _parquet(path) as file:
        if name not in file.schema_arrow.names:
            columns = ", ".join(f"{each.name} ({each.type})" for each in file.schema_arrow)
            raise CorruptFile(f"{path} has the columns {columns}; accepted: {COLUMNS} and {name} (integer)")
        return file.read_row_group(group, [name])[name]


@contextmanager
def _parquet(path: Path) -> Iterator:
    import pyarrow.parquet

    try:
        # Not read_table: that would take a folder's name such as split=train for a column.
        with pyarrow.parquet.ParquetFile(path) as file:
            yield file
    except TTError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
        raise CorruptFile(f"{path} is not a readable parquet file ({error}); restore it") from error


def decode(content: bytes, place: str) -> np.ndarray:
    """One encoded picture as uint8 [H, W, 3], or [H, W, 1] if it is grey.

    Raises:
        CorruptFile: another format, 16 bits, transparency, a palette, several frames, a turn by EXIF, or damage.
    """
    from PIL import Image

    try:
        # Naming the formats skips the search for one, which takes longer than decoding 32x32 pixels.
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        pixels = np.asarray(image)
        turned = image.getexif().get(ORIENTATION, 1) > 1
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise CorruptFile(f"{place} is {_kind_of(content)}; accepted: {PICTURES}") from error
    # Pillow drops the lower 8 of 16 bits without a word; the depth stands at byte 24 of a PNG.
    bits = content[24] if image.format == "PNG" else 8
    if (
        bits != 8
        or image.mode not in ("RGB", "L")
        or "transparency" in image.info
        or getattr(image, "is_animated", False)
        or turned
    ):
        kind = f"{bits} bits, mode {image.mode}" + (", transparent" if "transparency" in image.info else "")
        kind += ", which EXIF says to turn when it is shown" if turned else ""
        kind += ", of several frames" if getattr(image, "is_animated", False) else ""
        raise CorruptFile(f"{place} is {image.format} of {kind}; accepted: {PICTURES}")
    return pixels.reshape(*pixels.shape[:2], -1)


def _kind_of(content: bytes) -> str:
    """What a file is that is no readable picture of the accepted formats."""
    from PIL import Image

    if not content:
        return "empty"
    try:
        kind = Image.open(io.BytesIO(content)).format
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return "no picture or a damaged one"
    return f"a damaged or truncated {kind} file" if kind in FORMATS else f"a {kind} file"


def _labels(labels: np.ndarray, place: str) -> Tensor:
    """Labels as int64 [N]."""
    if labels.dtype.kind not in "iu":
        raise CorruptFile(f"labels in {place} are {labels.dtype}, such as {labels[0]!r}; accepted: integers from 0 on")
    bad = labels[(labels < 0) | (labels >= 2**31)]
    if len(bad):
        raise CorruptFile(
            f"labels in {place} are outside 0..{2**31 - 1}: {sorted(set(bad.tolist()))[:5]}; correct them"
        )
    return torch.from_numpy(labels.astype(np.int64))
