"""Toys: exact directions, exact flows and closed forms, each against another way to the same number."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from solver_helpers import LINEAR, SCHEDULES, float64, gaussian_flow
from torch.autograd import gradcheck

from tt_lib.engine import drive
from tt_lib.errors import BadValue, NotFinite
from tt_lib.solvers.registry import make_solver
from tt_lib.toy import (
    GaussianMixture,
    MixturePredictor,
    exact_flow,
    exact_trajectory,
    gaussian_ddim,
    ring_2d,
    single_gaussian,
    two_modes_1d,
)

TIMES = (1.0, 0.7003, 0.25, 0.02, 0.001)
COVARIANCES = [[[0.3, 0.2], [0.2, 0.4]], [[0.1, 0.0], [0.0, 0.02]]]
FULL = GaussianMixture([1.0, 3.0], [[0.5, -1.0], [-1.0, 0.2]], covariances=COVARIANCES)
MIXTURES = {"single": single_gaussian(), "two": two_modes_1d(), "ring": ring_2d(), "full": FULL}
every_mixture = pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES)
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def points(mixture: GaussianMixture, n: int = 40, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 1.5 * torch.randn(n, mixture.dim, dtype=torch.float64, generator=generator)


def cdf(mixture: GaussianMixture, x: torch.Tensor, t: float, schedule) -> torch.Tensor:
    """P(x_t <= x) of a mixture on the line, from scipy's normal distribution."""
    alpha, sigma = schedule.alpha(t).item(), schedule.sigma(t).item()
    total = torch.zeros(len(x), dtype=torch.float64)
    scales = mixture._variances[:, 0].sqrt()
    for weight, mean, scale in zip(mixture.weights, mixture.means[:, 0], scales, strict=True):
        spread = math.hypot(alpha * scale.item(), sigma)
        total += weight * torch.from_numpy(norm.cdf(x[:, 0].numpy(), alpha * mean.item(), spread))
    return total


# ---- eps and x0


@every_mixture
@pytest.mark.parametrize("t", TIMES)
def test_x_is_alpha_x0_plus_sigma_eps(mixture, t):
    for schedule in SCHEDULES.values():
        x = points(mixture)
        eps, x0 = mixture.eps(x, t, schedule), mixture.x0(x, t, schedule)
        assert torch.allclose(schedule.alpha(t) * x0 + schedule.sigma(t) * eps, x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("t", [1.0, 0.5, 0.1])
def test_the_posterior_mean_against_quadrature(t):
    mixture = MIXTURES["two"]
    alpha, sigma = LINEAR.alpha(t).item(), LINEAR.sigma(t).item()

    def joint(x0: float, x: float) -> float:
        prior = 0.35 * norm.pdf(x0, -1, 0.2) + 0.65 * norm.pdf(x0, 1, 0.2)
        return prior * norm.pdf(x, alpha * x0, sigma)

    for x in (-1.7, -0.1, 0.4, 1.2):
        # The breakpoints tell the quadrature where the mass may be.
        breaks = [-1, 0, 1, x / alpha] if t < 1 else [-1, 0, 1]
        options = {"epsabs": 1e-13, "epsrel": 1e-11, "limit": 400, "points": breaks}
        density, _ = quad(joint, -4, 4, args=(x,), **options)
        moment, _ = quad(lambda x0, x: x0 * joint(x0, x), -4, 4, args=(x,), **options)
        state = float64([[x]])
        assert mixture.x0(state, t, LINEAR).item() == pytest.approx(moment / density, rel=1e-7)


def test_eps_is_minus_sigma_times_the_score_of_torchs_distributions_and_covariances_agree_with_scales():
    t, x = 0.3, points(FULL).requires_grad_(True)
    alpha, sigma = LINEAR.alpha(t), LINEAR.sigma(t)
    normals = torch.distributions.MultivariateNormal(
        alpha * FULL.means, alpha**2 * float64(COVARIANCES) + sigma**2 * torch.eye(2, dtype=torch.float64)
    )
    expected = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(FULL.weights), normals)
    (score,) = torch.autograd.grad(expected.log_prob(x).sum(), x)
    assert torch.allclose(FULL.eps(x, t, LINEAR), -sigma * score, rtol=1e-9, atol=1e-11)
    ring = ring_2d(3, scale=0.3)
    same = GaussianMixture(ring.weights, ring.means, covariances=0.09 * torch.eye(2).double().expand(3, 2, 2))
    assert torch.allclose(ring.eps(x, 0.2, LINEAR), same.eps(x, 0.2, LINEAR), rtol=1e-12, atol=1e-14)


@every_mixture
def test_a_vector_of_times_is_each_time_alone(mixture):
    x, t = points(mixture, 5), float64([1.0, 0.6, 0.301, 0.01, 0.0])
    for method in (mixture.eps, mixture.x0):
        alone = torch.cat([method(x[i : i + 1], t[i], LINEAR) for i in range(5)])
        assert torch.allclose(method(x, t, LINEAR), alone, rtol=1e-13, atol=1e-13)


@every_mixture
def test_finite_at_clean_data_and_far_from_all_modes(mixture):
    x = torch.cat([points(mixture), 1e8 * points(mixture, 3)])
    assert torch.equal(mixture.eps(x, 0.0, LINEAR), torch.zeros_like(x))
    assert torch.allclose(mixture.x0(x, 0.0, LINEAR), x, rtol=1e-12)
    for t in (1e-12, 1e-6, 0.001, 1.0):
        for value in (mixture.eps(x, t, LINEAR), mixture.x0(x, t, LINEAR)):
            assert value.isfinite().all()


@every_mixture
def test_gradients_in_state_and_time(mixture):
    x = points(mixture, 4).requires_grad_(True)
    # Between two levels: log alpha has a kink at each.
    times = float64([0.9005, 0.5003, 0.2504, 0.0305]).requires_grad_(True)
    for schedule in SCHEDULES.values():
        assert gradcheck(mixture.eps, (x, times, schedule)) and gradcheck(mixture.x0, (x, times, schedule))
    one = float64(1.0).requires_grad_(True)
    (slope,) = torch.autograd.grad(mixture.eps(x, one, LINEAR).square().sum(), one)
    below = (mixture.eps(x, 1.0, LINEAR).square().sum() - mixture.eps(x, 1 - 1e-6, LINEAR).square().sum()) / 1e-6
    assert slope.item() == pytest.approx(below.item(), rel=1e-2), "a tau that starts at pure noise can move"


def test_the_predictor_believes_tau_and_answers_in_the_states_dtype():
    mixture, tau = MIXTURES["ring"], float64(0.4).requires_grad_(True)
    x = points(mixture).float()
    answer = MixturePredictor(mixture, LINEAR)(x, float64(0.9), tau)
    assert answer.dtype == torch.float32 and torch.equal(answer, mixture.eps(x, tau, LINEAR).float())
    answer.square().sum().backward()
    assert tau.grad.abs() > 0


def test_samples_have_the_mixtures_moments_and_follow_the_generator():
    draws, again = (FULL.sample(200_000, torch.Generator().manual_seed(3)) for _ in range(2))
    assert draws.shape == (200_000, 2) and draws.dtype == torch.float64 and torch.equal(draws, again)
    gap = FULL.means[0] - FULL.means[1]
    covariance = 0.25 * float64(COVARIANCES[0]) + 0.75 * float64(COVARIANCES[1]) + 0.1875 * torch.outer(gap, gap)
    assert torch.allclose(draws.mean(0), FULL.weights @ FULL.means, atol=0.01)
    assert torch.allclose(draws.T.cov(), covariance, atol=0.01)


# ---- the exact flow


@every_schedule
@pytest.mark.parametrize("mean, scale", [(0.5, 0.25), ([1.0, -2.0], 0.03)])
def test_exact_flow_of_one_gaussian(schedule, mean, scale):
    mixture = single_gaussian(mean, scale)
    x = points(mixture)
    for start, end in ((1.0, 0.0), (1.0, 0.001), (0.9, 0.31), (0.001, 0.8), (0.0, 1.0), (0.4, 0.4)):
        state = gaussian_flow(x, 1.0, start, mean, scale, schedule)
        expected = gaussian_flow(x, 1.0, end, mean, scale, schedule)
        assert (exact_flow(mixture, state, start, end, schedule) - expected).abs().max() < 1e-8


@every_schedule
@pytest.mark.parametrize("end", [0.5, 0.0])
def test_the_flow_keeps_every_points_rank(schedule, end):
    # On the line the probability flow is monotone and carries p_1 to p_t, so it keeps P(x_t <= x).
    mixture = GaussianMixture([0.2, 0.5, 0.3], [[-1.5], [0.0], [0.9]], [0.1, 0.3, 0.2])
    x = torch.linspace(-3, 3, 61, dtype=torch.float64)[:, None]
    moved = exact_flow(mixture, x, 1.0, end, schedule)
    assert (cdf(mixture, moved, end, schedule) - cdf(mixture, x, 1.0, schedule)).abs().max() < 1e-7


def test_there_and_back_in_the_plane_with_an_interval_for_each_sample():
    x = points(FULL)
    back = exact_flow(FULL, exact_flow(FULL, x, 1.0, 0.0, LINEAR), 0.0, 1.0, LINEAR)
    assert (back - x).abs().max() < 1e-6
    start, end = float64([1.0, 0.5, 0.1]), float64([0.0, 0.4, 0.3])
    together = exact_flow(FULL, x[:3], start, end, LINEAR)
    for i in range(3):
        alone = exact_flow(FULL, x[i : i + 1], start[i], end[i], LINEAR)
        assert (together[i : i + 1] - alone).abs().max() < 1e-8


def test_the_batch_does_not_loosen_the_worst_sample():
    mixture = two_modes_1d(scale=0.05)
    # One point on the watershed between the modes, where the flow is steepest, among a thousand easy ones.
    hard = float64([[-0.385]])
    alone = exact_flow(mixture, hard, 1.0, 0.0, LINEAR, rtol=1e-12)
    crowd = exact_flow(mixture, torch.cat([hard, hard.new_full((999, 1), 2.0)]), 1.0, 0.0, LINEAR)
    assert (crowd[:1] - alone).abs().max() < 1e-7


def test_a_mixture_its_predictor_and_an_unknown_predictor_flow_alike():
    mixture = two_modes_1d()
    predictor, x = MixturePredictor(mixture, LINEAR), points(mixture)
    expected = exact_flow(mixture, x, 1.0, 0.001, LINEAR)
    assert torch.equal(exact_flow(predictor, x, 1.0, 0.001, LINEAR), expected)
    unknown = exact_flow(lambda x, t, tau: predictor(x, t, tau), x, 1.0, 0.001, LINEAR)
    assert (unknown - expected).abs().max() < 1e-8


def test_a_flow_that_cannot_be_integrated(monkeypatch):
    x = points(MIXTURES["two"])
    with pytest.raises(NotFinite, match="NaN or infinite on the exact flow"):
        exact_flow(lambda x, t, tau: torch.full_like(x, math.nan), x, 1.0, 0.5, LINEAR)
    failed = SimpleNamespace(success=False, message="too small a step")
    monkeypatch.setattr("tt_lib.toy.solve_ivp", lambda *arguments, **options: failed)
    with pytest.raises(NotFinite, match=r"too small a step.*larger rtol"):
        exact_flow(MIXTURES["two"], x, 1.0, 0.5, LINEAR)


def test_trajectory_passes_through_the_flow():
    mixture, times = MIXTURES["ring"], [1.0, 0.77, 0.5, 0.2, 0.013, 0.0]
    x = points(mixture)
    states = exact_trajectory(mixture, x, times, LINEAR)
    assert states.shape == (6, 40, 2) and torch.equal(states[0], x)
    for t, state in zip(times[1:], states[1:], strict=True):
        assert (state - exact_flow(mixture, x, 1.0, t, LINEAR)).abs().max() < 1e-7
    assert exact_trajectory(mixture, x, times[::-1], LINEAR).shape == (6, 40, 2)
    for bad in ([1.0], 1.0, [1.0, 0.5, 0.7], [0.5, 0.5]):
        with pytest.raises(BadValue, match="rise or fall"):
            exact_trajectory(mixture, x, bad, LINEAR)


# ---- DDIM on one Gaussian


@every_schedule
@pytest.mark.parametrize("steps", [1, 3, 10])
def test_closed_form_ddim_is_what_the_solver_does(schedule, steps):
    mixture, times = single_gaussian([0.5, -1.0], 0.3), torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    x = points(mixture)
    run = drive(make_solver("ddim")(x, times, schedule), MixturePredictor(mixture, schedule))
    # The solver divides by alpha(1), 5e-5 for cosine, and cancels; the closed form does not.
    assert torch.allclose(run.x, gaussian_ddim(x, times, [0.5, -1.0], 0.3, schedule), rtol=1e-10, atol=1e-10)


def test_closed_form_ddim_tends_to_the_flow_at_first_order():
    x = float64([[1.3]])
    exact = gaussian_flow(x, 0.9, 0.1, 0.5, 0.3, LINEAR)
    grids = [torch.linspace(0.9, 0.1, n + 1) for n in (200, 400)]
    errors = [(gaussian_ddim(x, times, 0.5, 0.3, LINEAR) - exact).abs().item() for times in grids]
    assert errors[0] / errors[1] == pytest.approx(2.0, abs=0.05)


# ---- presets and errors


def test_presets():
    assert single_gaussian().dim == 1 and single_gaussian([0.0, 1.0, 2.0]).dim == 3
    assert two_modes_1d().weights.tolist() == [0.35, 0.65]
    ring = ring_2d(modes=5)
    assert torch.allclose(ring.means.norm(dim=1), torch.ones(5).double())
    assert torch.allclose(ring.weights, torch.full((5,), 0.2).double())
    with pytest.raises(BadValue, match="modes"):
        ring_2d(0)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([1.0], [0.0, 1.0], [1.0]), "means"),
        (([1.0], [[math.nan]], [1.0]), "means"),
        (([-1.0], [[0.0]], [1.0]), "weights"),
        (([1.0], [[0.0]], [0.0]), "scales"),
        (([1.0], [[0.0]]), "either"),
        (([1.0], [[0.0]], [1.0], [[[1.0]]]), "either"),
        (([1.0], [[0.0]], None, [[[-1.0]]]), "definite"),
        (([1.0], [[0.0, 0.0]], None, [[[1.0, 0.5], [0.0, 1.0]]]), "symmetric"),
    ],
)
def test_bad_mixtures(arguments, message):
    with pytest.raises(BadValue, match=message):
        GaussianMixture(*arguments)


@pytest.mark.parametrize(
    "shape, t, message",
    [((4, 3), 0.5, r"x must be \[B, 2\]"), ((4, 2), [0.5] * 3, r"scalar or \[4\]"), ((4, 2), 1.5, r"\[0, 1\]")],
)
def test_bad_states_and_times(shape, t, message):
    with pytest.raises(BadValue, match=message):
        MIXTURES["ring"].eps(torch.zeros(shape), float64(t), LINEAR)
