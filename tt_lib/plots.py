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
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
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


def _text_width(text: str, points: float) -> float:
    """Width in points of one line of text in the figures' font, with room for the rounding of a screen's."""
    if not text.strip():
        return 0.0
    font = FontProperties(family=STYLE["font.family"])
    return 1.05 * float(TextPath((0, 0), text, size=points, prop=font).get_extents().width)


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


# ------------------------------------------------------------------------------------------------ plots


def timing_plot(timings: Mapping[str, tuple[Any, Any]]) -> Figure:
    """The ratio tau/t of each evaluation against its nominal time; sampling runs from left to right.

    ``timings`` maps a label to (nominal times, taus). The times may have one entry more than the taus: the
    end of the grid, where the network is not evaluated.

    Raises:
        BadValue: lengths that do not match, or a nominal time that is not positive
    """
    if not timings:
        raise BadValue("no timing to plot; give at least one label and its (nominal times, taus)")
    with style():
        figure = Figure(figsize=(7, 3.6))
        axes = figure.add_subplot()
        axes.axhline(1, color=GREY, linewidth=1)
        for label, drawn in line_styles(list(timings)).items():
            times, taus = (np.asarray(values, dtype=np.float64) for values in timings[label])
            if taus.ndim != 1 or times.ndim != 1 or len(times) - len(taus) not in (0, 1):
                raise BadValue(
                    f"timing {label!r} has nominal times {times.shape} for taus {taus.shape} in shape; "
                    "give one tau for each evaluation and as many times, or one more"
                )
            times = times[: len(taus)]
            if not (times > 0).all():
                raise BadValue(f"timing {label!r} has a nominal time of {times.min()}; tau/t needs times above 0")
            axes.plot(times, taus / times, label=label, **drawn._asdict())
        axes.set_xlim(1.04 * axes.dataLim.x1, -0.02 * axes.dataLim.x1)
        axes.set(xlabel="nominal time t (1 = noise, 0 = data)", ylabel="ratio τ/t (1 = untuned)")
        _legend_below(figure, *axes.get_legend_handles_labels())
    return figure


def tuning_history(frame: pd.DataFrame) -> Figure:
    """The loss and the ratio tau/t of every step over the iterations of its tuning, coloured by its time.

    ``frame`` has the columns step, iteration, loss, tau, t.

    Raises:
        BadValue: a missing column, or no row
    """
    _need_columns(frame, ("step", "iteration", "loss", "tau", "t"))
    with style():
        figure = Figure(figsize=(9, 3.8))
        loss_axes, ratio_axes = figure.subplots(1, 2)
        colours = ScalarMappable(Normalize(0, max(1.0, float(frame["t"].max()))), _readable_part("cividis"))
        ratio_axes.axhline(1, color=GREY, linewidth=1)
        dashes = [value["linestyle"] for value in STYLE["axes.prop_cycle"]]
        for place, (step, rows) in enumerate(frame.groupby("step", sort=True)):
            rows = rows.sort_values("iteration")
            drawn: dict[str, Any] = {
                "color": colours.to_rgba(rows["t"].to_numpy()[:1])[0],
                "linestyle": dashes[place % len(dashes)],
                "label": str(step),
                "marker": "o" if len(rows) == 1 else None,
            }
            loss_axes.plot(rows["iteration"], rows["loss"], **drawn)
            ratio_axes.plot(rows["iteration"], rows["tau"] / rows["t"], **drawn)
        if (frame["loss"] > 0).all():
            _plain_log_axis(loss_axes, "y", float(frame["loss"].min()), float(frame["loss"].max()))
        loss_axes.set(xlabel="iteration", ylabel="loss of the step")
        ratio_axes.set(xlabel="iteration", ylabel="ratio τ/t (1 = untuned)")
        for axes in (loss_axes, ratio_axes):
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        figure.colorbar(colours, ax=ratio_axes, label="time t of the step\n(1 = noise, 0 = data)")
        handles, names = loss_axes.get_legend_handles_labels()
        _legend_below(figure, handles, names, "step")
    return figure


def fd_against_nfe(frame: pd.DataFrame) -> Figure:
    """Fréchet distance against NFE with its interval: a line a timing, a panel for each solver and grid.

    ``frame`` holds rows of ``fd.csv``. Rows whose timing, solver or grid is "ceiling" (this network with
    many steps) or "floor" (real images against real images) become horizontal lines. The points of one NFE
    are set slightly apart, so that their intervals can be told apart.

    Raises:
        BadValue: a missing column, no row, or rows on different scales, which one figure cannot compare
    """
    frame = frame.reset_index(drop=True)
    needed = ("dataset", "model", "solver", "grid", "nfe", "eta", "timing")
    _need_columns(frame, (*needed, "metric", "features", "reference", "n", "value", "low", "high"))
    named = frame[["timing", "solver", "grid"]]
    kind = [next((w for w in words if w in REFERENCE_ROWS), None) for words in named.to_numpy()]
    is_line = np.array([word is not None for word in kind])
    lines, points = frame[is_line], frame[~is_line]
    if points.empty:
        raise BadValue("no row but ceilings and floors; give rows of at least one timing")
    for column in ("dataset", "metric", "features", "model", "reference", "n"):
        rows = frame if column in ("dataset", "metric", "features") else points
        if rows[column].nunique(dropna=False) > 1:
            found = ", ".join(sorted(map(str, rows[column].unique())))
            raise BadValue(f"rows differ in {column} ({found}); plot one at a time")
    # eta is said only where one solver comes with several.
    several = points.groupby("solver")["eta"].nunique() > 1
    pairs = zip(points["solver"], points["eta"], strict=True)
    panel = [f"{solver}, η = {eta:g}" if several[solver] else solver for solver, eta in pairs]
    points = points.assign(panel=panel)
    repeated = points[points.duplicated(["panel", "grid", "timing", "nfe"])]
    if len(repeated):
        row = repeated.iloc[0]
        raise BadValue(f"several rows for {row['panel']}, {row['grid']}, {row['timing']}, NFE {row['nfe']}; keep one")
    panels, grids = list(dict.fromkeys(points["panel"])), list(dict.fromkeys(points["grid"]))
    styles = line_styles(list(points["timing"]))
    with style():
        figure = Figure(figsize=(max(5.2, 3.9 * len(grids)), 0.9 + 3.1 * len(panels)))
        facets = figure.subplots(len(panels), len(grids), squeeze=False, sharex=True, sharey=True)
        values = frame[["value", "low", "high"]].to_numpy(dtype=np.float64)
        handles: dict[str, Any] = {}
        is_fid = str(points["metric"].iloc[0]).upper() == "FID"
        what = "FID" if is_fid else f"Fréchet distance\n({points['features'].iloc[0]} features)"
        for (i, j), axes in np.ndenumerate(facets):
            here = points[(points["panel"] == panels[i]) & (points["grid"] == grids[j])]
            if here.empty:
                axes.set_visible(False)
                continue
            axes.set_title(f"{panels[i]} · {grids[j]}")
            this = here.iloc[0]
            for place, row in lines.iterrows():
                word = kind[place]
                if all(_speaks_of(row[column], this[column]) for column in ("solver", "grid", "eta")):
                    drawn = {"color": COLOURS[word], "linestyle": REFERENCE_ROWS[word], "linewidth": 1.4}
                    handles[word] = axes.axhline(row["value"], **drawn)
            for order, (timing, look) in enumerate(styles.items()):
                rows = here[here["timing"] == timing].sort_values("nfe")
                if rows.empty:
                    continue
                value = rows["value"].to_numpy(dtype=np.float64)
                reach = np.abs(rows[["low", "high"]].to_numpy(dtype=np.float64).T - value)
                apart = 1.02 ** (order - (len(styles) - 1) / 2)
                handles[timing] = axes.errorbar(
                    rows["nfe"].to_numpy(dtype=np.float64) * apart,
                    value,
                    yerr=np.nan_to_num(reach),
                    capsize=2.5,
                    markersize=4.5,
                    elinewidth=1.2,
                    **look._asdict(),
                )
        nfes = sorted(points["nfe"].unique())
        for (i, j), axes in np.ndenumerate(facets):
            if not axes.get_visible():
                continue
            if not any(above.get_visible() for above in facets[i, :j]):
                axes.set_ylabel(what)
            if not any(below.get_visible() for below in facets[i + 1 :, j]):
                axes.set_xlabel("NFE (network evaluations a sample)")
            axes.set_xscale("log")
            axes.set_xlim(nfes[0] / 1.25, nfes[-1] * 1.25)
            axes.xaxis.set_major_locator(FixedLocator(nfes))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            if (values[np.isfinite(values)] > 0).all():
                _plain_log_axis(axes, "y", float(np.nanmin(values)), float(np.nanmax(values)))
            axes.tick_params(labelbottom=True, labelleft=True)
        names = [*(n for n in styles if n in handles), *(n for n in REFERENCE_ROWS if n in handles)]
        _legend_below(figure, [handles[name] for name in names], names)
    return figure


def _speaks_of(value: Any, here: Any) -> bool:
    """Whether a ceiling's or floor's solver, grid or eta is this panel's, or says nothing about it."""
    return bool(pd.isna(value)) or value == "" or value in REFERENCE_ROWS or value == here


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
