"""Grids by shortest path: the path is the cheapest of all, and a jump costs what DDIM's step is wrong by."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
import torch

from tests.test_learn import toy_sampler
from tt_lib.engine import drive
from tt_lib.errors import BadValue
from tt_lib.noise import LEARN_FIRST_SEED
from tt_lib.solvers.ddim import ddim
from tt_lib.tuning.gits import FACTOR, jump_costs, learn_gits, shortest_path
from tt_lib.tuning.learn import converged_sampler


def upper(nodes: int, seed: int) -> torch.Tensor:
    costs = torch.rand(nodes, nodes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return costs.masked_fill(torch.ones(nodes, nodes).tril().bool(), torch.inf)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 7])
def test_the_path_is_the_cheapest_of_all(steps):
    costs = upper(8, steps)

    def cost(path: tuple[int, ...]) -> float:
        total = 0.0
        for i, j in reversed(list(pairwise(path))):
            total = float(costs[i, j]) + (FACTOR * total if j != path[-1] else 0.0)
        return total

    paths = [(0, *inner, 7) for inner in combinations(range(1, 7), steps - 1)]
    assert tuple(shortest_path(costs, steps)) == min(paths, key=cost)


def test_a_jump_costs_what_a_step_of_ddim_is_wrong_by():
    sampler = toy_sampler()
    times, costs = jump_costs(sampler, noises=5)
    run = converged_sampler(sampler)(range(LEARN_FIRST_SEED, LEARN_FIRST_SEED + 5), keep=True)
    states = [*(request.x for request in run.trajectory), run.x]
    for i, j in ((0, 1), (0, 30), (20, 45), (50, 60)):
        end = drive(
            ddim(states[i].double(), times[[i, j]], sampler.schedule, None), lambda *_, i=i: run.answers[i].double()
        ).x
        error = (end - states[j]) / sampler.schedule.alpha(times[j])
        assert float(costs[i, j]) == pytest.approx(float(error.norm(dim=1).mean()), rel=1e-4)
    assert costs[3, 3].isinf() and costs[3, 2].isinf()


def test_the_grid_falls_from_noise_to_data_and_spends_the_steps():
    sampler = toy_sampler(nfe=6)
    timing = learn_gits(sampler, noises=32)
    assert (timing.name, timing.grid, timing.nfe) == ("learned-gits", "learned", 6) and timing.taus == timing.times
    assert timing.grid_times[0] == 1 and timing.grid_times[-1] == 0


@pytest.mark.parametrize("steps", [0, 8])
def test_paths_that_there_are_not(steps):
    with pytest.raises(BadValue, match=f"has 1 to 7 jumps, got {steps}"):
        shortest_path(upper(8, 0), steps)


def test_no_noises():
    with pytest.raises(BadValue, match="noises must be at least 1, got 0"):
        jump_costs(toy_sampler(), 0)
