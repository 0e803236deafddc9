"""Images in memory or in files, and the one definition of uint8 -> [-1, 1] and back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tt_lib.errors import BadValue


class Pixels(Protocol):
    """uint8 [N, C, H, W], 0..255: a tensor, or files that are read when rows are asked for. ``pixels[:]`` reads all."""

    @property
    def shape(self) -> Sequence[int]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice | Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class Images:
    """A labelled set of images.

    Attributes:
        pixels: uint8 [N, C, H, W], 0..255.
        labels: int64 [N], the classes, from 0 on; 0 for images of a user's own, whose classes nothing here asks for.
        name: data set and split, for example ``cifar10-train``.
        digest: of :func:`by_hash`, which data these are; empty where the images have not all been read.

    Raises:
        BadValue: a tensor of another type or shape.
    """

    pixels: Pixels
    labels: Tensor
    name: str
    digest: str = ""

    def __post_init__(self) -> None:
        pixels, labels = self.pixels, self.labels
        if isinstance(pixels, Tensor) and (pixels.dtype != torch.uint8 or pixels.ndim != 4):
            raise BadValue(f"pixels must be uint8 [N, C, H, W], got {pixels.dtype} {list(pixels.shape)}")
        if labels.dtype != torch.int64 or labels.shape != pixels.shape[:1]:
            raise BadValue(f"labels must be int64 [{len(pixels)}], got {labels.dtype} {list(labels.shape)}")

    def __len__(self) -> int:
        return len(self.pixels)


def by_hash(pixels: Tensor, labels: Tensor) -> tuple[Tensor, str]:
    """An order of the images that does not depend on the order in which they are given, and what names them all.

    Args:
        pixels: uint8 [N, C, H, W].
        labels: int64 [N].

    Returns:
        The rows int64 [N] sorted by the sha256 of pixels and label, and the sha256 of these sorted hashes.
    """
    hashes = hash_each(pixels, labels)
    return torch.tensor(sorted(range(len(hashes)), key=hashes.__getitem__)), join_hashes(pixels.shape[1:], hashes)


def hash_each(pixels: Tensor, labels: Tensor) -> list[bytes]:
    """The sha256 of each image, uint8 [N, C, H, W], with its label, int64 [N]."""
    hashes: list[bytes] = []
    for image, label in zip(pixels.contiguous().numpy(), labels.tolist(), strict=True):
        one = hashlib.sha256(image)
        one.update(label.to_bytes(8, "little", signed=True))
        hashes.append(one.digest())
    return hashes


def join_hashes(shape: Sequence[int], hashes: Iterable[bytes]) -> str:
    """What names images of a shape (C, H, W) by the hashes of :func:`hash_each`, in whatever order they are."""
    whole = hashlib.sha256(f"{list(shape)}".encode())
    for each in sorted(hashes):
        whole.update(each)
    return whole.hexdigest()


def to_float(pixels: Tensor) -> Tensor:
    """uint8 0..255 -> float32 in [-1, 1]: ``x = pixels / 127.5 - 1``; any shape.

    Raises:
        BadValue: ``pixels`` is not uint8 (it may have been converted already).
    """
    if pixels.dtype != torch.uint8:
        raise BadValue(f"to_float takes uint8 pixels, got {pixels.dtype}")
    return pixels.float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """Floats in [-1, 1] -> uint8 0..255, clamped and rounded to the nearest level; any shape.

    Rounded, not truncated: truncation darkens every image by half a level, which Fréchet distances see.
    The input must be finite (the engine checks that); NaN has no level.
    """
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
