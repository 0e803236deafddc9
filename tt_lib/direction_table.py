"""Direction errors beside the distances, as tables of the results page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from tt_lib.changes import BETTER, SAME, SAMPLER, WORSE, changes, distances
from tt_lib.direction_study import JOINED, summarise
from tt_lib.timing import UNTUNED

TITLE = "## Direction errors beside the distances"
TOLD = 0.02
"""Errors that differ by less than this share count as the same."""
LOWER, AS_IT_WAS, HIGHER = "lower", "the same", "higher"


def direction_section(directions: pd.DataFrame, frame: pd.DataFrame, model: str, features: Sequence[str], n: int) -> Iterator[str]:
    """The section of the page: what tuning does to error and distance, and a line for each sampler and timing; nothing without rows.

    Args:
        directions, frame: rows of ``direction.csv`` and of ``fd.csv``.
        model: whose samplers.
        features, n: of the distances that stand beside the errors; a sampler with none of them is left out.
    """
    known = [distances(frame, each, n, model) for each in features]
    measured = _joined([rows for rows in known if len(rows)], directions[directions["model"] == model])
    if measured.empty:
        return
    beside = measured.drop_duplicates(JOINED, keep="last").sort_values(["grid", "solver", "nfe", "tuned", "timing"])
    names = [column for column in beside if column.startswith("FD")]
    yield (
        f"{TITLE}\n\nOf `direction.csv`: how far the direction of a step is from the mean of eps along the true trajectory (mean over the steps, as an angle and as a share of its "
        "length), and how far from the end of the true trajectory of its own noise a sample ends (root mean square over pixels, which go from -1 to 1). Distances are of "
        f"{n:,} samples, errors of as many as the last column says. Samplers that draw noise follow no trajectory.\n"
    )
    table = _what_tuning_does(measured, frame, model, features, n)
    if table:
        yield (
            "What tuning does to the error at the end, and what to the distance: how many timings are better than untuned beyond the intervals / not told apart / worse. "
            f"(Errors are of the same noise; a change of less than {100 * TOLD:.0f} % counts as none.)\n\n{table}"
        )
    for grid, group in beside.groupby("grid", sort=False):
        yield f"<details><summary>Grid {grid}: {len(group)} samplers and timings</summary>\n\n{_lines(group, names)}\n</details>\n"


def _joined(known: Sequence[pd.DataFrame], directions: pd.DataFrame) -> pd.DataFrame:
    """Errors and distances of each sampler and timing; of several measurements of its errors that of most samples comes last."""
    if directions.empty or not known:
        return pd.DataFrame(columns=JOINED)
    found = summarise(directions).sort_values("n", kind="stable")
    for rows in known:
        found = found.merge(rows[[*JOINED, "value"]].rename(columns={"value": rows["metric"].iloc[0]}), on=JOINED, how="left")
    found = found.dropna(subset=[column for column in found if column.startswith("FD")], how="all")
    return found.assign(tuned=found["timing"] != UNTUNED)


def _what_tuning_does(measured: pd.DataFrame, frame: pd.DataFrame, model: str, features: Sequence[str], n: int) -> str:
    """A line for each objective and each way the error at the end went: the verdicts on the distance, in each of the features."""
    plain = measured[~measured["tuned"]]
    # The same samples, or the errors of two timings differ by more than what the timings did.
    pairs = measured[measured["tuned"]].merge(plain[[*SAMPLER, "n", "substeps", "accumulated"]], on=[*SAMPLER, "n", "substeps"], suffixes=("", "_untuned"))
    pairs = pairs.drop_duplicates(JOINED, keep="last")
    if pairs.empty:
        return ""
    change = pairs["accumulated"] / pairs["accumulated_untuned"] - 1
    pairs = pairs.assign(objective=pairs["timing"].str.split("-").str[0], went=AS_IT_WAS)
    pairs.loc[change < -TOLD, "went"], pairs.loc[change > TOLD, "went"] = LOWER, HIGHER
    for each in features:
        verdicts = changes(distances(frame, each, n, model))[[*SAMPLER, "timing", "verdict"]]
        pairs = pairs.merge(verdicts.rename(columns={"verdict": each}), on=[*SAMPLER, "timing"], how="left")
    lines = [f"| objective | error at the end | timings | {' | '.join(features)} |", f"| --- | --- | ---: |{' ---: |' * len(features)}"]
    for objective, of_objective in pairs.groupby("objective"):
        for went in (LOWER, AS_IT_WAS, HIGHER):
            group = of_objective[of_objective["went"] == went]
            cells = [" / ".join(str((group[each] == verdict).sum()) for verdict in (BETTER, SAME, WORSE)) for each in features]
            if len(group):
                lines.append(f"| {objective} | {went} | {len(group)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _lines(rows: pd.DataFrame, names: Sequence[str]) -> str:
    head = [*names, "angle", "relative error", "error at the end", "n"]
    lines = [f"| solver | NFE | timing | {' | '.join(head)} |", f"| --- | ---: | --- |{' ---: |' * len(head)}"]
    for row in rows.to_dict("records"):
        values = ["" if pd.isna(row[name]) else f"{row[name]:.2f}" for name in names]
        errors = [f"{row['angle']:.2f}°", f"{100 * row['relative']:.1f} %", f"{row['accumulated']:.4f}", str(row["n"])]
        eta = f", eta {row['eta']:g}" if row["eta"] else ""
        lines.append(f"| {row['solver']}{eta} | {row['nfe']} | {row['timing']} | {' | '.join([*values, *errors])} |")
    return "\n".join(lines) + "\n"
