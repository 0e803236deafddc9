"""Every figure of the project in one style: what a colour means is said once, here.

The palette is Okabe and Ito's, which colour-blind readers can tell apart. Each name has a marker and dashes of its own,
too, so that a figure also reads in grey. Backgrounds are opaque white, so that a figure reads on a dark page.

Functions that draw are decorated with ``@style()`` and return a :class:`matplotlib.figure.Figure` that pyplot does not
know of: no window is opened, and nothing has to be closed. Lines and points of tables go through :func:`relplot`, which
is seaborn's. In a notebook end the cell with ``show(figure, alt)``, which stores the figure with its text alternative;
in a command use :func:`save_figure`.
"""

from __future__ import annotations

import base64
import contextlib
import html
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib
import pandas as pd
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from tt_lib.errors import BadValue
from tt_lib.files import atomic_path, check_suffix

if TYPE_CHECKING:  # a second to import, which few need
    import seaborn

# Okabe and Ito, "Color Universal Design", 2008.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILLION, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#595959"


class Look(NamedTuple):
    """How one named series is drawn."""

    color: str
    marker: str
    dashes: Any
    """Lengths of dash and gap in turn, as seaborn takes them; empty for a solid line."""


LOOKS = [
    Look(BLACK, "o", ""),
    Look(ORANGE, "s", (5, 1.5)),
    Look(VERMILLION, "^", (6, 1.5, 1, 1.5)),
    Look(SKY, "v", (3, 1)),
    Look(BLUE, "D", (9, 1.5)),
    Look(GREEN, "P", (1, 1.2)),
    Look(PURPLE, "X", (4, 1, 1, 1, 1, 1)),
    Look(GREY, "h", (2, 1, 4, 1)),
]
"""No two share a colour, a marker or dashes."""
KINDS = {
    "ddim": Look(VERMILLION, "o", ""),
    "dpmpp-2m": Look(BLACK, "<", ""),
    "unipc": Look(SKY, ">", (4, 1.5)),
    "unipc,final=lower": Look(SKY, "p", ""),
    "untuned": Look(BLACK, "s", ""),
    "untuned, straight path": Look(GREEN, "^", ""),
    "untuned, either path": Look(BLACK, "P", ""),
    "tuned step by step": Look(ORANGE, "v", ""),
    "learned, others": Look(PURPLE, "X", ""),
    "learned UniPC": Look(BLUE, "D", ""),
    "converged solution": Look(GREY, "*", ""),
}
"""Kinds of samplers where they are compared: in notebook 07 and in the figure of the results. No two share a marker."""
TIMINGS = ["untuned", "consistency-sequential", "consistency-parallel", "truncation-sequential", "truncation-parallel"]
TIMINGS += ["constant", "learned"]
SOLVERS = ["ddim", "heun", "plms", "ipndm-v", "dpmpp-2m", "unipc", "deis-tab", "dpmpp-3m"]
FIXED = dict(zip(TIMINGS, LOOKS, strict=False)) | dict(zip(SOLVERS, LOOKS, strict=True))
"""A timing or a solver looks alike in every figure."""
SPARE = [Look(LOOKS[k % 7].color, "<>*p"[k % 4], LOOKS[k % 5].dashes) for k in range(5, 33)]
"""For any other name; neighbours differ in colour, marker and dashes."""

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
    "axes.prop_cycle": cycler(color=[look.color for look in LOOKS]),
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.8,
    "image.interpolation": "nearest",
    "image.cmap": "cividis",
}

TICKS: list[tuple[float, tuple[float, ...]]] = [
    (4, (1,)),
    (1.8, (1, 3)),
    (0.9, (1, 2, 5)),
    (0.45, (1, 1.5, 2, 3, 5, 7)),
    (0, ()),
]
"""Ticks of a logarithmic axis: from so many decades on, these multiples of powers of ten; in fewer, even ones."""


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The project's style, within a ``with`` block or, as ``@style()``, within a function."""
    with matplotlib.rc_context(STYLE):
        yield


def looks(names: Iterable[str]) -> dict[str, Look]:
    """A look for each name, no two alike: its own, else that of the fixed name it begins with, else a spare one.

    Raises:
        BadValue: more names than there are looks.
    """
    names = list(dict.fromkeys(names))
    chosen = {name: FIXED[name] for name in names if name in FIXED}
    for name in names:
        if name not in chosen:
            begins = [FIXED[each] for each in sorted(FIXED, key=len, reverse=True) if name.startswith(each)]
            taken = {look.color for look in chosen.values()}
            spare = sorted(SPARE, key=lambda look: look.color in taken)  # another colour where there is one left
            free = [look for look in [*begins, *spare] if look not in chosen.values()]
            if not free:
                raise BadValue(f"{len(names)} lines are too many for one figure; split it: {', '.join(names)}")
            chosen[name] = free[0]
    return {name: chosen[name] for name in names}


def relplot(frame: pd.DataFrame, series: str | None, size: tuple[float, float], **options: Any) -> seaborn.FacetGrid:
    """:func:`seaborn.relplot` in this style: a look for each value of one column, and the legend below the panels.

    Args:
        frame: a row for each point.
        series: the column whose values are told apart by :func:`looks`; if None, nothing is.
        size: width and height of one panel in inches.
        options: of :func:`seaborn.relplot`; ``x``, ``y``, ``row``, ``col``, ``kind`` and ``facet_kws`` above all.

    Raises:
        BadValue: no row, or too many series.
    """
    import seaborn

    if frame.empty:
        raise BadValue("no row to draw; give a frame of one row or more")
    own = looks(frame[series]) if series else {}
    if series:
        options = {
            "hue": series,
            "style": series,
            "hue_order": list(own),
            "style_order": list(own),
            "palette": {name: look.color for name, look in own.items()},
            "markers": {name: look.marker for name, look in own.items()},
            "dashes": {name: look.dashes for name, look in own.items()},
        } | options
    if options.get("kind") == "line":
        options |= {"estimator": None, "errorbar": None}
    width, height = size
    facets = {"legend_out": False} | options.pop("facet_kws", {})
    # FacetGrid lays its panels out by itself, and warns of any other layout; it gets ours when it is done.
    with style(), matplotlib.rc_context({"figure.constrained_layout.use": False}):
        grid = seaborn.relplot(
            frame.reset_index(drop=True), height=height, aspect=width / height, facet_kws=facets, **options
        )
        pyplot.close(grid.figure)
    grid.figure.set_layout_engine("constrained")
    if series:
        legend = grid.legend
        legend.remove()
        legend_below(grid.figure, legend.legend_handles, [text.get_text() for text in legend.texts])
    return grid


def legend_below(figure: Figure, handles: Sequence[Any], names: Sequence[str]) -> None:
    """The figure's legend, below its panels, in as many columns as fit; the figure grows by its height."""
    for legend in figure.legends:
        legend.remove()
    size = STYLE["legend.fontsize"]
    columns = int(72 * figure.get_figwidth() / (0.58 * size * max(map(len, names)) + 6.5 * size))
    columns = max(1, min(columns, len(names)))
    with style():
        figure.legend(handles, names, loc="outside lower center", ncols=columns)
    figure.set_figheight(figure.get_figheight() + 0.02 * size * math.ceil(len(names) / columns))


def log_axis(axes: Axes, which: str, values: Any) -> None:
    """A logarithmic axis ``x`` or ``y`` over the values, all above 0, with ticks that read as plain numbers."""
    low, high = float(min(values)), float(max(values))
    margin = max(high / low, 1.05) ** 0.06
    decades = math.log10(high / low) + 2 * math.log10(margin)
    subs = next(subs for least, subs in TICKS if decades >= least)
    axis = getattr(axes, f"{which}axis")
    getattr(axes, f"set_{which}scale")("log")
    getattr(axes, f"set_{which}lim")(low / margin, high * margin)
    axis.set_major_locator(LogLocator(subs=subs, numticks=12) if subs else MaxNLocator(4))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: f"{value:,.10g}")


def count_axis(axes: Axes, counts: Iterable[int]) -> None:
    """A logarithmic x axis of whole numbers, labelled at these and nowhere else."""
    counts = sorted(set(counts))
    axes.set(xscale="log", xlim=(counts[0] / 1.25, counts[-1] * 1.25))
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.xaxis.set_minor_locator(NullLocator())


def heat_map(axes: Axes, table: pd.DataFrame, words: pd.DataFrame, limit: float, fontsize: float = 9) -> Any:
    """A heat map around 0 with words in its cells; colours end at the limit. Returns what a colour bar needs."""
    import seaborn
    from seaborn.utils import relative_luminance

    options: dict[str, Any] = {"annot": words, "fmt": "", "annot_kws": {"fontsize": fontsize}, "cbar": False}
    seaborn.heatmap(table, ax=axes, cmap="PuOr_r", vmin=-limit, vmax=limit, **options)
    axes.tick_params(axis="y", labelrotation=0)
    mesh = axes.collections[0]
    for text in axes.texts:  # seaborn writes white on light colours, too; from 0.179 on black has more contrast
        column, row = map(int, text.get_position())
        text.set_color("black" if relative_luminance(mesh.to_rgba(table.iat[row, column])) > 0.179 else "white")
    return mesh


def _one_line(what: str, text: str) -> str:
    text = " ".join(text.split())
    if not text:
        raise BadValue(f"the {what} is empty; say in a sentence what the figure shows")
    return text


def png_bytes(figure: Figure, metadata: Mapping[str, str] | None = None) -> bytes:
    """The figure as PNG on opaque white; the same figure gives the same bytes."""
    stream = io.BytesIO()
    with style():
        figure.savefig(stream, format="png", facecolor="white", metadata={"Software": None, **(metadata or {})})
    return stream.getvalue()


def save_figure(figure: Figure, path: Path | str, caption: str, alt: str) -> Path:
    """Write the figure as PNG, whole or not at all, its caption and text alternative in its metadata.

    Raises:
        BadValue: a path that does not end in .png or cannot be written, an empty caption or text alternative.
    """
    path = Path(path)
    check_suffix(path, ".png")
    content = png_bytes(figure, {"Title": _one_line("caption", caption), "Description": _one_line("alt text", alt)})
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return path


def show(figure: Figure, alt: str) -> None:
    """Show a figure in a notebook so that the stored output carries its text alternative.

    The output holds the PNG, whose pixels nbval does not compare; ``<Figure: alt>`` as plain text, which it compares
    and which VS Code reads out; and ``alt`` in the image's metadata, which nbconvert's classic template writes as the
    ``alt`` attribute. JupyterLab and nbconvert's lab template ignore that metadata: for their readers a line to fold
    out below the figure says the same.

    Raises:
        BadValue: an empty text alternative.
    """
    from IPython.display import display

    alt = _one_line("alt text", alt)
    width, height = (round(inches * STYLE["figure.dpi"]) for inches in figure.get_size_inches())
    display(
        {"image/png": base64.b64encode(png_bytes(figure)).decode("ascii"), "text/plain": f"<Figure: {alt}>"},
        metadata={"image/png": {"alt": alt, "width": width, "height": height}},
        raw=True,
    )
    words = f"<details><summary>This figure in words</summary><p>{html.escape(alt)}</p></details>"
    display({"text/html": words, "text/plain": f"This figure in words: {alt}"}, raw=True)
    pyplot.close(figure)
