"""What tuning did to each sampler, from the rows of ``fd.csv``: every tuned row beside the untuned one of its sampler."""

from __future__ import annotations

import re

import pandas as pd

from tt_lib.corrections import read_correction
from tt_lib.names import parse_timing
from tt_lib.timing import UNTUNED
from tt_lib.tuning.joint import JOINT
from tt_lib.tuning.rivals import read_constant

SAMPLER = ["solver", "grid", "nfe", "eta"]
BETTER, WORSE, SAME = "better", "worse", "the intervals overlap"
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
    plain = (frame["features"] == features) & frame["metric"].isin(("FID", f"FD ({features})"))
    return frame[plain & (frame["n"] == n) & (frame["model"] == model)]


def family(timing: str) -> str:
    """Which question of the ablations a timing answers: one of :data:`FAMILIES`, or of the three plain kinds."""
    if read_correction(timing) is not None:
        return CORRECTED
    if read_constant(timing) is not None:
        return CONSTANT
    named = parse_timing(timing)
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
