"""Grids: the published indices, the ends, and that no grid asks for what a network does not know."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from tt_lib.errors import BadValue
from tt_lib.grids import GRIDS, Grid, make_grid
from tt_lib.schedules import index_of_time, make_schedule

SCHEDULES = {name: make_schedule(name) for name in ("linear", "cosine", "continuous-linear")}
LINEAR, CONTINUOUS = SCHEDULES["linear"], SCHEDULES["continuous-linear"]
STEPS = (1, 2, 3, 5, 7, 10, 15, 20, 33, 50, 100, 1000)
LEVEL_GRIDS = ("uniform", "uniform-trailing", "quadratic")


def indices(grid: Grid, levels: int = 1000) -> list[int]:
    """The levels of a discrete grid's evaluations, rising."""
    exact = index_of_time(torch.tensor(grid.times[:-1], dtype=torch.float64), levels).flip(0)
    assert (exact - exact.round()).abs().max() < 1e-9
    return exact.round().long().tolist()


def fall(times) -> bool:
    return all(a > b for a, b in pairwise(times))


# ---- every grid


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("steps", STEPS)
def test_every_grid(name, steps, schedule):
    grid = make_grid(name, steps, schedule)
    assert (grid.name, grid.steps, len(grid.times)) == (name, steps, steps + 1)
    assert all(type(t) is float for t in grid.times)
    assert fall(grid.times)
    assert grid.times[0] <= 1 and grid.times[-1] == 0
    assert grid.times[-2] >= schedule.t_min
    if steps == 1 or schedule is CONTINUOUS or name not in ("uniform", "quadratic"):
        assert grid.times[0] == 1


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("steps", [1, 2, 10, 50])
@pytest.mark.parametrize("end", [0.0005, 0.001, 0.015])
def test_an_end_above_zero_is_kept_or_refused(name, steps, schedule, end):
    try:
        grid = make_grid(name, steps, schedule, end=end)
    except BadValue as error:
        assert f"end = {end:g}" in str(error)
        # Refused where whole levels reach down to the end, or where nodes would fall below t_min.
        whole = name in ("uniform", "quadratic") and schedule is not CONTINUOUS and steps > 1 and end >= 0.001
        assert whole or end < schedule.t_min
        return
    assert grid.steps == steps and grid.times[-1] == end and fall(grid.times)
    assert grid.times[-2] >= schedule.t_min


@pytest.mark.parametrize("name", GRIDS)
def test_start_replaces_the_first_time(name):
    for schedule in SCHEDULES.values():
        plain, moved = make_grid(name, 10, schedule), make_grid(name, 10, schedule, start=0.95)
        assert moved.times[0] == 0.95 and moved.steps == 10
        if schedule is not CONTINUOUS and name in LEVEL_GRIDS:
            assert moved.times[1:] == plain.times[1:]
        assert make_grid(name, 1, schedule, start=0.5).times == (0.5, 0.0)
    assert make_grid("uniform", 10, LINEAR, start=1.0).times[:2] == pytest.approx((1.0, 0.801))


@pytest.mark.parametrize("levels", [1, 2, 7, 10, 997])
@pytest.mark.parametrize("name", LEVEL_GRIDS)
def test_any_number_of_levels_up_to_all_of_them(name, levels):
    schedule = make_schedule("linear", levels=levels)
    for steps in range(1, levels + 1, max(1, levels // 40)):
        found = indices(make_grid(name, steps, schedule), levels)
        assert len(set(found)) == steps and found[0] >= 0 and found[-1] <= levels - 1
    assert indices(make_grid(name, levels, schedule), levels) == list(range(levels))


# ---- published values


def test_uniform_is_the_ddim_papers():
    grid = make_grid("uniform", 10, LINEAR)
    assert indices(grid) == list(range(0, 1000, 100))
    assert grid.times[0] == pytest.approx(0.901, rel=1e-15) and grid.times[-2:] == (0.001, 0.0)
    assert indices(make_grid("uniform", 3, LINEAR)) == [0, 333, 666]
    assert make_grid("uniform", 1, LINEAR).times == (1.0, 0.0)


def test_trailing_starts_at_noise():
    assert indices(make_grid("uniform-trailing", 10, LINEAR)) == list(range(99, 1000, 100))
    assert make_grid("uniform-trailing", 5, CONTINUOUS).times == pytest.approx((1, 0.8, 0.6, 0.4, 0.2, 0))


def test_quadratic_is_the_ddim_papers():
    assert indices(make_grid("quadratic", 10, LINEAR)) == [0, 9, 39, 88, 158, 246, 355, 483, 632, 800]
    assert indices(make_grid("quadratic", 2, LINEAR)) == [0, 800]


@pytest.mark.parametrize("steps, repeated", [(10, 0), (20, 0), (50, 1), (100, 4)])
def test_quadratic_moves_only_the_repeated_indices_of_the_authors_rule(steps, repeated):
    # The authors' code cuts a float square to an integer; 1e-9 mends squares that are whole but for rounding.
    theirs = [int(value + 1e-9) for value in np.linspace(0, np.sqrt(800), steps) ** 2]
    assert steps - len(set(theirs)) == repeated
    ours = indices(make_grid("quadratic", steps, LINEAR))
    assert ours[-1] == theirs[-1] == 800
    if not repeated:
        assert ours == theirs
    moved = [k for k in range(steps) if ours[k] != theirs[k]]
    # Only the cleanest nodes move, up to the next free level: a run 0, 1, 2, ...
    assert all(ours[k] == k > theirs[k] for k in moved)


def test_quadratic_with_50_steps():
    assert indices(make_grid("quadratic", 50, LINEAR))[:7] == [0, 1, 2, 3, 5, 8, 11]


@pytest.mark.parametrize("steps", [10, 20, 50])
@pytest.mark.parametrize("name, spacing", [("uniform", "leading"), ("uniform-trailing", "trailing")])
def test_indices_are_diffusers(name, spacing, steps):
    scheduler = DDIMScheduler(num_train_timesteps=1000, timestep_spacing=spacing, steps_offset=0)
    scheduler.set_timesteps(steps)
    assert indices(make_grid(name, steps, LINEAR)) == scheduler.timesteps.flip(0).tolist()


@pytest.mark.parametrize("steps", [7, 16, 30, 333])
def test_trailing_rounds_as_diffusers_does_where_steps_do_not_divide(steps):
    scheduler = DDIMScheduler(num_train_timesteps=1000, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    assert indices(make_grid("uniform-trailing", steps, LINEAR)) == scheduler.timesteps.flip(0).tolist()


# ---- even in which variable


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("name", ["logsnr", "karras"])
@pytest.mark.parametrize("end", [0.0, 0.002])
def test_nodes_are_even_in_their_variable(name, schedule, end):
    grid = make_grid(name, 12, schedule, end=end)
    # The network's last evaluation is at t_min; an end above zero is itself a node of the even row.
    assert grid.times[0] == 1 and (grid.times[-2] == schedule.t_min if end == 0 else grid.times[-1] == end)
    t = torch.tensor(grid.times if end else grid.times[:-1], dtype=torch.float64)
    value = schedule.lam(t) if name == "logsnr" else schedule.rho(t) ** (1 / 7)
    step = value.diff()
    assert torch.allclose(step, step.mean().expand_as(step), rtol=1e-7)


def test_continuous_uniform_and_quadratic():
    assert make_grid("uniform", 3, CONTINUOUS).times == pytest.approx((1, 0.5005, 0.001, 0))
    roots = torch.tensor(make_grid("quadratic", 6, CONTINUOUS).times[:-1], dtype=torch.float64).sqrt()
    assert torch.allclose(roots.diff(), roots.diff().mean().expand(5), rtol=1e-9)
    assert make_grid("uniform", 2, CONTINUOUS, end=0.01).times == pytest.approx((1, 0.505, 0.01))


def test_grids_between_the_levels_may_have_more_steps_than_levels():
    small = make_schedule("linear", levels=10)
    for name in ("logsnr", "karras"):
        assert make_grid(name, 40, small).steps == 40


# ---- errors


@pytest.mark.parametrize("steps", [0, -3])
def test_too_few_steps(steps):
    with pytest.raises(BadValue, match=f"steps must be at least 1, got {steps}"):
        make_grid("uniform", steps, LINEAR)


@pytest.mark.parametrize("steps", [2.5, 10.0, "10", None])
def test_steps_that_are_no_whole_number(steps):
    with pytest.raises(BadValue, match="steps must be a whole number"):
        make_grid("uniform", steps, LINEAR)
    assert make_grid("uniform", np.int64(10), LINEAR).steps == 10


@pytest.mark.parametrize("name", LEVEL_GRIDS)
def test_more_steps_than_levels(name):
    with pytest.raises(BadValue, match=r"at most 1000, .*'linear', got 1001; ask for fewer.* logsnr"):
        make_grid(name, 1001, LINEAR)


def test_unknown_name():
    with pytest.raises(BadValue, match="unknown grid 'cubic'; choose one of: karras, logsnr, quadratic, uniform"):
        make_grid("cubic", 10, LINEAR)


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("end", [-0.1, 1.0, 2.0, math.nan])
def test_end_outside(name, end):
    with pytest.raises(BadValue, match=r"end must lie in \[0, "):
        make_grid(name, 10, LINEAR, end=end)


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("start", [0.0, 0.0005, 1.5, math.nan])
def test_start_outside(name, start):
    with pytest.raises(BadValue, match=r"start must lie in \[0.001, 1\]"):
        make_grid(name, 10, LINEAR, start=start)


def test_start_and_end_that_leave_no_room():
    with pytest.raises(BadValue, match=r"above the grid's second time, 0\.801"):
        make_grid("uniform", 10, LINEAR, start=0.7)
    with pytest.raises(BadValue, match=r"a node at t = 0.001, not above end = 0.001; choose a smaller end"):
        make_grid("uniform", 10, LINEAR, end=0.001)
    with pytest.raises(BadValue, match=r"start must be above 0\.001"):
        make_grid("logsnr", 2, LINEAR, start=0.001)
    for name, steps, end in (("logsnr", 100, 1e-5), ("uniform-trailing", 2000, 0.0)):
        with pytest.raises(BadValue, match=r"below 0\.001, the smallest time that the network knows"):
            make_grid(name, steps, CONTINUOUS, end=end)


@pytest.mark.parametrize("times", [(), (1.0,), (0.5, 0.5), (0.2, 0.4), (1.2, 0.0), (1.0, -0.1), (1.0, math.nan)])
def test_a_grid_by_hand_is_checked(times):
    with pytest.raises(BadValue, match="grid"):
        Grid("mine", times)
    assert Grid("mine", (1.0, 0.3, 0.0)).steps == 2
