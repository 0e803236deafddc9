"""What tuning did to each sampler, from the rows of ``fd.csv``: every tuned row beside the untuned one of its sampler, and in two features."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from tt_lib.baselines import read_constant, read_correction
from tt_lib.errors import BadValue
from tt_lib.metrics.direction import MEASURES
from tt_lib.metrics.features import gain_of, metric_of
from tt_lib.rows import (
    provenance,
)
from tt_lib.study.cells import parse_timing
from tt_lib.timing import UNTUNED
from tt_lib.tuning.joint import END, JOINT

SAMPLER = ["solver", "grid", "nfe", "eta"]
BETTER, WORSE, SAME = "better", "worse", "the intervals overlap"
AGREED_BETTER, AGREED_WORSE, UNDECIDED = "better in both", "worse in both", "not told apart in both"
FAMILIES = {
    "gate": "A gate for each step",
    "source": "Real images or the network's own",
    "images": "Number of images",
    "freeze_last": "Steps at the end that keep their own time",
    "value": "Ratio or offset",
    "seed": "Seeds of the tuning",
    "optimiser": "Adam, its iterations and learning rate",
    "samples": "Samples of a joint tuning",
    "tries": "Tries of a joint tuning",
}
"""What an option of a timing's name is a question of."""
JOINT_SEARCH = "How a joint tuning searches"
PLAIN, CORRECTED, CONSTANT = "Objective and strategy", "Corrections without tuning", "One constant ratio for all steps"


def distances(frame: pd.DataFrame, features: str, n: int, model: str) -> pd.DataFrame:
    """Rows of plain Fréchet distances: of one network's samples, in one kind of features, from ``n`` samples."""
    plain = (frame["features"] == features) & (frame["metric"] == metric_of(features))
    return frame[plain & (frame["n"] == n) & (frame["model"] == model)]


def family(timing: str) -> str:
    """Which question of the ablations a timing answers: one of :data:`FAMILIES`, or of the three plain kinds."""
    if read_correction(timing) is not None:
        return CORRECTED
    if read_constant(timing) is not None:
        return CONSTANT
    named = parse_timing(timing)
    if named["objective"] == END:
        # An objective of its own, however long it searches.
        return PLAIN
    if named["strategy"] == JOINT and "optimiser" in named:
        return JOINT_SEARCH
    options = [FAMILIES[option] for option in ("optimiser", *FAMILIES) if option in named]
    return options[0] if options else PLAIN


def base_name(timing: str) -> str:
    """The timing without its options: ``truncation-parallel`` of ``truncation-parallel-freeze2,images=16``."""
    return re.sub(r"-freeze\d+$", "", timing.split(",")[0])


def changes(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each tuned row that has an untuned one beside it.

    Args:
        rows: of :func:`distances`.

    Returns:
        Columns of :data:`SAMPLER`, ``timing``, ``untuned``, ``tuned``, ``change`` (tuned / untuned - 1) and ``verdict``:
        :data:`BETTER` or :data:`WORSE` where the 95 % intervals do not overlap.
    """
    untuned = rows[rows["timing"] == UNTUNED]
    tuned = rows[rows["timing"] != UNTUNED]
    both = tuned.merge(untuned[[*SAMPLER, "value", "low", "high"]], on=SAMPLER, suffixes=("", "_untuned"))
    found = both[[*SAMPLER, "timing"]].assign(
        untuned=both["value_untuned"],
        tuned=both["value"],
        change=both["value"] / both["value_untuned"] - 1,
        verdict=SAME,
    )
    found.loc[both["high"] < both["low_untuned"], "verdict"] = BETTER
    found.loc[both["low"] > both["high_untuned"], "verdict"] = WORSE
    return found.sort_values("change", kind="stable", ignore_index=True)


def changes_in_both(frame: pd.DataFrame, features: tuple[str, str], n: int, model: str) -> pd.DataFrame:
    """What tuning did by two judges: :func:`changes` in one kind of features beside those in another.

    Args:
        frame: rows of ``fd.csv``.
        features: the two, by name.
        n, model: see :func:`distances`.

    Returns:
        A row for each tuned sampler that has all four rows. Columns of :data:`SAMPLER`, ``timing``, ``change_first``, ``verdict_first``,
        ``change_second``, ``verdict_second`` and ``together``: :data:`AGREED_BETTER`, :data:`AGREED_WORSE`, ``better in <features> only`` where the
        other judge calls it worse, and :data:`UNDECIDED` where the intervals overlap in one of the two.

    Raises:
        BadValue: one and the same features.
    """
    if features[0] == features[1]:
        raise BadValue(f"two different features are compared, got {features[0]!r} twice")
    key = [*SAMPLER, "timing"]
    first, second = (changes(distances(frame, each, n, model))[[*key, "change", "verdict"]] for each in features)
    found = first.merge(second, on=key, suffixes=("_first", "_second")).assign(together=UNDECIDED)
    for one, other, called in (
        (BETTER, BETTER, AGREED_BETTER),
        (WORSE, WORSE, AGREED_WORSE),
        (BETTER, WORSE, f"better in {features[0]} only"),
        (WORSE, BETTER, f"better in {features[1]} only"),
    ):
        found.loc[(found["verdict_first"] == one) & (found["verdict_second"] == other), "together"] = called
    return found


def paired_gains(frame: pd.DataFrame, features: str, n: int, model: str) -> pd.DataFrame:
    """The gains that were measured seed by seed (rows ``gain of FD``), beside what two rows alone say of them.

    Args:
        frame: rows of ``fd.csv``.
        features, n, model: see :func:`distances`.

    Returns:
        Columns of :data:`SAMPLER`, ``timing``, ``gain``, ``low``, ``high``; ``half``, half of the paired interval; ``unpaired``, the same from the
        intervals of the two rows, whose variances add up where nothing is paired; ``sure`` and ``sure_unpaired``: whether 0 lies outside.
    """
    key = [*SAMPLER, "timing"]
    plain = distances(frame, features, n, model)
    plain = plain.assign(half=(plain["high"] - plain["low"]) / 2)
    gains = frame[(frame["metric"] == gain_of(features)) & (frame["n"] == n) & (frame["model"] == model)]
    found = gains[[*key, "value", "low", "high"]].rename(columns={"value": "gain"})
    found = found.merge(plain[[*key, "half"]], on=key).rename(columns={"half": "half_tuned"})
    found = found.merge(plain.loc[plain["timing"] == UNTUNED, [*SAMPLER, "half"]], on=SAMPLER).rename(
        columns={"half": "half_untuned"}
    )
    found = found.assign(
        half=(found["high"] - found["low"]) / 2, unpaired=np.hypot(found.pop("half_tuned"), found.pop("half_untuned"))
    )
    return found.assign(
        sure=(found["low"] > 0) | (found["high"] < 0), sure_unpaired=found["gain"].abs() > found["unpaired"]
    )


# FOLDED tt_lib.study.compare
# Whether two kinds of features put samplers in the same order, as rows of ``correlation.csv``.
#
# One network may be fooled, the more so where a timing was tuned by a distance in its features. What is said of samplers should hold
# in features that share nothing with it.
#


def beside_each_other(distances: pd.DataFrame, first: str, second: str, model: str, n: int) -> pd.DataFrame:
    """The samplers that were measured in both features, from the same seeds: their distances ``first`` and ``second``.

    Args:
        distances: rows of ``fd.csv``.
        first, second: names of the features.
        model, n: of which network, and from how many samples.
    """
    rows = distances[(distances["model"] == model) & (distances["n"] == n)]
    same = ["dataset", *JOINED, "reference", "seed"]
    found = []
    for name, features in (("first", first), ("second", second)):
        own = rows[(rows["features"] == features) & (rows["metric"] == metric_of(features))]
        found.append(own[[*same, "value"]].rename(columns={"value": name}))
    return found[0].merge(found[1], on=same)


def agreement(
    distances: pd.DataFrame, first: str, second: str, model: str, n: int, seed: int = 0
) -> list[dict[str, Any]]:
    """Spearman's rank correlation of the distances in two features: among all samplers, the untuned and the tuned.

    Args:
        distances, first, second, model, n: see :func:`beside_each_other`.
        seed: of the interval's draws, see :func:`tt_lib.study.compare.spearman_interval`.

    Returns:
        Rows of ``correlation.csv``, one for each group of five samplers or more.

    Raises:
        BadValue: one and the same features, or fewer than five samplers that were measured in both.
    """
    if first == second:
        raise BadValue(f"two different features are compared, got {first!r} twice")
    joined = beside_each_other(distances, first, second, model, n)
    if len(joined) < FEWEST:
        raise BadValue(
            f"{len(joined)} samplers of {model} have rows of {n} samples in both {first} and {second}, at least {FEWEST} are "
            "needed; measure more with `tt table`"
        )
    tuned = joined["timing"] != UNTUNED
    parts = dict(zip(GROUPS, (joined, joined[~tuned], joined[tuned]), strict=True))
    rows = []
    for among, group in parts.items():
        if len(group) >= FEWEST:
            value, low, high = spearman_interval(group["first"].to_numpy(), group["second"].to_numpy(), seed)
            rows.append(
                {
                    "what": f"{first}, {second}, {model}",
                    "among": among,
                    "cells": len(group),
                    "spearman": value,
                    "low": low,
                    "high": high,
                    "n": n,
                    "substeps": None,
                    **provenance(),
                }
            )
    return rows


# FOLDED tt_lib.study.directions
# Direction errors of many samplers as rows of ``direction.csv``, and whether they predict the Fréchet distance.


JOINED = ["model", "solver", "grid", "nfe", "eta", "timing"]
GROUPS = ("all", "untuned", "tuned")
BOOTSTRAPS = 1000
FEWEST = 5
"""Samplers that a rank correlation is taken of."""


def summarise(directions: pd.DataFrame) -> pd.DataFrame:
    """One row for each sampler: means over its steps of angle, relative and local error, the error at the end, and the largest doubt of a step."""
    if directions.empty:
        raise BadValue("no rows of directions; measure some with `tt direction`")
    groups = directions.sort_values("step").groupby([*JOINED, "n", "seed", "substeps"], sort=False)
    means = groups[["angle", "relative", "local"]].mean()
    return means.assign(accumulated=groups["accumulated"].last(), doubt=groups["doubt"].max()).reset_index()


def beside_distances(directions: pd.DataFrame, distances: pd.DataFrame) -> pd.DataFrame:
    """:func:`summarise`, with the Fréchet distance (``value``) of each sampler that has one; the others are left out.

    Args:
        directions: rows of ``direction.csv``.
        distances: rows of ``fd.csv`` of one kind of features and one number of samples.

    Raises:
        BadValue: two distances of one sampler.
    """
    repeated = distances[distances.duplicated(JOINED)]
    if len(repeated):
        row = repeated.iloc[0]
        raise BadValue(
            f"several distances of {row['solver']}, {row['grid']}, NFE {row['nfe']}, {row['timing']}; keep one of them"
        )
    return summarise(directions).merge(distances[[*JOINED, "value"]], on=JOINED)


def correlations(joined: pd.DataFrame, seed: int = 0, distance: str = "Fréchet distance") -> list[dict[str, Any]]:
    """Spearman's rank correlation of each measure with the distance, as rows of ``correlation.csv``.

    Among all samplers, among the untuned and among the tuned; low and high bound 95 % of the correlations of
    :data:`BOOTSTRAPS` samples of the samplers with replacement. Groups of fewer than five samplers are left out.

    Args:
        joined: what :func:`beside_distances` gives.
        seed: of those draws.
        distance: what the rows call the distance.
    """
    rows = []
    for among in GROUPS:
        tuned = joined["timing"] != UNTUNED
        group = joined if among == "all" else joined[tuned if among == "tuned" else ~tuned]
        if len(group) < FEWEST:
            continue
        for name in MEASURES:
            value, low, high = spearman_interval(group[name].to_numpy(), group["value"].to_numpy(), seed)
            rows.append(
                {
                    "what": f"{name}, {distance}",
                    "among": among,
                    "cells": len(group),
                    "spearman": value,
                    "low": low,
                    "high": high,
                    "n": int(group["n"].iloc[0]),
                    "substeps": int(group["substeps"].iloc[0]),
                    **provenance(),
                }
            )
    return rows


def spearman_interval(a: np.ndarray, b: np.ndarray, seed: int) -> tuple[float, float, float]:
    """Spearman's rank correlation of two columns, and what bounds 95 % of those of :data:`BOOTSTRAPS` draws of rows."""
    generator = np.random.default_rng(seed)
    picks = generator.integers(len(a), size=(BOOTSTRAPS, len(a)))
    # A draw of one sampler over and over has no ranks to compare.
    again = [spearmanr(a[pick], b[pick]).statistic for pick in picks if len(set(pick)) > 2]
    low, high = np.nanquantile(again, [0.025, 0.975])
    return tuple(round(float(value), 3) for value in (spearmanr(a, b).statistic, low, high))  # type: ignore[return-value]
