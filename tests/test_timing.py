"""Timings: what is written is what is read, and one belongs to one sampler only."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from tt_lib.errors import BadValue, CorruptFile, MissingFile, TimingMismatch
from tt_lib.grids import Grid, make_grid
from tt_lib.schedules import make_schedule
from tt_lib.solvers.registry import make_solver
from tt_lib.timing import FORMAT, Timing, load_timing

LINEAR = make_schedule("linear")
GRID = make_grid("uniform", 3, LINEAR)
USED = {"model": "small", "schedule": "linear", "solver": make_solver("ddim"), "grid": GRID}


def timing(**changes) -> Timing:
    facts = {
        "name": "truncation-parallel",
        # Neither has a short decimal form: a round trip must keep every bit.
        "taus": (2 / 3, 0.1 + 0.2, math.nextafter(1e-3, 1)),
        "times": GRID.times[:-1],
        "model": "small",
        "schedule": "linear",
        "solver": "ddim",
        "options": {},
        "grid": "uniform",
        "grid_times": GRID.times,
        "tuning": {"images": 64, "loss_tuned": [0.1, 1 / 3], "bounds": None, "words": "σ, τ"},
        "provenance": {"commit": "abc", "command": "tt tune"},
        "weights": "0123456789abcdef" * 4,
    }
    return Timing(**{**facts, **changes})


# ---- the file


@pytest.mark.parametrize("options", [{}, {"eta": 0.30000000000000004}])
def test_json_round_trip_is_exact(tmp_path, options):
    path = tmp_path / "new" / "timing.json"
    saved = timing(options=options)
    saved.save(path)
    assert load_timing(path) == saved
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["format"] == FORMAT
    assert content["taus"] == list(saved.taus)
    assert list(path.parent.iterdir()) == [path], "no temporary file is left"


def test_a_timing_of_before_weights_were_recorded_can_be_read(tmp_path):
    content = written(tmp_path)
    del content["weights"], content["provenance"], content["tuning"]
    read = load_timing(rewritten(tmp_path, content))
    assert read.weights == "" and read.taus == timing().taus
    read.check(**USED, weights="f" * 64)


def written(folder) -> dict:
    timing().save(folder / "timing.json")
    return json.loads((folder / "timing.json").read_text(encoding="utf-8"))


def rewritten(folder, content):
    (folder / "timing.json").write_text(json.dumps(content), encoding="utf-8")
    return folder / "timing.json"


@pytest.mark.parametrize("content", [{"format": "tt-timing-99"}, {"taus": [0.5]}, [1, 2], "timing", None])
def test_an_unknown_format(tmp_path, content):
    if isinstance(content, dict):
        content = {**written(tmp_path), "format": None, **content}
    with pytest.raises(CorruptFile, match=r"is not a timing.*tt-timing-1.*tt tune"):
        load_timing(rewritten(tmp_path, content))


@pytest.mark.parametrize(
    "change",
    [
        {"taus": None},
        {"taus": "abc"},
        {"taus": [0.5]},
        {"taus": [0.5, None, 0.1]},
        {"taus": [0.5, "half", 0.1]},
        {"taus": [0.5, 1.5, 0.1]},
        {"taus": [0.5, math.nan, 0.1]},
        {"times": 3},
        {"grid_times": ["one"]},
        {"unheard": 1},
    ],
    ids=str,
)
def test_a_damaged_timing(tmp_path, change):
    path = rewritten(tmp_path, {**written(tmp_path), **change})
    with pytest.raises(CorruptFile, match=r"timing\.json is a damaged timing.*tt tune"):
        load_timing(path)


@pytest.mark.parametrize("missing", ["taus", "grid_times", "model", "solver", "options"])
def test_a_timing_with_a_field_missing(tmp_path, missing):
    content = written(tmp_path)
    del content[missing]
    with pytest.raises(CorruptFile, match=missing):
        load_timing(rewritten(tmp_path, content))


def test_no_file_and_half_a_file(tmp_path):
    with pytest.raises(MissingFile, match=r"nowhere\.json"):
        load_timing(tmp_path / "nowhere.json")
    written(tmp_path)
    path = tmp_path / "timing.json"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CorruptFile, match=r"timing\.json is not JSON"):
        load_timing(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CorruptFile, match="not JSON"):
        load_timing(path)


@pytest.mark.parametrize("what", ["rename", "write", "json"])
def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch, what):
    path = tmp_path / "timing.json"
    timing().save(path)
    before = path.read_bytes()

    def fail(*arguments, **options):
        raise OSError("disk full")

    new = timing(taus=(0.5, 0.4, 0.3))
    if what == "rename":
        monkeypatch.setattr(os, "replace", fail)
    elif what == "write":
        monkeypatch.setattr("pathlib.Path.write_text", fail)
    else:
        new = timing(tuning={"loss": math.nan})
    with pytest.raises((OSError, ValueError)):
        new.save(path)
    monkeypatch.undo()
    assert path.read_bytes() == before and load_timing(path) == timing()
    assert list(tmp_path.iterdir()) == [path], "no temporary file is left"


def test_a_save_is_one_rename(tmp_path, monkeypatch):
    path, seen = tmp_path / "timing.json", []
    timing().save(path)
    before = path.read_bytes()
    replace = os.replace

    def watch(source, target):
        # Up to the rename the old file is whole, and what replaces it is whole too.
        name = json.loads(Path(source).read_text(encoding="utf-8"))["name"]
        seen.append((path.read_bytes() == before, name))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watch)
    timing(name="new").save(path)
    assert seen == [(True, "new")] and load_timing(path).name == "new"


# ---- values


@pytest.mark.parametrize("tau", [0.0, -0.1, 1.0000001, math.nan, math.inf])
def test_a_tau_outside_its_range(tau):
    with pytest.raises(BadValue, match=rf"\(0, 1\], got {tau}"):
        timing(taus=(0.9, tau, 0.1))


def test_a_tau_of_1_is_allowed_and_one_is_needed_for_each_evaluation():
    assert timing(taus=(1.0, 0.5, 1e-9)).nfe == 3
    with pytest.raises(BadValue, match="2 taus, 3 times"):
        timing(taus=(0.9, 0.5))


def test_ratios():
    assert timing(taus=GRID.times[:-1]).ratios == (1.0, 1.0, 1.0)
    halved = timing(taus=tuple(t / 2 for t in GRID.times[:-1]))
    assert halved.ratios == pytest.approx((0.5, 0.5, 0.5))


# ---- whom it belongs to


def test_the_sampler_that_it_was_tuned_for():
    timing().check(**USED)
    timing().check(**USED, weights=timing().weights)
    # An option at its default is no other solver.
    timing().check(**{**USED, "solver": make_solver("ddim", eta=0.0)})
    timing(options={"eta": 0.0}).check(**USED)


@pytest.mark.parametrize(
    "change, mine, other",
    [
        ({"model": "large"}, "'small'", "'large'"),
        ({"schedule": "cosine"}, "'linear'", "'cosine'"),
        ({"solver": make_solver("dpmpp-2m")}, "'ddim'", "'dpmpp-2m'"),
        ({"solver": make_solver("ddim", eta=0.5)}, "'ddim'", r"'ddim\(eta=0.5\)'"),
        ({"grid": make_grid("logsnr", 3, LINEAR)}, "'uniform with 3 steps'", "'logsnr with 3 steps'"),
        ({"grid": make_grid("uniform", 4, LINEAR)}, "'uniform with 3 steps'", "'uniform with 4 steps'"),
        ({"weights": "f" * 64}, "'0123456789abcdef'", "'ffffffffffffffff'"),
    ],
)
def test_another_sampler_is_an_error_that_names_both(change, mine, other):
    with pytest.raises(TimingMismatch, match=f"{mine} and is used with .*{other}.*tt tune"):
        timing().check(**{**USED, **change})


def test_eta_on_both_sides_counts():
    stochastic = timing(options={"eta": 1.0})
    stochastic.check(**{**USED, "solver": make_solver("ddim", eta=1.0)})
    with pytest.raises(TimingMismatch, match=r"'ddim\(eta=1\)' and is used with solver 'ddim'"):
        stochastic.check(**USED)


def test_a_grid_of_the_same_name_with_other_times():
    times = (GRID.times[0], GRID.times[1] + 1e-4, *GRID.times[2:])
    with pytest.raises(TimingMismatch) as caught:
        timing().check(**{**USED, "grid": Grid("uniform", times)})
    assert str(GRID.times[1]) in str(caught.value) and str(times[1]) in str(caught.value)
    # Rounding in the last bits is not another grid.
    near = (*GRID.times[:1], math.nextafter(GRID.times[1], 1), *GRID.times[2:])
    timing().check(**{**USED, "grid": Grid("uniform", near)})
