"""The figures of the integral view, by the numbers behind them."""

import pytest
import torch

from tt_lib.errors import BadValue
from tt_lib.lessons.integral import END, integral_explorer, integrand, mean_of, paths


def test_the_mean_direction_leads_to_the_true_end():
    rho, exact, _, _ = paths(1)
    rho_1, eps = integrand(0.5, END, 0.4)
    assert exact[0, 3] + mean_of(rho_1, eps) * (rho[-1] - rho[0]) == pytest.approx(exact[-1, 3].item(), abs=1e-3)


def test_one_ddim_step_is_the_left_value_kept():
    rho, eps = integrand(0.5, END, 0.4)
    _, _, stops, made = paths(1)
    assert made[1, 3] == pytest.approx((made[0, 3] + eps[0] * (stops[1] - stops[0])).item(), rel=1e-9)
    assert torch.allclose(rho[[0, -1]], stops)


def test_more_steps_end_nearer():
    errors = [(paths(steps)[3][-1] - paths(steps)[1][-1]).abs().mean().item() for steps in (1, 5, 20)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > 0


@pytest.mark.parametrize("call", [lambda: integrand(0.2, 0.5, 0.0), lambda: paths(0)])
def test_impossible_settings_are_refused(call):
    with pytest.raises(BadValue):
        call()


def test_the_slider_redraws():
    steps, picture = integral_explorer().children
    seen = {bytes(picture.value)}
    for value in (steps.min, steps.max):
        steps.value = value
        seen.add(bytes(picture.value))
    assert len(seen) == 3
