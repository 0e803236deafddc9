"""Notebook 07: the study's rows, a line for each sampler with both features side by side, and figures of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from tt_lib.datasets import to_uint8
from tt_lib.errors import BadValue
from tt_lib.figures.style import (
    GREY,
    KINDS,
    heat_map,
    legend_below,
    log_axis,
    style,
)
from tt_lib.rows import FD_COLUMNS, read_rows, results_folder
from tt_lib.study.cells import Cell, require_timing
from tt_lib.study.compare import BEST as LEARNED
from tt_lib.study.compare import (
    BETTER,
    FEATURES,
    MODEL,
    SAME,
    SAMPLER,
    WORSE,
    N,
    beside_each_other,
    changes_in_both,
    half,
    margin,
)
from tt_lib.study.compare import FEW as NFES
from tt_lib.study.compare import STRAIGHT as FLOW
from tt_lib.timing import UNTUNED

SHORT = ("imagenet", "classifier")
"""What the columns of a :func:`study` begin with, for each of :data:`tt_lib.study.compare.FEATURES`."""
LABELS = {"imagenet": "FD (ImageNet features)", "classifier": "FD (classifier's features)"}
GROUPS = ("untuned", "untuned, straight path", "tuned step by step", "learned, others", "learned UniPC")
"""What :func:`group` tells apart."""
SOLVERS = {
    "ddim": "DDIM",
    "dpmpp-2m": "DPM-Solver++(2M)",
    "unipc": "UniPC",
    "unipc,final=lower": "UniPC, falling orders",
}
"""Solvers of :func:`untuned_figure`. With ``final=lower`` 2M is the same: its last step is of order 1 anyway."""
GRIDS = ("uniform", "quadratic", "logsnr")
TUNED = {"DDIM": "ddim", "2M": "dpmpp-2m,final=lower", "UniPC": "unipc,final=lower"}
"""Solvers that were tuned and learned, by their short names."""
ON_STRAIGHT = {"DDIM": "euler", "2M": "dpmpp-2m", "UniPC": "unipc"}
"""The same methods on the straight path, where a solver is the same on other nodes; Euler's is DDIM there."""
STRAIGHT_SOLVERS = {"euler": "Euler", "heun": "Heun", "dpmpp-2m": "2M", "unipc": "UniPC"}
"""Solvers of :func:`straight_map`."""
KNOBS = {
    "timing": "learned-timing",
    "gain": "learned-gain",
    "timing and gain": "learned-timing-gain",
    "grid": "learned-grid",
    "grid and gain": "learned-grid-gain",
    "grid and timing": "learned-grid-timing",
    "grid, timing and gain": "learned-grid-timing-gain",
}
"""What :func:`knob_rows` has; a grid that is not learned is the uniform one."""
FALLING = TUNED["UniPC"]
WAYS = {
    "GITS": (FALLING, "learned-gits"),
    "LD3's recipe": (FALLING, "learned-ld3"),
    "grid and timing, 300 iterations": (FALLING, "learned-grid-timing"),
    "grid, timing and gain, 300 iterations": (FALLING, "learned-grid-timing-gain"),
    "grid, timing and gain, 1,000 iterations": (FALLING, LEARNED["timing"]),
    "the same without falling orders": (LEARNED["solver"], LEARNED["timing"]),
}
"""What :func:`ways_table` shows: solver and timing."""
PARTS = {1: (11, 7), 2: (14, 3)}
"""What :func:`zoom_figure` enlarges: the upper left pixel (row, column) of a square, by the seed of its image."""
SQUARE = 16
SATURATED = 40
"""Changes in per cent beyond this have a map's last colour: one ruined sampler must not hide the others."""
ALT = {
    "headline": "Two panels of Fréchet distance against the number of evaluations, 4 to 10, on a logarithmic axis, in "
    "ImageNet features and in the classifier's. Four falling lines: DDIM far above, then the best untuned samplers on "
    "the diffusion's and on the straight path, which cross, and lowest the learned sampler, nearly flat from 6 on. A "
    "dashed horizontal line at the learned sampler's distance for 5 stays below all other lines in ImageNet features. "
    "In the classifier's the best untuned sampler meets it at 10. A dotted horizontal line below everything is the "
    "converged solution.",
    "player": "Every sampler of the study at one number of evaluations: its distance in ImageNet features to the right "
    "and in the classifier's upwards. The slider goes from 4 to 10 evaluations. The cloud moves down to the left, "
    "towards the star of the converged solution. The learned UniPC, a diamond, comes close to it at 6.",
    "strip": "Three panels, for 4, 6 and 10 evaluations. The points lie along a rising band. The learned UniPC, a blue "
    "diamond, lies at its lower left end: with 4 evaluations well above the star of the converged solution and to its "
    "right, with 6 and 10 at the star.",
    "near": "The corner around the converged solution, with 10 evaluations and 95 % intervals as crosses, the star's "
    "too. Learned samplers lie close to the star, among them UniPC's blue diamond. Four lie to the right, and a little "
    "lower; of these only the lowest point lies below the star's cross. At the diamond's height lie a few others, "
    "twice as far to the right.",
    "straight": "Two heat maps of changes in per cent, for Euler, Heun, 2M and UniPC by 4 to 10 evaluations. In "
    "ImageNet features the left is orange, worse: all of Euler's row, and ever less of the rows below. The right is "
    "purple, better. In the classifier's features only Euler at 4 and Heun up to 6 are worse.",
    "untuned": "Six panels of distance against the number of evaluations: three grids from left to right, ImageNet "
    "features above and the classifier's below. On the uniform and the quadratic grid DDIM is high, and "
    "DPM-Solver++(2M) and UniPC with falling orders are low. UniPC without them is as high as DDIM or higher on the "
    "uniform grid, but for 5 evaluations in the classifier's features. On logsnr both UniPC lines are far above the "
    "others at 5 and below them from 8 on.",
    "puzzle": "Three rows of four pictures from the same noise. Uniform grid: strong contrast, flat surfaces. "
    "Quadratic grid: paler, with another motif in the first column. Converged: strong contrast and fine texture, and a "
    "car in the fourth column, where both grids have a boat.",
    "zoom": "Two parts of 16 by 16 pixels, enlarged, three times each. Uniform grid: broad, even patches. Quadratic "
    "grid: paler, but for its contrast neighbouring pixels differ more. Converged: they differ as much, in strong "
    "colours.",
    "map": "Four heat maps of changes in per cent, six samplers by 5, 10 and 20 evaluations: consistency, tuned "
    "sequentially, and truncation, tuned in parallel, each in ImageNet features and in the classifier's. Consistency "
    "is mostly orange, worse, and most of all for 2M and UniPC on the uniform grid at 5 and 10. Truncation is mostly "
    "purple, better, or hatched, where intervals overlap; it is dark orange for 2M and UniPC on the uniform grid at 5, "
    "in ImageNet features.",
}
"""What the figures show, in words."""


def study(rows: pd.DataFrame | None = None, n: int = N) -> pd.DataFrame:
    """The study, a line for each sampler.

    Args:
        rows: of ``fd.csv``; the shipped ones, if None.
        n: samples of a distance.

    Returns:
        Columns of :data:`tt_lib.study.compare.SAMPLER`, ``timing``, ``path`` (``diffusion`` or ``flow``), ``group``,
        and for each of :data:`SHORT` the distance, and its interval's ends, as in ``imagenet_low``.
    """
    frame = read_rows(results_folder() / "fd.csv", FD_COLUMNS) if rows is None else rows
    parts = []
    for path, model in (("diffusion", MODEL), ("flow", FLOW)):
        parts.append(beside_each_other(frame, *FEATURES, model, n).assign(path=path))
    table = pd.concat(parts, ignore_index=True)
    short = {f"{old}{end}": f"{new}{end}" for old, new in _SIDES.items() for end in ("", "_low", "_high")}
    table = table.rename(columns=short)[[*SAMPLER, "timing", *short.values(), "path"]]
    names = zip(table["solver"], table["timing"], table["path"], strict=True)
    return table.assign(group=[group(*each) for each in names])


def group(solver: str, timing: str, path: str) -> str:
    """Which of :data:`GROUPS` a sampler is of."""
    if timing == UNTUNED:
        return "untuned" if path == "diffusion" else "untuned, straight path"
    if not timing.startswith("learned"):
        return "tuned step by step"
    if {"solver": solver, "timing": timing} == LEARNED and path == "diffusion":
        return "learned UniPC"
    return "learned, others"


def best(table: pd.DataFrame, short: str) -> pd.DataFrame:
    """The sampler of the smallest distance for each NFE of :data:`NFES`, indexed by NFE.

    The column ``of`` says of how many; two names of the same samples count once.
    """
    table = table[table["nfe"].isin(NFES)]
    many = table.drop_duplicates(["nfe", *SHORT]).groupby("nfe").size()
    first = table.loc[table.groupby("nfe")[short].idxmin()].set_index("nfe", drop=False)
    return first.assign(of=many)


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


def overlapping(table: pd.DataFrame, row: pd.Series, short: str) -> pd.DataFrame:
    """The samplers of a table whose interval in one kind of features overlaps with a sampler's, or lies below it."""
    return table[table[f"{short}_low"] <= row[f"{short}_high"]].sort_values(short, kind="stable")


def difference(row: pd.Series, other: pd.Series) -> str:
    """How much larger a sampler's distances are than another's, ImageNet / classifier's, with :func:`margin`."""
    return " / ".join(f"{row[short] - other[short]:+.2f} ± {margin(row, other, short):.2f}" for short in SHORT)


def quality(samplers: Iterable[tuple[str, pd.Series]]) -> str:
    """A Markdown table: both distances of each sampler, by any name, each with half of its 95 % interval."""
    return markdown(
        ["sampler", "NFE", *LABELS.values()], [[name, row["nfe"], *with_halves(row, 2)] for name, row in samplers]
    )


def knob_rows(table: pd.DataFrame, name: str, nfe: int) -> dict[str, pd.DataFrame]:
    """One row of :func:`study`, or none, for each set of learned knobs of a solver of :data:`TUNED`, and untuned.

    The best diffusion grid is chosen by ImageNet features. Knobs without the grid are learned on the uniform one.
    """
    untuned, flow = table[table["group"] == "untuned"], table[table["group"] == "untuned, straight path"]
    solver = TUNED[name]
    own = table[(table["solver"] == solver) & (table["nfe"] == nfe) & (table["path"] == "diffusion")]
    start = best(untuned[untuned["solver"] == solver], "imagenet")
    uniform = own[(own["group"] == "untuned") & (own["grid"] == "uniform") & (own["eta"] == 0)]
    return {
        "untuned, best diffusion grid": start[start["nfe"] == nfe],
        "untuned, straight path": flow[(flow["solver"] == ON_STRAIGHT[name]) & (flow["nfe"] == nfe)],
        "untuned, uniform grid": uniform,
        **{knobs: own[own["timing"] == timing] for knobs, timing in KNOBS.items()},
    }


def ways_table(table: pd.DataFrame) -> str:
    """A Markdown table: UniPC learned by the ways of :data:`WAYS` beside the best untuned sampler, in both features."""
    untuned = best(table[table["group"].str.startswith("untuned")], "imagenet")
    own = table[table["path"] == "diffusion"].set_index(["solver", "timing", "nfe"]).sort_index()
    columns = {}
    for nfe in NFES[1:]:
        learned = {name: own[own.index == (*way, nfe)].reset_index() for name, way in WAYS.items()}
        columns[f"{nfe} evaluations"] = {
            "best untuned solver, diffusion or straight path": untuned[untuned["nfe"] == nfe],
            **learned,
        }
    return _wide("FD: ImageNet / classifier's", columns)


def _wide(corner: str, columns: Mapping[str, Mapping[str, pd.DataFrame]]) -> str:
    """A Markdown table of frames with one row each, or none where nothing was measured."""
    lines = []
    for name in next(iter(columns.values())):
        frames = [column[name] for column in columns.values()]
        cells = [" / ".join(with_halves(own.iloc[0], 1)) if len(own) else "not measured" for own in frames]
        lines.append([name, *cells])
    return markdown([corner, *columns], lines)


def markdown(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """A table whose first column is of words, and the others of numbers."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in (head, rule, *lines))


def with_halves(row: pd.Series, digits: int, names: Sequence[str] = SHORT) -> list[str]:
    """Both distances with half of their intervals; the classifier's are smaller and keep two digits."""
    both = zip(names, (digits, 2), strict=True)
    return [f"{row[short]:.{places}f} ± {half(row, short):.{places}f}" for short, places in both]


@style()
def headline_figure(table: pd.DataFrame) -> Figure:
    """Who wins: the learned sampler, DDIM, and the best untuned sampler of each path, in both features.

    The best are chosen in each panel by its own features and at each NFE anew, which favours them.
    """
    untuned = table[table["group"] == "untuned"]
    lines = {
        "DDIM, best of the diffusion's grids": (untuned[untuned["solver"] == "ddim"], "ddim"),
        "best untuned, diffusion's path": (untuned, "untuned"),
        "best untuned, straight path": (table[table["group"] == "untuned, straight path"], "untuned, straight path"),
        "learned end to end": (table[table["group"] == "learned UniPC"], "learned UniPC"),
    }
    figure = Figure(figsize=(9.5, 4))
    for axes, short in zip(figure.subplots(1, 2), SHORT, strict=True):
        values = []
        for name, (own, kind) in lines.items():
            points, (color, marker, _) = best(own, short), KINDS[kind]
            axes.plot(points.index, points[short], color=color, marker=marker, markersize=4, linewidth=1.2, label=name)
            axes.vlines(points.index, points[f"{short}_low"], points[f"{short}_high"], color, linewidth=2.5)
            values += [*points[short]]
        five, end = points.loc[5, short], converged(table)[short]
        axes.plot([5, 10.4], [five, five], color=color, linewidth=1, linestyle="--", label="its distance at NFE 5")
        axes.axhline(end, color=KINDS["converged solution"].color, linestyle=":", label="converged solution")
        log_axis(axes, "y", [end, *values])
        axes.set(xlabel="NFE (network evaluations a sample)", ylabel=LABELS[short], xticks=NFES)
    legend_below(figure, *axes.get_legend_handles_labels())
    return figure


def draw_field(axes: Axes, nfe: int, near: tuple[float, float] | None = None) -> None:
    """Every sampler of one NFE by both distances, and the converged solution.

    Args:
        near: the axes end at these multiples of its distances, and intervals are drawn, its own too; all samplers, if
            None.
    """
    table = study()
    end = converged(table)
    options: dict[str, Any] = {"markersize": 15, "fillstyle": "none", "label": "converged solution"}
    color, marker, _ = KINDS["converged solution"]
    axes.plot(end["imagenet"], end["classifier"], marker, color=color, **options)
    if near:
        _crosses(axes, end, color)
    for name in GROUPS:
        color, marker, _ = KINDS[name]
        own = table[(table["nfe"] == nfe) & (table["group"] == name)]
        options = {"markersize": 6 if name.startswith("learned") else 4, "markeredgewidth": 0, "label": name}
        axes.plot(own["imagenet"], own["classifier"], marker, color=color, alpha=0.8, **options)
        if near:
            _crosses(axes, own, color)
    few = table[table["nfe"].isin(NFES) & table["group"].isin(GROUPS)]
    far = [few[short].max() for short in SHORT] if near is None else near * end[list(SHORT)].astype(float)
    for which, short, last in zip("xy", SHORT, far, strict=True):
        log_axis(axes, which, [end[short], few[f"{short}_low"].min(), last])
    axes.set(xlabel=LABELS["imagenet"], ylabel=LABELS["classifier"], title=f"NFE {nfe}")


def _crosses(axes: Axes, own: Any, color: str) -> None:
    """The intervals of one sampler, or of several."""
    axes.hlines(own["classifier"], own["imagenet_low"], own["imagenet_high"], color, linewidth=1)
    axes.vlines(own["imagenet"], own["classifier_low"], own["classifier_high"], color, linewidth=1)


@style()
def zoom_figure(rows: Mapping[str, Tensor]) -> Figure:
    """The squares of :data:`PARTS`, enlarged: a row for each, a column for each name.

    Args:
        rows: samples [N, 3, H, W] in [-1, 1] of the seeds from 0 on, by name.
    """
    figure = Figure(figsize=(2.4 * len(rows), 2.5 * len(PARTS)))
    panels = figure.subplots(len(PARTS), len(rows), squeeze=False)
    for column, (name, samples) in zip(panels.T, rows.items(), strict=True):
        for axes, (seed, (top, left)) in zip(column, PARTS.items(), strict=True):
            part = to_uint8(samples)[seed, :, top : top + SQUARE, left : left + SQUARE]
            axes.imshow(part.permute(1, 2, 0).numpy(), interpolation="nearest")
            axes.set_axis_off()
        column[0].set_title(name)
    return figure


@style()
def untuned_figure(table: pd.DataFrame) -> Figure:
    """Untuned solvers: a column for each grid, a row for each kind of features."""
    table = table[(table["group"] == "untuned") & (table["eta"] == 0)]
    figure = Figure(figsize=(9.5, 6.2))
    panels = figure.subplots(2, len(GRIDS), sharex=True, sharey="row")
    for row, short in zip(panels, SHORT, strict=True):
        drawn = []
        for axes, grid in zip(row, GRIDS, strict=True):
            for solver, label in SOLVERS.items():
                color, marker, dashes = KINDS[solver]
                own = table[(table["grid"] == grid) & (table["solver"] == solver) & table["nfe"].isin(NFES)]
                own = own.sort_values("nfe")
                line = (0, dashes) if dashes else "-"
                axes.plot(own["nfe"], own[short], color=color, marker=marker, linestyle=line, label=label)
                drawn += [*own[short]]
            axes.set(title=grid if short == SHORT[0] else "", xticks=NFES)
        for axes in row:
            log_axis(axes, "y", drawn)
        row[0].set_ylabel(LABELS[short])
    panels[1][1].set_xlabel("NFE")
    legend_below(figure, *axes.get_legend_handles_labels())
    return figure


def step_by_step(rows: pd.DataFrame | None = None, n: int = N) -> pd.DataFrame:
    """:func:`tt_lib.study.compare.changes_in_both` of the samplers of the study that are tuned step by step.

    Args:
        rows, n: as :func:`study` takes them.
    """
    frame = read_rows(results_folder() / "fd.csv", FD_COLUMNS) if rows is None else rows
    gains = changes_in_both(frame, FEATURES, n, MODEL)
    return gains[~gains["timing"].str.startswith("learned")]


@style()
def step_by_step_map(gains: pd.DataFrame, timings: Sequence[str]) -> Figure:
    """What tuning step by step changed, in per cent: a panel for each timing and kind of features.

    A cell whose intervals overlap is hatched.

    Args:
        gains: of :func:`step_by_step`.
        timings: names of timings.

    Raises:
        BadValue: a timing has no row with an untuned one beside it in both features.
    """
    gains = gains.sort_values(["grid", "solver"], ascending=[False, True], kind="stable")
    gains = gains.assign(sampler=gains["solver"].map(_plain) + ", " + gains["grid"])
    panels = [(timing, side) for timing in timings for side in _SIDES]
    figure = Figure(figsize=(10.5, 4))
    for axes, (timing, side) in zip(figure.subplots(1, len(panels), sharey=True), panels, strict=True):
        own = gains[gains["timing"] == timing]
        if own.empty:
            raise BadValue(f"no {timing} was measured in both {' and '.join(FEATURES)}; measure some with `tt table`")
        index = {"index": "sampler", "columns": "nfe"}
        order = own["sampler"].unique()
        table = own.pivot(values=f"change_{side}", **index).loc[order]
        image = _draw_changes(axes, table, own.pivot(values=f"verdict_{side}", **index).loc[order] == SAME)
        axes.set(title=f"{timing}\n{_features(_SIDES[side])}", xlabel="NFE", ylabel="")
    figure.colorbar(image, ax=figure.axes, label="change of the distance", format="{x:+.0f} %")
    return figure


@style()
def straight_map(table: pd.DataFrame) -> Figure:
    """What learning changed on the straight path, in per cent, as :func:`step_by_step_map` does.

    Args:
        table: of :func:`study`.
    """
    flow = table[table["path"] == "flow"]
    both = flow[flow["timing"] != UNTUNED].merge(flow[flow["timing"] == UNTUNED], on=["solver", "nfe"])
    figure = Figure(figsize=(8, 2.8))
    for axes, short in zip(figure.subplots(1, 2, sharey=True), SHORT, strict=True):
        learned, plain = both[f"{short}_x"], both[f"{short}_y"]
        apart = (both[f"{short}_high_x"] < both[f"{short}_low_y"]) | (both[f"{short}_low_x"] > both[f"{short}_high_y"])
        found = both.assign(change=learned / plain - 1, same=~apart)
        wide = {each: found.pivot(index="solver", columns="nfe", values=each) for each in ("change", "same")}
        order = [solver for solver in STRAIGHT_SOLVERS if solver in wide["change"].index]
        changes, same = (each.loc[order].rename(index=STRAIGHT_SOLVERS) for each in wide.values())
        image = _draw_changes(axes, changes, same.eq(True))
        axes.set(title=_features(short), xlabel="NFE", ylabel="")
    figure.colorbar(image, ax=figure.axes, label="change of the distance", format="{x:+.0f} %")
    return figure


def losses_table(table: pd.DataFrame) -> str:
    """A Markdown table: what learning left of the held-out loss in the cells of :func:`straight_map`, in per cent.

    Raises:
        MissingFile: a learned sampler was measured and its timing is not there.
    """
    flow = table[(table["path"] == "flow") & (table["timing"] != UNTUNED)]
    cells = dict.fromkeys(((solver, nfe) for solver in STRAIGHT_SOLVERS for nfe in NFES), "not learned")
    for solver, grid, nfe, name in zip(flow["solver"], flow["grid"], flow["nfe"], flow["timing"], strict=True):
        timing = require_timing(FLOW, Cell(solver, grid, nfe, name))
        if timing is not None:  # a correction has no loss
            left = timing.tuning["validation_learned"] / timing.tuning["validation_start"]
            cells[solver, nfe] = f"{100 * left:.0f} %"
    lines = [[name, *(cells[solver, nfe] for nfe in NFES)] for solver, name in STRAIGHT_SOLVERS.items()]
    return markdown(["loss left, of untuned", *(f"{nfe} evaluations" for nfe in NFES)], lines)


def _features(short: str) -> str:
    return LABELS[short].partition(" ")[2].strip("()")


def _draw_changes(axes: Axes, changes: pd.DataFrame, same: pd.DataFrame) -> Any:
    """A heat map of changes in per cent, hatched where the intervals overlap; what was not measured stays empty."""
    per_cent = 100 * changes
    axes.grid(False)
    image = heat_map(axes, per_cent, per_cent.map(_signed), SATURATED, 8)
    for place, column in zip(*same.to_numpy().nonzero(), strict=True):
        options: dict[str, Any] = {"fill": False, "hatch": "////", "edgecolor": GREY, "linewidth": 0, "alpha": 0.5}
        axes.add_patch(Rectangle((column, place), 1, 1, **options))
    return image


def _signed(change: float) -> str:
    """A change in whole per cent; one that rounds to 0 has no sign."""
    return "" if pd.isna(change) else f"{round(change):+d}" if round(change) else "0"


def changes_table(gains: pd.DataFrame, timings: Mapping[str, str]) -> str:
    """A Markdown table: what timings changed for 2M and UniPC on the uniform grid, ImageNet / classifier's.

    Args:
        gains: of :func:`step_by_step`.
        timings: names of timings, by the head of their column.
    """

    def cell(row: pd.Series) -> str:
        both = {side: " (overlap)" if row[f"verdict_{side}"] == SAME else "" for side in _SIDES}
        return " / ".join(f"{100 * row[f'change_{side}']:+.0f} %{overlap}" for side, overlap in both.items())

    gains = gains.query("grid == 'uniform' and solver != 'ddim'")
    lines = []
    for (nfe, solver), own in gains.groupby(["nfe", "solver"]):
        changes = own.set_index("timing")
        if set(timings.values()) <= set(changes.index):
            lines.append([f"{_plain(solver)}, uniform", nfe, *(cell(changes.loc[name]) for name in timings.values())])
    return markdown(["sampler", "NFE", *timings], lines)


def verdicts(gains: pd.DataFrame, timings: Sequence[str]) -> pd.DataFrame:
    """How many samplers of :func:`step_by_step` get better, worse, or neither by some timings, in both features."""
    gains = gains[gains["timing"].isin(timings)]
    counts = pd.crosstab(gains["verdict_first"], gains["verdict_second"])
    counts = counts.reindex(index=_VERDICTS, columns=_VERDICTS, fill_value=0)
    counts = counts.rename(index="ImageNet: {}".format, columns="classifier: {}".format)
    return counts.rename_axis(index=None, columns=None)


_VERDICTS = [BETTER, WORSE, SAME]
_SIDES = dict(zip(("first", "second"), SHORT, strict=True))


def _plain(solver: str) -> str:
    return next((name for name, each in TUNED.items() if each == solver), solver)
