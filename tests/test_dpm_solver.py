"""Solvers with several evaluations a step: orders, the update by hand, and diffusers' schedulers."""

from __future__ import annotations

import pytest
import torch
from solver_helpers import LINEAR, an_image, float64, gaps, network, our_run, points, scheduler_of, states

from tt_lib.engine import drive
from tt_lib.errors import BadValue
from tt_lib.grids import Grid, make_grid
from tt_lib.solvers.registry import make_solver
from tt_lib.toy import MixturePredictor, ring_2d

NAMES = ["dpm-solver-2", "dpm-solver-3", "dpm-solver-fast", "dpmpp-2s", "heun"]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", NAMES)
def test_steps_of_first_order_are_ddims(name):
    grid = make_grid("uniform", 4, LINEAR)
    assert gaps(states(our_run(name, grid, orders="1111")), states(our_run("ddim", grid))).max() < 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_impossible_orders(name):
    for orders, message in (
        ("11", "'11' are 2.*3 steps"),
        ("141", "digits from 1 to"),
        ("112", "clean data.*end them with 1"),
    ):
        with pytest.raises(BadValue, match=message):
            our_run(name, make_grid("uniform", 3, LINEAR), orders=orders)


def test_heun_by_hand():
    times = float64([0.8, 0.4, 0.0])
    x, predictor = points(4, 2), MixturePredictor(ring_2d(), LINEAR)
    alpha, rho = LINEAR.alpha(times), LINEAR.rho(times)
    y = x / alpha[0]
    first = predictor(x, times[0], times[0])
    euler = y + (rho[1] - rho[0]) * first
    second = predictor(alpha[1] * euler, times[1], times[1])
    y = y + (rho[1] - rho[0]) * (first + second) / 2
    y = y - rho[1] * predictor(alpha[1] * y, times[1], times[1])
    assert torch.allclose(drive(make_solver("heun")(x, times, LINEAR), predictor).x, y, rtol=1e-12)


def test_heun_is_diffusers():
    """Their sigma is our rho and their state is our y = x / alpha; the times between levels do not occur."""
    scheduler = scheduler_of("HeunDiscreteScheduler", 6, timestep_spacing="leading")
    grid = Grid("theirs", (*((n + 1) / 1000 for n in scheduler.timesteps[0::2].tolist()), 0.0))
    y = an_image() / LINEAR.alpha(grid.times[0])
    for n in scheduler.timesteps:
        y = scheduler.step(network(scheduler.scale_model_input(y, n), (float(n) + 1) / 1000), n, y).prev_sample
    run = our_run("heun", grid)
    assert run.nfe == len(scheduler.timesteps) == 11 and gaps([run.x], [y]).max() < 1e-4


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("name", "algorithm", "order"),
    [("dpm-solver-2", "dpmsolver", 2), ("dpmpp-2s", "dpmsolver++", 2), ("dpm-solver-3", "dpmsolver", 3)],
)
def test_singlestep_solvers_are_diffusers_step_by_step(name, algorithm, order):
    """Given nodes even in lambda within a step, which theirs takes from its grid.

    The second answer of DPM-Solver-3 enters by phi, the ``heun`` form of their update of second order, and the third by
    its ``midpoint``: no one option has both.
    """
    scheduler = scheduler_of(
        "DPMSolverSinglestepScheduler",
        algorithm_type=algorithm,
        solver_order=order,
        lower_order_final=False,
        final_sigmas_type="sigma_min",
    )
    grid = Grid("own", (0.9, 0.6, 0.3, 0.1))
    run = our_run(name, grid)
    times = [float(request.t) for request in run.trajectory]
    assert run.nfe == order * grid.steps
    scheduler.set_timesteps(run.nfe)
    scheduler.sigmas = LINEAR.rho(float64([*times, grid.times[-1]]))
    scheduler.timesteps = torch.arange(run.nfe, 0, -1)
    scheduler.order_list = list(range(1, order + 1)) * grid.steps
    theirs = [an_image()]
    for k, n in enumerate(scheduler.timesteps):
        scheduler.register_to_config(solver_type="heun" if scheduler.order_list[k] < order else "midpoint")
        theirs.append(scheduler.step(network(theirs[-1], times[k]), n, theirs[-1]).prev_sample)
    assert gaps(states(run), theirs).max() < 1e-5
