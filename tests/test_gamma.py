"""Analytic-DDIM and Analytic-DDPM: gamma against closed forms, the best variance against exact laws, clipping, files, commands."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from solver_helpers import EXACT, LINEAR, MEAN, SCALE, draw, law_of, start_law
from test_cli import fails, succeeds
from test_evaluate import make_tiny_data

from tt_lib.engine import drive
from tt_lib.errors import BadValue, CorruptFile, TimingMismatch
from tt_lib.files import read_json, write_json
from tt_lib.grids import Grid, make_grid
from tt_lib.noise import SampleNoise
from tt_lib.rows import FD_COLUMNS, read_rows
from tt_lib.schedules import make_schedule
from tt_lib.solvers.analytic import noise_bound
from tt_lib.solvers.registry import make_solver
from tt_lib.study.cells import Cell
from tt_lib.study.workbench import make_bench
from tt_lib.timing import Timing, load_timing
from tt_lib.toy import MixturePredictor, ring_2d, single_gaussian
from tt_lib.tuning import TuneConfig, tune
from tt_lib.tuning.gamma import FIRST_SEED, Gamma, estimate_gamma, gamma_path, load_gamma

COSINE = make_schedule("cosine")
BOTH = ("analytic-ddim", "analytic-ddpm")
TIMES = torch.tensor([0.95, 0.5, 0.2, 0.05], dtype=torch.float64)
pytestmark = pytest.mark.usefixtures("one_thread")


def gaussian_gamma(t: torch.Tensor, tau: torch.Tensor) -> torch.Tensor:
    """Of N(m, s^2): eps(x, tau) = sigma_tau (x - alpha_tau m) / v_tau, at x ~ N(alpha_t m, v_t)."""
    (a_t, s_t), (a_u, s_u) = ((LINEAR.alpha(u), LINEAR.sigma(u)) for u in (t, tau))
    v_t, v_u = ((a * SCALE) ** 2 + s**2 for a, s in ((a_t, s_t), (a_u, s_u)))
    return s_u**2 / v_u**2 * (v_t + (a_t - a_u) ** 2 * MEAN**2)


def gaussian_residual(t: torch.Tensor, tau: torch.Tensor) -> torch.Tensor:
    """E (eps - eps(x, tau))^2 = 1 - 2 E eps eps(x, tau) + gamma, and E eps x = sigma_t."""
    s_u = LINEAR.sigma(tau)
    v_u = (LINEAR.alpha(tau) * SCALE) ** 2 + s_u**2
    return 1 - 2 * s_u * LINEAR.sigma(t) / v_u + gaussian_gamma(t, tau)


def gaussian_images(n: int, dim: int = 4) -> torch.Tensor:
    return single_gaussian([MEAN] * dim, SCALE).sample(n, torch.Generator().manual_seed(3))


WIDE = MixturePredictor(single_gaussian([MEAN] * 4, SCALE), LINEAR)


# gamma


@pytest.mark.parametrize("ratio", [1.0, 0.8])
def test_gamma_of_a_gaussian_is_its_closed_form(ratio):
    """At tau = t and at tuned times, within its standard error, which is neither too small nor too large."""
    t = TIMES[:-1]
    found = estimate_gamma(WIDE, LINEAR, t, gaussian_images(1500), taus=ratio * t, batch=500)
    expected = gaussian_gamma(t, ratio * t)
    off = (torch.tensor(found.values) - expected) / torch.tensor(found.errors)
    assert off.abs().max() < 4, off
    assert torch.tensor(found.residuals) == pytest.approx(gaussian_residual(t, ratio * t).numpy(), rel=0.15)
    if ratio == 1:
        # The mean of 4 squares has a variance of 1/2 of its square, and a correlation of gamma with that of the noise.
        plain = expected * (0.5 / 1500) ** 0.5
        assert torch.tensor(found.errors) == pytest.approx((plain * (1 - expected**2).sqrt()).numpy(), rel=0.2)
        assert torch.tensor(found.residuals) == pytest.approx(1 - expected.numpy(), rel=0.15)
    else:
        untuned = gaussian_gamma(t, t)
        assert ((expected - untuned).abs() > 8 * torch.tensor(found.errors)).any(), "the two are too near to tell apart"
    assert found.times == tuple(t.tolist()) and found.taus == tuple((ratio * t).tolist()) and found.images == 1500


def test_gamma_does_not_depend_on_the_batch_but_on_the_seed():
    images = gaussian_images(30).float()
    one, other = (estimate_gamma(WIDE, LINEAR, TIMES[:-1], images, batch=batch) for batch in (7, 30))
    for name in ("values", "errors", "residuals"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-9), name
    assert estimate_gamma(WIDE, LINEAR, TIMES[:-1], images, seed=1).values != pytest.approx(one.values, rel=1e-3)


def test_what_the_network_is_asked():
    """Each image has its own noise, its own for each evaluation; x is at t and the network is told tau."""
    images, asked = gaussian_images(3).float(), []

    def spy(x, t, tau):
        asked.append((x, t, tau))
        return x

    estimate_gamma(spy, LINEAR, [0.8, 0.3], images, taus=[0.7, 0.2], seed=5, batch=2)
    assert [(t.item(), tau.item()) for _, t, tau in asked] == [(0.8, 0.7), (0.3, 0.2)] * 2
    noise = SampleNoise([FIRST_SEED + 7])
    for x, t, _ in asked[2:]:
        expected = LINEAR.alpha(t).float() * images[2] + LINEAR.sigma(t).float() * noise(images[2:])
        assert torch.allclose(x, expected, rtol=1e-6)


def test_gamma_of_too_little():
    for images, batch in ((2, 4), (4, 0)):
        with pytest.raises(BadValue, match=rf"at least 3 images.*got {images} and {batch}"):
            estimate_gamma(WIDE, LINEAR, TIMES[:-1], gaussian_images(images), batch=batch)
    with pytest.raises(BadValue, match=r"one tau for each time.*\[2\] and \[3\]"):
        estimate_gamma(WIDE, LINEAR, TIMES[:-1], gaussian_images(4), taus=[0.5, 0.2])


# The best variance


@pytest.mark.parametrize("name", BOTH)
def test_on_a_gaussian_every_step_is_exact(name):
    """The step's true law is then a Gaussian with just this mean and variance, so any steps lead to the true law of x_s."""
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
    times = torch.tensor(make_grid("logsnr", 4, LINEAR, end=0.0).times, dtype=torch.float64)
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
    """No Gaussian step is exact there, but the mean square of x_s is: that is what the best variance keeps. gamma is measured."""
    ring, n = ring_2d(5, scale=0.1), 30_000
    predictor = MixturePredictor(ring, LINEAR)
    x0 = ring.sample(n, torch.Generator().manual_seed(0))
    times = torch.tensor([0.4, 0.15], dtype=torch.float64)
    gamma = estimate_gamma(predictor, LINEAR, times[:1], x0, batch=10_000)
    assert 0.05 < 1 - gamma.values[0] < 0.95
    noise = draw(1)
    x = LINEAR.alpha(times[0]) * x0 + LINEAR.sigma(times[0]) * noise(x0)
    # A radius of 1 and a scale of 0.1 in the plane: the mean square of a coordinate is 1.02 / 2.
    true = (LINEAR.alpha(times[1]) ** 2 * 0.51 + LINEAR.sigma(times[1]) ** 2).item()

    def mean_square(solver):
        return drive(solver(x, times, LINEAR, noise), predictor).x.square().mean().item()

    assert mean_square(make_solver(name, gamma=gamma.values)) == pytest.approx(true, rel=0.03)
    plain = mean_square(make_solver("ddim", eta=float(name == "analytic-ddpm")))
    assert plain < 0.75 * true


# Clipping


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
        ({}, r"tt analytic.*estimate_gamma"),
        ({"gamma": (0.5,)}, "1 entries, 3 steps"),
        ({"gamma": (0.5, math.nan, 0.5)}, "finite"),
        ({"gamma": (0.5,) * 3, "pixels": -1.0}, "not be negative, got -1.0"),
    ):
        with pytest.raises(BadValue, match=message):
            drive(make_solver("analytic-ddim", **options)(x, grid, LINEAR, torch.zeros_like), EXACT)


# Tuning


@pytest.mark.parametrize("strategy", ["sequential", "parallel"])
@pytest.mark.parametrize("name", BOTH)
def test_tuning_holds_gamma_and_its_timing_does_not_depend_on_it(name, strategy):
    grid = make_grid("uniform", 4, LINEAR)
    t = torch.tensor(grid.times[:-1], dtype=torch.float64)
    solver = make_solver(name, gamma=tuple(gaussian_gamma(t, t).tolist()))
    config = TuneConfig(strategy=strategy, optimiser="search")
    images = gaussian_images(8)
    one = tune(WIDE, LINEAR, solver, grid, images, config, model="m").timing
    assert one.taus == tune(WIDE, LINEAR, solver, grid, images, config).timing.taus
    assert sum(one.tuning["loss_tuned"]) < sum(one.tuning["loss_untuned"]) and one.options == {}
    other = make_solver(name, gamma=(0.5,) * 4)
    one.check(model="m", schedule="linear", solver=other, grid=grid)
    assert tune(WIDE, LINEAR, other, grid, images, config).timing.taus != one.taus, "gamma takes part"
    with pytest.raises(TimingMismatch, match=r"'analytic-dd.m' .*pixels=3"):
        one.check(model="m", schedule="linear", solver=make_solver(name, pixels=3.0), grid=grid)


def test_a_step_of_a_parallel_tuning_has_its_own_gamma_and_clip():
    """A part of the grid gives the noise that the whole gives at that step."""
    grid = make_grid("uniform", 4, LINEAR)
    gamma = (0.9, 0.8, 0.7, 0.6)
    for k in range(4):
        part = make_solver("analytic-ddpm", gamma=gamma).part(k, 1, 3 - k)
        expected = deviation("analytic-ddpm", grid.times[k : k + 2], gamma=gamma[k : k + 1])
        assert part.options["gamma"] == gamma[k : k + 1]
        assert deviation("analytic-ddpm", grid.times[k : k + 2], **part.options) == expected


# Files


def named(**changes) -> Gamma:
    grid = (0.9, 0.4, 0.0)
    whole = Gamma(
        (0.9, 0.5),
        (0.01, 0.02),
        (0.1, 0.5),
        grid[:-1],
        grid[:-1],
        16,
        3,
        "real",
        "m",
        "ab" * 32,
        "linear",
        "uniform",
        grid,
        provenance={"command": "tt analytic"},
    )
    return replace(whole, **changes)


USED = {
    "model": "m",
    "weights": "ab" * 32,
    "schedule": "linear",
    "grid": Grid("uniform", (0.9, 0.4, 0.0)),
    "timing": None,
}


def timing(taus=(0.8, 0.4)) -> Timing:
    return Timing(
        "consistency-parallel", taus, (0.9, 0.4), "m", "linear", "analytic-ddim", {}, "uniform", (0.9, 0.4, 0.0)
    )


def test_a_file_goes_round(tmp_path):
    gamma = named()
    gamma.save(tmp_path / "a" / "g.json")
    assert load_gamma(tmp_path / "a" / "g.json") == gamma
    gamma.check(**USED)
    named(timing="consistency-parallel", taus=(0.8, 0.4)).check(**{**USED, "timing": timing()})
    named(weights="").check(**USED)


@pytest.mark.parametrize(
    ("change", "used", "parts"),
    [
        ({}, {"model": "n"}, ("model 'm'", "model 'n'")),
        ({}, {"weights": "cd" * 32}, ("abababab", "cdcdcdcd")),
        ({}, {"schedule": "cosine"}, ("'linear'", "'cosine'")),
        ({}, {"grid": Grid("quadratic", (0.9, 0.4, 0.0))}, ("uniform with 2", "quadratic with 2")),
        ({}, {"grid": Grid("uniform", (0.9, 0.6, 0.4, 0.0))}, ("2 steps", "3 steps")),
        ({}, {"grid": Grid("uniform", (0.9, 0.3, 0.0))}, ("t_1 = 0.4", "0.3")),
        ({}, {"timing": timing()}, ("'untuned'", "'consistency-parallel'")),
        ({"timing": "consistency-parallel", "taus": (0.7, 0.4)}, {"timing": timing()}, ("tau_0 = 0.7", "0.8")),
        ({"timing": "consistency-parallel", "taus": (0.8, 0.4)}, {}, ("'consistency-parallel'", "'untuned'")),
    ],
)
def test_gamma_of_something_else_is_refused_and_both_are_named(change, used, parts):
    with pytest.raises(TimingMismatch) as caught:
        named(**change).check(**{**USED, **used})
    for part in (*parts, "tt analytic"):
        assert part in str(caught.value)


def test_damaged_files(tmp_path):
    path = tmp_path / "g.json"
    named().save(path)
    content = read_json(path)
    for change in ({"format": "tt-timing-1"}, {"values": [0.5]}, {"values": None}, {"nonsense": 1}):
        write_json(path, {**content, **change})
        with pytest.raises(CorruptFile, match=r"tt analytic"):
            load_gamma(path)


def test_two_timings_of_one_name_have_two_files():
    paths = {gamma_path("a/b", "uniform", 10, each) for each in (None, timing(), timing((0.7, 0.4)))}
    assert len(paths) == 3 and gamma_path("a/b", "uniform", 10).name == "uniform-10-untuned.json"
    assert {path.parent.name for path in paths} == {"a--b"}


# Commands

TABLE = """
[table]
dataset = "digits"
model = "tiny"
features = "digits-resnet"
n = 20
seed = 0

[tuning]
optimiser = "search"
images = 4
source = "generated"

[[cells]]
solver = "analytic-ddpm"
grid = "quadratic"
nfe = 2
timing = ["untuned", "consistency-parallel"]
"""
COMMON = ("--model", "tiny", "--solver", "analytic-ddim", "--nfe", 3)
MEASURE = ("analytic", *COMMON, "--source", "generated", "--images", 6)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder to work in, with a tiny model and features in ``data/``."""
    folder = tmp_path_factory.mktemp("analytic")
    shutil.copytree(make_tiny_data(tmp_path_factory.getbasetemp()), folder / "data")
    (folder / "table.toml").write_text(TABLE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TT_DATA", "data")
        patch.setenv("TT_COMMIT", "test")
        for name in ("TT_CIFAR10", "TT_COMMAND"):
            patch.delenv(name, raising=False)
        yield folder


def test_the_commands_one_after_another(project):
    sample = ("sample", *COMMON, "--n", 4, "--force", "--out", "runs/a.png")
    message = fails(*sample)
    assert message.startswith("BadValue: ") and "tt analytic" in message and not Path("runs/a.png").exists()

    path = Path("data/gamma/tiny/uniform-3-untuned.json")
    said = succeeds(*MEASURE)
    gamma, bench = load_gamma(path), make_bench("tiny")
    assert str(path) in said and all(f"{value:.6f}" in said for value in gamma.values)
    cell = Cell("analytic-ddim", "uniform", 3)
    expected = bench.measure_gamma(cell, None, bench.tuning_images("generated", 6, "", None), "generated")
    assert (
        gamma.values == pytest.approx(expected.values, rel=1e-6) and gamma.images == 6 and gamma.source == "generated"
    )
    assert gamma.provenance["command"] == " ".join(map(str, ["tt", *MEASURE])) and all(
        0 < error < 0.3 for error in gamma.errors
    )
    assert "AlreadyDone" in fails(*MEASURE) and "--force" in fails(*MEASURE)
    succeeds(*MEASURE, "--force", "--seed", 4)
    assert load_gamma(path).values != gamma.values and load_gamma(path).seed == 4
    gamma.save(path)

    succeeds(*sample)
    first = Path("runs/a.png").read_bytes()
    solver = bench.sampler(Cell("analytic-ddim", "uniform", 3)).solver
    assert (
        solver.options["gamma"] == gamma.values and bench.sampler(Cell("analytic-ddpm", "uniform", 3)).solver.stochastic
    )
    # The batch does not show; a gamma that is named comes before the stored one.
    succeeds(*sample, "--batch", 3)
    assert Path("runs/a.png").read_bytes() == first
    replace(gamma, values=(1.0, 1.0, 1.0)).save("runs/ones.json")
    succeeds(*sample, "--gamma", "runs/ones.json")
    assert Path("runs/a.png").read_bytes() != first
    plain = bench.sampler(Cell("ddim", "uniform", 3))(range(4)).x
    ones = bench.sampler(Cell("analytic-ddim", "uniform", 3), None, load_gamma("runs/ones.json"))(range(4)).x
    assert torch.allclose(ones, plain, atol=1e-5)
    assert "TimingMismatch" in fails(*sample, "--nfe", 4, "--gamma", path) and "takes no gamma" in fails(
        *sample, "--solver", "ddim", "--gamma", path
    )
    assert "takes no gamma" in fails(*MEASURE, "--solver", "ddim", "--out", "runs/never.json")


def test_tune_measures_gamma_before_and_after(project):
    words = ("--source", "generated", "--images", 4)
    succeeds("tune", *COMMON[:-1], 2, *words, "--optimiser", "search", "--strategy", "parallel", "--out", "runs/t.json")
    tuned = load_timing("runs/t.json")
    before, after = (load_gamma(gamma_path("tiny", "uniform", 2, each)) for each in (None, tuned))
    assert (
        tuned.ratios[0] != 1 and after.taus == tuned.taus and after.timing == tuned.name and before.taus == before.times
    )
    # Only the evaluation whose tau moved has another gamma: the images and their noise are the same.
    assert after.values[0] != pytest.approx(before.values[0], rel=1e-4) and after.values[1] == pytest.approx(
        before.values[1]
    )
    sampler = make_bench("tiny").sampler(Cell("analytic-ddim", "uniform", 2), tuned)
    assert sampler.solver.options["gamma"] == after.values
    succeeds("sample", *COMMON[:-1], 2, "--timing", "runs/t.json", "--n", 2, "--out", "runs/t.png")
    # The file that tuning wrote is what the command measures.
    succeeds("analytic", *COMMON[:-1], 2, *words, "--timing", "runs/t.json", "--out", "runs/g.json")
    assert load_gamma("runs/g.json").values == pytest.approx(after.values, rel=1e-6)


def test_a_table_measures_gamma_and_measures_it_again_for_other_weights(project):
    succeeds("stats", "--dataset", "digits", "--features", "digits-resnet")
    succeeds("table", "--config", "table.toml")
    rows = read_rows("data/results/fd.csv", FD_COLUMNS)
    assert set(rows.timing) == {"untuned", "consistency-parallel"} and set(rows.solver) == {"analytic-ddpm"}
    path = gamma_path("tiny", "quadratic", 2)
    found = load_gamma(path)
    assert len(list(path.parent.glob("quadratic-2-*.json"))) == 2
    replace(found, weights="0" * 64).save(path)
    cell, bench = Cell("analytic-ddpm", "quadratic", 2), make_bench("tiny")
    with pytest.raises(TimingMismatch, match="weights of the model '0000"):
        bench.sampler(cell)
    bench.ensure_gamma(cell, None, lambda: bench.tuning_images("generated", 4, "digits", None), "generated")
    assert (
        load_gamma(path).values == pytest.approx(found.values, rel=1e-6) and load_gamma(path).weights == found.weights
    )
    bench.ensure_gamma(cell, None, lambda: pytest.fail("it is there"), "generated")
    bench.ensure_gamma(Cell("ddim", "quadratic", 2), None, lambda: pytest.fail("it needs none"), "generated")


def test_joint_tuning_and_evaluating(project):
    digits = ("--dataset", "digits", "--features", "digits-resnet")
    common = ("--model", "tiny", "--solver", "analytic-ddpm", "--nfe", 2, *digits)
    succeeds("stats", *digits, "--force")
    words = ("--objective", "frechet", "--strategy", "joint", "--optimiser", "search", "--samples", 20)
    succeeds("tune", *common, *words, "--source", "generated", "--images", 4, "--out", "runs/joint.json")
    tuned = load_timing("runs/joint.json")
    assert (
        tuned.name == "frechet-joint"
        and tuned.options == {}
        and load_gamma(gamma_path("tiny", "uniform", 2, tuned)).taus == tuned.taus
    )
    succeeds("evaluate", *common, "--timing", "runs/joint.json", "--n", 20, "--results", "runs/fd.csv")
    row = read_rows("runs/fd.csv", FD_COLUMNS)
    assert (row.solver.item(), row.nfe.item(), row.timing.item()) == ("analytic-ddpm", 2, "frechet-joint")
