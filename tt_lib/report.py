"""The README's results: a table and a figure, both made from the rows of ``data/results/fd.csv`` and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from tt_lib.changes import CONSTANT, CORRECTED, SAME, changes, distances, family
from tt_lib.errors import CorruptFile
from tt_lib.solvers import make_solver
from tt_lib.timing import UNTUNED

BEGIN, END = "<!-- results: written by `tt card` from data/results/fd.csv -->", "<!-- end of results -->"
FEATURES = "cifar10-resnet"
OTHERS = "cifar10-simclr"
README_N, BOTH_N = 50_000, 10_000
"""Samples of the README's cells, and of those of the study, which were all measured in both features."""
CEILING_NFE = 200
"""From so many evaluations on, an untuned row counts as the network's ceiling."""
FIGURE = "data/results/fd.png"
CAPTION = (
    "Fréchet distance of 50,000 samples against the number of network evaluations, untuned and tuned, with 95 % "
    "intervals (most are smaller than the markers)."
)
ALT = "Distance against NFE, a panel for each solver and grid, a line for each timing."
CELL = ["solver", "grid", "nfe"]
GAIN = """*Gain* compares the best timing of a line with untuned (negative where all timings lose; *none seen*: the two intervals overlap), and
*of the gap* says how much of the way from untuned to the ceiling that is.
"""


def study(
    frame: pd.DataFrame, model: str = "cifar10-ddpm-w64", n: int = README_N, features: str = FEATURES
) -> pd.DataFrame:
    """The rows of the README's table: Fréchet distances in one kind of features, one network, ``n`` samples.

    Of solvers that draw no noise, untuned and with tuned times; one constant ratio and corrections have tables of their own.
    """
    rows = distances(frame, features, n, model)
    rows = rows[rows["eta"] == 0]
    noisy = {solver: make_solver(solver).stochastic for solver in rows["solver"].unique()}
    kept = [
        not noisy[solver] and (timing == UNTUNED or family(timing) not in (CONSTANT, CORRECTED))
        for solver, timing in zip(rows["solver"], rows["timing"], strict=True)
    ]
    return rows[np.array(kept, dtype=bool)]


def results_table(frame: pd.DataFrame, features: str = FEATURES) -> str:
    """The rows of ``fd.csv`` in one kind of features as a Markdown table, best timing of each line in bold; below it ceiling and floor, and what the last columns mean."""
    rows = study(frame, features=features)
    ceiling = _is_ceiling(rows)
    few = rows[~ceiling]
    timings = list(dict.fromkeys(few["timing"]))
    lines = [
        f"| sampler | NFE | {' | '.join(timings)} | gain of the best | of the gap |",
        f"| --- | ---: |{' ---: |' * (len(timings) + 2)}",
    ]
    limit = rows[ceiling]["value"].min()
    for (solver, grid, nfe), group in few.sort_values(CELL, kind="stable").groupby(CELL, sort=False):
        found = group.set_index("timing")
        best = found["value"].min()
        cells = [_value(found.loc[timing], best) if timing in found.index else "" for timing in timings]
        lines.append(f"| {solver}, {grid} | {nfe} | {' | '.join(cells)} | {_gain(found)} | {_closed(found, limit)} |")
    notes = [
        f"The network's ceiling with {row.solver}, {row.grid}, {row.nfe} steps, untuned: {_value(row)}."
        for row in rows[ceiling].itertuples()
    ]
    if not notes:
        notes = ["The network's ceiling was not measured with so many samples in these features, so *of the gap* is empty."]
    notes += [
        f"The floor, {row.n:,} test images: {_value(row)}."
        for row in frame[(frame["solver"] == "floor") & (frame["features"] == features)].itertuples()
    ]
    return "\n".join(lines) + "\n\n" + "\n".join(notes) + f"\n\n{GAIN}"


def _is_ceiling(rows: pd.DataFrame) -> pd.Series:
    return (rows["nfe"] >= CEILING_NFE) & (rows["timing"] == UNTUNED)


def _value(row, best: float | None = None) -> str:
    text = f"{row.value:.2f} ± {(row.high - row.low) / 2:.2f}"
    return f"**{text}**" if best is not None and row.value == best else text


def _best_tuned(found: pd.DataFrame) -> tuple[pd.Series, pd.Series] | None:
    """The untuned row of a sampler and its best tuned one; None where there are not both."""
    if UNTUNED not in found.index or len(found) < 2:
        return None
    tuned = found.drop(UNTUNED)
    return found.loc[UNTUNED], tuned.loc[tuned["value"].idxmin()]


def _gain(found: pd.DataFrame) -> str:
    """How much lower the best tuned distance is than the untuned one; negative where tuning only harms.

    Where the two intervals overlap the rows do not tell, and the table says that instead.
    """
    pair = _best_tuned(found)
    if pair is None:
        return ""
    untuned, best = pair
    if best["low"] <= untuned["high"] and untuned["low"] <= best["high"]:
        return "none seen"
    return f"{100 * (1 - best['value'] / untuned['value']):.0f} %"


def _closed(found: pd.DataFrame, limit: float) -> str:
    """How much of the gap between the untuned row and the ceiling the best timing closes, where it gains."""
    pair = _best_tuned(found)
    if pair is None or pd.isna(limit):
        return ""
    untuned, best = pair
    if best["high"] >= untuned["low"] or untuned["value"] <= limit:
        return ""
    return f"{100 * (untuned['value'] - best['value']) / (untuned['value'] - limit):.0f} %"


def both_table(frame: pd.DataFrame, features: tuple[str, str] = (FEATURES, OTHERS)) -> str:
    """What the timings of the README's table gain in each of two features, as a Markdown table: per cent of the untuned distance.

    A line for each sampler that has an untuned and a tuned row in both, of :data:`README_N` samples or, where one of the features
    lacks them, of :data:`BOTH_N`; a gain whose intervals overlap stands behind a ~. Empty where there is no such sampler.
    """
    asked = study(frame)[["solver", "grid", "nfe", "timing"]]
    timings = [timing for timing in dict.fromkeys(asked["timing"]) if timing != UNTUNED]
    found = {n: [changes(study(frame, n=n, features=each)).set_index([*CELL, "timing"]) for each in features] for n in (README_N, BOTH_N)}
    lines = [f"| sampler | NFE | n | {' | '.join(timings)} |", f"| --- | ---: | ---: |{' ---: |' * len(timings)}"]
    for sampler in asked.sort_values(CELL, kind="stable")[CELL].drop_duplicates().itertuples(index=False, name=None):
        cells = [(*sampler, timing) for timing in timings]
        n = README_N if any(all(cell in each.index for each in found[README_N]) for cell in cells) else BOTH_N
        texts = [" / ".join(_taken_off(each, cell) for each in found[n]).strip(" /") for cell in cells]
        if any(texts):
            lines.append(f"| {sampler[0]}, {sampler[1]} | {sampler[2]} | {n:,} | {' | '.join(texts)} |")
    return "\n".join(lines) + "\n" if len(lines) > 2 else ""


def _taken_off(found: pd.DataFrame, cell: tuple) -> str:
    """Per cent by which a timing lowers the distance of a sampler; nothing where a row is not there."""
    if cell not in found.index:
        return ""
    change, verdict = found.loc[cell, ["change", "verdict"]]
    return f"{'~' if verdict == SAME else ''}{round(-100 * change)}".replace("-", "−")


def results_block(frame: pd.DataFrame) -> str:
    """What stands between the markers in README."""
    both = both_table(frame)
    if both:
        both = f"\nPer cent that each timing takes off the untuned distance, in `{FEATURES}` / in `{OTHERS}` (n samples; ~: the intervals overlap):\n\n{both}"
    return f"{BEGIN}\n{results_table(frame)}\n![{ALT}]({FIGURE})\n\n*{CAPTION}*\n{both}{END}"


def insert_block(page: str, block: str) -> str:
    """``page`` with the text between the markers replaced.

    Raises:
        CorruptFile: the page lacks the markers.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise CorruptFile(f"the page lacks the markers {BEGIN!r} and {END!r}; put them where the results belong")
    return before + block + after


def write_report(root: Path, frame: pd.DataFrame) -> list[Path]:
    """Write the figure, and the results block of ``root``'s README; returns their paths."""
    from tt_lib.files import write_text
    from tt_lib.plots import fd_against_nfe, save_figure

    rows = study(frame)
    ceiling = _is_ceiling(rows)
    drawn = rows.assign(timing=rows["timing"].mask(ceiling, "ceiling"))
    drawn.loc[ceiling, ["solver", "grid"]] = ""
    # One budget makes no curve: a sampler of one is not drawn beside those of several.
    curves = ~ceiling & (drawn.groupby(["solver", "grid"])["nfe"].transform("nunique") > 1)
    if curves.any():
        drawn = drawn[curves | ceiling]
    readme, figure = root / "README.md", root / FIGURE
    save_figure(fd_against_nfe(drawn), figure, CAPTION, ALT)
    write_text(readme, insert_block(readme.read_text(encoding="utf-8"), results_block(frame)))
    return [readme, figure]
