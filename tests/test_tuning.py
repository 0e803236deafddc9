"""Tuning on toys with exact answers: hand-made losses, true truncation errors, interruptions, and what is refused."""

from __future__ import annotations

import math
from itertools import pairwise
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from tt_lib.engine import Request, drive, replay
from tt_lib.errors import BadValue, NotFinite, TimingMismatch
from tt_lib.grids import Grid, make_grid
from tt_lib.sampling import Sampler, generate_images
from tt_lib.schedules import make_schedule
from tt_lib.solvers.layout import layout
from tt_lib.solvers.registry import make_solver
from tt_lib.timing import load_timing
from tt_lib.toy import GaussianMixture, MixturePredictor, exact_flow, ring_2d, two_modes_1d
from tt_lib.tuning import OBJECTIVES, STRATEGIES, TuneConfig, TuneResult, tune
from tt_lib.tuning.config import OPTIMISERS
from tt_lib.tuning.optimisers import SEARCH_TRIES, Bounds, _batch, adam, search
from tt_lib.tuning.problems import Setting, parallel_problem, sequential_problem

LINEAR = make_schedule("linear")
MIXTURES = {"line": two_modes_1d(), "ring": ring_2d(5, scale=0.2)}
RING = MIXTURES["ring"]
PREDICTOR = MixturePredictor(RING, LINEAR)
GRID = make_grid("uniform", 4, LINEAR)
NAMES = ["ddim", "dpmpp-2m"]  # written out by hand below; test_tuning_stages.py has them all
pytestmark = pytest.mark.usefixtures("one_thread")


def images(mixture: GaussianMixture = RING, n: int = 16, seed: int = 1) -> Tensor:
    return mixture.sample(n, torch.Generator().manual_seed(seed))


def tuner_noise(x0: Tensor, seed: int) -> Tensor:
    """The noise that a tuning with this seed puts on its images."""
    return torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed)).to(x0.dtype)


def noised(x0: Tensor, noise: Tensor, t: float) -> Tensor:
    return LINEAR.alpha(t) * x0 + LINEAR.sigma(t) * noise


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def run_tune(solver: str = "ddim", grid: Grid = GRID, x0: Tensor | None = None, **changes) -> TuneResult:
    """A small tuning of the ring; what is not an argument of ``tune`` is a field of its config."""
    arguments = {
        name: changes.pop(name) for name in ("state", "save_seconds", "progress", "predictor") if name in changes
    }
    config = TuneConfig(**{"iterations": 4, "batch": 8, "seed": 3, "substeps": 4, **changes})
    predictor = arguments.pop("predictor", PREDICTOR)
    x0 = images() if x0 is None else x0
    return tune(predictor, LINEAR, make_solver(solver), grid, x0, config, **arguments)


# ---- losses, by hand


def solver_by_hand(name: str, x: Tensor, times, answer) -> list[Tensor]:
    """All states of DDIM (Song et al. 2021, eq. 12) or DPM-Solver++(2M) (Lu et al. 2022, algorithm 2)."""
    alpha = [LINEAR.alpha(t).item() for t in times]
    sigma = [LINEAR.sigma(t).item() for t in times]
    lam = [math.log(a / s) if s else math.inf for a, s in zip(alpha, sigma, strict=True)]
    states, data = [x], []
    for k in range(len(times) - 1):
        eps = answer(k, x)
        data.append((x - sigma[k] * eps) / alpha[k])
        if name == "ddim":
            x = alpha[k + 1] * data[k] + sigma[k + 1] * eps
        else:
            h, d = lam[k + 1] - lam[k], data[k]
            if k and math.isfinite(h):
                r = (lam[k] - lam[k - 1]) / h
                d = (1 + 1 / (2 * r)) * data[k] - 1 / (2 * r) * data[k - 1]
            x = sigma[k + 1] / sigma[k] * x - alpha[k + 1] * (math.exp(-h) - 1) * d
        states.append(x)
    return states


def loss_by_hand(name: str, objective: str, start: Tensor, times, taus, substeps: int) -> float:
    """The loss of the last of the steps along ``times``, made with ``taus``: sums over pixels, a mean over images."""
    states = solver_by_hand(name, start, times, lambda k, x: RING.eps(x, taus[k], LINEAR))
    t, s = times[-2], times[-1]
    if objective == "consistency":
        gap = RING.eps(states[-1], max(s, 0.001), LINEAR) - RING.eps(states[-2], t, LINEAR)
    else:
        between = [t + (s - t) * i / substeps for i in range(substeps)] + [s]
        fine = solver_by_hand("dpmpp-2m", states[-2], between, lambda k, x: RING.eps(x, between[k], LINEAR))
        gap = states[-1] - fine[-1]
    return (gap**2).sum(1).mean().item()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_loss_of_a_sequential_tuning_is_the_formulas(name, objective):
    x0 = images()
    result = run_tune(name, objective=objective, optimiser="search", freeze_last=0, substeps=5)
    times, taus = GRID.times, result.timing.taus
    start = noised(x0, tuner_noise(x0, 3), times[0])
    assert set(result.history.step) == {0, 1, 2, 3}
    for row in result.history.iloc[::3].itertuples():
        # The states come from the sampler with the steps before already tuned.
        k = row.step
        expected = loss_by_hand(name, objective, start, times[: k + 2], [*taus[:k], row.tau], 5)
        assert row.loss == pytest.approx(expected, rel=1e-8, abs=1e-12), row
    assert result.history[result.history.iteration == 0].tau.tolist() == list(times[:-1])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_loss_of_a_parallel_tuning_is_the_formulas(name, objective):
    x0 = images()
    noise = tuner_noise(x0, 3)

    def of_sweeps(sweeps):
        return run_tune(
            name,
            objective=objective,
            strategy="parallel",
            optimiser="search",
            freeze_last=0,
            substeps=5,
            sweeps=sweeps,
        )

    first, second = of_sweeps(1), of_sweeps(2)
    times, history = GRID.times, make_solver(name).history
    # What the evaluation before a step is conditioned on: t in the first sweep, but for the steps without
    # history, which are tuned before; in the second sweep what the first one found.
    before = {0: [first.timing.taus[0], *times[1:]], 1: first.timing.taus}
    rows = second.history
    if history == 0:
        assert len(rows) == len(first.history), "states do not depend on taus: one sweep is all"
        pd.testing.assert_frame_equal(rows, first.history)
    sweep = rows.groupby(["step", "iteration"]).cumcount()
    assert set(sweep) == ({0, 1} if history else {0})
    for index, row in list(zip(sweep, rows.itertuples(), strict=True))[::3]:
        k = row.step
        back = k - min(k, history)
        # States come from noising the images where the step's history begins.
        start = noised(x0, noise, times[back])
        taus = [*before[index][back:k], row.tau]
        expected = loss_by_hand(name, objective, start, times[back : k + 2], taus, 5)
        assert row.loss == pytest.approx(expected, rel=1e-8, abs=1e-12), row


def test_the_second_sweep_sees_the_taus_of_the_first():
    one, two = (
        run_tune("dpmpp-2m", strategy="parallel", optimiser="search", sweeps=sweeps).timing for sweeps in (1, 2)
    )
    assert one.taus[:1] == two.taus[:1] and one.taus[2] != two.taus[2]


def problems(name: str, objective: str, mixture: GaussianMixture = RING, grid: Grid = GRID, n: int = 6) -> list:
    """A sequential problem of the second step and the parallel one with the same history."""
    predictor, solver = MixturePredictor(mixture, LINEAR), make_solver(name)
    times, x0 = torch.tensor(grid.times, dtype=torch.float64), images(mixture, n)
    noise = tuner_noise(x0, 0)
    start = noised(x0, noise, grid.times[0])
    answers = [predictor(start, times[0], 0.93 * times[0])]
    setting = Setting(solver, LINEAR, predictor, objective, 4, times, layout(solver, times, LINEAR))
    one = sequential_problem(setting, 1, start, answers)
    taus = [0.93 * t for t in grid.times[:-1]]
    steps = [1, 2, 3] if name == "dpmpp-2m" else [0, 1, 2, 3]
    return [one, parallel_problem(setting, steps, 0, x0, noise, taus)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_gradient_of_the_loss_is_its_finite_difference(name, objective):
    for problem in problems(name, objective):
        taus = (0.9537 * problem.t).clamp(min=0.0012).requires_grad_(True)  # between the levels, which are kinks
        assert gradcheck(problem.losses, (taus,), rtol=1e-4)
        (slope,) = torch.autograd.grad(problem.losses(taus).sum(), taus)
        # A step that ends at clean data has a loss that depends on tau too.
        assert slope.ne(0).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_rows_pick_states_and_parallel_steps_do_not_see_each_other(name, objective):
    for problem in problems(name, objective):
        taus = 0.97 * problem.t
        whole = problem.losses(taus)
        halves = [problem.losses(taus, torch.tensor(rows)) for rows in ([0, 2, 4], [5, 3, 1])]
        assert torch.allclose((halves[0] + halves[1]) / 2, whole, rtol=1e-10)
        assert not torch.allclose(halves[0], whole, rtol=1e-3)
        moved = taus.clone()
        moved[0] *= 0.9
        changed = problem.losses(moved) != whole
        assert changed.tolist() == [True] + [False] * (len(taus) - 1)


def test_losses_grow_with_the_dimension_and_not_with_the_batch():
    # Two independent copies of the line, side by side: a sum over pixels doubles, a mean would not.
    line = GaussianMixture([1.0], [[0.4]], [0.3])
    plane = GaussianMixture([1.0], [[0.4, 0.4]], [0.3])
    times = torch.tensor(GRID.times, dtype=torch.float64)
    x0 = images(line, 12)
    noise = tuner_noise(x0, 0)

    def losses(mixture, x0, noise, objective):
        solver = make_solver("ddim")
        predictor = MixturePredictor(mixture, LINEAR)
        setting = Setting(solver, LINEAR, predictor, objective, 4, times, layout(solver, times, LINEAR))
        problem = parallel_problem(setting, [0, 1, 2], 0, x0, noise, GRID.times[:-1])
        return problem.losses(0.9 * times[:3])

    for objective in OBJECTIVES:
        one = losses(line, x0, noise, objective)
        assert torch.allclose(losses(plane, x0.repeat(1, 2), noise.repeat(1, 2), objective), 2 * one, rtol=1e-9)
        assert torch.allclose(losses(line, x0.repeat(3, 1), noise.repeat(3, 1), objective), one, rtol=1e-9)


def test_a_bad_answer_is_named():
    def breaks(x, t, tau):
        return PREDICTOR(x, t, tau) * (math.nan if bool((tau != t).any()) else 1)

    with pytest.raises(NotFinite, match="t = "):
        run_tune(optimiser="search", predictor=breaks)


# ---- what tuning does to the true error


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("data", MIXTURES)
def test_tuning_lowers_the_true_truncation_error(data, name, strategy, optimiser):
    mixture, solver, grid = MIXTURES[data], make_solver(name), make_grid("uniform", 5, LINEAR)
    predictor = MixturePredictor(mixture, LINEAR)
    config = TuneConfig(
        objective="truncation", strategy=strategy, optimiser=optimiser, iterations=40, batch=64, lr=2e-2, seed=3
    )
    taus = tune(predictor, LINEAR, solver, grid, images(mixture, 64), config).timing.taus
    # Judged on other images and noise, and by the exact flow in place of the tuner's fine solution.
    x0, times = images(mixture, 128, seed=9), torch.tensor(grid.times, dtype=torch.float64)
    start = noised(x0, tuner_noise(x0, 10), times[0])
    run = drive(solver(start, grid, LINEAR), predictor, taus, keep=True)

    def error(k: int, tau: Tensor, target: Tensor) -> float:
        state, t, _ = run.trajectory[k]
        item = replay(solver(start, grid, LINEAR), [*run.answers[:k], predictor(state, t, tau)])
        return ((item.x if isinstance(item, Request) else item) - target).square().sum(1).mean().item()

    shares = []
    for k in range(5):
        target = exact_flow(mixture, run.trajectory[k].x, times[k], times[k + 1], LINEAR, rtol=1e-5)
        shares.append(error(k, scalar(taus[k]), target) / error(k, times[k], target))
    report = f"each step's error, tuned / untuned: {shares}, taus / t: {[a / b for a, b in zip(taus, grid.times, strict=False)]}"
    assert shares[4] == 1 and taus[4] == grid.times[4], report
    # The first step of the line has 3 % to gain, which is within what one set of images differs from another.
    assert max(shares) < 1.06 and all(share < 0.9 for share in sorted(shares[:4])[:3]), report
    assert min(shares) < 0.4, report
    if name == "ddim":
        end = exact_flow(mixture, start, times[0], times[-1], LINEAR, rtol=1e-5)
        untuned = drive(solver(start, grid, LINEAR), predictor).x
        errors = [(x - end).square().sum(1).mean().sqrt().item() for x in (untuned, run.x)]
        assert errors[1] < 0.85 * errors[0], f"end-point error untuned, tuned: {errors}"


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_search_is_never_worse_than_untuned_on_its_images(objective, strategy):
    for name in NAMES:
        result = run_tune(name, objective=objective, strategy=strategy, optimiser="search", freeze_last=0)
        better = []
        for step, tau in enumerate(result.timing.taus):
            rows = result.history[result.history.step == step].tail(SEARCH_TRIES)  # of the last sweep
            kept, untuned = rows[rows.tau == tau].loss.iloc[0], rows[rows.tau == rows.t].loss.iloc[0]
            assert kept == rows.loss.min() and kept <= untuned
            better.append(kept < 0.99 * untuned)
        assert sum(better) >= 3


def test_a_search_keeps_tau_where_nothing_is_better():
    # A network that does not hear its time: every tau is as good, and an unmoved one stays.
    def deaf(x, t, tau):
        return PREDICTOR(x, t, t)

    assert run_tune(optimiser="search", predictor=deaf).timing.taus == GRID.times[:-1]


def test_a_search_finds_the_minimum_of_a_parabola():
    t = torch.tensor([0.9, 0.5, 0.2, 0.4], dtype=torch.float64)
    # In the range, between two values of the scan, at its edge and beyond it.
    best = t * torch.tensor([0.8123, 1.0377, 1.3, 1.6], dtype=torch.float64)
    problem = SimpleNamespace(t=t, steps=[0, 1, 2, 3], schedule=LINEAR, losses=lambda taus: (taus - best) ** 2 + 0.1)
    taus, rows = search(problem, TuneConfig(optimiser="search"))
    assert taus.tolist() == pytest.approx([*best[:3].tolist(), 1.3 * 0.4], rel=1e-9)
    assert len(rows) == 4 * SEARCH_TRIES


def test_a_search_takes_the_lower_of_two_minima():
    t = torch.tensor([0.5], dtype=torch.float64)

    def two_valleys(taus):
        near, far = (taus / 0.5 - 1.02) ** 2 + 0.01, (taus / 0.5 - 0.78) ** 2
        return torch.minimum(near, far)

    problem = SimpleNamespace(t=t, steps=[0], schedule=LINEAR, losses=two_valleys)
    assert search(problem, TuneConfig())[0].item() == pytest.approx(0.39, rel=1e-6)


@pytest.mark.parametrize(
    "data, name, objective",
    [("line", "ddim", "truncation"), ("ring", "dpmpp-2m", "truncation"), ("ring", "ddim", "consistency")],
)
def test_adam_and_a_search_agree(data, name, objective):
    mixture, solver = MIXTURES[data], make_solver(name)
    found = {}
    for optimiser in OPTIMISERS:
        config = TuneConfig(
            objective=objective,
            optimiser=optimiser,
            strategy="parallel",
            sweeps=1,
            iterations=120,
            lr=1e-2,
            batch=48,
            search_range=(0.6, 1.4),
            bounds=(0.6, 1.4),
            substeps=8,
        )
        found[optimiser] = tune(MixturePredictor(mixture, LINEAR), LINEAR, solver, GRID, images(mixture, 48), config)
    ratios = {key: result.timing.ratios for key, result in found.items()}
    assert ratios["adam"] == pytest.approx(ratios["search"], abs=0.01)
    assert max(abs(ratio - 1) for ratio in ratios["adam"]) > 0.05, "and not because neither moved"
    losses = {key: result.timing.tuning["loss_tuned"] for key, result in found.items()}
    assert losses["adam"] == pytest.approx(losses["search"], rel=0.02)


# ---- the choices


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("frozen", [0, 1, 2, 4, 9])
def test_the_last_steps_are_left_alone(optimiser, strategy, frozen):
    result = run_tune(strategy=strategy, optimiser=optimiser, freeze_last=frozen)
    tuned = max(0, 4 - frozen)
    moved = [tau != t for tau, t in zip(result.timing.taus, GRID.times, strict=False)]
    assert moved[tuned:] == [False] * (4 - tuned)
    # The last evaluation is at the smallest time that the network knows: it can only rise.
    assert moved[: min(tuned, 3)] == [True] * min(tuned, 3)
    assert set(result.history.step) == set(range(tuned))
    assert result.timing.nfe == 4


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("value", ["ratio", "offset"])
def test_bounds_hold(optimiser, value):
    result = run_tune(
        objective="truncation",
        optimiser=optimiser,
        bounds=(0.9, 1.05),
        value=value,
        lr=0.05,
        iterations=10,
        freeze_last=0,
    )
    tried = result.history.tau / result.history.t
    assert tried.min() >= 0.9 - 1e-12 and tried.max() <= 1.05 + 1e-12
    ratios = result.timing.ratios
    assert min(ratios) == pytest.approx(0.9, rel=1e-12), "the ring wants 0.73 and is stopped"
    assert all(0.9 - 1e-12 <= ratio <= 1.05 + 1e-12 for ratio in ratios)


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_taus_stay_where_the_network_knows_times(optimiser, objective):
    grid = make_grid("logsnr", 4, LINEAR)
    assert grid.times[0] == 1 and grid.times[-2] == LINEAR.t_min
    result = run_tune(
        grid=grid, objective=objective, optimiser=optimiser, freeze_last=0, lr=0.5, iterations=6, strategy="parallel"
    )
    assert result.history.tau.between(LINEAR.t_min, 1).all()
    first = result.history[result.history.step == 0]
    assert first.tau.iloc[0] == 1 and first.tau.min() < 0.95, "a tau that starts at the edge can move"


def test_a_step_below_the_range_keeps_its_own_time():
    t = torch.tensor([0.0005, 0.5], dtype=torch.float64)
    bounds = Bounds(t, 0.001, TuneConfig(), (0.9, 1.1))
    assert bounds.low.tolist() == [0.0005, 0.45] and bounds.high.tolist() == pytest.approx([0.00055, 0.55])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_iteration_of_adam_moves_a_ratio_or_an_offset_by_the_learning_rate(strategy):
    times = torch.tensor(GRID.times[:3], dtype=torch.float64)
    for value, step in (("ratio", 2e-3 * times), ("offset", torch.full((3,), 2e-3))):
        result = run_tune(strategy=strategy, value=value, iterations=1, batch=16)
        moved = (torch.tensor(result.timing.taus[:3], dtype=torch.float64) - times).abs()
        assert moved.tolist() == pytest.approx(step.tolist(), rel=1e-4)


def test_what_is_learnt_makes_no_difference_to_a_search():
    ratio, offset = (run_tune(optimiser="search", value=value).timing.taus for value in ("ratio", "offset"))
    assert ratio == offset


def test_adam_is_torchs_adam_on_the_batches_of_the_seed():
    problem = problems("ddim", "truncation", n=16)[0]
    config = TuneConfig(iterations=5, batch=6, lr=3e-3, betas=(0.8, 0.95), seed=2)
    ratio, first, second, expected = 1.0, 0.0, 0.0, []
    for i in range(1, 6):
        tau = torch.tensor([ratio], dtype=torch.float64, requires_grad=True)
        loss = problem.losses(tau * problem.t, _batch(problem, config, i - 1))
        expected.append((1, i - 1, loss.item(), ratio * problem.t.item(), problem.t.item()))
        (slope,) = torch.autograd.grad(loss.sum(), tau)
        first = 0.8 * first + 0.2 * slope.item()
        second = 0.95 * second + 0.05 * slope.item() ** 2
        ratio -= 3e-3 * (first / (1 - 0.8**i)) / (math.sqrt(second / (1 - 0.95**i)) + 1e-8)
    taus, rows = adam(problem, config)
    assert taus.item() == pytest.approx(ratio * problem.t.item(), rel=1e-9)
    for row, other in zip(rows, expected, strict=True):
        assert row == pytest.approx(other, rel=1e-9)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"objective": "fid"}, r"unknown objective 'fid'.*consistency, truncation"),
        ({"strategy": "both"}, r"unknown strategy 'both'.*parallel, sequential"),
        ({"optimiser": "sgd"}, r"unknown optimiser 'sgd'.*adam, search"),
        ({"value": "log"}, r"unknown value 'log'.*offset, ratio"),
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"substeps": 0}, "substeps must be at least 1"),
        ({"sweeps": 0}, "sweeps must be at least 1"),
        ({"freeze_last": -1}, "freeze_last must be 0 or more, got -1"),
        ({"bounds": (1.1, 1.3)}, r"bounds .* must enclose 1, got \(1.1, 1.3\)"),
        ({"bounds": (0.0, 1.3)}, "bounds"),
        ({"bounds": (0.5, 0.9)}, "bounds"),
        ({"search_range": (1.2, 0.8)}, "search_range"),
    ],
)
def test_bad_choices(changes, message):
    with pytest.raises(BadValue, match=message):
        TuneConfig(**changes)


def test_the_defaults_are_the_authors():
    config = TuneConfig()
    assert (config.objective, config.strategy, config.optimiser) == ("consistency", "sequential", "adam")
    assert (config.iterations, config.lr, config.betas) == (500, 2e-3, (0.9, 0.999))
    assert (config.value, config.bounds, config.freeze_last) == ("ratio", None, 1)
    assert TuneConfig(objective="truncation", strategy="parallel").name == "truncation-parallel"


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", NAMES)
def test_consistency_of_the_step_to_clean_data_is_finite(name, strategy, optimiser):
    result = run_tune(name, strategy=strategy, optimiser=optimiser, freeze_last=0)
    assert GRID.times[-1] == 0
    assert result.history.loss.map(math.isfinite).all() and (result.history.step == 3).any()


def test_a_grid_of_one_step():
    grid = make_grid("uniform", 1, LINEAR)
    for strategy in STRATEGIES:
        assert run_tune(grid=grid, strategy=strategy).timing.taus == (1.0,)
        result = run_tune(grid=grid, strategy=strategy, freeze_last=0, objective="truncation")
        assert 0 < result.timing.taus[0] < 1


def test_truncation_of_a_stochastic_solver_and_no_images_are_refused():
    with pytest.raises(BadValue, match=r"ddim with eta 0\.5 by truncation.*--objective consistency"):
        tune(PREDICTOR, LINEAR, make_solver("ddim", eta=0.5), GRID, images(), TuneConfig(objective="truncation"))
    with pytest.raises(BadValue, match="at least one image"):
        run_tune(x0=images()[:0])


def test_float32_images_tune_as_float64_ones_do():
    for strategy in STRATEGIES:
        single, double = (
            run_tune("dpmpp-2m", strategy=strategy, optimiser="search", x0=images().to(dtype)).timing
            for dtype in (torch.float32, torch.float64)
        )
        assert single.taus == pytest.approx(double.taus, rel=5e-3)


# ---- what comes back


def test_the_history():
    result = run_tune(strategy="sequential")
    assert list(result.history.columns) == ["step", "iteration", "loss", "tau", "t"]
    assert result.history[["step", "iteration"]].to_numpy().tolist() == [[s, i] for s in range(3) for i in range(4)]
    assert result.history.t.tolist() == [GRID.times[step] for step in result.history.step]
    # The first row of a step is untuned.
    first = result.history[result.history.iteration == 0]
    assert first.tau.tolist() == first.t.tolist()
    parallel = run_tune(strategy="parallel").history
    assert parallel[["step", "iteration"]].to_numpy().tolist() == [[s, i] for i in range(4) for s in range(3)]


def test_the_timing_says_what_it_is_for_and_a_sampler_takes_it(tmp_path):
    solver = make_solver("dpmpp-2m")
    config = TuneConfig(iterations=2, batch=4, objective="truncation", strategy="parallel", bounds=(0.5, 1.5))
    timing = tune(
        PREDICTOR, LINEAR, solver, GRID, images(), config, model="ring", weights="ab" * 32, source="generated"
    ).timing
    assert (timing.name, timing.model, timing.weights) == ("truncation-parallel", "ring", "ab" * 32)
    assert (timing.schedule, timing.solver, timing.options, timing.grid) == ("linear", "dpmpp-2m", {}, "uniform")
    assert timing.grid_times == GRID.times and timing.times == GRID.times[:-1]
    assert timing.tuning["images"] == 16 and timing.tuning["source"] == "generated"
    assert timing.tuning["lr"] == 2e-3 and timing.tuning["seconds"] > 0
    assert set(timing.provenance) == {"versions", "date", "commit", "command"}
    timing.save(tmp_path / "timing.json")
    read = load_timing(tmp_path / "timing.json")
    assert read.taus == timing.taus
    sampler = Sampler(PREDICTOR, LINEAR, solver, GRID, (2,), timing=read, model="ring")
    assert sampler(range(2)).nfe == 4
    with pytest.raises(TimingMismatch):
        Sampler(PREDICTOR, LINEAR, make_solver("ddim"), GRID, (2,), timing=read, model="ring")


def test_losses_of_the_timing_are_those_of_its_last_sweep():
    result = run_tune("dpmpp-2m", strategy="parallel", optimiser="search", sweeps=2)
    rows = result.history
    for step, untuned, tuned in zip(
        range(3), result.timing.tuning["loss_untuned"], result.timing.tuning["loss_tuned"], strict=True
    ):
        mine = rows[rows.step == step]
        assert len(mine) == 2 * SEARCH_TRIES
        assert untuned == mine.loss.iloc[SEARCH_TRIES] and tuned == mine.loss.iloc[SEARCH_TRIES:].min()


@pytest.mark.parametrize("name", NAMES)
def test_adams_losses_are_of_all_images_and_not_of_two_batches(name):
    result = run_tune(name, strategy="parallel", objective="truncation", freeze_last=0, sweeps=1, bounds=(0.5, 1.5))
    x0, times = images(), GRID.times
    tuning = result.timing.tuning
    for step, tau in enumerate(result.timing.taus):
        first = step - min(step, make_solver(name).history)
        start = noised(x0, tuner_noise(x0, 3), times[first])
        # The steps of its history are untuned in the first sweep, or tuned just now where their own stage came before.
        history = result.timing.taus[first:step] if first == 0 else times[first:step]
        for key, last in (("loss_untuned", times[step]), ("loss_tuned", tau)):
            by_hand = loss_by_hand(name, "truncation", start, times[first : step + 2], [*history, last], 4)
            assert tuning[key][step] == pytest.approx(by_hand, rel=1e-8)


def test_generated_images():
    noise = 4 * tuner_noise(images(), 0)
    times = torch.tensor(GRID.times, dtype=torch.float64)
    made = generate_images(PREDICTOR, make_solver("ddim"), times, LINEAR, noise)
    states = solver_by_hand("ddim", noise, GRID.times, lambda k, x: RING.eps(x, GRID.times[k], LINEAR))
    assert torch.allclose(made, states[-1].clamp(-1, 1), atol=1e-9)
    assert made.abs().max() == 1


# ---- seeds


def test_a_seed_decides_everything():
    for strategy in STRATEGIES:
        one, same, other = (run_tune(strategy=strategy, seed=seed) for seed in (3, 3, 4))
        assert one.timing.taus == same.timing.taus and one.timing.taus != other.timing.taus
        pd.testing.assert_frame_equal(one.history, same.history, check_exact=True)
        assert not (one.history.loss == other.history.loss).any()


def test_batches_follow_seed_step_and_iteration():
    drawn = {}
    for seed, step, iteration in [(s, k, i) for s in (0, 1, 2) for k in (0, 1, 5) for i in range(30)]:
        problem = SimpleNamespace(images=50, steps=[step])
        batch = _batch(problem, TuneConfig(seed=seed, batch=20), iteration)
        assert len(batch) == len(batch.unique()) == 20 and batch.min() >= 0 and batch.max() < 50
        assert torch.equal(batch, _batch(problem, TuneConfig(seed=seed, batch=20), iteration))
        drawn[seed, step, iteration] = tuple(batch.tolist())
    assert len(set(drawn.values())) == len(drawn)
    assert sorted(_batch(SimpleNamespace(images=5, steps=[0]), TuneConfig(batch=20), 0).tolist()) == [0, 1, 2, 3, 4]


def test_adam_sees_a_batch_and_a_search_sees_all_images():
    seen = []

    def listen(x, t, tau):
        seen.append(len(x))
        return PREDICTOR(x, t, tau)

    run_tune(predictor=listen, objective="truncation", batch=8)
    assert seen.count(8) == 3 * 4 and set(seen) == {8, 16}
    seen.clear()
    run_tune(predictor=listen, objective="truncation", optimiser="search", batch=8)
    assert set(seen) == {16}


# ---- interruptions

KINDS = [(optimiser, strategy, name) for optimiser in OPTIMISERS for strategy in STRATEGIES for name in NAMES]


class Interruption:
    """Progress that is interrupted at one of its calls; it counts them and checks what it is told."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.calls, self.told = at, 0, []

    def __call__(self, done: int, total: int, message: str) -> None:
        self.calls += 1
        self.told.append((done, total))
        assert 0 <= done <= total, f"{done} of {total} done: {message}"
        if self.calls == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("optimiser, strategy, name", KINDS)
def test_an_interrupted_tuning_goes_on_to_exactly_the_same_end(tmp_path, optimiser, strategy, name):
    options = {"optimiser": optimiser, "strategy": strategy, "iterations": 3, "x0": images(n=10)}
    listener = Interruption()
    whole = run_tune(name, **options, progress=listener)
    assert listener.told[-1][0] == listener.told[-1][1]
    calls, state = listener.calls, tmp_path / "run.state"
    # After the first report, around the ends of stages, in the middle, at the last report.
    places = {1, 2, calls // 2, calls // 2 + 1, calls - 1, calls} if optimiser == "adam" else {1, calls // 2, calls}
    for place in sorted(places):
        with pytest.raises(KeyboardInterrupt):
            run_tune(name, **options, state=state, save_seconds=0, progress=Interruption(place))
        assert place == 1 or state.exists()
        resumed = Interruption()
        result = run_tune(name, **options, state=state, progress=resumed)
        assert result.timing.taus == whole.timing.taus, f"interrupted at report {place} of {calls}"
        pd.testing.assert_frame_equal(result.history, whole.history, check_exact=True)
        for key in ("loss_untuned", "loss_tuned"):
            assert result.timing.tuning[key] == whole.timing.tuning[key]
        assert resumed.told[-1] == listener.told[-1]
        assert not state.exists(), "the state is removed at the end"
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_tuning_interrupted_again_and_again(tmp_path, strategy):
    options = {"strategy": strategy, "iterations": 7}
    whole, state, starts = run_tune("dpmpp-2m", **options), tmp_path / "run.state", 0
    while True:
        starts += 1
        try:
            # Up to three reports are of the states made anew; two or more iterations are done each time.
            result = run_tune("dpmpp-2m", **options, state=state, save_seconds=0, progress=Interruption(5))
            break
        except KeyboardInterrupt:
            assert starts < 30
    assert starts > 3
    assert result.timing.taus == whole.timing.taus
    pd.testing.assert_frame_equal(result.history, whole.history, check_exact=True)


def test_a_resumed_tuning_does_not_start_again(tmp_path):
    calls = 0

    def counted(x, t, tau):
        nonlocal calls
        calls += 1
        return PREDICTOR(x, t, tau)

    def evaluations(**options) -> int:
        nonlocal calls
        calls = 0
        run_tune(predictor=counted, iterations=20, **options)
        return calls

    whole, state = evaluations(), tmp_path / "run.state"
    # 20 iterations and a report of the states for each of three steps: the last of all is number 63.
    with pytest.raises(KeyboardInterrupt):
        run_tune(iterations=20, state=state, save_seconds=0, progress=Interruption(61))
    assert evaluations(state=state) < 0.2 * whole


def test_the_state_is_written_seldom_and_after_each_stage(tmp_path):
    state = tmp_path / "run.state"
    with pytest.raises(KeyboardInterrupt):
        run_tune(state=state, progress=Interruption(3))
    assert not state.exists(), "within save_seconds of the start nothing is written"
    # Each of three steps reports its states and four iterations: report 7 is of the second step.
    with pytest.raises(KeyboardInterrupt):
        run_tune(state=state, progress=Interruption(7))
    content = torch.load(state, weights_only=True)
    assert content["done_stages"] == 1 and len(content["rows"]) == 4
    assert run_tune(state=state).timing.taus == run_tune().timing.taus


def test_a_failed_write_leaves_the_state_of_before(tmp_path, monkeypatch):
    state = tmp_path / "run.state"
    with pytest.raises(KeyboardInterrupt):
        run_tune(state=state, save_seconds=0, progress=Interruption(7))
    before = state.read_bytes()

    def full(content, path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="disk full"):
        run_tune(state=state, save_seconds=0)
    assert state.read_bytes() == before and list(tmp_path.iterdir()) == [state]


@pytest.mark.parametrize(
    "change",
    [
        {"model": "another"},
        {"weights": "cd"},
        {"solver": make_solver("dpmpp-2m")},
        {"grid": make_grid("uniform", 5, LINEAR)},
        {"grid": make_grid("logsnr", 4, LINEAR)},
        {"schedule": make_schedule("cosine")},
        {"images": images(seed=2)},
        {"config": TuneConfig(iterations=4, seed=1)},
        {"config": TuneConfig(iterations=5)},
        {"config": TuneConfig(iterations=4, objective="truncation")},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_state_of_another_tuning_is_refused(tmp_path, change):
    state = tmp_path / "run.state"
    mine = {
        "predictor": PREDICTOR,
        "schedule": LINEAR,
        "solver": make_solver("ddim"),
        "grid": GRID,
        "images": images(),
        "config": TuneConfig(iterations=4),
        "model": "ring",
        "weights": "ab",
        "state": state,
    }
    with pytest.raises(KeyboardInterrupt):
        tune(**mine, save_seconds=0, progress=Interruption(4))
    before = state.read_bytes()
    with pytest.raises(BadValue, match=r"run\.state is the state of another tuning.*delete it"):
        tune(**{**mine, **change})
    assert state.read_bytes() == before, "and it is not touched"
    assert tune(**mine).timing.nfe == 4


def test_times_of_the_grid_fall_through_the_windows():
    # The window of a parallel problem starts where the solver's history does.
    problem = problems("dpmpp-2m", "truncation")[1]
    expected = [list(window) for window in zip(*(GRID.times[k - 1 : k + 2] for k in (1, 2, 3)), strict=True)]
    assert problem.times.tolist() == expected and problem.images == 6
    assert len(problem.answers) == 1 and problem.t.tolist() == list(GRID.times[1:4])
    assert [after for _, after in pairwise(GRID.times[1:])] == problem.s.tolist()
