"""Solvers with several evaluations a step: orders, budgets, what they are on paper, and diffusers."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from tt_lib.engine import Run, drive
from tt_lib.errors import BadValue
from tt_lib.grids import Grid, make_grid
from tt_lib.schedules import make_schedule
from tt_lib.solvers.registry import make_solver
from tt_lib.toy import MixturePredictor, exact_flow, ring_2d, two_modes_1d

LINEAR = make_schedule("linear")
pytestmark = pytest.mark.usefixtures("one_thread")
ORDERS = {
    "dpm-solver-2": 2,
    "dpm-solver-3": 3,
    "dpm-solver-fast": 3,
    "dpmpp-2s": 2,
    "heun": 2,
    "euler": 1,
    "dpm-solver-1": 1,
}
SEVERAL = ["dpm-solver-2", "dpm-solver-3", "dpm-solver-fast", "dpmpp-2s", "heun"]


def points(n: int, dim: int = 2) -> torch.Tensor:
    return torch.randn(n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ORDERS)
def test_measured_order_of_convergence(name):
    """On two modes, even in lambda from 0.9 to 0.1: halving the steps divides the error by 2 ** order."""
    mixture, schedule = two_modes_1d(), make_schedule("continuous-linear")
    x = torch.linspace(-1.5, 1.5, 9, dtype=torch.float64)[:, None]
    expected = exact_flow(mixture, x, 0.9, 0.1, schedule)
    errors = []
    for steps in (80, 160, 320):
        grid = make_grid("logsnr", steps, schedule, start=0.9, end=0.1)
        run = drive(make_solver(name)(x, grid, schedule), MixturePredictor(mixture, schedule))
        errors.append((run.x - expected).abs().max().item())
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert slopes[-1] == pytest.approx(ORDERS[name], abs=0.25), f"{name}: errors {errors}, orders {slopes}"


@pytest.mark.parametrize("nfe", range(1, 14))
@pytest.mark.parametrize("name", SEVERAL)
def test_a_budget_is_spent_exactly(name, nfe):
    if name == "dpm-solver-3" and (nfe < 4 or nfe % 3 != 1):
        with pytest.raises(BadValue, match=rf"4, 7, 10, \.\.\., not {nfe}; .*dpm-solver-fast"):
            make_solver(name).for_nfe(nfe)
        return
    solver, steps = make_solver(name).for_nfe(nfe)
    run = drive(solver(points(2), make_grid("uniform", steps, LINEAR), LINEAR), lambda x, t, tau: torch.sin(x))
    assert run.nfe == nfe and run.x.isfinite().all()


def test_how_budgets_are_spent():
    plans = {name: [make_solver(name).for_nfe(nfe)[0].options["orders"] for nfe in (5, 6, 10)] for name in SEVERAL[2:]}
    assert plans["dpm-solver-fast"] == ["311", "321", "3331"]
    assert plans["heun"] == plans["dpmpp-2s"] == ["221", "2211", "222211"]
    for name in SEVERAL:
        with pytest.raises(BadValue, match=r"got 0|not 0"):
            make_solver(name).for_nfe(0)


def test_stages_are_numbered_and_no_network_is_asked_at_clean_data():
    solver, steps = make_solver("dpm-solver-fast").for_nfe(6)
    run = drive(solver(points(2), make_grid("uniform", steps, LINEAR), LINEAR), lambda x, t, tau: x, keep=True)
    assert [request.stage for request in run.trajectory] == [0, 1, 2, 0, 1, 0]
    times = [request.t.item() for request in run.trajectory]
    assert times == sorted(times, reverse=True) and times[-1] > 0


@pytest.mark.parametrize("name", SEVERAL)
def test_steps_of_first_order_are_ddims(name):
    grid = make_grid("uniform", 4, LINEAR)
    predictor = MixturePredictor(ring_2d(), LINEAR)
    mine = drive(make_solver(name, orders="1111")(points(5), grid, LINEAR), predictor).x
    assert torch.allclose(mine, drive(make_solver("ddim")(points(5), grid, LINEAR), predictor).x, rtol=1e-12)


@pytest.mark.parametrize("name", SEVERAL)
def test_impossible_orders(name):
    x, grid = points(1), make_grid("uniform", 3, LINEAR)
    for orders, message in (
        ("11", "'11' are 2.*3 steps"),
        ("141", "digits from 1 to"),
        ("112", "clean data.*end them with 1"),
    ):
        with pytest.raises(BadValue, match=message):
            drive(make_solver(name, orders=orders)(x, grid, LINEAR), lambda x, t, tau: x)


def test_heun_by_hand():
    times = torch.tensor([0.8, 0.4, 0.0], dtype=torch.float64)
    x, predictor = points(4), MixturePredictor(ring_2d(), LINEAR)
    alpha, rho = LINEAR.alpha(times), LINEAR.rho(times)
    y = x / alpha[0]
    first = predictor(x, times[0], times[0])
    euler = y + (rho[1] - rho[0]) * first
    second = predictor(alpha[1] * euler, times[1], times[1])
    y = y + (rho[1] - rho[0]) * (first + second) / 2
    y = y - rho[1] * predictor(alpha[1] * y, times[1], times[1])
    assert torch.allclose(drive(make_solver("heun")(x, times, LINEAR), predictor).x, y, rtol=1e-12)


# ---- diffusers


def made_up(x: torch.Tensor, n: float) -> torch.Tensor:
    place = torch.arange(x[0].numel(), dtype=x.dtype).reshape(x.shape[1:])
    return torch.sin(1.3 * x + 0.01 * n) + 0.3 * torch.cos(0.7 * place + 0.003 * n)


def test_heun_is_diffusers_step_by_step():
    """Their sigma is our rho and their state is our y = x / alpha; the times between levels do not occur."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.HeunDiscreteScheduler(
        beta_start=1e-4, beta_end=0.02, beta_schedule="linear", timestep_spacing="leading", steps_offset=0
    )
    scheduler.set_timesteps(6)
    levels = scheduler.timesteps[0::2].tolist()
    grid = Grid("theirs", (*((n + 1) / 1000 for n in levels), 0.0))
    x = points(3, 6).reshape(3, 2, 3)
    rho = LINEAR.rho(torch.tensor(grid.times, dtype=torch.float64))
    assert scheduler.sigmas[1::2][:-1].numpy() == pytest.approx(rho[1:-1].numpy(), rel=1e-4)

    def network(x, t, tau):
        return made_up(x, 1000 * float(tau) - 1)

    run: Run = drive(make_solver("heun")(x, grid, LINEAR), network, keep=True)
    y = x / LINEAR.alpha(torch.tensor(grid.times[0]))
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(y, t)
        y = scheduler.step(made_up(scaled, float(t)), t, y).prev_sample
    assert run.nfe == len(scheduler.timesteps) == 11
    assert (run.x - y).abs().max() < 1e-4 * run.x.abs().max()


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("name", "algorithm", "order"),
    [("dpm-solver-2", "dpmsolver", 2), ("dpmpp-2s", "dpmsolver++", 2), ("dpm-solver-3", "dpmsolver", 3)],
)
def test_singlestep_solvers_are_diffusers_step_by_step(name, algorithm, order):
    """Given nodes even in lambda within a step, which theirs takes from its grid. The second answer of DPM-Solver-3 enters by
    phi, the ``heun`` form of their update of second order, and the third by its ``midpoint``: no one option has both."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DPMSolverSinglestepScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        algorithm_type=algorithm,
        solver_order=order,
        lower_order_final=False,
        final_sigmas_type="sigma_min",
    )
    grid = Grid("mine", (0.9, 0.6, 0.3, 0.1))
    x = points(3, 6).reshape(3, 2, 3)

    def network(x, t, tau):
        return made_up(x, 1000 * float(t) - 1)

    run: Run = drive(make_solver(name)(x, grid, LINEAR), network, keep=True)
    times = [float(request.t) for request in run.trajectory]
    scheduler.set_timesteps(len(times))
    scheduler.sigmas = LINEAR.rho(torch.tensor([*times, grid.times[-1]], dtype=torch.float64))
    scheduler.timesteps = torch.arange(len(times), 0, -1)
    scheduler.order_list = list(range(1, order + 1)) * grid.steps
    for k, (request, n) in enumerate(zip(run.trajectory, scheduler.timesteps, strict=True)):
        assert torch.allclose(x, request.x, rtol=1e-5, atol=1e-5), f"{name}: states {k} differ"
        scheduler.register_to_config(solver_type="heun" if scheduler.order_list[k] < order else "midpoint")
        x = scheduler.step(network(x, times[k], None), n, x).prev_sample
    assert torch.allclose(x, run.x, rtol=1e-5, atol=1e-5) and run.nfe == order * grid.steps
