"""Pictures of samples, drawn pixel by pixel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from tt_lib.errors import BadValue
from tt_lib.figures.style import STYLE, _text_width, style

# FOLDED tt_lib.figures.style
# Every figure of the project in one style: what a colour means is said once, here.
#
# The palette is Okabe and Ito's, which colour-blind readers can tell apart; each name has a marker and a
# line style too, so that a figure also reads in grey. Backgrounds are opaque white, so that a figure reads
# on a dark page. Pictures are drawn pixel by pixel, without smoothing.
#
# The functions return a :class:`matplotlib.figure.Figure` that pyplot knows nothing of: no window is opened,
# no backend is chosen, nothing has to be closed. In a notebook end the cell with ``show(fig, alt)``, which
# stores the figure with its text alternative; in a command use :func:`save_figure`.
#


# --------------------------------------------------------------------------------------------- pictures


def _pictures(pixels: Any, name: str = "pixels") -> np.ndarray:
    """uint8 [N, C, H, W], of numpy or torch, as uint8 [N, H, W, 3]."""
    if hasattr(pixels, "detach"):
        pixels = pixels.detach().cpu()
    array = np.asarray(pixels)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1] not in (1, 3) or len(array) == 0:
        raise BadValue(
            f"{name} must be uint8 [N, C, H, W] with N >= 1 and C = 1 or 3, got {array.dtype} "
            f"{list(array.shape)}; round samples to uint8 first"
        )
    return np.broadcast_to(array.transpose(0, 2, 3, 1), (len(array), *array.shape[2:], 3))


def _lay_out(
    rows: Sequence[np.ndarray],
    scale: float,
    labels: Sequence[str] = (),
    titles: Sequence[Sequence[str]] = (),
) -> Figure:
    """Rows of pictures on one canvas measured in figure pixels, so that their pixels stay whole.

    ``labels`` stand left of the rows; ``titles`` has, for the first rows, a text above each picture.
    """
    if not scale > 0:
        raise BadValue(f"scale must be positive, got {scale}")
    dpi, points, gap = STYLE["figure.dpi"], STYLE["font.size"], 4
    pixel = dpi / 72  # figure pixels in a point
    height, width = (size * scale for size in rows[0].shape[1:3])
    left = gap
    if labels:
        left += int(np.ceil(max(_text_width(label, points) for label in labels) * pixel)) + 8
    widest = max((_text_width(title, points) * pixel for line in titles for title in line), default=0)
    across = int(np.ceil(max(width, widest + 6))) + gap
    line = int(np.ceil(points * pixel * 1.5))
    total_width = left + across * max(len(row) for row in rows)
    total_height = gap + (int(height) + gap) * len(rows) + line * len(titles)
    with style():
        figure = Figure(figsize=(total_width / dpi, total_height / dpi))
        figure.set_layout_engine("none")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        top = gap
        for j, row in enumerate(rows):
            top += line if j < len(titles) else 0
            for i, picture in enumerate(row):
                start = left + across * i + (across - gap - int(width)) // 2
                extent = (start, start + width, top + height, top)
                axes.imshow(picture, extent=extent, aspect="auto")
                if j < len(titles):
                    axes.text(start + width / 2, top - line * 0.3, titles[j][i], ha="center", va="baseline")
            if labels:
                axes.text(left - 8, top + height / 2, labels[j], ha="right", va="center")
            top += int(height) + gap
        axes.set(xlim=(0, total_width), ylim=(total_height, 0))
    return figure


def image_grid(pixels: Any, columns: int = 8, titles: Sequence[str] | None = None, scale: float = 2) -> Figure:
    """Pictures in rows of ``columns``.

    ``pixels`` is uint8 [N, C, H, W] (C = 1 is drawn grey, C = 3 in colour), ``titles`` one short text for
    each picture, ``scale`` the side of one picture pixel in pixels of the figure.

    Raises:
        BadValue: other pixels, or another number of titles
    """
    pictures = _pictures(pixels)
    if columns < 1:
        raise BadValue(f"columns must be at least 1, got {columns}")
    if titles is not None and len(titles) != len(pictures):
        raise BadValue(f"{len(titles)} titles for {len(pictures)} pictures; give one for each")
    starts = range(0, len(pictures), columns)
    return _lay_out(
        [pictures[i : i + columns] for i in starts],
        scale,
        titles=[list(titles[i : i + columns]) for i in starts] if titles is not None else (),
    )


def compare_rows(rows: Mapping[str, Any], scale: float = 2, column_titles: Sequence[str] | None = None) -> Figure:
    """One labelled row of pictures for each name; a column holds the samples that came from one noise.

    Raises:
        BadValue: rows of different shapes, or another number of column titles
    """
    if not rows:
        raise BadValue("no rows to compare; give at least one name and its pictures")
    pictures = {name: _pictures(pixels, f"row {name!r}") for name, pixels in rows.items()}
    shapes = {name: row.shape[:3] for name, row in pictures.items()}
    if len(set(shapes.values())) > 1:
        raise BadValue(f"rows differ in their pictures' [N, H, W]: {shapes}; compare the same seeds")
    count = next(iter(shapes.values()))[0]
    if column_titles is not None and len(column_titles) != count:
        raise BadValue(f"{len(column_titles)} column titles for {count} columns; give one for each")
    header = [list(column_titles)] if column_titles is not None else ()
    return _lay_out(list(pictures.values()), scale, labels=list(pictures), titles=header)
