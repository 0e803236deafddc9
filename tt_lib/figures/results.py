"""Figures of results: timings, tuning, direction errors and Fréchet distances, each from rows and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import seaborn
from matplotlib.figure import Figure

from tt_lib.errors import BadValue
from tt_lib.figures.style import GREY, count_axis, legend_below, log_axis, looks, relplot
from tt_lib.metrics.direction import MEASURES
from tt_lib.timing import Timing

MEASURE_LABELS = {
    "angle": "angle between the direction\nused and the right one (degrees)",
    "relative": "relative direction error\n(share of the right one)",
    "local": "local truncation error\n(RMS over pixels)",
    "accumulated": "accumulated truncation error\n(RMS over pixels)",
}
MOST_SAMPLERS = 4
LINES: dict[str, Any] = {"ceiling": (0, (6, 3)), "floor": (0, (1.5, 2))}
"""Dashes of horizontal lines: the best that a network does, with many steps, and real images against real images."""


def timing_plot(timings: Mapping[str, Timing]) -> Figure:
    """The ratio tau/t of each evaluation against its nominal time, a line for each label; sampling runs to the right.

    Raises:
        BadValue: no timing.
    """
    ratios = {label: pd.DataFrame({"t": each.times, "ratio": each.ratios}) for label, each in timings.items()}
    frame = pd.concat([each.assign(label=label) for label, each in ratios.items()] or [pd.DataFrame()])
    # A solver may ask twice at one time: the points stay in the order of the calls.
    grid = relplot(frame, "label", (7, 3.2), x="t", y="ratio", kind="line", sort=False)
    grid.ax.axhline(1, color=GREY, linewidth=1, zorder=1)
    grid.set(xlim=(1.04 * frame["t"].max(), -0.02))
    grid.set_axis_labels("nominal time t (1 = noise, 0 = data)", "ratio τ/t (1 = untuned)")
    return grid.figure


def direction_profile(frame: pd.DataFrame) -> Figure:
    """Relative direction error and accumulated error over the grid, with 95 % intervals: a column for each sampler.

    Args:
        frame: rows of ``direction.csv``; an error is drawn at the time at which its step begins.

    Raises:
        BadValue: no row, more samplers than fit, or two rows of one point.
    """
    frame = frame.assign(sampler=frame["solver"] + " · " + frame["grid"] + " · NFE " + frame["nfe"].astype(str))
    if frame["sampler"].nunique() > MOST_SAMPLERS:
        raise BadValue(f"{frame['sampler'].nunique()} samplers do not fit one figure; choose at most {MOST_SAMPLERS}")
    repeated = frame[frame.duplicated(["sampler", "timing", "t"])]
    if len(repeated):
        row = repeated.iloc[0]
        raise BadValue(f"several rows for {row['sampler']}, {row['timing']}, t = {row['t']:g}; keep one")
    measures = ("relative", "accumulated")
    long = pd.concat(
        [frame.assign(measure=each, value=frame[each], margin=frame[f"{each}_margin"]) for each in measures]
    )
    long = long.assign(low=long["value"] - long["margin"].fillna(0), high=long["value"] + long["margin"].fillna(0))
    grid = relplot(
        long,
        "timing",
        (3.8, 2.9),
        x="t",
        y="value",
        row="measure",
        col="sampler",
        kind="line",
        facet_kws={"sharey": "row"},
    )
    _intervals(grid, "t")
    grid.set_titles("").set_axis_labels("time t at which the step begins\n(1 = noise, 0 = data)", "")
    grid.set(xlim=(1.04 * frame["t"].max(), -0.03))
    for (measure, _), axes in grid.axes_dict.items():
        log_axis(axes, "y", frame.loc[frame[measure] > 0, measure])
    for measure, axes in zip(measures, grid.axes[:, 0], strict=True):
        axes.set_ylabel(MEASURE_LABELS[measure])
    for sampler, axes in zip(grid.col_names, grid.axes[0], strict=True):
        axes.set_title(sampler)
    return grid.figure


def direction_against_distance(joined: pd.DataFrame) -> Figure:
    """Fréchet distance against the direction error: a panel for each measure, a point for each sampler.

    Args:
        joined: columns ``timing``, ``value`` and the measures, as of :func:`tt_lib.study.compare.errors_and_distances`.

    Raises:
        BadValue: no row.
    """
    long = joined.melt(["timing", "value"], list(MEASURES), "measure", "error")
    grid = relplot(
        long, "timing", (3.5, 3.4), x="error", y="value", col="measure", kind="scatter", facet_kws={"sharex": False}
    )
    grid.set_titles("").set_axis_labels("", "Fréchet distance")
    for measure, axes in grid.axes_dict.items():
        log_axis(axes, "x", joined[measure])
        log_axis(axes, "y", joined["value"])
        axes.set_xlabel(MEASURE_LABELS[measure])
    return grid.figure


def fd_against_nfe(frame: pd.DataFrame) -> Figure:
    """Fréchet distance against NFE with its interval: a line for each timing, a panel for each solver and grid.

    The points of one NFE are set slightly apart, so that their intervals can be told apart.

    Args:
        frame: rows of ``fd.csv``. Rows whose timing, solver or grid is one of :data:`LINES` become horizontal lines in
            every panel.

    Raises:
        BadValue: no row of a timing, two rows of one point, or rows on different scales.
    """
    line = pd.Series("", index=frame.index)
    for name in LINES:
        line[(frame[["timing", "solver", "grid"]] == name).any(axis=1)] = name
    points = frame[line == ""]
    if points.empty:
        raise BadValue("no row but ceilings and floors; give rows of at least one timing")
    for column in ("dataset", "metric", "features", "model", "weights", "reference", "n"):
        values = (frame if column in ("dataset", "metric", "features") else points)[column].unique()
        if len(values) > 1:
            raise BadValue(f"rows differ in {column} ({', '.join(sorted(map(str, values)))}); plot one at a time")
    # eta is said only where one solver comes with several.
    several = points.groupby("solver")["eta"].transform("nunique") > 1
    solver = points["solver"] + points["eta"].map(", η = {:g}".format).where(several, "")
    points = points.assign(panel=solver + " · " + points["grid"])
    repeated = points[points.duplicated(["panel", "timing", "nfe"])]
    if len(repeated):
        row = repeated.iloc[0]
        raise BadValue(f"several rows for {row['panel']}, {row['timing']}, NFE {row['nfe']}; keep one")
    panels = [f"{name} · {grid}" for name in solver.unique() for grid in points["grid"].unique()]
    panels = [panel for panel in panels if panel in set(points["panel"])]
    order = {name: place for place, name in enumerate(looks(points["timing"]))}
    apart = 1.02 ** (points["timing"].map(order) - (len(order) - 1) / 2)
    grid = relplot(
        points.assign(x=points["nfe"] * apart),
        "timing",
        (3.9, 3.1),
        x="x",
        y="value",
        col="panel",
        col_order=panels,
        col_wrap=min(len(panels), points["grid"].nunique()),
        kind="line",
    )
    _intervals(grid, "x")
    is_fid = points["metric"].iloc[0] == "FID"
    distance = "FID" if is_fid else f"Fréchet distance\n({points['features'].iloc[0]} features)"
    grid.set_titles("{col_name}").set_axis_labels("NFE (network evaluations a sample)", distance)
    values = frame[["value", "low", "high"]].stack().dropna()
    handles = dict(zip(order, grid.figure.legends[0].legend_handles, strict=True))
    for axes in grid.axes.flat:
        count_axis(axes, points["nfe"])
        log_axis(axes, "y", values)
        for name, value in zip(line, frame["value"], strict=True):
            if name:
                handles[name] = axes.axhline(value, color=GREY, linestyle=LINES[name], linewidth=1.4, zorder=1)
    legend_below(grid.figure, list(handles.values()), list(handles))
    return grid.figure


def _intervals(grid: seaborn.FacetGrid, x: str) -> None:
    """Draw the columns ``low`` to ``high`` of each point of a :func:`relplot` by timing."""
    own = looks(grid.data["timing"])
    for (i, j, _), rows in grid.facet_data():
        colours = [own[name].color for name in rows["timing"]]
        grid.facet_axis(i, j, modify_state=False).vlines(rows[x], rows["low"], rows["high"], colours, linewidth=1.2)
