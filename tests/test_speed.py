"""What the rows of speed say is what was done: both sides do the same work, and agree on the result."""

from __future__ import annotations

import sys
from collections import defaultdict
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
from tt_lib.metrics.evaluate import Measured
from tt_lib.metrics.features import Features
from tt_lib.metrics.inception import FILE
from tt_lib.metrics.world import World
from tt_lib.networks.running import make_predictor
from tt_lib.networks.unet import Model
from tt_lib.predictors import Chunked
from tt_lib.rows import SPEED_COLUMNS, read_rows
from tt_lib.schedules import make_schedule
from tt_lib.study import speed
from tt_lib.study.cells import Cell
from tt_lib.study.workbench import Bench, make_bench
from tt_lib.tuning import TuneConfig

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
CELL = Cell("ddim", "uniform", 2)
QUIET = {"tell": lambda text: None}


class Vectors(nn.Module):
    """Features [B, 12] of uint8 pixels."""

    def forward(self, pixels):
        x = pixels.float() / 255
        return torch.cat([x.mean((2, 3)), x.std((2, 3)), x[:, :, 0, 0], x[:, :, 4, 5]], 1)


FEATURES = Features("inception-2015", Vectors(), 12, "ab" * 32, CPU)


@pytest.fixture(scope="module")
def bench():
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
    return Bench(model, Chunked(predictor, 4), predictor, CPU, 4)


@pytest.fixture(scope="module")
def images():
    return torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, one_thread):
    with tiny_project(tmp_path_factory) as folder:
        yield folder


@pytest.fixture
def calls(bench, monkeypatch):
    """The sizes of the batches that the network is asked for."""
    sizes, forward = [], bench.model.network.forward
    monkeypatch.setattr(bench.model.network, "forward", lambda x, *a, **k: sizes.append(len(x)) or forward(x, *a, **k))
    return sizes


def by(rows, words):
    """The one row with these words in it."""
    (row,) = [row for row in rows if words in row["what"]]
    return row


def test_ratios_say_how_many_times_better_ours_is():
    assert [speed.speed_row("a", 2.0, 6.0, unit, CPU)["ratio"] for unit in ("s", "loss", "images/s", "FD")] == [
        3.0,
        3.0,
        0.333,
        0.333,
    ]
    assert speed.speed_row("a", 1 / 3, None, "s", CPU)["ours"] == 0.33333


def test_the_best_of_several_runs_counts(monkeypatch):
    """The jobs take turns, after a first run of each that is not timed."""
    ran, seconds = [], defaultdict(lambda: iter([3.0, 1.0, 2.0, 4.0, 2.0]))
    monkeypatch.setattr(speed, "timed", lambda job: (job() + next(seconds[job]), None))
    assert speed.fastest(lambda: ran.append("a") or 0.0, lambda: ran.append("b") or 10.0) == [1.0, 11.0]
    assert "".join(ran) == "ab" * (1 + speed.REPEATS)


# Our own, and against diffusers


def test_overhead_is_measured_without_the_network_and_beside_the_same_evaluations(bench, calls, monkeypatch):
    monkeypatch.setattr(speed, "REPEATS", 1)
    rows = speed.measure_overhead(bench, [Cell("ddim", "uniform", 3), Cell("ddpm", "uniform", 2)], False, **QUIET)
    assert calls == [4] * 2 * (2 * 3 + 2 * 2), "whole runs and the network alone: each to warm up and for the clock"
    assert [row["what"] for row in rows] == [
        f"{part}, {cell}, batch 4: peer the network"
        for cell in ("ddim, uniform, NFE 3", "ddpm, uniform, NFE 2")
        for part in ("whole run", "solver and engine")
    ]
    for whole, row in zip(rows[::2], rows[1::2], strict=True):
        assert 0 < row["ours"] < row["peer"] == whole["peer"] and whole["ours"] > 0


def test_both_sides_sample_as_many_images_in_as_many_evaluations(bench, calls, monkeypatch):
    monkeypatch.setattr(speed, "REPEATS", 1)
    [row] = speed.measure_against_diffusers(bench, steps=3, n=6, compiled=False, **QUIET)
    assert calls == [4, 4, 4, 2, 2, 2] * 4, "ours and theirs, each once to warm up and once for the clock"
    assert row["unit"] == "images/s" and "float32, eager: peer diffusers' DDIMPipeline" in row["what"]
    monkeypatch.setattr(bench.model, "network", nn.Identity())
    with pytest.raises(BadValue, match="is a Identity"):
        speed.measure_against_diffusers(bench, steps=2, n=2, compiled=False, **QUIET)


# Against pytorch-fid


def pytorch_fid_by_hand(pngs: Path, npz: Path, device, weights, batch: int) -> float:
    """What the command computes from its files: pytorch-fid's own distance, in the features of this test."""
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


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
def test_both_sides_measure_the_same_distance(bench, images, tmp_path, monkeypatch, half):
    """(The same features stand for both precisions here.)"""
    batches: list[int] = []
    monkeypatch.setattr(speed, "inception_weights", lambda home: (home / "none", "random weights"))
    monkeypatch.setattr(speed, "inception_features", lambda weights, device: FEATURES)
    monkeypatch.setattr(speed, "make_fast", lambda features, *_: features)
    monkeypatch.setattr(speed, "run_pytorch_fid", lambda *a: batches.append(a[-1]) or pytorch_fid_by_hand(*a))
    monkeypatch.setattr(speed, "on_gpu", lambda bench: half)
    rows = speed.measure_against_pytorch_fid(bench, images, tmp_path, cell=CELL, n=20, compiled=False, **QUIET)
    assert batches == [50, 500, 50]
    first = "float16" if half else "float32"
    row = by(
        rows,
        f"distance, evaluating ddim, uniform, 2 steps, unet, n 20, inception-2015 (random weights, {first}): peer py",
    )
    # The peer samples in float32, too, but for autocast.
    assert row["ours"] == pytest.approx(row["peer"], rel=1e-4) and row["ours"] > 0.01
    for files in ("by 1 thread, pytorch-fid with batch 50", "by 8 threads, pytorch-fid with batch 500", "DDIMPipeline"):
        found = [row for row in rows if files in row["what"]]
        assert len(found) == 1 + half and len({row["peer"] for row in found}) == 1 and found[0]["unit"] == "s"
        assert all(row["ratio"] == pytest.approx(row["peer"] / row["ours"], rel=1e-2, abs=1e-3) for row in found)
    assert len(rows) == (8 if half else 4) and all(set(row) == set(SPEED_COLUMNS) for row in rows)
    [png, *_] = [np.array(Image.open(tmp_path / "png-2" / f"{seed:06d}.png")) for seed in range(4)]
    generator = torch.Generator().manual_seed(0)
    ends = bench.sampler(CELL)(range(4), start=torch.randn(4, 3, 8, 8, generator=generator)).x
    expected = to_uint8(ends).permute(0, 2, 3, 1).numpy()[0]
    if not half:
        assert np.abs(png.astype(int) - expected).max() <= 1, "diffusers samples what ddim samples"
        own = to_uint8(bench.sampler(CELL)(range(20)).x).permute(0, 2, 3, 1).numpy()
        for folder in ("png-0", "png-1"):
            files = [np.array(Image.open(tmp_path / folder / f"{seed:06d}.png")) for seed in range(20)]
            assert np.array_equal(np.stack(files), own)


def test_a_failing_pytorch_fid_is_an_error_with_its_last_words(tmp_path):
    (tmp_path / "weights.pth").touch()
    for _ in range(2):  # the second time the weights are in the cache already
        with pytest.raises(BadValue, match=r"with code 1 and without a distance: RuntimeError: Invalid path: .*none"):
            speed.run_pytorch_fid(tmp_path / "none", tmp_path / "none.npz", CPU, tmp_path / "weights.pth", 50)
    assert (tmp_path / "torch" / "hub" / "checkpoints" / FILE).resolve() == tmp_path / "weights.pth"


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
    exec(compile(speed.RESTORED_SQRTM, "restored", "exec"), {})
    # |mu|^2 + tr(1 + 3 - 2 sqrt 3) of four dimensions.
    assert float(capsys.readouterr().out.split("FID:")[1]) == pytest.approx(16 + 4 * (4 - 2 * 3**0.5), rel=1e-6)


def test_grey_images_are_refused(tiny, tmp_path):
    with pytest.raises(BadValue, match="have 1 channels"):
        speed.measure_against_pytorch_fid(
            make_bench("tiny"), torch.zeros(2, 1, 8, 8), tmp_path, cell=CELL, n=20, compiled=False, **QUIET
        )


# Against the authors


def test_tuning_rows_say_what_the_timings_are_worth(bench, images):
    cell = Cell("ddim", "uniform", 3)
    rows = speed.measure_against_authors(bench, images[:6], "generated", cell=cell, iterations=2, **QUIET)
    assert [row["unit"] for row in rows] == ["s", "loss", "loss", "loss", "loss"]
    for config, column in ((speed.OURS, "ours"), (TuneConfig(iterations=2), "peer")):
        timing = bench.tune(cell, config, images[:3], "generated").timing
        for objective in ("consistency", "truncation"):
            row = by(
                rows, f"{objective} of 3 held-out images, ddim, uniform, 3 steps, unet, 3 generated images, parallel"
            )
            loss = speed.held_out_loss(bench, cell, timing, images[3:6], objective)
            assert row[column] == pytest.approx(loss, rel=1e-4)


def test_held_out_loss_is_the_loss_that_is_minimised(bench, images):
    """On the images and the noise of the tuning it is the tuner's own record of the tuned losses."""
    cell = Cell("ddim", "uniform", 3)
    timing = bench.tune(cell, TuneConfig(optimiser="search", seed=1), images[:4], "generated").timing
    losses = timing.tuning["loss_tuned"]
    found = speed.held_out_loss(bench, cell, timing, images[:4], "consistency")
    assert found == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    with pytest.raises(BadValue, match="no step but the last"):
        speed.held_out_loss(bench, Cell("ddim", "uniform", 1), None, images[:2], "consistency")
    with pytest.raises(BadValue, match="at least 2 are needed, got 1"):
        speed.measure_against_authors(bench, images[:1], "generated", cell=cell, iterations=1, **QUIET)


# Several processes


def test_two_processes_against_one_in_one_run(tiny):
    words = "--against one-process --model tiny --features digits-resnet --source generated --images 12 --samples 20"
    said = launch(tiny, 2, "speed", *words.split(), "--batch", "1", "--nfe", "2", "--results", "runs/speed.csv")
    rows = read_rows(tiny / "runs" / "speed.csv", SPEED_COLUMNS)
    assert len(rows) == 2 and set(rows["device"]) == {"2 x cpu (1 threads)"} and said.count("2 rows written") == 1
    assert rows["what"][0].endswith("2 processes, peer one") and rows["unit"][0] == "images/s"
    assert rows["ratio"][0] == pytest.approx(rows["ours"][0] / rows["peer"][0], rel=1e-2)
    assert rows["what"][1].endswith("distance by 2 processes and by one, relative difference")
    assert rows["ours"][1] < 1e-6 and np.isnan(rows["ratio"][1])


def test_distances_that_rounding_does_not_explain_are_refused(monkeypatch, bench, tmp_path):
    """The second process is not there, and the first measures other samples as both."""
    values = iter((2.0, 2.000001, 2.0, 2.00001))
    monkeypatch.setattr(speed, "measure", lambda *_, **__: Measured(next(values), 0, 0))
    monkeypatch.setattr(speed, "warm_up", lambda *_: None)
    monkeypatch.setattr(World, "gather", lambda self, value: [value])
    metric, options = SimpleNamespace(features=FEATURES), {"cell": CELL, "n": 20, "compiled": False, **QUIET}
    rows = speed.measure_against_one_process(bench, metric, tmp_path, World(0, 2), **options)
    assert rows[1]["ours"] == pytest.approx(5e-7) and rows[1]["device"].startswith("2 x ")
    with pytest.raises(
        BadValue, match=r"measured 2\.0 and 2 measured 2\.00001, which should be the same but for 1e-06"
    ):
        speed.measure_against_one_process(bench, metric, tmp_path, World(0, 2), **options)


# The command


def tt(*words) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["tt", "speed", "--model", "tiny", *words])
        return " ".join(CliRunner().invoke(app, sys.argv[1:]).output.split())


SMALL = ("--nfe", "2", "--features", "digits-resnet", "--source", "generated", "--images", "2", "--batch", "5")


def test_our_own_speeds_by_command(tiny, monkeypatch):
    monkeypatch.setattr(speed, "REPEATS", 1)
    said = tt(*SMALL, "--n", "12", "--results", "runs/own.csv")
    rows = read_rows("runs/own.csv", SPEED_COLUMNS)
    assert "9 rows written to runs/own.csv" in said and rows["unit"].tolist() == ["s"] * 7 + ["images/s"] * 2
    tuning, sampling, evaluating = rows.iloc[6:].to_dict("records")
    assert tuning["ratio"] == pytest.approx(tuning["peer"] / tuning["ours"], rel=2e-3)
    assert sampling["ratio"] == pytest.approx(sampling["ours"] / sampling["peer"], rel=2e-3)
    assert np.isnan(evaluating["peer"]) and "tuned, peer untuned" in said


@pytest.mark.parametrize(("against", "rows"), [("diffusers", 1), ("authors", 5)])
def test_peers_by_command(tiny, monkeypatch, against, rows):
    monkeypatch.setattr(speed, "REPEATS", 1)
    words = ("--against", against, *SMALL, "--iterations", "2", "--results", f"runs/{against}.csv")
    assert f"{rows} rows written" in tt(*words, *(("--n", "4") if against == "diffusers" else ()))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--against", "one-process"), "there is one process only"),
        (("--against", "nobody"), "unknown peer 'nobody'; choose one of: authors, diffusers, one-process, pytorch-fid"),
        (("--against", "authors", "--iterations", "0"), "iterations must be at least 1, got 0"),
        (("--n", "1"), "n must be at least 2, got 1"),
        (("--against", "pytorch-fid"), "have 1 channels"),
    ],
)
def test_what_cannot_be_measured(tiny, words, message):
    assert message in tt(*SMALL, *words, "--results", "runs/never.csv")
