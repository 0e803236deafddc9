"""The published protocols offline: stand-ins under the real names, in the caches of both hubs, and the whole path."""

from __future__ import annotations

import json
import os
import socket
import sys
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from test_datasets import encode, pretend, write_parquet
from test_unet import GOOGLE_CONFIG, GOOGLE_SCHEDULER
from torch import nn
from typer.testing import CliRunner

from tt_lib.cli import app
from tt_lib.datasets.images import by_hash
from tt_lib.errors import BadValue, MissingFile, all_there
from tt_lib.files import PACKAGE_ROOT, file_hash
from tt_lib.metrics import inception
from tt_lib.rows import FD_COLUMNS, read_rows
from tt_lib.study.cells import Recipe
from tt_lib.study.tables import PUBLISHED, find_table, published_beside, read_tables
from tt_lib.tuning import TuneConfig

pytestmark = pytest.mark.usefixtures("one_thread")
SHIPPED = PACKAGE_ROOT / "data" / "tables"


class Small(nn.Module):
    """In place of Inception: its weights are a file, its features are six."""

    def __init__(self, weights: Path) -> None:
        super().__init__()
        self.sha256, self.layer = file_hash(weights), nn.Conv2d(3, 6, 8, stride=8)
        self.layer.load_state_dict(torch.load(weights))
        self.requires_grad_(False)

    def forward(self, pixels):
        return self.layer(pixels.float() / 255).relu().mean((2, 3))


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """A machine without a network; yields the folder that is home, cache and work folder."""

    def refuse(*args, **options):
        raise AssertionError("tried to connect")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("TT_INCEPTION", "TT_CIFAR10"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TT_DATA", "data")
    monkeypatch.setenv("TT_COMMIT", "test")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "tables").mkdir(parents=True)
    for name in ("paper.toml", "bedroom.toml", "published.csv"):
        os.symlink(SHIPPED / name, tmp_path / "data" / "tables" / name)
    return tmp_path


def plant_network(home: Path, name: str = "ddpm-cifar10-32") -> None:
    """A tiny network for 32x32 pixels where the Hub's client keeps one of Google's."""
    repository = home / "hub" / f"models--google--{name}"
    snapshot = repository / "snapshots" / ("0" * 40)
    torch.manual_seed(0)
    network = UNet2DModel.from_config(
        GOOGLE_CONFIG
        | {"block_out_channels": [8, 8], "norm_num_groups": 4, "layers_per_block": 1}
        | {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
    )
    network.save_pretrained(snapshot)
    (snapshot / "scheduler_config.json").write_text(json.dumps(GOOGLE_SCHEDULER))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)


def plant_inception(home: Path, monkeypatch) -> None:
    """Small features where torch hub keeps Inception's weights."""
    place = home / "torch" / "hub" / "checkpoints" / inception.FILE
    place.parent.mkdir(parents=True)
    torch.manual_seed(1)
    torch.save(nn.Conv2d(3, 6, 8, stride=8).state_dict(), place)
    monkeypatch.setattr(inception, "HASH_PREFIX", file_hash(place)[:8])
    monkeypatch.setattr(inception, "DIMENSION", 6)
    monkeypatch.setattr(inception, "InceptionFeatures", Small)


def tt(*words) -> tuple[int, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["tt", *map(str, words)])
        answer = CliRunner().invoke(app, list(map(str, words)))
    if answer.exception and not isinstance(answer.exception, SystemExit):
        raise answer.exception
    return answer.exit_code, answer.output


def shrunk(home: Path, name: str, cells: dict[str, str]) -> Path:
    """The shipped table with tiny numbers: every sampler of it, and one iteration of Adam."""
    text = (SHIPPED / f"{name}.toml").read_text()
    numbers = {"n = 50000": "n = 20", "iterations = 500": "iterations = 1", "batch = 64": "batch = 1"}
    for before, after in {**numbers, "images = 1024": "images = 3", **cells}.items():
        assert before in text, before
        text = text.replace(before, after)
    path = home / "shrunk.toml"
    path.write_text(text)
    return path


def test_the_whole_path_with_stand_ins(offline, monkeypatch):
    plant_network(offline)
    plant_inception(offline, monkeypatch)
    write_parquet(offline / "images")
    pretend(monkeypatch, offline)
    monkeypatch.setenv("TT_CIFAR10", str(offline / "images"))
    code, said = tt("stats", "--features", "inception-2015")
    assert code == 0, said
    cells = {
        "nfe = [10, 25, 50]": "nfe = 10",
        "nfe = [10, 20, 50]": "nfe = 2",
        "nfe = 100": "nfe = 1",
        '"ddpm", "analytic-ddim,pixels=1.0", "analytic-ddpm"': '"analytic-ddim,pixels=1.0"',
    }
    path = shrunk(offline, "paper", cells)
    code, said = tt("table", "--config", path, "--batch", 20, "--results", "fd.csv", "--fast-features")
    assert code == 0, said
    rows = read_rows("fd.csv", FD_COLUMNS)
    assert (
        set(rows["metric"]) == {"FID"} and set(rows["model"]) == {"google/ddpm-cifar10-32"} and set(rows["n"]) == {20}
    )
    assert len(rows) == 8 and (rows["timing"] == "consistency-sequential").sum() == 3
    assert rows["value"].nunique() == 8, "eight samplers, and none is another"
    printed = {line.split(":")[0]: line for line in said.splitlines() if "FID" in line}
    assert "; published 21.31 (Bao et al." in printed["ddim uniform 10 untuned"]
    assert "published" not in printed["ddim uniform 10 consistency-sequential"]
    timings = list(Path("data/timings/google--ddpm-cifar10-32").glob("*.json"))
    assert len(timings) == 3 and json.loads(timings[0].read_text())["tuning"]["optimiser"] == "adam"


def test_the_headline_with_stand_ins(offline, monkeypatch):
    """One command: the statistics of the images are made on the way, and both published values stand beside ours."""
    plant_network(offline, "ddpm-bedroom-256")
    plant_inception(offline, monkeypatch)
    generator = np.random.default_rng(0)
    pictures = generator.integers(0, 256, (12, 3, 32, 32), dtype=np.uint8)
    for i, pixels in enumerate(pictures):
        place = offline / "images" / f"{i % 3}" / f"{i}.webp"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(encode(pixels, "WEBP"))
    path = shrunk(offline, "bedroom", {"nfe = 10": "nfe = 2"})
    words = ("table", "--config", path, "--data", "images", "--batch", 20, "--results", "fd.csv")
    code, said = tt(*words, "--dry-run")
    assert code == 0 and "2 of 2 cells to do" in said, said
    code, said = tt(*words)
    assert code == 0, said
    rows = read_rows("fd.csv", FD_COLUMNS)
    digest = by_hash(torch.from_numpy(pictures), torch.zeros(12, dtype=torch.int64))[1]
    assert set(rows["dataset"]) == {f"lsun-bedroom@{digest[:16]}"} and set(rows["reference"]) == {"all"}
    assert set(rows["metric"]) == {"FID"} and set(rows["model"]) == {"google/ddpm-bedroom-256"}
    assert rows["timing"].tolist() == ["untuned", "consistency-sequential"] and rows["value"].nunique() == 2
    for row, published in zip(rows.to_dict("records"), ("9.65", "6.07"), strict=True):
        assert f"published {published} (Xia et al. 2024" in published_beside({**row, "nfe": 10})
    code, said = tt(*words, "--dry-run")
    assert code == 0 and "0 of 2 cells to do" in said, said
    # Images that were touched are read again; as they are the same images, no cell is measured again.
    os.utime(offline / "images" / "0" / "0.webp", ns=(0, 0))
    assert "0 rows written" in tt(*words)[1]
    # One image more is another reference, and the stored timing was not tuned on its images.
    (offline / "images" / "more.webp").write_bytes(encode(255 - pictures[0], "WEBP"))
    code, said = tt(*words)
    assert code == 2 and "tuned on other images" in " ".join(said.split()), said
    for path in Path("data/timings").rglob("*.json"):
        path.unlink()
    code, said = tt(*words)
    assert code == 0 and "2 rows written" in said and read_rows("fd.csv", FD_COLUMNS)["dataset"].nunique() == 2


def test_all_that_is_missing_is_named_at_once(offline):
    code, said = tt("table", "--config", "paper")
    message = " ".join(said.split())
    assert code == 2 and message.startswith("error: cannot load")
    for words in (
        inception.FILE,
        inception.URL,
        "TT_INCEPTION",
        "cannot load 'google/ddpm-cifar10-32'",
        "give its folder",
        "tt stats --dataset cifar10 --split train --features inception-2015",
    ):
        assert words in message, words


@pytest.mark.parametrize(
    ("name", "model", "dataset"),
    [("paper", "google/ddpm-cifar10-32", "cifar10"), ("bedroom", "google/ddpm-bedroom-256", "lsun-bedroom")],
)
def test_the_tables_are_the_protocol(name, model, dataset):
    (table,) = read_tables(SHIPPED / f"{name}.toml")
    assert (table.model, table.features, table.n, table.dataset) == (model, ("inception-2015",), 50_000, dataset)
    recipes = {table.recipe(cell) for cell in table.cells} - {None}
    assert recipes == {Recipe(TuneConfig(), 1024, "real")}, "the defaults of the authors' code"
    rows = read_rows(SHIPPED / "published.csv", PUBLISHED)
    assert rows["source"].str.contains("arXiv").all() and not rows.duplicated(list(PUBLISHED[:7])).any()
    cells = {astuple(cell) for cell in table.cells if cell.timing == "untuned" or name == "bedroom"}
    rows = rows[rows["dataset"] == dataset]
    published = set(rows[["solver", "grid", "nfe", "timing", "eta"]].itertuples(index=False, name=None))
    assert cells <= published, "each of these cells stands beside a published value"


def test_published_values_stand_only_beside_what_they_are_of():
    row = {"dataset": "cifar10", "metric": "FID", "solver": "ddim", "grid": "uniform", "nfe": 10, "eta": 0.0}
    row |= {"timing": "untuned", "model": "ddpm"}
    assert "published 21.31" in published_beside(row)
    assert published_beside(row | {"model": "ddpm,path=flow"}) == "", "another path, another sampler"
    others = {"metric": "FD (cifar10-resnet)", "timing": "consistency-sequential", "eta": 1.0, "grid": "karras"}
    for name, other in others.items():
        assert published_beside(row | {name: other}) == "", name


def test_tables_by_name_and_by_path(offline):
    path = Path("data/tables/paper.toml")
    assert find_table("paper") == path == find_table(path) and find_table("nobody") == Path("nobody")
    Path("paper").write_text("")
    assert find_table("paper") == Path("paper"), "a path goes before a name"


def test_all_there():
    def missing(name):
        raise MissingFile(f"no {name}")

    assert all_there(lambda: 1, lambda: 2) == [1, 2]
    with pytest.raises(MissingFile, match="no a; and no b"):
        all_there(lambda: missing("a"), lambda: 1, lambda: missing("b"))
    with pytest.raises(BadValue):
        all_there(lambda: missing("a"), lambda: TuneConfig(batch=0))
