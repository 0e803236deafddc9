"""What needs no tuning: the rivals that a tuned timing has to beat."""

from __future__ import annotations

import re

import torch

from tt_lib.errors import BadValue
from tt_lib.results import provenance
from tt_lib.sampling import Sampler
from tt_lib.timing import Timing
from tt_lib.tuning.layout import layout

CONSTANT = "constant"


def read_constant(name: str) -> float | None:
    """``constant-0.95`` -> 0.95; None for names of another form.

    Raises:
        BadValue: no positive ratio follows.
    """
    if not name.startswith(CONSTANT):
        return None
    found = re.fullmatch(rf"{CONSTANT}-(\d+(?:\.\d+)?)", name)
    if not found or not float(found[1]) > 0:
        raise BadValue(f"unknown timing {name!r}; write the ratio tau / t behind it, as in {CONSTANT}-0.95")
    return float(found[1])


def constant_timing(sampler: Sampler, ratio: float, freeze_last: int = 1) -> Timing:
    """One ratio tau / t for all steps but the last: nothing is tuned, and it is bounded by the network's range of times.

    Args:
        sampler: untuned.
        ratio: tau / t.
        freeze_last: how many of the last steps keep tau = t.

    Raises:
        BadValue: the ratio is not positive.
    """
    if not ratio > 0:
        raise BadValue(f"a ratio tau / t must be positive, got {ratio}")
    evaluations = layout(sampler.solver, torch.tensor(sampler.grid.times, dtype=torch.float64), sampler.schedule)
    moving = sampler.grid.steps - freeze_last
    times = tuple(each.t for each in evaluations)
    taus = tuple(
        min(1.0, max(sampler.schedule.t_min, ratio * each.t)) if each.step < moving else each.t for each in evaluations
    )
    tuning = {"objective": CONSTANT, "ratio": ratio, "freeze_last": freeze_last}
    return sampler.make_timing(f"{CONSTANT}-{ratio:g}", taus, times, tuning=tuning, provenance=provenance())
