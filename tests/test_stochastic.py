"""Stochastic solvers: the law that they sample, the noise that belongs to a seed, and their equals."""

from __future__ import annotations

import pytest
import torch

from tt_lib.engine import drive
from tt_lib.errors import BadValue
from tt_lib.grids import make_grid
from tt_lib.noise import SampleNoise
from tt_lib.schedules import make_schedule
from tt_lib.solvers.registry import SOLVERS, Solver, make_solver
from tt_lib.toy import MixturePredictor, single_gaussian

LINEAR = make_schedule("linear")
BETAS = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
MEAN, SCALE = 0.5, 0.25
EXACT = MixturePredictor(single_gaussian(MEAN, SCALE), LINEAR)
STOCHASTIC = sorted(name for name, solver in SOLVERS.items() if solver.stochastic)
pytestmark = pytest.mark.usefixtures("one_thread")


def draw(seed: int):
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, dtype=x.dtype, generator=generator)


def made(name: str, times, **options) -> Solver:
    """A solver for these times; one that works with gamma gets that of the Gaussian, ``sigma^2 / (alpha^2 s^2 + sigma^2)``."""
    if SOLVERS[name].needs_gamma:
        t = torch.as_tensor(times, dtype=torch.float64)[:-1]
        variance = LINEAR.sigma(t) ** 2
        options["gamma"] = tuple((variance / (LINEAR.alpha(t) ** 2 * SCALE**2 + variance)).tolist())
    return make_solver(name, **options)


def law_of(name: str, times: torch.Tensor, mean: float, var: float, **options) -> tuple[float, float]:
    """Mean and variance after a run, exactly: on one Gaussian eps is affine in x, so the run is affine in x and the noises."""

    steps = len(times) - 1
    # One batch does it: rows that start at 0 and at 1, and one row for a unit of each step's noise.
    x = torch.zeros(2 + steps, 1, dtype=torch.float64)
    x[1] = 1
    count = iter(range(2, 2 + steps))

    def noise(x: torch.Tensor) -> torch.Tensor:
        unit = torch.zeros_like(x)
        unit[next(count)] = 1
        return unit

    base, one, *units = drive(made(name, times, **options)(x, times, LINEAR, noise), EXACT).x[:, 0].tolist()
    return base + (one - base) * mean, (one - base) ** 2 * var + sum((unit - base) ** 2 for unit in units)


def start_law(t: torch.Tensor) -> tuple[float, float]:
    alpha, sigma = LINEAR.alpha(t).item(), LINEAR.sigma(t).item()
    return alpha * MEAN, alpha**2 * SCALE**2 + sigma**2


@pytest.mark.parametrize(("name", "options"), [("ddpm", {}), ("ddpm", {"variance": "large"}), ("sde-dpmpp-2m", {})])
def test_many_steps_sample_the_data(name, options):
    """Mean and variance of the data, the closer the more steps."""
    gaps = []
    for steps in (100, 400):
        times = torch.tensor(make_grid("logsnr", steps, LINEAR).times, dtype=torch.float64)
        mean, variance = law_of(name, times, *start_law(times[0]), **options)
        gaps.append(max(abs(mean - MEAN), abs(variance / SCALE**2 - 1)))
    assert gaps[1] < 0.03 and gaps[1] < max(0.7 * gaps[0], 0.002), gaps


@pytest.mark.parametrize("name", STOCHASTIC)
def test_samples_have_the_law(name):
    times = torch.tensor([0.95, 0.5, 0.2, 0.05], dtype=torch.float64)
    noise, n = draw(7), 100_000
    x = 0.3 + 1.2 * noise(torch.empty(n, 1, dtype=torch.float64))
    found = drive(made(name, times)(x, times, LINEAR, noise), EXACT).x
    mean, variance = law_of(name, times, 0.3, 1.2**2)
    assert found.mean().item() == pytest.approx(mean, abs=5 * (variance / n) ** 0.5)
    assert found.var().item() == pytest.approx(variance, rel=5 * (2 / n) ** 0.5)


def test_the_second_order_of_the_sde_solver():
    """Against the first-order one (DDIM with eta = 1) it leaves far less of the error in the variance."""
    times = torch.tensor(make_grid("logsnr", 40, LINEAR, start=0.9, end=0.1).times, dtype=torch.float64)
    true = start_law(times[-1])[1]
    start = start_law(times[0])
    second, first = (abs(law_of(name, times, *start)[1] / true - 1) for name in ("sde-dpmpp-2m", "ddpm"))
    assert second < 0.2 * first, (second, first)


def test_small_variance_is_ddim_with_eta_1():
    grid, x = make_grid("uniform", 5, LINEAR), draw(0)(torch.empty(6, 1, dtype=torch.float64))
    ancestral = drive(make_solver("ddpm")(x, grid, LINEAR, draw(1)), EXACT).x
    ddim = drive(make_solver("ddim", eta=1.0)(x, grid, LINEAR, draw(1)), EXACT).x
    assert torch.allclose(ancestral, ddim, rtol=1e-10)
    large = drive(make_solver("ddpm", variance="large")(x, grid, LINEAR, draw(1)), EXACT).x
    assert not torch.allclose(ancestral, large, rtol=1e-3)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_seed_gives_one_image_in_any_batch(name):
    grid = make_grid("uniform", 4, LINEAR)

    def sample(seeds):
        noise = SampleNoise(seeds)
        x = noise.start((1,)).double()
        return drive(made(name, grid.times)(x, grid, LINEAR, noise), EXACT).x

    together = sample([5, 6, 7])
    assert torch.allclose(together, torch.cat([sample([seed]) for seed in (5, 6, 7)]), rtol=1e-12)
    assert not torch.allclose(together[0], together[1])


@pytest.mark.parametrize("name", STOCHASTIC)
def test_the_step_to_clean_data_adds_no_noise(name):
    grid = make_grid("uniform", 3, LINEAR)
    x = draw(0)(torch.empty(5, 1, dtype=torch.float64))
    run = drive(made(name, grid.times)(x, grid, LINEAR, draw(1)), EXACT, keep=True)
    state, t, _ = run.trajectory[-1]
    assert torch.allclose(run.x, single_gaussian(MEAN, SCALE).x0(state, t, LINEAR), rtol=1e-9)


def test_noise_is_asked_for_and_a_wrong_variance_named():
    with pytest.raises(BadValue, match="draws noise"):
        drive(make_solver("sde-dpmpp-2m")(torch.zeros(1, 1), make_grid("uniform", 3, LINEAR), LINEAR), EXACT)
    with pytest.raises(BadValue, match="variance of solver 'ddpm' must be one of small, large; got 'learned'"):
        make_solver("ddpm", variance="learned")


# ---- diffusers


def compare_with_diffusers(solver: Solver, scheduler, states) -> None:
    """Step by step from ``states`` [B, ...] on, with the same noise in both."""
    scheduler.set_timesteps(8)
    times = torch.tensor([*((n + 1) / 1000 for n in scheduler.timesteps.tolist()), 0.0], dtype=torch.float64)
    count = iter(range(len(times)))
    run = drive(solver(states, times, LINEAR, lambda x: noise_of(next(count), x)), wave, keep=True)
    x = states
    for k, (n, request) in enumerate(zip(scheduler.timesteps, run.trajectory, strict=True)):
        assert torch.allclose(x, request.x, rtol=1e-5, atol=1e-5), f"{solver.name}: states {k} differ"
        x = diffusers_step(scheduler, k, wave(x, times[k], times[k]), n, x)
    assert torch.allclose(x, run.x, rtol=1e-5, atol=1e-5)


def wave(x, t, tau):
    return torch.sin(1.3 * x + 5 * t)


def noise_of(step: int, x: torch.Tensor) -> torch.Tensor:
    return torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(step))


def diffusers_step(scheduler, k, answer, n, x):
    if type(scheduler).__name__ != "DDPMScheduler":
        return scheduler.step(answer, n, x, variance_noise=noise_of(k, x)).prev_sample
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *a, **k_: noise_of(k, x))
        return scheduler.step(answer, n, x).prev_sample


@pytest.mark.parametrize("variance", ["small", "large"])
def test_ancestral_sampling_is_diffusers_step_by_step(variance):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(
        **BETAS, clip_sample=False, variance_type=f"fixed_{variance}", timestep_spacing="leading"
    )
    compare_with_diffusers(
        make_solver("ddpm", variance=variance), scheduler, noise_of(99, torch.zeros(3, 5, dtype=torch.float64))
    )


def test_sde_2m_is_diffusers_step_by_step():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **BETAS, algorithm_type="sde-dpmsolver++", final_sigmas_type="zero", timestep_spacing="leading"
    )
    compare_with_diffusers(make_solver("sde-dpmpp-2m"), scheduler, noise_of(99, torch.zeros(3, 5, dtype=torch.float64)))
