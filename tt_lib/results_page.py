"""The page ``data/results/README.md``: all tables, made from the rows beside it and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from tt_lib.changes import BETTER, PLAIN, SAMPLER, WORSE, base_name, changes, distances, family
from tt_lib.direction_table import direction_section
from tt_lib.metrics.features import metric_of
from tt_lib.report import BOTH_N, FEATURES, OTHERS, README_N, results_table
from tt_lib.timing import UNTUNED

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
    parts = [HEAD, *_main_tables(frame), *_studies(frame), *_verdicts(frame), *_ablations(frame), *_agreement(correlation)]
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
        plain = rows[[timing == UNTUNED or (family(timing) == PLAIN and "," not in timing) for timing in rows["timing"]]]
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
        return f"**{row['value']:.2f} ± {(row['high'] - row['low']) / 2:.2f}**" if row["value"] == best else f"{row['value']:.2f}"

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
            yield "What is thought to be behind some of them (the others have no explanation here):\n\n" + "".join(f"- {WHY[reason]}\n" for reason in _reasons(worse))


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
    from tt_lib.solvers import make_solver

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
    table, halves = (shown.pivot_table(index="timing", columns="column", values=name, sort=False) for name in ("value", "half"))
    lines = [f"| timing | {' | '.join(table.columns)} |", f"| --- |{' ---: |' * len(table.columns)}"]
    best = table.min()
    for timing, values in table.iterrows():
        cells = [_number(value, halves.loc[timing, column] if value == best[column] else None) for column, value in values.items()]
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
        + "\n".join(lines) + "\n"
    )  # fmt: skip


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
        lines = [f"| sampler | NFE | timing | {' | '.join(metrics)} |", f"| --- | ---: | --- |{' ---: |' * len(metrics)}"]
        for (solver, grid, nfe, timing), cell in group.groupby([*SAMPLER[:3], "timing"], sort=False):
            found = cell.drop_duplicates("metric", keep="last").set_index("metric")
            values = [_with_interval(found.loc[metric]) if metric in found.index else "" for metric in metrics]
            lines.append(f"| {solver}, {grid} | {nfe} | {timing} | {' | '.join(values)} |")
        yield f"In `{features}`, {', '.join(f'{n:,}' for n in sorted(group['n'].unique()))} samples:\n\n" + "\n".join(lines) + "\n"


def _with_interval(row: pd.Series) -> str:
    return f"{row['value']:.3g}" + ("" if pd.isna(row["low"]) else f" ({row['low']:.3g} to {row['high']:.3g})")


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{text}\n</details>\n"


def _floor(frame: pd.DataFrame) -> str:
    lines = ["## The floor\n", "What real images that the reference does not hold are away from it:\n"]
    for row in frame[frame["solver"] == "floor"].to_dict("records"):
        lines.append(f"- {row['metric']}, {row['n']:,} test images: {row['value']:.3f} ± {(row['high'] - row['low']) / 2:.3f}")
    return "\n".join(lines) + "\n"
