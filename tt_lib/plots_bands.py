"""The figure of swapped frequencies: where an image's waves may come from another sampler before a judge sees it."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from tt_lib.errors import BadValue
from tt_lib.plots import BLACK, BLUE, GREY, VERMILLION, _legend_below, style
from tt_lib.timing import UNTUNED

SIDES = {
    "below": ("the timing's up to the cut, untuned ones beyond", {"color": BLUE, "marker": "o", "linestyle": "-"}),
    "above": ("untuned ones up to the cut, the timing's beyond", {"color": VERMILLION, "marker": "s", "linestyle": "--"}),
}
"""On which side of the cut the timing's waves are: how the hybrids are called and drawn."""


def bands_figure(rows: pd.DataFrame, timings: Sequence[str], features: Sequence[str]) -> Figure:
    """Fréchet distances of hybrids against the cut, with 95 % intervals: a line of panels for each judge, a column for each timing.

    Whole images, untuned and of the timing, are level lines.

    Args:
        rows: rows of ``bands.csv`` of one sampler.

    Raises:
        BadValue: a timing without hybrids in one of the features.
    """
    with style():
        figure = Figure(figsize=(3.1 * len(timings), 0.9 + 2.5 * len(features)))
        facets = figure.subplots(len(features), len(timings), squeeze=False, sharex=True, sharey="row")
        for judge, line in zip(features, facets, strict=True):
            for timing, axes in zip(timings, line, strict=True):
                _panel(axes, rows[rows["features"] == judge], timing)
                if judge == features[0]:
                    axes.set_title(timing)
            line[0].set_ylabel(f"FD ({judge})")
        for axes in facets[-1]:
            axes.set_xlabel("cut (cycles per image)")
        handles, labels = facets[0, 0].get_legend_handles_labels()
        _legend_below(figure, handles, labels)
    return figure


def _panel(axes, rows: pd.DataFrame, timing: str) -> None:
    hybrids = rows[rows["cut"].notna() & ((rows["below"] == timing) | (rows["above"] == timing))]
    if hybrids.empty:
        raise BadValue(f"no hybrids of {timing} among the rows; measure them with `tt bands --timing {timing}`")
    whole = rows[rows["cut"].isna() & (rows["noise"] == 0)].set_index("below")["value"]
    axes.axhline(whole[UNTUNED], color=GREY, linestyle="-", linewidth=1, label="all waves untuned")
    axes.axhline(whole[timing], color=BLACK, linestyle=":", linewidth=1.4, label="all waves the timing's")
    for side, (label, look) in SIDES.items():
        own = hybrids[hybrids[side] == timing].sort_values("cut")
        # The jackknife's interval lies around the value.
        margins = [own["value"] - own["low"], own["high"] - own["value"]]
        axes.errorbar(own["cut"], own["value"], yerr=margins, capsize=2, markersize=4.5, elinewidth=1.1, label=label, **look)
    axes.set_xticks(sorted(hybrids["cut"].unique()))
