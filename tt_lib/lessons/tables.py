"""Notebook 07: many rows of ``fd.csv`` at once. Gains as heat maps, two kinds of features, and the best at one NFE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets
import numpy as np
import pandas as pd
import seaborn
from matplotlib.figure import Figure

from tt_lib.errors import BadValue
from tt_lib.figures.style import FIXED, GREY, LOOKS, heat_map, legend_below, log_axis, looks, relplot, style
from tt_lib.lessons.kit import explorer
from tt_lib.study.compare import AGREED_BETTER, AGREED_WORSE, UNDECIDED, beside_each_other, changes, changes_in_both

SATURATED = 40
"""Changes in per cent beyond this have the map's last colour: one ruined sampler must not hide the others."""
TIMING_KINDS = {
    "untuned": FIXED["untuned"],
    "consistency": FIXED["consistency-parallel"],
    "truncation": FIXED["truncation-parallel"],
    "constant": FIXED["constant"],
    "learned": FIXED["learned"],
    "corrections and others": LOOKS[-1],
}
"""The kinds of timings, by what their names begin with, and how each is drawn."""


def kind(timing: str) -> str:
    """Which of :data:`TIMING_KINDS` a timing is of."""
    return next((name for name in TIMING_KINDS if timing.startswith(name)), "corrections and others")


def gain_map(rows: pd.DataFrame, timings: Sequence[str]) -> Figure:
    """What tuning changed, as a heat map: a panel a timing, a line a sampler and grid, a column an NFE.

    Args:
        rows: of :func:`tt_lib.study.compare.distances`.
        timings: a panel for each.

    Raises:
        BadValue: no tuned row with an untuned one beside it.
    """
    gains = changes(rows)
    gains = gains[gains["timing"].isin(timings)].sort_values(["solver", "grid"], kind="stable")
    if gains.empty:
        raise BadValue(f"no row of {', '.join(timings)} has an untuned row beside it; measure some with `tt table`")
    return _heat_maps({timing: gains[gains["timing"] == timing] for timing in timings})


def gain_map_in_both(
    frame: pd.DataFrame, timing: str, features: tuple[str, str], n: int, model: str, grids: Sequence[str]
) -> Figure:
    """What one timing changed in two kinds of features: a panel for each, a line a solver and grid, a column an NFE.

    Args:
        frame: rows of ``fd.csv``.
        timing: whose changes.
        features, n, model: see :func:`tt_lib.study.compare.changes_in_both`.
        grids: that are shown, one below the other.

    Raises:
        BadValue: no such cell was measured in both features.
    """
    gains = changes_in_both(frame, features, n, model)
    gains = gains[(gains["timing"] == timing) & gains["grid"].isin(grids)]
    if gains.empty:
        raise BadValue(f"no {timing} was measured in both {' and '.join(features)}; measure some with `tt table`")
    # Grid by grid: the grid decides more than the solver.
    gains = gains.assign(place=gains["grid"].map(list(grids).index)).sort_values(["place", "solver"], kind="stable")
    columns = dict(zip(features, ("change_first", "change_second"), strict=True))
    return _heat_maps({name: gains.assign(change=gains[column]) for name, column in columns.items()})


@style()
def _heat_maps(panels: Mapping[str, pd.DataFrame]) -> Figure:
    """A heat map for each title, of frames with solver, grid, nfe and change; the same lines in all."""
    named = {title: own.assign(sampler=own["solver"] + ", " + own["grid"]) for title, own in panels.items()}
    everything = pd.concat(named.values())
    samplers, nfes = everything["sampler"].unique(), sorted(everything["nfe"].unique())
    height = 1.5 + (0.36 if len(samplers) < 12 else 0.28) * len(samplers)
    figure = Figure(figsize=(2.2 + len(panels) * max(2.2, 0.75 * len(nfes)), height))
    drawn = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (title, own) in zip(drawn, named.items(), strict=True):
        table = 100 * own.pivot_table(index="sampler", columns="nfe", values="change").reindex(samplers, columns=nfes)
        image = heat_map(axes, table, table.map("{:+.0f}".format), SATURATED)
        axes.set(title=title, xlabel="NFE", ylabel="")
    figure.colorbar(image, ax=list(drawn), label="change of the distance", format="{x:+.0f} %")
    return figure


def features_scatter(frame: pd.DataFrame, features: tuple[str, str], n: int, model: str) -> Figure:
    """Every sampler's distance in one kind of features against that in another, marked by the kind of its timing.

    Args:
        frame, features, n, model: see :func:`tt_lib.study.compare.changes_in_both`.

    Raises:
        BadValue: no sampler was measured in both.
    """
    points = beside_each_other(frame, *features, model, n)
    points = points.assign(x=points["first"], y=points["second"])
    grid = _by_kind(points, f"sampler of {model} has rows of {n} samples in both {' and '.join(features)}", alpha=0.7)
    grid.set_axis_labels(*(f"Fréchet distance ({name} features)" for name in features))
    return grid.figure


def changes_scatter(frame: pd.DataFrame, features: tuple[str, str], n: int, model: str) -> Figure:
    """What tuning did to each sampler in one kind of features against what it did in another.

    Each corner says how many samplers it holds. Those whose change is not sure in both are pale and not counted.

    Args:
        frame, features, n, model: see :func:`tt_lib.study.compare.changes_in_both`.

    Raises:
        BadValue: no sampler was measured in both.
    """
    points = changes_in_both(frame, features, n, model)
    points = points.assign(x=1 + points["change_first"], y=1 + points["change_second"])
    missing = f"tuned sampler of {model} has rows of {n} samples in both {' and '.join(features)}"
    grid = _by_kind(points, missing, room=1.5, alpha=0.85)
    grid.ax.collections[0].set_alpha(np.where(points["together"] == UNDECIDED, 0.2, 0.85))
    grid.ax.axhline(1, color=GREY, linewidth=1, zorder=1)
    grid.ax.axvline(1, color=GREY, linewidth=1, zorder=1)
    counts = points["together"].value_counts()
    corners = {(0, 0): AGREED_BETTER, (0, 1): f"better in {features[0]} only"}
    corners |= {(1, 0): f"better in {features[1]} only", (1, 1): AGREED_WORSE}
    for (right, top), name in corners.items():
        grid.ax.annotate(
            f"{name}: {counts.get(name, 0)}",
            (0.02 + 0.96 * right, 0.02 + 0.96 * top),
            xycoords="axes fraction",
            ha="right" if right else "left",
            va="top" if top else "bottom",
            bbox={"color": "white", "pad": 1},
        )
    grid.set_axis_labels(*(f"distance, tuned over untuned ({name} features)" for name in features))
    return grid.figure


def _by_kind(points: pd.DataFrame, missing: str, room: float = 1, **options: Any) -> seaborn.FacetGrid:
    """Points x, y on logarithmic axes, marked by the kind of their timing, with room around them (a factor)."""
    if points.empty:
        raise BadValue(f"no {missing}; measure some with `tt table`")
    points = points.assign(kind=points["timing"].map(kind))
    used = [name for name in TIMING_KINDS if (points["kind"] == name).any()]
    grid = relplot(
        points,
        "kind",
        (7.2, 5.4),
        x="x",
        y="y",
        hue_order=used,
        style_order=used,
        palette={name: TIMING_KINDS[name].color for name in used},
        markers={name: TIMING_KINDS[name].marker for name in used},
        **options,
    )
    for which in ("x", "y"):
        log_axis(grid.ax, which, [points[which].min() / room, points[which].max() * room])
    return grid


def ranking(rows: pd.DataFrame, nfe: int, timings: Sequence[str]) -> pd.DataFrame:
    """The samplers of one NFE, best first, with ``tied``: whether a sampler's interval overlaps the best one's.

    Raises:
        BadValue: no row of that NFE.
    """
    table = rows[(rows["nfe"] == nfe) & rows["timing"].isin(timings)]
    if table.empty:
        raise BadValue(f"no row of NFE {nfe}; choose one of {', '.join(map(str, sorted(rows['nfe'].unique())))}")
    table = table.sort_values("value", kind="stable", ignore_index=True)
    return table.assign(tied=table["low"] <= table["high"].iloc[0])


@style()
def ranking_figure(rows: pd.DataFrame, nfe: int, timings: Sequence[str], most: int | None = None) -> Figure:
    """:func:`ranking` drawn: a line a sampler, its distance with its interval, marked by its timing.

    Args:
        most: samplers that are drawn, the best ones; all, if None.
    """
    table = ranking(rows, nfe, timings).head(most)
    figure = Figure(figsize=(7.5, 1 + 0.3 * len(table)))
    axes = figure.subplots()
    for timing, look in looks(timings).items():
        own = table[table["timing"] == timing]
        if len(own):
            reach = [own["value"] - own["low"], own["high"] - own["value"]]
            axes.errorbar(
                own["value"], own.index, xerr=reach, color=look.color, fmt=look.marker, capsize=3, label=timing
            )
    axes.set_yticks(table.index, table["solver"] + ", " + table["grid"])
    axes.invert_yaxis()
    log_axis(axes, "x", [*table["low"], *table["high"]])
    axes.set(xlabel=f"Fréchet distance ({table['features'].iloc[0]} features), NFE {nfe}")
    legend_below(figure, *axes.get_legend_handles_labels())
    return figure


def ranking_explorer(rows: pd.DataFrame, timings: Sequence[str], most: int | None = None) -> Any:
    """A choice of features and of NFE, a switch that leaves tuned samplers out, and :func:`ranking_figure`.

    Args:
        rows: of :func:`tt_lib.study.compare.distances`, in one kind of features or, one below the other, in several.
        timings: that are drawn, the untuned one first.
        most: samplers that are drawn, the best ones; all, if None.
    """
    # Only an NFE that has an untuned row in each of the features: every choice has something to draw.
    tables = {str(name): own for name, own in rows.groupby("features", sort=False)}
    shared = set.intersection(*(set(own.loc[own["timing"] == timings[0], "nfe"]) for own in tables.values()))
    features = ipywidgets.Dropdown(options=list(tables), description="features")
    nfe = ipywidgets.SelectionSlider(options=sorted(map(int, shared)), description="NFE")
    tuned = ipywidgets.Checkbox(value=True, description="tuned ones, too")

    def figure(name: str, count: int, with_tuned: bool) -> Figure:
        return ranking_figure(tables[name], count, list(timings) if with_tuned else list(timings[:1]), most)

    return explorer([features, nfe, tuned], figure, width=720)
