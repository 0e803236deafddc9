"""Banks of feature vectors: what is kept, of which samples, on disk, and the rows that are made of them."""

from __future__ import annotations

import math

import pytest
import torch
from test_cli import DIGITS, EVALUATE, fails, project, succeeds  # noqa: F401 - a fixture
from test_evaluate import data, features, make_sampler, no_git, reference, sampler  # noqa: F401 - fixtures

from tt_lib.datasets import load_dataset, to_uint8
from tt_lib.errors import BadValue, CorruptFile, MissingFile
from tt_lib.metrics.evaluate import SETS, fd_row, forget_sets, measure, more_rows
from tt_lib.metrics.frechet import extrapolated_interval
from tt_lib.metrics.kernel import kernel_distance, precision_recall
from tt_lib.metrics.reference import FeatureBank, collect_bank, load_bank, load_reference_bank
from tt_lib.rows import FD_COLUMNS, read_rows

pytestmark = pytest.mark.usefixtures("one_thread", "project")
N, KEEP = 60, 30


def test_a_bank_is_of_images_drawn_without_replacement(features):  # noqa: F811
    images = load_dataset("digits", "train")
    bank = collect_bank(images, features, 50)
    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:50]
    assert torch.equal(bank.vectors, features(images.pixels[rows]).half()) and len(set(rows.tolist())) == 50
    assert bank.meta == {"dataset": "digits", "split": "train"} and bank.sha256 == features.sha256
    for count in (1, len(images) + 1):
        with pytest.raises(BadValue, match=f"got {count}"):
            collect_bank(images, features, count)


def test_on_disk(tmp_path):
    bank = FeatureBank(torch.randn(5, 3).half(), "made", "abc", {"split": "train"})
    again = load_bank(bank.save(tmp_path / "bank.safetensors", {"date": "today"}))
    assert torch.equal(again.vectors, bank.vectors)
    assert (again.features, again.sha256, again.meta) == ("made", "abc", {"split": "train", "date": "today"})
    (tmp_path / "bank.safetensors").write_bytes(b"no")
    with pytest.raises(CorruptFile, match=r"bank\.safetensors.*tt stats --bank"):
        load_bank(tmp_path / "bank.safetensors")
    with pytest.raises(MissingFile, match="tt stats --bank"):
        load_bank(tmp_path / "none")


@pytest.mark.parametrize("batch", [1, 4, 500])
def test_the_first_samples_of_each_set_are_kept_whatever_the_batch(sampler, features, reference, batch):  # noqa: F811
    found = measure(sampler, features, reference, N, first_seed=5, batch=batch, keep=KEEP)
    size, share = N // SETS, KEEP // SETS
    seeds = [5 + i * size + j for i in range(SETS) for j in range(share)]
    expected = torch.cat([features(to_uint8(sampler([seed]).x)).half() for seed in seeds])
    assert found.vectors.shape == (KEEP, features.dimension)
    assert torch.allclose(found.vectors.float(), expected.float(), rtol=2e-3, atol=2e-3)
    assert found == measure(sampler, features, reference, N, first_seed=5, batch=batch), "the distance is as before"
    assert measure(sampler, features, reference, N, keep=10 * N).vectors.shape[0] == N


def test_what_was_kept_is_found_again_and_forgotten(sampler, features, reference, tmp_path):  # noqa: F811
    first = measure(sampler, features, reference, N, work=tmp_path, keep=KEEP)
    calls = []
    again = measure(
        sampler, features, reference, N, work=tmp_path, keep=KEEP, progress=lambda *report: calls.append(report)
    )
    assert not calls and torch.equal(again.vectors, first.vectors) and again == first
    fewer = measure(
        sampler, features, reference, N, work=tmp_path, keep=20, progress=lambda *report: calls.append(report)
    )
    assert not calls and len(fewer.vectors) == 20
    more = measure(
        sampler, features, reference, N, work=tmp_path, keep=N, progress=lambda *report: calls.append(report)
    )
    assert calls and len(more.vectors) == N, "too few were kept: measured again"
    forget_sets(sampler, features, N, 0, tmp_path)
    assert not list(tmp_path.iterdir())


def test_rows_are_what_the_functions_give(sampler, features, reference):  # noqa: F811
    found = measure(sampler, features, reference, N, keep=KEEP)
    bank = collect_bank(load_dataset("digits", "train"), features, 50)
    row = fd_row(found, sampler, features, dataset="digits", reference="train", n=N, seed=0, timing="untuned")
    rows = {each["metric"]: each for each in more_rows(row, found, reference, bank, features)}
    assert [name.partition(" (")[0] for name in rows] == ["FD-infinity", "kernel distance", "precision", "recall"]
    assert {each["n"] for each in list(rows.values())[1:]} == {KEEP} and all(
        set(each) == set(FD_COLUMNS) for each in rows.values()
    )
    limit, kernel, precision, recall = rows.values()
    assert limit["n"] == N
    assert [limit[key] for key in ("value", "low", "high")] == pytest.approx(
        extrapolated_interval(found.sets, reference), abs=1e-6
    )
    samples, real = found.vectors.float(), bank.vectors.float()
    assert [kernel[key] for key in ("value", "low", "high")] == pytest.approx(kernel_distance(samples, real), abs=1e-6)
    assert (precision["value"], recall["value"]) == pytest.approx(precision_recall(samples, real), abs=1e-6)
    assert math.isnan(precision["low"])
    with pytest.raises(BadValue, match="keep > 0"):
        more_rows(row, measure(sampler, features, reference, N), reference, bank, features)
    with pytest.raises(BadValue, match="other weights"):
        more_rows(row, found, reference, FeatureBank(bank.vectors, "digits-resnet", "no"), features)


def test_the_commands(project):  # noqa: F811
    succeeds("stats", *DIGITS, "--force")
    assert "tt stats --dataset digits --split train --features digits-resnet --bank 10000" in " ".join(
        fails(*EVALUATE, "--more").split()
    )
    assert "features of 40 images" in succeeds("stats", *DIGITS, "--bank", 40)
    assert "--force" in fails("stats", *DIGITS, "--bank", 40)
    printed = succeeds(*EVALUATE, "--more", "--results", "runs/more.csv")
    rows = read_rows(project / "runs" / "more.csv", FD_COLUMNS)
    assert len(rows) == 5 and rows["value"].notna().all() and "precision (digits-resnet)" in printed
    (project / "more.toml").write_text(
        (project / "table.toml").read_text().replace("seed = 0", "seed = 0\nmore = true")
    )
    assert "11 rows written" in succeeds(
        "table", "--config", "more.toml", "--results", "runs/table.csv", "--work", "runs/w"
    )
    rows = read_rows(project / "runs" / "table.csv", FD_COLUMNS).set_index(["metric", "timing"])["value"]
    plain = "FD (digits-resnet)"
    gain = rows[plain, "untuned"] - rows[plain, "truncation-parallel"]
    assert rows[f"gain of {plain}", "truncation-parallel"] == pytest.approx(gain, abs=2e-6) and gain != 0
    assert "0 rows written" in succeeds(
        "table", "--config", "more.toml", "--results", "runs/table.csv", "--work", "runs/w"
    )


def test_a_bank_of_other_weights_is_refused(project, features):  # noqa: F811
    path = project / "data" / "stats" / "digits-train-digits-resnet-bank.safetensors"
    FeatureBank(torch.zeros(4, features.dimension).half(), "digits-resnet", "other").save(path)
    with pytest.raises(BadValue, match="other weights of digits-resnet"):
        load_reference_bank("digits", "train", features)
