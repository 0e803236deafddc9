"""DPM-Solver++ with memory: the papers' formulas by hand, and diffusers' scheduler step by step."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from solver_helpers import (
    LINEAR,
    UNEVEN,
    coefficient_table,
    draw,
    even_in_lambda,
    float64,
    gaps,
    grid_of,
    law_of,
    our_run,
    our_states,
    points,
    scheduler_of,
    start_law,
    states,
    their_states,
)

from tt_lib.engine import drive
from tt_lib.solvers.registry import make_solver

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("end", [0.06, 0.0])
def test_2ms_coefficients_are_the_papers(end):
    """Lu et al. 2022 (DPM-Solver++), algorithm 2; a step to t = 0, where h is infinite, returns x0."""
    times = [*UNEVEN[:-1].tolist(), end]
    a, s, lam = (of(float64(times)).tolist() for of in (LINEAR.alpha, LINEAR.sigma, LINEAR.lam))
    h = [math.nan, *(after - before for before, after in pairwise(lam))]
    x, *answers = np.eye(5)
    q: list = []  # the buffer of x_theta
    for i in range(1, 5):
        q.append((x - s[i - 1] * answers[i - 1]) / a[i - 1])
        d = q[-1]
        if i > 1 and times[i] > 0:
            r = h[i - 1] / h[i]
            d = (1 + 1 / (2 * r)) * q[-1] - 1 / (2 * r) * q[-2]
        x = s[i] / s[i - 1] * x - a[i] * (math.exp(-h[i]) - 1) * d
    assert coefficient_table("dpmpp-2m", float64(times), LINEAR) == pytest.approx(x, rel=1e-9, abs=1e-12)


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


def test_the_second_order_of_the_sde_solver():
    """Against the first-order one (DDIM with eta = 1) it leaves far less of the error in the variance."""
    times = even_in_lambda(40, LINEAR)
    true, start = start_law(times[-1])[1], start_law(times[0])
    second, first = (abs(law_of(name, times, *start)[1] / true - 1) for name in ("sde-dpmpp-2m", "ddpm"))
    assert second < 0.2 * first


# ---- diffusers


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("end", ["zero", "sigma_min"])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("steps, lower", [(5, False), (5, True), (8, True), (20, True)])
def test_it_is_diffusers_step_by_step(steps, lower, spacing, end, order):
    """diffusers lowers orders at the end below 15 steps. Its second step of third order is 2M's unless it is "heun"."""
    scheduler = scheduler_of(
        "DPMSolverMultistepScheduler",
        steps,
        solver_order=order,
        solver_type="midpoint" if order == 2 else "heun",
        lower_order_final=lower,
        final_sigmas_type=end,
        timestep_spacing=spacing,
    )
    grid, theirs = grid_of(scheduler, 0.0 if end == "zero" else 0.001), their_states(scheduler)
    same, other = ("lower", "full") if lower and steps < 15 else ("full", "lower")
    # Their coefficients are float32, and a long last step of third order enlarges what they lose.
    assert gaps(our_states(f"dpmpp-{order}m", grid, final=same), theirs).max() < 3e-5
    # Into clean data 2M's last step is of first order by itself.
    if order == 3 or end == "sigma_min":
        assert gaps(our_states(f"dpmpp-{order}m", grid, final=other), theirs).max() > 1e-4


def test_sde_2m_is_diffusers_step_by_step():
    scheduler = scheduler_of("DPMSolverMultistepScheduler", 8, algorithm_type="sde-dpmsolver++")
    noise = draw(5)
    ours = states(our_run("sde-dpmpp-2m", grid_of(scheduler), noise=draw(5)))
    step = scheduler.step
    scheduler.step = lambda eps, n, x: step(eps, n, x, variance_noise=noise(x))
    assert gaps(ours, their_states(scheduler)).max() < 1e-5
