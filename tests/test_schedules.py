"""Schedules: the time convention, the published tables, the inverses, the derivatives."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDPMScheduler
from solver_helpers import CONTINUOUS, LINEAR, SCHEDULES, float64
from torch.autograd import gradcheck

import tt_lib.schedules
from tt_lib.errors import BadValue
from tt_lib.schedules import (
    ContinuousLinearVP,
    DiscreteSchedule,
    along,
    cosine_betas,
    index_of_time,
    linear_betas,
    make_schedule,
    time_of_index,
)

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def many_times(schedule) -> torch.Tensor:
    """Times from t_min to 1: even, crowded at both ends, at levels and between them."""
    even = torch.linspace(schedule.t_min, 1, 997, dtype=torch.float64)
    crowd = torch.logspace(-12, -1, 40, dtype=torch.float64)
    return torch.cat([even, schedule.t_min + crowd / 2, 1 - crowd, time_of_index(torch.arange(1000), 1000)])


# ---- the convention


@pytest.mark.parametrize("levels", [1, 10, 1000])
def test_index_n_is_time_n_plus_1_over_N(levels):
    n = torch.arange(levels)
    t = time_of_index(n, levels)
    assert t.dtype == torch.float64 and torch.equal(t, (n + 1).double() / levels)
    assert torch.allclose(index_of_time(t, levels), n.double(), rtol=0, atol=1e-9)
    assert t[-1] == 1 and time_of_index(-1, levels) == 0 and index_of_time(0.0, levels) == -1


def test_what_the_network_is_given():
    assert [LINEAR.network_time(t) for t in (0.5, 1.0, LINEAR.t_min)] == [499, 999, 0]
    assert [CONTINUOUS.network_time(t) for t in (0.5, 1.0)] == [499.5, 999]


@every_schedule
def test_ends(schedule):
    assert schedule.alpha(0.0) == 1 and schedule.rho(0.0) == 0
    assert schedule.sigma(0.0) == 0 and not schedule.sigma(0.0).signbit()
    assert schedule.lam(0.0) == math.inf and schedule.time_of_lam(math.inf) == 0
    assert schedule.alpha(1.0) < 0.01


# ---- values


@every_schedule
def test_variance_is_preserved_and_signal_only_falls(schedule):
    t = torch.cat([torch.zeros(1).double(), many_times(schedule)]).sort().values.unique()
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    assert torch.allclose(alpha**2 + sigma**2, torch.ones_like(t), rtol=1e-14, atol=0)
    # Neighbours in this list may be 1e-12 apart: alpha must not rise there, and fall where they are not.
    assert (alpha.diff() <= 0).all() and (alpha[::9].diff() < 0).all()
    assert torch.allclose(schedule.lam(t[1:]), (alpha / sigma).log()[1:], rtol=1e-10, atol=1e-12)
    # Near clean data sigma^2 = 1 - exp(2 log alpha) ~ -2 log alpha; computed naively, nothing would be left.
    tiny = schedule.sigma(1e-18)
    assert 0 < tiny == pytest.approx((-2 * schedule.log_alpha(1e-18)).sqrt().item(), rel=1e-12)


@pytest.mark.parametrize("name, theirs", [("linear", "linear"), ("cosine", "squaredcos_cap_v2")])
def test_discrete_tables_are_diffusers(name, theirs):
    schedule = make_schedule(name)
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule=theirs)
    assert torch.allclose(schedule.betas, scheduler.betas.double(), rtol=1e-5, atol=0)
    ours = schedule.alpha(time_of_index(torch.arange(1000), 1000)) ** 2
    assert torch.allclose(ours, torch.cumprod(1 - schedule.betas, 0), rtol=1e-12)
    # diffusers' table is a float32 product of up to 1000 factors; the last cosine factor, 1 - 0.999, alone
    # carries a rounding error of 1.3e-5 in float32.
    relative = (scheduler.alphas_cumprod.double() / ours - 1).abs()
    assert relative[:-1].max() < 1e-5 and relative[-1] < 2e-5


def test_cosine_betas_are_clipped_and_log_alpha_is_linear_between_levels():
    betas = cosine_betas().betas
    assert betas.max() == 0.999 and (betas == 0.999).sum() == 1 and betas[-1] == 0.999
    low, high = LINEAR.log_alpha(0.4), LINEAR.log_alpha(0.401)
    assert LINEAR.log_alpha(0.40025).item() == pytest.approx((0.75 * low + 0.25 * high).item(), rel=1e-12)


def test_continuous_linear_is_not_the_discrete_one():
    # -(20 - 0.1) / 4 - 0.1 / 2 exactly, against half the sum of log(1 - beta).
    assert CONTINUOUS.log_alpha(1.0).item() == pytest.approx(-5.025, rel=1e-14)
    assert LINEAR.log_alpha(1.0).item() == pytest.approx(-5.05886, abs=5e-6)


def test_coefficients_along_a_state():
    x = torch.zeros(3, 1, 2, 2)
    assert along(float64(0.5), x).shape == () and along(float64(0.5), x).dtype == torch.float32
    assert along(float64([1.0, 2.0, 3.0]), x).shape == (3, 1, 1, 1)


# ---- inverses and derivatives


@every_schedule
def test_inverses_round_trip(schedule):
    t = many_times(schedule)
    assert (schedule.time_of_lam(schedule.lam(t)) - t).abs().max() < 1e-10
    assert (schedule.time_of_log_alpha(schedule.log_alpha(t)) - t).abs().max() < 1e-10
    tiny = float64([0.0, 1e-15, 1e-9, 1e-5])
    assert torch.allclose(schedule.time_of_lam(schedule.lam(tiny)), tiny, rtol=1e-9, atol=0)


@every_schedule
def test_numbers_and_shapes(schedule):
    t = torch.rand(2, 3, generator=torch.Generator().manual_seed(0))
    for method in (schedule.alpha, schedule.sigma, schedule.lam, schedule.rho, schedule.network_time):
        assert method(0.3).shape == () and method(t).shape == (2, 3) and method(t).dtype == torch.float64
        assert torch.equal(method(t)[1, 2], method(t[1, 2]))


@every_schedule
def test_derivatives(schedule):
    # Between two levels, where log alpha is smooth.
    t = float64([0.0015, 0.2505, 0.6003, 0.9995]).requires_grad_(True)
    for method in (schedule.log_alpha, schedule.alpha, schedule.sigma, schedule.lam, schedule.rho):
        assert gradcheck(method, (t,), eps=1e-7)
    assert gradcheck(schedule.time_of_lam, (schedule.lam(t).detach().requires_grad_(True),), eps=1e-7)


@every_schedule
def test_there_is_a_slope_at_the_ends_and_at_a_level(schedule):
    # torch.clamp has none at its bounds: a tau tuned from t = 1 would never move.
    ends = float64([schedule.t_min, 0.5, 1.0]).requires_grad_(True)
    inside = (ends.detach() - float64([-1e-9, 1e-9, 1e-9])).requires_grad_(True)
    slope, nearby = (torch.autograd.grad(schedule.lam(t).sum(), t)[0] for t in (ends, inside))
    # At 0.5 the two sides of a level differ a little.
    assert (slope < 0).all() and torch.allclose(slope, nearby, rtol=0.01)
    lam = schedule.lam(ends).detach().requires_grad_(True)
    (inverse,) = torch.autograd.grad(schedule.time_of_lam(lam).sum(), lam)
    assert torch.allclose(inverse * slope, torch.ones(3, dtype=torch.float64), rtol=0.01)
    clean = float64(0.0).requires_grad_(True)
    assert torch.autograd.grad(schedule.log_alpha(clean), clean)[0] < 0


def test_values_at_scalar_times_are_kept_but_not_their_gradients(monkeypatch):
    schedule, t = make_schedule("linear"), float64(0.3)
    assert schedule.lam(t) is schedule.lam(t.clone()) and schedule.lam(t) is not schedule.sigma(t)
    assert schedule.lam(t) != make_schedule("cosine").lam(t), "each schedule keeps its own"
    for other in (t.clone().requires_grad_(), t.reshape(1), 0.3):
        assert schedule.lam(other) is not schedule.lam(other) and schedule.lam(other) == schedule.lam(t)
    moving = t.clone().requires_grad_()
    assert torch.autograd.grad(schedule.lam(moving), moving)[0] < 0
    monkeypatch.setattr(tt_lib.schedules, "MAX_CACHED", 3)
    for k in range(10):
        schedule.alpha(t * k / 10)
    assert len(schedule._cache) <= 3


# ---- errors


@every_schedule
@pytest.mark.parametrize("t", [-0.01, 1.01, math.nan, float64([0.5, 1.5])])
def test_times_outside_are_refused_but_rounding_noise_is_not(schedule, t):
    for method in (schedule.alpha, schedule.sigma, schedule.lam, schedule.rho):
        with pytest.raises(BadValue, match=r"\[0, 1\]"):
            method(t)
    assert schedule.alpha(1 + 1e-15) == schedule.alpha(1.0) and schedule.alpha(-1e-15) == 1


@pytest.mark.parametrize("betas", [[], [0.0, 0.1], [1.0, 0.1], [1.0], [0.1, 1.1], [math.nan], [[0.1]], 0.1])
def test_bad_betas(betas):
    with pytest.raises(BadValue, match="betas"):
        DiscreteSchedule(torch.tensor(betas), "mine")


def test_other_bad_values():
    for make in (linear_betas, cosine_betas):
        with pytest.raises(BadValue, match="levels must be at least 1, got 0"):
            make(0)
    for pair in ((0.0, 20.0), (20.0, 0.1), (math.nan, 20.0)):
        with pytest.raises(BadValue, match="beta_0"):
            ContinuousLinearVP(*pair)
    with pytest.raises(BadValue, match="unknown schedule 'sigmoid'; choose one of: continuous-linear, cosine, flow, "):
        make_schedule("sigmoid")
