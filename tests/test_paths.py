"""Diffusions that are not variance-preserving: what their times mean, and that all of the library works on them."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from solver_helpers import LINEAR, PATHS, float64, gaussian_flow, points
from torch import Tensor

from tt_lib.engine import drive
from tt_lib.errors import BadValue, TimingMismatch
from tt_lib.grids import make_grid
from tt_lib.metrics.direction import measure_directions
from tt_lib.predictors import EpsPredictor, OnPath, from_direction, path_of, to_direction, to_x0
from tt_lib.sampling import Sampler
from tt_lib.schedules import VE, Schedule, make_schedule, time_of_index, zero_snr_betas
from tt_lib.solvers.registry import make_solver
from tt_lib.study.cells import Cell
from tt_lib.toy import MixturePredictor, exact_flow, ring_2d, single_gaussian
from tt_lib.tuning import TuneConfig, ld3, tune
from tt_lib.tuning.gits import learn_gits
from tt_lib.tuning.learn import PIXELS, Knobs, LearnConfig, learn

FLOW, ZERO_SNR = PATHS["flow"], PATHS["zero-snr"]
RING = ring_2d()
every_path = pytest.mark.parametrize("schedule", PATHS.values(), ids=PATHS)
pytestmark = pytest.mark.usefixtures("one_thread")


def toy_sampler(schedule: Schedule, solver: str = "euler", nfe: int = 5, grid: str = "uniform", **more) -> Sampler:
    made, steps = make_solver(solver).for_nfe(nfe)
    predictor = MixturePredictor(RING, schedule)
    return Sampler(predictor, schedule, made, make_grid(grid, steps, schedule), (2,), model="ring", **more)


# ---- schedules


@every_path
def test_lambda_falls_between_its_ends_and_has_an_inverse(schedule):
    t = torch.linspace(schedule.t_min, schedule.t_max, 997, dtype=torch.float64)
    assert (schedule.lam(t).diff() < 0).all() and schedule.lam(t).isfinite().all()
    assert torch.allclose(schedule.lam(t), (schedule.alpha(t) / schedule.sigma(t)).log(), atol=1e-10)
    assert (schedule.time_of_lam(schedule.lam(t)) - t).abs().max() < 1e-10
    assert schedule.sigma(0.0) == 0 and schedule.alpha(0.0) == 1 and schedule.lam(0.0) == math.inf
    assert schedule.time_of_lam(math.inf) == 0 and schedule.w(0.0) == 0
    blind = schedule.direction == "velocity"
    assert (schedule.alpha(1.0) == 0) == blind == (schedule.lam(1.0) == -math.inf) == (schedule.t_max < 1)
    assert schedule.time_of_lam(-math.inf) == 1
    assert torch.allclose(schedule.c(t) * schedule.w(t), schedule.sigma(t))
    ends = float64([0.0, 1.0]).requires_grad_()
    for method in (schedule.alpha, schedule.sigma, schedule.lam, schedule.w, schedule.c, schedule.scale):
        value = method(ends)
        assert not value.requires_grad or torch.autograd.grad(value.sum(), ends)[0].isfinite().all(), method


def test_flow_is_diffusers_flow_and_the_grid_has_the_shift():
    """SD3's static shift and Flux's dynamic one, ``exp(mu)``: the sigmas that both solver and network get."""
    diffusers = pytest.importorskip("diffusers")
    sigmas = np.linspace(1.0, 1 / 6, 6)
    for shift, options in ((3.0, {"shift": 3.0}), (math.exp(0.9), {"use_dynamic_shifting": True})):
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**options)
        scheduler.set_timesteps(sigmas=sigmas, **({} if "shift" in options else {"mu": 0.9}))
        grid = make_grid(f"uniform-trailing,shift={shift!r}", 6, FLOW).tensor()
        assert torch.allclose(grid, scheduler.sigmas.double(), atol=1e-6)
        assert torch.allclose(FLOW.network_time(grid[:-1]), scheduler.timesteps.double(), atol=1e-3)
        even = make_grid("uniform-trailing", 6, FLOW).tensor()[1:-1]
        assert torch.allclose(FLOW.lam(grid[1:-1]), FLOW.lam(even) - math.log(shift))


def test_zero_terminal_snr_is_diffusers():
    pytest.importorskip("diffusers")
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    theirs = rescale_zero_terminal_snr(LINEAR.betas)
    assert torch.allclose(ZERO_SNR.betas, theirs, rtol=1e-9, atol=1e-12) and ZERO_SNR.betas[-1] == 1
    levels = time_of_index(torch.arange(1000), 1000)
    assert torch.allclose(ZERO_SNR.alpha(levels) ** 2, (1 - theirs).cumprod(0), rtol=1e-8, atol=1e-12)
    assert 0 < ZERO_SNR.alpha(0.9995) < ZERO_SNR.alpha(0.999), "the last interval has times of its own"
    assert torch.allclose(ZERO_SNR.alpha(0.9995), ZERO_SNR.alpha(0.999) / 2)


def test_ve_is_edm():
    pytest.importorskip("diffusers")
    from diffusers import EDMEulerScheduler

    scheduler = EDMEulerScheduler()
    scheduler.set_timesteps(7)
    ve = make_schedule("ve")
    grid = make_grid("karras", 7, ve).tensor()
    assert torch.allclose(ve.sigma(grid), scheduler.sigmas.double(), rtol=1e-5)
    assert torch.allclose(ve.network_time(grid[:-1]), scheduler.timesteps.double(), atol=1e-6)
    assert ve.scale(1.0).item() == pytest.approx(float(scheduler.init_noise_sigma), rel=1e-9)
    x, answer = points(3, 4), points(3, 4, seed=1)
    sample, output = x * ve.sigma(grid[2]), answer
    scaled = scheduler.precondition_inputs(sample, ve.sigma(grid[2]))
    seen = []
    predictor = EpsPredictor(lambda x, c: seen.append((x, c)) or output, ve, kind="edm")
    direction = predictor(sample, grid[2], grid[3]).double()
    assert torch.allclose(seen[0][0], scaled) and torch.allclose(seen[0][1].double(), ve.network_time(grid[3]))
    x0 = scheduler.precondition_outputs(sample, output, ve.sigma(grid[2]))
    assert torch.allclose(to_x0(direction, sample, grid[2], ve), x0, rtol=1e-5, atol=1e-6)
    assert torch.allclose(from_direction("edm", direction, sample, grid[2], ve), output, rtol=1e-5)


def test_options_are_part_of_the_name_and_a_timing_belongs_to_them():
    assert [schedule.name for schedule in PATHS.values()] == ["flow", "ve", "zero-snr"]
    other = make_schedule("ve", sigma_max=100.0)
    assert (other.name, make_schedule(other.name).sigma(1.0)) == ("ve,sigma_max=100", 100)
    assert zero_snr_betas(100).name == "zero-snr,levels=100" and make_schedule("linear,levels=10").levels == 10
    assert make_schedule("linear").name == "linear" and make_schedule("cosine").name == "cosine"
    sampler = toy_sampler(PATHS["ve"], grid="karras")
    timing = sampler.make_timing("mine", sampler.grid.times[:-1])
    with pytest.raises(TimingMismatch, match="schedule 've' and is used with schedule 've,sigma_max=100'"):
        toy_sampler(other, grid="karras", timing=timing)
    shifted = toy_sampler(FLOW, grid="uniform-trailing,shift=3")
    assert shifted.make_timing("mine", shifted.grid.times[:-1]).grid == "uniform-trailing,shift=3"
    for name, spelled in (("uniform,shift=3.0", "uniform,shift=3"), ("uniform,shift=1", "uniform")):
        assert make_grid(name, 5, FLOW).name == Cell("euler", name, 5).grid == spelled, "one grid, one spelling"


def test_a_path_with_the_first_level_of_the_diffusion_has_its_grids():
    path = path_of("zero-snr", LINEAR)
    assert make_grid("uniform", 4, path).times == make_grid("uniform", 4, LINEAR).times


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: make_schedule("flow,shift=3"), "'flow' takes no option 'shift'; it takes none"),
        (lambda: make_schedule("ve,sigma_max=much"), "sigma_max of schedule 've' must be a number, got 'much'"),
        (lambda: VE(80, 0.002), "0 < sigma_min < sigma_max"),
        (lambda: zero_snr_betas(1), "at least 2 to fall to zero SNR, got 1"),
        (lambda: make_grid("uniform,shift=3", 5, LINEAR), "is for the schedule 'flow', got 'linear'"),
        (lambda: make_grid("uniform,shift=3,start=1", 5, FLOW), "takes no option but shift, got start"),
        (lambda: make_grid("uniform,shift=0.1", 5, FLOW), "below 0.001, the smallest time"),
        (lambda: make_grid("uniform,shift=3", 5, FLOW, start=0.8), "begins where its shift says, got start 0.8"),
        (lambda: EpsPredictor(lambda x, c: x, FLOW, kind="v"), "on the schedule 'flow' it is not"),
        (lambda: EpsPredictor(lambda x, c: x, LINEAR, kind="edm"), "for the schedule 've', got 'linear'"),
    ],
)
def test_what_cannot_be_meant_is_refused(make, message):
    with pytest.raises(BadValue, match=message):
        make()


# ---- predictions


@every_path
@pytest.mark.parametrize("kind", ["eps", "x0", "v", "score", "velocity"])
def test_every_kind_of_prediction_becomes_the_direction_and_back(schedule, kind):
    if kind == "v" and schedule is not ZERO_SNR:
        return
    x, t = points(5, 2), torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    eps, x0 = RING.eps_x0(x, t, schedule)
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    said = {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0, "score": -eps / sigma, "velocity": eps - x0}[kind]
    expected = MixturePredictor(RING, schedule)(x, t, t)
    direction = to_direction(kind, said, x, t, schedule)
    assert torch.allclose(direction, expected, rtol=1e-7, atol=1e-9)
    assert torch.allclose(to_x0(direction, x, t, schedule), x0, atol=1e-9)
    assert torch.allclose(from_direction(kind, direction, x, t, schedule), said, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("path", ["flow", "zero-snr"])
def test_eps_is_refused_where_alpha_is_0_before_the_network_runs(path):
    def network(x: Tensor, c: Tensor) -> Tensor:
        raise AssertionError("it ran")

    for kind in ("eps", "score"):
        predictor = EpsPredictor(network, PATHS[path], kind=kind)
        with pytest.raises(BadValue, match=f"predicts {kind}, and on the schedule '{path}' alpha is 0 at t = 1"):
            predictor(points(2, 2), float64(1.0), float64(0.9))
    # What a network may say there is one direction: x is eps alone.
    x = points(4, 2)
    x0 = RING.x0(x, 1.0, PATHS[path])
    kinds = {"x0": x0, "velocity": x - x0} | ({"v": -x0} if path == "zero-snr" else {})
    for kind, said in kinds.items():
        assert torch.allclose(to_direction(kind, said, x, float64(1.0), PATHS[path]), x - x0)


def test_a_network_is_conditioned_on_1000_tau_and_its_velocity_is_taken_as_it_is():
    seen = []
    predictor = EpsPredictor(lambda x, c: seen.append(c) or 3 * x, FLOW, kind="velocity")
    x = points(2, 2).float()
    assert torch.equal(predictor(x, float64(1.0), float64(0.85)), 3 * x) and seen[0].tolist() == [850, 850]


def test_a_diffusions_network_serves_the_straight_path():
    own, plain = MixturePredictor(RING, LINEAR), MixturePredictor(RING, FLOW)
    borrowed = OnPath(own, LINEAR, FLOW)
    x, t, tau = points(6, 2), torch.linspace(0.01, 0.99, 6, dtype=torch.float64), float64(0.5)
    assert torch.allclose(borrowed(x, t, t), plain(x, t, t), rtol=1e-7, atol=1e-8)
    # Conditioned on tau, converted at t: the state is that of t whatever tau is.
    own_t, own_tau = (LINEAR.time_of_lam(FLOW.lam(time)) for time in (t, tau))
    state = x / FLOW.scale(t)[:, None]
    eps = RING.eps(state, own_tau, LINEAR)
    expected = to_direction("x0", to_x0(eps, state, own_t, LINEAR), x, t, FLOW)
    assert torch.allclose(borrowed(x, t, tau), expected, rtol=1e-7, atol=1e-8)
    # At t = 1 there is no time of the diffusion with so little signal: it is asked at its own t = 1.
    one = float64(1.0)
    assert torch.allclose(to_x0(borrowed(x, one, one), x, one, FLOW), RING.x0(x, 1.0, LINEAR), atol=1e-6)
    # Its samples are those of the diffusion in other variables, from the same noise: a fine grid shows it.
    grids = [make_grid("karras", 40, schedule) for schedule in (FLOW, LINEAR)]
    ends = [
        drive(make_solver("unipc")(points(8, 2), grid, schedule), predictor).x
        for grid, schedule, predictor in zip(grids, (FLOW, LINEAR), (borrowed, own), strict=True)
    ]
    assert (ends[0] - ends[1]).abs().max() < 0.02


def test_a_network_on_a_path_noisier_than_its_own_schedule_is_asked_at_its_own_t_1():
    own = make_schedule("continuous-linear")
    assert own.time_of_lam(float64([-math.inf, -20.0])).tolist() == pytest.approx([1, 1])
    x = points(3, 2)
    for path in ("flow", "cosine"):
        schedule = make_schedule(path)
        direction = OnPath(MixturePredictor(RING, own), own, schedule)(x, float64(1.0), float64(1.0))
        assert torch.allclose(to_x0(direction, x, float64(1.0), schedule), RING.x0(x, 1.0, own), atol=1e-3)


# ---- tuning, learning, measuring


def test_the_first_time_of_a_network_on_another_path_moves():
    """Between t = 1 and the noisiest level that the network knows, its own time stands still."""
    path = path_of("flow", LINEAR)
    sampler = replace(
        toy_sampler(path, grid="uniform-trailing"), predictor=OnPath(MixturePredictor(RING, LINEAR), LINEAR, path)
    )
    images = RING.sample(64, torch.Generator().manual_seed(1))
    for objective in ("consistency", "truncation"):
        config = TuneConfig(objective, "sequential", "adam", iterations=20, lr=0.01, batch=64, substeps=8)
        timing = tune(sampler, images, config).timing
        assert timing.taus[0] < 0.95 and timing.tuning["loss_tuned"][0] < 0.9 * timing.tuning["loss_untuned"][0]
    # The slope is one of the gradient alone: no answer has changed.
    x, one = points(3, 2), float64(1.0)
    assert torch.equal(sampler.predictor(x, one, one), sampler.predictor(x, one, one.clone().requires_grad_()).detach())


TUNINGS = product(("consistency", "truncation"), ("sequential", "parallel"), ("adam", "search"))


@pytest.mark.parametrize("objective, strategy, optimiser", TUNINGS)
def test_step_wise_tuning_on_the_straight_path_lowers_every_loss(objective, strategy, optimiser):
    images = RING.sample(48, torch.Generator().manual_seed(1))
    config = TuneConfig(objective, strategy, optimiser, iterations=40, lr=0.01, batch=48, substeps=8)
    timing = tune(toy_sampler(FLOW, "dpmpp-2m" if strategy == "parallel" else "euler"), images, config).timing
    assert sum(timing.tuning["loss_tuned"]) < 0.98 * sum(timing.tuning["loss_untuned"])
    assert timing.schedule == "flow" and timing.taus != timing.times and timing.times[0] == 1


@pytest.mark.parametrize("solver, path", [("euler", "flow"), ("unipc", "flow"), ("heun", "ve")])
def test_learned_samplers_on_other_paths_end_nearer_to_the_converged_solution(solver, path):
    config = LearnConfig(("grid", "timing", "gain"), noises=64, validation=64, batch=32, iterations=24, lr=0.1)
    sampler = toy_sampler(PATHS[path], solver, grid="uniform" if path == "flow" else "karras")
    timing = learn(sampler, PIXELS, config).timing
    assert timing.tuning["validation_learned"] < 0.7 * timing.tuning["validation_start"]
    assert timing.grid == "learned" and timing.schedule == path and timing.taus[0] <= 1


def test_knobs_begin_from_the_largest_time_with_a_finite_lambda():
    start = make_grid("uniform", 5, FLOW)
    knobs = Knobs(start, 5, FLOW, ("grid", "timing"))
    moved = knobs.times()
    lam, begun = FLOW.lam(start.tensor()[1:-1]), FLOW.lam(moved[1:-1])
    assert (lam - begun).abs().max() < 0.05 and moved[0] == start.times[0] == 1
    tau = knobs.tau(0, float64(1.0))
    assert tau.item() == pytest.approx(0.999)
    (slope,) = torch.autograd.grad(tau, knobs.parameters["timing"])
    assert slope[0] < 0, "the first conditioning time moves"


def test_other_ways_to_a_grid_work_on_the_straight_path():
    timing = learn_gits(toy_sampler(FLOW), 32)
    assert timing.grid == "learned" and timing.grid_times[0] == 1 and timing.grid_times[-1] == 0
    times, taus = ld3._Times(5, FLOW)()
    assert times[[0, -1]].tolist() == pytest.approx([FLOW.t_max, FLOW.t_min]) and torch.equal(times[:-1], taus)


def test_the_direction_error_on_the_straight_path():
    mean, scale = [0.5, -0.2], 0.3
    grid, x = make_grid("uniform", 4, FLOW), points(20, 2)
    gaussian = single_gaussian(mean, scale)
    measured = measure_directions(MixturePredictor(gaussian, FLOW), FLOW, make_solver("euler"), grid, x)
    t, s = grid.times[:2]
    eps, x0 = gaussian.eps_x0(x, t, FLOW)
    flow = gaussian_flow(x, t, s, mean, scale, FLOW)
    # On the straight path the direction is dx / dt.
    used, true = eps - x0, (flow - x) / (s - t)
    assert torch.allclose(measured.local[0], ((s - t) * (used - true)).square().mean(1).sqrt(), rtol=1e-6)
    relative = (used - true).norm(dim=1) / true.square().sum(1).mean().sqrt()
    assert torch.allclose(measured.relative[0], relative, rtol=1e-6)
    # An unknown network's flow is taken in fine steps, from alpha = 0 on.
    fine = measure_directions(
        lambda x, t, tau: MixturePredictor(gaussian, FLOW)(x, t, tau), FLOW, make_solver("euler"), grid, x, substeps=64
    )
    assert torch.allclose(fine.local, measured.local, rtol=0.05, atol=1e-3)


@every_path
def test_the_exact_flow_is_the_gaussians(schedule):
    mean, scale = 0.5, 0.25
    x = torch.linspace(-1.5, 1.5, 9, dtype=torch.float64)[:, None] * schedule.scale(1.0)
    expected = gaussian_flow(x, 1.0, 0.1, mean, scale, schedule)
    mixture = single_gaussian(mean, scale)
    for source in (mixture, MixturePredictor(mixture, make_schedule(schedule.name))):
        assert torch.allclose(exact_flow(source, x, 1.0, 0.1, schedule), expected, rtol=1e-7, atol=1e-8)
