"""Measuring a sampler: against a direct computation, and what an interrupted measurement keeps and what it does not."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tt_lib.metrics.evaluate
import tt_lib.noise
from tt_lib.datasets import load_dataset, to_float, to_uint8
from tt_lib.engine import Request
from tt_lib.errors import BadValue
from tt_lib.grids import make_grid
from tt_lib.metrics.evaluate import SETS, fd_row, floor_row, measure, sample_statistics
from tt_lib.metrics.features import disjoint_sets, load_feature_extractor, reference_statistics
from tt_lib.metrics.frechet import frechet_distance
from tt_lib.metrics.statistics import FeatureStatistics
from tt_lib.networks.feature_nets import FeatureNet, PlainNet, save_features
from tt_lib.networks.unet import save_model
from tt_lib.noise import SampleNoise, StartNoise
from tt_lib.predictors import EpsPredictor
from tt_lib.rows import FD_COLUMNS, FD_KEY, read_rows, write_rows
from tt_lib.sampling import Sampler
from tt_lib.schedules import make_schedule, time_of_index
from tt_lib.solvers.registry import Solver, make_solver
from tt_lib.study.cells import Cell
from tt_lib.study.workbench import make_bench
from tt_lib.timing import Timing

pytestmark = pytest.mark.usefixtures("one_thread")
N = 40


def make_tiny_data(base: Path) -> Path:
    """A data folder with the model ``tiny`` and the features ``digits-resnet`` and ``digits-simclr``; made once a session.

    The network is trained for a second: the samples of one with random weights are all black or white, and
    nothing that is done to its times shows in them.
    """
    from diffusers import UNet2DModel

    folder = base / "tiny-data"
    if folder.exists():
        return folder
    making = base / "tiny-data-making"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.set_num_threads(1)  # a session's fixtures come before the module's, and ten times slower on two threads
        train = load_dataset("digits", "train")
        network = UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            add_attention=False,
        )
        schedule, optimizer = make_schedule("linear"), torch.optim.Adam(network.parameters(), lr=1e-2)
        images = to_float(train.pixels)
        for _ in range(40):
            x0, t = images[torch.randint(len(images), (32,))], torch.rand(32).clamp(min=1e-3)
            noise = torch.randn_like(x0)
            alpha, sigma = (part.float().view(-1, 1, 1, 1) for part in (schedule.alpha(t), schedule.sigma(t)))
            answer = network(alpha * x0 + sigma * noise, schedule.network_time(t).float()).sample
            optimizer.zero_grad()
            (answer - noise).square().mean().backward()
            optimizer.step()
        save_model(network, making / "pretrained" / "tiny", name="tiny", schedule="linear", card={"dataset": "digits"})
        classifier = FeatureNet((8, 8), in_channels=1)
        classifier.set_normalisation(train.pixels)
        with torch.no_grad():
            classifier.norm.weight *= 30  # distances of a handy size, as rows are rounded
        save_features(classifier, making / "pretrained" / "digits-resnet", {})
        other = PlainNet((8, 12), in_channels=1)
        other.set_normalisation(train.pixels)
        with torch.no_grad():
            other.layers[-2].weight *= 30
        save_features(other, making / "pretrained" / "digits-simclr", {})
    shutil.move(making, folder)
    return folder


@contextmanager
def tiny_project(factory):
    """A folder to work in, with ``data/`` as :func:`make_tiny_data` makes it; yields it."""
    folder = factory.mktemp("project")
    shutil.copytree(make_tiny_data(factory.getbasetemp()), folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TT_DATA", "data")
        patch.setenv("TT_COMMIT", "test")
        yield folder


@dataclass
class Counted:
    """A predictor that counts its calls and keeps the first states it is asked for."""

    predictor: object
    calls: int = 0

    def __post_init__(self) -> None:
        self.starts: list[Tensor] = []

    def __call__(self, x: Tensor, t: Tensor, tau: Tensor) -> Tensor:
        self.calls += 1
        self.starts.append(x.clone())
        return self.predictor(x, t, tau)


def counted(sampler: Sampler) -> tuple[Sampler, Counted]:
    predictor = Counted(sampler.predictor)
    return replace(sampler, predictor=predictor), predictor


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return make_tiny_data(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def features(data):
    return load_feature_extractor("digits-resnet", data / "pretrained" / "digits-resnet")


@pytest.fixture(scope="session")
def reference(features):
    return reference_statistics(load_dataset("digits", "train"), features)


@pytest.fixture(autouse=True)
def no_git(monkeypatch):
    monkeypatch.setenv("TT_COMMIT", "test")
    monkeypatch.setenv("TT_COMMAND", "tt test")


SCHEDULE = make_schedule("linear")


def formula(x: Tensor, c: Tensor) -> Tensor:
    """A network that costs nothing: the direction for Gaussian data, bent a little."""
    t = time_of_index(c, SCHEDULE.levels).clamp(max=1)
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    return (sigma / (0.3 * alpha**2 + sigma**2)).float().view(-1, 1, 1, 1) * x + 0.1 * x.roll(1, -1).tanh()


def make_sampler(solver: str = "ddim", grid: str = "uniform", steps: int = 3, **options) -> Sampler:
    predictor = EpsPredictor(formula, SCHEDULE)
    grid_times = make_grid(grid, steps, SCHEDULE)
    return Sampler(
        predictor, SCHEDULE, make_solver(solver, **options), grid_times, (1, 8, 8), model="tiny", weights="ab"
    )


@pytest.fixture
def sampler():
    return make_sampler()


def a_timing(sampler: Sampler, factor: float = 0.9) -> Timing:
    """A timing for just this sampler with every tau at ``factor`` of its time."""
    times = sampler.grid.times[:-1]
    return Timing(
        name="truncation-parallel",
        taus=tuple(t * factor for t in times),
        times=times,
        model=sampler.model,
        schedule=sampler.schedule.name,
        solver=sampler.solver.name,
        options=dict(sampler.solver.options),
        grid=sampler.grid.name,
        grid_times=sampler.grid.times,
        weights=sampler.weights,
    )


def directly(sampler: Sampler, features, reference, seeds: range) -> float:
    """The distance of all samples at once."""
    found = FeatureStatistics(features.dimension, features.name, features.sha256)
    found.update(features(to_uint8(sampler(seeds).x)))
    return frechet_distance(found, reference)


# The value and its interval


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("first", [0, 1000])
def test_equals_the_direct_computation(features, reference, eta, first):
    sampler = make_sampler(grid="quadratic", eta=eta)
    found = measure(sampler, features, reference, N, first_seed=first)
    expected = directly(sampler, features, reference, range(first, first + N))
    assert found.value == pytest.approx(expected, rel=1e-6) and found.value > 0.1
    other = directly(sampler, features, reference, range(first + 1, first + 1 + N))
    assert found.value != pytest.approx(other, rel=1e-4)


def test_does_not_depend_on_the_batch(data, features, reference):
    """Rounding in a real network differs with the batch, and may move a pixel from one level to the next."""
    bench = make_bench(str(data / "pretrained" / "tiny"), batch=50)
    sampler = bench.sampler(Cell("ddim", "uniform", 2))
    small, large = (measure(sampler, features, reference, 100, batch=size) for size in (3, 500))
    for name in ("value", "low", "high"):
        assert getattr(small, name) == pytest.approx(getattr(large, name), abs=1e-4 * large.value)


def test_interval_encloses_the_value_and_shrinks(sampler, features, reference):
    few, many = (measure(sampler, features, reference, n) for n in (N, 10 * N))
    for found in (few, many):
        assert 0 <= found.low < found.value < found.high
    assert many.high - many.low < 0.7 * (few.high - few.low)


def test_tuned_and_untuned_start_from_the_same_noise(sampler, features, reference):
    runs = {}
    for name, timing in (("untuned", None), ("same", a_timing(sampler, 1.0)), ("tuned", a_timing(sampler))):
        watched, predictor = counted(replace(sampler, timing=timing))
        runs[name] = measure(watched, features, reference, N), predictor.starts
    # The first of three evaluations sees x_T.
    starts = {name: torch.cat(states[::3]) for name, (_, states) in runs.items()}
    assert torch.equal(starts["untuned"], starts["tuned"])
    assert torch.equal(starts["untuned"], SampleNoise(range(N)).start(sampler.shape))
    assert runs["same"][0] == runs["untuned"][0]
    assert runs["tuned"][0].value != pytest.approx(runs["untuned"][0].value, rel=1e-3)


@pytest.mark.parametrize("n", [45, 10, 0, -20, 19])
def test_samples_that_do_not_divide_into_sets(sampler, features, reference, n):
    watched, predictor = counted(sampler)
    with pytest.raises(BadValue, match=f"multiple of 10 and at least 20 .*got {n}$"):
        measure(watched, features, reference, n)
    assert predictor.calls == 0


def test_progress_counts_samples(sampler, features, reference):
    seen = []
    measure(sampler, features, reference, N, batch=3, progress=lambda *report: seen.append(report))
    assert [done for done, _, _ in seen] == [4 * k + part for k in range(SETS) for part in (3, 4)]
    assert {(total, message) for _, total, message in seen} == {(N, "ddim, uniform, 3 steps")}


# Interrupted and resumed


@pytest.mark.parametrize(("stop", "finished"), [(4, 0), (20, 4), (N, 9)])
def test_interrupted_and_resumed_is_uninterrupted(sampler, features, reference, tmp_path, stop, finished):
    whole, uninterrupted = counted(sampler)
    expected = measure(whole, features, reference, N)
    assert uninterrupted.calls == SETS * 3

    def interrupt(done, total, message):
        if done >= stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(sampler, features, reference, N, work=tmp_path, progress=interrupt)
    assert len(list(tmp_path.iterdir())) == finished

    watched, predictor = counted(sampler)
    seen = []
    found = measure(watched, features, reference, N, work=tmp_path, progress=lambda *report: seen.append(report[0]))
    assert found == expected
    assert predictor.calls == (SETS - finished) * 3  # finished sets are not computed again
    assert seen == [4 * (k + 1) for k in range(finished, SETS)]


def test_finished_measurement_needs_no_network(sampler, features, reference, tmp_path):
    expected = measure(sampler, features, reference, N, work=tmp_path)
    watched, predictor = counted(sampler)
    assert measure(watched, features, reference, N, work=tmp_path) == expected
    assert predictor.calls == 0


def with_features(features, reference, sha256: str):
    """The same features under other weights' hash, and a reference that fits them."""
    twin = reference.copy()
    twin.sha256 = sha256
    return replace(features, sha256=sha256), twin


CHANGES = {
    "weights": lambda sampler: replace(sampler, weights="other"),
    "model": lambda sampler: replace(sampler, model="other"),
    "taus": lambda sampler: replace(sampler, timing=a_timing(sampler)),
    "steps": lambda sampler: replace(sampler, grid=replace(sampler.grid, times=(0.9, 0.5, 0.0))),
    "grid": lambda sampler: replace(sampler, grid=replace(sampler.grid, times=(*sampler.grid.times[:-2], 0.002, 0.0))),
    "eta": lambda sampler: replace(sampler, solver=make_solver("ddim", eta=0.5)),
    "solver": lambda sampler: replace(sampler, solver=make_solver("dpmpp-2m")),
    "schedule": lambda sampler: replace(sampler, schedule=make_schedule("cosine")),
}


@pytest.mark.parametrize("change", [*CHANGES, "one tau", "features", "seed", "n"])
def test_sets_of_another_measurement_are_not_used(sampler, features, reference, tmp_path, change):
    sampler = replace(sampler, timing=a_timing(sampler)) if change == "one tau" else sampler
    before = measure(sampler, features, reference, 20, work=tmp_path)
    changed, options, n = sampler, {}, 20
    if change == "one tau":
        timing = sampler.timing
        changed = replace(sampler, timing=replace(timing, taus=(*timing.taus[:-1], timing.taus[-1] * (1 + 1e-6))))
    elif change == "features":
        features, reference = with_features(features, reference, "other")
    elif change == "seed":
        options = {"first_seed": 1}
    elif change == "n":
        n = 30
    else:
        changed = CHANGES[change](sampler)
    watched, predictor = counted(changed)
    found = measure(watched, features, reference, n, work=tmp_path, **options)
    assert predictor.calls == SETS * changed.grid.steps
    assert found == measure(changed, features, reference, n, **options)
    # and the old sets are still there
    if change != "features":
        watched, predictor = counted(sampler)
        assert measure(watched, features, reference, 20, work=tmp_path) == before and predictor.calls == 0


def test_other_batch_uses_the_sets(sampler, features, reference, tmp_path):
    """The batch does not change the samples, so it does not throw finished sets away."""
    measure(sampler, features, reference, 20, work=tmp_path, batch=1)
    watched, predictor = counted(sampler)
    measure(watched, features, reference, 20, work=tmp_path, batch=2)
    assert predictor.calls == 0


# The start noise


def test_kept_noise_is_the_samples_own():
    noise = StartNoise((1, 8, 8), "cpu")
    for seeds in (range(3), range(3, 7), range(3)):
        assert torch.equal(noise(seeds), SampleNoise(seeds).start((1, 8, 8)))


def test_noise_is_drawn_once(monkeypatch):
    drawn = []
    monkeypatch.setattr(tt_lib.noise, "SampleNoise", lambda seeds: drawn.append(seeds) or SampleNoise(seeds))
    noise = StartNoise((1, 2, 2), "cpu", most=5)
    for seeds in (range(3), range(3), range(3, 6), range(3, 6), range(6, 8), range(6, 8)):
        noise(seeds)
    # The second range does not fit beside the first and is drawn each time; the third does.
    assert drawn == [range(3), range(3, 6), range(3, 6), range(6, 8)]


@pytest.mark.parametrize(("eta", "kept"), [(0.0, N), (1.0, 0)])
def test_start_noise_gives_the_same_numbers(features, reference, eta, kept):
    sampler = make_sampler(eta=eta)
    start = StartNoise(sampler.shape, "cpu")
    expected = measure(sampler, features, reference, N)
    for _ in range(2):
        assert measure(sampler, features, reference, N, start=start) == expected
    # A stochastic solver draws start and steps from one stream: it takes no kept start.
    assert sum(map(len, start.kept)) == kept
    with pytest.raises(BadValue, match="give seeds, not start"):
        make_sampler(eta=1.0)(range(2), start=torch.zeros(2, 1, 8, 8))


# Rows


def heun(x, times, schedule, noise):
    """Two evaluations a step but for the last, so that the evaluations are not the steps."""
    for t, s in pairwise(times):
        first = yield Request(x, t)
        a = (schedule.alpha(s) / schedule.alpha(t)).float()
        b = (schedule.sigma(s) - a * schedule.sigma(t)).float()
        x, before = a * x + b * first, x
        if s > 0:
            second = yield Request(x, s)
            x = a * before + b * (first + second) / 2
    return x


def test_evaluations_are_counted_not_computed(sampler, features, reference, tmp_path):
    sampler = replace(sampler, solver=Solver("heun-test", heun))
    _, nfe = sample_statistics(sampler, features, range(4))
    assert nfe == 5
    for _ in range(2):  # the second time all sets come from the work folder
        watched, predictor = counted(sampler)
        found = measure(watched, features, reference, N, work=tmp_path)
        row = fd_row(found, sampler, features, dataset="digits", reference="train", n=N, seed=0, timing="untuned")
        assert found.nfe == row["nfe"] == 5
    assert predictor.calls == 0


def test_row(sampler, features, reference, tmp_path):
    sampler = replace(sampler, solver=make_solver("ddim", eta=0.5))
    found = measure(sampler, features, reference, N, first_seed=7)
    row = fd_row(found, sampler, features, dataset="digits", reference="train", n=N, seed=7, timing="untuned")
    assert tuple(row) == FD_COLUMNS
    expected = {
        "dataset": "digits",
        "model": "tiny",
        "solver": "ddim",
        "grid": "uniform",
        "nfe": 3,
        "eta": 0.5,
        "timing": "untuned",
        "metric": "FD (digits-resnet)",
        "features": "digits-resnet",
        "reference": "train",
        "n": N,
        "seed": 7,
        "commit": "test",
        "command": "tt test",
    }
    assert {key: row[key] for key in expected} == expected
    for name in ("value", "low", "high"):
        assert row[name] == pytest.approx(getattr(found, name), abs=6e-7)
    assert row["device"].startswith("cpu") and torch.__version__ in row["versions"]
    # Written twice it is one row, and it reads back as it was.
    for _ in range(2):
        write_rows(tmp_path / "fd.csv", [row], FD_COLUMNS, FD_KEY)
    assert read_rows(tmp_path / "fd.csv", FD_COLUMNS).to_dict("records") == [row]


def test_floor(features, reference, sampler):
    images = load_dataset("digits", "test")
    row = floor_row(features, reference, "digits", disjoint_sets(images.pixels, features, SETS))
    assert tuple(row) == FD_COLUMNS
    expected = frechet_distance(reference_statistics(images, features), reference)
    assert row["value"] == pytest.approx(expected, abs=6e-7) and row["low"] <= row["value"] <= row["high"]
    assert (row["n"], row["nfe"], row["solver"], row["timing"], row["dataset"]) == (297, 0, "floor", "floor", "digits")
    assert row["metric"] == "FD (digits-resnet)" and row["features"] == "digits-resnet"
    assert row["value"] < 0.1 * measure(sampler, features, reference, 290).value
