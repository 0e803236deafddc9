"""Toys: exact directions, exact flows and closed forms, each against another way to the same number."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from torch.autograd import gradcheck

from tt_lib.engine import drive
from tt_lib.errors import BadValue
from tt_lib.schedules import make_schedule
from tt_lib.solvers.registry import make_solver
from tt_lib.toy import (
    GaussianMixture,
    MixturePredictor,
    exact_flow,
    exact_trajectory,
    gaussian_ddim,
    gaussian_flow,
    ring_2d,
    single_gaussian,
    two_modes_1d,
)

SCHEDULES = {name: make_schedule(name) for name in ("linear", "cosine", "continuous-linear")}
LINEAR = SCHEDULES["linear"]
TIMES = (1.0, 0.7003, 0.25, 0.02, 0.001)


def full_covariances() -> GaussianMixture:
    return GaussianMixture(
        [1.0, 3.0],
        [[0.5, -1.0], [-1.0, 0.2]],
        covariances=[[[0.3, 0.2], [0.2, 0.4]], [[0.1, 0.0], [0.0, 0.02]]],
    )


MIXTURES = {
    "single": single_gaussian(),
    "two": two_modes_1d(),
    "ring": ring_2d(),
    "full": full_covariances(),
}


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


# ---- eps, x0 and the density


@pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES)
@pytest.mark.parametrize("t", TIMES)
def test_eps_is_minus_sigma_times_the_score(mixture, t):
    for schedule in SCHEDULES.values():
        x = points(mixture).requires_grad_(True)
        (score,) = torch.autograd.grad(mixture.log_density(x, t, schedule).sum(), x)
        expected = -schedule.sigma(t) * score
        assert torch.allclose(mixture.eps(x, t, schedule), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES)
def test_x_is_alpha_x0_plus_sigma_eps(mixture):
    x = points(mixture)
    for t in (0.0, *TIMES):
        whole = LINEAR.alpha(t) * mixture.x0(x, t, LINEAR) + LINEAR.sigma(t) * mixture.eps(x, t, LINEAR)
        assert torch.allclose(whole, x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("t", [1.0, 0.5, 0.1])
def test_density_and_posterior_mean_against_quadrature(t):
    mixture = MIXTURES["two"]
    alpha, sigma = LINEAR.alpha(t).item(), LINEAR.sigma(t).item()

    def joint(x0: float, x: float) -> float:
        prior = 0.35 * norm.pdf(x0, -1, 0.2) + 0.65 * norm.pdf(x0, 1, 0.2)
        return prior * norm.pdf(x, alpha * x0, sigma)

    for x in (-1.7, -0.1, 0.4, 1.2):
        # The breakpoints tell the quadrature where the mass may be.
        options = {
            "epsabs": 1e-13,
            "epsrel": 1e-11,
            "limit": 400,
            "points": [-1, 0, 1, x / alpha] if t < 1 else [-1, 0, 1],
        }
        density, _ = quad(joint, -4, 4, args=(x,), **options)
        moment, _ = quad(lambda x0, x: x0 * joint(x0, x), -4, 4, args=(x,), **options)
        state = torch.tensor([[x]], dtype=torch.float64)
        assert mixture.log_density(state, t, LINEAR).exp().item() == pytest.approx(density, rel=1e-8)
        assert mixture.x0(state, t, LINEAR).item() == pytest.approx(moment / density, rel=1e-7)


def test_full_covariances_agree_with_torchs_distributions():
    mixture, t = full_covariances(), 0.3
    alpha, sigma = LINEAR.alpha(t), LINEAR.sigma(t)
    covariance = torch.tensor([[[0.3, 0.2], [0.2, 0.4]], [[0.1, 0.0], [0.0, 0.02]]], dtype=torch.float64)
    x = points(mixture)
    expected = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(mixture.weights),
        torch.distributions.MultivariateNormal(
            alpha * mixture.means, alpha**2 * covariance + sigma**2 * torch.eye(2, dtype=torch.float64)
        ),
    ).log_prob(x)
    assert torch.allclose(mixture.log_density(x, t, LINEAR), expected, rtol=1e-12)


def test_scales_and_diagonal_covariances_are_the_same_mixture():
    ring = ring_2d(3, scale=0.3)
    same = GaussianMixture(ring.weights, ring.means, covariances=0.09 * torch.eye(2).double().expand(3, 2, 2))
    x = points(ring)
    assert torch.allclose(ring.eps(x, 0.2, LINEAR), same.eps(x, 0.2, LINEAR), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES)
def test_a_vector_of_times_is_each_time_alone(mixture):
    x = points(mixture, 5)
    t = torch.tensor([1.0, 0.6, 0.301, 0.01, 0.0], dtype=torch.float64)
    for method in (mixture.eps, mixture.x0, mixture.log_density):
        together = method(x, t, LINEAR)
        alone = torch.cat([method(x[i : i + 1], t[i], LINEAR) for i in range(5)])
        assert torch.allclose(together, alone, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES)
def test_finite_at_clean_data_and_far_from_all_modes(mixture):
    x = torch.cat([points(mixture), 1e8 * points(mixture, 3)])
    assert torch.equal(mixture.eps(x, 0.0, LINEAR), torch.zeros_like(x))
    assert torch.allclose(mixture.x0(x, 0.0, LINEAR), x, rtol=1e-12)
    for t in (1e-12, 1e-6, 0.001, 1.0):
        for value in (mixture.eps(x, t, LINEAR), mixture.x0(x, t, LINEAR), mixture.log_density(x, t, LINEAR)):
            assert value.isfinite().all()


@pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES)
def test_gradients_in_state_and_time(mixture):
    x = points(mixture, 4).requires_grad_(True)
    # Between two levels: log alpha has a kink at each.
    times = torch.tensor([0.9005, 0.5003, 0.2504, 0.0305], dtype=torch.float64, requires_grad=True)
    scalar = torch.tensor(0.4505, dtype=torch.float64, requires_grad=True)
    for schedule in SCHEDULES.values():
        for t in (times, scalar):
            assert gradcheck(mixture.eps, (x, t, schedule))
            assert gradcheck(mixture.x0, (x, t, schedule))
    predictor = MixturePredictor(mixture, LINEAR)
    assert gradcheck(lambda x, tau: predictor(x, torch.tensor(0.5), tau), (x, times))


def test_a_tau_that_starts_at_pure_noise_has_a_gradient():
    mixture = MIXTURES["two"]
    tau = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    x = points(mixture)
    (slope,) = torch.autograd.grad(mixture.eps(x, tau, LINEAR).square().sum(), tau)
    below = (mixture.eps(x, 1.0, LINEAR).square().sum() - mixture.eps(x, 1 - 1e-6, LINEAR).square().sum()) / 1e-6
    assert slope.item() == pytest.approx(below.item(), rel=1e-3) and slope != 0


def test_the_predictor_believes_tau_and_answers_in_the_states_dtype():
    mixture = MIXTURES["ring"]
    predictor = MixturePredictor(mixture, LINEAR)
    x, t, tau = (
        points(mixture).float(),
        torch.tensor(0.9),
        torch.tensor(0.4, dtype=torch.float64, requires_grad=True),
    )
    answer = predictor(x, t, tau)
    assert answer.dtype == torch.float32
    assert torch.equal(answer, mixture.eps(x, tau, LINEAR).float())
    answer.square().sum().backward()
    assert tau.grad is not None and tau.grad.abs() > 0


def test_samples_have_the_mixtures_moments_and_follow_the_generator():
    mixture = full_covariances()
    draws = mixture.sample(200_000, torch.Generator().manual_seed(3))
    assert draws.shape == (200_000, 2) and draws.dtype == torch.float64
    assert torch.equal(draws[:9], mixture.sample(200_000, torch.Generator().manual_seed(3))[:9])
    mean = torch.tensor([0.25 * 0.5 - 0.75, -0.25 + 0.75 * 0.2], dtype=torch.float64)
    covariance = torch.tensor([[0.15, 0.05], [0.05, 0.115]], dtype=torch.float64)
    gap = mixture.means[0] - mixture.means[1]
    covariance += 0.25 * 0.75 * torch.outer(gap, gap)
    assert torch.allclose(draws.mean(0), mean, atol=0.01)
    assert torch.allclose(draws.T.cov(), covariance, atol=0.01)


# ---- the exact flow


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("mean, scale", [(0.5, 0.25), ([1.0, -2.0], 0.03)])
def test_exact_flow_of_one_gaussian(schedule, mean, scale):
    mixture = single_gaussian(mean, scale)
    x = points(mixture)
    for start, end in ((1.0, 0.0), (1.0, 0.001), (0.9, 0.31), (0.001, 0.8), (0.0, 1.0), (0.4, 0.4)):
        state = gaussian_flow(x, 1.0, start, mean, scale, schedule)
        expected = gaussian_flow(x, 1.0, end, mean, scale, schedule)
        assert (exact_flow(mixture, state, start, end, schedule) - expected).abs().max() < 1e-8


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("end", [0.5, 0.05, 0.0])
def test_the_flow_keeps_every_points_rank(schedule, end):
    # On the line the probability flow is monotone and carries p_1 to p_t, so it keeps P(x_t <= x).
    mixture = GaussianMixture([0.2, 0.5, 0.3], [[-1.5], [0.0], [0.9]], [0.1, 0.3, 0.2])
    x = torch.linspace(-3, 3, 61, dtype=torch.float64)[:, None]
    moved = exact_flow(mixture, x, 1.0, end, schedule)
    assert (cdf(mixture, moved, end, schedule) - cdf(mixture, x, 1.0, schedule)).abs().max() < 1e-7


def test_the_flow_turns_noise_into_the_mixture():
    mixture = two_modes_1d()
    x = torch.randn(4000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rank = cdf(mixture, exact_flow(mixture, x, 1.0, 0.0, LINEAR), 0.0, LINEAR)
    # Kolmogorov's distance from uniform ranks: 1.63 / sqrt(n) is passed by 99 % of true samples.
    steps = torch.arange(1, 4001, dtype=torch.float64) / 4000
    assert (rank.sort().values - steps).abs().max() < 1.63 / math.sqrt(4000)


def test_there_and_back_in_the_plane():
    mixture = full_covariances()
    x = points(mixture)
    back = exact_flow(mixture, exact_flow(mixture, x, 1.0, 0.0, LINEAR), 0.0, 1.0, LINEAR)
    assert (back - x).abs().max() < 1e-6


def test_every_sample_may_have_its_own_interval():
    mixture = MIXTURES["ring"]
    x = points(mixture, 3)
    start, end = torch.tensor([1.0, 0.5, 0.1]), torch.tensor([0.0, 0.4, 0.3])
    together = exact_flow(mixture, x, start, end, LINEAR)
    for i in range(3):
        alone = exact_flow(mixture, x[i : i + 1], start[i], end[i], LINEAR)
        assert (together[i : i + 1] - alone).abs().max() < 1e-8


def test_the_batch_does_not_loosen_the_worst_sample():
    mixture = two_modes_1d(scale=0.05)
    # One point on the watershed between the modes, where the flow is steepest, among a thousand easy ones.
    hard = torch.tensor([[-0.385]], dtype=torch.float64)
    alone = exact_flow(mixture, hard, 1.0, 0.0, LINEAR, rtol=1e-12)
    crowd = exact_flow(mixture, torch.cat([hard, hard.new_full((999, 1), 2.0)]), 1.0, 0.0, LINEAR)
    assert (crowd[:1] - alone).abs().max() < 1e-7


def test_a_mixture_its_predictor_and_an_unknown_predictor_flow_alike():
    mixture = two_modes_1d()
    predictor = MixturePredictor(mixture, LINEAR)
    x = points(mixture)
    expected = exact_flow(mixture, x, 1.0, 0.001, LINEAR)
    assert torch.equal(exact_flow(predictor, x, 1.0, 0.001, LINEAR), expected)
    unknown = exact_flow(lambda x, t, tau: predictor(x, t, tau), x, 1.0, 0.001, LINEAR)
    assert (unknown - expected).abs().max() < 1e-8


def test_trajectory_passes_through_the_flow():
    mixture, times = MIXTURES["ring"], [1.0, 0.77, 0.5, 0.2, 0.013, 0.0]
    x = points(mixture)
    states = exact_trajectory(mixture, x, times, LINEAR)
    assert states.shape == (6, 40, 2)
    assert torch.equal(states[0], x)
    for t, state in zip(times[1:], states[1:], strict=True):
        assert (state - exact_flow(mixture, x, 1.0, t, LINEAR)).abs().max() < 1e-7
    assert exact_trajectory(mixture, x, times[::-1], LINEAR).shape == (6, 40, 2)
    for bad in ([1.0], 1.0, [1.0, 0.5, 0.7], [0.5, 0.5]):
        with pytest.raises(BadValue, match="rise or fall"):
            exact_trajectory(mixture, x, bad, LINEAR)


# ---- DDIM on one Gaussian


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("steps", [1, 3, 10])
def test_closed_form_ddim_is_what_the_solver_does(schedule, steps):
    mixture = single_gaussian([0.5, -1.0], 0.3)
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    x = points(mixture)
    run = drive(make_solver("ddim")(x, times, schedule), MixturePredictor(mixture, schedule))
    expected = gaussian_ddim(x, times, [0.5, -1.0], 0.3, schedule)
    # The solver divides by alpha(1), 5e-5 for cosine, and cancels; the closed form does not.
    assert torch.allclose(run.x, expected, rtol=1e-10, atol=1e-10)


def test_closed_form_ddim_tends_to_the_flow_at_first_order():
    x = torch.tensor([[1.3]], dtype=torch.float64)
    exact = gaussian_flow(x, 0.9, 0.1, 0.5, 0.3, LINEAR)
    errors = [
        (gaussian_ddim(x, torch.linspace(0.9, 0.1, n + 1), 0.5, 0.3, LINEAR) - exact).abs().item() for n in (200, 400)
    ]
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
        (([1.0, 1.0], [[0.0]], [1.0]), "weights"),
        (([-1.0], [[0.0]], [1.0]), "weights"),
        (([1.0], [[0.0]], [0.0]), "scales"),
        (([1.0], [[0.0]], [1.0, 2.0]), "scales"),
        (([1.0], [[0.0]]), "either"),
        (([1.0], [[0.0]], [1.0], [[[1.0]]]), "either"),
        (([1.0], [[0.0]], None, [[[-1.0]]]), "definite"),
        (([1.0], [[0.0]], None, [1.0]), "symmetric"),
        (([1.0], [[0.0, 0.0]], None, [[[1.0, 0.5], [0.0, 1.0]]]), "symmetric"),
    ],
)
def test_bad_mixtures(arguments, message):
    with pytest.raises(BadValue, match=message):
        GaussianMixture(*arguments)


def test_bad_states_and_times():
    mixture = MIXTURES["ring"]
    with pytest.raises(BadValue, match=r"x must be \[B, 2\]"):
        mixture.eps(torch.zeros(4, 3), 0.5, LINEAR)
    with pytest.raises(BadValue, match=r"scalar or \[4\]"):
        mixture.eps(torch.zeros(4, 2), torch.full((3,), 0.5), LINEAR)
    with pytest.raises(BadValue, match=r"\[0, 1\]"):
        mixture.eps(torch.zeros(4, 2), 1.5, LINEAR)
