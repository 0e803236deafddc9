"""Analytic-DDIM and Analytic-DDPM: the best variance against exact laws, and what is clipped."""

from __future__ import annotations

import math

import pytest
import torch
from solver_helpers import EXACT, LINEAR, MEAN, SCALE, draw, law_of, start_law

from tt_lib.engine import drive
from tt_lib.errors import BadValue
from tt_lib.grids import make_grid
from tt_lib.schedules import make_schedule
from tt_lib.solvers.analytic import noise_bound
from tt_lib.solvers.registry import make_solver
from tt_lib.toy import MixturePredictor, ring_2d

COSINE = make_schedule("cosine")
BOTH = ("analytic-ddim", "analytic-ddpm")
TIMES = torch.tensor([0.95, 0.5, 0.2, 0.05], dtype=torch.float64)
pytestmark = pytest.mark.usefixtures("one_thread")


# ---- the best variance


@pytest.mark.parametrize("name", BOTH)
def test_on_a_gaussian_every_step_is_exact(name):
    """The step's true law is a Gaussian with just this mean and variance, so any steps lead to the true law of x_s."""
    for times in (TIMES, TIMES[::3], TIMES[:2]):
        assert law_of(name, times, *start_law(times[0])) == pytest.approx(start_law(times[-1]), rel=1e-9)


def test_the_variances_that_are_chosen_by_hand_are_not_exact():
    true = start_law(TIMES[-1])[1]
    by_hand = [law_of("ddpm", TIMES, *start_law(TIMES[0]), variance=v)[1] / true - 1 for v in ("small", "large")]
    by_hand.append(law_of("ddim", TIMES, *start_law(TIMES[0]))[1] / true - 1)
    assert min(abs(gap) for gap in by_hand) > 0.05 and by_hand[0] < 0 < by_hand[1], by_hand


@pytest.mark.parametrize("name", BOTH)
def test_few_steps_to_clean_data(name):
    """The last step returns x0, whose variance is (alpha_t s^2)^2 / v_t, and no error of the steps before is in it."""
    times = make_grid("logsnr", 4, LINEAR).tensor()
    t = times[-2]
    mean, variance = law_of(name, times, *start_law(times[0]), pixels=1e9)
    shrunk = LINEAR.alpha(t).item() ** 2 * SCALE**4 / start_law(t)[1]
    assert mean == pytest.approx(MEAN, rel=1e-9) and variance == pytest.approx(shrunk, rel=1e-9)
    # The clipped noise of the last noisy step was right here: without it variance is missing.
    assert law_of(name, times, *start_law(times[0]))[1] < 0.9 * variance
    for other, options in (("ddpm", {}), ("ddpm", {"variance": "large"}), ("ddim", {})):
        plain = law_of(other, times, *start_law(times[0]), **options)[1]
        assert abs(plain / SCALE**2 - 1) > 3 * abs(variance / SCALE**2 - 1), (other, plain)


@pytest.mark.parametrize("name", BOTH)
def test_one_step_on_a_mixture_has_the_right_total_variance(name):
    """No Gaussian step is exact there, but the mean square of x_s is: that is what the best variance keeps."""
    ring, n = ring_2d(5, scale=0.1), 30_000
    predictor = MixturePredictor(ring, LINEAR)
    x0 = ring.sample(n, torch.Generator().manual_seed(0))
    times = torch.tensor([0.4, 0.15], dtype=torch.float64)
    noise = draw(1)
    x = LINEAR.alpha(times[0]) * x0 + LINEAR.sigma(times[0]) * noise(x0)
    gamma = predictor(x, times[0], times[0]).square().mean().item()
    assert 0.05 < 1 - gamma < 0.95
    # A radius of 1 and a scale of 0.1 in the plane: the mean square of a coordinate is 1.02 / 2.
    true = (LINEAR.alpha(times[1]) ** 2 * 0.51 + LINEAR.sigma(times[1]) ** 2).item()

    def mean_square(solver):
        return drive(solver(x, times, LINEAR, noise), predictor).x.square().mean().item()

    assert mean_square(make_solver(name, gamma=(gamma,))) == pytest.approx(true, rel=0.03)
    plain = mean_square(make_solver("ddim", eta=float(name == "analytic-ddpm")))
    assert plain < 0.75 * true


# ---- clipping


@pytest.mark.parametrize(
    ("name", "plain"), [("analytic-ddim", ("ddim", {})), ("analytic-ddpm", ("ddpm", {"variance": "small"}))]
)
def test_gamma_of_one_or_more_is_the_plain_solver(name, plain):
    grid = make_grid("uniform", 5, LINEAR)
    x = draw(0)(torch.empty(6, 1, dtype=torch.float64))
    expected = drive(make_solver(plain[0], **plain[1])(x, grid, LINEAR, draw(1)), EXACT).x
    for gamma in (1.0, 1.3):
        found = drive(make_solver(name, gamma=(gamma,) * 5)(x, grid, LINEAR, draw(1)), EXACT).x
        assert torch.allclose(found, expected, rtol=1e-9)
    other = drive(make_solver(name, gamma=(0.9,) * 5)(x, grid, LINEAR, draw(1)), EXACT).x
    assert not torch.allclose(other, expected, rtol=1e-2)


def deviation(name: str, times, schedule=LINEAR, **options) -> torch.Tensor:
    """The noise of one step, measured: with x = 0 and eps = 0 nothing else is left."""
    times = torch.as_tensor(times, dtype=torch.float64)
    x = torch.zeros(1, 1, dtype=torch.float64)
    run = drive(
        make_solver(name, **options)(x, times, schedule, torch.ones_like), lambda x, t, tau: torch.zeros_like(x)
    )
    return run.x.item()


@pytest.mark.parametrize("name", BOTH)
def test_the_variance_lies_between_the_papers_bounds(name):
    for t, s in ((0.5, 0.2), (0.2, 0.1)):
        (a_t, s_t), (a_s, s_s) = ((LINEAR.alpha(u).item(), LINEAR.sigma(u).item()) for u in (t, s))
        lower = (1 - a_t**2 / a_s**2) * s_s**2 / s_t**2 if name == "analytic-ddpm" else 0.0
        factor = (a_s * s_t / a_t - math.sqrt(s_s**2 - lower)) ** 2
        variance = {gamma: deviation(name, [t, s], gamma=(gamma,)) ** 2 for gamma in (1.5, 1.0, 0.7, 0.0, -0.5)}
        assert variance[1.0] == variance[1.5] == pytest.approx(lower, rel=1e-9, abs=1e-15)
        # Data in [-1, 1]: x_0 has a variance of 1 at most, which counts at the larger t.
        assert (s_t / a_t > 1) == (t == 0.5)
        most = factor * min((a_t / s_t) ** 2, 1.0)
        assert variance[0.0] == variance[-0.5] == pytest.approx(lower + most, rel=1e-9)
        assert variance[0.7] == pytest.approx(lower + min(0.3 * factor, most), rel=1e-9)


@pytest.mark.parametrize("name", BOTH)
def test_the_last_noise_is_a_pixel_or_two(name):
    for schedule, pixels in ((LINEAR, 2), (COSINE, 1)):
        step = [0.1, schedule.t_min]
        found = deviation(name, step, schedule, gamma=(0.5,))
        # The mean of |c z| is c sqrt(2 / pi), and [-1, 1] holds 255 levels.
        assert found * math.sqrt(2 / math.pi) == pytest.approx(pixels * 2 / 255, rel=1e-9)
        assert deviation(name, step, schedule, gamma=(0.5,), pixels=0.5) == pytest.approx(
            found * 0.5 / pixels, rel=1e-9
        )
        unclipped = deviation(name, step, schedule, gamma=(0.5,), pixels=1e9)
        assert unclipped > 1.2 * found
        # Another step keeps its noise, and one into clean data has none.
        assert deviation(name, [0.1, 2 * schedule.t_min], schedule, gamma=(0.5,)) > 1.1 * found
        assert deviation(name, [0.1, 0.0], schedule, gamma=(0.5,)) == 0
        assert noise_bound(schedule) == pytest.approx(found, rel=1e-9)


def test_a_wrong_gamma_is_named():
    grid, x = make_grid("uniform", 3, LINEAR), torch.zeros(1, 1)
    for options, message in (
        ({}, r"`tt sample`.*estimate_gamma"),
        ({"gamma": (0.5,)}, "1 entries, 3 steps"),
        ({"gamma": (0.5, math.nan, 0.5)}, "finite"),
        ({"gamma": (0.5,) * 3, "pixels": -1.0}, "not be negative, got -1.0"),
    ):
        with pytest.raises(BadValue, match=message):
            drive(make_solver("analytic-ddim", **options)(x, grid, LINEAR, torch.zeros_like), EXACT)


def test_a_step_of_a_parallel_tuning_has_its_own_gamma_and_clip():
    """A part of the grid gives the noise that the whole gives at that step."""
    grid = make_grid("uniform", 4, LINEAR)
    gamma = (0.9, 0.8, 0.7, 0.6)
    for k in range(4):
        part = make_solver("analytic-ddpm", gamma=gamma).part(k, 1, 3 - k)
        expected = deviation("analytic-ddpm", grid.times[k : k + 2], gamma=gamma[k : k + 1])
        assert part.options["gamma"] == gamma[k : k + 1]
        assert deviation("analytic-ddpm", grid.times[k : k + 2], **part.options) == expected
