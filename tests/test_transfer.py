"""What was learned for one sampler, read for another: the same values at the same places of the run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.test_learn import toy_sampler
from tt_lib.errors import BadValue, TimingMismatch
from tt_lib.grids import LEARNED, Grid
from tt_lib.timing import Timing
from tt_lib.tuning.transfer import transfer


def learned(nfe: int = 4, solver: str = "ddim", gains: tuple[float, ...] = ()) -> Timing:
    """Nodes and offsets that are straight lines in lambda: nodes from -4 to 3, offsets from -0.5 to 0.5."""
    sampler = toy_sampler(solver, nfe=nfe)
    schedule = sampler.schedule
    times = schedule.time_of_lam(torch.linspace(-4, 3, nfe).double())
    sampler = replace(sampler, grid=Grid(LEARNED, (*times.tolist(), 0.0)))
    taus = schedule.time_of_lam(schedule.lam(times) + torch.linspace(-0.5, 0.5, nfe)).tolist()
    return sampler.make_timing("learned-grid-timing-gain", taus, gains=gains)


@pytest.mark.parametrize("nfe", [2, 3, 4, 7])
def test_straight_lines_stay_so_at_any_number_of_evaluations(nfe):
    sampler = toy_sampler("unipc", nfe=nfe)
    timing = transfer(learned(gains=(0.9, 1.0, 1.1, 1.2)), sampler)
    lam = sampler.schedule.lam
    torch.testing.assert_close(lam(timing.grid_times[:-1]), torch.linspace(-4, 3, nfe).double(), rtol=0, atol=1e-6)
    offsets = lam(timing.taus) - lam(timing.times)
    torch.testing.assert_close(offsets, torch.linspace(-0.5, 0.5, nfe).double(), rtol=0, atol=1e-6)
    assert timing.gains == pytest.approx(torch.linspace(0.9, 1.2, nfe).tolist())
    assert (timing.solver, timing.grid, timing.nfe) == ("unipc", LEARNED, nfe)
    assert timing.tuning["solver"] == "ddim" and timing.tuning["nfe"] == 4
    timing.check(
        model=sampler.model,
        schedule=sampler.schedule.name,
        solver=sampler.solver,
        grid=Grid(LEARNED, timing.grid_times),
    )


def test_it_moves_nothing_in_the_sampler_that_it_was_learned_for():
    timing = learned()
    again = transfer(timing, toy_sampler("ddim", nfe=4))
    assert again.taus == pytest.approx(timing.taus, abs=1e-12) and again.gains == ()
    assert again.grid_times == pytest.approx(timing.grid_times, abs=1e-12)


def test_a_timing_without_a_grid_leaves_the_grid():
    start = toy_sampler("ddim", nfe=3)
    schedule = start.schedule
    times = [each.t for each in start.evaluations]
    taus = schedule.time_of_lam(schedule.lam(times) + 0.2).clamp(schedule.t_min, 1).tolist()
    sampler = toy_sampler("unipc", nfe=5)
    timing = transfer(start.make_timing("learned-timing", taus), sampler)
    assert timing.grid_times == pytest.approx(sampler.grid.times)
    moved = schedule.lam(timing.taus) - schedule.lam(timing.times)
    assert float(moved[0]) == pytest.approx(0.2, abs=1e-6)
    assert all(schedule.t_min <= tau <= 1 for tau in timing.taus)


def test_what_is_refused():
    with pytest.raises(TimingMismatch, match="'cosine' and is to be used on"):
        transfer(replace(learned(), schedule="cosine"), toy_sampler("ddim", nfe=4))
    with pytest.raises(BadValue, match="two steps or more, got 1"):
        transfer(learned(), toy_sampler("ddim", nfe=1))
