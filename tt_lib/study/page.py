"""The README's results: a table and a figure, both made from the rows of ``data/results/fd.csv`` and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tt_lib.errors import CorruptFile
from tt_lib.files import data_folder, file_hash, read_json
from tt_lib.metrics.direction import MEASURES
from tt_lib.metrics.features import metric_of
from tt_lib.rows import read_rows
from tt_lib.solvers.registry import make_solver
from tt_lib.study.compare import (
    BETTER,
    CONSTANT,
    CORRECTED,
    FEWEST,
    JOINED,
    PLAIN,
    SAME,
    SAMPLER,
    WORSE,
    base_name,
    changes,
    distances,
    family,
    summarise,
)
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
        notes = [
            "The network's ceiling was not measured with so many samples in these features, so *of the gap* is empty."
        ]
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
    found = {
        n: [changes(study(frame, n=n, features=each)).set_index([*CELL, "timing"]) for each in features]
        for n in (README_N, BOTH_N)
    }
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
    from tt_lib.figures.results import fd_against_nfe
    from tt_lib.figures.style import save_figure
    from tt_lib.files import write_text

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


# FOLDED tt_lib.study.page
# The data card: what each shipped file is, which command made it, and its hash.


CARD_HEAD = """# Data card

What lies in this folder. This page is written by `tt card` and compared with the files in the test suite.

- `pretrained/`: networks, float16. A diffusion network is a folder that diffusers itself can load
  (`UNet2DModel.from_pretrained`) with `tt_model.json` beside it (schedule, training, hash); a network of features is a folder
  with `config.json` (its test accuracy, or that of a linear probe; recipe, hash).
- `stats/`: mean and covariance of a data set's features: the reference that Fréchet distances are taken against; and, as
  `-bank`, the features of some of its images, for the kernel distance and precision and recall.
- `timings/`: tuned conditioning times, one JSON file for each sampler, with how they were tuned.
- `gamma/`: what Analytic-DDIM and Analytic-DDPM know of a network, one JSON file for each grid, NFE and timing.
- `tables/`: the cells that `tt table` fills in.
- `results/`: rows. Every number that the README, a notebook or a figure shows comes from one of these files.

No image of CIFAR-10 is in this repository. The networks were trained on it (Krizhevsky 2009, *Learning Multiple Layers of
Features from Tiny Images*), so they inherit its contents and its biases: 32x32 photographs of ten classes, collected from
the web in the 2000s.

| file | bytes | made by | sha256 |
| --- | ---: | --- | --- |
"""
FOLDERS = ("gamma", "pretrained", "stats", "timings")


def data_card(data: Path) -> str:
    """The text of ``data/README.md`` for what lies in ``data``."""
    files = sorted(path for folder in FOLDERS for path in (data / folder).rglob("*") if path.is_file())
    lines = [
        f"| `{path.relative_to(data).as_posix()}` | {path.stat().st_size:,} | {_made_by(path)} | `{file_hash(path)}` |\n"
        for path in files
        if not path.name.startswith(".")
    ]
    return CARD_HEAD + "".join(lines)


def _made_by(path: Path) -> str:
    """The command in the file's own provenance, or in the card beside it."""
    for candidate in (path, path.parent / "tt_model.json", path.parent / "config.json"):
        command = _command(candidate)
        if command:
            return f"`{command}`"
    return ""


def _command(path: Path) -> str:
    if path.suffix == ".json" and path.is_file():
        content = read_json(path)
        return content.get("command") or content.get("provenance", {}).get("command", "")
    if path.parent.name == "stats" and path.suffix == ".safetensors":
        from tt_lib.metrics.reference import load_bank
        from tt_lib.metrics.statistics import FeatureStatistics

        if path.stem.endswith("-bank"):
            return load_bank(path).meta.get("command", "")
        return FeatureStatistics.load(path).meta.get("command", "")
    return ""


# FOLDED tt_lib.study.page
# Direction errors beside the distances, as tables of the results page.


TITLE = "## Direction errors beside the distances"
TOLD = 0.02
"""Errors that differ by less than this share count as the same."""
LOWER, AS_IT_WAS, HIGHER = "lower", "the same", "higher"


def direction_section(
    directions: pd.DataFrame, frame: pd.DataFrame, model: str, features: Sequence[str], n: int
) -> Iterator[str]:
    """The section of the page: what tuning does to error and distance, and a line for each sampler and timing; nothing without rows.

    Args:
        directions, frame, model, features, n: see :func:`errors_and_distances`.
    """
    measured = errors_and_distances(directions, frame, model, features, n)
    if measured.empty:
        return
    yield (
        f"{TITLE}\n\nOf `direction.csv`: how far the direction of a step is from the mean of eps along the true trajectory (mean over the steps, as an angle and as a share of its "
        "length), and how far from the end of the true trajectory of its own noise a sample ends (root mean square over pixels, which go from -1 to 1). That trajectory begins at the grid's first time, so each grid has its own. Distances are of "
        f"{n:,} samples, errors of as many as the last column says. Samplers that draw noise follow no trajectory. "
        f"The true trajectory is a fine solution, whose own error (`doubt`, of the step where it is largest) is in the median {_doubt(measured)} of the error at the end.\n"
    )
    beside = measured.drop_duplicates(JOINED, keep="last").sort_values(["grid", "solver", "nfe", "tuned", "timing"])
    alike, how = _alike(measured)
    enough = alike.groupby("nfe").filter(lambda budget: len(budget) >= FEWEST)
    if len(enough):
        judges = " / ".join(f"`{each}`" for each in features)
        yield f"Rank correlation of each error with the distance among the samplers and timings of one budget, in {judges}, over {how}:\n\n{rank_table(enough, features)}"
    pairs = what_tuning_did(alike, frame, model, features, n)
    if len(pairs):
        yield (
            f"Of the same, what tuning does to the error at the end, and what to the distance: how many timings are better than untuned beyond the intervals / not told apart / worse. "
            f"(Errors are of the same noise; a change of less than {100 * TOLD:.0f} % counts as none.)\n\n{verdict_table(pairs, features)}"
        )
    for grid, group in beside.groupby("grid", sort=False):
        yield f"<details><summary>Grid {grid}: {len(group)} samplers and timings</summary>\n\n{_lines(group, features)}\n</details>\n"


def _alike(measured: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Those that were measured by the protocol that most were, and its words: errors of different protocols are not compared."""
    n, substeps = measured.groupby(["n", "substeps"]).size().idxmax()
    alike = measured[(measured["n"] == n) & (measured["substeps"] == substeps)]
    return alike, f"the {len(alike)} whose errors were measured on {n} samples with {substeps} substeps"


def _doubt(measured: pd.DataFrame) -> str:
    """The fine solution's own error as a share of the error at the end, in the median over the samplers of each budget, in words."""
    shares = 100 * (measured["doubt"] / measured["accumulated"]).groupby(measured["nfe"]).median()
    low, high = f"{shares.min():.0f}", f"{shares.max():.0f}"
    return f"{high} %" if low == high else f"{low} to {high} %, depending on the budget,"


def errors_and_distances(
    directions: pd.DataFrame, frame: pd.DataFrame, model: str, features: Sequence[str], n: int
) -> pd.DataFrame:
    """Direction errors of each sampler and timing (:func:`tt_lib.study.compare.summarise`), with its distances.

    Args:
        directions, frame: rows of ``direction.csv`` and of ``fd.csv``.
        model: whose samplers.
        features, n: of the distances that stand beside the errors, a column for each of the features; a sampler with none of them is left out.

    Returns:
        Also a column ``tuned``. Of several measurements of one timing's errors that of most samples comes last.
    """
    directions = directions[directions["model"] == model]
    if directions.empty:
        return pd.DataFrame(columns=[*JOINED, *features, "tuned"])
    found = summarise(directions).sort_values("n", kind="stable")
    for each in features:
        found = found.merge(
            distances(frame, each, n, model)[[*JOINED, "value"]].rename(columns={"value": each}), on=JOINED, how="left"
        )
    return found.dropna(subset=list(features), how="all").assign(tuned=lambda rows: rows["timing"] != UNTUNED)


def what_tuning_did(
    measured: pd.DataFrame, frame: pd.DataFrame, model: str, features: Sequence[str], n: int
) -> pd.DataFrame:
    """What each timing did to the error at the end of the run, and to the distance.

    Args:
        measured: of :func:`errors_and_distances`, not empty.
        frame, model, features, n: see there.

    Returns:
        A row for each tuned timing whose errors and whose untuned sampler's were measured on the same samples: its ``objective``,
        where the error ``went`` (:data:`LOWER`, :data:`AS_IT_WAS` or :data:`HIGHER`), and a column for each of the features with the
        verdict of :func:`tt_lib.study.compare.changes`.
    """
    same = [*SAMPLER, "n", "substeps"]
    plain = measured.loc[~measured["tuned"], [*same, "accumulated"]]
    pairs = (
        measured[measured["tuned"]]
        .merge(plain, on=same, suffixes=("", "_untuned"))
        .drop_duplicates(JOINED, keep="last")
    )
    change = pairs["accumulated"] / pairs["accumulated_untuned"] - 1
    pairs = pairs.assign(objective=pairs["timing"].str.split("-").str[0], went=AS_IT_WAS).drop(columns=list(features))
    pairs.loc[change < -TOLD, "went"], pairs.loc[change > TOLD, "went"] = LOWER, HIGHER
    for each in features:
        verdicts = changes(distances(frame, each, n, model))[[*SAMPLER, "timing", "verdict"]]
        pairs = pairs.merge(verdicts.rename(columns={"verdict": each}), on=[*SAMPLER, "timing"], how="left")
    return pairs


def rank_correlations(measured: pd.DataFrame, features: Sequence[str]) -> pd.DataFrame:
    """Spearman's rank correlation of each error with the distance at one budget: a line for each error, a column for each budget and judge.

    Args:
        measured: of :func:`errors_and_distances`, not empty.
        features: the judges.
    """
    return pd.DataFrame(
        {
            (nfe, judge): [group[measure].corr(group[judge], method="spearman") for measure in MEASURES]
            for nfe, group in measured.groupby("nfe")
            for judge in features
        },
        index=list(MEASURES),
    )


def rank_table(measured: pd.DataFrame, features: Sequence[str]) -> str:
    """:func:`rank_correlations` as Markdown: a column for each budget, in each cell the judges' values, and how many samplers and timings there are."""
    found, counts = rank_correlations(measured, features), measured.groupby("nfe").size()
    lines = [f"| NFE | {' | '.join(map(str, counts.index))} |", f"| --- |{' ---: |' * len(counts)}"]
    for measure in MEASURES:
        values = [[found.loc[measure, (nfe, judge)] for judge in features] for nfe in counts.index]
        cells = [" / ".join("-" if pd.isna(value) else f"{value:.2f}" for value in budget) for budget in values]
        lines.append(f"| {measure} | {' | '.join(cells)} |")
    return "\n".join([*lines, f"| samplers and timings | {' | '.join(map(str, counts))} |"]) + "\n"


def verdict_table(pairs: pd.DataFrame, features: Sequence[str], by: str = "objective") -> str:
    """As Markdown, a line for each value of a column and each way the error went: how many timings are better / not told apart / worse.

    Args:
        pairs: of :func:`what_tuning_did`.
        by: the column; its values come sorted, those of categories in their own order.
    """
    lines = [
        f"| {by} | error at the end | timings | {' | '.join(features)} |",
        f"| --- | --- | ---: |{' ---: |' * len(features)}",
    ]
    for value, of_value in pairs.groupby(by, observed=True):
        for went in (LOWER, AS_IT_WAS, HIGHER):
            group = of_value[of_value["went"] == went]
            cells = [
                " / ".join(str((group[each] == verdict).sum()) for verdict in (BETTER, SAME, WORSE))
                for each in features
            ]
            if len(group):
                lines.append(f"| {value} | {went} | {len(group)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _lines(rows: pd.DataFrame, features: Sequence[str]) -> str:
    head = [*(f"FD ({each})" for each in features), "angle", "relative error", "error at the end", "n"]
    lines = [f"| solver | NFE | timing | {' | '.join(head)} |", f"| --- | ---: | --- |{' ---: |' * len(head)}"]
    for row in rows.to_dict("records"):
        values = ["" if pd.isna(row[name]) else f"{row[name]:.2f}" for name in features]
        errors = [f"{row['angle']:.2f}°", f"{100 * row['relative']:.1f} %", f"{row['accumulated']:.4f}", str(row["n"])]
        eta = f", eta {row['eta']:g}" if row["eta"] else ""
        lines.append(f"| {row['solver']}{eta} | {row['nfe']} | {row['timing']} | {' | '.join([*values, *errors])} |")
    return "\n".join(lines) + "\n"


# FOLDED tt_lib.study.page
# Values that others have published, to stand beside measured ones: never results of this project.


COLUMNS = ("dataset", "metric", "solver", "grid", "nfe", "eta", "value", "source")


def published_beside(row: Mapping[str, Any]) -> str:
    """What was published for the untuned sampler of a row of ``fd.csv``, with the source; nothing if there is none.

    The values are in ``data/tables/published.csv``. Their networks, grids and last steps are their authors': small differences
    in these move an FID by more than its interval.
    """
    if row["timing"] != UNTUNED:
        return ""
    rows = read_rows(data_folder() / "tables" / "published.csv", COLUMNS)
    for name in ("dataset", "metric", "solver", "grid", "nfe", "eta"):
        rows = rows[rows[name] == row[name]]
    return "".join(
        f"; published {value:g} ({source})" for value, source in zip(rows["value"], rows["source"], strict=True)
    )


# FOLDED tt_lib.study.page
# The page ``data/results/README.md``: all tables, made from the rows beside it and nothing else.


MODEL = "cifar10-ddpm-w64"
MOST = 12
"""Lines of a list of gains or losses that are not folded away."""
HEAD = """# Results

This page is written by `tt card` from the rows in this folder, and the test suite compares the two. `fd.csv` holds distances of
samples, `direction.csv` direction errors of each step, `correlation.csv` rank correlations,
 `speed.csv` what things cost, `training.csv` how the networks were trained. Each row names the command, the commit and the device that made it.

A value is a Fréchet distance between samples and the training images; ± is half of its 95 % interval, from ten disjoint sets of
samples. All timings of one sampler start from the same noise. Smaller is better.
"""
NOT_COMPARABLE = """## What these numbers may not be compared with

- **FID.** These are distances in the features of two networks that this project trained. Only Inception-2015's features make a
  FID, and no number here is one. The two features have scales of their own, too: compare within a table, not across.
- **Another number of samples.** A Fréchet distance of few samples is too large, the more so the fewer there are.
- **Another reference.** The reference is the 50,000 training images, which the networks of the features have seen.
- **Another network.** Every row of samples is of the shipped one (`tt info`); a better network has other direction errors.
- **Its own tuning.** `frechet-joint` was found by the very distance in `cifar10-resnet`, on other samples. What it gains there shows
  what the times can do; whether the samples are better is for the other features to say.
"""
WHY = {
    "consistency, history": "**`consistency` on solvers with a history.** The paper's objective wants the direction after a step to be the "
    "direction before it. For DPM-Solver++(2M) on the uniform grid, where this was looked at, the direction turns so far over the last interval "
    "before clean data that no time keeps it, and a step that leaves noise in the image satisfies the objective best. A solver that extrapolates its history gives that time a strong lever.",
    "consistency, many steps": "**`consistency` in many steps.** The true trajectory bends, so the right direction does change along an interval. "
    "Where intervals are long, wishing that it does not is for DDIM mostly nearer to the truth than the untuned step is; where they are short it is not. "
    "(Solvers that draw noise follow no trajectory: of them this says nothing.)",
    "truncation": "**`truncation`.** It is meant to bring images nearer to the ends of their own true trajectories. Where it does not, the distance grows more often than it falls "
    "(*Direction errors beside the distances*, below). But many of the losses here are of timings that do bring images nearer: the distance is of the statistics of all images. Errors that happen to cancel there count as nothing, and mending "
    "some of them can make the rest show.",
}


def results_page(frame: pd.DataFrame, correlation: pd.DataFrame, directions: pd.DataFrame) -> str:
    """The page's text.

    Args:
        frame: rows of ``fd.csv``.
        correlation: rows of ``correlation.csv``.
        directions: rows of ``direction.csv``.
    """
    parts = [
        HEAD,
        *_main_tables(frame),
        *_studies(frame),
        *_verdicts(frame),
        *_ablations(frame),
        *_agreement(correlation),
    ]
    beside = direction_section(directions, frame, MODEL, (FEATURES, OTHERS), BOTH_N)
    return "\n".join([*parts, *beside, *_more(frame), _floor(frame), NOT_COMPARABLE])


def _groups(frame: pd.DataFrame) -> Iterator[tuple[str, int, pd.DataFrame]]:
    """(features, n, rows) of the shipped network, the README's first."""
    pairs = frame[(frame["model"] == MODEL)][["features", "n"]].drop_duplicates()
    order = sorted(pairs.itertuples(index=False), key=lambda pair: (-pair.n, pair.features != FEATURES, pair.features))
    for features, n in order:
        rows = distances(frame, features, n, MODEL)
        if len(rows):
            yield features, int(n), rows


def _main_tables(frame: pd.DataFrame) -> Iterator[str]:
    for features, n, _ in _groups(frame):
        if n == README_N:
            yield f"## The README's table, `{features}`, {n:,} samples\n\n{results_table(frame, features)}"


def _studies(frame: pd.DataFrame) -> Iterator[str]:
    """A table for each grid: every solver against NFE, untuned and its best timing."""
    for features, n, rows in _groups(frame):
        plain = rows[
            [timing == UNTUNED or (family(timing) == PLAIN and "," not in timing) for timing in rows["timing"]]
        ]
        # A sampler whose untuned row is yet to come has nothing to be compared with.
        plain = plain.merge(plain.loc[plain["timing"] == UNTUNED, SAMPLER], on=SAMPLER)
        if n == README_N or plain.empty:
            continue
        yield (
            f"## Every solver, `{features}`, {n:,} samples\n\nUntuned → the best of its timings without options, with the first letter of its objective (timings with "
            "options, frozen steps or constants are among the ablations below, and some are better). In bold: the smallest value of a column; others may not be told apart from it.\n"
        )
        for grid, group in plain.groupby("grid", sort=False):
            yield f"Grid `{grid}`:\n\n{_solver_table(group)}"


def _solver_table(rows: pd.DataFrame) -> str:
    budgets = sorted(rows["nfe"].unique())
    best = {nfe: rows[rows["nfe"] == nfe]["value"].min() for nfe in budgets}
    lines = [f"| solver | {' | '.join(map(str, budgets))} |", f"| --- |{' ---: |' * len(budgets)}"]
    for (solver, eta), group in rows.groupby(["solver", "eta"], sort=False):
        cells = [_solver_cell(group[group["nfe"] == nfe], best[nfe]) for nfe in budgets]
        lines.append(f"| {solver}{f', eta {eta:g}' if eta else ''} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _solver_cell(rows: pd.DataFrame, best: float) -> str:
    def text(row: pd.Series) -> str:
        return (
            f"**{row['value']:.2f} ± {(row['high'] - row['low']) / 2:.2f}**"
            if row["value"] == best
            else f"{row['value']:.2f}"
        )

    plain, tuned = rows[rows["timing"] == UNTUNED], rows[rows["timing"] != UNTUNED]
    shown = [text(plain.iloc[0])] if len(plain) else []
    if len(tuned):
        row = tuned.loc[tuned["value"].idxmin()]
        shown.append(f"{text(row)} {row['timing'][0]}")
    return " → ".join(shown)


def _verdicts(frame: pd.DataFrame) -> Iterator[str]:
    for features, n, rows in _groups(frame):
        found = changes(rows)
        if found.empty:
            continue
        better, worse = found[found["verdict"] == BETTER], found[found["verdict"] == WORSE][::-1]
        yield (
            f"## What improved and what got worse, `{features}`, {n:,} samples\n\nOf {len(found)} timings and corrections {len(better)} are better "
            f"than untuned beyond the intervals, {len(worse)} are worse, and for {len(found) - len(better) - len(worse)} the intervals overlap.\n"
        )
        yield f"The largest gains:\n\n{_list(better[:MOST])}"
        if len(worse):
            yield f"The largest losses:\n\n{_list(worse[:MOST])}"
            if len(worse) > MOST:
                yield _folded(f"The other {len(worse) - MOST} losses", _list(worse[MOST:]))
            yield "What is thought to be behind some of them (the others have no explanation here):\n\n" + "".join(
                f"- {WHY[reason]}\n" for reason in _reasons(worse)
            )


def _list(found: pd.DataFrame) -> str:
    lines = ["| sampler | NFE | timing | untuned | tuned | change |", "| --- | ---: | --- | ---: | ---: | ---: |"]
    for row in found.to_dict("records"):
        eta = f", eta {row['eta']:g}" if row["eta"] else ""
        lines.append(
            f"| {row['solver']}{eta}, {row['grid']} | {row['nfe']} | {row['timing']} | {row['untuned']:.2f} | {row['tuned']:.2f} "
            f"| {100 * row['change']:+.0f} % |"
        )
    return "\n".join(lines) + "\n"


def _reasons(worse: pd.DataFrame) -> list[str]:
    from tt_lib.solvers.registry import make_solver

    history = worse["solver"].map(lambda solver: make_solver(solver).history > 0)
    consistency = worse["timing"].str.startswith("consistency")
    present = {
        "consistency, history": (consistency & history).any(),
        "consistency, many steps": (consistency & (worse["nfe"] >= 15)).any(),
        "truncation": worse["timing"].str.startswith("truncation").any(),
    }
    return [reason for reason, there in present.items() if there]


def _ablations(frame: pd.DataFrame) -> Iterator[str]:
    """A table for each question, over the samplers that have rows with an option or a rival; both features side by side."""
    parts = [(features, n, rows) for features, n, rows in _groups(frame) if n != README_N]
    known = [rows.assign(column=f"{features}, NFE ") for features, _, rows in parts]
    if not known:
        return
    rows = pd.concat(known)
    rows = rows[rows["timing"] != UNTUNED].assign(family=lambda each: each["timing"].map(family))
    asked = rows[rows["family"] != PLAIN]
    if asked.empty:
        return
    yield f"## Ablations, {parts[0][1]:,} samples\n\nWhat a timing's name does not say is as in [ablations.toml](../tables/ablations.toml). In bold: the smallest value of a column, with half of its 95 % interval.\n"
    whole = pd.concat(known).merge(asked[SAMPLER].drop_duplicates(), on=SAMPLER)
    whole = whole.assign(column=whole["column"] + whole["nfe"].astype(str))
    for (solver, grid), group in whole.groupby(["solver", "grid"], sort=False):
        mine = asked[(asked["solver"] == solver) & (asked["grid"] == grid)]
        for question in dict.fromkeys([PLAIN, *mine["family"]]):
            yield f"{question} ({solver}, {grid}):\n\n{_ablation(group, question)}"


def _ablation(rows: pd.DataFrame, question: str) -> str:
    mine = {timing for timing in rows["timing"] if timing == UNTUNED or family(timing) == question}
    # What an option changes stands beside it: the same timing without.
    mine |= {base_name(timing) for timing in mine}
    shown = rows[rows["timing"].isin(mine)]
    shown = shown.assign(half=(shown["high"] - shown["low"]) / 2)
    table, halves = (
        shown.pivot_table(index="timing", columns="column", values=name, sort=False) for name in ("value", "half")
    )
    lines = [f"| timing | {' | '.join(table.columns)} |", f"| --- |{' ---: |' * len(table.columns)}"]
    best = table.min()
    for timing, values in table.iterrows():
        cells = [
            _number(value, halves.loc[timing, column] if value == best[column] else None)
            for column, value in values.items()
        ]
        lines.append(f"| {timing} | {' | '.join(cells)} |")
    if "seed" in question.lower():
        plain = table.drop(UNTUNED, errors="ignore")
        kinds = plain.groupby([str(timing).split(",")[0] for timing in plain.index], sort=False)
        for kind, group in kinds:
            cells = [f"{group[column].mean():.2f} ± {group[column].std():.2f}" for column in table.columns]
            lines.append(f"| {kind}: mean and standard deviation of {len(group)} seeds | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _number(value: float, half: float | None) -> str:
    """A value; in bold with half of its interval, if that is given."""
    if pd.isna(value):
        return ""
    return f"{value:.2f}" if half is None else f"**{value:.2f} ± {half:.2f}**"


def _agreement(correlation: pd.DataFrame) -> Iterator[str]:
    if correlation.empty:
        return
    lines = ["| between | among | samplers | n | Spearman | 95 % |", "| --- | --- | ---: | ---: | ---: | --- |"]
    for row in correlation.to_dict("records"):
        lines.append(
            f"| {row['what']} | {row['among']} | {row['cells']} | {row['n']:,} | {row['spearman']:.2f} | {row['low']:.2f} to {row['high']:.2f} |"
        )
    yield (
        f"## Rank correlations\n\nOf the two features with each other, over samplers and timings with distances of n samples. And of measures of the direction error of n samples with the distance "
        f"(*Fréchet distance* is that in `{FEATURES}`): errors of 256 samples are of the README's samplers, of 64 of the study's. The intervals are from drawing samplers again, with replacement.\n\n"
        + "\n".join(lines)
        + "\n"
    )


def _more(frame: pd.DataFrame) -> Iterator[str]:
    """Whatever else was measured of samples, a table for each features: distances at infinite n, kernel distances, precision, recall, gains."""
    plain = frame["metric"] == frame["features"].map(metric_of)
    rows = frame[~plain & (frame["model"] == MODEL)]
    if rows.empty:
        return
    yield (
        "## Other measures\n\nThe distance that infinitely many samples would have, a kernel distance, precision and recall, and what tuning gains, "
        "compared seed by seed with the untuned samples (positive is better). Behind a value stands its 95 % interval, where it has one.\n"
    )
    for features, group in rows.groupby("features", sort=False):
        group = group.assign(metric=group["metric"].str.replace(f" ({features})", "", regex=False))
        metrics = list(dict.fromkeys(group["metric"]))
        lines = [
            f"| sampler | NFE | timing | {' | '.join(metrics)} |",
            f"| --- | ---: | --- |{' ---: |' * len(metrics)}",
        ]
        for (solver, grid, nfe, timing), cell in group.groupby([*SAMPLER[:3], "timing"], sort=False):
            found = cell.drop_duplicates("metric", keep="last").set_index("metric")
            values = [_with_interval(found.loc[metric]) if metric in found.index else "" for metric in metrics]
            lines.append(f"| {solver}, {grid} | {nfe} | {timing} | {' | '.join(values)} |")
        yield (
            f"In `{features}`, {', '.join(f'{n:,}' for n in sorted(group['n'].unique()))} samples:\n\n"
            + "\n".join(lines)
            + "\n"
        )


def _with_interval(row: pd.Series) -> str:
    return f"{row['value']:.3g}" + ("" if pd.isna(row["low"]) else f" ({row['low']:.3g} to {row['high']:.3g})")


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{text}\n</details>\n"


def _floor(frame: pd.DataFrame) -> str:
    lines = ["## The floor\n", "What real images that the reference does not hold are away from it:\n"]
    for row in frame[frame["solver"] == "floor"].to_dict("records"):
        lines.append(
            f"- {row['metric']}, {row['n']:,} test images: {row['value']:.3f} ± {(row['high'] - row['low']) / 2:.3f}"
        )
    return "\n".join(lines) + "\n"
