"""The study of the shipped CIFAR-10 network, and what its rows say of each other: tuned and untuned, two features."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from tt_lib.errors import BadValue
from tt_lib.metrics.features import IMAGENET, metric_of
from tt_lib.networks.unet import PRETRAINED
from tt_lib.timing import UNTUNED

MODEL = PRETRAINED["cifar10"]
STRAIGHT = f"{MODEL},path=flow"
"""The same network on the straight path of flow matching."""
SMALL = "cifar10-ddpm-w64"
"""The network of ``network.toml``, of 9 million parameters: what was learned for the shipped one is used on it."""
FEATURES = (IMAGENET, "cifar10-resnet")
"""The primary metric's features, then the second's."""
N, FEW = 10_000, (4, 5, 6, 8, 10)
"""Samples of a distance, and the numbers of evaluations that samplers are compared at."""
BEST = {"solver": "unipc", "timing": "learned-grid-timing-gain,iterations=1000"}
"""The learned sampler of the headline: of all its losses on held-out noise, the sum over :data:`FEW` is the least."""
SAMPLER = ["solver", "grid", "nfe", "eta"]
JOINED = ["model", "weights", *SAMPLER, "timing"]
"""Columns that name a sampler with its timing."""
BETTER, WORSE, SAME = "better", "worse", "the intervals overlap"


def distances(frame: pd.DataFrame, features: str, n: int, model: str) -> pd.DataFrame:
    """Rows of plain Fréchet distances: of one network's samples, in one kind of features, from ``n`` samples.

    Raises:
        BadValue: they are of two networks of that name.
    """
    own = (frame["features"] == features) & (frame["metric"] == metric_of(features))
    rows = frame[own & (frame["n"] == n) & (frame["model"] == model)]
    if len(several := rows["weights"].unique()) > 1:
        raise BadValue(
            f"the rows are of {len(several)} networks called {model!r}, of the weights {', '.join(map(str, several))}; "
            "keep those of one"
        )
    return rows


def changes(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each tuned row that has an untuned one beside it.

    Args:
        rows: of :func:`distances`.

    Returns:
        Columns of :data:`SAMPLER`, ``timing``, ``untuned``, ``tuned``, ``change`` (tuned / untuned - 1) and
        ``verdict``: :data:`BETTER` or :data:`WORSE` where the 95 % intervals do not overlap. The largest gain comes
        first.
    """
    untuned, tuned = rows[rows["timing"] == UNTUNED], rows[rows["timing"] != UNTUNED]
    both = tuned.merge(untuned[[*SAMPLER, "value", "low", "high"]], on=SAMPLER, suffixes=("", "_untuned"))
    found = both[[*SAMPLER, "timing"]].assign(
        untuned=both["value_untuned"],
        tuned=both["value"],
        change=both["value"] / both["value_untuned"] - 1,
        verdict=np.select(
            [both["high"] < both["low_untuned"], both["low"] > both["high_untuned"]], [BETTER, WORSE], SAME
        ),
    )
    return found.sort_values("change", kind="stable", ignore_index=True)


def changes_in_both(frame: pd.DataFrame, features: tuple[str, str], n: int, model: str) -> pd.DataFrame:
    """:func:`changes` in one kind of features beside those in another.

    Args:
        frame: rows of ``fd.csv``.
        features: the two, by name.
        n, model: see :func:`distances`.

    Returns:
        A row for each tuned sampler that has all four rows. Columns of :data:`SAMPLER`, ``timing``, ``change_first``,
        ``verdict_first``, ``change_second`` and ``verdict_second``.

    Raises:
        BadValue: one and the same features.
    """
    _check_different(features)
    key = [*SAMPLER, "timing"]
    first, second = (changes(distances(frame, each, n, model))[[*key, "change", "verdict"]] for each in features)
    return first.merge(second, on=key, suffixes=("_first", "_second"))


def beside_each_other(frame: pd.DataFrame, first: str, second: str, model: str, n: int) -> pd.DataFrame:
    """The samplers that were measured in both features, from the same seeds.

    Args:
        frame: rows of ``fd.csv``.
        first, second: names of the features.
        model, n: see :func:`distances`.

    Returns:
        Columns of :data:`JOINED`, the distances ``first`` and ``second``, and their intervals' ends, as in
        ``first_low``.

    Raises:
        BadValue: one and the same features.
    """
    _check_different((first, second))
    same = ["dataset", *JOINED, "reference", "seed"]
    one, other = (
        distances(frame, features, n, model)[[*same, "value", "low", "high"]].rename(
            columns={"value": name, "low": f"{name}_low", "high": f"{name}_high"}
        )
        for name, features in (("first", first), ("second", second))
    )
    return one.merge(other, on=same)


def half(row: Any, name: str) -> Any:
    """Half of the 95 % interval of a distance that has the columns ``name``, ``name_low`` and ``name_high``."""
    return (row[f"{name}_high"] - row[f"{name}_low"]) / 2


def margin(row: Any, other: Any, name: str) -> Any:
    """Half of the 95 % interval of the difference of two samplers' distances.

    The samplers are taken for independent. From the same noise the interval of pairs is usually narrower; it needs the
    samples, and rows do not hold them.
    """
    return np.hypot(half(row, name), half(other, name))


def _check_different(features: tuple[str, str]) -> None:
    if features[0] == features[1]:
        raise BadValue(f"two different kinds of features are needed, got {features[0]!r} twice")
