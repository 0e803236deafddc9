"""A learned sampler read for another one: of another solver, number of steps or network.

What was learned is read as functions of the place in the run, from 0 at its start to 1 at its end: lambda of the nodes
before the last, the offset ``lambda(tau) - lambda(t)`` and the gain of the evaluations. Between places they are linear.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from tt_lib.errors import BadValue, TimingMismatch
from tt_lib.grids import LEARNED, Grid
from tt_lib.rows import provenance
from tt_lib.sampling import Sampler
from tt_lib.schedules import float64
from tt_lib.timing import Timing


def transfer(timing: Timing, sampler: Sampler) -> Timing:
    """What was learned for one sampler, for another.

    Args:
        timing: with its grid where that was learned; else the sampler keeps its own.
        sampler: untuned.

    Raises:
        TimingMismatch: another schedule, on which lambda has another range.
        BadValue: either grid has fewer than two steps.
    """
    schedule = sampler.schedule
    if timing.schedule != schedule.name:
        raise TimingMismatch(
            f"the timing was learned on the schedule {timing.schedule!r} and is to be used on {schedule.name!r}; "
            "choose one that was learned on the same schedule"
        )
    for steps in (len(timing.grid_times) - 1, sampler.grid.steps):
        if steps < 2:
            raise BadValue(f"a timing is read for another sampler between two steps or more, got {steps}")
    low, high = (float(schedule.lam(t)) for t in (schedule.t_max, schedule.t_min))

    def lam(times: Sequence[float]) -> Tensor:
        return schedule.lam(float64(times)).clamp(low, high)

    if timing.grid == LEARNED:
        nodes = schedule.time_of_lam(_read(lam(timing.grid_times[:-1]), sampler.grid.steps)).tolist()
        # Where lambda is infinite at t = 1, a first node there stays.
        first = [1.0] if timing.grid_times[0] == 1 else nodes[:1]
        sampler = replace(sampler, grid=Grid(LEARNED, (*first, *nodes[1:], sampler.grid.times[-1])))
    times = [each.t for each in sampler.evaluations]
    offsets = _read(lam(timing.taus) - lam(timing.times), len(times))
    taus = schedule.time_of_lam((lam(times) + offsets).clamp(low, high)).tolist()
    gains = tuple(_read(float64(timing.gains), len(times)).tolist()) if timing.gains else ()
    tuning: dict[str, Any] = {
        "objective": "transfer",
        "learned": timing.name,
        "solver": timing.solver,
        "options": timing.options,
        "nfe": timing.nfe,
        "model": timing.model,
        "weights": timing.weights,
    }
    return sampler.make_timing(timing.name, taus, tuning=tuning, provenance=provenance(), gains=gains)


def _read(values: Tensor, places: int) -> Tensor:
    """Values at equal distances from the start of a run to its end, at ``places`` equal distances."""
    own, others = (np.linspace(0, 1, count) for count in (len(values), places))
    return float64(np.interp(others, own, values.numpy()))
