"""Schedules: the time convention, the published tables, the inverses, the derivatives."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDPMScheduler
from torch.autograd import gradcheck

import tt_lib.schedules
from tt_lib.errors import BadValue
from tt_lib.schedules import (
    ContinuousLinearVP,
    DiscreteSchedule,
    cosine_betas,
    index_of_time,
    linear_betas,
    make_schedule,
    time_of_index,
)

NAMES = ("linear", "cosine", "continuous-linear")
SCHEDULES = [make_schedule(name) for name in NAMES]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=NAMES)


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
    assert t.dtype == torch.float64
    assert torch.equal(t, (n + 1).double() / levels)
    assert torch.allclose(index_of_time(t, levels), n.double(), rtol=0, atol=1e-9)
    assert t[-1] == 1 and index_of_time(1.0, levels) == levels - 1
    assert time_of_index(-1, levels) == 0 and index_of_time(0.0, levels) == -1


def test_what_the_network_is_given():
    discrete, continuous = make_schedule("linear"), make_schedule("continuous-linear")
    assert discrete.network_time(0.5) == 499
    assert discrete.network_time(1.0) == 999
    assert discrete.network_time(discrete.t_min) == 0
    assert continuous.network_time(1.0) == 999
    assert continuous.network_time(0.5) == 499.5


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_level_n_holds_the_product_of_betas_up_to_n(name):
    schedule = make_schedule(name, levels=50)
    assert schedule.levels == 50 and schedule.t_min == 1 / 50
    product = torch.cumprod(1 - schedule.betas, 0)
    assert torch.allclose(schedule.alpha(time_of_index(torch.arange(50), 50)) ** 2, product, rtol=1e-12)


def test_log_alpha_is_linear_between_levels():
    schedule = make_schedule("linear")
    low, high = schedule.log_alpha(0.4), schedule.log_alpha(0.401)
    assert schedule.log_alpha(0.40025).item() == pytest.approx((0.75 * low + 0.25 * high).item(), rel=1e-12)


@every_schedule
def test_ends(schedule):
    assert schedule.alpha(0.0) == 1
    assert schedule.sigma(0.0) == 0 and not schedule.sigma(0.0).signbit()
    assert schedule.rho(0.0) == 0
    assert schedule.lam(0.0) == math.inf
    assert schedule.alpha(1.0) < 0.01
    assert schedule.time_of_lam(math.inf) == 0


# ---- values


@every_schedule
def test_variance_is_preserved_and_signal_only_falls(schedule):
    t = torch.cat([torch.zeros(1).double(), many_times(schedule)]).sort().values.unique()
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    assert torch.allclose(alpha**2 + sigma**2, torch.ones_like(t), rtol=1e-14, atol=0)
    # Neighbours in this list may be 1e-12 apart: alpha must not rise there, and fall where they are not.
    assert (alpha.diff() <= 0).all() and (alpha[::9].diff() < 0).all()
    assert torch.allclose(schedule.lam(t[1:]), (alpha / sigma).log()[1:], rtol=1e-10, atol=1e-12)


@every_schedule
def test_sigma_keeps_its_digits_near_clean_data(schedule):
    # sigma^2 = 1 - exp(2 log alpha) ~ -2 log alpha there; computed naively, nothing would be left.
    t = 1e-18
    assert schedule.sigma(t).item() == pytest.approx((-2 * schedule.log_alpha(t)).sqrt().item(), rel=1e-12)
    assert schedule.sigma(t) > 0


@pytest.mark.parametrize("name, theirs", [("linear", "linear"), ("cosine", "squaredcos_cap_v2")])
def test_discrete_tables_are_diffusers(name, theirs):
    schedule = make_schedule(name)
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule=theirs)
    assert torch.allclose(schedule.betas, scheduler.betas.double(), rtol=1e-5, atol=0)
    ours = schedule.alpha(time_of_index(torch.arange(1000), 1000)) ** 2
    # diffusers' table is a float32 product of up to 1000 factors; the last cosine factor, 1 - 0.999, alone
    # carries a rounding error of 1.3e-5 in float32.
    relative = (scheduler.alphas_cumprod.double() / ours - 1).abs()
    assert relative[:-1].max() < 1e-5 and relative[-1] < 2e-5


def test_cosine_betas_are_clipped():
    betas = cosine_betas().betas
    assert betas.max() == 0.999
    assert (betas == 0.999).sum() == 1 and betas[-1] == 0.999
    assert cosine_betas(largest=0.5).betas.max() == 0.5


def test_continuous_linear_is_not_the_discrete_one():
    discrete, continuous = linear_betas(), ContinuousLinearVP()
    # -(20 - 0.1) / 4 - 0.1 / 2 exactly, against half the sum of log(1 - beta).
    assert continuous.log_alpha(1.0).item() == pytest.approx(-5.025, rel=1e-14)
    assert discrete.log_alpha(1.0).item() == pytest.approx(-5.05886, abs=5e-6)
    assert (continuous.log_alpha(1.0) - discrete.log_alpha(1.0)).item() == pytest.approx(0.03386, abs=5e-6)


# ---- inverses and derivatives


@every_schedule
def test_inverses_round_trip(schedule):
    t = many_times(schedule)
    assert (schedule.time_of_lam(schedule.lam(t)) - t).abs().max() < 1e-10
    assert (schedule.time_of_log_alpha(schedule.log_alpha(t)) - t).abs().max() < 1e-10
    tiny = torch.tensor([0.0, 1e-15, 1e-9, 1e-5], dtype=torch.float64)
    assert torch.allclose(schedule.time_of_lam(schedule.lam(tiny)), tiny, rtol=1e-9, atol=0)


@every_schedule
def test_numbers_and_shapes(schedule):
    assert schedule.alpha(0.3).shape == () and schedule.alpha(0.3).dtype == torch.float64
    t = torch.rand(2, 3, generator=torch.Generator().manual_seed(0))
    for method in (schedule.alpha, schedule.sigma, schedule.lam, schedule.rho, schedule.network_time):
        assert method(t).shape == (2, 3) and method(t).dtype == torch.float64
        assert torch.equal(method(t)[1, 2], method(t[1, 2]))
    assert schedule.time_of_lam(schedule.lam(t)).shape == (2, 3)


@every_schedule
def test_derivatives(schedule):
    # Between two levels, where log alpha is smooth.
    t = torch.tensor([0.0015, 0.2505, 0.6003, 0.9995], dtype=torch.float64, requires_grad=True)
    for method in (schedule.log_alpha, schedule.alpha, schedule.sigma, schedule.lam, schedule.rho):
        assert gradcheck(method, (t,), eps=1e-7)
    lam = schedule.lam(t).detach().requires_grad_(True)
    assert gradcheck(schedule.time_of_lam, (lam,), eps=1e-7)


@every_schedule
def test_there_is_a_slope_at_the_ends_and_at_a_level(schedule):
    # torch.clamp has none at its bounds: a tau tuned from t = 1 would never move.
    ends = torch.tensor([schedule.t_min, 0.5, 1.0], dtype=torch.float64, requires_grad=True)
    inside = ends.detach() - torch.tensor([-1e-9, 1e-9, 1e-9], dtype=torch.float64)
    inside.requires_grad_(True)
    (slope,) = torch.autograd.grad(schedule.lam(ends).sum(), ends)
    (nearby,) = torch.autograd.grad(schedule.lam(inside).sum(), inside)
    assert (slope < 0).all()
    # At 0.5 the two sides of a level differ a little.
    assert torch.allclose(slope, nearby, rtol=0.01)
    lam = schedule.lam(ends).detach().requires_grad_(True)
    (inverse,) = torch.autograd.grad(schedule.time_of_lam(lam).sum(), lam)
    assert torch.allclose(inverse * slope, torch.ones(3, dtype=torch.float64), rtol=0.01)
    clean = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(schedule.log_alpha(clean), clean)
    assert slope < 0


# ---- errors


@every_schedule
@pytest.mark.parametrize("t", [-0.01, 1.01, math.nan, math.inf, torch.tensor([0.5, 1.5])])
def test_times_outside_are_refused(schedule, t):
    for method in (schedule.alpha, schedule.sigma, schedule.lam, schedule.rho):
        with pytest.raises(BadValue, match=r"\[0, 1\]"):
            method(t)


@every_schedule
def test_rounding_noise_at_the_ends_is_not(schedule):
    assert schedule.alpha(1 + 1e-15) == schedule.alpha(1.0)
    assert schedule.alpha(-1e-15) == 1


@pytest.mark.parametrize("betas", [[], [0.0, 0.1], [0.1, 1.0], [-0.1], [math.nan], [[0.1]], 0.1])
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
    with pytest.raises(BadValue, match="unknown schedule 'sigmoid'; choose one of: continuous-linear, cosine, linear"):
        make_schedule("sigmoid")


def test_values_at_scalar_times_are_kept_but_not_their_gradients(monkeypatch):
    schedule = make_schedule("linear")
    t = torch.tensor(0.3, dtype=torch.float64)
    assert schedule.lam(t) is schedule.lam(t.clone()) and schedule.lam(t) is not schedule.sigma(t)
    assert schedule.lam(t) != make_schedule("cosine").lam(t), "each schedule keeps its own"
    for wanted in (t.clone().requires_grad_(), t.reshape(1), 0.3):
        assert schedule.lam(wanted) is not schedule.lam(wanted) and schedule.lam(wanted) == schedule.lam(t)
    moving = t.clone().requires_grad_()
    assert torch.autograd.grad(schedule.lam(moving), moving)[0] < 0
    monkeypatch.setattr(tt_lib.schedules, "MOST_KNOWN", 3)
    for k in range(10):
        schedule.alpha(t * k / 10)
    assert len(schedule._known) <= 3
