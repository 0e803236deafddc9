"""Figures of results: timings and Fréchet distances."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from tt_lib.errors import BadValue
from tt_lib.figures.style import GREY, KINDS, count_axis, log_axis, relplot, style
from tt_lib.timing import Timing

CURVES = [KINDS[kind] for kind in ("ddim", "untuned, either path", "learned UniPC")]
"""Looks of curves that are named in the figure, in turn."""


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


@style()
def distance_curves(curves: Mapping[str, pd.DataFrame], lines: Mapping[str, float]) -> Figure:
    """Fréchet distances against NFE, a curve for each name with its name beside its last point.

    Args:
        curves: columns ``value``, ``low`` and ``high``, indexed by NFE.
        lines: horizontal lines by name, such as the converged solution's.

    Raises:
        BadValue: no point.
    """
    points = pd.concat(curves.values()) if curves else pd.DataFrame()
    if points.empty:
        raise BadValue("no distance to draw; give a curve of one point or more")
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    for (name, rows), look in zip(curves.items(), CURVES, strict=False):
        axes.plot(rows.index, rows["value"], color=look.color, marker=look.marker)
        axes.vlines(rows.index, rows["low"], rows["high"], look.color, linewidth=1.2)
        if len(rows):
            place = (rows.index[-1], rows["value"].iloc[-1])
            axes.annotate(name, place, (9, 0), textcoords="offset points", va="center", color=look.color)
    count_axis(axes, points.index)
    # Room for a line's name below it.
    least = [0.9 * value for value in lines.values()]
    log_axis(axes, "y", [*points["value"], *points["low"], *points["high"], *least])
    for name, value in lines.items():
        # It ends with the curves, whose names stand behind.
        begin, end = axes.get_xlim()[0], points.index.max()
        axes.plot([begin, end], [value, value], color=GREY, linestyle=":", linewidth=1.8, zorder=1)
        place = (begin, value)
        axes.annotate(name, place, (4, -4), textcoords="offset points", va="top", color=GREY)
    axes.set(xlabel="network evaluations for an image", ylabel="Fréchet distance\n(ImageNet features, logarithmic)")
    axes.set_xlim(axes.get_xlim()[0], axes.get_xlim()[1] * 1.35)
    return figure
