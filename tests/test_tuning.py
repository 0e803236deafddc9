"""Tuning on toys with exact answers: true truncation errors, optimisers, the gate, interruptions, bad input."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from scipy.stats import ttest_rel
from solver_helpers import float64
from test_problems import (
    GRID,
    LINEAR,
    NAMES,
    PREDICTOR,
    RING,
    a_sampler,
    images,
    noised,
    problems,
    run_tune,
    tuner_noise,
)
from torch import Tensor

from tt_lib.engine import Request, drive, replay
from tt_lib.errors import BadValue, CorruptFile, NotFinite, TimingMismatch
from tt_lib.grids import make_grid
from tt_lib.noise import HELD_OUT_NOISE, derive_seed
from tt_lib.sampling import fine_solution
from tt_lib.solvers.registry import make_solver
from tt_lib.timing import load_timing
from tt_lib.toy import exact_flow
from tt_lib.tuning import OBJECTIVES, STRATEGIES, TuneConfig, tune
from tt_lib.tuning.config import OPTIMISERS
from tt_lib.tuning.objectives import squared_distance
from tt_lib.tuning.optimisers import SEARCH_RANGE, SEARCH_TRIES, Bounds, _batch, adam, search
from tt_lib.tuning.tuner import HISTORY_COLUMNS, LEVEL, p_lower

pytestmark = pytest.mark.usefixtures("one_thread")


# ---- what tuning does to the true error


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", NAMES)
def test_tuning_lowers_the_true_truncation_error(name, strategy, optimiser):
    solver, grid = make_solver(name), make_grid("uniform", 5, LINEAR)
    config = TuneConfig("truncation", strategy, optimiser, iterations=40, lr=2e-2, seed=3)
    taus = tune(a_sampler(solver, grid), images(n=64), config).timing.taus
    # Measured on other images and noise, and by the exact flow in place of the tuner's converged solution.
    x0, times = images(n=128, seed=9), grid.tensor()
    start = noised(x0, tuner_noise(x0, 10), times[0])
    run = drive(solver(start, grid, LINEAR), PREDICTOR, taus, keep=True)

    def error(k: int, tau: Tensor, target: Tensor) -> float:
        state, t, _ = run.trajectory[k]
        item = replay(solver(start, grid, LINEAR), [*run.answers[:k], PREDICTOR(state, t, tau)])
        return squared_distance(item.x if isinstance(item, Request) else item, target).mean().item()

    shares = []
    for k in range(5):
        target = exact_flow(RING, run.trajectory[k].x, times[k], times[k + 1], LINEAR, rtol=1e-5)
        shares.append(error(k, float64(taus[k]), target) / error(k, times[k], target))
    report = f"each step's error, tuned / untuned: {shares}, taus: {taus}"
    assert shares[4] == 1 and taus[4] == grid.times[4], report
    assert max(shares) < 1.06 and all(share < 0.9 for share in sorted(shares[:4])[:3]) and min(shares) < 0.4, report
    if name == "ddim":
        end = exact_flow(RING, start, times[0], times[-1], LINEAR, rtol=1e-5)
        untuned = drive(solver(start, grid, LINEAR), PREDICTOR).x
        errors = [squared_distance(x, end).mean().sqrt().item() for x in (untuned, run.x)]
        assert errors[1] < 0.85 * errors[0], f"end-point error untuned, tuned: {errors}"


# ---- optimisers


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", NAMES)
def test_a_search_is_never_worse_than_untuned_on_its_images(name, objective, strategy):
    result = run_tune(name, objective=objective, strategy=strategy, optimiser="search", freeze_last=0)
    better = []
    for step, tau in enumerate(result.timing.taus):
        rows = result.history[result.history.evaluation == step].tail(SEARCH_TRIES)  # of the last sweep
        kept, untuned = rows[rows.tau == tau].loss.iloc[0], rows[rows.tau == rows.t].loss.iloc[0]
        assert kept == rows.loss.min() and kept <= untuned
        tuning = result.timing.tuning
        assert (tuning["loss_untuned"][step], tuning["loss_tuned"][step]) == (untuned, kept)
        better.append(kept < 0.99 * untuned)
    assert sum(better) >= 3


def test_a_search_keeps_tau_where_nothing_is_better():
    # A network that does not hear its time: every tau is as good, and an unmoved one stays.
    assert run_tune(optimiser="search", predictor=lambda x, t, tau: PREDICTOR(x, t, t)).timing.taus == GRID.times[:-1]


def a_problem(t: list[float], losses) -> SimpleNamespace:
    return SimpleNamespace(t=float64(t), evaluations=list(range(len(t))), t_min=LINEAR.t_min, losses=losses)


def test_a_search_finds_the_minimum_of_a_parabola():
    t = [0.9, 0.5, 0.2, 0.4]
    # In the range, between two values of the scan, at its edge and beyond it.
    best = float64(t) * float64([0.8123, 1.0377, 1.3, 1.6])
    found = search(a_problem(t, lambda taus: (taus - best) ** 2 + 0.1), TuneConfig(optimiser="search"))
    assert found.taus.tolist() == pytest.approx([*best[:3].tolist(), SEARCH_RANGE[1] * 0.4], rel=1e-9)
    assert len(found.rows) == 4 * SEARCH_TRIES


def test_a_search_takes_the_lower_of_two_minima():
    def two_valleys(taus):
        return torch.minimum((taus / 0.5 - 1.02) ** 2 + 0.01, (taus / 0.5 - 0.78) ** 2)

    assert search(a_problem([0.5], two_valleys), TuneConfig()).taus.item() == pytest.approx(0.39, rel=1e-6)


@pytest.mark.parametrize(("name", "objective"), [("dpmpp-2m", "truncation"), ("ddim", "consistency")])
def test_adam_and_a_search_agree(name, objective, monkeypatch):
    monkeypatch.setattr("tt_lib.tuning.tuner.SWEEPS", 1)
    config = {"strategy": "parallel", "iterations": 120, "lr": 1e-2, "batch": 48, "bounds": (0.6, 1.4), "substeps": 8}
    timings = {
        optimiser: run_tune(name, x0=images(n=48), objective=objective, optimiser=optimiser, **config).timing
        for optimiser in OPTIMISERS
    }
    assert timings["adam"].ratios == pytest.approx(timings["search"].ratios, abs=0.01)
    assert max(abs(ratio - 1) for ratio in timings["adam"].ratios) > 0.05, "and not because neither moved"
    losses = [sum(timings[optimiser].tuning["loss_tuned"]) for optimiser in OPTIMISERS]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_adam_is_torchs_adam_on_the_batches_of_the_seed():
    problem = problems("ddim", "truncation", n=16)[0]
    config = TuneConfig(iterations=5, batch=6, lr=3e-3, seed=2)
    ratio, first, second, expected = 1.0, 0.0, 0.0, []
    for i in range(1, 6):
        tau = float64([ratio]).requires_grad_(True)
        loss = problem.losses(tau * problem.t, _batch(problem, config, i - 1))
        expected.append((1, i - 1, loss.item(), ratio * problem.t.item(), problem.t.item()))
        (slope,) = torch.autograd.grad(loss.sum(), tau)
        first = 0.9 * first + 0.1 * slope.item()
        second = 0.999 * second + 0.001 * slope.item() ** 2
        ratio -= 3e-3 * (first / (1 - 0.9**i)) / (math.sqrt(second / (1 - 0.999**i)) + 1e-8)
    found = adam(problem, config)
    assert found.taus.item() == pytest.approx(ratio * problem.t.item(), rel=1e-9)
    for row, other in zip(found.rows, expected, strict=True):
        assert row == pytest.approx(other, rel=1e-9)
    # Its iterations have a batch each: untuned and tuned are compared on all the images.
    losses = [problem.losses(taus).item() for taus in (problem.t, found.taus)]
    assert found.losses == [pytest.approx(tuple(losses), rel=1e-9)]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_iteration_of_adam_moves_a_ratio_or_an_offset_by_the_learning_rate(strategy):
    times = float64(GRID.times[:3])
    for value, step in (("ratio", 2e-3 * times), ("offset", torch.full((3,), 2e-3))):
        result = run_tune(strategy=strategy, value=value, iterations=1, batch=16)
        moved = (float64(result.timing.taus[:3]) - times).abs()
        assert moved.tolist() == pytest.approx(step.tolist(), rel=1e-4)


def test_batches_follow_seed_evaluation_and_iteration():
    drawn = {}
    for seed, index, iteration in [(s, k, i) for s in (0, 1, 2) for k in (0, 1, 5) for i in range(30)]:
        problem, config = SimpleNamespace(images=50, evaluations=[index]), TuneConfig(seed=seed, batch=20)
        batch = _batch(problem, config, iteration)
        assert len(batch.unique()) == 20 and batch.max() < 50
        assert torch.equal(batch, _batch(problem, config, iteration))
        drawn[seed, index, iteration] = tuple(batch.tolist())
    assert len(set(drawn.values())) == len(drawn)
    few = SimpleNamespace(images=5, evaluations=[0])
    assert sorted(_batch(few, TuneConfig(batch=20), 0).tolist()) == [0, 1, 2, 3, 4]


# ---- the choices


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("frozen", [0, 2, 3])
def test_the_last_steps_are_left_alone(optimiser, strategy, frozen):
    result = run_tune(strategy=strategy, optimiser=optimiser, freeze_last=frozen)
    tuned = 4 - frozen
    moved = [tau != t for tau, t in zip(result.timing.taus, GRID.times, strict=False)]
    assert moved[tuned:] == [False] * (4 - tuned)
    # The last evaluation is at the smallest time that the network knows: it can only rise.
    assert moved[: min(tuned, 3)] == [True] * min(tuned, 3)
    assert set(result.history.evaluation) == set(range(tuned))
    assert result.history.loss.map(math.isfinite).all(), "a step to clean data has a loss, too"


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("value", ["ratio", "offset"])
def test_bounds_hold(optimiser, value):
    options = {"objective": "truncation", "lr": 0.05, "iterations": 10, "freeze_last": 0}
    result = run_tune(optimiser=optimiser, bounds=(0.9, 1.05), value=value, **options)
    tried = result.history.tau / result.history.t
    assert tried.min() >= 0.9 - 1e-12 and tried.max() <= 1.05 + 1e-12
    assert min(result.timing.ratios) == pytest.approx(0.9, rel=1e-12), "the ring's minimum is at 0.73"


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_taus_stay_where_the_network_knows_times(optimiser):
    grid = make_grid("logsnr", 4, LINEAR)
    assert grid.times[0] == 1 and grid.times[-2] == LINEAR.t_min
    result = run_tune(grid=grid, optimiser=optimiser, freeze_last=0, lr=0.5, iterations=6, strategy="parallel")
    assert result.history.tau.between(LINEAR.t_min, 1).all()
    first = result.history[result.history.evaluation == 0]
    assert first.tau.iloc[0] == 1 and first.tau.min() < 0.95, "a tau that starts at the edge can move"


def test_a_step_below_the_range_keeps_its_own_time():
    bounds = Bounds(float64([0.0005, 0.5]), 0.001, (0.9, 1.1))
    assert bounds.low.tolist() == [0.0005, 0.45] and bounds.high.tolist() == pytest.approx([0.00055, 0.55])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"objective": "fid"}, r"unknown objective 'fid'.*consistency, truncation"),
        ({"strategy": "both"}, r"unknown strategy 'both'.*parallel, sequential"),
        ({"optimiser": "sgd"}, r"unknown optimiser 'sgd'.*adam, search"),
        ({"value": "log"}, r"unknown value 'log'.*offset, ratio"),
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
        ({"lr": 0.0}, "the learning rate must be positive, got 0"),
        ({"freeze_last": -1}, "freeze_last must be at least 0, got -1"),
        ({"bounds": (1.1, 1.3)}, r"bounds .* must differ and enclose 1, got \(1.1, 1.3\)"),
        ({"bounds": [0.9]}, r"bounds are two numbers.*got \[0.9\]"),
        ({"bounds": (math.nan, 1.1)}, "each of the bounds must be a number, got nan"),
        ({"iterations": 2.0}, "iterations must be a whole number, got 2.0"),
        ({"gate": 1}, "gate must be true or false, got 1"),
        ({"seed": -1}, "seeds lie from 0 to 999,999,999, got the seed -1"),
    ],
)
def test_bad_choices(changes, message):
    with pytest.raises(BadValue, match=message):
        TuneConfig(**changes)


def test_the_defaults_are_the_authors():
    config = TuneConfig()
    assert (config.name, config.optimiser, config.iterations, config.lr) == (
        "consistency-sequential",
        "adam",
        500,
        2e-3,
    )
    assert (config.value, config.bounds, config.freeze_last) == ("ratio", None, 1)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_grid_of_one_step(strategy):
    grid = make_grid("uniform", 1, LINEAR)
    with pytest.raises(BadValue, match=r"the grid has 1 step and freeze_last = 1 .*freeze0"):
        run_tune(grid=grid, strategy=strategy)
    result = run_tune(grid=grid, strategy=strategy, freeze_last=0, objective="truncation")
    assert 0 < result.timing.taus[0] < 1


def test_what_cannot_be_tuned():
    for solver in (make_solver("ddim", eta=0.5), make_solver("ddpm")):
        message = f"cannot tune {solver.name} by truncation: it draws noise.*choose the objective consistency"
        with pytest.raises(BadValue, match=message):
            run_tune(solver, objective="truncation")
    with pytest.raises(BadValue, match="at least one image"):
        run_tune(x0=images()[:0])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_tuning_in_which_no_time_may_move_is_none(strategy, tmp_path):
    """Nothing is asked of the network, and nothing is written."""

    def never(x, t, tau):
        pytest.fail("there is nothing to tune")

    for freeze_last in (4, 99):
        with pytest.raises(BadValue, match=f"the grid has 4 steps and freeze_last = {freeze_last} .*take more steps"):
            run_tune(strategy=strategy, freeze_last=freeze_last, predictor=never, state=tmp_path / "state")
    # The only step begins at t = 1, and its tau may only rise.
    with pytest.raises(BadValue, match=r"no tau can differ from its t, of \[1.0\], within bounds = \(1.0, 1.2\)"):
        grid = make_grid("uniform", 1, LINEAR)
        run_tune(grid=grid, strategy=strategy, freeze_last=0, bounds=(1.0, 1.2), predictor=never)
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_no_number_is_an_error():
    """A search would take NaN for the lowest loss; here every answer that the solver gets is finite."""

    def bad(x, t, tau):
        return PREDICTOR(x, t, tau) * (math.nan if t.min() == GRID.times[1] else 1)

    with pytest.raises(NotFinite, match="NaN or infinity at evaluation 1"):
        run_tune(freeze_last=3, optimiser="search", predictor=bad)
    with pytest.raises(NotFinite, match="NaN or infinity at evaluation 1"):  # squares beyond all numbers
        run_tune(objective="truncation", optimiser="search", predictor=lambda x, t, tau: x, x0=1e200 * images())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_float32_images_tune_as_float64_ones_do(strategy):
    single, double = (
        run_tune("dpmpp-2m", strategy=strategy, optimiser="search", x0=images().to(dtype)).timing.taus
        for dtype in (torch.float32, torch.float64)
    )
    assert single == pytest.approx(double, rel=5e-3)


# ---- what comes back


def test_the_history():
    result = run_tune(strategy="sequential")
    assert tuple(result.history.columns) == HISTORY_COLUMNS
    columns = ["evaluation", "iteration"]
    assert result.history[columns].to_numpy().tolist() == [[k, i] for k in range(3) for i in range(4)]
    assert result.history.t.tolist() == [GRID.times[k] for k in result.history.evaluation]
    parallel = run_tune(strategy="parallel").history
    assert parallel[columns].to_numpy().tolist() == [[k, i] for i in range(4) for k in range(3)]


def test_the_timing_says_what_it_is_for_and_a_sampler_takes_it(tmp_path):
    sampler = a_sampler("dpmpp-2m", model="ring", weights="ab" * 32)
    config = TuneConfig("truncation", "parallel", iterations=2, batch=4, bounds=(0.5, 1.5))
    timing = tune(sampler, images(), config, source="generated").timing
    assert (timing.name, timing.model, timing.weights) == ("truncation-parallel", "ring", "ab" * 32)
    assert (timing.schedule, timing.solver, timing.options, timing.grid) == ("linear", "dpmpp-2m", {}, "uniform")
    assert timing.grid_times == GRID.times and timing.times == GRID.times[:-1]
    assert (timing.tuning["images"], timing.tuning["source"], timing.tuning["lr"]) == (16, "generated", 2e-3)
    assert timing.tuning["images_sha256"] == hashlib.sha256(images().numpy().tobytes()).hexdigest()
    assert set(timing.provenance) == {"versions", "date", "commit", "command"}
    timing.save(tmp_path / "timing.json")
    read = load_timing(tmp_path / "timing.json")
    assert read.taus == timing.taus
    assert a_sampler("dpmpp-2m", model="ring", weights="ab" * 32, timing=read)(range(2)).nfe == 4
    with pytest.raises(TimingMismatch):
        a_sampler("ddim", model="ring", timing=read)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_seed_decides_everything(strategy):
    one, same, other = (run_tune(strategy=strategy, seed=seed) for seed in (3, 3, 4))
    assert one.timing.taus == same.timing.taus and one.timing.taus != other.timing.taus
    pd.testing.assert_frame_equal(one.history, same.history, check_exact=True)
    assert not (one.history.loss == other.history.loss).any()


# ---- the gate

HELD = images(n=64, seed=9)


def gated(solver="ddim", held_out=HELD, **changes):
    return run_tune(solver, held_out=held_out, **{"optimiser": "search", "gate": True, "seed": 0, **changes}).timing


def test_the_paired_test():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(50, generator=generator, dtype=torch.float64)
    noise = 0.02 * torch.randn(50, generator=generator, dtype=torch.float64)
    assert p_lower(a - 0.05 + noise, a) < LEVEL < p_lower(a + 0.05 + noise, a), "far less than the spread of a"
    assert p_lower(a, a) == 1.0


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_gates_records_are_of_the_held_out_images(objective, strategy):
    timing = gated(objective=objective, strategy=strategy)
    plain = run_tune(objective=objective, strategy=strategy, optimiser="search", seed=0).timing
    records = timing.tuning["gated"]
    assert [record["evaluation"] for record in records] == [0, 1, 2] and "gated" not in plain.tuning
    noise = tuner_noise(HELD, derive_seed(0, HELD_OUT_NOISE))
    state = noised(HELD, noise, GRID.times[0])
    for k, record in enumerate(records):
        t, s = (float64(each) for each in GRID.times[k : k + 2])
        x = noised(HELD, noise, t) if strategy == "parallel" else state
        target = fine_solution(PREDICTOR, LINEAR, x, t, s, 4)

        def end(tau: float, x=x, k=k):
            return drive(make_solver("ddim")(x, float64(GRID.times[k : k + 2]), LINEAR), PREDICTOR, [tau]).x

        tuned, untuned = (squared_distance(end(tau), target) for tau in (record["tau"], float(t)))
        assert record["loss_tuned"] == pytest.approx(tuned.mean().item(), rel=1e-6)
        assert record["loss_untuned"] == pytest.approx(untuned.mean().item(), rel=1e-6)
        p = 1.0 if record["tau"] == float(t) else ttest_rel(tuned, untuned, alternative="less").pvalue
        assert record["p"] == pytest.approx(p, rel=1e-4, abs=1e-12) and record["kept"] == (p < LEVEL)
        assert timing.taus[k] == (record["tau"] if record["kept"] else GRID.times[k])
        state = end(timing.taus[k])
    if strategy == "parallel":
        assert [record["tau"] for record in records] == list(plain.taus[:-1]), "the gate comes after the tuning"


def test_the_gate_keeps_and_refuses():
    kept = [record["kept"] for record in gated(objective="truncation", strategy="parallel").tuning["gated"]]
    assert any(kept)
    # One image says little of the others, and consistency asks for something else: here the gate refuses.
    assert not all(record["kept"] for record in gated(x0=RING.sample(1)).tuning["gated"])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_gate_of_a_step_of_several_evaluations(strategy):
    solver, grid = make_solver("heun").for_nfe(5)[0], make_grid("uniform", 3, LINEAR)
    timing = gated(solver, grid=grid, strategy=strategy)
    assert len(timing.tuning["gated"]) == 4
    for record in timing.tuning["gated"]:
        index = record["evaluation"]
        assert timing.taus[index] == (record["tau"] if record["kept"] else timing.times[index])


def test_what_a_gate_needs():
    for held_out in (None, HELD[:1]):
        with pytest.raises(BadValue, match="a gate needs at least 2 held-out images"):
            gated(held_out=held_out)
    with pytest.raises(BadValue, match="no gate for ddpm: it draws noise"):
        gated("ddpm")


# ---- interruptions


class Interruption:
    """Progress that is interrupted at one of its calls; it counts them and checks what it is given."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.calls, self.last = at, 0, (0, 0)

    def __call__(self, done: int, total: int, message: str) -> None:
        self.calls += 1
        self.last = (done, total)
        assert 0 <= done <= total, f"{done} of {total} done: {message}"
        if self.calls == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("optimiser", "gate"), [("adam", False), ("search", True)])
def test_an_interrupted_tuning_goes_on_to_exactly_the_same_end(tmp_path, optimiser, strategy, gate):
    options = {"optimiser": optimiser, "strategy": strategy, "iterations": 3, "x0": images(n=10), "gate": gate}
    options |= {"held_out": HELD} if gate else {}
    listener = Interruption()
    whole = run_tune("dpmpp-2m", **options, progress=listener)
    assert listener.last[0] == listener.last[1]
    calls, state = listener.calls, tmp_path / "run.state"
    # After the first report, in the middle, at the last reports.
    for place in (1, 2, calls // 2, calls - 1, calls) if optimiser == "adam" else (1, calls // 2, calls):
        with pytest.raises(KeyboardInterrupt):
            run_tune("dpmpp-2m", **options, state=state, save_seconds=0, progress=Interruption(place))
        assert place == 1 or state.exists()
        resumed = Interruption()
        result = run_tune("dpmpp-2m", **options, state=state, progress=resumed)
        assert result.timing.taus == whole.timing.taus, f"interrupted at report {place} of {calls}"
        pd.testing.assert_frame_equal(result.history, whole.history, check_exact=True)
        for key in ("loss_untuned", "loss_tuned", *(["gated"] if gate else [])):
            assert result.timing.tuning[key] == whole.timing.tuning[key]
        assert resumed.last == listener.last
        # Until its timing is written, the state is all that there is of it: who asks again gets the same at once.
        again = run_tune("dpmpp-2m", **options, state=state)
        assert again.timing.taus == whole.timing.taus and list(tmp_path.iterdir()) == [state]
        state.unlink()


def test_the_state_is_written_seldom_and_after_each_stage(tmp_path):
    state = tmp_path / "run.state"
    with pytest.raises(KeyboardInterrupt):
        run_tune(state=state, progress=Interruption(3))
    assert not state.exists(), "within save_seconds of the start nothing is written"
    # Each of three steps reports its states and four iterations: report 7 is of the second step.
    with pytest.raises(KeyboardInterrupt):
        run_tune(state=state, progress=Interruption(7))
    content = torch.load(state, weights_only=True)
    assert content["stages"] == 1 and len(content["rows"]) == 4
    assert run_tune(state=state).timing.taus == run_tune().timing.taus


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: [content],
        lambda content: content.pop("fingerprint") and content,
        lambda content: content | {"taus": content["taus"][1:]},
        lambda content: content | {"taus": [math.nan] * 4},
        lambda content: content | {"stages": 99},
    ],
)
def test_a_damaged_state_is_one_error(tmp_path, damage):
    state = tmp_path / "run.state"
    with pytest.raises(KeyboardInterrupt):
        run_tune(state=state, save_seconds=0, progress=Interruption(7))
    torch.save(damage(torch.load(state, weights_only=True)), state)
    with pytest.raises(CorruptFile, match=r"run\.state is not the state of a tuning; delete it"):
        run_tune(state=state)


@pytest.mark.parametrize(
    "change",
    [
        {"model": "another"},
        {"solver": make_solver("dpmpp-2m")},
        {"grid": make_grid("logsnr", 4, LINEAR)},
        {"images": images(seed=2)},
        {"config": TuneConfig(iterations=4, seed=1)},
        {"held_out": HELD},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_state_of_another_tuning_is_refused(tmp_path, change):
    state, sampler = tmp_path / "run.state", a_sampler(model="ring", weights="ab")
    arguments = {"images": images(), "config": TuneConfig(iterations=4), "state": state}
    with pytest.raises(KeyboardInterrupt):
        tune(sampler, **arguments, save_seconds=0, progress=Interruption(4))
    before = state.read_bytes()
    others = {key: change[key] for key in change if key in ("images", "config", "held_out")}
    other = replace(sampler, **{key: value for key, value in change.items() if key not in others})
    with pytest.raises(BadValue, match=r"run\.state is the state of another tuning.*delete it"):
        tune(other, **{**arguments, **others})
    assert state.read_bytes() == before, "and it is not touched"
    assert tune(sampler, **arguments).timing.nfe == 4
