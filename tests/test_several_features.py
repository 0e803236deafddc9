"""Several features of the same samples: what is measured in each, what is sampled again, and what is left as it was."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from test_evaluate import N, counted, data, features, make_sampler, make_tiny_data, no_git, reference, sampler  # noqa: F401
from test_reference import DIGITS, fails, project, succeeds  # noqa: F401 - a fixture
from test_tables import CELLS, HEAD, ONE_CELL, TABLE, Project, interrupt, interrupted, parts, write  # noqa: F401

from tt_lib.datasets import load_dataset, to_uint8
from tt_lib.errors import BadValue
from tt_lib.metrics.evaluate import SETS, forget_sets, measure, measure_all
from tt_lib.metrics.features import load_feature_extractor, reference_statistics
from tt_lib.metrics.reference import JoinedFeatures, Yardstick, collect_bank
from tt_lib.metrics.statistics import FeatureStatistics
from tt_lib.rows import FD_COLUMNS, read_rows
from tt_lib.study.cells import Cell, find_timing
from tt_lib.study.tables import read_table

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ["digits-resnet", "digits-simclr"]


@pytest.fixture(scope="session")
def yardsticks(data):  # noqa: F811
    images = load_dataset("digits", "train")
    found = []
    for name in NAMES:
        extractor = load_feature_extractor(name, data / "pretrained" / name)
        found.append(Yardstick(extractor, reference_statistics(images, extractor), collect_bank(images, extractor, 40)))
    return found


def without_bank(yardsticks):
    return [replace(each, bank=None) for each in yardsticks]


def test_joined_features_are_split_again(yardsticks, sampler):  # noqa: F811
    joined = JoinedFeatures([each.features for each in yardsticks])
    pixels = to_uint8(sampler(range(30)).x)
    vectors = joined(pixels)
    assert joined.dimension == 20 and vectors.shape == (30, 20)
    found = FeatureStatistics(20, joined.name, joined.sha256, {"nfe": "3"}).update(vectors[:7]).update(vectors[7:])
    for each, one, part in zip(yardsticks, joined.split_statistics(found), joined.split(vectors), strict=True):
        alone = each.features(pixels)
        assert torch.equal(part, alone)
        expected = FeatureStatistics(alone.shape[1], "", "").update(alone)
        assert (one.features, one.sha256, one.n, one.meta) == (
            each.features.name,
            each.features.sha256,
            30,
            {"nfe": "3"},
        )
        for ours, theirs in ((one.mean, expected.mean), (one.covariance, expected.covariance)):
            assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12 * float(theirs.abs().max()))


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_each_is_measured_as_if_alone_and_the_samples_are_made_once(yardsticks, eta):
    watched, predictor = counted(make_sampler(eta=eta))
    both = measure_all(watched, yardsticks, N, first_seed=5, batch=3, keep=30)
    assert predictor.calls == SETS * 2 * 3, "two batches a set, three evaluations each"
    for each, found in zip(yardsticks, both, strict=True):
        alone = measure(watched, each.features, each.reference, N, first_seed=5, batch=3, keep=30)
        assert (found.value, found.low, found.high) == pytest.approx((alone.value, alone.low, alone.high), rel=1e-9)
        assert found.nfe == alone.nfe == 3 and torch.equal(found.vectors, alone.vectors)
    assert both[0].value != pytest.approx(both[1].value, rel=0.01)


@pytest.mark.parametrize("keep", [0, 20])
def test_only_what_is_not_kept_is_measured(yardsticks, sampler, tmp_path, keep):  # noqa: F811
    expected = measure_all(sampler, yardsticks, N, keep=keep)
    first = measure(sampler, yardsticks[0].features, yardsticks[0].reference, N, work=tmp_path, keep=keep)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    asked = []

    class Watched:
        def __getattr__(self, name):
            return getattr(yardsticks[0].features, name)

        def __call__(self, pixels):
            asked.append(len(pixels))
            return yardsticks[0].features(pixels)

    pair = [Yardstick(Watched(), yardsticks[0].reference), yardsticks[1]]

    def stop(done, total, message):
        if done >= 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_all(sampler, pair, N, work=tmp_path, keep=keep, progress=stop)
    watched, predictor = counted(sampler)
    found = measure_all(watched, pair, N, work=tmp_path, keep=keep)
    assert predictor.calls == 6 * 3, "the sets of the second features that were not finished; of the first, none"
    assert found[0] == first and not asked and {path: path.stat().st_mtime_ns for path in before} == before
    for one, other in zip(found, expected, strict=True):
        assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high), rel=1e-9)
    watched, predictor = counted(sampler)
    assert measure_all(watched, pair, N, work=tmp_path, keep=keep) == found and predictor.calls == 0
    for each in yardsticks:
        forget_sets(sampler, each.features, N, 0, tmp_path)
    assert not list(tmp_path.iterdir())


# Commands


def test_the_commands(project):  # noqa: F811
    for name in NAMES:
        succeeds("stats", "--dataset", "digits", "--features", name, "--force")
        succeeds("stats", "--dataset", "digits", "--features", name, "--bank", 40, "--force")
    assert (project / "data" / "stats" / "digits-train-digits-simclr-bank.safetensors").is_file()
    evaluate = ("evaluate", "--model", "tiny", "--nfe", 2, "--dataset", "digits", "--n", 20)
    both = [word for name in NAMES for word in ("--features", name)]
    succeeds(*evaluate, *both, "--more", "--results", "runs/both.csv")
    rows = read_rows(project / "runs" / "both.csv", FD_COLUMNS)
    assert len(rows) == 10 and rows["features"].tolist() == [name for name in NAMES for _ in range(5)]
    for name in NAMES:
        succeeds(*evaluate, "--features", name, "--results", f"runs/{name}.csv")
        [alone] = read_rows(project / "runs" / f"{name}.csv", FD_COLUMNS)["value"]
        assert alone == pytest.approx(rows[rows["metric"] == f"FD ({name})"]["value"].iloc[0], abs=2e-6)
    assert "--weights" in fails(*evaluate, *both, "--weights", "data/pretrained/digits-resnet")
    assert "different names" in fails(*evaluate, *DIGITS[2:], *DIGITS[2:])
    text = (project / "table.toml").read_text().replace('"digits-resnet"', '["digits-resnet", "digits-simclr"]')
    (project / "several.toml").write_text(text)
    words = ("table", "--config", "several.toml", "--results", "runs/several.csv", "--work", "runs/several")
    printed = succeeds(*words)
    assert "FD (digits-simclr)" in printed and "0 rows written" in succeeds(*words)
    assert read_rows(project / "runs" / "several.csv", FD_COLUMNS)["features"].value_counts().tolist() == [2, 2]


def test_a_network_is_trained_by_command(project):  # noqa: F811
    words = ("features", "--dataset", "digits", "--device", "cpu", "--results", "runs/training.csv")
    assert "test_accuracy" in succeeds(*words, "--epochs", 1, "--out", "runs/digits-resnet")
    assert read_rows(project / "runs" / "training.csv")["run"].tolist() == ["digits-resnet"]
    assert "--force" in fails(*words, "--out", "runs/digits-resnet")
