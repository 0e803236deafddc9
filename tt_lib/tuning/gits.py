"""A grid by shortest path, without gradients: GITS (Chen et al. 2024, arXiv 2405.11326).

A converged solution passes through many nodes. The cost of a jump from node i to node j is the error of one step of
Euler's method, ``y_i + (w_j - w_i) d_i`` (DDIM's step), at the state that the solution has there. Errors are taken in
y = x / c, which is x / alpha where the direction d is eps. A grid of K steps is a path of K jumps, and dynamic
programming finds the cheapest one, in which all that follows a jump counts 1.15 times.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tt_lib.errors import BadValue, check_range
from tt_lib.grids import LEARNED, Grid
from tt_lib.noise import LEARN_FIRST_SEED
from tt_lib.rows import provenance
from tt_lib.sampling import Sampler
from tt_lib.schedules import along
from tt_lib.timing import Timing
from tt_lib.tuning.learn import converged_sampler

FACTOR = 1.15


def jump_costs(sampler: Sampler, noises: int = 256) -> tuple[Tensor, Tensor]:
    """The nodes of the converged solution and the cost of a jump between any two.

    Args:
        sampler: its network; solver and grid do not matter.
        noises: start noises that the cost is averaged over.

    Returns:
        times float64 [M + 1], falling to 0, and costs float64 [M + 1, M + 1], infinite but from a node to a later one.
    """
    check_range("noises", noises, 1)
    converged = converged_sampler(sampler)
    run = converged(range(LEARN_FIRST_SEED, LEARN_FIRST_SEED + noises), keep=True)
    times, schedule = converged.grid.tensor(), sampler.schedule
    # In float64: at t = 1, y and w of eps are above 100, and neighbours differ by little.
    states = torch.stack([*(request.x for request in run.trajectory), run.x]).double()
    y = states / along(schedule.c(times), states)
    w = schedule.w(times)
    costs = torch.full((len(times), len(times)), torch.inf, dtype=torch.float64)
    for i, direction in enumerate(run.answers):
        jumps = y[i] + along(w[i + 1 :] - w[i], y) * direction.double()
        costs[i, i + 1 :] = (jumps - y[i + 1 :]).flatten(2).norm(dim=2).mean(1).cpu()
    return times, costs


def shortest_path(costs: Tensor, steps: int) -> list[int]:
    """The cheapest path of ``steps`` jumps from the first node to the last, as the places of its steps + 1 nodes.

    Args:
        costs: [M + 1, M + 1], see :func:`jump_costs`.

    Raises:
        BadValue: no path has so many jumps.
    """
    if not 1 <= steps < len(costs):
        raise BadValue(f"a path through {len(costs)} nodes has 1 to {len(costs) - 1} jumps, got {steps}")
    # rest[i]: the cost of the cheapest path of so many jumps from node i to the last.
    rest, choices = costs[:, -1], []
    for _ in range(steps - 1):
        rest, choice = (costs + FACTOR * rest).min(1)
        choices.append(choice)
    path = [0]
    for choice in reversed(choices):
        path.append(int(choice[path[-1]]))
    return [*path, len(costs) - 1]


def learn_gits(sampler: Sampler, noises: int = 256) -> Timing:
    """The shortest path with as many steps as the sampler's grid has, as a timing whose taus are its times."""
    times, costs = jump_costs(sampler, noises)
    path = shortest_path(costs, sampler.grid.steps)
    learned = replace(sampler, grid=Grid(LEARNED, tuple(times[path].tolist())))
    taus = [each.t for each in learned.evaluations]
    tuning = {"objective": "shortest path", "noises": noises, "factor": FACTOR, "nodes": path}
    return learned.make_timing(f"{LEARNED}-gits", taus, tuning=tuning, provenance=provenance())
