"""CIFAR-10 in the Hub's layout: parquet files whose rows hold an encoded image and a label."""

from __future__ import annotations

import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tt_lib.errors import CorruptFile

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
