"""Images in memory, and the one definition of uint8 -> [-1, 1] and back."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tt_lib.errors import BadValue


@dataclass(frozen=True)
class Images:
    """A labelled set of images.

    Attributes:
        pixels: uint8 [N, C, H, W], 0..255.
        labels: int64 [N], indices into ``classes``.
        name: data set and split, for example ``cifar10-train``.
        classes: the names of the classes.

    Raises:
        BadValue: a tensor of another type or shape.
    """

    pixels: Tensor
    labels: Tensor
    name: str
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.pixels.dtype != torch.uint8 or self.pixels.ndim != 4:
            found = f"{self.pixels.dtype} {list(self.pixels.shape)}"
            raise BadValue(f"pixels must be uint8 [N, C, H, W], got {found}")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.pixels.shape[:1]:
            found = f"{self.labels.dtype} {list(self.labels.shape)}"
            raise BadValue(f"labels must be int64 [{len(self.pixels)}], got {found}")

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, rows: Tensor | slice, name: str | None = None) -> Images:
        """The images of ``rows`` (indices, a mask or a slice), in that order."""
        return replace(self, pixels=self.pixels[rows], labels=self.labels[rows], name=name or self.name)


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
