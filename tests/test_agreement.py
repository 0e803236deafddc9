"""Whether two kinds of features agree: which rows are compared, and the command that compares them."""

from __future__ import annotations

import sys

import pandas as pd
import pytest
from scipy.stats import spearmanr
from typer.testing import CliRunner

from tt_lib.cli import app
from tt_lib.errors import BadValue
from tt_lib.rows import CORRELATION_COLUMNS, FD_COLUMNS, FD_KEY, read_rows, write_rows
from tt_lib.study.compare import agreement, beside_each_other

RESNET, SIMCLR = "cifar10-resnet", "cifar10-simclr"
BASE = dict.fromkeys(FD_COLUMNS, "") | {
    "dataset": "cifar10",
    "model": "net",
    "grid": "uniform",
    "eta": 0.0,
    "reference": "train",
    "n": 100,
    "seed": 0,
    "solver": "ddim",
}
FIRST = [9.0, 8.0, 7.0, 5.0, 6.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.4, 0.3]
SECOND = [90.0, 80.0, 70.0, 60.0, 50.0, 30.0, 40.0, 20.0, 10.0, 6.0, 5.0, 4.0]


def distances() -> pd.DataFrame:
    """Twelve samplers, six untuned and six tuned, in both features; and rows that must not be compared."""
    rows = []
    for number, pair in enumerate(zip(FIRST, SECOND, strict=True)):
        name = {"nfe": 5 + number // 2, "timing": "untuned" if number % 2 else "truncation-parallel"}
        for features, value in zip((RESNET, SIMCLR), pair, strict=True):
            rows.append(
                BASE
                | name
                | {"features": features, "metric": f"FD ({features})", "value": value, "low": value, "high": value}
            )
    odd = rows[-1] | {"value": 1000.0}
    rows += [
        rows[0] | {"nfe": 50, "value": 1000.0},  # in one of the features only
        odd | {"metric": f"FD-infinity ({SIMCLR})"},
        odd | {"n": 200},
        odd | {"model": "other"},
        odd | {"seed": 7},
    ]
    return pd.DataFrame(rows)[list(FD_COLUMNS)]


def test_samplers_are_compared_that_have_both(monkeypatch):
    joined = beside_each_other(distances(), RESNET, SIMCLR, "net", 100)
    assert joined["first"].tolist() == FIRST and joined["second"].tolist() == SECOND
    found = {row["among"]: row for row in agreement(distances(), RESNET, SIMCLR, "net", 100)}
    assert [(name, row["cells"]) for name, row in found.items()] == [("all", 12), ("untuned", 6), ("tuned", 6)]
    expected = spearmanr(FIRST, SECOND).statistic
    assert found["all"]["spearman"] == pytest.approx(expected, abs=1e-3) and expected < 1
    assert found["all"]["low"] < expected <= found["all"]["high"]
    assert set(found["all"]) == set(CORRELATION_COLUMNS)
    turned = distances()
    turned.loc[turned["features"] == SIMCLR, "value"] *= -1
    assert agreement(turned, RESNET, SIMCLR, "net", 100)[0]["spearman"] == pytest.approx(-expected, abs=1e-3)


def test_too_little_to_compare():
    with pytest.raises(
        BadValue, match="4 samplers of net have rows of 100 samples in both cifar10-resnet and cifar10-simclr"
    ):
        agreement(distances().iloc[:8], RESNET, SIMCLR, "net", 100)
    with pytest.raises(BadValue, match="'cifar10-resnet' twice"):
        agreement(distances(), RESNET, RESNET, "net", 100)


def test_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("TT_COMMIT", "test")
    write_rows(tmp_path / "fd.csv", distances().to_dict("records"), FD_COLUMNS, FD_KEY)
    words = ["correlate", "--model", "net", "--n", "100", "--results", str(tmp_path / "fd.csv")]
    monkeypatch.setattr(sys, "argv", ["tt", *words])
    for _ in range(2):  # the second time the rows are replaced, not doubled
        answer = CliRunner().invoke(app, words)
        assert answer.exit_code == 0 and "cifar10-resnet, cifar10-simclr, net, tuned:" in answer.output
        found = read_rows(tmp_path / "correlation.csv", CORRELATION_COLUMNS)
        assert found["among"].tolist() == ["all", "untuned", "tuned"] and set(found["n"]) == {100}
    for others, message in (
        ([*words, "--features", "x"], "two features or more"),
        ([*words[:4], "70", *words[5:]], "0 samplers of net"),
    ):
        answer = CliRunner().invoke(app, others)
        assert answer.exit_code == 2 and message in answer.output
