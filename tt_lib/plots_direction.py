"""Figures of the direction error: where along the grid it sits, and what it has to do with the Fréchet distance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from tt_lib.direction import MEASURES
from tt_lib.errors import BadValue
from tt_lib.plots import _legend_below, _need_columns, _plain_log_axis, line_styles, style

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
                        rows["t"], rows[measure], yerr=rows[f"{measure}_margin"].fillna(0), capsize=2, markersize=4.5,
                        elinewidth=1.1, **look._asdict(),
                    )  # fmt: skip
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
        joined: what :func:`tt_lib.direction_study.beside_distances` gives.

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
