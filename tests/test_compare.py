"""What rows say of each other: which rows are compared, and what is made of them."""

from __future__ import annotations

import pandas as pd
import pytest

from tt_lib.errors import BadValue
from tt_lib.rows import FD_COLUMNS
from tt_lib.study.compare import (
    BETTER,
    SAME,
    WORSE,
    beside_each_other,
    changes,
    changes_in_both,
    distances,
)

MODEL, WEIGHTS = "cifar10-ddpm-w96", "ab" * 8


def fd_rows(*cells, features="cifar10-resnet", n=50_000, model=MODEL, weights=WEIGHTS) -> pd.DataFrame:
    """Rows of ``fd.csv`` from (solver, grid, NFE, timing, value), with an interval of ± 0.1 or (low, high) behind."""
    base = {"dataset": "cifar10", "model": model, "eta": 0.0, "metric": f"FD ({features})", "features": features}
    base |= {"weights": weights, "reference": "train", "n": n, "seed": 0}
    names = ("solver", "grid", "nfe", "timing", "value", "low", "high")
    full = [cell if len(cell) == 7 else (*cell, cell[4] - 0.1, cell[4] + 0.1) for cell in cells]
    rows = [dict.fromkeys(FD_COLUMNS, "") | base | dict(zip(names, cell, strict=True)) for cell in full]
    return pd.DataFrame(rows)[list(FD_COLUMNS)]


CELLS = (
    ("ddim", "uniform", 5, "untuned", 17.54),
    ("ddim", "uniform", 5, "consistency-parallel", 14.7),
    ("ddim", "uniform", 5, "truncation-parallel", 15.7),
    ("dpmpp-2m", "uniform", 5, "untuned", 6.58),
    ("dpmpp-2m", "uniform", 5, "consistency-parallel", 48.36),
    ("ddim", "uniform", 20, "untuned", 5.3),
    ("ddim", "uniform", 20, "truncation-parallel", 5.35),
)


def test_changes_beside_untuned():
    found = changes(fd_rows(*CELLS))
    assert found["change"].is_monotonic_increasing and found["change"].iloc[0] == pytest.approx(14.7 / 17.54 - 1)
    assert found.set_index(["solver", "nfe", "timing"])["verdict"].to_dict() == {
        ("ddim", 5, "consistency-parallel"): BETTER,
        ("ddim", 5, "truncation-parallel"): BETTER,
        ("ddim", 20, "truncation-parallel"): SAME,
        ("dpmpp-2m", 5, "consistency-parallel"): WORSE,
    }


def test_changes_in_two_features():
    second = fd_rows(*CELLS, features="b")
    second.loc[2, ["value", "low", "high"]] = 20.0, 19.9, 20.1
    frame = pd.concat([fd_rows(*CELLS, features="a"), second.iloc[:5]])
    found = changes_in_both(frame, ("a", "b"), 50_000, MODEL).set_index(["solver", "timing"])
    verdicts = found[["verdict_first", "verdict_second"]]
    assert {name: tuple(row) for name, row in verdicts.iterrows()} == {
        ("ddim", "consistency-parallel"): (BETTER, BETTER),
        ("ddim", "truncation-parallel"): (BETTER, WORSE),
        ("dpmpp-2m", "consistency-parallel"): (WORSE, WORSE),
    }
    assert found["change_second"]["ddim", "truncation-parallel"] == pytest.approx(20 / 17.54 - 1)
    frame.loc[(frame["features"] == "b") & (frame["timing"] == "truncation-parallel"), "low"] = 10
    found = changes_in_both(frame, ("a", "b"), 50_000, MODEL).set_index(["solver", "timing"])
    assert found.loc[("ddim", "truncation-parallel"), "verdict_second"] == SAME
    for function in (changes_in_both, lambda f, pair, n, model: beside_each_other(f, *pair, model, n)):
        with pytest.raises(BadValue, match="'a' twice"):
            function(frame, ("a", "a"), 50_000, MODEL)


def test_samplers_are_compared_that_have_both():
    first = [9.0, 8.0, 7.0, 5.0, 6.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.4, 0.3]
    second = [90.0, 80.0, 70.0, 60.0, 50.0, 30.0, 40.0, 20.0, 10.0, 6.0, 5.0, 4.0]
    names = [("ddim", "uniform", 5 + i // 2, "untuned" if i % 2 else "truncation-parallel") for i in range(12)]
    a, b = (
        fd_rows(*((*name, value) for name, value in zip(names, values, strict=True)), features=features)
        for features, values in (("a", first), ("b", second))
    )
    odd = a.iloc[[0]].assign(value=1000.0)
    strange = [odd.assign(nfe=50), odd.assign(metric="FD-infinity (a)"), odd.assign(n=20), odd.assign(model="other")]
    both = beside_each_other(pd.concat([a, b, *strange, odd.assign(seed=7)]), "a", "b", MODEL, 50_000)
    assert both["first"].tolist() == first and both["second"].tolist() == second


def test_two_networks_of_one_name_are_never_mixed():
    frame = pd.concat([fd_rows(*CELLS), fd_rows(CELLS[0], weights="cd" * 8)])
    with pytest.raises(BadValue, match=f"2 networks called '{MODEL}', of the weights {WEIGHTS}, {'cd' * 8}; keep"):
        distances(frame, "cifar10-resnet", 50_000, MODEL)
