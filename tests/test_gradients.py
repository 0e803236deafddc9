"""Gradients of a finished sample in every grid time, conditioning time and gain, down to clean data."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from solver_helpers import CONTINUOUS, DETERMINISTIC, LINEAR, SCHEDULES, float64, points
from torch import Tensor
from torch.autograd import grad, gradcheck

from tt_lib.engine import drive
from tt_lib.errors import BadValue
from tt_lib.schedules import Schedule, make_schedule
from tt_lib.solvers.layout import layout
from tt_lib.solvers.registry import SOLVERS, Solver, make_solver
from tt_lib.toy import MixturePredictor, two_modes_1d

MIXTURE = two_modes_1d(scale=0.3)
METHODS = sorted({(SOLVERS[name].function, SOLVERS[name].plan): name for name in reversed(DETERMINISTIC)}.values())
"""One name for each deterministic method: some have several."""
SPELLED = [
    ",".join([name, *(f"{key}={value}" for key, value in zip(SOLVERS[name].choices, values, strict=True))])
    for name in METHODS
    for values in product(*SOLVERS[name].choices.values())
]
"""Every method with every choice of its options."""
CLEAN = float64([0.0])
pytestmark = pytest.mark.usefixtures("one_thread")


def budgets(name: str) -> tuple[int, int]:
    """The smallest number of evaluations that the solver can spend, and 6 or the next above."""
    possible = []
    for nfe in range(1, 20):
        try:
            make_solver(name).for_nfe(nfe)
            possible.append(nfe)
        except BadValue:
            pass
    return possible[0], next(nfe for nfe in possible[1:] if nfe >= 6)


def between_levels(t: Tensor) -> Tensor:
    """Nearby times inside the intervals of a discrete schedule, at 0.37: no middle of two of them is a level either."""
    return ((t * 1000).floor().clamp(min=1) + 0.37) / 1000


def knobs(solver: Solver, steps: int, schedule: Schedule) -> tuple[Tensor, Tensor, Tensor]:
    """The first K grid times, the conditioning times and the gains: each a leaf."""
    lam = schedule.lam(float64([0.99, 0.0014]))
    times = between_levels(schedule.time_of_lam(torch.lerp(*lam, torch.linspace(0, 1, steps, dtype=torch.float64))))
    t = float64([each.t for each in layout(solver, torch.cat([times, CLEAN]), schedule)])
    gains = torch.linspace(0.9, 1.1, len(t), dtype=torch.float64)
    return times.requires_grad_(), between_levels(0.9 * t).requires_grad_(), gains.requires_grad_()


def end(solver: Solver, schedule: Schedule, times: Tensor, taus: Tensor | None, gains: Tensor | None) -> Tensor:
    """Two samples of the toy: [2, 1]."""
    solution = solver(points(2), times, schedule, lambda x: points(2, seed=1))
    return drive(solution, MixturePredictor(MIXTURE, schedule), taus, gains=gains, grad=True).x


def check(solver: Solver, steps: int, schedule: Schedule) -> None:
    def sample(times: Tensor, taus: Tensor, gains: Tensor) -> Tensor:
        return end(solver, schedule, torch.cat([times, CLEAN]), taus, gains)

    # Fast: along one random direction for each of the three. Entries differ by powers of ten, so it must be precise.
    precise = {"eps": 1e-7, "atol": 1e-6, "rtol": 1e-6, "fast_mode": True, "check_undefined_grad": False}
    assert gradcheck(sample, knobs(solver, steps, schedule), **precise)


@pytest.mark.parametrize("schedule", (LINEAR, CONTINUOUS), ids=lambda schedule: schedule.name)
@pytest.mark.parametrize("name", SPELLED)
def test_a_sample_has_right_gradients_in_every_time_tau_and_gain(name, schedule):
    check(*make_solver(name).for_nfe(budgets(name)[1]), schedule)


@pytest.mark.parametrize("schedule", (LINEAR, CONTINUOUS), ids=lambda schedule: schedule.name)
@pytest.mark.parametrize("name", METHODS)
def test_with_as_few_evaluations_as_the_solver_can_make(name, schedule):
    check(*make_solver(name).for_nfe(budgets(name)[0]), schedule)


FROM_NOISE = [name for name in METHODS if not SOLVERS[name].midpoint]


@pytest.mark.parametrize("name", FROM_NOISE)
def test_on_the_straight_path_from_noise_alone_to_clean_data(name):
    """lambda is infinite at both ends. The infinite slope of multistep solvers in lambda at t = 1 counts as 0."""
    flow = make_schedule("flow")
    solver, steps = make_solver(name).for_nfe(budgets(name)[1])
    _, taus, gains = knobs(solver, steps, flow)
    inner = torch.linspace(0.9, 0.1, steps - 1, dtype=torch.float64).requires_grad_()

    def sample(first: Tensor, inner: Tensor, taus: Tensor, gains: Tensor) -> Tensor:
        return end(solver, flow, torch.cat([first, inner, CLEAN]), taus, gains)

    one = float64([1.0])
    precise = {"eps": 1e-7, "atol": 1e-6, "rtol": 1e-6, "fast_mode": True, "check_undefined_grad": False}
    assert gradcheck(lambda *free: sample(one, *free), (inner, taus, gains), **precise)
    one.requires_grad_()
    (slope,) = grad(sample(one, inner, taus, gains).sum(), one)
    assert slope.isfinite()
    if not name.startswith(("dpmpp", "unipc")):
        h, start = 1e-5, one.detach()
        values = [sample(start - k * h, inner, taus, gains).sum().item() for k in range(3)]
        assert slope.item() == pytest.approx((3 * values[0] - 4 * values[1] + values[2]) / (2 * h), rel=1e-5)


@pytest.mark.parametrize("gamma", [0.7, 1.0])
def test_analytic_ddim_with_a_constant_gamma_and_the_same_noise(gamma):
    check(make_solver("analytic-ddim", gamma=(gamma,) * 6), 6, LINEAR)


@pytest.mark.parametrize("name", METHODS)
def test_each_sample_may_have_a_grid_of_its_own_which_may_hold_its_end(name):
    solver, steps = make_solver(name).for_nfe(budgets(name)[1])
    times = torch.cat([knobs(solver, steps, LINEAR)[0].detach(), CLEAN])
    together = torch.stack([times, times * 0.95], 1).requires_grad_()
    alone = [each.requires_grad_() for each in together.detach().unbind(1)]
    ends = end(solver, LINEAR, together, None, None)
    (found,) = grad(ends.sum(), together)
    assert found.isfinite().all() and found[:-1].ne(0).all(), "an optimiser of the whole grid sees no NaN at t = 0"
    for i, own in enumerate(alone):
        single = end(solver, LINEAR, own, None, None)[i]
        assert torch.allclose(ends[i], single, rtol=1e-10)
        assert torch.allclose(found[:, i], grad(single.sum(), own)[0], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_clean_data_stays_where_it_is(schedule):
    clean = float64([0.0, 0.5]).requires_grad_()
    for method in (schedule.sigma, schedule.rho):
        slope, other = grad(method(clean).sum(), clean)[0]
        assert slope == 0 and other > 0
    for method in (schedule.alpha, schedule.lam):
        assert grad(method(clean)[0], clean)[0].isfinite().all()
    assert grad(schedule.time_of_lam(schedule.lam(clean)).sum(), clean)[0].isfinite().all()
    infinite = float64(torch.inf).requires_grad_()
    assert grad(schedule.time_of_lam(infinite), infinite)[0] == 0
