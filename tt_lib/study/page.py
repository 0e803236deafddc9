"""The pages and the list of files that are made from what lies in ``data/``, and nothing else.

``tt card`` writes them: ``data/results/README.md`` with all tables, the results in the project's README with their
figure, and ``data/MANIFEST.csv``. ``tt card --samples`` also draws README's picture of samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors import SafetensorError, safe_open

from tt_lib.errors import CorruptFile
from tt_lib.files import file_hash, read_json, write_text
from tt_lib.grids import LEARNED
from tt_lib.study.cells import Cell, require_timing
from tt_lib.study.compare import (
    BEST,
    FEATURES,
    FEW,
    MODEL,
    SAMPLER,
    SMALL,
    STRAIGHT,
    N,
    beside_each_other,
    half,
    margin,
)
from tt_lib.study.tables import published_rows
from tt_lib.study.workbench import Bench
from tt_lib.timing import UNTUNED

STRAIGHT_GRID = "uniform-trailing"
NARROW = "\u00a0"
"""Keeps the parts of a cell on one line, whatever the width of the page."""
SHORT = ("ImageNet", "classifier")
"""The features in the heads of tables."""
SHOWN = (*FEW, 20)
"""Numbers of evaluations that the table of untuned samplers shows."""
MANY = 50_000
"""Samples of the headline's second measurement, whose bias is smaller."""
STEPWISE = ("consistency-sequential", "consistency-parallel", "consistency-parallel-freeze2", "truncation-parallel")
CONVERGED = 60
"""Evaluations of the converged solution."""
MARK, END_MARK = "<!-- results: written by `tt card` from data/results/fd.csv -->", "<!-- end of results -->"
SHIPPED = ("gamma", "pretrained", "stats", "timings")
FIGURE, SAMPLES = "data/results/fd.png", "data/results/samples.png"
CAPTION = (
    "Fréchet distance in ImageNet features of 10,000 samples against the number of network evaluations. The learned "
    "sampler is nearest to the converged solution at each number. DDIM is on the best of the diffusion's grids."
)
ALT = (
    "Three falling curves over 4 to 10 evaluations: DDIM highest, the best untuned sampler in the middle, the learned "
    "sampler lowest and close to the dotted line of the converged solution."
)
SAMPLES_CAPTION = (
    "The same noise, seeds 0 to 3 and not chosen, through four samplers of one network, the first two untuned on the "
    "grid `quadratic`. `tt card --samples`."
)
SAMPLES_ALT = (
    "Four rows of four images from the same noise: DDIM, UniPC and the learned UniPC in 5 evaluations, and the "
    "converged solution in 60."
)
ROWS = {
    "DDIM, 5 evaluations": Cell("ddim", "quadratic", 5),
    "UniPC, 5 evaluations": Cell("unipc,final=lower", "quadratic", 5),
    "learned UniPC, 5": Cell(BEST["solver"], LEARNED, 5, BEST["timing"]),
    "converged, 60": Cell("dpmpp-2m", "karras", CONVERGED),
}
"""The rows of the picture of samples."""
PAGE = """# Results

`tt card` writes this page from `fd.csv` beside it. Each row names command, commit and device that made it.

- [What these numbers may not be compared with](#what-these-numbers-may-not-be-compared-with)
- [Learned and untuned](#learned-and-untuned)
- [Untuned samplers](#untuned-samplers): which solver and grid?
- [Learned end to end](#learned-end-to-end): what learning other things gave
- [Learned elsewhere](#learned-elsewhere): used with another solver, number of evaluations or network
- [TimeTuner, step by step](#timetuner-step-by-step): when tuned conditioning times help
- [Is the metric worth believing](#is-the-metric-worth-believing)

A value is the Fréchet distance of {n:,} samples from the 50,000 training images of CIFAR-10; smaller is better. The
first value of a pair, the primary metric, is in the features of EfficientNet-lite0, trained on ImageNet and not here.
The second is in the features of a CIFAR-10 classifier of this project. Behind ± stands half of the 95 % interval, from
ten disjoint sets of samples. All samplers start from the same noise.

## What these numbers may not be compared with

- **FIDs.** Only Inception-2015's features make one.
- **Each other's features.** The two have scales of their own.
- **Other numbers of samples.** The fewer samples, the larger the distance: in ImageNet features by up to 2 from
  {n:,} than from 50,000. Where both were measured, no verdict between untuned and tuned samplers was reversed.
- **Other networks.** This one is `{model}` where nothing else is said.
- **The classifier's features where a sampler is learned end to end.** It is part of the loss, and has seen the
  training images.

## Learned and untuned

![{alt}](fd.png)

*{caption}*

{claim}
The best untuned sampler has the smallest distance in ImageNet features, on either path. The *converged solution* has no
step error left. Brackets hold multiples of its distance. *Less by* is what the learned sampler takes off, with its 95 %
interval.

{headline}
{many}
Learned are grid, conditioning times and gains of UniPC, in 1,000 iterations. Of the recipes learned at all five numbers
it was chosen by the least sum of losses on held-out noise. Try `{use}`.

## Untuned samplers

In bold: the smallest value of a column in ImageNet features. `final=lower` lets the orders fall at the end; one row
stands where that changes nothing or was not measured. On the *straight path* the network is sampled as a flow, x =
(1 - t) x0 + t eps, on the grid `uniform-trailing` of flow time. Its ODE is the same, on other nodes. Euler's method
there is DDIM on nodes that suit it far better.

{untuned}
## Learned end to end

A name says what is learned: grid, conditioning times (timing), gain. *ld3* is the recipe of LD3 with our distance in
place of LPIPS, *gits* the shortest path of GITS. Other choices than 4,096 start noises, 300 iterations, a learning
rate of 0.03, seed 0 and a start from the uniform grid stand behind the name. The small network has 9 M parameters.

{learned}
In ImageNet features, in 300 iterations, a second knob helps each solver at five evaluations, and all three are lowest.
Of single knobs the grid is best there for UniPC, the gain for the others. Beside a learned grid the multistep
solvers take more from conditioning times than from gains, DDIM the reverse. At ten, gains beside both help DDIM alone.
Falling orders, which help untuned UniPC, harm the learned one in 1,000 iterations up to five. Sixteen noises or 100
iterations are not clearly worse. At five GITS leaps from noise almost to the data.

In few evaluations learning on the straight path harms in ImageNet features, Euler's method in any. The others gain in
eight and ten. Yet samples end nearer to converged ones: the loss compares pairs, a Fréchet distance sets.

## Learned elsewhere

`of_` stands before what the sampler was learned for.

{elsewhere}
In ImageNet features, beside the solver's best untuned grid of the diffusion's path: grids carry over best.
DPM-Solver++(2M) does about as well on grids of the others as on its own, UniPC at five evaluations, DDIM no better than
untuned. Conditioning times belong to their solver, but UniPC's serve DPM-Solver++(2M), whose own serve both at five.
Those of DDIM harm UniPC, and DPM-Solver++(2M) except with gains at five. UniPC's harm DDIM. At another number of
evaluations a learned sampler is often worse than the best untuned one. On the small network what was learned for the
shipped one gains over three quarters of what learning gains.

## TimeTuner, step by step

Each conditioning time is tuned by its own step: a ratio tau / t, by a search on 256 real images, the last step left
alone, where a line says nothing else. *Consistency* is the paper's objective, on the tuned sampler's own states
(sequential) or on noised images (parallel). *freeze2* leaves the last two steps untuned. *Truncation* compares with the
converged solution of the interval. In bold: better than untuned in both features, by more than half of the difference's
95 % interval. Untuned, too: `constant-0.95`, one ratio for all steps, `epsilon-1.005`, which divides eps, and
`time-shift`, by the variance of x.

{steps}
No objective helps everywhere. On the uniform grid consistency ruins the multistep solvers in five and ten evaluations,
mostly by its last tuned step.

With DDIM on the quadratic grid little depends on the images, the seed, ratio or offset, or the last step, but for
consistency in five steps: Adam finds times that harm less, one draw of 16 images some that help. A *gate* keeps a time
only where it lowers the truncation error on held-out images: it stops the harm at five, and most of the good at ten.

## Is the metric worth believing

{floor}
Below are the samplers whose FID is published (`data/tables/published.csv` names the papers), with their authors'
networks and grids. Kendall's tau is 1 for the same order, -1 for the reverse. `pixels=1.0` is the authors' bound on
Analytic-DDIM's last noise. Twice that takes it from 20.7 to 33.8 in ten evaluations, in ImageNet features.

{published}"""


# Rows


def beside(frame: pd.DataFrame, model: str = MODEL, n: int = N) -> pd.DataFrame:
    """One row for each sampler of a model that was measured in both features.

    Returns:
        As :func:`tt_lib.study.compare.beside_each_other`; ``first`` is the primary metric.

    Raises:
        BadValue: the rows are of two networks of one name.
    """
    frame = frame[(frame["seed"] == 0) & (frame["reference"] == "train")]
    return beside_each_other(frame, *FEATURES, model, n)


def named(rows: pd.DataFrame) -> pd.Series:
    """Solver, grid and, where it is not 0, eta of each row."""
    eta = rows["eta"].map(lambda value: f", eta {value:g}" if value else "").astype(str)
    return rows["solver"].astype(str) + eta + " · " + rows["grid"].astype(str)


def _where(grids: pd.Series, *usual: str) -> pd.Series:
    """The grid in words where it is not a usual one."""
    return grids.map(lambda grid: "" if grid in usual else f" · {grid}").astype(str)


def of_headline(frame: pd.DataFrame, n: int = N) -> tuple[pd.DataFrame, pd.DataFrame, pd.Series | None]:
    """The best untuned sampler at each of :data:`FEW`, the learned one (both by NFE), and the converged solution.

    Both frames have the same NFEs: those at which there is each.
    """
    own, straight = (beside(frame, model, n) for model in (MODEL, STRAIGHT))
    own = own.assign(name=named(own))
    straight = straight.assign(name=straight["solver"] + _where(straight["grid"], STRAIGHT_GRID) + " · straight path")
    plain = pd.concat([rows[(rows["timing"] == UNTUNED) & rows["nfe"].isin(FEW)] for rows in (own, straight)])
    plain = plain.sort_values("first", kind="stable").drop_duplicates("nfe").set_index("nfe").sort_index()
    learned = own[(own["solver"] == BEST["solver"]) & (own["timing"] == BEST["timing"])].set_index("nfe").sort_index()
    ends = own[(own["nfe"] == CONVERGED) & (own["timing"] == UNTUNED)]
    both = plain.index.intersection(learned.index)
    return plain.loc[both], learned.loc[both], ends.iloc[0] if len(ends) else None


# Tables


def markdown(rows: Sequence[Sequence[str]], head: Sequence[str], words: int = 1) -> str:
    """A table; the first ``words`` columns are aligned left, the numbers behind them right."""
    align = ["left"] * words + ["right"] * (len(head) - words)
    return pd.DataFrame(rows, columns=head).to_markdown(index=False, colalign=align, disable_numparse=True) + "\n"


def number(value: float, of: float | None = None) -> str:
    """A distance, or a margin ``of`` a distance, with three digits of the distance."""
    size = value if of is None else of
    return f"{value:.{3 if size < 1 else 2 if size < 10 else 1 if size < 100 else 0}f}"


def plus_minus(row: Any, which: str) -> str:
    """A distance in the first or second features, with half of its interval."""
    value = row[which]
    return f"{number(value)}{NARROW}±{NARROW}{number(half(row, which), value)}"


def pair(row: Any) -> str:
    """The distances in both features."""
    return f"{number(row['first'])}{NARROW}/{NARROW}{number(row['second'])}"


def gain(plain: Any, other: Any, which: str) -> str:
    """What a sampler takes off an untuned one's distance, in per cent, with half of its interval.

    The interval is first order in both, and takes the two for independent.
    """
    ratio = other[which] / plain[which]
    error = ratio * np.hypot(*(half(row, which) / row[which] for row in (plain, other)))
    return f"{100 * (1 - ratio):.0f} ± {max(100 * error, 1):.0f} %".replace("-", "−")


def less(row: Any, plain: Any, which: str) -> Any:
    """Whether a distance is smaller, by more than half of the difference's 95 % interval."""
    return plain[which] - row[which] > margin(plain, row, which)


def better(row: Any, plain: Any) -> Any:
    """Whether a distance is smaller in both features, as :func:`less` says."""
    return less(row, plain, "first") & less(row, plain, "second")


def headline_table(frame: pd.DataFrame, short: bool = False) -> str:
    """The learned sampler beside the best untuned one at each number of evaluations, and the converged solution.

    Args:
        short: without gains and multiples of the converged solution's.
    """
    plain, learned, end = of_headline(frame)

    def cell(row: Any, which: str) -> str:
        multiple = "" if short or end is None else f" ({row[which] / end[which]:.1f})"
        return plus_minus(row, which) + multiple

    def cells(one: Any, two: Any, which: str) -> list[str]:
        return [cell(one, which), cell(two, which)] + ([] if short else [gain(one, two, which)])

    lines = [
        [str(nfe), one["name"], *cells(one, two, "first"), *cells(one, two, "second")]
        for (nfe, one), (_, two) in zip(plain.iterrows(), learned.iterrows(), strict=True)
    ]
    what = ["untuned", "learned"] + ([] if short else ["less by"])
    if end is not None:
        empty = [""] * (len(what) - 1)
        own = [cell(end, "first"), *empty, cell(end, "second"), *empty]
        lines.append([str(end["nfe"]), f"{end['name']}: converged solution", *own])
    return markdown(
        lines, ["NFE", "best untuned, by ImageNet", *(f"{each}, {name}" for name in SHORT for each in what)], words=2
    )


def claim(frame: pd.DataFrame) -> str:
    """The fewest learned evaluations that do better than every untuned sampler of :data:`FEW` in ImageNet features.

    Better is by more than half of the difference's 95 % interval. What the classifier's features say stands behind it.
    """
    _, learned, _ = of_headline(frame)
    every = pd.concat([beside(frame, model) for model in (MODEL, STRAIGHT)], ignore_index=True)
    every = every[every["timing"] == UNTUNED]
    plain, ddim = every[every["nfe"].isin(FEW)], every[every["solver"] == "ddim"]

    def first(rows: pd.DataFrame, row: pd.Series) -> str:
        there = rows[rows["first"] <= row["first"]]
        if there.empty:
            return "in none measured"
        reached = there["nfe"].min()
        # Where these samplers themselves did not reach it yet: what others needed says nothing of them.
        same = rows[rows["nfe"] < reached].merge(there[there["nfe"] == reached][["solver", "grid", "eta"]])
        before = same.groupby(["solver", "grid", "eta"])["nfe"].max().min()
        return f"in {reached:.0f}" if pd.isna(before) else f"between {before:.0f} and {reached:.0f}"

    for nfe, row in learned.iterrows():
        if less(row, plain, "first").all():
            one, two = (plain.loc[plain[which].idxmin()] for which in ("first", "second"))
            smaller, larger = less(two, row, "second"), less(row, two, "second")
            verdict = "smaller" if smaller else "larger" if larger else "not clearly different"
            return (
                f"**{nfe} learned evaluations do better than {plain['nfe'].max()} of every untuned sampler here**, in "
                f"ImageNet features: {number(row['first'])} against {number(one['first'])}. In the classifier's "
                f"they have {number(row['second'])}. The least untuned distance there, {number(two['second'])}, is "
                f"{verdict}: `{two['solver']}` on the grid `{two['grid']}` in {two['nfe']}, with "
                f"{number(two['first'])} in ImageNet features. An untuned sampler first reaches {number(row['first'])} "
                f"{first(every, row)} evaluations, DDIM on the diffusion's grids {first(ddim, row)}.\n"
            )
    return ""


def many_samples(frame: pd.DataFrame) -> str:
    """What the headline's rows of :data:`MANY` samples say: the learned distances, also over the converged one."""
    plain, learned, end = of_headline(frame, MANY)
    if learned.empty or end is None:
        return ""

    def listed(values: Iterable[str]) -> str:
        *most, last = values
        return f"{', '.join(most)} and {last}" if most else last

    values, least = learned["first"], end["first"]
    return (
        f"From {MANY:,} samples, in ImageNet features, the learned sampler has {listed(values.map(number))} in "
        f"{listed(values.index.map(str))} evaluations, the best untuned one measured so "
        f"{listed(plain['first'].map(number))}. The learned distances are "
        f"{listed((values / least).map('{:.2f}'.format))} times the converged solution's {number(least)}.\n"
    )


def against_nfe(rows: pd.DataFrame, names: pd.Series, head: str, best: bool = False) -> str:
    """A line for each name, a column for each number of evaluations, both distances in a cell.

    Args:
        best: the smallest value of a column in the first features is bold.
    """
    rows = rows.assign(name=names, cell=[pair(row) for row in rows.to_dict("records")])
    if best:
        least = rows.groupby("nfe")["first"].transform("min") == rows["first"]
        rows["cell"] = rows["cell"].mask(least, "**" + rows["cell"] + "**")
    wide = rows.pivot(index="name", columns="nfe", values="cell").reindex(rows["name"].unique()).fillna("")
    return markdown(wide.reset_index().to_numpy().tolist(), [head, *map(str, wide.columns)])


def untuned_table(frame: pd.DataFrame) -> str:
    """Every untuned sampler in :data:`SHOWN` evaluations, path by path and grid by grid, each once."""
    rows = pd.concat([beside(frame), beside(frame, STRAIGHT).assign(grid="straight path")])
    rows = rows[(rows["timing"] == UNTUNED) & rows["nfe"].isin(SHOWN)].sort_values(["grid", "solver", "eta", "nfe"])
    # Where falling orders change nothing in any cell, the solver's own name stands for both.
    plain = rows.assign(solver=rows["solver"].str.replace(",final=lower", ""))
    both, same = plain.duplicated(SAMPLER), plain.duplicated([*SAMPLER, "first", "second"])
    own = [plain["solver"], plain["grid"]]
    merge = both.groupby(own).transform("any") & ~(both & ~same).groupby(own).transform("any")
    rows = rows.assign(solver=rows["solver"].where(~merge, plain["solver"])).drop_duplicates(SAMPLER)
    return against_nfe(rows, named(rows), "sampler", best=True)


def learned_table(frame: pd.DataFrame, elsewhere: bool = False) -> str:
    """Every sampler that was learned end to end, on either path, and those of the small network.

    Args:
        elsewhere: those that were learned for another solver, number of evaluations or network, in place of the others.
    """
    models = {MODEL: "", STRAIGHT: " · straight path", SMALL: " · small network"}
    own = {where: beside(frame, model).sort_values(["timing", "solver", "nfe"]) for model, where in models.items()}
    rows = pd.concat([each.assign(where=where) for where, each in own.items()])
    rows = rows[rows["timing"].str.startswith(f"{LEARNED}-") | (rows["model"] == SMALL)]
    rows = rows[rows["timing"].str.contains(",of_") == elsewhere]
    names = rows["solver"] + " · " + rows["timing"] + _where(rows["grid"], LEARNED) + rows["where"]
    return against_nfe(rows, names, "sampler")


def step_table(frame: pd.DataFrame) -> str:
    """Samplers tuned step by step beside their untuned ones, a column for each timing.

    What was tuned with other options has lines of its own behind, and so has what needs no tuning.
    """
    rows = beside(frame)
    rows = rows[~rows["timing"].str.startswith(f"{LEARNED}-")]
    rows[["column", "option"]] = [_column_and_option(timing) for timing in rows["timing"]]
    untuned = rows[rows["timing"] == UNTUNED].set_index(SAMPLER)
    lines = []
    for (option, *sampler), group in rows.groupby(["option", *SAMPLER]):
        own = {row["column"]: row for row in group.to_dict("records")}
        if tuple(sampler) not in untuned.index or (not option and len(own) == 1):
            continue
        plain = untuned.loc[tuple(sampler)]
        bold = {column: "**" * bool(better(row, plain)) for column, row in own.items()}
        cells = [f"{bold[name]}{pair(own[name])}{bold[name]}" if name in own else "" for name in (UNTUNED, *STEPWISE)]
        solver, grid, nfe, _ = sampler
        lines.append([" · ".join(filter(None, (solver, grid, option))), str(nfe), *cells])
    short = [
        name.replace("-parallel-freeze2", ", freeze2").replace("-parallel", "").replace("-", ", ") for name in STEPWISE
    ]
    short[1] = "consistency, parallel"
    return markdown(lines, ["sampler", "NFE", UNTUNED, *short])


def _column_and_option(timing: str) -> tuple[str, str]:
    """The column of :func:`step_table` that a timing stands in, and what sets it apart there."""
    # One column's name begins with another's. What is in none of them is untuned, or a correction, and stands there.
    column = max(filter(timing.startswith, STEPWISE), key=len, default=UNTUNED)
    return column, timing.removeprefix(column).lstrip(",-")


def floor(frame: pd.DataFrame) -> str:
    """The distances of real test images in words; nothing if they are not in both features."""
    floors = [frame[(frame["solver"] == "floor") & (frame["features"] == name)] for name in FEATURES]
    if not all(map(len, floors)):
        return ""
    one, two = (rows.iloc[0] for rows in floors)
    return (
        f"The floor: {one['n']:,} real test images have {number(one['value'])} in ImageNet features, and "
        f"{number(two['value'])} in the classifier's.\n"
    )


def published_table(frame: pd.DataFrame) -> str:
    """Published FIDs beside our distances, and how well the orders agree."""
    from scipy.stats import kendalltau

    both = (
        published_rows()
        .query("dataset == 'cifar10'")
        .merge(beside(frame), on=[*SAMPLER, "timing"])
        .sort_values("value", kind="stable")
    )
    own = ["first", "second"]
    lines = [
        [f"{name}, {row['nfe']}", f"{row['value']:g}", *(number(row[each]) for each in own)]
        for name, row in zip(named(both), both.to_dict("records"), strict=True)
    ]
    if len(both) > 2:
        taus = [kendalltau(both["value"], both[each]).statistic for each in own]
        lines.append(["Kendall's tau with the FIDs", "", *(f"{tau:.2f}" for tau in taus)])
        first, second = np.triu_indices(len(both), 1)
        fid, ours = both["value"].to_numpy(), both[own].to_numpy()
        differ = (np.sign(fid[first] - fid[second])[:, None] != np.sign(ours[first] - ours[second])).sum(0)
        lines.append([f"pairs in another order, of {len(first)}", "", *map(str, differ)])
    return markdown(lines, ["sampler, evaluations", "published FID", *SHORT])


# Pages


def results_block(frame: pd.DataFrame) -> str:
    """What stands between the markers in README."""
    return "\n".join([MARK, claim(frame), headline_table(frame, short=True)]) + END_MARK


def results_page(frame: pd.DataFrame) -> str:
    """The text of ``data/results/README.md``, from rows of ``fd.csv``."""
    return PAGE.format(
        n=N,
        model=MODEL,
        alt=ALT,
        caption=CAPTION,
        headline=headline_table(frame),
        claim=claim(frame),
        untuned=untuned_table(frame),
        learned=learned_table(frame),
        steps=step_table(frame),
        elsewhere=learned_table(frame, elsewhere=True),
        many=many_samples(frame),
        use=f"tt sample --solver {BEST['solver']} --nfe 5 --timing {BEST['timing']} --out five.png",
        floor=floor(frame),
        published=published_table(frame),
    )


def insert_block(page: str, block: str) -> str:
    """``page`` with the text between the markers replaced.

    Raises:
        CorruptFile: the page lacks the markers.
    """
    before, begin, rest = page.partition(MARK)
    _, end, after = rest.partition(END_MARK)
    if not (begin and end):
        raise CorruptFile(f"the page lacks the markers {MARK!r} and {END_MARK!r}; put them where the results belong")
    return before + block + after


def write_report(root: Path, frame: pd.DataFrame) -> list[Path]:
    """Write the figure, and the results block of ``root``'s README; returns their paths."""
    from tt_lib.figures.results import distance_curves
    from tt_lib.figures.style import save_figure

    plain, learned, end = of_headline(frame)
    rows = beside(frame)
    ddim = rows[(rows["solver"] == "ddim") & (rows["timing"] == UNTUNED) & rows["nfe"].isin(FEW)]
    ddim = ddim.sort_values("first").drop_duplicates("nfe").set_index("nfe").sort_index()
    curves = {"DDIM": ddim, "best untuned sampler": plain, "learned sampler": learned}
    curves = {
        name: rows[["first", "first_low", "first_high"]].set_axis(["value", "low", "high"], axis=1)
        for name, rows in curves.items()
    }
    readme, figure = root / "README.md", root / FIGURE
    level = {f"converged solution: {end['nfe']} evaluations": end["first"]} if end is not None else {}
    save_figure(distance_curves(curves, level), figure, CAPTION, ALT)
    write_text(readme, insert_block(readme.read_text(encoding="utf-8"), results_block(frame)))
    return [readme, figure]


def write_samples(root: Path, bench: Bench) -> Path:
    """Draw README's picture of samples: seeds 0 to 3 through each of :data:`ROWS`; returns its path."""
    from tt_lib.datasets import to_uint8
    from tt_lib.figures.pictures import compare_rows
    from tt_lib.figures.style import save_figure

    samplers = {name: bench.sampler(cell, require_timing(bench.model.name, cell)) for name, cell in ROWS.items()}
    figure = compare_rows({name: to_uint8(sampler(range(4)).x) for name, sampler in samplers.items()}, scale=4)
    return save_figure(figure, root / SAMPLES, SAMPLES_CAPTION, SAMPLES_ALT)


# Files


def manifest(data: Path) -> str:
    """The text of ``data/MANIFEST.csv``: path, bytes, sha256 and command of each shipped file."""
    files = sorted(path for folder in SHIPPED for path in (data / folder).rglob("*") if path.is_file())
    rows = [
        (path.relative_to(data).as_posix(), path.stat().st_size, file_hash(path), made_by(path))
        for path in files
        if not path.name.startswith(".")
    ]
    return pd.DataFrame(rows, columns=["path", "bytes", "sha256", "command"]).to_csv(index=False, lineterminator="\n")


def made_by(path: Path) -> str:
    """The command that made a file: from its own provenance, or from the card beside it; empty if neither says.

    Raises:
        CorruptFile: a file is damaged.
    """
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                command = (file.metadata() or {}).get("command", "")
        except SafetensorError as error:
            raise CorruptFile(f"{path} is not a safetensors file ({error}); restore it from git") from error
        if command:
            return command
    for card in (path, path.parent / "tt_model.json", path.parent / "config.json"):
        if card.suffix == ".json" and card.is_file():
            content = read_json(card)
            command = content.get("command") or content.get("provenance", {}).get("command")
            if command:
                return command
    return ""
