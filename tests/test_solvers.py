"""Solvers: closed forms, measured orders, coefficients written out from the papers, and diffusers' schedulers."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from tt_lib.engine import drive
from tt_lib.errors import BadValue
from tt_lib.grids import Grid, make_grid
from tt_lib.guidance import Clipped
from tt_lib.schedules import Schedule, along, linear_betas, make_schedule
from tt_lib.solvers.registry import SOLVERS, make_solver
from tt_lib.toy import (
    MixturePredictor,
    exact_flow,
    gaussian_ddim,
    gaussian_flow,
    single_gaussian,
    two_modes_1d,
)

SCHEDULES = {name: make_schedule(name) for name in ("linear", "cosine", "continuous-linear")}
LINEAR = SCHEDULES["linear"]
UNEVEN = torch.tensor([0.95, 0.7, 0.62, 0.31, 0.06], dtype=torch.float64)
DETERMINISTIC = sorted(name for name, solver in SOLVERS.items() if not solver.stochastic)
pytestmark = pytest.mark.usefixtures("one_thread")


def points(n: int, dim: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def made_up(x: torch.Tensor, n: float) -> torch.Tensor:
    """Any smooth function will do as a network: bounded, nonlinear, different in every pixel and time."""
    place = torch.arange(x[0].numel(), dtype=x.dtype).reshape(x.shape[1:])
    return torch.sin(1.3 * x + 0.01 * n) + 0.3 * torch.cos(0.7 * place + 0.003 * n)


# ---- closed forms and orders


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("name, steps", [("uniform", 4), ("quadratic", 7), ("logsnr", 10)])
def test_ddim_on_one_gaussian_is_its_closed_form(schedule, name, steps):
    times = make_grid(name, steps, schedule).times
    x = points(50, 2)
    expected = gaussian_ddim(x, times, [0.5, -0.2], 0.3, schedule)
    predictor = MixturePredictor(single_gaussian([0.5, -0.2], 0.3), schedule)
    double = drive(make_solver("ddim")(x, Grid(name, times), schedule), predictor).x
    single = drive(make_solver("ddim")(x.float(), Grid(name, times), schedule), predictor).x
    assert double.dtype == torch.float64 and single.dtype == torch.float32
    assert (double - expected).abs().max() < 1e-9
    # Where alpha(t_0) is 5e-5 (cosine) the first step multiplies float32's rounding of x by 1 / alpha.
    factor = schedule.alpha(times[1]) / schedule.alpha(times[0])
    assert (single - expected).abs().max() < max(1e-5, 3e-7 * factor.item())


def errors_of(name: str, mixture, x: torch.Tensor, expected: torch.Tensor, ladder, schedule: Schedule) -> list[float]:
    found = []
    for steps in ladder:
        grid = make_grid("logsnr", steps, schedule, start=0.9, end=0.1)
        run = drive(make_solver(name)(x, grid, schedule), MixturePredictor(mixture, schedule))
        found.append((run.x - expected).abs().max().item())
    return found


@pytest.mark.parametrize("name, low, high", [("ddim", 0.85, 1.2), ("dpmpp-2m", 1.7, 2.4)])
@pytest.mark.parametrize("data", ["one Gaussian", "two modes"])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_measured_order_of_convergence(name, low, high, data, schedule):
    # Even in lambda, which both error expansions assume smooth, and ending above 0, where lambda is infinite.
    ladder = (20, 40, 80, 160)
    x = torch.linspace(-1.5, 1.5, 9, dtype=torch.float64)[:, None]
    if data == "one Gaussian":
        mixture = single_gaussian(0.5, 0.25)
        expected = gaussian_flow(x, 0.9, 0.1, 0.5, 0.25, schedule)
    else:
        mixture = two_modes_1d(scale=0.4)
        expected = exact_flow(mixture, x, 0.9, 0.1, schedule, rtol=1e-12)
    errors = errors_of(name, mixture, x, expected, ladder, schedule)
    orders = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    table = "\n".join(
        f"{steps:5d} steps  error {error:.3e}  order {order}"
        for steps, error, order in zip(ladder, errors, ["-", *(f"{order:.3f}" for order in orders)], strict=True)
    )
    assert all(low < order < high for order in orders), f"{name}, {data}, {schedule.name}:\n{table}"


# ---- coefficients


def evaluation_times(name: str, times: torch.Tensor, schedule: Schedule, **options) -> torch.Tensor:
    """The nominal time of each evaluation: the grid's but for its last, unless a step takes several."""
    solution = make_solver(name, **options)(torch.zeros(1, 1, dtype=torch.float64), times, schedule)
    return torch.stack([request.t for request in drive(solution, lambda x, t, tau: x, keep=True).trajectory])


def coefficient_table(name: str, times: torch.Tensor, schedule: Schedule, **options) -> np.ndarray:
    """[n + 1]: what the solver's result takes from x and from each of its n answers, measured with unit vectors."""
    unit = torch.eye(len(evaluation_times(name, times, schedule, **options)) + 1, dtype=torch.float64)
    answers = iter(unit[1:, None])
    run = drive(make_solver(name, **options)(unit[:1], times, schedule), lambda x, t, tau: next(answers))
    assert next(answers, None) is None, "fewer evaluations than in the first run"
    return run.x[0].numpy()


def alpha_bar(t: float) -> float:
    """The product of (1 - beta) of DDPM's linear schedule up to time t, log-linear between its levels."""
    betas = np.linspace(1e-4, 0.02, 1000)
    return float(np.exp(np.interp(t * 1000, np.arange(1001), np.concatenate([[0], np.log1p(-betas).cumsum()]))))


def ddim_by_hand(times, x, answers):
    """Song et al. 2021, eq. 12, with the paper's alpha (here alpha_bar) and sigma_t = 0."""
    for t, s, eps in zip(times[:-1], times[1:], answers, strict=True):
        a_t, a_s = alpha_bar(t), alpha_bar(s)
        predicted_x0 = (x - math.sqrt(1 - a_t) * eps) / math.sqrt(a_t)
        x = math.sqrt(a_s) * predicted_x0 + math.sqrt(1 - a_s) * eps
    return x


def dpmpp_2m_by_hand(times, x, answers):
    """Lu et al. 2022 (DPM-Solver++), algorithm 2; a step to t = 0, where h is infinite, returns x0."""
    a = [math.sqrt(alpha_bar(t)) for t in times]
    s = [math.sqrt(1 - alpha_bar(t)) for t in times]
    lam = [math.log(a_i / s_i) if s_i else math.inf for a_i, s_i in zip(a, s, strict=True)]
    h = [None, *(after - before for before, after in pairwise(lam))]
    q: list = []  # the buffer of x_theta
    for i in range(1, len(times)):
        q.append((x - s[i - 1] * answers[i - 1]) / a[i - 1])
        if i == 1 or times[i] == 0:
            d = q[-1]
        else:
            r = h[i - 1] / h[i]
            d = (1 + 1 / (2 * r)) * q[-1] - 1 / (2 * r) * q[-2]
        x = s[i] / s[i - 1] * x - a[i] * (math.exp(-h[i]) - 1) * d
    return x


BY_HAND = {"ddim": ddim_by_hand, "dpmpp-2m": dpmpp_2m_by_hand}


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("end", [0.06, 0.0])
def test_coefficients_are_the_papers(name, end):
    times = torch.cat([UNEVEN[:-1], torch.tensor([end], dtype=torch.float64)])
    table = coefficient_table(name, times, LINEAR)
    unit = np.eye(len(times))
    assert table == pytest.approx(BY_HAND[name](times.tolist(), unit[0], unit[1:]), rel=1e-10, abs=1e-12)


def test_ddims_coefficients_telescope():
    # In y = x / alpha and rho = sigma / alpha each step is y += eps (rho_s - rho_t).
    rho = LINEAR.rho(UNEVEN)
    expected = LINEAR.alpha(UNEVEN[-1]) * torch.cat([1 / LINEAR.alpha(UNEVEN[:1]), rho.diff()])
    assert coefficient_table("ddim", UNEVEN, LINEAR) == pytest.approx(expected.numpy(), rel=1e-12)


def test_the_first_and_last_steps_of_2m_have_no_history():
    assert coefficient_table("dpmpp-2m", UNEVEN[:2], LINEAR) == pytest.approx(
        coefficient_table("ddim", UNEVEN[:2], LINEAR), rel=1e-12
    )
    # The step to clean data returns x0 of the last state, whatever was answered before.
    to_zero = torch.tensor([0.6, 0.3, 0.0], dtype=torch.float64)
    state = coefficient_table("dpmpp-2m", to_zero[:2], LINEAR)
    alpha, sigma = LINEAR.alpha(0.3).item(), LINEAR.sigma(0.3).item()
    expected = np.array([*state, -sigma]) / alpha
    assert coefficient_table("dpmpp-2m", to_zero, LINEAR) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_solver_is_linear_in_its_start_and_its_answers(name):
    table = coefficient_table(name, UNEVEN, LINEAR)
    x, answers = points(3, 5), [points(3, 5, seed=k + 1) for k in range(len(table) - 1)]
    sent = iter(answers)
    run = drive(make_solver(name)(x, UNEVEN, LINEAR), lambda x, t, tau: next(sent))
    expected = sum(c * part for c, part in zip(table, [x, *answers], strict=True))
    assert torch.allclose(run.x, expected, rtol=1e-12, atol=1e-12)


# ---- diffusers


def diffusers_states(scheduler, x: torch.Tensor) -> list[torch.Tensor]:
    """The states that a diffusers scheduler goes through with the made-up network, the start first."""
    states = [x]
    for n in scheduler.timesteps:
        states.append(scheduler.step(made_up(states[-1], float(n)), n, states[-1]).prev_sample)
    return states


def compare(name: str, grid: Grid, x: torch.Tensor, theirs: list[torch.Tensor]) -> None:
    def predictor(x, t, tau):
        return made_up(x, float(t) * 1000 - 1)

    run = drive(make_solver(name)(x, grid, LINEAR), predictor, keep=True)
    ours = [*(request.x for request in run.trajectory), run.x]
    assert len(ours) == len(theirs) == grid.steps + 1
    for k, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        gap = ((mine - other).abs().max() / other.abs().max()).item()
        assert gap < 1e-5, f"{name}, {grid.steps} steps: states {k} differ by {gap:.2e} of their size"


def betas_of_ddpm() -> dict:
    return {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}


@pytest.mark.parametrize("steps", [10, 20, 50])
def test_ddim_is_diffusers_ddim_step_by_step(steps):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(
        **betas_of_ddpm(), clip_sample=False, set_alpha_to_one=True, timestep_spacing="leading", steps_offset=0
    )
    scheduler.set_timesteps(steps)
    grid = make_grid("uniform", steps, LINEAR)
    assert [round(t * 1000 - 1) for t in grid.times] == [*scheduler.timesteps.tolist(), -1]
    x = points(4, 6).reshape(4, 2, 3)
    compare("ddim", grid, x, diffusers_states(scheduler, x))


def test_diffusers_ddim_steps_to_another_time_than_it_asks_at_next():
    """Its step goes from n to n - N // K, whatever the spacing: where N / K is no whole number that is not the next time."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(**betas_of_ddpm(), clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(7)
    n, following = scheduler.timesteps[:2].tolist()
    assert (n, following, n - 1000 // 7) == (999, 856, 857)
    x, eps = points(2, 3), points(2, 3).flip(0)
    theirs = scheduler.step(eps, n, x).prev_sample

    def to(index):
        times = torch.tensor([1.0, (index + 1) / 1000], dtype=torch.float64)
        return drive(make_solver("ddim")(x, times, LINEAR), lambda x, t, tau: eps).x

    assert torch.allclose(theirs, to(857), rtol=1e-5)
    assert (theirs - to(856)).abs().max() > 1e-3 * theirs.abs().max()


def test_diffusers_ddim_clips_x0_and_keeps_the_eps_that_no_longer_belongs_to_it():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(**betas_of_ddpm(), clip_sample=True, timestep_spacing="leading")
    scheduler.set_timesteps(10)
    x, times = 3 * points(4, 3), torch.tensor([0.501, 0.401], dtype=torch.float64)
    eps = points(4, 3).flip(0)
    alpha, sigma = LINEAR.alpha(times), LINEAR.sigma(times)
    clipped = ((x - sigma[0] * eps) / alpha[0]).clamp(-1, 1)
    ours = drive(make_solver("ddim")(x, times, LINEAR), Clipped(lambda x, t, tau: eps, LINEAR)).x
    again = (x - alpha[0] * clipped) / sigma[0]
    assert torch.allclose(ours, alpha[1] * clipped + sigma[1] * again)
    assert torch.allclose(
        scheduler.step(eps, 500, x).prev_sample, alpha[1] * clipped + sigma[1] * eps, rtol=1e-5, atol=1e-6
    )
    rederived = scheduler.step(eps, 500, x, use_clipped_model_output=True).prev_sample
    assert torch.allclose(rederived, ours, rtol=1e-5, atol=1e-6) and not torch.allclose(eps, again, atol=0.1)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("steps", [5, 10, 20])
def test_2m_is_diffusers_dpm_solver_step_by_step(steps, spacing):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **betas_of_ddpm(),
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        final_sigmas_type="zero",
        lower_order_final=True,
        timestep_spacing=spacing,
    )
    scheduler.set_timesteps(steps)
    nodes = [(n + 1) / 1000 for n in scheduler.timesteps.tolist()]
    assert LINEAR.rho(torch.tensor(nodes)).numpy() == pytest.approx(scheduler.sigmas[:-1].numpy(), rel=1e-4)
    x = points(4, 6).reshape(4, 2, 3)
    compare("dpmpp-2m", Grid("theirs", (*nodes, 0.0)), x, diffusers_states(scheduler, x))


# ---- eta


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_eta_has_the_exact_mean_and_variance_on_gaussian_data(eta):
    mean, scale, n = 0.5, 0.25, 100_000
    predictor = MixturePredictor(single_gaussian(mean, scale), LINEAR)
    times = [0.95, 0.5, 0.2, 0.05]
    generator = torch.Generator().manual_seed(7)

    def noise(x):
        return torch.randn(x.shape, dtype=x.dtype, generator=generator)

    x = 0.3 + 1.2 * noise(torch.empty(n, 1, dtype=torch.float64))
    run = drive(make_solver("ddim", eta=eta)(x, torch.tensor(times, dtype=torch.float64), LINEAR, noise), predictor)
    m, v = 0.3, 1.2**2
    for t, s in pairwise(times):
        a_t, a_s = alpha_bar(t), alpha_bar(s)
        # Eq. 16 of Song et al.: at eta = 1 the variance of the posterior q(x_s | x_t, x_0).
        c2 = eta**2 * (1 - a_s) / (1 - a_t) * (1 - a_t / a_s)
        # eps is linear: eps = k (x - sqrt(a_t) mean).
        k = math.sqrt(1 - a_t) / (a_t * scale**2 + 1 - a_t)
        slope = math.sqrt(a_s / a_t) * (1 - math.sqrt(1 - a_t) * k) + math.sqrt(1 - a_s - c2) * k
        m = math.sqrt(a_s) * mean + slope * (m - math.sqrt(a_t) * mean)
        v = slope**2 * v + c2
    assert run.x.mean().item() == pytest.approx(m, abs=5 * math.sqrt(v / n))
    assert run.x.var().item() == pytest.approx(v, rel=5 * math.sqrt(2 / n))


def test_eta_1_draws_from_the_posterior():
    # q(x_s | x_t, x_0), Ho et al. 2020, eq. 7, with one network answer and one noise.
    t, s = 0.6, 0.4
    a_t, a_s = alpha_bar(t), alpha_bar(s)
    x, eps, z = points(8, 3), points(8, 3, seed=1), points(8, 3, seed=2)
    times = torch.tensor([t, s], dtype=torch.float64)
    run = drive(make_solver("ddim", eta=1)(x, times, LINEAR, lambda x: z), lambda x, t, tau: eps)
    x0 = (x - math.sqrt(1 - a_t) * eps) / math.sqrt(a_t)
    beta = 1 - a_t / a_s
    mean = (math.sqrt(a_s) * beta * x0 + math.sqrt(1 - beta) * (1 - a_s) * x) / (1 - a_t)
    expected = mean + math.sqrt((1 - a_s) / (1 - a_t) * beta) * z
    assert torch.allclose(run.x, expected, rtol=1e-10, atol=1e-12)


def test_eta_needs_noise_and_eta_0_takes_none():
    predictor = MixturePredictor(single_gaussian(), LINEAR)
    with pytest.raises(BadValue, match="noise"):
        drive(make_solver("ddim", eta=0.3)(points(2), UNEVEN, LINEAR), predictor)

    def refuse(x):
        raise AssertionError("a deterministic solver drew noise")

    for name in DETERMINISTIC:
        drive(make_solver(name)(points(2), UNEVEN, LINEAR, refuse), predictor)


# ---- times, gradients and the registry


@pytest.mark.parametrize("name, options", [("ddim", {}), ("ddim", {"eta": 1.0}), ("dpmpp-2m", {})])
def test_a_vector_of_times_is_each_sample_alone(name, options):
    predictor = MixturePredictor(two_modes_1d(), LINEAR)
    # One grid a sample, one of them down to clean data.
    times = torch.tensor([[1.0, 0.9, 0.5], [0.7, 0.85, 0.4], [0.3, 0.2, 0.3], [0.1, 0.05, 0.0]], dtype=torch.float64)
    x, z = points(3), points(3, seed=5)
    together = drive(make_solver(name, **options)(x, times, LINEAR, lambda x: z), predictor, keep=True)
    assert [request.t.shape for request in together.trajectory] == [(3,)] * 3
    for i in range(3):
        one, noise = slice(i, i + 1), z[i : i + 1]
        alone = drive(
            make_solver(name, **options)(x[one], times[:, i], LINEAR, lambda x, noise=noise: noise), predictor
        )
        assert torch.allclose(together.x[one], alone.x, rtol=1e-12, atol=1e-12)


def test_a_coefficient_goes_along_the_batch():
    x = torch.ones(2, 3, 4, 5)
    assert along(torch.tensor(2.0, dtype=torch.float64), x).dtype == torch.float32
    scaled = along(torch.tensor([1.0, 7.0], dtype=torch.float64), x) * x
    assert scaled.shape == x.shape and scaled[0].eq(1).all() and scaled[1].eq(7).all()


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_the_step_to_clean_data_is_finite_and_right(name, schedule, steps):
    grid = make_grid("logsnr", steps, schedule)
    assert grid.times[-1] == 0
    mixture = single_gaussian(0.5, 0.25)
    run = drive(make_solver(name)(points(5), grid, schedule), MixturePredictor(mixture, schedule), keep=True)
    state, t, _ = run.trajectory[-1]
    # From any state the last step's result is the posterior mean of x_0.
    assert run.x.isfinite().all()
    assert torch.allclose(run.x, mixture.x0(state, t, schedule), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", DETERMINISTIC)
@pytest.mark.parametrize("last", [0.05, 0.0])
def test_differentiable_in_every_tau_and_in_the_start(name, last):
    schedule = SCHEDULES["continuous-linear"]  # without kinks
    predictor = MixturePredictor(two_modes_1d(scale=0.3), schedule)
    times = torch.tensor([0.9, 0.6, 0.3, 0.12, last], dtype=torch.float64)

    def end(taus, x):
        return drive(make_solver(name)(x, times, schedule), predictor, taus, grad=True).x

    taus = (0.97 * evaluation_times(name, times, schedule)).requires_grad_(True)
    x = points(3).requires_grad_(True)
    assert gradcheck(end, (taus, x))
    (slope,) = torch.autograd.grad(end(taus, x).square().sum(), taus)
    assert slope.ne(0).all(), f"a tau has no influence: {slope}"


def test_make_solver_and_its_errors():
    assert make_solver("ddim").eta == 0 and make_solver("ddim", eta=0.7).eta == 0.7
    assert SOLVERS["ddim"].options == {}
    assert make_solver("ddim").history == 0 and make_solver("dpmpp-2m").history == 1
    with pytest.raises(BadValue, match=r"unknown solver 'eular'.*ddim, .*dpmpp-2m"):
        make_solver("eular")
    with pytest.raises(BadValue, match=r"'ddim' takes no option 'order'.*eta"):
        make_solver("ddim", order=2)
    with pytest.raises(BadValue, match=r"'dpmpp-2m' takes no option 'eta'.*\['final'\]"):
        make_solver("dpmpp-2m", eta=1.0)
    with pytest.raises(BadValue, match=r"'heun' takes no option 'eta'.*orders"):
        make_solver("heun", eta=1.0)


def test_a_grid_and_its_times_are_the_same():
    grid = make_grid("uniform", 5, linear_betas())
    predictor = MixturePredictor(two_modes_1d(), LINEAR)
    for name in DETERMINISTIC:
        by_grid = drive(make_solver(name)(points(4), grid, LINEAR), predictor)
        times = torch.tensor(grid.times, dtype=torch.float64)
        assert torch.equal(by_grid.x, drive(make_solver(name)(points(4), times, LINEAR), predictor).x)


def test_a_solver_is_spelled_with_its_options():
    solver = make_solver("unipc,variant=bh1,order=2")
    assert solver.options == {"order": 2, "variant": "bh1"} and solver.history == make_solver("unipc", order=2).history
    assert solver.spelling == "unipc,order=2,variant=bh1" == make_solver("unipc", variant="bh1", order=2).spelling
    assert make_solver("unipc").spelling == "unipc" == make_solver("unipc,order=3").spelling, "a default says nothing"
    assert make_solver("ddim", eta=0.5).spelling == "ddim" == make_solver("ddim").for_nfe(5)[0].spelling
    assert make_solver("dpm-solver-fast").for_nfe(7)[0].spelling == "dpm-solver-fast", (
        "what follows from the budget is no choice"
    )
    assert make_solver("analytic-ddim,pixels=1.5").options == {"pixels": 1.5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("unipc,order", "spelled name=value.*got 'order'"),
        ("unipc,=2", "spelled name=value"),
        ("unipc,order=4", "one of 1, 2, 3; got 4"),
        ("unipc,order=two", "got 'two'"),
        ("unipc,order=2,order=2", "order cannot be given twice"),
        ("ddim,eta=1", "--eta is an option"),
        ("heun,orders=2", "follow from NFE"),
        ("ddim,order=2", "takes no option 'order'"),
        ("eular,order=2", "unknown solver 'eular'"),
    ],
)
def test_a_wrong_spelling_is_named(text, message):
    with pytest.raises(BadValue, match=message):
        make_solver(text)
