"""Measuring a sampler: against a direct computation, by several metrics at once, interrupted and resumed; rows."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tt_lib.metrics.evaluate
import tt_lib.noise
from tt_lib.datasets import load_dataset, to_float, to_uint8
from tt_lib.errors import BadValue, CorruptFile
from tt_lib.grids import make_grid
from tt_lib.metrics.evaluate import (
    SETS,
    Measured,
    fd_row,
    floor_row,
    forget_sets,
    measure,
    measure_all,
    sample_sets,
    sample_statistics,
)
from tt_lib.metrics.features import disjoint_sets, load_features, statistics_of
from tt_lib.metrics.frechet import frechet_distance
from tt_lib.metrics.reference import Metric
from tt_lib.networks.feature_nets import FeatureNet, save_features
from tt_lib.networks.unet import save_model
from tt_lib.noise import SampleNoise, StartNoise
from tt_lib.predictors import EpsPredictor
from tt_lib.rows import FD_COLUMNS, FD_KEY, read_rows, write_rows
from tt_lib.sampling import Sampler
from tt_lib.schedules import make_schedule, time_of_index
from tt_lib.solvers.registry import make_solver
from tt_lib.timing import Timing

pytestmark = pytest.mark.usefixtures("one_thread")
N = 40
NETWORKS = {"digits-resnet": (8, 8), "cifar10-resnet": (8, 12)}
"""Features of the tiny data folder, by the widths of their networks; both are of digits."""


def make_tiny_data(base: Path) -> Path:
    """A data folder with the model ``tiny`` and the features ``digits-resnet`` and, of digits too, ``cifar10-resnet``.

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
        for name, widths in NETWORKS.items():
            classifier = FeatureNet(widths, in_channels=1)
            classifier.set_normalisation(train.pixels)
            with torch.no_grad():
                classifier.norm.weight *= 30  # distances of a handy size, as rows are rounded
            save_features(classifier, making / "pretrained" / name, {})
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
    return load_features("digits-resnet", weights=data / "pretrained" / "digits-resnet")


@pytest.fixture(scope="session")
def reference(features):
    return statistics_of(load_dataset("digits", "train").pixels, features)


@pytest.fixture(scope="session")
def metric(features, reference):
    return Metric(features, reference, dataset="digits")


@pytest.fixture(scope="session")
def metrics(data):
    """Two metrics."""
    pixels, made = load_dataset("digits", "train").pixels, []
    for name in NETWORKS:
        own = load_features(name, weights=data / "pretrained" / name)
        made.append(Metric(own, statistics_of(pixels, own), "digits"))
    return made


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
        predictor, SCHEDULE, make_solver(solver, **options), grid_times, (1, 8, 8), model="tiny", weights="ab" * 32
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


def directly(sampler: Sampler, metric: Metric, seeds: range) -> float:
    """The distance of all samples at once."""
    return frechet_distance(statistics_of(to_uint8(sampler(seeds).x), metric.features), metric.reference)


# The value and its interval


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("first", [0, 1000])
def test_equals_the_direct_computation(metric, eta, first):
    sampler = make_sampler(grid="quadratic", eta=eta)
    measured = measure(sampler, metric, N, first_seed=first)
    expected = directly(sampler, metric, range(first, first + N))
    assert measured.value == pytest.approx(expected, rel=1e-6) and 0 <= measured.low < measured.value < measured.high
    assert measured.value != pytest.approx(directly(sampler, metric, range(first + 1, first + 1 + N)), rel=1e-4)
    whole = sample_statistics(sampler, metric.features, range(first, first + N), batch=7)
    assert frechet_distance(whole, metric.reference) == pytest.approx(expected, rel=1e-6)


def test_tuned_and_untuned_start_from_the_same_noise(sampler, metric):
    runs = {}
    for name, timing in (("untuned", None), ("same", a_timing(sampler, 1.0)), ("tuned", a_timing(sampler))):
        watched, predictor = counted(replace(sampler, timing=timing))
        runs[name] = measure(watched, metric, N), predictor.starts
    # The first of three evaluations sees x_T.
    starts = {name: torch.cat(states[::3]) for name, (_, states) in runs.items()}
    assert torch.equal(starts["untuned"], starts["tuned"])
    assert torch.equal(starts["untuned"], SampleNoise(range(N)).start(sampler.shape))
    assert runs["same"][0] == runs["untuned"][0]
    assert runs["tuned"][0].value != pytest.approx(runs["untuned"][0].value, rel=1e-3)


@pytest.mark.parametrize("n", [45, 10, 0, -20])
def test_samples_that_do_not_divide_into_sets(sampler, metric, n):
    watched, predictor = counted(sampler)
    with pytest.raises(BadValue, match=f"multiple of 10 and at least 20 .*got {n}$"):
        measure(watched, metric, n)
    assert predictor.calls == 0


def test_a_reference_of_images_of_another_shape(sampler, metric, reference, tmp_path):
    """Features of 64x64 images have the length of those of 32x32 ones, and their distance was a row as any other."""
    watched, predictor = counted(sampler)
    other = copy(reference)
    other.shape = (1, 16, 16)
    for job in (
        lambda: measure_all(watched, [metric, replace(metric, reference=other)], N, work=tmp_path),
        lambda: sample_sets(watched, [replace(metric, reference=other)], N),
    ):
        with pytest.raises(BadValue, match=r"tiny has images of \[1, 8, 8\], the reference .* \[1, 16, 16\]"):
            job()
    assert predictor.calls == 0 and not list(tmp_path.iterdir())
    whole = sample_statistics(sampler, metric.features, range(4))
    assert whole.shape == reference.shape == sampler.shape
    with pytest.raises(BadValue, match="different shapes"):
        frechet_distance(whole, other)


def test_a_set_that_was_damaged_is_no_part_of_a_distance(sampler, metric, tmp_path):
    stop = interrupt(8)
    with pytest.raises(KeyboardInterrupt):
        measure(sampler, metric, N, work=tmp_path, progress=stop)
    path = next(tmp_path.glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-3] ^= 1  # the last number becomes another one
    path.write_bytes(content)
    with pytest.raises(CorruptFile, match=r"is not a finished set of samples \(.*digest.*\); delete it"):
        measure(sampler, metric, N, work=tmp_path)
    path.unlink()
    assert measure(sampler, metric, N, work=tmp_path) == measure(sampler, metric, N)


def test_progress_counts_samples(sampler, metric):
    seen = []
    measure(sampler, metric, N, batch=3, progress=lambda *report: seen.append(report))
    assert [done for done, _, _ in seen] == [4 * k + part for k in range(SETS) for part in (3, 4)]
    assert {(total, message) for _, total, message in seen} == {(N, "ddim, uniform, 3 steps")}


def test_noise_is_drawn_once(monkeypatch):
    drawn = []
    monkeypatch.setattr(tt_lib.noise, "SampleNoise", lambda seeds: drawn.append(seeds) or SampleNoise(seeds))
    noise = StartNoise((1, 2, 2), "cpu", most=5)
    for seeds in (range(3), range(3), range(3, 6), range(3, 6), range(6, 8), range(6, 8)):
        assert torch.equal(noise(seeds), SampleNoise(seeds).start((1, 2, 2)))
    # The second range does not fit beside the first and is drawn each time; the third does.
    assert drawn == [range(3), range(3, 6), range(3, 6), range(6, 8)]


# Interrupted and resumed


def interrupt(after: int):
    def progress(done, total, message):
        if done >= after:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize(("stop", "finished"), [(4, 0), (20, 4), (N, 9)])
def test_interrupted_and_resumed_is_uninterrupted(sampler, metric, tmp_path, stop, finished):
    whole, uninterrupted = counted(sampler)
    expected = measure(whole, metric, N)
    assert uninterrupted.calls == SETS * 3
    with pytest.raises(KeyboardInterrupt):
        measure(sampler, metric, N, work=tmp_path, progress=interrupt(stop))
    assert len(list(tmp_path.iterdir())) == finished

    watched, predictor = counted(sampler)
    seen = []
    assert measure(watched, metric, N, work=tmp_path, progress=lambda *report: seen.append(report[0])) == expected
    assert predictor.calls == (SETS - finished) * 3  # finished sets are not computed again
    assert seen == [4 * (k + 1) for k in range(finished, SETS)]
    # The batch does not change the samples, so another one finds all sets.
    assert measure(watched, metric, N, work=tmp_path, batch=2) == expected
    assert predictor.calls == (SETS - finished) * 3
    forget_sets(sampler, metric.features, N, 0, tmp_path)
    assert not list(tmp_path.iterdir())


CHANGES = {
    "weights": lambda sampler: replace(sampler, weights="other"),
    "model": lambda sampler: replace(sampler, model="other"),
    "taus": lambda sampler: replace(sampler, timing=a_timing(sampler)),
    "steps": lambda sampler: replace(sampler, grid=replace(sampler.grid, times=(0.9, 0.5, 0.0))),
    "eta": lambda sampler: replace(sampler, solver=make_solver("ddim", eta=0.5)),
    "solver": lambda sampler: replace(sampler, solver=make_solver("dpmpp-2m")),
    "schedule": lambda sampler: replace(sampler, schedule=make_schedule("cosine")),
}


@pytest.mark.parametrize("change", [*CHANGES, "one tau", "features", "seed", "n"])
def test_sets_of_another_measurement_are_not_used(sampler, metric, tmp_path, change):
    sampler = replace(sampler, timing=a_timing(sampler)) if change == "one tau" else sampler
    before = measure(sampler, metric, 20, work=tmp_path)
    changed, by, options, n = sampler, metric, {}, 20
    if change == "one tau":
        timing = sampler.timing
        changed = replace(sampler, timing=replace(timing, taus=(*timing.taus[:-1], timing.taus[-1] * (1 + 1e-6))))
    elif change == "features":
        other = copy(metric.reference)
        other.sha256 = "other"
        by = Metric(replace(metric.features, sha256="other"), other)
    elif change == "seed":
        options = {"first_seed": 1}
    elif change == "n":
        n = 30
    else:
        changed = CHANGES[change](sampler)
    watched, predictor = counted(changed)
    measured = measure(watched, by, n, work=tmp_path, **options)
    assert predictor.calls == SETS * changed.grid.steps
    assert measured == measure(changed, by, n, **options)
    # and the old sets are still there
    watched, predictor = counted(sampler)
    assert measure(watched, metric, 20, work=tmp_path) == before and predictor.calls == 0


# Several metrics


def approximately(measured: Measured):
    return pytest.approx((measured.value, measured.low, measured.high), rel=1e-9)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_each_is_measured_as_if_alone_and_the_samples_are_made_once(metrics, eta):
    watched, predictor = counted(make_sampler(eta=eta))
    both = measure_all(watched, metrics, N, first_seed=5, batch=3)
    assert predictor.calls == SETS * 2 * 3, "two batches a set, three evaluations each"
    for metric, measured in zip(metrics, both, strict=True):
        alone = measure(watched, metric, N, first_seed=5, batch=3)
        assert (measured.value, measured.low, measured.high) == approximately(alone)
    assert both[0].value != pytest.approx(both[1].value, rel=0.01)


def test_only_what_is_missing_is_measured(metrics, sampler, tmp_path):
    expected = measure_all(sampler, metrics, N)
    first = measure(sampler, metrics[0], N, work=tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    with pytest.raises(KeyboardInterrupt):
        measure_all(sampler, metrics, N, work=tmp_path, progress=interrupt(20))
    watched, predictor = counted(sampler)
    measured = measure_all(watched, metrics, N, work=tmp_path)
    assert predictor.calls == 6 * 3, "the sets of the second metric that were not finished; of the first, none"
    assert measured[0] == first and {path: path.stat().st_mtime_ns for path in before} == before
    for one, other in zip(measured, expected, strict=True):
        assert (one.value, one.low, one.high) == approximately(other)
    assert measure_all(watched, metrics, N, work=tmp_path) == measured and predictor.calls == 6 * 3


# Rows


def row_of(measured: Measured, sampler: Sampler, metric: Metric):
    return fd_row(measured, sampler, metric, seed=7, timing="untuned")


def test_evaluations_are_counted_not_computed(metric):
    watched, predictor = counted(make_sampler("heun"))
    row = row_of(measure(watched, metric, N), watched, metric)
    assert row["nfe"] == 5 and predictor.calls == 5 * SETS


def test_row(sampler, metric, tmp_path):
    sampler = replace(sampler, solver=make_solver("ddim", eta=0.5))
    measured = measure(sampler, metric, N, first_seed=7)
    row = row_of(measured, sampler, metric)
    expected = {
        "dataset": "digits",
        "model": "tiny",
        "weights": "ab" * 8,
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
        assert row[name] == pytest.approx(getattr(measured, name), abs=6e-7)
    assert row["device"].startswith("cpu") and torch.__version__ in row["versions"]
    # Written twice it is one row, and it reads back as it was.
    for _ in range(2):
        write_rows(tmp_path / "fd.csv", [row], FD_COLUMNS, FD_KEY)
    assert read_rows(tmp_path / "fd.csv", FD_COLUMNS).to_dict("records") == [row]


def test_floor(metric, sampler):
    pixels = load_dataset("digits", "test").pixels
    row = floor_row(metric, disjoint_sets(pixels, metric.features, SETS))
    assert set(row) == set(FD_COLUMNS)
    expected = frechet_distance(statistics_of(pixels, metric.features), metric.reference)
    assert row["value"] == pytest.approx(expected, abs=6e-7) and row["low"] <= row["value"] <= row["high"]
    assert (row["n"], row["nfe"], row["solver"], row["timing"], row["dataset"]) == (297, 0, "floor", "floor", "digits")
    assert row["metric"] == "FD (digits-resnet)" and row["features"] == "digits-resnet"
    assert row["value"] < 0.1 * measure(sampler, metric, 290).value
