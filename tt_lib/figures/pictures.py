"""Pictures of samples in rows, drawn pixel by pixel and without smoothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from tt_lib.errors import BadValue, check_range
from tt_lib.figures.style import STYLE, style

GAP = 4
"""Pixels of the figure between pictures and around them."""


def image_grid(pixels: Any, columns: int = 8, scale: int = 2) -> Figure:
    """Pictures in rows of ``columns``.

    Args:
        pixels: uint8 [N, C, H, W], of numpy or torch; C = 1 is drawn grey, C = 3 in colour.
        scale: side of a picture's pixel in pixels of the figure.

    Raises:
        BadValue: other pixels, or no column.
    """
    check_range("columns", columns, 1)
    pictures = _pictures(pixels, "pixels")
    return _draw([pictures[i : i + columns] for i in range(0, len(pictures), columns)], scale)


def compare_rows(rows: Mapping[str, Any], scale: int = 2) -> Figure:
    """A row of pictures for each name; a column holds the samples that came from one noise.

    Args:
        rows: uint8 [N, C, H, W] by name, all of one shape.
        scale: see :func:`image_grid`.

    Raises:
        BadValue: no row, other pixels, or rows of different shapes.
    """
    if not rows:
        raise BadValue("no rows to compare; give at least one name and its pictures")
    pictures = {name: _pictures(pixels, f"row {name!r}") for name, pixels in rows.items()}
    shapes = {name: row.shape[:3] for name, row in pictures.items()}
    if len(set(shapes.values())) > 1:
        raise BadValue(f"rows differ in their pictures' [N, H, W]: {shapes}; compare the same seeds")
    return _draw(list(pictures.values()), scale, list(pictures))


def _pictures(pixels: Any, name: str) -> np.ndarray:
    """uint8 [N, C, H, W] as uint8 [N, H, W, 3]."""
    array = np.asarray(pixels.detach().cpu() if hasattr(pixels, "detach") else pixels)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1] not in (1, 3) or len(array) == 0:
        raise BadValue(
            f"{name} must be uint8 [N, C, H, W] with N >= 1 and C = 1 or 3, got {array.dtype} "
            f"{list(array.shape)}; round samples to uint8 first"
        )
    return np.broadcast_to(array.transpose(0, 2, 3, 1), (len(array), *array.shape[2:], 3))


@style()
def _draw(rows: list[np.ndarray], scale: int, labels: list[str] | None = None) -> Figure:
    """Rows of pictures [N, H, W, 3] on one canvas, a label to the left of each."""
    check_range("scale", scale, 1)
    height, width = (GAP + size * scale for size in rows[0].shape[1:3])
    canvas = np.full((GAP + height * len(rows), GAP + width * len(rows[0]), 3), 255, dtype=np.uint8)
    for j, row in enumerate(rows):
        for i, picture in enumerate(row):
            whole = picture.repeat(scale, 0).repeat(scale, 1)
            canvas[GAP + height * j : height * (j + 1), GAP + width * i : width * (i + 1)] = whole
    left = max(map(_text_width, labels)) + GAP if labels else 0
    across, down = left + canvas.shape[1], canvas.shape[0]
    figure = Figure(figsize=(across / STYLE["figure.dpi"], down / STYLE["figure.dpi"]))
    figure.set_layout_engine("none")
    axes = figure.add_axes((left / across, 0, canvas.shape[1] / across, 1))
    axes.set_axis_off()
    axes.imshow(canvas, aspect="auto")
    for j, label in enumerate(labels or []):
        axes.text(-GAP, height * (j + 0.5), label, ha="right", va="center")
    return figure


def _text_width(text: str) -> int:
    """Pixels of the figure that a label takes, with room for the rounding of a screen's."""
    path = TextPath((0, 0), text, size=STYLE["font.size"], prop=FontProperties(family=STYLE["font.family"]))
    return math.ceil(1.05 * path.get_extents().width * STYLE["figure.dpi"] / 72) + GAP
