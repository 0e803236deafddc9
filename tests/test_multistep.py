"""Multistep solvers: measured orders, published weights, exact integrals, budgets and diffusers' schedulers."""

from __future__ import annotations

import functools
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from test_solvers import LINEAR, SCHEDULES, UNEVEN, betas_of_ddpm, coefficient_table, made_up, points
from torch.autograd import gradcheck

from tt_lib.engine import Run, drive
from tt_lib.errors import BadValue
from tt_lib.grids import Grid, make_grid
from tt_lib.schedules import Schedule
from tt_lib.solvers.orders import orders_of_steps
from tt_lib.solvers.registry import SOLVERS, make_solver
from tt_lib.timing import _label
from tt_lib.toy import MixturePredictor, exact_flow, two_modes_1d

CONTINUOUS = SCHEDULES["continuous-linear"]
MULTISTEP = ("plms", "pndm", "ipndm", "ipndm-v", "deis-tab", "dpmpp-3m", "unipc")
LOWERED = tuple(f"{name},final=lower" for name in ("dpmpp-2m", "dpmpp-3m", "deis-tab", "unipc"))
ADAMS_BASHFORTH = {
    1: [1.0],
    2: [3 / 2, -1 / 2],
    3: [23 / 12, -16 / 12, 5 / 12],
    4: [55 / 24, -59 / 24, 37 / 24, -9 / 24],
}
pytestmark = pytest.mark.usefixtures("one_thread")


def float64(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


class RhoIsTime(Schedule):
    """sigma / alpha = t: what is exact in t is exact in rho."""

    name, levels, t_min = "rho is t", 100, 0.01

    def log_alpha(self, t):
        return -0.5 * torch.log1p(torch.as_tensor(t, dtype=torch.float64) ** 2)

    def time_of_log_alpha(self, log_alpha):
        return torch.expm1(-2 * torch.as_tensor(log_alpha, dtype=torch.float64)).sqrt()

    def network_time(self, t):
        return torch.as_tensor(t, dtype=torch.float64)


# ---- orders


@functools.cache
def exact_end() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.linspace(-1.5, 1.5, 9, dtype=torch.float64)[:, None]
    return x, exact_flow(two_modes_1d(scale=0.4), x, 0.9, 0.1, CONTINUOUS, rtol=1e-12)


def even_in_lambda(steps: int, run_up: bool) -> torch.Tensor:
    """From 0.9 to 0.1; with ``run_up`` the first step is cut into ever shorter ones, each half of the next."""
    place = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    if run_up:
        halvings = torch.arange(-2 * math.ceil(math.log2(steps)), 0, dtype=torch.float64)
        place = torch.cat([place[:1], place[1] * 2**halvings, place[1:]])
    first, last = CONTINUOUS.lam(0.9), CONTINUOUS.lam(0.1)
    return CONTINUOUS.time_of_lam(first + place * (last - first))


@pytest.mark.parametrize(
    "name, options, order",
    [
        # Weights that follow the grid: order p.
        ("ipndm-v", {"order": 1}, 1),
        ("ipndm-v", {"order": 2}, 2),
        ("ipndm-v", {"order": 3}, 3),
        ("ipndm-v", {}, 4),
        ("deis-tab", {"order": 1}, 1),
        ("deis-tab", {"order": 2}, 2),
        ("deis-tab", {}, 3),
        ("deis-tab", {"order": 4}, 4),
        # A corrector is worth one order.
        ("unipc", {"order": 1}, 2),
        ("unipc", {"order": 1, "variant": "bh1"}, 2),
        ("unipc", {"order": 2}, 3),
        ("unipc", {"order": 2, "variant": "bh1"}, 3),
        ("unipc", {}, 4),
        # Half the curvature costs the third order.
        ("dpmpp-3m", {}, 2),
        ("dpmpp-3m", {"variant": "exact"}, 3),
        # Weights of even steps on steps that are uneven in rho: never more than 2.
        ("plms", {"order": 1}, 1),
        ("plms", {"order": 2}, 2),
        ("plms", {"order": 3}, 2),
        ("plms", {}, 2),
        ("pndm", {}, 2),
        # The last step is of order 1, and its own error h^2 is the whole's. UniPC does not correct it either.
        ("dpmpp-2m", {"final": "lower"}, 2),
        ("dpmpp-3m", {"final": "lower"}, 2),
        ("dpmpp-3m", {"variant": "exact", "final": "lower"}, 2),
        ("deis-tab", {"order": 1, "final": "lower"}, 1),
        ("deis-tab", {"order": 2, "final": "lower"}, 2),
        ("deis-tab", {"final": "lower"}, 2),
        ("deis-tab", {"order": 4, "final": "lower"}, 2),
        ("unipc", {"order": 1, "final": "lower"}, 2),
        ("unipc", {"order": 2, "final": "lower"}, 2),
        ("unipc", {"final": "lower"}, 2),
    ],
)
def test_measured_order_of_convergence(name, options, order):
    # A run-up, so that the first steps, which are of lower order, add nothing; fixed weights would not see it.
    x, expected = exact_end()
    predictor = MixturePredictor(two_modes_1d(scale=0.4), CONTINUOUS)
    errors = []
    for steps in (80, 160, 320):
        times = even_in_lambda(steps, run_up=name not in ("plms", "pndm"))
        end = drive(make_solver(name, **options)(x, times, CONTINUOUS), predictor).x
        errors.append((end - expected).abs().max().item())
    measured = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert measured == pytest.approx([order, order], abs=0.45), f"{name} {options}: errors {errors}, orders {measured}"


@pytest.mark.parametrize(
    "steps, order, after, orders",
    [
        (7, 3, 0, "1233321"),
        (4, 3, 0, "1221"),
        (3, 3, 0, "121"),
        (2, 3, 0, "11"),
        (1, 3, 0, "1"),
        (5, 1, 0, "11111"),
        (5, 2, 0, "12221"),
        (8, 4, 0, "12344321"),
        (4, 3, 1, "1232"),
        (4, 3, 2, "1233"),
        (4, 3, 9, "1233"),
    ],
)
def test_orders_rise_at_the_start_and_fall_at_the_end_where_that_is_asked_for(steps, order, after, orders):
    assert "".join(map(str, orders_of_steps(steps, order, "lower", after))) == orders
    assert orders_of_steps(steps, order) == orders_of_steps(steps, order, "full", after)
    assert orders_of_steps(steps, order) == [min(order, k + 1) for k in range(steps)]


# ---- weights


def last_weights(name: str, times: torch.Tensor, schedule: Schedule, **options) -> np.ndarray:
    """What the last step takes from each answer, newest first, in units of alpha_s (rho_s - rho_t)."""
    whole = coefficient_table(name, times, schedule, **options)
    before = coefficient_table(name, times[:-1], schedule, **options)
    t, s = times[-2:]
    own = whole - np.append((schedule.alpha(s) / schedule.alpha(t)).item() * before, 0)
    return own[:0:-1] / (schedule.alpha(s) * (schedule.rho(s) - schedule.rho(t))).item()


@pytest.mark.parametrize("name", ["plms", "ipndm", "ipndm-v", "deis-tab"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_even_steps_have_the_weights_of_adams_and_bashforth(name, order):
    schedule = RhoIsTime()
    times = torch.linspace(0.9, 0.4, 6, dtype=torch.float64)
    found = last_weights(name, times, schedule, order=order)
    assert found == pytest.approx([*ADAMS_BASHFORTH[order], *[0.0] * (5 - order)], rel=1e-9, abs=1e-10)


def test_plms_keeps_its_weights_on_an_uneven_grid_and_variable_steps_do_not():
    for steps in (2, 3, 4):
        times = UNEVEN[: steps + 1]
        assert last_weights("plms", times, LINEAR) == pytest.approx(ADAMS_BASHFORTH[steps], rel=1e-9)
        found = last_weights("ipndm-v", times, LINEAR)
        assert np.abs(found - ADAMS_BASHFORTH[steps]).max() > 0.1
        # Exact for polynomials in rho: sum_j w_j u_j^n = 1 / (n + 1) with u from 0 at t to 1 at s.
        rho = LINEAR.rho(times).numpy()
        u = (rho[-2::-1] - rho[-2]) / (rho[-1] - rho[-2])
        for n in range(steps):
            assert (found * u**n).sum() == pytest.approx(1 / (n + 1), rel=1e-6)


def test_two_variable_steps_are_adams_and_bashforths_of_second_order():
    times = UNEVEN[:3]
    before, step = LINEAR.rho(times).diff().tolist()
    ratio = step / before
    assert last_weights("ipndm-v", times, LINEAR) == pytest.approx([1 + ratio / 2, -ratio / 2], rel=1e-9)


def rho_slope(t: float, beta_0: float = 0.1, beta_1: float = 20.0) -> float:
    """d rho / dt of the VP-SDE, from rho^2 = exp(t^2 (beta_1 - beta_0) / 2 + t beta_0) - 1."""
    power = t**2 * (beta_1 - beta_0) / 2 + t * beta_0
    return math.exp(power) * (t * (beta_1 - beta_0) + beta_0) / (2 * math.sqrt(math.expm1(power)))


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_deis_weights_are_the_integrals_of_the_paper(order):
    # Eq. 15 with Psi(s, tau) g^2 / (2 sigma) d tau = alpha_s d rho, by another quadrature.
    times = UNEVEN
    t, s = times[-2:].tolist()
    nodes = times[:-1].flip(0)[:order].tolist()

    def weight(j: int) -> float:
        def integrand(tau: float) -> float:
            others = (node for k, node in enumerate(nodes) if k != j)
            return rho_slope(tau) * math.prod((tau - other) / (nodes[j] - other) for other in others)

        return quad(integrand, t, s, epsabs=0, epsrel=1e-12)[0]

    step = (CONTINUOUS.rho(s) - CONTINUOUS.rho(t)).item()
    expected = [*(weight(j) / step for j in range(order)), *[0.0] * (4 - order)]
    found = last_weights("deis-tab", times, CONTINUOUS, order=order)
    assert found == pytest.approx(expected, rel=1e-10, abs=1e-10)


def test_deis_weights_are_exact_over_the_kinks_of_a_discrete_schedule():
    # log alpha bends at every level: integrate from level to level, by parts, so that no slope is needed.
    times = float64([0.5, 0.42, 0.3305, 0.3012])
    t, s = times[-2:].tolist()
    nodes = times[:-1].flip(0).numpy()

    def rho(tau: float) -> float:
        return LINEAR.rho(tau).item()

    found = last_weights("deis-tab", times, LINEAR) * (rho(s) - rho(t))
    edges = [t, *(level / 1000 for level in range(330, 301, -1)), s]
    for n in (0, 1, 2):
        inner = (
            sum(quad(lambda tau, n=n: n * tau ** (n - 1) * rho(tau), a, b)[0] for a, b in pairwise(edges)) if n else 0
        )
        expected = s**n * rho(s) - t**n * rho(t) - inner
        assert (found * nodes**n).sum() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("variant, curvature", [("published", 0.5), ("exact", 1.0)])
def test_3m_counts_so_much_of_the_curvature(variant, curvature):
    # Data predictions that are a parabola in lambda: d(x / sigma) = e^lambda x0 d lambda can be integrated.
    times = UNEVEN[:4]
    lam = LINEAR.lam(times)
    middle = lam[2].item()

    def predictor(x, t, tau):
        u = LINEAR.lam(t) - middle
        return (x - LINEAR.alpha(t) * (0.3 + 0.7 * u + 1.1 * u**2)) / LINEAR.sigma(t)

    run = drive(make_solver("dpmpp-3m", variant=variant)(points(3), times, LINEAR), predictor, keep=True)
    s, h = times[3], (lam[3] - lam[2]).item()
    parts = [quad(lambda u, n=n: math.exp(u - h) * u**n, 0, h, epsabs=0, epsrel=1e-12)[0] for n in range(3)]
    gained = LINEAR.alpha(s) * (0.3 * parts[0] + 0.7 * parts[1] + curvature * 1.1 * parts[2])
    expected = LINEAR.sigma(s) / LINEAR.sigma(times[2]) * run.trajectory[2].x + gained
    assert torch.allclose(run.x, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
def test_unipc_of_first_order_by_hand(variant):
    # Two steps: predict, evaluate, correct with that evaluation, step on from the corrected state.
    times = UNEVEN[:3]
    a, s, lam = (of(times).tolist() for of in (LINEAR.alpha, LINEAR.sigma, LINEAR.lam))
    x, e0, e1 = (points(4, seed=seed) for seed in (0, 1, 2))
    answers = iter([e0, e1])
    found = drive(make_solver("unipc", order=1, variant=variant)(x, times, LINEAR), lambda x, t, tau: next(answers)).x
    h = lam[1] - lam[0]
    m0 = (x - s[0] * e0) / a[0]
    predicted = s[1] / s[0] * x - a[1] * math.expm1(-h) * m0
    m1 = (predicted - s[1] * e1) / a[1]
    B = -h if variant == "bh1" else math.expm1(-h)
    corrected = predicted - a[1] * B * (m1 - m0) / 2
    expected = s[2] / s[1] * corrected - a[2] * math.expm1(lam[1] - lam[2]) * m1
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_ipndm_is_another_name_for_plms():
    assert SOLVERS["ipndm"].function is SOLVERS["plms"].function
    assert SOLVERS["ipndm"].options == SOLVERS["plms"].options


def test_pndm_is_plms_after_its_three_first_steps():
    # Where the network's answer is one constant, Runge-Kutta steps and mixtures all are DDIM's.
    constant = points(4, seed=3)
    ends = [drive(make_solver(n)(points(4), UNEVEN, LINEAR), lambda x, t, tau: constant).x for n in ("pndm", "ddim")]
    assert torch.allclose(*ends, rtol=1e-12, atol=1e-12)
    run = drive(make_solver("pndm")(points(4), UNEVEN, LINEAR), lambda x, t, tau: made_up(x, float(t)), keep=True)
    assert [request.stage for request in run.trajectory] == [0, 1, 2, 3] * 3 + [0]
    middles = ((UNEVEN[:3] + UNEVEN[1:4]) / 2).tolist()
    expected = [t for k, m in enumerate(middles) for t in (UNEVEN[k].item(), m, m, UNEVEN[k + 1].item())]
    assert [request.t.item() for request in run.trajectory] == pytest.approx([*expected, UNEVEN[3].item()])
    first = [answer for request, answer in zip(run.trajectory, run.answers, strict=True) if request.stage == 0]
    mixture = (55 * first[3] - 59 * first[2] + 37 * first[1] - 9 * first[0]) / 24
    t, s = UNEVEN[-2:]
    y = run.trajectory[-1].x / LINEAR.alpha(t) + (LINEAR.rho(s) - LINEAR.rho(t)) * mixture
    assert torch.allclose(run.x, LINEAR.alpha(s) * y, rtol=1e-12, atol=1e-12)


# ---- diffusers


def grid_of(scheduler, end: float = 0.0) -> Grid:
    return Grid("theirs", (*((n + 1) / 1000 for n in scheduler.timesteps.tolist()), end))


def made_up_at(x: torch.Tensor, t: torch.Tensor, tau: torch.Tensor) -> torch.Tensor:
    return made_up(x, float(t) * 1000 - 1)


def ours(name: str, grid: Grid, x: torch.Tensor, **options) -> Run:
    return drive(make_solver(name, **options)(x, grid, LINEAR), made_up_at, keep=True)


def states(run: Run) -> list[torch.Tensor]:
    return [*(request.x for request in run.trajectory), run.x]


def gaps(mine: list[torch.Tensor], theirs: list[torch.Tensor]) -> np.ndarray:
    """How far each of our states is from theirs, as a share of its size."""
    return np.array([((a - b).abs().max() / b.abs().max()).item() for a, b in zip(mine, theirs, strict=True)])


def their_states(scheduler, x: torch.Tensor, lower_the_last: bool = False) -> list[torch.Tensor]:
    states = [x]
    for n in scheduler.timesteps:
        if lower_the_last and n == scheduler.timesteps[-1]:
            scheduler.register_to_config(lower_order_final=True)
        states.append(scheduler.step(made_up(states[-1], float(n)), n, states[-1]).prev_sample)
    return states


def an_image() -> torch.Tensor:
    return points(4, 6).reshape(4, 2, 3)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("steps", [5, 10, 20])
def test_3m_is_diffusers_dpm_solver_step_by_step(steps, spacing):
    # With fewer than 15 steps diffusers lowers the order of the last two; without that, of the one into clean data.
    # Its second step is 2M's unless the solver type is "heun".
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **betas_of_ddpm(),
        algorithm_type="dpmsolver++",
        solver_order=3,
        solver_type="heun",
        final_sigmas_type="zero",
        lower_order_final=False,
        timestep_spacing=spacing,
    )
    scheduler.set_timesteps(steps)
    mine = states(ours("dpmpp-3m", grid_of(scheduler), an_image()))
    assert gaps(mine, their_states(scheduler, an_image())).max() < 1e-5


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("steps", [5, 10])
def test_unipc_is_diffusers_step_by_step(order, variant, steps):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.UniPCMultistepScheduler(
        **betas_of_ddpm(), solver_order=order, solver_type=variant, final_sigmas_type="zero", lower_order_final=False
    )
    scheduler.set_timesteps(steps)
    mine = states(ours("unipc", grid_of(scheduler), an_image(), order=order, variant=variant))
    theirs = their_states(scheduler, an_image(), lower_the_last=True)
    assert gaps(mine[:-1], theirs[:-1]).max() < 1e-5
    if variant == "bh1":
        # Its B(h) is -h, and diffusers multiplies that infinity by 0; ours returns the data prediction.
        assert theirs[-1].isnan().all() and mine[-1].isfinite().all()
    else:
        assert gaps(mine[-1:], theirs[-1:]).max() < 1e-5


@pytest.mark.parametrize("end", ["zero", "sigma_min"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("steps", [5, 8, 20])
def test_unipc_with_lower_orders_at_the_end_is_diffusers_default_whatever_the_steps(steps, variant, order, end):
    # As the authors' code; by our default only the step into clean data is of first order.
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.UniPCMultistepScheduler(
        **betas_of_ddpm(), solver_order=order, solver_type=variant, final_sigmas_type=end
    )
    scheduler.set_timesteps(steps)
    grid, options = grid_of(scheduler, 0.0 if end == "zero" else 0.001), {"order": order, "variant": variant}
    theirs = their_states(scheduler, an_image())
    lower, full = (states(ours("unipc", grid, an_image(), final=final, **options)) for final in ("lower", "full"))
    if variant == "bh1" and end == "zero":
        # As above: diffusers multiplies an infinite B(h) by 0.
        assert theirs.pop().isnan().all() and lower.pop().isfinite().all() and full.pop().isfinite().all()
    assert gaps(lower, theirs).max() < 1e-5
    found = gaps(full, theirs)
    assert found[: steps + 2 - order].max() < 1e-5
    if order == 3:
        assert found[steps - 1] > 1e-4


@pytest.mark.parametrize("end", ["zero", "sigma_min"])
@pytest.mark.parametrize("order, solver_type", [(2, "midpoint"), (3, "heun")])
@pytest.mark.parametrize("steps", [5, 8, 20])
def test_dpmpp_with_lower_orders_at_the_end_is_diffusers_below_15_steps(steps, order, solver_type, end):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **betas_of_ddpm(),
        algorithm_type="dpmsolver++",
        solver_order=order,
        solver_type=solver_type,
        final_sigmas_type=end,
        lower_order_final=True,
    )
    scheduler.set_timesteps(steps)
    grid = grid_of(scheduler, 0.0 if end == "zero" else 0.001)
    theirs = their_states(scheduler, an_image())
    full, lower = (
        gaps(states(ours(f"dpmpp-{order}m", grid, an_image(), final=final)), theirs) for final in ("full", "lower")
    )
    same, other = (lower, full) if steps < 15 else (full, lower)
    assert same.max() < 1e-5
    # Into clean data 2M's last step is of first order by itself.
    assert (order == 2 and end == "zero") or other.max() > 1e-4


def log_rho_by_hand(times: list[float], x: torch.Tensor, orders: list[int]) -> list[torch.Tensor]:
    """The states of an exponential Adams-Bashforth method with polynomials in lambda instead of t."""
    a, s, lam = (of(float64(times)).tolist() for of in (LINEAR.alpha, LINEAR.sigma, LINEAR.lam))
    states, answers = [x], []
    for k in range(len(times) - 1):
        answers = [made_up(states[-1], times[k] * 1000 - 1), *answers][: orders[k]]
        nodes = [lam[k - j] for j in range(len(answers))]
        y = states[-1] / a[k]
        for j, answer in enumerate(answers):

            def integrand(u, j=j, nodes=nodes):
                others = (node for i, node in enumerate(nodes) if i != j)
                return -math.exp(-u) * math.prod((u - other) / (nodes[j] - other) for other in others)

            y = y + quad(integrand, lam[k], lam[k + 1], epsabs=0, epsrel=1e-12)[0] * answer
        states.append(a[k + 1] * y)
    assert s[-1] > 0
    return states


@pytest.mark.parametrize("order", [1, 2, 3])
def test_diffusers_deis_has_polynomials_in_log_rho_instead_of_t(order):
    # It ends at its lowest level, not at clean data. Order 1 has no polynomial: there all agree.
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DEISMultistepScheduler(**betas_of_ddpm(), solver_order=order, lower_order_final=False)
    scheduler.set_timesteps(10)
    grid = grid_of(scheduler, end=0.001)
    assert LINEAR.rho(0.001).item() == pytest.approx(scheduler.sigmas[-1].item(), rel=1e-4)
    theirs = their_states(scheduler, an_image())
    by_hand = log_rho_by_hand(list(grid.times), an_image(), orders_of_steps(10, order))
    assert gaps(by_hand, theirs).max() < 1e-5
    found = gaps(states(ours("deis-tab", grid, an_image(), order=order)), theirs)
    assert found[:2].max() < 1e-5
    if order == 1:
        assert found.max() < 1e-5
    else:
        assert found[2:].min() > 1e-4


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("steps", [5, 8, 20])
def test_diffusers_deis_lowers_its_orders_below_15_steps(steps, order):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DEISMultistepScheduler(**betas_of_ddpm(), solver_order=order, lower_order_final=True)
    scheduler.set_timesteps(steps)
    orders = orders_of_steps(steps, order, "lower" if steps < 15 else "full")
    by_hand = log_rho_by_hand(list(grid_of(scheduler, end=0.001).times), an_image(), orders)
    assert gaps(by_hand, their_states(scheduler, an_image())).max() < 1e-5


@pytest.mark.parametrize("end", [0.0, 0.05])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_each_step_of_deis_with_lower_orders_at_the_end_is_a_step_of_that_order(order, end):
    # diffusers' polynomials are not ours (above): each step is compared with one of ours of the order that it should have.
    times = torch.linspace(0.9, end, 9, dtype=torch.float64)
    run = drive(make_solver("deis-tab", order=order, final="lower")(points(4), times, LINEAR), made_up_at, keep=True)
    mine = states(run)
    for k, own in enumerate([min(order, k + 1, 8 - k) for k in range(8)]):
        answers = iter(run.answers)
        solver = make_solver("deis-tab", order=own)(points(4), times[: k + 2], LINEAR)
        other = states(drive(solver, lambda x, t, tau, answers=answers: next(answers), keep=True))
        ratio = LINEAR.alpha(times[k + 1]) / LINEAR.alpha(times[k])
        assert torch.allclose(mine[k + 1] - ratio * mine[k], other[k + 1] - ratio * other[k], rtol=1e-9, atol=1e-12)


def plms_scheduler(**options):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.PNDMScheduler(
        **betas_of_ddpm(), set_alpha_to_one=True, timestep_spacing="leading", steps_offset=0, **options
    )
    scheduler.set_timesteps(10)
    return scheduler


def test_a_step_of_plms_is_diffusers():
    # Each of our steps but the last, made by diffusers from our state and our earlier answers.
    run = ours("plms", make_grid("uniform", 10, LINEAR), an_image())
    mine = states(run)
    scheduler = plms_scheduler(skip_prk_steps=True)
    for k in range(9):
        scheduler.ets, scheduler.counter = list(run.answers[:k]), 2 * k
        n = round(run.trajectory[k].t.item() * 1000 - 1)
        theirs = scheduler.step(run.answers[k], n, mine[k]).prev_sample
        assert gaps([mine[k + 1]], [theirs]).max() < 1e-5, k


def test_diffusers_plms_takes_one_evaluation_more_and_extrapolates_into_clean_data():
    scheduler = plms_scheduler(skip_prk_steps=True)
    grid = make_grid("uniform", 10, LINEAR)
    run = ours("plms", grid, an_image())
    assert run.nfe == 10 and len(scheduler.timesteps) == 11
    theirs = their_states(scheduler, an_image())
    # The first two evaluations make one improved Euler step.
    t, s = float64(grid.times[:2])
    middle = (made_up(theirs[0], 900.0) + made_up(theirs[1], 800.0)) / 2
    by_hand = LINEAR.alpha(s) * (theirs[0] / LINEAR.alpha(t) + (LINEAR.rho(s) - LINEAR.rho(t)) * middle)
    assert gaps([by_hand], [theirs[2]]).max() < 1e-5
    # From one state, the step into clean data: ours returns the data prediction, theirs a mixture of four answers.
    scheduler.ets, scheduler.counter = list(run.answers[:9]), 10
    mixed = scheduler.step(run.answers[9], 0, run.trajectory[9].x).prev_sample
    alpha, sigma = LINEAR.alpha(0.001), LINEAR.sigma(0.001)
    assert torch.allclose(run.x, (run.trajectory[9].x - sigma * run.answers[9]) / alpha, rtol=1e-12, atol=1e-12)
    assert gaps([mixed], [run.x]).max() > 1e-5


def test_pndm_is_diffusers_with_runge_kutta_step_by_step_but_for_the_step_into_clean_data():
    scheduler = plms_scheduler(skip_prk_steps=False)
    run = ours("pndm", make_grid("uniform", 10, LINEAR), an_image())
    assert run.nfe == len(scheduler.timesteps) == 19
    found = gaps(states(run), their_states(scheduler, an_image()))
    assert found[:-1].max() < 1e-5 and found[-1] > 1e-5


def test_ipndm_is_diffusers_step_by_step_but_for_the_step_into_clean_data():
    # Its scheduler has a schedule of its own, and the network predicts v = alpha eps - sigma x_0: give it ours.
    diffusers = pytest.importorskip("diffusers")
    grid = make_grid("quadratic", 8, LINEAR)
    run = ours("ipndm", grid, an_image())
    scheduler = diffusers.IPNDMScheduler()
    scheduler.set_timesteps(8)
    scheduler.alphas, scheduler.betas = LINEAR.alpha(float64(grid.times)), LINEAR.sigma(float64(grid.times))
    theirs = [an_image()]
    for k, n in enumerate(scheduler.timesteps):
        eps = made_up(theirs[-1], grid.times[k] * 1000 - 1)
        v = (eps - scheduler.betas[k] * theirs[-1]) / scheduler.alphas[k]
        theirs.append(scheduler.step(v, n, theirs[-1]).prev_sample)
    found = gaps(states(run), theirs)
    assert found[:-1].max() < 1e-5 and found[-1] > 1e-5


# ---- budgets, batches, gradients and options


@pytest.mark.parametrize("name", [*MULTISTEP, *LOWERED])
@pytest.mark.parametrize("end", [0.0, 0.05])
def test_a_budget_is_the_number_of_evaluations(name, end):
    smallest = 13 if name == "pndm" else 1
    predictor = MixturePredictor(two_modes_1d(), LINEAR)
    for nfe in range(smallest, max(12, smallest + 3) + 1):
        solver, steps = make_solver(name).for_nfe(nfe)
        run = drive(solver(points(2), make_grid("logsnr", steps, LINEAR, end=end), LINEAR), predictor)
        assert run.nfe == nfe and run.x.isfinite().all()
    with pytest.raises(BadValue, match=f"at least {smallest} network evaluations, got {smallest - 1}"):
        make_solver(name).for_nfe(smallest - 1)


@pytest.mark.parametrize("steps, nfe", [(1, 1), (2, 5), (3, 9), (4, 13), (5, 14)])
def test_pndm_evaluates_once_before_clean_data_and_never_at_it(steps, nfe):
    run = drive(
        make_solver("pndm")(points(2), make_grid("logsnr", steps, LINEAR), LINEAR),
        MixturePredictor(two_modes_1d(), LINEAR),
        keep=True,
    )
    assert run.nfe == nfe and all(request.t > 0 for request in run.trajectory)


@pytest.mark.parametrize("name", [*MULTISTEP, *LOWERED])
@pytest.mark.parametrize("steps", [2, 3, 5])
def test_a_vector_of_times_is_each_sample_alone(name, steps):
    predictor = MixturePredictor(two_modes_1d(), LINEAR)
    # Three grids, one twice; one of them down to clean data.
    starts, ends = float64([1.0, 0.9, 0.5, 0.9]), float64([0.3, 0.05, 0.0, 0.05])
    place = torch.linspace(0, 1, steps + 1, dtype=torch.float64)[:, None] ** 1.3
    times = starts + place * (ends - starts)
    x = points(4)
    together = drive(make_solver(name)(x, times, LINEAR), predictor, keep=True)
    assert all(request.t.shape == (4,) and (request.t > 0).all() for request in together.trajectory)
    for i in range(4):
        alone = drive(make_solver(name)(x[i : i + 1], times[:, i], LINEAR), predictor)
        assert torch.allclose(together.x[i : i + 1], alone.x, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", MULTISTEP)
def test_a_float32_state_stays_float32_with_float64_coefficients(name):
    grid = make_grid("logsnr", 6, LINEAR)
    predictor = MixturePredictor(two_modes_1d(), LINEAR)
    single = drive(make_solver(name)(points(5).float(), grid, LINEAR), predictor).x
    double = drive(make_solver(name)(points(5), grid, LINEAR), predictor).x
    assert single.dtype == torch.float32
    assert (single - double).abs().max() < 1e-4


@pytest.mark.parametrize(
    "name, options",
    [
        ("deis-tab", {"order": 4}),
        ("ipndm-v", {"order": 2}),
        ("plms", {"order": 3}),
        ("dpmpp-3m", {"variant": "exact"}),
        *((name, {}) for name in LOWERED),
        *(("unipc", {"order": order, "variant": variant}) for order in (1, 2, 3) for variant in ("bh1", "bh2")),
    ],
)
@pytest.mark.parametrize("last", [0.05, 0.0])
def test_differentiable_in_every_tau_with_options(name, options, last):
    predictor = MixturePredictor(two_modes_1d(scale=0.3), CONTINUOUS)
    times = float64([0.9, 0.6, 0.3, 0.12, last])

    def end(taus):
        return drive(make_solver(name, **options)(points(2), times, CONTINUOUS), predictor, taus, grad=True).x

    taus = (0.97 * times[:-1]).requires_grad_(True)
    assert gradcheck(end, (taus,))
    (slope,) = torch.autograd.grad(end(taus).square().sum(), taus)
    assert slope.ne(0).all(), f"a tau has no influence: {slope}"


@pytest.mark.parametrize("name", ["plms", "ipndm", "ipndm-v", "deis-tab", "unipc"])
def test_order_is_an_option_and_sets_the_history(name):
    extra = name == "unipc"  # its corrector reaches back further by one
    for order in SOLVERS[name].choices["order"]:
        assert make_solver(name, order=order).history == order - 1 + extra
    for wrong in (0, 5, "third"):
        with pytest.raises(BadValue, match=rf"order of solver '{name}' must be one of 1, 2, 3.*got {wrong!r}"):
            make_solver(name, order=wrong)
    assert make_solver(name).history == SOLVERS[name].history
    assert [make_solver(other).history for other in ("pndm", "dpmpp-3m")] == [3, 2]


@pytest.mark.parametrize("name, choices", [("unipc", "bh1, bh2"), ("dpmpp-3m", "published, exact")])
def test_a_wrong_variant_is_named(name, choices):
    with pytest.raises(BadValue, match=f"variant of solver '{name}' must be one of {choices}; got 'bh3'"):
        make_solver(name, variant="bh3")


@pytest.mark.parametrize("spelled", LOWERED)
def test_final_is_an_option_and_its_default_says_nothing(spelled):
    name = spelled.partition(",")[0]
    assert make_solver(spelled).spelling == make_solver(name, final="lower").spelling == spelled
    assert make_solver(f"{name},final=full").spelling == make_solver(name).spelling == name
    assert make_solver(spelled).history == make_solver(name).history and make_solver(name).options == {}
    with pytest.raises(BadValue, match=f"final of solver '{name}' must be one of full, lower; got 'lowest'"):
        make_solver(name, final="lowest")
    with pytest.raises(BadValue, match=f"'{name}' takes no option 'after'; it takes .*'final'"):
        make_solver(name, after=1)


def test_a_stretch_of_a_grid_lowers_no_order_before_the_grids_end():
    solver = make_solver("unipc,final=lower")
    assert [solver.part(0, 4, after).options["after"] for after in (0, 2, 3, 9)] == [0, 2, 3, 3]
    assert make_solver("unipc").part(0, 4, 0).options == {}, "else it makes no difference"
    assert solver.options == {"final": "lower"} and solver.part(0, 4, 2).spelling == solver.spelling


def test_a_timing_can_name_a_variant():
    assert _label("unipc", {"order": 2, "variant": "bh1"}) == "unipc(order=2, variant=bh1)"
