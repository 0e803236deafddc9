"""Grids: the published indices, the ends, and that no grid asks for what a network does not know."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from solver_helpers import CONTINUOUS, LINEAR, SCHEDULES

from tt_lib.errors import BadValue
from tt_lib.grids import GRIDS, Grid, make_grid
from tt_lib.schedules import index_of_time, make_schedule

LEVEL_GRIDS = ("uniform", "uniform-trailing", "quadratic")


def indices(grid: Grid, levels: int = 1000) -> list[int]:
    """The levels of a discrete grid's evaluations, rising."""
    exact = index_of_time(grid.tensor()[:-1], levels).flip(0)
    assert (exact - exact.round()).abs().max() < 1e-9
    return exact.round().long().tolist()


# ---- every grid


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("name", GRIDS)
def test_every_grid(name, schedule):
    for steps in (1, 2, 3, 5, 10, 33, 100, 1000):
        grid = make_grid(name, steps, schedule)
        assert (grid.name, grid.steps, len(grid.times)) == (name, steps, steps + 1)
        assert all(type(t) is float for t in grid.times) and all(a > b for a, b in pairwise(grid.times))
        assert grid.times[0] <= 1 and grid.times[-1] == 0 and grid.times[-2] >= schedule.t_min
        if steps == 1 or schedule is CONTINUOUS or name not in ("uniform", "quadratic"):
            assert grid.times[0] == 1


@pytest.mark.parametrize("name", GRIDS)
def test_start_replaces_the_first_time(name):
    for schedule in SCHEDULES.values():
        plain, moved = make_grid(name, 10, schedule), make_grid(name, 10, schedule, start=0.95)
        assert moved.times[0] == 0.95 and moved.steps == 10
        if schedule is not CONTINUOUS and name in LEVEL_GRIDS:
            assert moved.times[1:] == plain.times[1:]
        assert make_grid(name, 1, schedule, start=0.5).times == (0.5, 0.0)


@pytest.mark.parametrize("levels", [1, 2, 7, 10, 997])
@pytest.mark.parametrize("name", LEVEL_GRIDS)
def test_any_number_of_levels_up_to_all_of_them(name, levels):
    schedule = make_schedule("linear", levels=levels)
    for steps in range(1, levels + 1, max(1, levels // 40)):
        found = indices(make_grid(name, steps, schedule), levels)
        assert len(set(found)) == steps and found[0] >= 0 and found[-1] <= levels - 1
    assert indices(make_grid(name, levels, schedule), levels) == list(range(levels))


# ---- published values


def test_the_ddim_papers_grids():
    uniform = make_grid("uniform", 10, LINEAR)
    assert indices(uniform) == list(range(0, 1000, 100))
    assert uniform.times[0] == pytest.approx(0.901, rel=1e-15) and uniform.times[-2:] == (0.001, 0.0)
    assert indices(make_grid("uniform", 3, LINEAR)) == [0, 333, 666]
    assert indices(make_grid("quadratic", 10, LINEAR)) == [0, 9, 39, 88, 158, 246, 355, 483, 632, 800]
    assert indices(make_grid("quadratic", 50, LINEAR))[:7] == [0, 1, 2, 3, 5, 8, 11]


@pytest.mark.parametrize("steps, repeated", [(10, 0), (20, 0), (50, 1), (100, 4)])
def test_quadratic_moves_only_the_repeated_indices_of_the_authors_rule(steps, repeated):
    # The authors' code cuts a float square to an integer; 1e-9 mends squares that are whole but for rounding.
    theirs = [int(value + 1e-9) for value in np.linspace(0, np.sqrt(800), steps) ** 2]
    assert steps - len(set(theirs)) == repeated
    ours = indices(make_grid("quadratic", steps, LINEAR))
    moved = [k for k in range(steps) if ours[k] != theirs[k]]
    # Only the cleanest nodes move, up to the next free level: a run 0, 1, 2, ...
    assert bool(moved) == bool(repeated) and all(ours[k] == k > theirs[k] for k in moved)


@pytest.mark.parametrize("name, spacing", [("uniform", "leading"), ("uniform-trailing", "trailing")])
def test_indices_are_diffusers(name, spacing):
    scheduler = DDIMScheduler(num_train_timesteps=1000, timestep_spacing=spacing, steps_offset=0)
    # diffusers' leading spacing is another one where steps do not divide the levels.
    for steps in (10, 20, 50, *((7, 16, 30, 333) if spacing == "trailing" else ())):
        scheduler.set_timesteps(steps)
        assert indices(make_grid(name, steps, LINEAR)) == scheduler.timesteps.flip(0).tolist()


# ---- even in which variable


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("name", ["logsnr", "karras"])
def test_nodes_are_even_in_their_variable(name, schedule):
    grid = make_grid(name, 12, schedule)
    assert grid.times[0] == 1 and grid.times[-2] == schedule.t_min
    t = grid.tensor()[:-1]
    step = (schedule.lam(t) if name == "logsnr" else schedule.rho(t) ** (1 / 7)).diff()
    assert torch.allclose(step, step.mean().expand_as(step), rtol=1e-7)


def test_grids_of_a_continuous_schedule():
    assert make_grid("uniform", 3, CONTINUOUS).times == pytest.approx((1, 0.5005, 0.001, 0))
    assert make_grid("uniform-trailing", 5, CONTINUOUS).times == pytest.approx((1, 0.8, 0.6, 0.4, 0.2, 0))
    roots = make_grid("quadratic", 6, CONTINUOUS).tensor()[:-1].sqrt()
    assert torch.allclose(roots.diff(), roots.diff().mean().expand(5), rtol=1e-9)


# ---- errors


@pytest.mark.parametrize(
    "name, steps, options, message",
    [
        ("uniform", 0, {}, "steps must be at least 1, got 0"),
        ("uniform", 2.5, {}, "steps must be a whole number, got 2.5"),
        ("quadratic", 1001, {}, r"at most 1000, .*'linear', got 1001; ask for fewer.* logsnr"),
        ("cubic", 10, {}, "unknown grid 'cubic'; choose one of: karras, logsnr, quadratic, uniform"),
        ("uniform", 10, {"start": 0.0005}, r"start must lie in \[0.001, 1\], got 0.0005"),
        ("uniform", 10, {"start": 0.7}, r"above the grid's second time, 0\.801"),
        ("logsnr", 2, {"start": 0.001}, r"start must be above 0\.001"),
    ],
)
def test_grids_that_cannot_be_made(name, steps, options, message):
    with pytest.raises(BadValue, match=message):
        make_grid(name, steps, LINEAR, **options)


def test_nodes_below_what_the_network_knows_and_more_steps_than_levels():
    with pytest.raises(BadValue, match=r"below 0\.001, the smallest time that the network knows"):
        make_grid("uniform-trailing", 2000, CONTINUOUS)
    assert make_grid("karras", 40, make_schedule("linear", levels=10)).steps == 40
    assert make_grid("uniform", np.int64(10), LINEAR).steps == 10


@pytest.mark.parametrize("times", [(), (1.0,), (0.5, 0.5), (0.2, 0.4), (1.2, 0.0), (1.0, -0.1), (1.0, math.nan)])
def test_a_grid_by_hand_is_checked(times):
    with pytest.raises(BadValue, match="grid"):
        Grid("mine", times)
    assert Grid("mine", (1.0, 0.3, 0.0)).steps == 2
