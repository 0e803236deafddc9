"""Figures of the direction error: where along the grid it sits, and what it has to do with the Fréchet distance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from tt_lib.errors import BadValue
from tt_lib.figures.style import (
    COLOURS,
    GREY,
    REFERENCE_ROWS,
    STYLE,
    _legend_below,
    _need_columns,
    _plain_log_axis,
    _readable_part,
    line_styles,
    style,
)
from tt_lib.metrics.direction import MEASURES

AXES = {
    "angle": "angle between the direction\nused and the right one (degrees)",
    "relative": "relative direction error\n(share of the right one)",
    "local": "local truncation error\n(RMS over pixels)",
    "accumulated": "accumulated truncation error\n(RMS over pixels)",
}
MOST_PANELS = 4


def direction_profile(frame: pd.DataFrame, measures: tuple[str, ...] = ("relative", "accumulated")) -> Figure:
    """Direction errors over the grid, with 95 % intervals: a column for each sampler, a line for each timing.

    Args:
        frame: rows of ``direction.csv``; an error is drawn at the time at which its step begins.
        measures: a row of panels for each.

    Raises:
        BadValue: a missing column, an unknown measure, no row, or more samplers than fit.
    """
    _need_columns(frame, ("solver", "grid", "nfe", "timing", "t", *measures, *(f"{name}_margin" for name in measures)))
    samplers = list(frame[["solver", "grid", "nfe"]].drop_duplicates().itertuples(index=False, name=None))
    if len(samplers) > MOST_PANELS:
        raise BadValue(f"{len(samplers)} samplers do not fit one figure; choose at most {MOST_PANELS}")
    styles = line_styles(list(frame["timing"]))
    with style():
        figure = Figure(figsize=(max(5.2, 3.6 * len(samplers)), 0.9 + 2.9 * len(measures)))
        facets = figure.subplots(len(measures), len(samplers), squeeze=False, sharey="row")
        handles: dict[str, Any] = {}
        for (i, j), axes in np.ndenumerate(facets):
            measure, (solver, grid, nfe) = measures[i], samplers[j]
            here = frame[(frame["solver"] == solver) & (frame["grid"] == grid) & (frame["nfe"] == nfe)]
            for timing, look in styles.items():
                rows = here[here["timing"] == timing].sort_values("t", ascending=False)
                if len(rows):
                    handles[timing] = axes.errorbar(
                        rows["t"],
                        rows[measure],
                        yerr=rows[f"{measure}_margin"].fillna(0),
                        capsize=2,
                        markersize=4.5,
                        elinewidth=1.1,
                        **look._asdict(),
                    )
            values = frame.loc[frame[measure] > 0, measure]
            _plain_log_axis(axes, "y", float(values.min()), float(values.max()))
            axes.set_xlim(1.04 * float(frame["t"].max()), -0.03)
            if i == 0:
                axes.set_title(f"{solver} · {grid} · NFE {nfe}")
            if i == len(measures) - 1:
                axes.set_xlabel("time t at which the step begins\n(1 = noise, 0 = data)")
            if j == 0:
                axes.set_ylabel(AXES[measure])
        _legend_below(figure, list(handles.values()), list(handles))
    return figure


def direction_against_distance(joined: pd.DataFrame, measures: tuple[str, ...] = MEASURES) -> Figure:
    """Fréchet distance against the direction error: a panel for each measure, a point for each sampler.

    Args:
        joined: what :func:`tt_lib.study.compare.beside_distances` gives.

    Raises:
        BadValue: a missing column, or no row.
    """
    _need_columns(joined, ("timing", "value", *measures))
    styles = line_styles(list(joined["timing"]))
    with style():
        figure = Figure(figsize=(3.5 * len(measures), 3.9))
        facets = figure.subplots(1, len(measures), squeeze=False, sharey=True)[0]
        handles: dict[str, Any] = {}
        for axes, measure in zip(facets, measures, strict=True):
            for timing, look in styles.items():
                rows = joined[joined["timing"] == timing]
                handles[timing] = axes.plot(
                    rows[measure], rows["value"], linestyle="none", marker=look.marker, color=look.color, markersize=6
                )[0]
            for which, column in (("x", measure), ("y", "value")):
                _plain_log_axis(axes, which, float(joined[column].min()), float(joined[column].max()))
            axes.set_xlabel(AXES[measure])
        facets[0].set_ylabel("Fréchet distance")
        _legend_below(figure, list(handles.values()), list(handles))
    return figure


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
