"""``tt train``, ``tt features``, ``tt stats`` and ``tt info``."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_cli import fails, succeeds

from tt_lib.datasets import load_dataset
from tt_lib.datasets.images import by_hash
from tt_lib.files import file_hash, read_json
from tt_lib.metrics.features import load_features, statistics_of
from tt_lib.metrics.statistics import FeatureStatistics
from tt_lib.networks.config import DEFAULTS, FEATURE_DEFAULTS
from tt_lib.networks.unet import CARD, WEIGHTS
from tt_lib.rows import FD_COLUMNS, TRAINING_COLUMNS, read_rows

pytestmark = pytest.mark.usefixtures("one_thread")
TRAIN = ("train", "--dataset", "digits", "--images", 64, "--batch", 32, "--width", 32, "--out", "runs/first")


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
    assert "cannot start from first, another architecture" in fails(*words, "--from", "runs/first")
    succeeds(*words, "--attention", "8,4", "--from", "runs/first")
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


@pytest.fixture(scope="module")
def pictures(project):
    """The digits as a folder of a user's own, in two splits and in one; the digest of the training images."""
    for split in ("train", "test"):
        pixels = load_dataset("digits", split).pixels[:]
        Path("pictures").mkdir(exist_ok=True)
        np.savez(f"pictures/{split}.npz", images=pixels.permute(0, 2, 3, 1))
    for i, picture in enumerate(load_dataset("digits", "test").pixels[:].squeeze(1).numpy()):
        place = Path("one split", f"{i % 3}", f"{i}.png")
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(place)
    train = load_dataset("digits", "train")
    return by_hash(train.pixels[:], torch.zeros_like(train.labels))[1]


def test_images_of_ones_own(pictures, monkeypatch):
    """They are a reference, a floor, and tuned on; digits so read give the same numbers, and rows name the images."""
    features, mine = ("--features", "digits-resnet"), f"pictures@{pictures[:16]}"
    evaluate = ("evaluate", "--model", "runs/first", "--nfe", 2, "--n", 20, *features, "--results", "runs/own.csv")
    for words in (("--dataset", "digits"), ("--dataset", "pictures"), ("--dataset", "p", "--data", "pictures")):
        succeeds("floor", *words, *features, "--results", "runs/own.csv")
        succeeds(*evaluate, *words)
    rows = read_rows("runs/own.csv", FD_COLUMNS).set_index(["dataset", "solver"])
    for solver in ("ddim", "floor"):
        for name in (mine, mine.replace("pictures", "p")):
            assert rows.value[name, solver] == pytest.approx(rows.value["digits", solver], rel=1e-4), (name, solver)
            assert rows.reference[name, solver] == "train"
    [path] = Path("data/stats").glob("pictures-*-train-digits-resnet.safetensors")
    statistics = FeatureStatistics.load(path)
    assert statistics.n == 1500 and statistics.facts["images"] == pictures and statistics.shape == (1, 8, 8)
    assert str(path) in fails("stats", "--dataset", "pictures", *features), "what evaluate made is what stats makes"
    # They are read once, and again when they have changed.
    monkeypatch.setattr("tt_lib.metrics.reference.collect_statistics", lambda *a, **k: pytest.fail("read again"))
    succeeds(*evaluate, "--dataset", "pictures/")
    os.utime("pictures/train.npz", ns=(0, 0))
    with pytest.raises(BaseException, match="read again"):
        succeeds(*evaluate, "--dataset", "pictures")
    tune = ("tune", "--model", "runs/first", "--nfe", 2, "--timing", "consistency-parallel,images=2")
    succeeds(*tune, "--dataset", "pictures", "--out", "runs/mine.json")
    assert "it is none of cifar10, digits" in fails(*tune, "--dataset", "my-digits", "--out", "runs/never.json")
    assert "holds the arrays images; accepted: " in fails("stats", *features, "--data", "pictures"), (
        "CIFAR-10 has labels"
    )
    learn = ("learn", "--model", "runs/first", "--nfe", 2, "--dataset", "pictures", "--out", "runs/never.json")
    assert "pictures has none; choose loss=pixels" in fails(*learn)


def test_a_network_for_images_of_ones_own(pictures):
    """Trained on them, with their digest among the settings of the run, and measured against them."""
    words = ("train", "--dataset", "pictures", "--batch", 4, "--width", 32, "--attention", 4, "--out", "runs/own")
    succeeds(*words, "--images", 8, "--stop-after", 1)
    os.utime("pictures/train.npz", ns=(1, 1))
    assert "1/2" not in succeeds(*words, "--images", 8), "it went on: the images are the same"
    card = read_json(Path("runs/own") / CARD)
    assert card["dataset"] == card["training"]["dataset"] == f"pictures@{pictures[:16]}"
    measure = ("--features", "digits-resnet", "--dataset", "pictures", "--results", "runs/trained.csv")
    succeeds("evaluate", "--model", "runs/own", "--nfe", 1, "--n", 20, *measure)
    assert read_rows("runs/trained.csv", FD_COLUMNS).dataset.item() == card["dataset"]
    assert "choose one of: cifar10, digits" in fails("demo", "--model", "runs/own", "--n", 20)
    assert "attention must be at some of the sides [8, 4, 2, 1], got [16]" in fails(*words[:-4], "--out", "runs/never")
    np.savez("odd.npz", images=np.full((4, 12, 12, 1), 9, np.uint8))
    assert "a side that 8 divides, got [1, 12, 12]" in fails("train", "--dataset", "odd.npz", "--out", "runs/never")


def test_images_of_ones_own_in_one_split(pictures):
    words = ("--dataset", "one split", "--features", "digits-resnet")
    succeeds("evaluate", "--model", "runs/first", "--nfe", 2, "--n", 20, *words, "--results", "runs/all.csv")
    row = read_rows("runs/all.csv", FD_COLUMNS).iloc[0]
    assert row["reference"] == "all" and row["dataset"].startswith("one split@")
    [path] = Path("data/stats").glob("one split-*-all-digits-resnet.safetensors")
    assert str(path) in fails("stats", *words)
    message = fails("floor", *words)
    assert "one split has one split, and test images are asked for; put the images into one split/train" in message


def test_sizes_and_channels_are_compared_before_any_work(pictures, monkeypatch):
    monkeypatch.setattr("tt_lib.metrics.reference.collect_statistics", lambda *a, **k: pytest.fail("work"))
    np.savez("large.npz", images=np.full((4, 16, 16, 1), 9, np.uint8))
    np.savez("colour.npz", images=np.full((4, 8, 8, 3), 9, np.uint8))
    evaluate = ("evaluate", "--model", "runs/first", "--nfe", 2, "--n", 20, "--features", "digits-resnet")
    tune = ("tune", "--model", "runs/first", "--nfe", 2, "--out", "runs/never.json", "--timing")
    for name, shape in (("large", "[1, 16, 16]"), ("colour", "[3, 8, 8]")):
        message = fails(*evaluate, "--reference", f"{name}.npz")
        assert f"first has images of [1, 8, 8], {name}-all is of images of {shape}" in message
        message = fails(*tune, "consistency-parallel,images=2", "--dataset", f"{name}.npz")
        assert f"first takes images of [1, 8, 8], those of {name}.npz are {shape}" in message


def test_info(project):
    card = succeeds("info", "runs/first")
    assert "'schedule': 'linear'" in card and "'dataset': 'digits'" in card
    here = succeeds("info")
    assert f"torch {torch.__version__}" in here and "models: \n" in here and "timings: 0" in here
    assert "CIFAR-10: CIFAR-10 not found" in here


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ((*TRAIN, "--attention", "many"), "a list of sides such as 16,8, got 'many'"),
        (("train", "--out", "runs/never"), "CIFAR-10 not found"),
        (("sample", "--model", "digits", "--out", "runs/never.png"), "tt train --dataset digits --out data/pretrained"),
        (("info", "nothing"), "give a model's folder"),
    ],
)
def test_errors(words, part):
    assert part in fails(*words)
