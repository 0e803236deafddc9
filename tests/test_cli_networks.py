"""``tt train``, ``tt features``, ``tt stats`` and ``tt info``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_cli import fails, succeeds

from tt_lib.datasets import load_dataset
from tt_lib.files import file_hash, read_json
from tt_lib.metrics.features import load_features, statistics_of
from tt_lib.metrics.statistics import FeatureStatistics
from tt_lib.networks.config import DEFAULTS, FEATURE_DEFAULTS
from tt_lib.networks.unet import CARD, WEIGHTS
from tt_lib.rows import FD_COLUMNS, TRAINING_COLUMNS, read_rows

pytestmark = pytest.mark.usefixtures("one_thread")
TRAIN = ("train", "--dataset", "digits", "--images", 64, "--batch", 32, "--width", 32, "--out", "runs/first")
NAMES = ("digits", "my-digits")


@pytest.fixture(scope="module", autouse=True)
def project(tmp_path_factory, one_thread):
    """A folder to work in, with a network, features and their statistics in it; what the commands printed."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setenv("TT_DATA", "data")
        patch.setenv("TT_COMMIT", "test")
        for name in ("TT_CIFAR10", "TT_COMMAND"):
            patch.delenv(name, raising=False)
        features = ("features", "--dataset", "digits", "--epochs", 2, "--out", "data/pretrained/digits-resnet")
        yield {
            "train": succeeds(*TRAIN, "--lr", 1e-3, "--dropout", 0.2, "--attention", "8,4", "--min-snr", 5),
            "features": succeeds(*features),
            "stats": succeeds("stats", "--dataset", "digits", "--features", "digits-resnet"),
        }


def test_help_names_the_defaults_of_the_code():
    for command, defaults, names in (
        ("train", DEFAULTS, ("images", "width", "batch", "lr", "dropout", "attention", "min_snr")),
        ("features", FEATURE_DEFAULTS, ("epochs", "batch")),
    ):
        text = " ".join(succeeds(command, "--help").replace("│", " ").split())
        for name in names:
            cifar10, digits = (getattr(defaults[dataset], name) for dataset in ("cifar10", "digits"))
            words = [
                str(value).strip("(),") if isinstance(value, tuple) else f"{value:,}" for value in (cifar10, digits)
            ]
            expected = f"[default: {words[0]}; digits {words[1]}]" if cifar10 != digits else f"[default: {words[0]}]"
            assert expected in text, name


def test_train(project):
    card = read_json(Path("runs/first") / CARD)
    options = {"images": 64, "batch": 32, "lr": 1e-3, "dropout": 0.2, "attention": [8, 4], "min_snr": 5, "width": 32}
    assert options.items() <= card["training"].items() and card["command"].startswith("tt train --dataset digits")
    assert "model folder: runs/first" in project["train"] and "2/2" in project["train"]
    assert list(read_rows("data/results/training.csv", TRAINING_COLUMNS).query("run == 'first'").images) == [32, 64]


def test_start_from_a_network():
    words = ("train", "--dataset", "digits", "--images", 32, "--batch", 32, "--width", 32, "--out", "runs/second")
    assert "cannot start from first, another architecture" in fails(*words, "--start", "runs/first")
    succeeds(*words, "--attention", "8,4", "--start", "runs/first")
    start = read_json(Path("runs/second") / CARD)["training"]["start"]
    assert start == f"first {file_hash(Path('runs/first') / WEIGHTS)}"


def test_features(project):
    folder = Path("data/pretrained/digits-resnet")
    config = read_json(folder / "config.json")
    assert (config["epochs"], config["batch"], config["widths"], config["flip"]) == (2, 100, [16, 32], False)
    assert f"{folder}: test accuracy {100 * config['test_accuracy']:.2f} %" in project["features"]
    assert read_rows("data/results/training.csv", TRAINING_COLUMNS).query("run == 'digits-resnet'").step.max() == 30


def test_stats(project):
    path = Path("data/stats/digits-train-digits-resnet.safetensors")
    features = load_features("digits-resnet")
    written, expected = FeatureStatistics.load(path), statistics_of(load_dataset("digits", "train").pixels, features)
    assert written.n == 1500 and torch.allclose(written.mean, expected.mean, rtol=1e-6)
    assert torch.allclose(written.scatter, expected.scatter, rtol=1e-6)
    assert f"{path}: 1500 images, 32 features" in project["stats"]
    bank = succeeds("stats", "--dataset", "digits", "--features", "digits-resnet", "--bank", 50)
    assert "digits-train-digits-resnet-bank.safetensors: features of 50 images" in bank


def test_images_of_ones_own(project):
    """They are a reference, a floor, and tuned on, under a name of their own; digits so read give the same numbers."""
    for split in ("train", "test"):
        images = load_dataset("digits", split)
        Path("pictures").mkdir(exist_ok=True)
        np.savez(f"pictures/{split}.npz", images=images.pixels.permute(0, 2, 3, 1), labels=images.labels)
    mine = ("--dataset", "my-digits", "--data", "pictures")
    features = ("--features", "digits-resnet")
    missing = fails("floor", *mine, *features)
    assert "tt stats --dataset my-digits --data FOLDER --split train --features digits-resnet" in missing
    succeeds("stats", *mine, *features)
    stats = {name: FeatureStatistics.load(f"data/stats/{name}-train-digits-resnet.safetensors") for name in NAMES}
    assert torch.allclose(stats["my-digits"].mean, stats["digits"].mean, rtol=1e-6) and stats["my-digits"].n == 1500
    for words in (mine, ("--dataset", "digits")):
        succeeds("floor", *words, *features, "--results", "runs/floor.csv")
    rows = read_rows("runs/floor.csv", FD_COLUMNS).set_index("dataset")
    assert rows.value["my-digits"] == pytest.approx(rows.value["digits"], rel=1e-4)
    tune = ("tune", "--model", "runs/first", "--nfe", 2, "--timing", "consistency-parallel,images=2")
    succeeds(*tune, *mine, "--out", "runs/mine.json")
    assert "is none of cifar10, digits" in fails(*tune, "--dataset", "my-digits", "--out", "runs/never.json")
    assert "lower-case letters" in fails("stats", "--dataset", "My-digits", *features, "--data", "pictures")
    assert "unknown data set to train on 'my-digits'" in fails("train", *mine, "--out", "runs/never")
    assert "are not CIFAR-10's train images" in fails("stats", *features, "--data", "pictures")


def test_info(project):
    card = succeeds("info", "runs/first")
    assert "'schedule': 'linear'" in card and "'dataset': 'digits'" in card
    here = succeeds("info")
    assert f"torch {torch.__version__}" in here and "models: \n" in here and "timings: 0" in here
    assert "CIFAR-10: CIFAR-10 not found" in here


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (TRAIN, "runs/first"),
        (("features", "--out", "data/pretrained/digits-resnet"), "data/pretrained/digits-resnet/config.json"),
        (
            ("stats", "--dataset", "digits", "--features", "digits-resnet"),
            "data/stats/digits-train-digits-resnet.safetensors",
        ),
    ],
)
def test_refuses_to_overwrite(words, part):
    before = {file: file.read_bytes() for file in Path().rglob("*") if file.is_file()}
    message = fails(*words)
    assert part in message and "--force" in message and message.startswith("AlreadyDone: ")
    assert {file: file.read_bytes() for file in Path().rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ((*TRAIN, "--attention", "many"), "a list of sides such as 16,8, got 'many'"),
        (("train", "--dataset", "mnist", "--out", "runs/never"), "cifar10, digits"),
        (("train", "--out", "runs/never"), "CIFAR-10 not found"),
        (("sample", "--model", "digits", "--out", "runs/never.png"), "tt train --dataset digits --out data/pretrained"),
        (("info", "nothing"), "give a model's folder"),
    ],
)
def test_errors(words, part):
    assert part in fails(*words)
