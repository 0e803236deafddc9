"""Whether two kinds of features put samplers in the same order, as rows of ``correlation.csv``.

One network may be fooled, the more so where a timing was tuned by a distance in its features. What is said of samplers should hold
in features that share nothing with it.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from tt_lib.direction_study import FEWEST, GROUPS, JOINED, spearman_interval
from tt_lib.errors import BadValue
from tt_lib.metrics.features import metric_of
from tt_lib.results import provenance
from tt_lib.timing import UNTUNED


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


def agreement(distances: pd.DataFrame, first: str, second: str, model: str, n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Spearman's rank correlation of the distances in two features: among all samplers, the untuned and the tuned.

    Args:
        distances, first, second, model, n: see :func:`beside_each_other`.
        seed: of the interval's draws, see :func:`tt_lib.direction_study.spearman_interval`.

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
            rows.append({
                "what": f"{first}, {second}, {model}", "among": among, "cells": len(group), "spearman": value, "low": low,
                "high": high, "n": n, "substeps": None, **provenance(),
            })  # fmt: skip
    return rows
