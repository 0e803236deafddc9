"""The explorer of the tables: which sampler is best at a budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from tt_lib.widgets import explorer


def ranking_explorer(rows: pd.DataFrame, timings: Sequence[str], most: int | None = None) -> Any:
    """A choice of features and of NFE, a switch that leaves tuned samplers out, and :func:`tt_lib.plots_tables.ranking_figure` of what is left.

    Args:
        rows: of :func:`tt_lib.changes.distances`, in one kind of features or, one below the other, in several.
        timings: that are drawn, the untuned one first.
        most: samplers that are drawn, the best ones; all, if None.
    """
    import ipywidgets

    from tt_lib.plots_tables import ranking_figure

    # Only budgets that have an untuned row in each of the features: every choice has something to draw.
    tables = {str(name): own for name, own in rows.groupby("features", sort=False)}
    shared = set.intersection(*({int(nfe) for nfe in own.loc[own["timing"] == timings[0], "nfe"]} for own in tables.values()))
    features = ipywidgets.Dropdown(options=list(tables), description="features")
    budget = ipywidgets.SelectionSlider(options=sorted(shared), description="NFE")
    tuned = ipywidgets.Checkbox(value=True, description="tuned ones, too")

    def figure(name: str, nfe: int, all_of_them: bool) -> Any:
        return ranking_figure(tables[name], nfe, list(timings) if all_of_them else list(timings[:1]), most)

    return explorer([features, budget, tuned], figure, width=720)
