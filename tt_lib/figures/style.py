"""Every figure of the project in one style: what a colour means is said once, here.

The palette is Okabe and Ito's, which colour-blind readers can tell apart; each name has a marker and a
line style too, so that a figure also reads in grey. Backgrounds are opaque white, so that a figure reads
on a dark page. Pictures are drawn pixel by pixel, without smoothing.

The functions return a :class:`matplotlib.figure.Figure` that pyplot knows nothing of: no window is opened,
no backend is chosen, nothing has to be closed. In a notebook end the cell with ``show(fig, alt)``, which
stores the figure with its text alternative; in a command use :func:`save_figure`.
"""

from __future__ import annotations

import base64
import contextlib
import html
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.rcsetup import cycler
from matplotlib.textpath import TextPath
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from tt_lib.errors import BadValue
from tt_lib.files import atomic_path, check_png

# Okabe and Ito, "Color Universal Design", 2008.
BLACK = "#000000"
ORANGE = "#E69F00"
SKY = "#56B4E9"
GREEN = "#009E73"
YELLOW = "#F0E442"
BLUE = "#0072B2"
VERMILLION = "#D55E00"
PURPLE = "#CC79A7"
GREY = "#595959"


class LineStyle(NamedTuple):
    """How one named series is drawn: colour, marker and dashes all differ from every other's."""

    color: str
    marker: str
    linestyle: Any


# The fixed meanings. A name such as "consistency-parallel-lr0.01" is drawn as its longest prefix here.
LINE_STYLES: dict[str, LineStyle] = {
    "untuned": LineStyle(BLACK, "o", "-"),
    "consistency-sequential": LineStyle(ORANGE, "s", (0, (5, 1.5))),
    "consistency-parallel": LineStyle(VERMILLION, "^", (0, (6, 1.5, 1, 1.5))),
    "truncation-sequential": LineStyle(SKY, "v", (0, (3, 1))),
    "truncation-parallel": LineStyle(BLUE, "D", (0, (9, 1.5))),
    "constant": LineStyle(GREEN, "P", (0, (1, 1.2))),
    "frechet-joint": LineStyle(PURPLE, "X", (0, (4, 1, 1, 1, 1, 1))),
    "end-joint": LineStyle(GREY, "h", (0, (2, 1, 4, 1))),
}
COLOURS: dict[str, str] = {
    **{name: style.color for name, style in LINE_STYLES.items()},
    "ceiling": GREY,  # the best that this network does, with many steps
    "floor": GREY,  # real images against real images
    "fine": PURPLE,  # a many-step solution taken as the truth
    "data": SKY,
}
REFERENCE_ROWS: dict[str, Any] = {"ceiling": (0, (6, 3)), "floor": (0, (1.5, 2))}
SPARE_STYLES = [
    LineStyle(colour, marker, dashes)
    for (marker, dashes) in [("<", "-"), (">", (0, (5, 2))), ("*", (0, (1.5, 1.5)))]
    for colour in (GREEN, PURPLE, BLUE, VERMILLION, SKY, ORANGE, BLACK)
]
STYLE: Any = {
    "figure.facecolor": "white",
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "savefig.facecolor": "white",
    "savefig.transparent": False,
    "savefig.dpi": 200,  # twice figure.dpi, so that an image's pixels stay whole
    "font.family": "DejaVu Sans",  # comes with matplotlib: a figure is the same on every machine
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.labelsize": 11,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "legend.handlelength": 3.5,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
    "axes.facecolor": "white",
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.8,
    "axes.prop_cycle": cycler(
        color=[BLACK, ORANGE, BLUE, VERMILLION, GREEN, SKY, PURPLE],
        linestyle=["-", "--", "-.", ":", (0, (9, 1.5)), (0, (3, 1)), (0, (4, 1, 1, 1, 1, 1))],
    ),
    "image.interpolation": "nearest",
    "image.cmap": "cividis",
}


def apply_style() -> None:
    """Use the project's style for every later figure of this process (the first cell of a notebook)."""
    matplotlib.rcParams.update(STYLE)


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The project's style within a ``with`` block."""
    with matplotlib.rc_context(STYLE):
        yield


def line_styles(names: Sequence[str]) -> dict[str, LineStyle]:
    """A style for each name, no two alike: its fixed one, else its longest known prefix's, else a spare one.

    Raises:
        BadValue: more names than there are styles
    """
    names = list(dict.fromkeys(names))
    chosen = {name: LINE_STYLES[name] for name in names if name in LINE_STYLES}
    for name in names:
        if name in chosen:
            continue
        prefixes = [known for known in LINE_STYLES if name.startswith(known)]
        candidates = [LINE_STYLES[known] for known in sorted(prefixes, key=len, reverse=True)] + SPARE_STYLES
        free = [candidate for candidate in candidates if candidate not in chosen.values()]
        if not free:
            raise BadValue(f"{len(names)} lines are too many for one figure; split it: {', '.join(names)}")
        chosen[name] = free[0]
    return {name: chosen[name] for name in names}


def _text_width(text: str, points: float) -> float:
    """Width in points of one line of text in the figures' font, with room for the rounding of a screen's."""
    if not text.strip():
        return 0.0
    font = FontProperties(family=STYLE["font.family"])
    return 1.05 * float(TextPath((0, 0), text, size=points, prop=font).get_extents().width)


def _need_columns(frame: pd.DataFrame, columns: Sequence[str]) -> None:
    missing = [column for column in columns if column not in frame.columns]
    if missing or frame.empty:
        what = f"lacks the columns {', '.join(missing)}" if missing else "has no row"
        raise BadValue(f"the frame {what}; its columns are: {', '.join(map(str, frame.columns))}")


def _readable_part(name: str) -> Any:
    """A colour map without its lightest end, which cannot be seen on white."""
    from matplotlib.colors import ListedColormap

    return ListedColormap(matplotlib.colormaps[name](np.linspace(0, 0.85, 256)))


def _plain_log_axis(axes: Axes, which: str, low: float, high: float) -> None:
    """A log scale over [low, high] with ticks that read as plain numbers, three or more if possible."""
    margin = max(high / low, 1.05) ** 0.06
    low, high = low / margin, high * margin
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    ticks: Any = []
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        ticks = [d * 10.0**p for p in powers for d in digits if low <= d * 10.0**p <= high]
        if len(ticks) >= 4:
            break
    if len(ticks) < 3:
        ticks = [tick for tick in MaxNLocator(4).tick_values(low, high) if low <= tick <= high]
    getattr(axes, f"set_{which}scale")("log")
    getattr(axes, f"set_{which}lim")(low, high)
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.10g}"))


def _legend_below(figure: Figure, handles: Sequence[Any], names: Sequence[str], title: str | None = None) -> None:
    """A legend under the axes, in as many columns as fit."""
    size = STYLE["legend.fontsize"]
    widest = max(_text_width(name, size) for name in names) + 6.5 * size
    columns = max(1, min(len(names), int(figure.get_figwidth() * 72 / widest)))
    figure.legend(handles, names, loc="outside lower center", ncols=columns, title=title)


# ------------------------------------------------------------------------------------ keeping and showing


def _one_line(what: str, text: str) -> str:
    text = " ".join(text.split())
    if not text:
        raise BadValue(f"the {what} is empty; say in a sentence what the figure shows")
    return text


def png_bytes(fig: Figure, metadata: Mapping[str, str] | None = None) -> bytes:
    """The figure as PNG on opaque white; the same figure gives the same bytes."""
    stream = io.BytesIO()
    with style():
        fig.savefig(stream, format="png", facecolor="white", metadata={"Software": None, **(metadata or {})})
    return stream.getvalue()


def save_figure(fig: Figure, path: Path | str, caption: str, alt: str) -> Path:
    """Write the figure as PNG, whole or not at all, its caption and text alternative in its metadata.

    Raises:
        BadValue: a path that does not end in .png or cannot be written, an empty caption or text alternative
    """
    path = Path(path)
    check_png(path)
    words = {"Title": _one_line("caption", caption), "Description": _one_line("alt text", alt)}
    content = png_bytes(fig, words)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return path


def figure_markdown(path: Path | str, caption: str, alt: str) -> str:
    """Markdown that shows the figure with its text alternative and, below it, its caption."""
    alt = _one_line("alt text", alt).replace("\\", "\\\\").replace("[", "\\[").replace("]", "\\]")
    link = Path(path).as_posix()
    link = f"<{link}>" if " " in link else link
    return f"![{alt}]({link})\n\n*{_one_line('caption', caption)}*\n"


def show(fig: Figure, alt: str, described: bool = True) -> None:
    """Show a figure in a notebook so that the stored output carries its text alternative.

    The output holds the PNG, whose pixels nbval does not compare; ``<Figure: alt>`` as plain text, which it
    does compare and which VS Code reads out; and ``alt`` in the image's metadata, which nbconvert's classic
    template writes as the ``alt`` attribute. JupyterLab and nbconvert's lab template ignore that metadata:
    for their readers a line to fold out below the figure says the same (``described=False`` leaves it away,
    where the text beside the figure describes it already).
    """
    import matplotlib.pyplot as plt
    from IPython.display import display

    alt = _one_line("alt text", alt)
    content = png_bytes(fig)
    width, height = (round(inches * STYLE["figure.dpi"]) for inches in fig.get_size_inches())
    display(
        {"image/png": base64.b64encode(content).decode("ascii"), "text/plain": f"<Figure: {alt}>"},
        metadata={"image/png": {"alt": alt, "width": width, "height": height}},
        raw=True,
    )
    if described:
        words = f"<details><summary>This figure in words</summary><p>{html.escape(alt)}</p></details>"
        display({"text/html": words, "text/plain": f"This figure in words: {alt}"}, raw=True)
    plt.close(fig)
