"""What the rows of speed say is what was done: both sides do the same work, and agree on the result."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from PIL import Image
from pytorch_fid import fid_score
from scipy import linalg
from test_evaluate import tiny_project
from test_world import launch
from torch import nn
from typer.testing import CliRunner

from tt_lib.cli import app
from tt_lib.datasets import to_uint8
from tt_lib.errors import BadValue
from tt_lib.metrics.evaluate import Measured, measure
from tt_lib.metrics.features import FastNetwork, NetworkFeatures, make_fast
from tt_lib.metrics.inception import FILE
from tt_lib.metrics.statistics import FeatureStatistics
from tt_lib.metrics.world import World
from tt_lib.networks.running import make_predictor
from tt_lib.networks.unet import Model
from tt_lib.noise import StartNoise
from tt_lib.predictors import Chunked, EpsPredictor
from tt_lib.rows import SPEED_COLUMNS, read_rows
from tt_lib.schedules import make_schedule
from tt_lib.study import speed as speed_fid
from tt_lib.study import speed as speed_tuning
from tt_lib.study import speed as speed_world
from tt_lib.study.cells import Cell
from tt_lib.study.speed import ddim_pipeline
from tt_lib.study.workbench import Bench, make_bench

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
CELL = Cell("ddim", "uniform", 2)


class Colour(nn.Module):
    """A small network of colour images that is not the same at all times."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x, c):
        return self.layer(x) * (0.5 + c.view(-1, 1, 1, 1) / 1000)


class Vectors(nn.Module):
    """Features [B, 12] of uint8 pixels."""

    def forward(self, pixels):
        x = pixels.float() / 255
        return torch.cat([x.mean((2, 3)), x.std((2, 3)), x[:, :, 0, 0], x[:, :, 4, 5]], 1)


FEATURES = NetworkFeatures("inception-2015", Vectors(), 12, "ab" * 32, "FID", CPU)


@pytest.fixture(scope="module")
def bench():
    schedule = make_schedule("linear")
    model = Model(Colour().eval().requires_grad_(False), schedule, (3, 8, 8), "colour")
    predictor = EpsPredictor(model.network, schedule)
    return Bench(model, Chunked(predictor, 8), predictor, CPU, 8)


@pytest.fixture(scope="module")
def images():
    return torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, one_thread):
    with tiny_project(tmp_path_factory) as folder:
        yield folder


def by(rows, words):
    """The one row with these words in it."""
    (row,) = [row for row in rows if words in row["what"]]
    return row


# Against pytorch-fid


def pytorch_fid_by_hand(pngs: Path, npz: Path, device, weights, batch: int) -> float:
    """What the command computes, from the files that it was given: pytorch-fid's own distance, in the features of this test."""
    files = sorted(pngs.glob("*.png"))
    assert [int(file.stem) for file in files] == list(range(20))
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) for file in files])
    vectors = Vectors()(pixels).double().numpy()
    with np.load(npz) as reference:
        return float(
            fid_score.calculate_frechet_distance(
                vectors.mean(0), np.cov(vectors, rowvar=False), reference["mu"], reference["sigma"]
            )
        )


def plant_features(patch) -> list[int]:
    """Have both sides take the features of this test; returns the list of the batches that the command will be run with."""
    batches: list[int] = []
    patch.setattr(speed_fid, "inception_weights", lambda home: (home / "none", "random weights"))
    patch.setattr(speed_fid, "inception_features", lambda weights, device: FEATURES)
    patch.setattr(speed_fid, "run_pytorch_fid", lambda *a: batches.append(a[-1]) or pytorch_fid_by_hand(*a))
    return batches


@pytest.fixture(scope="module")
def fid_rows(bench, images, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        batches = plant_features(patch)
        rows = speed_fid.measure_against_pytorch_fid(
            bench, images, tmp_path_factory.mktemp("fid"), cell=CELL, n=20, compiled=False
        )
    assert batches == [50, 500]
    return rows


def test_both_sides_measure_the_same_distance(fid_rows):
    row = by(fid_rows, "distance, evaluating")
    assert row["ours"] == pytest.approx(row["peer"], rel=1e-4) and row["ours"] > 0.01
    assert (
        row["ratio"] == pytest.approx(1, abs=1e-3) and "n 20, inception-2015 (random weights, float32)" in row["what"]
    )


def test_float32_is_timed_beside_float16(bench, images, tmp_path, monkeypatch):
    """Here the same features stand for both, so the distances are the same."""
    plant_features(monkeypatch)
    monkeypatch.setattr(speed_fid, "make_fast", lambda features, size, compile: features)
    rows = speed_fid.measure_against_pytorch_fid(bench, images, tmp_path, cell=CELL, n=20, compiled=False, half=True)
    for writers in ("1 thread,", "8 threads,"):
        fast, plain = (
            by(rows, f"(random weights, {precision}): peer PNG files by {writers}")
            for precision in ("float16", "float32")
        )
        assert fast["peer"] == plain["peer"] and plain["ours"] > 0 and plain["unit"] == "s"
    row = by(rows, "float16): peer ours in float32")
    assert row["ours"] == row["peer"] == by(rows, "float16): peer pytorch-fid's of the same samples")["ours"]


def test_the_peer_is_the_sum_of_its_parts(fid_rows):
    for writers in ("1 thread,", "8 threads,"):
        whole = by(fid_rows, f"float32): peer PNG files by {writers}")
        parts = [row for row in fid_rows if row["what"].startswith(f"PNG files by {writers}")]
        assert len(parts) == 3 and whole["unit"] == "s" and {row["peer"] for row in parts} == {whole["peer"]}
        assert sum(row["ours"] for row in parts) == pytest.approx(whole["peer"], rel=1e-3)
        assert whole["ratio"] == pytest.approx(whole["peer"] / whole["ours"], rel=1e-2, abs=1e-3)


def test_png_files_hold_the_very_samples(bench, tmp_path):
    sampler, start = bench.sampler(CELL), StartNoise((3, 8, 8), "cpu")
    for writers in (1, 8):
        speed_fid.sample_to_png(sampler, 11, 4, start, tmp_path / str(writers), writers)
        found = [np.array(Image.open(tmp_path / str(writers) / f"{seed:06d}.png")) for seed in range(11)]
        expected = to_uint8(sampler(range(11)).x).permute(0, 2, 3, 1).numpy()
        assert np.array_equal(np.stack(found), expected)


@pytest.fixture(scope="module")
def unet_bench():
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(32,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    model = Model(network.eval().requires_grad_(False), make_schedule("linear"), (3, 8, 8), "unet")
    predictor = make_predictor(model)
    return Bench(model, Chunked(predictor, 8), predictor, CPU, 8)


def test_what_diffusers_pipeline_samples_has_a_third_row(unet_bench, images, tmp_path, monkeypatch):
    batches = plant_features(monkeypatch)
    for cell, peers in ((CELL, [50, 500, 50]), (replace(CELL, grid="quadratic"), [50, 500])):
        batches.clear()
        folder = tmp_path / f"{cell.label}"
        folder.mkdir()
        rows = speed_fid.measure_against_pytorch_fid(unet_bench, images, folder, cell=cell, n=20, compiled=False)
        assert batches == peers
        assert sum("DDIMPipeline" in row["what"] for row in rows) == 4 * (len(peers) - 2)
    rows = [row for row in rows if row["unit"] == "s"]
    assert all(row["ratio"] == pytest.approx(row["peer"] / row["ours"], rel=1e-2) for row in rows)


def test_the_pipelines_files_are_its_images_and_what_ddim_samples(unet_bench, tmp_path):
    pipeline = ddim_pipeline(unet_bench, 3, bf16=False)
    speed_fid.pipeline_to_png(pipeline, 11, 4, CPU, tmp_path / "png")
    found = np.stack([np.array(Image.open(tmp_path / "png" / f"{number:06d}.png")) for number in range(11)])
    generator = torch.Generator().manual_seed(0)
    starts = [torch.randn(count, 3, 8, 8, generator=generator) for count in (4, 4, 4, 3)][
        1:
    ]  # the first batch is not timed
    ends = [unet_bench.sampler(Cell("ddim", "uniform", 3))(range(len(start)), start=start).x for start in starts]
    expected = to_uint8(torch.cat(ends)).permute(0, 2, 3, 1).numpy()
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_a_failing_pytorch_fid_is_an_error_with_its_last_words(tmp_path):
    (tmp_path / "weights.pth").touch()
    with pytest.raises(BadValue, match=r"ended with code 1 and without a distance: RuntimeError: Invalid path: .*none"):
        speed_fid.run_pytorch_fid(tmp_path / "none", tmp_path / "none.npz", CPU, tmp_path / "weights.pth", 50)
    assert (tmp_path / "torch" / "hub" / "checkpoints" / FILE).resolve() == tmp_path / "weights.pth"
    assert speed_fid._cache(tmp_path / "weights.pth", tmp_path / "torch") == tmp_path / "torch", (
        "and it may be there already"
    )


def test_pytorch_fid_runs_where_sqrtm_has_lost_its_argument(tmp_path, monkeypatch, capsys):
    """A square root without ``disp``, as in SciPy 1.18: the command still comes to its distance."""
    for name, shift in (("a", 0.0), ("b", 2.0)):
        np.savez(tmp_path / f"{name}.npz", mu=np.full(4, shift), sigma=np.eye(4) * (1 + shift))

    class Network:
        """No network is needed where both sides are statistics already."""

        BLOCK_INDEX_BY_DIM: ClassVar = {2048: 3}

        def __init__(self, blocks) -> None:
            pass

        def to(self, device):
            return self

    old = linalg.sqrtm
    monkeypatch.setattr(linalg, "sqrtm", lambda A: old(A))
    monkeypatch.setattr(fid_score, "InceptionV3", Network)
    monkeypatch.setattr(
        sys, "argv", ["pytorch-fid", str(tmp_path / "a.npz"), str(tmp_path / "b.npz"), "--device", "cpu"]
    )
    exec(compile(speed_fid.RESTORED_SQRTM, "restored", "exec"), {})
    # |mu|^2 + tr(1 + 3 - 2 sqrt 3) of four dimensions.
    assert float(capsys.readouterr().out.split("FID:")[1]) == pytest.approx(16 + 4 * (4 - 2 * 3**0.5), rel=1e-6)


def test_grey_images_are_refused(tiny, tmp_path):
    with pytest.raises(BadValue, match="have 1 channels"):
        speed_fid.measure_against_pytorch_fid(
            make_bench("tiny"), torch.zeros(2, 1, 8, 8), tmp_path, cell=CELL, n=20, compiled=False
        )


# Faster features


def test_faster_features_are_the_same_in_any_batch():
    torch.manual_seed(0)
    pixels = torch.randint(256, (7, 3, 8, 8), dtype=torch.uint8)

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.sizes = nn.Conv2d(3, 5, 3), []

        def forward(self, pixels):
            self.sizes.append(len(pixels))
            return self.layer(pixels.float() / 255).mean((2, 3))

    network = Network()
    expected = network(pixels)
    fast = FastNetwork(network, 3, compile=False)
    found = fast(pixels)
    assert network.sizes[1:] == [3, 3, 3] and found.shape == (7, 5) and found.dtype == torch.float32
    assert torch.allclose(found, expected, atol=2e-3) and not torch.equal(found, expected), "float16, and near"
    with pytest.raises(BadValue, match="cifar10-resnet are fast as they are"):
        make_fast(NetworkFeatures("cifar10-resnet", network, 5, "", "FD", CPU), 3)


# Against the authors


@pytest.fixture(scope="module")
def authors(bench, images):
    reference = FeatureStatistics(12, "inception-2015", FEATURES.sha256).update(Vectors()(to_uint8(images)))
    return speed_tuning.measure_against_authors(
        bench,
        images[:6],
        "generated",
        cell=Cell("ddim", "uniform", 3),
        iterations=2,
        features=FEATURES,
        reference=reference,
        n=20,
    )


def test_tuning_rows_say_what_the_timings_are_worth(bench, images, authors):
    assert [row["unit"] for row in authors] == ["s", "loss", "loss", "loss", "loss", "FD", "FD"]
    assert authors[0]["ratio"] == pytest.approx(authors[0]["peer"] / authors[0]["ours"], rel=1e-2)
    cell, held_out = Cell("ddim", "uniform", 3), images[3:6]
    for config, column, words in (
        (speed_tuning.OURS, "ours", "3 steps, colour, 3 generated images, parallel"),
        (speed_tuning.TuneConfig(iterations=2), "peer", "3 steps, colour, 3 generated images, parallel"),
    ):
        timing = bench.tune(cell, config, images[:3], "generated").timing
        for objective in ("consistency", "truncation"):
            row = by(authors, f"{objective} of 3 held-out images, ddim, uniform, {words}")
            assert row[column] == pytest.approx(
                speed_tuning.held_out_loss(bench, cell, timing, held_out, objective), rel=1e-4
            )


def test_held_out_loss_is_the_loss_that_is_minimised(bench, images):
    """On the images and the noise of the tuning it is the tuner's own record of the tuned losses."""
    cell = Cell("ddim", "uniform", 3)
    config = speed_tuning.TuneConfig(optimiser="search", seed=1)
    timing = bench.tune(cell, config, images[:4], "generated").timing
    losses = timing.tuning["loss_tuned"]
    assert speed_tuning.held_out_loss(bench, cell, timing, images[:4], "consistency") == pytest.approx(
        sum(losses) / len(losses), rel=1e-4
    )
    with pytest.raises(BadValue, match="no step but the last"):
        speed_tuning.held_out_loss(bench, Cell("ddim", "uniform", 1), None, images[:2], "consistency")
    with pytest.raises(BadValue, match="at least 2 are needed, got 1"):
        speed_tuning.measure_against_authors(bench, images[:1], "generated", cell=cell)


# Several processes


def test_two_processes_against_one_in_one_run(tiny):
    said = launch(
        tiny,
        2,
        "speed",
        "--against",
        "one-process",
        "--model",
        "tiny",
        "--features",
        "digits-resnet",
        "--source",
        "generated",
        "--images",
        "12",
        "--samples",
        "20",
        "--batch",
        "1",
        "--nfe",
        "2",
        "--results",
        "runs/speed.csv",
    )
    rows = read_rows(tiny / "runs" / "speed.csv", SPEED_COLUMNS)
    assert len(rows) == 2 and set(rows["device"]) == {"2 x cpu (1 threads)"} and said.count("2 rows written") == 1
    assert rows["what"][0].endswith("2 processes, peer one") and rows["unit"][0] == "images/s"
    assert rows["ratio"][0] == pytest.approx(rows["ours"][0] / rows["peer"][0], rel=1e-2)
    assert (
        rows["what"][1].endswith("distance by 2 processes and by one, relative difference")
        and rows["unit"][1] == "share"
    )
    assert rows["ours"][1] < 1e-6 and np.isnan(rows["ratio"][1])


def test_distances_that_rounding_does_not_explain_are_refused(monkeypatch, bench, tmp_path):
    """The second process is not there, and the first measures other samples as both."""
    values = iter((2.0, 2.000001, 2.0, 2.00001))
    monkeypatch.setattr(speed_world, "measure", lambda *_, **__: Measured(next(values), 0, 0, 1))
    monkeypatch.setattr(speed_world, "warm_up", lambda *_: None)
    monkeypatch.setattr(World, "gather", lambda self, value: [value])
    features = SimpleNamespace(name="planted")
    options = {"cell": Cell("ddim", "uniform", 2), "n": 20, "how": "float32"}
    rows = speed_world.measure_against_one_process(bench, features, None, tmp_path, World(0, 2), **options)
    assert rows[1]["ours"] == pytest.approx(5e-7) and rows[1]["device"].startswith("2 x ")
    with pytest.raises(
        BadValue,
        match=r"one process measured 2\.0 and 2 measured 2\.00001, which should be the same but for 1e-06; with --compile",
    ):
        speed_world.measure_against_one_process(bench, features, None, tmp_path, World(0, 2), **options)


def tt(*words) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["tt", *words])
        return " ".join(CliRunner().invoke(app, list(words)).output.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--against", "one-process", "--source", "generated", "--images", "2"), "there is one process only"),
        (("--against", "nobody"), "unknown peer 'nobody'"),
        (("--against", "authors", "--iterations", "0"), "iterations must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_measured(tiny, words, message):
    assert message in tt("speed", "--model", "tiny", "--features", "digits-resnet", *words)


def test_the_interval_is_the_same_on_the_reference_s_own_device(bench, images):
    """A reference is moved to the features' device; there is only one here, and the value is the plain one."""
    reference = speed_fid.statistics_of(images, FEATURES, 8)
    found = measure(bench.sampler(CELL), FEATURES, reference, 20, batch=8)
    assert found.low <= found.value <= found.high and reference.mean.device == CPU
