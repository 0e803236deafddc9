"""Direction and truncation errors: closed forms on one Gaussian, orders, and what tuning removes."""

from __future__ import annotations

import math

import pytest
import torch
from solver_helpers import gaussian_flow

from tt_lib.engine import drive
from tt_lib.errors import BadValue, NotFinite
from tt_lib.grids import Grid, make_grid
from tt_lib.metrics.direction import MEASURES, measure_directions
from tt_lib.sampling import Sampler
from tt_lib.schedules import make_schedule
from tt_lib.solvers.registry import make_solver
from tt_lib.toy import MixturePredictor, exact_flow, ring_2d, single_gaussian
from tt_lib.tuning import TuneConfig, tune

LINEAR = make_schedule("linear")
RING = ring_2d(5, scale=0.2)
EXACT = MixturePredictor(RING, LINEAR)
pytestmark = pytest.mark.usefixtures("one_thread")


def start(n: int = 20, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_the_local_error_of_ddim_on_one_gaussian_is_its_closed_form():
    mean, scale = [0.5, -0.2], 0.3
    grid, x = make_grid("uniform", 4, LINEAR), start()
    predictor = MixturePredictor(single_gaussian(mean, scale), LINEAR)
    measured = measure_directions(predictor, LINEAR, make_solver("ddim"), grid, x)
    t, s = grid.times[:2]
    alpha, sigma, alpha_s, sigma_s = (f(u).item() for u in (t, s) for f in (LINEAR.alpha, LINEAR.sigma))
    m = torch.tensor(mean, dtype=torch.float64)
    eps = sigma * (x - alpha * m) / (alpha**2 * scale**2 + sigma**2)
    end = alpha_s * (x - sigma * eps) / alpha + sigma_s * eps
    flow = gaussian_flow(x, t, s, mean, scale, LINEAR)
    assert torch.allclose(measured.local[0], (end - flow).square().mean(1).sqrt(), rtol=1e-6)
    # The direction used is eps itself; the mean one follows from the closed flow.
    true = (flow / alpha_s - x / alpha) / (sigma_s / alpha_s - sigma / alpha)
    cosine = (eps * true).sum(1) / eps.norm(dim=1) / true.norm(dim=1)
    assert torch.allclose(measured.angle[0], cosine.clamp(-1, 1).acos().rad2deg(), atol=1e-4)
    assert torch.allclose(
        measured.relative[0], (eps - true).norm(dim=1) / true.square().sum(1).mean().sqrt(), rtol=1e-6
    )
    assert measured.doubt.eq(0).all()


def test_errors_add_up_to_the_end_points():
    grid, x = make_grid("uniform", 5, LINEAR), start()
    measured = measure_directions(EXACT, LINEAR, make_solver("dpmpp-2m"), grid, x)
    assert torch.allclose(measured.local[0], measured.accumulated[0], rtol=1e-9), (
        "the first step starts at the same state"
    )
    end = exact_flow(RING, x, grid.times[0], 0.0, LINEAR)
    sampled = drive(make_solver("dpmpp-2m")(x, grid, LINEAR), EXACT).x
    assert torch.allclose(measured.accumulated[-1], (sampled - end).square().mean(1).sqrt(), rtol=1e-6)


@pytest.mark.parametrize(("name", "low", "high"), [("ddim", 0.75, 1.3), ("dpmpp-2m", 1.6, 2.6)])
def test_the_direction_error_falls_with_the_solvers_order(name, low, high):
    """The direction's error is the local error over the interval, so it has the solver's order, not one more."""
    errors = []
    for steps in (32, 64):
        grid = Grid("even", tuple(torch.linspace(0.9, 0.1, steps + 1, dtype=torch.float64).tolist()))
        measured = measure_directions(EXACT, LINEAR, make_solver(name), grid, start())
        errors.append(measured.relative[2:].mean().item())
    assert low < math.log2(errors[0] / errors[1]) < high, errors


def test_a_fine_solution_knows_its_own_error():
    """The same mixture as an unknown network: close to the exact flow, and no further from it than it doubts."""

    def network(x, t, tau):
        return EXACT(x, t, tau)

    grid, x = make_grid("uniform", 4, LINEAR), start()
    exact = measure_directions(EXACT, LINEAR, make_solver("ddim"), grid, x)
    fine = measure_directions(network, LINEAR, make_solver("ddim"), grid, x, substeps=32)
    doubt = fine.doubt.mean(1)
    assert (doubt[:-1] > 0).all()
    gap = (fine.local - exact.local).abs().mean(1)
    assert (gap[:-1] <= doubt[:-1]).all(), (gap, doubt)
    assert (doubt[:-1] < 0.2 * exact.local.mean(1)[:-1]).all()


def test_truncation_tuning_lowers_the_local_error_on_average():
    grid, solver = make_grid("uniform", 5, LINEAR), make_solver("ddim")
    x0 = RING.sample(200, torch.Generator().manual_seed(3))
    sampler = Sampler(EXACT, LINEAR, solver, grid, (2,))
    timing = tune(sampler, x0, TuneConfig(objective="truncation", optimiser="search")).timing
    untuned, tuned = (
        measure_directions(EXACT, LINEAR, solver, grid, start(200), taus).accumulated[-1].mean()
        for taus in (None, timing.taus)
    )
    assert tuned < 0.97 * untuned


def test_a_direction_that_is_none_is_no_row():
    """A network that answers 0 everywhere has a mean direction of length 0: each of its angles was NaN, and a gap in
    the file."""
    with pytest.raises(NotFinite, match=r"angle of sample \d+ in step 1 of 3 is nan"):
        measure_directions(
            lambda x, t, tau: 0 * x, LINEAR, make_solver("ddim"), make_grid("uniform", 3, LINEAR), start()
        )


def test_frame_and_bad_input():
    grid = make_grid("uniform", 3, LINEAR)
    measured = measure_directions(EXACT, LINEAR, make_solver("ddim"), grid, start())
    frame = measured.frame()
    assert list(frame["t"]) == list(grid.times[:-1]) and list(frame["s"]) == list(grid.times[1:])
    for name in MEASURES:
        values = getattr(measured, name)
        assert frame[name].tolist() == pytest.approx(values.mean(1).tolist())
        assert frame[f"{name}_margin"].tolist() == pytest.approx((1.96 * values.std(1) / 20**0.5).tolist())
    with pytest.raises(BadValue, match="ddim draws noise"):
        measure_directions(EXACT, LINEAR, make_solver("ddim", eta=1.0), grid, start())
    with pytest.raises(BadValue, match="even and at least 2, got 5"):
        measure_directions(EXACT, LINEAR, make_solver("ddim"), grid, start(), substeps=5)
