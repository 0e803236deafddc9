"""Direction errors beside the distances, as tables of the results page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from tt_lib.changes import BETTER, SAME, SAMPLER, WORSE, changes, distances
from tt_lib.direction import MEASURES
from tt_lib.direction_study import FEWEST, JOINED, summarise
from tt_lib.timing import UNTUNED

TITLE = "## Direction errors beside the distances"
TOLD = 0.02
"""Errors that differ by less than this share count as the same."""
LOWER, AS_IT_WAS, HIGHER = "lower", "the same", "higher"


def direction_section(directions: pd.DataFrame, frame: pd.DataFrame, model: str, features: Sequence[str], n: int) -> Iterator[str]:
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


def errors_and_distances(directions: pd.DataFrame, frame: pd.DataFrame, model: str, features: Sequence[str], n: int) -> pd.DataFrame:
    """Direction errors of each sampler and timing (:func:`tt_lib.direction_study.summarise`), with its distances.

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
        found = found.merge(distances(frame, each, n, model)[[*JOINED, "value"]].rename(columns={"value": each}), on=JOINED, how="left")
    return found.dropna(subset=list(features), how="all").assign(tuned=lambda rows: rows["timing"] != UNTUNED)


def what_tuning_did(measured: pd.DataFrame, frame: pd.DataFrame, model: str, features: Sequence[str], n: int) -> pd.DataFrame:
    """What each timing did to the error at the end of the run, and to the distance.

    Args:
        measured: of :func:`errors_and_distances`, not empty.
        frame, model, features, n: see there.

    Returns:
        A row for each tuned timing whose errors and whose untuned sampler's were measured on the same samples: its ``objective``,
        where the error ``went`` (:data:`LOWER`, :data:`AS_IT_WAS` or :data:`HIGHER`), and a column for each of the features with the
        verdict of :func:`tt_lib.changes.changes`.
    """
    same = [*SAMPLER, "n", "substeps"]
    plain = measured.loc[~measured["tuned"], [*same, "accumulated"]]
    pairs = measured[measured["tuned"]].merge(plain, on=same, suffixes=("", "_untuned")).drop_duplicates(JOINED, keep="last")
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
    return pd.DataFrame({
        (nfe, judge): [group[measure].corr(group[judge], method="spearman") for measure in MEASURES]
        for nfe, group in measured.groupby("nfe") for judge in features
    }, index=list(MEASURES))  # fmt: skip


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
    lines = [f"| {by} | error at the end | timings | {' | '.join(features)} |", f"| --- | --- | ---: |{' ---: |' * len(features)}"]
    for value, of_value in pairs.groupby(by, observed=True):
        for went in (LOWER, AS_IT_WAS, HIGHER):
            group = of_value[of_value["went"] == went]
            cells = [" / ".join(str((group[each] == verdict).sum()) for verdict in (BETTER, SAME, WORSE)) for each in features]
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
