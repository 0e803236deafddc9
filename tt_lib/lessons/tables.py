"""The explorer of the tables: which sampler is best at a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from tt_lib.errors import BadValue
from tt_lib.figures.style import GREY, LineStyle, line_styles, style
from tt_lib.lessons.start import explorer
from tt_lib.study.compare import AGREED_BETTER, AGREED_WORSE, UNDECIDED, beside_each_other, changes, changes_in_both


def ranking_explorer(rows: pd.DataFrame, timings: Sequence[str], most: int | None = None) -> Any:
    """A choice of features and of NFE, a switch that leaves tuned samplers out, and :func:`tt_lib.lessons.tables.ranking_figure` of what is left.

    Args:
        rows: of :func:`tt_lib.study.compare.distances`, in one kind of features or, one below the other, in several.
        timings: that are drawn, the untuned one first.
        most: samplers that are drawn, the best ones; all, if None.
    """
    import ipywidgets

    pass  # EMPTIED

    # Only budgets that have an untuned row in each of the features: every choice has something to draw.
    tables = {str(name): own for name, own in rows.groupby("features", sort=False)}
    shared = set.intersection(
        *({int(nfe) for nfe in own.loc[own["timing"] == timings[0], "nfe"]} for own in tables.values())
    )
    features = ipywidgets.Dropdown(options=list(tables), description="features")
    budget = ipywidgets.SelectionSlider(options=sorted(shared), description="NFE")
    tuned = ipywidgets.Checkbox(value=True, description="tuned ones, too")

    def figure(name: str, nfe: int, all_of_them: bool) -> Any:
        return ranking_figure(tables[name], nfe, list(timings) if all_of_them else list(timings[:1]), most)

    return explorer([features, budget, tuned], figure, width=720)


# FOLDED tt_lib.lessons.tables
# Figures of many rows of ``fd.csv`` at once: gains as heat maps, two kinds of features beside each other, the ranking at one budget.


SATURATED = 0.4
"""Changes beyond this have the map's last colour: one ruined sampler must not hide what happens to the others."""
KINDS = {
    "untuned": "untuned",
    "consistency": "consistency-parallel",
    "truncation": "truncation-parallel",
    "frechet-joint": "frechet-joint",
    "constant": "constant",
}
"""How the kinds of timings are drawn: each as the timing of :data:`tt_lib.figures.style.LINE_STYLES` that stands for it."""
OTHERS = "corrections and others"
TICKS = (0.1, 0.12, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1, 1.5, 2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 20, 30, 50, 100)


def gain_map(rows: pd.DataFrame, timings: Sequence[str]) -> Figure:
    """What tuning changed, as a heat map: a panel a timing, a line a sampler and grid, a column an NFE.

    Args:
        rows: of :func:`tt_lib.study.compare.distances`.
        timings: a panel for each.

    Raises:
        BadValue: no tuned row with an untuned one beside it.
    """
    found = changes(rows)
    found = found[found["timing"].isin(timings)]
    if found.empty:
        raise BadValue(f"no row of {', '.join(timings)} has an untuned row beside it; measure some with `tt table`")
    found = found.assign(sampler=found["solver"] + ", " + found["grid"]).sort_values("sampler", kind="stable")
    return _heat_maps({timing: found[found["timing"] == timing] for timing in timings})


def judges_map(
    frame: pd.DataFrame, timing: str, features: tuple[str, str], n: int, model: str, grids: Sequence[str]
) -> Figure:
    """What one kind of tuning changed by two judges: a panel for each kind of features, a line a solver and grid, a column an NFE.

    Args:
        frame: rows of ``fd.csv``.
        timing: whose changes.
        features, n, model: see :func:`tt_lib.study.compare.changes_in_both`.
        grids: that are shown, one below the other.

    Raises:
        BadValue: no such cell was measured in both features.
    """
    found = changes_in_both(frame, features, n, model)
    found = found[(found["timing"] == timing) & found["grid"].isin(grids)]
    if found.empty:
        raise BadValue(
            f"no sampler with {timing} was measured in both {features[0]} and {features[1]}; measure some with `tt table`"
        )
    # Grid by grid: the grid decides more than the solver.
    found = found.assign(
        sampler=found["solver"] + ", " + found["grid"], place=[grids.index(grid) for grid in found["grid"]]
    )
    found = found.sort_values(["place", "solver"], kind="stable")
    return _heat_maps(
        {
            name: found.assign(change=found[f"change_{place}"])
            for name, place in zip(features, ("first", "second"), strict=True)
        }
    )


def _heat_maps(panels: Mapping[str, pd.DataFrame]) -> Figure:
    """A heat map for each title, of frames with ``sampler``, ``nfe`` and ``change``; lines in the order of the frames, the same in all."""
    everything = pd.concat(panels.values())
    samplers, budgets = list(dict.fromkeys(everything["sampler"])), sorted(everything["nfe"].unique())
    with style():
        figure = Figure(
            figsize=(
                2.2 + 1.0 * len(panels) * max(2.2, 0.75 * len(budgets)),
                1.5 + (0.36 if len(samplers) < 12 else 0.28) * len(samplers),
            )
        )
        drawn = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for panel, (title, own) in zip(drawn, panels.items(), strict=True):
            table = own.pivot_table(index="sampler", columns="nfe", values="change").reindex(
                index=samplers, columns=budgets
            )
            image = panel.imshow(table, cmap="PuOr_r", vmin=-SATURATED, vmax=SATURATED, aspect="auto")
            for (i, j), value in np.ndenumerate(table.to_numpy()):
                if np.isfinite(value):
                    dark = abs(value) > 0.7 * SATURATED
                    panel.text(
                        j,
                        i,
                        f"{100 * value:+.0f}",
                        ha="center",
                        va="center",
                        fontsize=9,
                        color="white" if dark else "black",
                    )
            panel.set_xticks(range(len(budgets)), [str(budget) for budget in budgets])
            panel.set_yticks(range(len(samplers)), samplers)
            panel.set(title=title, xlabel="NFE")
            panel.grid(False)
        figure.colorbar(image, ax=list(drawn), label="change of the distance", format=lambda x, _: f"{100 * x:+.0f} %")
    return figure


def kind(timing: str) -> str:
    """What a timing is drawn as: one of :data:`KINDS`, or :data:`OTHERS`."""
    return next((name for name in KINDS if timing.startswith(name)), OTHERS)


def _looks(kinds: pd.Series) -> dict[str, LineStyle]:
    """A style for each kind that occurs, in the order of :data:`KINDS`."""
    fixed = {name: line_styles([stands])[stands] for name, stands in KINDS.items()} | {
        OTHERS: LineStyle(GREY, "*", "none")
    }
    return {name: look for name, look in fixed.items() if (kinds == name).any()}


def features_scatter(frame: pd.DataFrame, features: tuple[str, str], n: int, model: str) -> Figure:
    """Every sampler's distance in one kind of features against that in another, on logarithmic axes, marked by the kind of its timing.

    Args:
        frame, features, n, model: see :func:`tt_lib.study.compare.changes_in_both`.

    Raises:
        BadValue: no sampler was measured in both.
    """
    found = beside_each_other(frame, *features, model, n)
    if found.empty:
        raise BadValue(
            f"no sampler of {model} has rows of {n} samples in both {features[0]} and {features[1]}; measure some with `tt table`"
        )
    found = found.assign(kind=found["timing"].map(kind))
    with style():
        figure = Figure(figsize=(7.2, 5.6))
        axes = figure.subplots()
        for name, look in _looks(found["kind"]).items():
            own = found[found["kind"] == name]
            axes.plot(
                own["first"],
                own["second"],
                color=look.color,
                marker=look.marker,
                linestyle="",
                markersize=5,
                alpha=0.7,
                label=name,
            )
        for which, values in (("x", found["first"]), ("y", found["second"])):
            _log_axis(axes, which, values, (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100))
        axes.set(
            xlabel=f"Fréchet distance ({features[0]} features)", ylabel=f"Fréchet distance ({features[1]} features)"
        )
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def judges_figure(frame: pd.DataFrame, features: tuple[str, str], n: int, model: str) -> Figure:
    """What tuning did to each sampler by one judge against what it did by another, with the number of samplers in each quarter.

    Only samplers whose change both judges are sure of are counted; the others are drawn pale.

    Args:
        frame, features, n, model: see :func:`tt_lib.study.compare.changes_in_both`.

    Raises:
        BadValue: no sampler was measured in both.
    """
    found = changes_in_both(frame, features, n, model)
    if found.empty:
        raise BadValue(
            f"no tuned sampler of {model} has rows of {n} samples in both {features[0]} and {features[1]}; measure some with `tt table`"
        )
    found = found.assign(kind=found["timing"].map(kind), x=1 + found["change_first"], y=1 + found["change_second"])
    counts = found["together"].value_counts()
    with style():
        figure = Figure(figsize=(7.2, 6.2))
        axes = figure.subplots()
        axes.axhline(1, color=GREY, linewidth=1)
        axes.axvline(1, color=GREY, linewidth=1)
        for name, look in _looks(found["kind"]).items():
            own = found[found["kind"] == name]
            unsure = own["together"] == UNDECIDED
            drawn: dict[str, Any] = {"color": look.color, "marker": look.marker, "linestyle": "", "markersize": 6}
            axes.plot(own.loc[unsure, "x"], own.loc[unsure, "y"], alpha=0.2, **drawn)
            axes.plot(own.loc[~unsure, "x"], own.loc[~unsure, "y"], alpha=0.85, label=name, **drawn)
        for which, values in (("x", found["x"]), ("y", found["y"])):
            _log_axis(
                axes, which, pd.concat([values, pd.Series([0.7, 1.4])]), (0.5, 0.7, 1, 1.4, 2, 3, 5, 10, 20), margin=1.6
            )
        for place, called in (
            ((0.02, 0.02), AGREED_BETTER),
            ((0.02, 0.98), f"better in {features[0]} only"),
            ((0.98, 0.02), f"better in {features[1]} only"),
            ((0.98, 0.98), AGREED_WORSE),
        ):
            sides: dict[str, Any] = {
                "ha": "left" if place[0] < 0.5 else "right",
                "va": "bottom" if place[1] < 0.5 else "top",
            }
            axes.text(
                *place,
                f"{called}: {counts.get(called, 0)}",
                transform=axes.transAxes,
                fontsize=10,
                bbox={"color": "white", "pad": 1},
                **sides,
            )
        axes.set(
            xlabel=f"distance, tuned over untuned ({features[0]} features)", ylabel=f"the same ({features[1]} features)"
        )
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _log_axis(axes: Any, which: str, values: pd.Series, ticks: Sequence[float], margin: float = 1.15) -> None:
    """A logarithmic axis over the values, with those of ``ticks`` that lie on it."""
    low, high = values.min() / margin, values.max() * margin
    kept = [tick for tick in ticks if low < tick < high]
    getattr(axes, f"set_{which}scale")("log")
    getattr(axes, f"set_{which}lim")(low, high)
    getattr(axes, f"set_{which}ticks")(kept, [f"{tick:g}" for tick in kept])
    getattr(axes, f"{which}axis").set_minor_locator(NullLocator())


def ranking(rows: pd.DataFrame, nfe: int, timings: Sequence[str]) -> pd.DataFrame:
    """The samplers of one budget, best first, with ``tied``: whether a sampler's interval overlaps the best one's.

    Raises:
        BadValue: no row of that budget.
    """
    found = rows[(rows["nfe"] == nfe) & rows["timing"].isin(timings)].sort_values(
        "value", kind="stable", ignore_index=True
    )
    if found.empty:
        known = ", ".join(map(str, sorted(rows["nfe"].unique())))
        raise BadValue(f"no row of NFE {nfe}; choose one of {known}")
    return found.assign(tied=found["low"] <= found["high"].iloc[0])


def ranking_figure(rows: pd.DataFrame, nfe: int, timings: Sequence[str], most: int | None = None) -> Figure:
    """:func:`ranking` drawn: a line a sampler, its distance with its interval, marked by its timing.

    Args:
        most: samplers that are drawn, the best ones; all, if None.
    """
    found = ranking(rows, nfe, timings).head(most)
    looks = line_styles(list(timings))
    with style():
        figure = Figure(figsize=(7.5, 1.3 + 0.3 * len(found)))
        axes = figure.subplots()
        handles: dict[str, Any] = {}
        for place, row in found.iterrows():
            look = looks[row["timing"]]
            reach = [[row["value"] - row["low"]], [row["high"] - row["value"]]]
            handles[row["timing"]] = axes.errorbar(
                row["value"], place, xerr=reach, color=look.color, marker=look.marker, linestyle="none", capsize=3
            )
        axes.set_yticks(range(len(found)), [f"{row.solver}, {row.grid}" for row in found.itertuples()])
        axes.invert_yaxis()
        _log_axis(axes, "x", pd.concat([found["low"], found["high"]]), TICKS, margin=1.05)
        axes.set(xlabel=f"Fréchet distance ({found['features'].iloc[0]} features), NFE {nfe}")
        shown = [timing for timing in timings if timing in handles]
        figure.legend([handles[timing] for timing in shown], shown, loc="outside lower center", ncols=2)
    return figure
