"""The explorer of the tables: which sampler is best at a budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from tt_lib.widgets import explorer


def ranking_explorer(rows: pd.DataFrame, timings: Sequence[str]) -> Any:
    """A choice of NFE, a switch that leaves tuned samplers out, and :func:`tt_lib.plots_tables.ranking_figure` of what is left.

    Args:
        rows: of :func:`tt_lib.changes.distances`.
        timings: that are drawn, the untuned one first.
    """
    import ipywidgets

    from tt_lib.plots_tables import ranking_figure

    budget = ipywidgets.SelectionSlider(options=[int(nfe) for nfe in sorted(rows["nfe"].unique())], description="NFE")
    tuned = ipywidgets.Checkbox(value=True, description="tuned ones, too")
    return explorer([budget, tuned], lambda nfe, all_of_them: ranking_figure(rows, nfe, list(timings) if all_of_them else list(timings[:1])), width=720)
