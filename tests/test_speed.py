"""What the rows of speed say is what was done: both sides do the same work, and agree on the result."""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from PIL import Image
from pytorch_fid import fid_score
from scipy import linalg
from test_evaluate import tiny_project
from torch import nn
from typer.testing import CliRunner

from tt_lib.cli import app
from tt_lib.datasets import to_uint8
from tt_lib.errors import BadValue
from tt_lib.metrics.features import Features
from tt_lib.networks.running import make_predictor
from tt_lib.networks.unet import Model
from tt_lib.predictors import Chunked
from tt_lib.rows import SPEED_COLUMNS, read_rows
from tt_lib.schedules import make_schedule
from tt_lib.study import speed
from tt_lib.study.cells import Cell
from tt_lib.study.workbench import Bench

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
    ratios = [speed.speed_row("a", 2.0, 6.0, unit, CPU)["ratio"] for unit in ("s", "images/s", "FD")]
    assert ratios == [3.0, 0.333, 0.333]
    assert speed.speed_row("a", 1 / 3, None, "s", CPU)["ours"] == 0.33333


def test_the_best_of_several_runs_counts(monkeypatch):
    """The jobs take turns, after a first run of each that is not timed."""
    ran, seconds = [], defaultdict(lambda: iter([3.0, 1.0, 2.0, 4.0, 2.0]))
    monkeypatch.setattr(speed, "timed", lambda job: (job() + next(seconds[job]), None))
    assert speed.fastest(lambda: ran.append("a") or 0.0, lambda: ran.append("b") or 10.0) == [1.0, 11.0]
    assert "".join(ran) == "ab" * (1 + speed.REPEATS)


# Against diffusers


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


# The command


def tt(*words) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["tt", "speed", "--model", "tiny", *words])
        return " ".join(CliRunner().invoke(app, sys.argv[1:]).output.split())


SMALL = ("--nfe", "2", "--source", "generated", "--images", "2", "--batch", "5")


def test_a_peer_by_command(tiny, monkeypatch):
    monkeypatch.setattr(speed, "REPEATS", 1)
    said = tt("--against", "diffusers", *SMALL, "--n", "4", "--results", "runs/diffusers.csv")
    [row] = read_rows("runs/diffusers.csv", SPEED_COLUMNS).to_dict("records")
    assert "1 rows written to runs/diffusers.csv" in said and row["unit"] == "images/s"
    assert row["ratio"] == pytest.approx(row["ours"] / row["peer"], rel=2e-3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--against", "nobody"), "unknown peer 'nobody'; choose one of: diffusers, pytorch-fid"),
        (("--against", "pytorch-fid"), "have 1 channels"),
    ],
)
def test_what_cannot_be_measured(tiny, words, message):
    assert message in tt(*SMALL, *words, "--results", "runs/never.csv")
