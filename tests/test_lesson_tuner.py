"""The losses of one step over tau, by what is known of them."""

import pytest
import torch

from tt_lib.errors import BadValue
from tt_lib.lessons.tuner import SAMPLES, TOYS, step_losses, tuner_explorer
from tt_lib.schedules import linear_betas
from tt_lib.toy import exact_flow


def test_one_tau_repairs_a_step_of_a_gaussian_at_0_for_all_samples():
    found = step_losses("one Gaussian at 0", 0.42, 0.26, points=2000)
    assert found.left(found.untuned) == 1
    assert found.left(int(found.truncation.argmin())) < 1e-3


@pytest.mark.parametrize("toy", [name for name in TOYS if name != "one Gaussian at 0"])
def test_and_only_a_part_of_it_elsewhere(toy):
    found = step_losses(toy, 0.42, 0.26)
    assert 0.05 < found.left(int(found.truncation.argmin())) < 0.9


def test_consistency_is_0_where_the_direction_does_not_change():
    # Deep in the noise all data look like one point, and eps is nearly the same along the trajectory.
    found = step_losses("two modes", 0.9, 0.88)
    assert found.consistency[found.untuned] < 1e-6
    assert found.taus[found.untuned] == pytest.approx(0.9)


def test_the_truncation_loss_is_the_direction_error_times_the_length_of_the_step():
    t, s = (torch.tensor(time, dtype=torch.float64) for time in (0.42, 0.26))
    schedule, mixture, found = linear_betas(), TOYS["two modes"], step_losses("two modes", 0.42, 0.26)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(SAMPLES, 1, generator=generator, dtype=torch.float64)
    x = schedule.alpha(t) * mixture.sample(SAMPLES, generator) + schedule.sigma(t) * noise
    length = schedule.rho(s) - schedule.rho(t)
    mean = (exact_flow(mixture, x, t, s, schedule) / schedule.alpha(s) - x / schedule.alpha(t)) / length
    for at in (20, 100, found.untuned):
        wrong = mixture.eps(x, found.taus[at], schedule) - mean
        assert found.truncation[at] == pytest.approx(
            ((schedule.alpha(s) * length * wrong) ** 2).sum(1).mean().item(), rel=1e-6
        )


@pytest.mark.parametrize(
    "toy, t, s", [("three modes", 0.5, 0.2), ("two modes", 0.2, 0.5), ("two modes", 0.5, 0.0), ("two modes", 1.0, 0.5)]
)
def test_impossible_settings_are_refused(toy, t, s):
    with pytest.raises(BadValue):
        step_losses(toy, t, s)


def test_every_control_redraws_and_takes_its_extremes():
    toy, t, length, picture = tuner_explorer().children
    seen = {bytes(picture.value)}
    for control, values in ((toy, ["ring of eight"]), (t, [t.min, t.max]), (length, [length.min, length.max])):
        for value in values:
            control.value = value
            seen.add(bytes(picture.value))
    assert len(seen) == 6
