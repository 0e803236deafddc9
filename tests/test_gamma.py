"""gamma of the analytic solvers: against closed forms, in files, and where commands measure it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from solver_helpers import LINEAR, MEAN, SCALE, float64
from test_cli import succeeds
from test_evaluate import tiny_project
from test_tables import HEAD, ONE_CELL, TUNING

from tt_lib.errors import BadValue, CorruptFile, TimingMismatch
from tt_lib.files import read_json, write_json
from tt_lib.grids import Grid, make_grid
from tt_lib.noise import GAMMA_FIRST_SEED, SampleNoise
from tt_lib.rows import FD_COLUMNS, read_rows
from tt_lib.sampling import Sampler
from tt_lib.solvers.registry import make_solver
from tt_lib.study.cells import Cell
from tt_lib.study.workbench import make_bench
from tt_lib.timing import load_timing
from tt_lib.toy import MixturePredictor, single_gaussian
from tt_lib.tuning import TuneConfig, tune
from tt_lib.tuning.gamma import estimate_gamma, gamma_path, load_gamma

BOTH = ("analytic-ddim", "analytic-ddpm")
WIDE = MixturePredictor(single_gaussian([MEAN] * 4, SCALE), LINEAR)
GRID = Grid("mine", (0.95, 0.5, 0.2, 0.05))
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


def gaussian_images(n: int) -> torch.Tensor:
    return single_gaussian([MEAN] * 4, SCALE).sample(n, torch.Generator().manual_seed(3))


def a_sampler(solver="analytic-ddim", ratio: float = 1.0, predictor=WIDE, grid=GRID, **options) -> Sampler:
    solver = make_solver(solver) if isinstance(solver, str) else solver
    plain = Sampler(predictor, LINEAR, solver, grid, (4,), model="m", weights="ab" * 32)
    if ratio == 1.0:
        return plain
    ready = replace(plain, solver=replace(solver, options={"gamma": (0.5,) * grid.steps}))
    return replace(plain, timing=ready.make_timing("consistency-parallel", [ratio * t for t in grid.times[:-1]]))


# ---- the estimate


@pytest.mark.parametrize("ratio", [1.0, 0.8])
def test_gamma_of_a_gaussian_is_its_closed_form(ratio):
    """At tau = t and at tuned times, within its standard error, which is neither too small nor too large."""
    t = GRID.tensor()[:-1]
    gamma = estimate_gamma(a_sampler(ratio=ratio), gaussian_images(1500), batch=500)
    expected, errors = gaussian_gamma(t, ratio * t), float64(gamma.errors)
    off = (float64(gamma.values) - expected) / errors
    assert off.abs().max() < 4, off
    assert gamma.residuals == pytest.approx(gaussian_residual(t, ratio * t).tolist(), rel=0.15)
    if ratio == 1:
        # The mean of 4 squares has a variance of 1/2 of its square, and a correlation of gamma with that of the noise.
        plain = expected * (0.5 / 1500) ** 0.5
        assert gamma.errors == pytest.approx((plain * (1 - expected**2).sqrt()).tolist(), rel=0.2)
        assert gamma.residuals == pytest.approx((1 - expected).tolist(), rel=0.15)
    else:
        untuned = gaussian_gamma(t, t)
        assert ((expected - untuned).abs() > 8 * errors).any(), "the two are too near to tell apart"
    assert gamma.times == GRID.times[:-1] and gamma.taus == tuple((ratio * t).tolist()) and gamma.images == 1500


def test_gamma_does_not_depend_on_the_batch_but_on_the_seed():
    images = gaussian_images(30).float()
    one, other = (estimate_gamma(a_sampler(), images, batch=batch) for batch in (7, 30))
    for name in ("values", "errors", "residuals"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-9), name
    assert estimate_gamma(a_sampler(), images, seed=1).values != pytest.approx(one.values, rel=1e-3)


def test_what_the_network_is_asked():
    """Each image has its own noise, its own for each evaluation; x is at t and the network is conditioned on tau."""
    images, asked = gaussian_images(3).float(), []

    def spy(x, t, tau):
        asked.append((x, t, tau))
        return x

    sampler = a_sampler(ratio=0.5, predictor=spy, grid=Grid("two", (0.8, 0.4, 0.0)))
    estimate_gamma(sampler, images, seed=5, batch=2)
    assert [(t.item(), tau.item()) for _, t, tau in asked] == [(0.8, 0.4), (0.4, 0.2)] * 2
    noise = SampleNoise([GAMMA_FIRST_SEED + 7])
    for x, t, _ in asked[2:]:
        expected = LINEAR.alpha(t).float() * images[2] + LINEAR.sigma(t).float() * noise(images[2:])
        assert torch.allclose(x, expected, rtol=1e-6)


def test_gamma_of_seeds_that_there_are_not():
    """They are added to the first seed of gamma, and end where the next range of the project's own seeds begins."""
    for seed in (-1, 2**32, 499_999_998, 0.5):
        with pytest.raises(BadValue, match="seed"):
            estimate_gamma(a_sampler(), gaussian_images(3), seed=seed)
    estimate_gamma(a_sampler(), gaussian_images(3), seed=499_999_997)


def test_gamma_of_too_little():
    for images, batch in ((2, 4), (4, 0)):
        with pytest.raises(BadValue, match=rf"at least 3 images.*got {images} and {batch}"):
            estimate_gamma(a_sampler(), gaussian_images(images), batch=batch)


# ---- tuning


@pytest.mark.parametrize("strategy", ["sequential", "parallel"])
@pytest.mark.parametrize("name", BOTH)
def test_tuning_holds_gamma_and_its_timing_does_not_depend_on_it(name, strategy):
    grid = make_grid("uniform", 4, LINEAR)
    t = grid.tensor()[:-1]
    sampler = a_sampler(make_solver(name, gamma=tuple(gaussian_gamma(t, t).tolist())), grid=grid)
    config = TuneConfig(strategy=strategy, optimiser="search")
    timing = tune(sampler, gaussian_images(8), config).timing
    assert sum(timing.tuning["loss_tuned"]) < sum(timing.tuning["loss_untuned"]) and timing.options == {}
    other = replace(sampler, solver=make_solver(name, gamma=(0.5,) * 4), timing=timing)
    assert tune(replace(other, timing=None), gaussian_images(8), config).timing.taus != timing.taus, "it takes part"
    with pytest.raises(TimingMismatch, match=r"'analytic-dd.m' .*pixels=3"):
        replace(other, solver=make_solver(name, pixels=3.0))


# ---- files


def a_gamma(**options):
    return estimate_gamma(a_sampler(**options), gaussian_images(3), source="real")


def test_a_file_goes_round(tmp_path):
    gamma = a_gamma()
    gamma.save(tmp_path / "a" / "g.json")
    assert load_gamma(tmp_path / "a" / "g.json") == gamma
    gamma.check(a_sampler())
    a_gamma(ratio=0.8).check(a_sampler(ratio=0.8))


@pytest.mark.parametrize(
    ("ratio", "used", "parts"),
    [
        (1, {"model": "n"}, ("model 'm'", "model 'n'")),
        (1, {"weights": "cd" * 32}, ("abababab", "cdcdcdcd")),
        (1, {"schedule": LINEAR.__class__(LINEAR.betas, "other")}, ("'linear'", "'other'")),
        (1, {"grid": Grid("quadratic", GRID.times)}, ("mine with 3", "quadratic with 3")),
        (1, {"grid": Grid("mine", GRID.times[1:])}, ("3 steps", "2 steps")),
        (1, {"grid": Grid("mine", (0.95, 0.6, 0.2, 0.05))}, ("time of the grid '0.5'", "'0.6'")),
        (1, {"timing": a_sampler(ratio=0.8).timing}, ("'untuned'", "'consistency-parallel'")),
        (0.7, {"timing": a_sampler(ratio=0.8).timing}, ("tau '0.665'", "'0.76'")),
        (0.8, {}, ("'consistency-parallel'", "'untuned'")),
    ],
)
def test_gamma_of_something_else_is_refused_and_both_are_named(ratio, used, parts):
    with pytest.raises(TimingMismatch) as caught:
        a_gamma(ratio=ratio).check(replace(a_sampler(), **used))
    for part in (*parts, "delete its file", "tt sample"):
        assert part in str(caught.value)


def test_damaged_files(tmp_path):
    path = tmp_path / "g.json"
    a_gamma().save(path)
    content = read_json(path)
    for change in (
        *({"format": "tt-timing-2"}, {"values": [0.5]}, {"values": None}, {"nonsense": 1}),
        *({"errors": [-1.0] * 3}, {"taus": [0.0] * 3}, {"grid_times": GRID.times[1:]}, {"images": "3"}),
    ):
        write_json(path, {**content, **change})
        with pytest.raises(CorruptFile, match=r"g\.json.*tt sample"):
            load_gamma(path)


def test_two_timings_of_one_name_have_two_files():
    timings = (None, a_sampler(ratio=0.8).timing, a_sampler(ratio=0.7).timing)
    paths = {gamma_path("a/b", "uniform", 10, timing) for timing in timings}
    assert len(paths) == 3 and gamma_path("a/b", "uniform", 10).name == "uniform-10-untuned.json"
    assert {path.parent.name for path in paths} == {"a--b"}


# ---- commands

COMMON = ("--model", "tiny", "--solver", "analytic-ddim", "--nfe")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder to work in, with a tiny model and features in ``data/``."""
    with tiny_project(tmp_path_factory) as folder:
        cells = ONE_CELL.replace("ddim", "analytic-ddpm").replace("uniform", "quadratic")
        cells = cells.replace('"untuned"', '["untuned", "consistency-parallel"]')
        (folder / "table.toml").write_text(HEAD + TUNING.replace("images = 2", "images = 4") + cells)
        yield folder


def test_sampling_measures_gamma_where_it_is_missing(project):
    sample = ("sample", *COMMON, 3, "--n", 4, "--force", "--out", "runs/a.png")
    succeeds(*sample)
    path = Path("data/gamma/tiny/uniform-3-untuned.json")
    gamma, bench, cell = load_gamma(path), make_bench("tiny"), Cell("analytic-ddim", "uniform", 3)
    assert (gamma.source, gamma.images, gamma.model) == ("generated", 64, "tiny")
    sampler = bench.sampler(cell)
    plain = replace(sampler, predictor=bench.tuner_predictor)
    images = bench.tuning_images("generated", 64, "", None)
    assert gamma.values == pytest.approx(estimate_gamma(plain, images).values, rel=1e-6)
    assert sampler.solver.options["gamma"] == gamma.values
    first = Path("runs/a.png").read_bytes()
    # What is stored is used: another gamma gives other images, and ones those of DDIM.
    replace(gamma, values=(1.0, 1.0, 1.0)).save(path)
    succeeds(*sample)
    assert Path("runs/a.png").read_bytes() != first
    ddim = bench.sampler(Cell("ddim", "uniform", 3))(range(4)).x
    assert torch.allclose(bench.sampler(cell)(range(4)).x, ddim, atol=1e-5)


def test_tune_measures_gamma_before_and_after(project):
    name = "consistency-parallel,images=4,source=generated"
    succeeds("tune", *COMMON, 2, "--timing", name, "--out", "runs/t.json")
    tuned = load_timing("runs/t.json")
    before, after = (load_gamma(gamma_path("tiny", "uniform", 2, each)) for each in (None, tuned))
    assert tuned.ratios[0] != 1 and before.taus == before.times
    assert after.taus == tuned.taus and after.timing == tuned.name == name
    # Only the evaluation whose tau moved has another gamma: the images and their noise are the same.
    assert after.values[0] != pytest.approx(before.values[0], rel=1e-4)
    assert after.values[1] == pytest.approx(before.values[1])
    sampler = make_bench("tiny").sampler(Cell("analytic-ddim", "uniform", 2), tuned)
    assert sampler.solver.options["gamma"] == after.values
    succeeds("sample", *COMMON, 2, "--timing", "runs/t.json", "--n", 2, "--out", "runs/t.png")


def test_a_table_measures_gamma_and_that_of_other_weights_is_not_replaced(project):
    succeeds("stats", "--dataset", "digits", "--features", "digits-resnet")
    succeeds("table", "--config", "table.toml")
    rows = read_rows("data/results/fd.csv", FD_COLUMNS)
    assert set(rows.timing) == {"untuned", "consistency-parallel"} and set(rows.solver) == {"analytic-ddpm"}
    path = gamma_path("tiny", "quadratic", 2)
    gamma = load_gamma(path)
    assert len(list(path.parent.glob("quadratic-2-*.json"))) == 2
    replace(gamma, weights="0" * 64).save(path)
    cell, bench = Cell("analytic-ddpm", "quadratic", 2), make_bench("tiny")
    images = lambda: bench.tuning_images("generated", 4, "digits", None)  # noqa: E731
    for asks in (lambda: bench.sampler(cell), lambda: bench.ensure_gamma(cell, None, images, "generated")):
        with pytest.raises(
            TimingMismatch, match=f"weights of the model '0000.*delete its file {path}, or move it away"
        ):
            asks()
    assert load_gamma(path).weights == "0" * 64
    path.unlink()
    bench.ensure_gamma(cell, None, images, "generated")
    again = load_gamma(path)
    assert again.values == pytest.approx(gamma.values, rel=1e-6) and again.weights == gamma.weights
    bench.ensure_gamma(cell, None, lambda: pytest.fail("it is there"), "generated")
    bench.ensure_gamma(Cell("ddim", "quadratic", 2), None, lambda: pytest.fail("it needs none"), "generated")
