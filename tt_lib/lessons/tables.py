"""Notebook 07: the study's rows, a line for each sampler with both features side by side, and figures of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tt_lib.errors import BadValue
from tt_lib.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    VERMILLION,
    heat_map,
    legend_below,
    log_axis,
    style,
)
from tt_lib.rows import FD_COLUMNS, read_rows, results_folder
from tt_lib.study.compare import BEST as LEARNED
from tt_lib.study.compare import BETTER, FEATURES, MODEL, SAME, SAMPLER, WORSE, N, beside_each_other, changes_in_both
from tt_lib.study.compare import FEW as NFES
from tt_lib.study.compare import STRAIGHT as FLOW
from tt_lib.timing import UNTUNED

SHORT = ("imagenet", "classifier")
"""What the columns of a :func:`study` begin with, for each of :data:`tt_lib.study.compare.FEATURES`."""
LABELS = {"imagenet": "FD (ImageNet features)", "classifier": "FD (classifier's features)"}
GROUPS = {
    "untuned": (GREY, "o"),
    "untuned, straight path": (GREEN, "s"),
    "tuned step by step": (ORANGE, "^"),
    "learned, other solvers": (BLUE, "+"),
    "learned end to end, UniPC": (BLUE, "D"),
}
"""What :func:`group` tells apart, and how each is drawn."""
SOLVERS = {
    "ddim": ("DDIM", VERMILLION, "o"),
    "dpmpp-2m": ("DPM-Solver++(2M)", BLACK, "s"),
    "unipc": ("UniPC", ORANGE, "^"),
    "unipc,final=lower": ("UniPC, falling orders", BLUE, "D"),
}
"""Solvers of :func:`untuned_figure`. With ``final=lower`` 2M is the same: its last step is of order 1 anyway."""
GRIDS = ("uniform", "quadratic", "logsnr")
SATURATED = 40
"""Changes in per cent beyond this have a map's last colour: one ruined sampler must not hide the others."""
ALT = {
    "headline": "Two panels of Fréchet distance against the number of evaluations, 4 to 10, on logarithmic axes, in "
    "ImageNet features and in the classifier's. Four falling lines: DDIM far above, then the best untuned sampler and "
    "the best on the straight path, which cross, and lowest the learned sampler. A dashed level line at its value for "
    "6 evaluations stays below the others up to 10. The converged solution is a dotted line below everything.",
    "player": "Every sampler of the study at one number of evaluations: its distance in ImageNet features to the right "
    "and in the classifier's upwards. The slider goes from 4 to 10 evaluations. The cloud moves down to the left, "
    "towards the star of the converged solution. The learned UniPC is nearest to it each time.",
    "strip": "Five panels, for 4, 5, 6, 8 and 10 evaluations. The points lie along a rising band. The learned UniPC, a "
    "blue diamond, lies at the lower left end, nearest to the star of the converged solution. Blue crosses, learned "
    "samplers of other solvers, lie in the middle. A few tuned samplers lie far up at the right.",
    "untuned": "Six panels of distance against the number of evaluations: three grids from left to right, ImageNet "
    "features above and the classifier's below, for DDIM, DPM-Solver++(2M), UniPC and UniPC with falling orders.",
    "puzzle": "Three rows of four pictures from the same noise. Uniform grid: strong contrast, flat surfaces. "
    "Quadratic grid: paler, with another motif in the first column. Converged: strong contrast and fine texture.",
    "map": "Four heat maps of changes in per cent, six samplers by 5 and 10 evaluations: the consistency objective and "
    "the truncation objective, each in ImageNet features and in the classifier's.",
    "ruined": "Four rows of four pictures from the same noise. Untuned: smooth and clean. Tuned by consistency: all "
    "four are covered by coloured noise. Learned and converged: clean and crisp.",
}
"""What the figures show, in words."""


def study(rows: pd.DataFrame | None = None) -> pd.DataFrame:
    """The study, a line for each sampler.

    Args:
        rows: of ``fd.csv``; the shipped ones, if None.

    Returns:
        Columns of :data:`tt_lib.study.compare.SAMPLER`, ``timing``, ``path`` (``diffusion`` or ``flow``), ``group``,
        and for each of :data:`SHORT` the distance, and its interval's ends, as in ``imagenet_low``.
    """
    frame = read_rows(results_folder() / "fd.csv", FD_COLUMNS) if rows is None else rows
    parts = []
    for path, model in (("diffusion", MODEL), ("flow", FLOW)):
        parts.append(beside_each_other(frame, *FEATURES, model, N).assign(path=path))
    table = pd.concat(parts, ignore_index=True)
    short = {f"{old}{end}": f"{new}{end}" for old, new in _SIDES.items() for end in ("", "_low", "_high")}
    table = table.rename(columns=short)[[*SAMPLER, "timing", *short.values(), "path"]]
    names = zip(table["solver"], table["timing"], table["path"], strict=True)
    return table.assign(group=[group(*each) for each in names])


def group(solver: str, timing: str, path: str) -> str:
    """Which of :data:`GROUPS` a sampler is of; ``other methods`` if of none."""
    if timing == UNTUNED:
        return "untuned" if path == "diffusion" else "untuned, straight path"
    if not timing.startswith("learned"):
        return "tuned step by step"
    if {"solver": solver, "timing": timing} == LEARNED and path == "diffusion":
        return "learned end to end, UniPC"
    return "learned, other solvers" if timing.startswith("learned-grid-timing") else "other methods"


def best(table: pd.DataFrame, short: str) -> pd.DataFrame:
    """The sampler of the smallest distance for each NFE of :data:`NFES`, indexed by NFE."""
    table = table[table["nfe"].isin(NFES)]
    return table.loc[table.groupby("nfe")[short].idxmin()].set_index("nfe", drop=False)


def pick(table: pd.DataFrame, **where: Any) -> pd.Series:
    """The one sampler of a :func:`study` that fits.

    Raises:
        BadValue: none, or several.
    """
    for column, value in where.items():
        table = table[table[column] == value]
    if len(table) != 1:
        asked = ", ".join(f"{column}={value!r}" for column, value in where.items())
        raise BadValue(f"{len(table)} samplers of the study fit {asked}; name one")
    return table.iloc[0]


def leads(table: pd.DataFrame, row: pd.Series, nfe: int) -> tuple[int, int, int]:
    """How one sampler stands beside the untuned ones of an NFE; two names of the same samples count once.

    Returns:
        How many have a larger distance in both features, of how many of these both intervals lie apart from this
        sampler's, and how many untuned ones there are.
    """
    others = table[(table["group"] == "untuned") & (table["nfe"] == nfe)].drop_duplicates(list(SHORT))
    larger = (others[list(SHORT)] > row[list(SHORT)].astype(float)).all(axis=1)
    apart = [others[f"{short}_low"] > row[f"{short}_high"] for short in SHORT]
    return int(larger.sum()), int((larger & apart[0] & apart[1]).sum()), len(others)


def converged(table: pd.DataFrame) -> pd.Series:
    """The converged solution: its distances are the network's own."""
    return pick(table, solver="dpmpp-2m", grid="karras", nfe=60)


def quality(samplers: Iterable[tuple[str, pd.Series]]) -> str:
    """A Markdown table: both distances of each sampler, by any name, each with half of its 95 % interval."""
    lines = ["| sampler | NFE | FD (ImageNet features) | FD (classifier's features) |", "| --- | ---: | ---: | ---: |"]
    for name, row in samplers:
        cells = [f"{row[short]:.2f} ± {(row[f'{short}_high'] - row[f'{short}_low']) / 2:.2f}" for short in SHORT]
        lines.append(f"| {name} | {row['nfe']} | {' | '.join(cells)} |")
    return "\n".join(lines)


@style()
def headline_figure(table: pd.DataFrame) -> Figure:
    """Who wins: the learned sampler, DDIM, and the best untuned sampler of each path, in both features.

    The best are chosen in each panel by its own features and at each NFE anew, which favours them.
    """
    untuned = table[table["group"] == "untuned"]
    lines = {
        "DDIM, best grid": (untuned[untuned["solver"] == "ddim"], VERMILLION, "o"),
        "best untuned, diffusion's path": (untuned, BLACK, "s"),
        "best on the straight path": (table[table["group"] == "untuned, straight path"], GREEN, "^"),
        "learned end to end": (table[table["group"] == "learned end to end, UniPC"], BLUE, "D"),
    }
    figure = Figure(figsize=(9.5, 4))
    for axes, short in zip(figure.subplots(1, 2), SHORT, strict=True):
        values = []
        for name, (own, color, marker) in lines.items():
            points = best(own, short)
            axes.plot(points.index, points[short], color=color, marker=marker, label=name)
            axes.vlines(points.index, points[f"{short}_low"], points[f"{short}_high"], color)
            values += [*points[short]]
        six, ceiling = points.loc[6, short], converged(table)[short]
        axes.plot([6, 10.4], [six, six], color=BLUE, linewidth=1, linestyle="--")
        axes.axhline(ceiling, color=GREY, linestyle=":", label="converged solution")
        log_axis(axes, "y", [ceiling, *values])
        axes.set(xlabel="NFE (network evaluations a sample)", ylabel=LABELS[short], xticks=NFES)
    legend_below(figure, *axes.get_legend_handles_labels())
    return figure


def draw_field(axes: Axes, nfe: int) -> None:
    """Every sampler of one NFE by both distances, and the converged solution."""
    table = study()
    for name, (color, marker) in GROUPS.items():
        own = table[(table["nfe"] == nfe) & (table["group"] == name)]
        wide = 2 if marker == "+" else 0
        axes.plot(own["imagenet"], own["classifier"], marker, color=color, alpha=0.7, markeredgewidth=wide, label=name)
    end = converged(table)
    axes.plot(end["imagenet"], end["classifier"], "*", color=BLACK, markersize=13, label="converged solution")
    few = table[table["nfe"].isin(NFES) & table["group"].isin(GROUPS)]
    for which, short in zip("xy", SHORT, strict=True):
        log_axis(axes, which, [end[short], few[short].max()])
    axes.set(xlabel=LABELS["imagenet"], ylabel=LABELS["classifier"], title=f"NFE {nfe}")


@style()
def untuned_figure(table: pd.DataFrame) -> Figure:
    """Untuned solvers: a column for each grid, a row for each kind of features."""
    table = table[table["group"] == "untuned"]
    figure = Figure(figsize=(9.5, 6.2))
    panels = figure.subplots(2, len(GRIDS), sharex=True, sharey="row")
    for row, short in zip(panels, SHORT, strict=True):
        drawn = []
        for axes, grid in zip(row, GRIDS, strict=True):
            for solver, (label, color, marker) in SOLVERS.items():
                own = table[(table["grid"] == grid) & (table["solver"] == solver) & table["nfe"].isin(NFES)]
                own = own.sort_values("nfe")
                axes.plot(own["nfe"], own[short], color=color, marker=marker, label=label)
                drawn += [*own[short]]
            axes.set(title=grid if short == SHORT[0] else "", xticks=NFES)
        for axes in row:
            log_axis(axes, "y", drawn)
        row[0].set_ylabel(LABELS[short])
    panels[1][1].set_xlabel("NFE")
    legend_below(figure, *axes.get_legend_handles_labels())
    return figure


@style()
def step_by_step_map(rows: pd.DataFrame, timings: Sequence[str]) -> Figure:
    """What tuning step by step changed, in per cent: a panel for each timing and kind of features.

    Raises:
        BadValue: a timing has no row with an untuned one beside it in both features.
    """
    gains = changes_in_both(rows, FEATURES, N, MODEL).sort_values(["grid", "solver"], kind="stable")
    gains = gains.assign(sampler=gains["solver"].map(_plain) + ", " + gains["grid"])
    panels = [(timing, short) for timing in timings for short in ("first", "second")]
    figure = Figure(figsize=(10, 4))
    for axes, (timing, side) in zip(figure.subplots(1, len(panels), sharey=True), panels, strict=True):
        own = gains[(gains["timing"] == timing) & gains["nfe"].isin((5, 10))]
        if own.empty:
            raise BadValue(f"no {timing} was measured in both {' and '.join(FEATURES)}; measure some with `tt table`")
        table = 100 * own.pivot_table(index="sampler", columns="nfe", values=f"change_{side}")
        table = table.loc[own["sampler"].unique()]
        image = heat_map(axes, table, table.map("{:+.0f}".format), SATURATED)
        features = LABELS[SHORT[side == "second"]].partition(" ")[2].strip("()")
        axes.set(title=f"{timing.split('-')[0]}\n{features}", xlabel="NFE", ylabel="")
    figure.colorbar(image, ax=figure.axes, label="change of the distance", format="{x:+.0f} %")
    return figure


def verdicts(rows: pd.DataFrame) -> pd.DataFrame:
    """How many samplers tuned step by step are better, worse, or not told apart, in one feature against the other."""
    gains = changes_in_both(rows, FEATURES, N, MODEL)
    gains = gains[~gains["timing"].str.startswith("learned")]
    counts = pd.crosstab(gains["verdict_first"], gains["verdict_second"])
    counts = counts.reindex(index=_VERDICTS, columns=_VERDICTS, fill_value=0)
    counts = counts.rename(index="ImageNet: {}".format, columns="classifier: {}".format)
    return counts.rename_axis(index=None, columns=None)


_VERDICTS = [BETTER, WORSE, SAME]
_SIDES = dict(zip(("first", "second"), SHORT, strict=True))


def _plain(solver: str) -> str:
    return solver.removesuffix(",final=lower")
