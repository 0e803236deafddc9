"""Metrics by name: features with their shipped statistics; what is missing, damaged or of other weights."""

from __future__ import annotations

import shutil
from copy import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from test_cli import EVALUATE, fails, project, succeeds  # noqa: F401 - a fixture

from tt_lib.datasets import load_dataset
from tt_lib.datasets.folder import Stored
from tt_lib.datasets.images import by_hash
from tt_lib.errors import BadValue, CorruptFile, MissingFile
from tt_lib.files import data_folder, file_hash
from tt_lib.metrics import reference
from tt_lib.metrics.evaluate import floor_row
from tt_lib.metrics.features import disjoint_sets, load_features, statistics_of
from tt_lib.metrics.frechet import frechet_distance
from tt_lib.metrics.reference import (
    check_names,
    collect_statistics,
    dataset_label,
    load_metric,
    reference_path,
)
from tt_lib.rows import FD_COLUMNS, read_rows

pytestmark = pytest.mark.usefixtures("one_thread", "project")
NAMES = ("digits-resnet", "cifar10-resnet")
COMMAND = "tt stats --dataset digits --split train --features digits-resnet"


@pytest.fixture
def features(project):  # noqa: F811
    for path in (project / "data" / "stats").glob("*"):
        path.unlink()
    return load_features("digits-resnet")


def test_what_is_saved_is_loaded(features):
    statistics = statistics_of(load_dataset("digits", "train").pixels, features)
    statistics.save(reference_path("digits", "train", features.name))
    metric = load_metric("digits-resnet", "digits")
    assert metric.features.sha256 == features.sha256 and metric.features.metric == "FD (digits-resnet)"
    assert torch.equal(metric.reference.mean, statistics.mean)


def test_files_that_are_missing_damaged_or_of_other_weights(features):
    def fails_with(error, message):
        with pytest.raises(error, match=message):
            load_metric("digits-resnet", "digits")

    fails_with(MissingFile, f"no feature statistics at .*`{COMMAND}`")
    statistics = statistics_of(load_dataset("digits", "train").pixels[:20], features)
    path = statistics.save(reference_path("digits", "train", features.name))
    for facts, message in (
        ({"dataset": "digits", "split": "test"}, "is of the split test, not train"),
        ({"dataset": "mine", "split": "train"}, "is of the dataset mine, not digits"),
    ):
        statistics.save(path, facts)
        fails_with(BadValue, f"{message}; make it again with `{COMMAND} --force`")
    empty = copy(statistics)
    empty.shape = ()
    empty.save(path)
    fails_with(CorruptFile, f"does not say of which shape .*`{COMMAND} --force`")
    statistics.sha256 = "other"
    statistics.save(path)
    fails_with(BadValue, f"other weights of digits-resnet.*`{COMMAND} --force`")
    with pytest.raises(BadValue, match="unknown features 'vgg'"):
        load_metric("vgg", "digits")


# A user's own images


class Stopped(Exception):
    pass


def test_statistics_are_made_in_one_pass_that_resumes(tmp_path, features, monkeypatch):
    """Never more than a batch is read at once, and no image twice, whenever it is stopped."""
    train = load_dataset("digits", "train")
    np.savez(tmp_path / "own.npz", images=train.pixels[:].permute(0, 2, 3, 1))
    images, state, seen = load_dataset(str(tmp_path / "own.npz"), "train"), tmp_path / "x.state", []
    read = Stored.__getitem__

    def spy(stored, rows):
        if len(seen) == stop:
            raise Stopped
        part = read(stored, rows)
        seen.append(len(part))
        return part

    monkeypatch.setattr(Stored, "__getitem__", spy)
    monkeypatch.setattr(reference, "BATCH", 400)
    monkeypatch.setattr(reference, "STATE_SECONDS", 0.0)
    for stop in (2, 3):  # noqa: B007 - spy reads it
        with pytest.raises(Stopped):
            collect_statistics(images, features, state)
    stop, shown = None, []
    found = collect_statistics(images, features, state, lambda *words: shown.append(words))
    assert seen == [400, 400, 400, 300], "no image was read twice"
    assert shown == [(1500, 1500, "statistics of own-all in digits-resnet")]
    whole, expected = collect_statistics(images, features), statistics_of(train.pixels, features)
    assert torch.equal(found.mean, whole.mean) and torch.equal(found.scatter, whole.scatter)
    assert torch.allclose(found.mean, expected.mean, rtol=1e-6)
    assert torch.allclose(found.scatter, expected.scatter, rtol=1e-5, atol=1e-3)
    assert found.n == 1500 and found.shape == (1, 8, 8)
    assert found.facts == {"images": by_hash(train.pixels[:], torch.zeros_like(train.labels))[1]}
    # The state is of these images and these weights, and is passed over for others.
    assert collect_statistics(load_dataset("digits", "test"), features, state).n == 297
    state.write_bytes(b"no")
    with pytest.raises(CorruptFile, match=r"x\.state holds no unfinished statistics .*`rm .*x\.state`"):
        collect_statistics(images, features, state)


def test_images_that_change_while_they_are_read(tmp_path, features, monkeypatch):
    """One that is being copied there, say: what was read is kept nowhere."""
    train = load_dataset("digits", "train").pixels
    for i in range(4):
        Image.fromarray(train[i : i + 1][0, 0].numpy()).save(tmp_path / f"{i}.png")
    read = Stored.__getitem__

    def copied(stored, rows):
        (tmp_path / "4.png").write_bytes((tmp_path / "0.png").read_bytes())
        return read(stored, rows)

    monkeypatch.setattr(Stored, "__getitem__", copied)
    before = sorted((data_folder() / "stats").glob("*"))
    with pytest.raises(CorruptFile, match="changed while they were read; start again"):
        load_metric("digits-resnet", str(tmp_path))
    assert sorted((data_folder() / "stats").glob("*")) == before


def test_what_is_kept_of_own_images_is_verified(tmp_path, features):
    np.savez(tmp_path / "own.npz", images=load_dataset("digits", "test").pixels[:].permute(0, 2, 3, 1))
    name = str(tmp_path / "own.npz")
    assert dataset_label(name, "digits-resnet") == ""
    metric = load_metric("digits-resnet", name)
    assert dataset_label(name, "digits-resnet") == metric.dataset == f"own@{metric.reference.facts['images'][:16]}"
    row = floor_row(metric, disjoint_sets(load_dataset(name, "train").pixels, features))
    assert row["dataset"] == metric.dataset and row["reference"] == metric.split == "all"
    path = reference_path(name, "train", "digits-resnet", images=load_dataset(name, "train"))
    assert path.name == f"own-{load_dataset(name, 'train').pixels.listing[:16]}-all-digits-resnet.safetensors"
    metric.reference.save(path, metric.reference.facts | {"listing": "0" * 64})
    with pytest.raises(BadValue, match=r"is of the listing 0000.*; make it again with `tt stats --dataset .*own\.npz"):
        load_metric("digits-resnet", name)
    metric.reference.sha256 = "other"
    metric.reference.save(path, metric.reference.facts)
    with pytest.raises(BadValue, match="other weights of digits-resnet"):
        load_metric("digits-resnet", name)
    path.write_bytes(b"no")
    with pytest.raises(CorruptFile, match=r"own-.* holds no feature statistics"):
        load_metric("digits-resnet", name)


def test_a_table_takes_no_timing_of_other_images(features, monkeypatch, tmp_path):
    images = load_dataset("digits", "train").pixels[:40].permute(0, 2, 3, 1).numpy()
    monkeypatch.setenv("TT_DATA", str(shutil.copytree(data_folder(), tmp_path / "data")))
    (tmp_path / "own.toml").write_text(
        f"[table]\ndataset = '{tmp_path}/own.npz'\nmodel = 'tiny'\nfeatures = 'digits-resnet'\nn = 20\nseed = 0\n"
        "[tuning]\nimages = 4\noptimiser = 'search'\n"
        "[[cells]]\nsolver = 'ddim'\ngrid = 'uniform'\nnfe = 2\ntiming = 'consistency-parallel'\n"
    )
    table = ("table", "--config", tmp_path / "own.toml", "--work", tmp_path / "work", "--device", "cpu", "--results")
    np.savez(tmp_path / "own.npz", images=images)
    succeeds(*table, tmp_path / "a.csv")
    succeeds(*table, tmp_path / "b.csv")
    np.savez(tmp_path / "own.npz", images=255 - images)
    assert "tuned on other images than" in fails(*table, tmp_path / "b.csv")


def test_one_image_is_no_reference(tmp_path, features):
    np.savez(tmp_path / "one.npz", images=load_dataset("digits", "test").pixels[:1].permute(0, 2, 3, 1))
    with pytest.raises(BadValue, match="one-all has 1 images; statistics need at least 2"):
        load_metric("digits-resnet", str(tmp_path / "one.npz"))


def test_the_statistics_of_pytorch_fid(tmp_path, features):
    """They are taken as they are; the row says which file they are, and what nobody knows of them."""
    # The digits' features, for once under Inception's name.
    ours = replace(features, name="inception-2015")
    train, test = (load_dataset("digits", split).pixels for split in ("train", "test"))
    statistics = statistics_of(train, ours)
    path = tmp_path / "rooms.npz"
    np.savez(path, mu=statistics.mean.numpy(), sigma=statistics.covariance.numpy())
    metric = load_metric(ours, str(path))
    samples = statistics_of(test, ours)
    expected = frechet_distance(samples, statistics)
    assert frechet_distance(samples, metric.reference) == pytest.approx(expected, rel=1e-9)
    row = floor_row(metric, disjoint_sets(test, ours))
    assert row["dataset"] == f"rooms@{file_hash(path)[:16]}" == dataset_label(str(path), "inception-2015")
    assert row["reference"] == "mu and sigma of pytorch-fid; n and resizing unknown" and row["metric"] == "FID"
    assert row["value"] == pytest.approx(expected, abs=1e-6)
    with pytest.raises(BadValue, match="no reference in digits-resnet; give --features inception-2015, or images"):
        load_metric("digits-resnet", str(path))
    np.savez(path, mu=np.zeros(64), sigma=np.eye(64))
    with pytest.raises(BadValue, match=r"holds 64 features, inception-2015 has 8; make it with pytorch-fid --dims 8"):
        load_metric(ours, str(path))
    np.savez(path, mu=np.full(8, np.nan), sigma=np.eye(8))
    with pytest.raises(CorruptFile, match=r"mu in .*rooms\.npz holds NaN"):
        load_metric(ours, str(path))


@pytest.mark.parametrize("names", [[], ["a", "a"], [1], [""]])
def test_names_that_cannot_be(names):
    with pytest.raises(BadValue, match="one or more different names"):
        check_names(names)


def test_the_commands(project, features):  # noqa: F811
    both = [word for name in NAMES for word in ("--features", name)]
    evaluate = (*EVALUATE[: EVALUATE.index("--features")], "--n", 20)
    for name in NAMES:
        succeeds("stats", "--dataset", "digits", "--features", name)
    assert f"FD ({NAMES[1]})" in succeeds(*evaluate, *both, "--results", "runs/both.csv")
    rows = read_rows("runs/both.csv", FD_COLUMNS)
    assert rows["features"].tolist() == list(NAMES) and rows["value"].notna().all()
    for name in NAMES:
        succeeds(*evaluate, "--features", name, "--results", f"runs/{name}.csv")
        [alone] = read_rows(f"runs/{name}.csv", FD_COLUMNS)["value"]
        assert alone == pytest.approx(rows[rows["metric"] == f"FD ({name})"]["value"].iloc[0], abs=2e-6)
    assert "different names" in fails(*EVALUATE, "--features", "digits-resnet")
