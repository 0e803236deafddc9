"""What tuning did to each sampler, from the rows of ``fd.csv``: every tuned row beside the untuned one of its sampler, and in two features."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from tt_lib.corrections import read_correction
from tt_lib.errors import BadValue
from tt_lib.metrics.features import gain_of, metric_of
from tt_lib.names import parse_timing
from tt_lib.timing import UNTUNED
from tt_lib.tuning.joint import END, JOINT
from tt_lib.tuning.rivals import read_constant

SAMPLER = ["solver", "grid", "nfe", "eta"]
BETTER, WORSE, SAME = "better", "worse", "the intervals overlap"
AGREED_BETTER, AGREED_WORSE, UNDECIDED = "better in both", "worse in both", "not told apart in both"
FAMILIES = {
    "gate": "A gate for each step", "source": "Real images or the network's own", "images": "Number of images",
    "freeze_last": "Steps at the end that keep their own time", "value": "Ratio or offset", "seed": "Seeds of the tuning",
    "optimiser": "Adam, its iterations and learning rate", "samples": "Samples of a joint tuning", "tries": "Tries of a joint tuning",
}  # fmt: skip
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
        untuned=both["value_untuned"], tuned=both["value"], change=both["value"] / both["value_untuned"] - 1, verdict=SAME
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
    found = found.merge(plain.loc[plain["timing"] == UNTUNED, [*SAMPLER, "half"]], on=SAMPLER).rename(columns={"half": "half_untuned"})
    found = found.assign(half=(found["high"] - found["low"]) / 2, unpaired=np.hypot(found.pop("half_tuned"), found.pop("half_untuned")))
    return found.assign(sure=(found["low"] > 0) | (found["high"] < 0), sure_unpaired=found["gain"].abs() > found["unpaired"])
