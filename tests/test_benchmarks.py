"""What the library costs: both sides of a row do the work that the row says, and the command writes it."""

from __future__ import annotations

import sys

import pytest
import torch
from test_evaluate import tiny_project
from typer.testing import CliRunner

import tt_lib.study.speed
from tt_lib.cli import app
from tt_lib.errors import BadValue
from tt_lib.rows import SPEED_COLUMNS, read_rows
from tt_lib.study.cells import Cell
from tt_lib.study.speed import fastest, measure_against_diffusers, measure_overhead
from tt_lib.study.workbench import make_bench

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def bench(tmp_path_factory, one_thread):
    with tiny_project(tmp_path_factory):
        yield make_bench("tiny", batch=4)


def counted(bench, monkeypatch):
    """The sizes of the batches that the network is asked for."""
    calls, forward = [], bench.model.network.forward
    monkeypatch.setattr(bench.model.network, "forward", lambda x, *a, **k: calls.append(len(x)) or forward(x, *a, **k))
    return calls


def test_overhead_is_measured_without_the_network_and_beside_the_same_evaluations(bench, monkeypatch):
    calls = counted(bench, monkeypatch)
    rows = measure_overhead(bench, [Cell("ddim", "uniform", 3), Cell("ddpm", "uniform", 2)], repeats=1)
    assert calls == [4] * 2 * (2 * 3 + 2 * 2), (
        "whole runs and the network alone: each once to warm up and once for the clock"
    )
    words = [
        f"{part}, {cell}, batch 4"
        for cell in ("ddim, uniform, NFE 3", "ddpm, uniform, NFE 2")
        for part in ("whole run", "solver and engine")
    ]
    assert [row["what"] for row in rows] == [f"{each}: peer the network" for each in words]
    for whole, row in zip(rows[::2], rows[1::2], strict=True):
        assert row["unit"] == "s" and 0 < row["ours"] < row["peer"] == whole["peer"] and whole["ours"] > 0
        assert row["ratio"] == pytest.approx(row["peer"] / row["ours"], rel=1e-2)


def test_both_sides_sample_as_many_images_in_as_many_evaluations(bench, monkeypatch):
    calls = counted(bench, monkeypatch)
    row = measure_against_diffusers(bench, steps=3, n=6, bf16=False, compiled=False, repeats=1)[0]
    assert calls == [4, 4, 4, 2, 2, 2] * 4, "ours and theirs, each once to warm up and once for the clock"
    assert row["unit"] == "images/s" and row["ratio"] == pytest.approx(row["ours"] / row["peer"], rel=1e-2)
    assert "float32, eager: peer diffusers' DDIMPipeline" in row["what"]


def test_the_best_of_several_runs_counts(monkeypatch):
    taken = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr(tt_lib.study.speed, "seconds", lambda job, device: next(taken))
    assert fastest(3, [lambda: None], torch.device("cpu")) == [1]
    taken = iter([3.0, 1.0, 2.0, 4.0])
    assert fastest(2, [lambda: None, lambda: None], torch.device("cpu")) == [2, 1], "the jobs take turns"
    with pytest.raises(BadValue, match="at least 1, got 0"):
        fastest(0, [lambda: None], torch.device("cpu"))


def test_a_network_that_diffusers_cannot_sample_is_refused(bench, monkeypatch):
    monkeypatch.setattr(bench.model, "network", torch.nn.Identity())
    with pytest.raises(BadValue, match="is a Identity"):
        measure_against_diffusers(bench, steps=2, n=2, bf16=False, compiled=False)


def test_the_command(bench, tmp_path):
    words = [
        "bench",
        "--model",
        "tiny",
        "--nfe",
        "2",
        "--batch",
        "2",
        "--n",
        "4",
        "--repeats",
        "1",
        "--solver",
        "heun",
        "--results",
        str(tmp_path / "speed.csv"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["tt", *words])
        answer = CliRunner().invoke(app, words, catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    rows = read_rows(tmp_path / "speed.csv", SPEED_COLUMNS)
    assert (
        len(rows) == 3
        and rows["what"][0].startswith("whole run, heun")
        and rows["what"][1].startswith("solver and engine, heun")
        and set(rows["command"]) != {""}
    )
