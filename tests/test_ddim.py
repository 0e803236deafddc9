"""DDIM and DDPM: closed forms, the papers' formulas by hand, and diffusers' schedulers."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from solver_helpers import (
    LINEAR,
    MEAN,
    SCALE,
    UNEVEN,
    coefficient_table,
    draw,
    float64,
    gaps,
    grid_of,
    law_of,
    our_run,
    our_states,
    points,
    scheduler_of,
    states,
    their_states,
)

from tt_lib.engine import drive
from tt_lib.grids import make_grid
from tt_lib.solvers.registry import make_solver

pytestmark = pytest.mark.usefixtures("one_thread")


def alpha_bar(t: float) -> float:
    """The product of (1 - beta) of DDPM's linear schedule up to time t, log-linear between its levels."""
    betas = np.linspace(1e-4, 0.02, 1000)
    return float(np.exp(np.interp(t * 1000, np.arange(1001), np.concatenate([[0], np.log1p(-betas).cumsum()]))))


@pytest.mark.parametrize("end", [0.06, 0.0])
def test_ddims_coefficients_are_the_papers(end):
    """Song et al. 2021, eq. 12, with the paper's alpha (here alpha_bar) and sigma_t = 0."""
    times = [*UNEVEN[:-1].tolist(), end]
    x, *answers = np.eye(5)
    for (t, s), eps in zip(pairwise(times), answers, strict=True):
        a_t, a_s = alpha_bar(t), alpha_bar(s)
        predicted_x0 = (x - math.sqrt(1 - a_t) * eps) / math.sqrt(a_t)
        x = math.sqrt(a_s) * predicted_x0 + math.sqrt(1 - a_s) * eps
    assert coefficient_table("ddim", float64(times), LINEAR) == pytest.approx(x, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_eta_has_the_papers_mean_and_variance_on_gaussian_data(eta):
    times = [0.95, 0.5, 0.2, 0.05]
    m, v = 0.3, 1.2**2
    law = law_of("ddim", float64(times), m, v, eta=eta)
    for t, s in pairwise(times):
        a_t, a_s = alpha_bar(t), alpha_bar(s)
        # Eq. 16 of Song et al.: at eta = 1 the variance of the posterior q(x_s | x_t, x_0).
        c2 = eta**2 * (1 - a_s) / (1 - a_t) * (1 - a_t / a_s)
        # eps is linear: eps = k (x - sqrt(a_t) mean).
        k = math.sqrt(1 - a_t) / (a_t * SCALE**2 + 1 - a_t)
        slope = math.sqrt(a_s / a_t) * (1 - math.sqrt(1 - a_t) * k) + math.sqrt(1 - a_s - c2) * k
        m = math.sqrt(a_s) * MEAN + slope * (m - math.sqrt(a_t) * MEAN)
        v = slope**2 * v + c2
    assert law == pytest.approx((m, v), rel=1e-9)


@pytest.mark.parametrize("name, options", [("ddim", {"eta": 1.0}), ("ddpm", {}), ("ddpm", {"variance": "large"})])
def test_ancestral_sampling_draws_from_the_posterior(name, options):
    """q(x_s | x_t, x_0), Ho et al. 2020, eq. 7, with one answer and one noise; ``large`` has the variance beta."""
    t, s = 0.6, 0.4
    a_t, a_s = alpha_bar(t), alpha_bar(s)
    x, eps, z = points(8, 3), points(8, 3, seed=1), points(8, 3, seed=2)
    run = drive(make_solver(name, **options)(x, float64([t, s]), LINEAR, lambda x: z), lambda x, t, tau: eps)
    x0 = (x - math.sqrt(1 - a_t) * eps) / math.sqrt(a_t)
    beta = 1 - a_t / a_s
    mean = (math.sqrt(a_s) * beta * x0 + math.sqrt(1 - beta) * (1 - a_s) * x) / (1 - a_t)
    variance = beta if options.get("variance") == "large" else (1 - a_s) / (1 - a_t) * beta
    assert torch.allclose(run.x, mean + math.sqrt(variance) * z, rtol=1e-10, atol=1e-12)


# ---- diffusers


@pytest.mark.parametrize("steps", [10, 20, 50])
def test_ddim_is_diffusers_step_by_step(steps):
    scheduler = scheduler_of("DDIMScheduler", steps, clip_sample=False)
    grid = make_grid("uniform", steps, LINEAR)
    assert grid.times == pytest.approx(grid_of(scheduler).times)
    assert gaps(our_states("ddim", grid), their_states(scheduler)).max() < 1e-5


def test_diffusers_ddim_steps_to_another_time_than_it_asks_at_next():
    """It steps from n to n - N // K, whatever the spacing: not the next time where N / K is no whole number."""
    scheduler = scheduler_of("DDIMScheduler", 7, clip_sample=False, timestep_spacing="trailing")
    n, following = scheduler.timesteps[:2].tolist()
    assert (n, following, n - 1000 // 7) == (999, 856, 857)
    x, eps = points(2, 3), points(2, 3).flip(0)
    theirs = scheduler.step(eps, n, x).prev_sample

    def to(index):
        times = float64([1.0, (index + 1) / 1000])
        return drive(make_solver("ddim")(x, times, LINEAR), lambda x, t, tau: eps).x

    assert torch.allclose(theirs, to(857), rtol=1e-5)
    assert (theirs - to(856)).abs().max() > 1e-3 * theirs.abs().max()


@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm_is_diffusers_step_by_step(variance, monkeypatch):
    scheduler = scheduler_of("DDPMScheduler", 8, clip_sample=False, variance_type=f"fixed_{variance}")
    noise = draw(5)
    ours = states(our_run("ddpm", grid_of(scheduler), noise=draw(5), variance=variance))
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda shape, **options: noise(torch.empty(shape).double())
    )
    assert gaps(ours, their_states(scheduler)).max() < 1e-5
