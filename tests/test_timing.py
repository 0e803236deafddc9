"""Timings: what is written is what is read, and one belongs to one sampler only."""

from __future__ import annotations

import json
import math

import pytest
from solver_helpers import LINEAR

from tt_lib.errors import BadValue, CorruptFile, MissingFile, TimingMismatch
from tt_lib.grids import Grid, make_grid
from tt_lib.solvers.registry import make_solver
from tt_lib.timing import FORMAT, Timing, load_timing

GRID = make_grid("uniform", 3, LINEAR)
USED = {
    "model": "small",
    "schedule": "linear",
    "solver": make_solver("ddim"),
    "grid": GRID,
    "weights": "0123456789abcdef" * 4,
}


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


@pytest.mark.parametrize("name", ["", "untuned"])
def test_tuned_times_are_not_called_untuned(name):
    """Their row would take the place of the untuned one."""
    with pytest.raises(BadValue, match=f"a timing cannot be called '{name}'"):
        timing(name=name)


# ---- the file


def written(folder) -> dict:
    timing().save(folder / "timing.json")
    return json.loads((folder / "timing.json").read_text(encoding="utf-8"))


def rewritten(folder, content):
    (folder / "timing.json").write_text(json.dumps(content), encoding="utf-8")
    return folder / "timing.json"


@pytest.mark.parametrize("options", [{}, {"eta": 0.30000000000000004}])
def test_json_round_trip_is_exact(tmp_path, options):
    path = tmp_path / "new" / "timing.json"
    saved = timing(options=options)
    saved.save(path)
    assert load_timing(path) == saved
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["format"] == FORMAT and content["taus"] == list(saved.taus)
    assert list(path.parent.iterdir()) == [path], "no temporary file is left"


def test_a_timing_of_before_weights_were_recorded_can_be_read(tmp_path):
    content = written(tmp_path)
    del content["weights"], content["provenance"], content["tuning"]
    read = load_timing(rewritten(tmp_path, content))
    assert read.weights == "" and read.taus == timing().taus
    with pytest.raises(
        TimingMismatch, match=r"weights of the model 'not named' and is used with .* 'ffffffffffffffff'"
    ):
        read.check(**{**USED, "weights": "f" * 64})


@pytest.mark.parametrize("content", [{"format": "tt-timing-99"}, [1, 2], None])
def test_an_unknown_format(tmp_path, content):
    if isinstance(content, dict):
        content = {**written(tmp_path), **content}
    with pytest.raises(CorruptFile, match=r"is not a timing.*tt-timing-2.*tt tune"):
        load_timing(rewritten(tmp_path, content))


@pytest.mark.parametrize(
    "change",
    [
        {"taus": None},
        {"taus": [0.5, "half", 0.1]},
        {"taus": [0.5, 1.5, 0.1]},
        {"taus": [True, 0.4, 0.1]},
        {"taus": "111"},
        {"taus": [], "times": []},
        {"grid_times": ["one"]},
        {"grid_times": []},
        {"grid_times": GRID.times[:2]},
        {"grid_times": [*GRID.times[:2], 0.9, 0.0]},
        {"grid_times": [*GRID.times[:3], -0.1]},
        {"times": [0.9, 0.8, 0.7]},
        {"times": [*GRID.times[:2], GRID.times[1]]},
        {"name": None},
        {"model": 3},
        {"options": []},
        {"options": {"eta": "half", "pixels": None}},
        {"provenance": {"commit": 3}},
        {"unheard": 1},
        *({name: ...} for name in ("taus", "grid_times", "model", "options")),
    ],
    ids=str,
)
def test_a_damaged_timing(tmp_path, change):
    content = {key: value for key, value in {**written(tmp_path), **change}.items() if value is not ...}
    with pytest.raises(CorruptFile, match=r"timing\.json is a damaged timing.*tt tune"):
        load_timing(rewritten(tmp_path, content))


def test_no_file_and_half_a_file(tmp_path):
    with pytest.raises(MissingFile, match=r"nowhere\.json"):
        load_timing(tmp_path / "nowhere.json")
    written(tmp_path)
    path = tmp_path / "timing.json"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CorruptFile, match=r"timing\.json is not JSON"):
        load_timing(path)


# ---- values


@pytest.mark.parametrize("tau", [0.0, -0.1, 1.0000001, math.nan, math.inf])
def test_a_tau_outside_its_range(tau):
    with pytest.raises(BadValue, match=rf"\(0, 1\], got {tau}"):
        timing(taus=(0.9, tau, 0.1))


def test_times_that_no_run_has():
    """Times of the grid, in order, and where a solver makes several evaluations a step times between them."""
    with pytest.raises(BadValue, match=r"no run of ddim over the grid of 3 steps .* has its 4 evaluations at"):
        timing(times=(GRID.times[0], 0.5, *GRID.times[1:3]), taus=(0.9, 0.5, 0.2, 0.1))
    heun = timing(solver="heun", times=(GRID.times[0], *GRID.times[1:2] * 2, GRID.times[2]), taus=(0.9, 0.5, 0.2, 0.1))
    assert heun.nfe == 4
    for times in ((0.9, 0.8, 0.7, 0.6), (*GRID.times[:2], 1.0, GRID.times[2])):
        with pytest.raises(BadValue, match="no run of heun"):
            timing(solver="heun", times=times, taus=(0.9, 0.5, 0.2, 0.1))


def test_options_that_differ_in_the_seventh_digit():
    near = timing(options={"eta": 0.3})
    with pytest.raises(TimingMismatch, match=r"ddim\(eta=0.3\).*ddim\(eta=0.3000001\)"):
        near.check(**{**USED, "solver": make_solver("ddim", eta=0.3000001)})


def test_a_tau_for_each_evaluation_and_its_ratio():
    assert timing(taus=(1.0, 0.5, 1e-9)).nfe == 3
    assert timing(taus=tuple(t / 2 for t in GRID.times[:-1])).ratios == pytest.approx((0.5, 0.5, 0.5))
    with pytest.raises(BadValue, match="2 taus, 3 times"):
        timing(taus=(0.9, 0.5))


# ---- what it belongs to


def test_the_sampler_that_it_was_tuned_for():
    timing().check(**USED)
    # An option at its default is no other solver, and rounding in the last bits no other grid.
    timing().check(**{**USED, "solver": make_solver("ddim", eta=0.0)})
    timing(options={"eta": 0.0}).check(**USED)
    timing(options={"eta": 1.0}).check(**{**USED, "solver": make_solver("ddim", eta=1.0)})
    near = (GRID.times[0], math.nextafter(GRID.times[1], 1), *GRID.times[2:])
    timing().check(**{**USED, "grid": Grid("uniform", near)})


@pytest.mark.parametrize(
    "change, own, other",
    [
        ({"model": "large"}, "model 'small'", "model 'large'"),
        ({"schedule": "cosine"}, "'linear'", "'cosine'"),
        ({"solver": make_solver("dpmpp-2m")}, "'ddim'", "'dpmpp-2m'"),
        ({"solver": make_solver("ddim", eta=0.5)}, "'ddim'", r"'ddim\(eta=0.5\)'"),
        ({"solver": make_solver("unipc", variant="bh1")}, "'ddim'", r"'unipc\(variant=bh1\)'"),
        ({"grid": make_grid("logsnr", 3, LINEAR)}, "'uniform with 3 steps'", "'logsnr with 3 steps'"),
        ({"grid": make_grid("uniform", 4, LINEAR)}, "'uniform with 3 steps'", "'uniform with 4 steps'"),
        ({"grid": Grid("uniform", (*GRID.times[:2], 0.002, 0.0))}, "time of the grid '0.001'", "'0.002'"),
        ({"weights": "f" * 64}, "'0123456789abcdef'", "'ffffffffffffffff'"),
        ({"weights": ""}, "'0123456789abcdef'", "'not named'"),
    ],
)
def test_another_sampler_is_an_error_that_names_both(change, own, other):
    with pytest.raises(TimingMismatch, match=f"{own} and is used with .*{other}.*tt tune"):
        timing().check(**{**USED, **change})
