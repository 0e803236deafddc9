"""Metrics by name: features with their shipped statistics and bank; what is missing, damaged or of other weights."""

from __future__ import annotations

from copy import copy

import pytest
import torch
from test_cli import EVALUATE, fails, project, succeeds  # noqa: F401 - a fixture

from tt_lib.datasets import load_dataset
from tt_lib.errors import BadValue, CorruptFile, MissingFile
from tt_lib.metrics.features import load_features, statistics_of
from tt_lib.metrics.reference import check_names, collect_bank, load_metric, reference_path, save_bank
from tt_lib.rows import FD_COLUMNS, read_rows

pytestmark = pytest.mark.usefixtures("one_thread", "project")
NAMES = ("digits-resnet", "digits-simclr")
COMMAND = "tt stats --dataset digits --split train --features digits-resnet"


@pytest.fixture
def features(project):  # noqa: F811
    for path in (project / "data" / "stats").glob("*"):
        path.unlink()
    return load_features("digits-resnet")


def test_a_bank_is_of_images_drawn_without_replacement(features):
    pixels = load_dataset("digits", "train").pixels
    rows = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))[:50]
    bank = collect_bank(pixels, features, 50)
    assert torch.equal(bank, features(pixels[rows]).half()) and len(set(rows.tolist())) == 50
    for count in (1, len(pixels) + 1):
        with pytest.raises(BadValue, match=f"got {count}"):
            collect_bank(pixels, features, count)


def test_what_is_saved_is_loaded(features):
    statistics = statistics_of(load_dataset("digits", "test").pixels, features)
    statistics.save(reference_path("digits", "test", features.name))
    vectors = torch.randn(5, features.dimension).half()
    save_bank(reference_path("digits", "test", features.name, bank=True), vectors, features, {})
    metric = load_metric("digits-resnet", "digits", split="test", bank=True)
    assert metric.features.sha256 == features.sha256 and metric.features.metric == "FD (digits-resnet)"
    assert torch.equal(metric.reference.mean, statistics.mean)
    assert torch.equal(metric.bank, vectors)
    assert load_metric("digits-resnet", "digits", split="test").bank is None


def test_files_that_are_missing_damaged_or_of_other_weights(features):
    def fails_with(error, message, bank=False):
        with pytest.raises(error, match=message):
            load_metric("digits-resnet", "digits", bank=bank)

    fails_with(MissingFile, f"no feature statistics at .*`{COMMAND}`")
    statistics = statistics_of(load_dataset("digits", "train").pixels[:20], features)
    path = statistics.save(reference_path("digits", "train", features.name))
    fails_with(MissingFile, f"no bank of features at .*`{COMMAND} --bank 10000`", bank=True)
    bank = reference_path("digits", "train", features.name, bank=True)
    for content in (b"no", path.read_bytes()):
        bank.write_bytes(content)
        fails_with(CorruptFile, r"bank\.safetensors.*--bank", bank=True)
    save_bank(bank, torch.zeros(4), features, {})
    fails_with(CorruptFile, r"vectors are \[4\]", bank=True)
    for facts, message in (
        ({"dataset": "digits", "split": "test"}, "is of the split test, not train"),
        ({"dataset": "mine", "split": "train"}, "is of the dataset mine, not digits"),
    ):
        statistics.save(path)
        save_bank(bank, torch.zeros(4, features.dimension).half(), features, facts)
        fails_with(BadValue, f"bank.safetensors {message}.*--bank 10000 --force", bank=True)
        statistics.save(path, facts)
        fails_with(BadValue, f"{message}; make it again with `{COMMAND} --force`")
    statistics.save(path)
    save_bank(bank, torch.full((4, features.dimension), float("nan")), features, {})
    fails_with(CorruptFile, "vectors hold NaN", bank=True)
    empty = copy(statistics)
    empty.shape = ()
    empty.save(path)
    fails_with(CorruptFile, f"does not say of which shape .*`{COMMAND} --force`")
    statistics.sha256 = "other"
    statistics.save(path)
    fails_with(BadValue, f"other weights of digits-resnet.*`{COMMAND} --force`")
    with pytest.raises(BadValue, match="unknown features 'vgg'"):
        load_metric("vgg", "digits")


@pytest.mark.parametrize("names", [[], ["a", "a"], [1], [""]])
def test_names_that_cannot_be(names):
    with pytest.raises(BadValue, match="one or more different names"):
        check_names(names)


def test_the_commands(project, features):  # noqa: F811
    both = [word for name in NAMES for word in ("--features", name)]
    evaluate = (*EVALUATE[: EVALUATE.index("--features")], "--n", 20)
    for name in NAMES:
        succeeds("stats", "--dataset", "digits", "--features", name)
    assert f"{COMMAND} --bank 10000" in " ".join(fails(*EVALUATE, "--more").split())
    for name in NAMES:
        succeeds("stats", "--dataset", "digits", "--features", name, "--bank", 40)
    assert "precision (digits-resnet)" in succeeds(*evaluate, *both, "--more", "--results", "runs/both.csv")
    rows = read_rows("runs/both.csv", FD_COLUMNS)
    assert rows["features"].tolist() == [name for name in NAMES for _ in range(5)] and rows["value"].notna().all()
    for name in NAMES:
        succeeds(*evaluate, "--features", name, "--results", f"runs/{name}.csv")
        [alone] = read_rows(f"runs/{name}.csv", FD_COLUMNS)["value"]
        assert alone == pytest.approx(rows[rows["metric"] == f"FD ({name})"]["value"].iloc[0], abs=2e-6)
    assert "different names" in fails(*EVALUATE, "--features", "digits-resnet")
