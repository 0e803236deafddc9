"""UniPC: its first order by hand, and diffusers' scheduler step by step."""

from __future__ import annotations

import math

import pytest
import torch
from solver_helpers import LINEAR, UNEVEN, gaps, grid_of, our_states, points, scheduler_of, their_states

from tt_lib.engine import drive
from tt_lib.solvers.registry import make_solver

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
def test_first_order_by_hand(variant):
    # Two steps: predict, evaluate, correct with that evaluation, step on from the corrected state.
    times = UNEVEN[:3]
    a, s, lam = (of(times).tolist() for of in (LINEAR.alpha, LINEAR.sigma, LINEAR.lam))
    x, e0, e1 = (points(4, seed=seed) for seed in (0, 1, 2))
    answers = iter([e0, e1])
    solver = make_solver("unipc", order=1, variant=variant)
    end = drive(solver(x, times, LINEAR), lambda x, t, tau: next(answers)).x
    h = lam[1] - lam[0]
    m0 = (x - s[0] * e0) / a[0]
    predicted = s[1] / s[0] * x - a[1] * math.expm1(-h) * m0
    m1 = (predicted - s[1] * e1) / a[1]
    B = -h if variant == "bh1" else math.expm1(-h)
    corrected = predicted - a[1] * B * (m1 - m0) / 2
    expected = s[2] / s[1] * corrected - a[2] * math.expm1(lam[1] - lam[2]) * m1
    assert torch.allclose(end, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("end", ["zero", "sigma_min"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("steps", [5, 8, 20])
def test_with_lower_orders_at_the_end_it_is_diffusers_step_by_step(steps, variant, order, end):
    """They are its default, whatever the steps. By our default only a step into clean data is lower."""
    scheduler = scheduler_of(
        "UniPCMultistepScheduler", steps, solver_order=order, solver_type=variant, final_sigmas_type=end
    )
    grid, options = grid_of(scheduler, 0.0 if end == "zero" else 0.001), {"order": order, "variant": variant}
    theirs = their_states(scheduler)
    lower, full = (our_states("unipc", grid, final=final, **options) for final in ("lower", "full"))
    if variant == "bh1" and end == "zero":
        # B(h) is infinite there, and diffusers multiplies it by 0; ours returns the data prediction.
        assert theirs.pop().isnan().all() and lower.pop().isfinite().all() and full.pop().isfinite().all()
    assert gaps(lower, theirs).max() < 1e-5
    different = gaps(full, theirs)
    assert different[: steps + 2 - order].max() < 1e-5 and (order < 3 or different[steps - 1] > 1e-4)
