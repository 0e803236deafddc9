"""Figures of many rows of ``fd.csv`` at once: gains as a heat map, and the ranking of samplers at one budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from tt_lib.changes import changes
from tt_lib.errors import BadValue
from tt_lib.plots import line_styles, style

SATURATED = 0.4
"""Changes beyond this have the map's last colour: one ruined sampler must not hide what happens to the others."""


def gain_map(rows: pd.DataFrame, timings: Sequence[str]) -> Figure:
    """What tuning changed, as a heat map: a panel a timing, a line a sampler and grid, a column an NFE.

    Args:
        rows: of :func:`tt_lib.changes.distances`.
        timings: a panel for each.

    Raises:
        BadValue: no tuned row with an untuned one beside it.
    """
    found = changes(rows)
    found = found[found["timing"].isin(timings)]
    if found.empty:
        raise BadValue(f"no row of {', '.join(timings)} has an untuned row beside it; measure some with `tt table`")
    found = found.assign(sampler=found["solver"] + ", " + found["grid"])
    samplers, budgets = sorted(found["sampler"].unique()), sorted(found["nfe"].unique())
    with style():
        figure = Figure(figsize=(2.2 + 1.0 * len(timings) * max(2.2, 0.75 * len(budgets)), 1.5 + 0.36 * len(samplers)))
        panels = figure.subplots(1, len(timings), squeeze=False, sharey=True)[0]
        for panel, timing in zip(panels, timings, strict=True):
            mine = found[found["timing"] == timing].pivot_table(index="sampler", columns="nfe", values="change")
            table = mine.reindex(index=samplers, columns=budgets)
            image = panel.imshow(table, cmap="PuOr_r", vmin=-SATURATED, vmax=SATURATED, aspect="auto")
            for (i, j), value in np.ndenumerate(table.to_numpy()):
                if np.isfinite(value):
                    dark = abs(value) > 0.7 * SATURATED
                    panel.text(j, i, f"{100 * value:+.0f}", ha="center", va="center", fontsize=9, color="white" if dark else "black")
            panel.set_xticks(range(len(budgets)), [str(budget) for budget in budgets])
            panel.set_yticks(range(len(samplers)), samplers)
            panel.set(title=timing, xlabel="NFE")
            panel.grid(False)
        figure.colorbar(image, ax=list(panels), label="change of the distance", format=lambda x, _: f"{100 * x:+.0f} %")
    return figure


def ranking(rows: pd.DataFrame, nfe: int, timings: Sequence[str]) -> pd.DataFrame:
    """The samplers of one budget, best first, with ``tied``: whether a sampler's interval overlaps the best one's.

    Raises:
        BadValue: no row of that budget.
    """
    found = rows[(rows["nfe"] == nfe) & rows["timing"].isin(timings)].sort_values("value", kind="stable", ignore_index=True)
    if found.empty:
        known = ", ".join(map(str, sorted(rows["nfe"].unique())))
        raise BadValue(f"no row of NFE {nfe}; choose one of {known}")
    return found.assign(tied=found["low"] <= found["high"].iloc[0])


def ranking_figure(rows: pd.DataFrame, nfe: int, timings: Sequence[str]) -> Figure:
    """:func:`ranking` drawn: a line a sampler, its distance with its interval, marked by its timing."""
    found = ranking(rows, nfe, timings)
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
        axes.set_xscale("log")
        ticks = [tick for tick in (3, 4, 5, 6, 7, 8, 10, 12, 15, 20, 30, 50, 100) if found["value"].min() / 1.15 < tick < found["value"].max() * 1.15]
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set(xlabel=f"Fréchet distance ({found['features'].iloc[0]} features), NFE {nfe}")
        shown = [timing for timing in timings if timing in handles]
        figure.legend([handles[timing] for timing in shown], shown, loc="outside lower center", ncols=2)
    return figure
