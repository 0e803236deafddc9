"""Linear multistep solvers: published weights, exact integrals and diffusers' schedulers."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from solver_helpers import (
    CONTINUOUS,
    LINEAR,
    UNEVEN,
    an_image,
    coefficient_table,
    float64,
    gaps,
    grid_of,
    network,
    our_run,
    our_states,
    scheduler_of,
    states,
    their_states,
)
from torch import Tensor

from tt_lib.grids import Grid, make_grid
from tt_lib.schedules import VP, Schedule
from tt_lib.solvers.orders import orders_of_steps

ADAMS_BASHFORTH = {
    1: [1.0],
    2: [3 / 2, -1 / 2],
    3: [23 / 12, -16 / 12, 5 / 12],
    4: [55 / 24, -59 / 24, 37 / 24, -9 / 24],
}
pytestmark = pytest.mark.usefixtures("one_thread")


class RhoIsTime(VP):
    """sigma / alpha = t: what is exact in t is exact in rho."""

    name, levels, t_min = "rho is t", 100, 0.01

    def log_alpha(self, t):
        return -0.5 * torch.log1p(torch.as_tensor(t, dtype=torch.float64) ** 2)

    def time_of_log_alpha(self, log_alpha):
        return torch.expm1(-2 * torch.as_tensor(log_alpha, dtype=torch.float64)).sqrt()

    def network_time(self, t):
        return torch.as_tensor(t, dtype=torch.float64)


# ---- weights


def last_weights(name: str, times: Tensor, schedule: Schedule, **options) -> np.ndarray:
    """What the last step takes from each answer, newest first, in units of alpha_s (rho_s - rho_t)."""
    whole = coefficient_table(name, times, schedule, **options)
    before = coefficient_table(name, times[:-1], schedule, **options)
    t, s = times[-2:]
    own = whole - np.append((schedule.alpha(s) / schedule.alpha(t)).item() * before, 0)
    return own[:0:-1] / (schedule.alpha(s) * (schedule.rho(s) - schedule.rho(t))).item()


@pytest.mark.parametrize("name", ["plms", "ipndm", "ipndm-v", "deis-tab"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_even_steps_have_the_weights_of_adams_and_bashforth(name, order):
    weights = last_weights(name, torch.linspace(0.9, 0.4, 6, dtype=torch.float64), RhoIsTime(), order=order)
    assert weights == pytest.approx([*ADAMS_BASHFORTH[order], *[0.0] * (5 - order)], rel=1e-9, abs=1e-10)


@pytest.mark.parametrize("steps", [2, 3, 4])
def test_plms_keeps_its_weights_on_an_uneven_grid_and_variable_steps_do_not(steps):
    times = UNEVEN[: steps + 1]
    assert last_weights("plms", times, LINEAR) == pytest.approx(ADAMS_BASHFORTH[steps], rel=1e-9)
    weights = last_weights("ipndm-v", times, LINEAR)
    assert np.abs(weights - ADAMS_BASHFORTH[steps]).max() > 0.1
    # Exact for polynomials in rho: sum_j w_j u_j^n = 1 / (n + 1) with u from 0 at t to 1 at s.
    rho = LINEAR.rho(times).numpy()
    u = (rho[-2::-1] - rho[-2]) / (rho[-1] - rho[-2])
    assert [(weights * u**n).sum() for n in range(steps)] == pytest.approx([1 / (n + 1) for n in range(steps)])


def rho_slope(t: float, beta_0: float = 0.1, beta_1: float = 20.0) -> float:
    """d rho / dt of the VP-SDE, from rho^2 = exp(t^2 (beta_1 - beta_0) / 2 + t beta_0) - 1."""
    power = t**2 * (beta_1 - beta_0) / 2 + t * beta_0
    return math.exp(power) * (t * (beta_1 - beta_0) + beta_0) / (2 * math.sqrt(math.expm1(power)))


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_deis_weights_are_the_integrals_of_the_paper(order):
    # Eq. 15 with Psi(s, u) g^2 / (2 sigma) du = alpha_s d rho, by another quadrature.
    t, s = UNEVEN[-2:].tolist()
    nodes = UNEVEN[:-1].flip(0)[:order].tolist()

    def weight(j: int) -> float:
        def integrand(u: float) -> float:
            others = (node for k, node in enumerate(nodes) if k != j)
            return rho_slope(u) * math.prod((u - other) / (nodes[j] - other) for other in others)

        return quad(integrand, t, s, epsabs=0, epsrel=1e-12)[0]

    step = (CONTINUOUS.rho(s) - CONTINUOUS.rho(t)).item()
    expected = [*(weight(j) / step for j in range(order)), *[0.0] * (4 - order)]
    weights = last_weights("deis-tab", UNEVEN, CONTINUOUS, order=order)
    assert weights == pytest.approx(expected, rel=1e-10, abs=1e-10)


def test_deis_weights_are_exact_over_the_kinks_of_a_discrete_schedule():
    # log alpha bends at every level: integrate from level to level, by parts, so that no slope is needed.
    times = float64([0.5, 0.42, 0.3305, 0.3012])
    t, s = times[-2:].tolist()
    nodes = times[:-1].flip(0).numpy()

    def rho(u: float) -> float:
        return LINEAR.rho(u).item()

    weights = last_weights("deis-tab", times, LINEAR) * (rho(s) - rho(t))
    edges = [t, *(level / 1000 for level in range(330, 301, -1)), s]
    for n in (0, 1, 2):
        inner = sum(quad(lambda u, n=n: n * u ** (n - 1) * rho(u), a, b)[0] for a, b in pairwise(edges)) if n else 0
        expected = s**n * rho(s) - t**n * rho(t) - inner
        assert (weights * nodes**n).sum() == pytest.approx(expected, rel=1e-10)


def test_pndm_is_plms_after_its_three_first_steps():
    run = our_run("pndm", Grid("uneven", tuple(UNEVEN.tolist())))
    assert [request.stage for request in run.trajectory] == [0, 1, 2, 3] * 3 + [0]
    middles = ((UNEVEN[:3] + UNEVEN[1:4]) / 2).tolist()
    expected = [t for k, m in enumerate(middles) for t in (UNEVEN[k].item(), m, m, UNEVEN[k + 1].item())]
    assert [request.t.item() for request in run.trajectory] == pytest.approx([*expected, UNEVEN[3].item()])
    first = [answer for request, answer in zip(run.trajectory, run.answers, strict=True) if request.stage == 0]
    mixture = sum(w * e for w, e in zip(ADAMS_BASHFORTH[4], reversed(first), strict=True))
    t, s = UNEVEN[-2:]
    y = run.trajectory[-1].x / LINEAR.alpha(t) + (LINEAR.rho(s) - LINEAR.rho(t)) * mixture
    assert torch.allclose(run.x, LINEAR.alpha(s) * y, rtol=1e-12, atol=1e-12)


# ---- diffusers


def log_rho_by_hand(grid: Grid, orders: list[int]) -> list[Tensor]:
    """The states of an exponential Adams-Bashforth method with polynomials in lambda instead of t."""
    times = float64(grid.times)
    a, lam = LINEAR.alpha(times).tolist(), LINEAR.lam(times).tolist()
    x, answers = [an_image()], []
    for k in range(grid.steps):
        answers = [network(x[-1], times[k]), *answers][: orders[k]]
        nodes = [lam[k - j] for j in range(len(answers))]
        y = x[-1] / a[k]
        for j, answer in enumerate(answers):

            def integrand(u, j=j, nodes=nodes):
                others = (node for i, node in enumerate(nodes) if i != j)
                return -math.exp(-u) * math.prod((u - other) / (nodes[j] - other) for other in others)

            y = y + quad(integrand, lam[k], lam[k + 1], epsabs=0, epsrel=1e-12)[0] * answer
        x.append(a[k + 1] * y)
    return x


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("steps, lower", [(8, True), (10, False), (20, True)])
def test_diffusers_deis_has_polynomials_in_log_rho_instead_of_t(order, steps, lower):
    # It ends at its lowest level, not at clean data, and lowers its orders below 15 steps.
    scheduler = scheduler_of("DEISMultistepScheduler", steps, solver_order=order, lower_order_final=lower)
    grid = grid_of(scheduler, end=0.001)
    orders = orders_of_steps(steps, order, "lower" if lower and steps < 15 else "full")
    theirs = their_states(scheduler)
    assert gaps(log_rho_by_hand(grid, orders), theirs).max() < 1e-5
    ours = gaps(our_states("deis-tab", grid, order=order), theirs)
    # Order 1 has no polynomial: there all agree.
    assert ours[:2].max() < 1e-5 and (ours.max() < 1e-5 if order == 1 else ours[2:].min() > 1e-4)


def pndm_scheduler(**options):
    return scheduler_of("PNDMScheduler", 10, set_alpha_to_one=True, **options)


def test_a_step_of_plms_is_diffusers():
    # Each of our steps but the last, made by diffusers from our state and our earlier answers.
    run = our_run("plms", make_grid("uniform", 10, LINEAR))
    ours, scheduler = states(run), pndm_scheduler(skip_prk_steps=True)
    for k in range(9):
        scheduler.ets, scheduler.counter = list(run.answers[:k]), 2 * k
        n = round(run.trajectory[k].t.item() * 1000 - 1)
        theirs = scheduler.step(run.answers[k], n, ours[k]).prev_sample
        assert gaps([ours[k + 1]], [theirs]).max() < 1e-5, k


def test_diffusers_plms_takes_one_evaluation_more_and_extrapolates_into_clean_data():
    scheduler, grid = pndm_scheduler(skip_prk_steps=True), make_grid("uniform", 10, LINEAR)
    run = our_run("plms", grid)
    assert run.nfe == 10 and len(scheduler.timesteps) == 11
    theirs = their_states(scheduler)
    # The first two evaluations make one improved Euler step.
    t, s = grid.times[:2]
    middle = (network(theirs[0], t) + network(theirs[1], s)) / 2
    by_hand = LINEAR.alpha(s) * (theirs[0] / LINEAR.alpha(t) + (LINEAR.rho(s) - LINEAR.rho(t)) * middle)
    assert gaps([by_hand], [theirs[2]]).max() < 1e-5
    # From one state, the step into clean data: ours returns the data prediction, theirs a mixture of four answers.
    scheduler.ets, scheduler.counter = list(run.answers[:9]), 10
    mixed = scheduler.step(run.answers[9], 0, run.trajectory[9].x).prev_sample
    assert gaps([mixed], [run.x]).max() > 1e-5


def test_pndm_is_diffusers_step_by_step_but_for_the_step_into_clean_data():
    scheduler = pndm_scheduler(skip_prk_steps=False)
    ours = gaps(our_states("pndm", make_grid("uniform", 10, LINEAR)), their_states(scheduler))
    assert len(ours) == 20 and ours[:-1].max() < 1e-5 and ours[-1] > 1e-5


def test_ipndm_is_diffusers_step_by_step_but_for_the_step_into_clean_data():
    # Its scheduler has a schedule of its own, and the network predicts v = alpha eps - sigma x_0: give it ours.
    diffusers = pytest.importorskip("diffusers")
    grid = make_grid("quadratic", 8, LINEAR)
    scheduler = diffusers.IPNDMScheduler()
    scheduler.set_timesteps(8)
    scheduler.alphas, scheduler.betas = LINEAR.alpha(float64(grid.times)), LINEAR.sigma(float64(grid.times))
    theirs = [an_image()]
    for k, n in enumerate(scheduler.timesteps):
        eps = network(theirs[-1], grid.times[k])
        v = (eps - scheduler.betas[k] * theirs[-1]) / scheduler.alphas[k]
        theirs.append(scheduler.step(v, n, theirs[-1]).prev_sample)
    ours = gaps(our_states("ipndm", grid), theirs)
    assert ours[:-1].max() < 1e-5 and ours[-1] > 1e-5
