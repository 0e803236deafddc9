"""The rows of ``bands.csv`` as tables of the results page."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from tt_lib.timing import UNTUNED

TITLE = "## In which frequencies the two judges see a difference"
SAMPLES = ["dataset", "model", "solver", "grid", "nfe", "eta", "reference", "n", "seed"]
"""What rows must share to stand in one table."""


def bands_section(rows: pd.DataFrame) -> Iterator[str]:
    """The section of the page: for each sampler a table of whole images and one of hybrids; nothing without rows.

    Args:
        rows: rows of ``bands.csv``.
    """
    if rows.empty:
        return
    yield (
        f"{TITLE}\n\nOf `bands.csv`, written by `tt bands`. Two samplers start from the same noise, and a hybrid has the spatial frequencies of the one up "
        "to a cut (in cycles per image) and those of the other beyond it. Where its distance is nearer to that of the timing's whole images than to that of the untuned ones, "
        "the change that the features see is in the part that is the timing's. (Where both hybrids are, it is in no part alone; and a hybrid may be worse than both parents, whose parts need not fit.) Noise is Gaussian, its standard deviation that of pixels from -1 to 1. ± is half of the 95 % interval of each "
        "distance; as all are of the same noise, differences are surer than the intervals.\n"
    )
    for (_, model, solver, grid, nfe, eta, _, n, _), group in rows.groupby(SAMPLES, sort=False):
        of_eta = f", eta {eta:g}" if eta else ""
        yield f"{model}, {solver}{of_eta}, grid `{grid}`, {nfe} evaluations, {n:,} samples:\n\n{_whole_table(group)}"
        if group["cut"].notna().any():
            yield _hybrid_table(group)


def _whole_table(rows: pd.DataFrame) -> str:
    """Untuned and tuned images as they are, and with noise: a column for each of the features."""
    features, whole = list(dict.fromkeys(rows["features"])), rows[rows["cut"].isna()]
    lines = [f"| whole images | {' | '.join(features)} |", f"| --- |{' ---: |' * len(features)}"]
    for (timing, noise), found in whole.groupby(["below", "noise"], sort=False):
        cells = [_value(found[found["features"] == name]) for name in features]
        lines.append(f"| {timing}{f' with noise {noise:g}' if noise else ''} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _hybrid_table(rows: pd.DataFrame) -> str:
    """A line for each timing and cut, in each of the features both ways round."""
    features, hybrids = list(dict.fromkeys(rows["features"])), rows[rows["cut"].notna()]
    heads = [f"{name}: {part}" for name in features for part in ("timing below, untuned above", "untuned below, timing above")]
    lines = [f"| timing | cut | {' | '.join(heads)} |", f"| --- | ---: |{' ---: |' * len(heads)}"]
    named = hybrids.assign(timing=hybrids["below"].where(hybrids["below"] != UNTUNED, hybrids["above"]))
    for timing, of_timing in named.groupby("timing", sort=False):
        for cut, found in of_timing.groupby("cut"):
            parts = [found[(found["features"] == name) & (found[side] == timing)] for name in features for side in ("below", "above")]
            lines.append(f"| {timing} | {cut:g} | {' | '.join(map(_value, parts))} |")
    return "\n".join(lines) + "\n"


def _value(rows: pd.DataFrame) -> str:
    """The value of the one row there is, with half of its interval; nothing without a row."""
    if rows.empty:
        return ""
    row = rows.iloc[0]
    return f"{row['value']:.3g} ± {(row['high'] - row['low']) / 2:.2g}"
