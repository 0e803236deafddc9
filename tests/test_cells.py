"""Names of timings: one spelling each, options that override a table's, and what cannot be said."""

from __future__ import annotations

import pytest

from tt_lib.errors import BadValue
from tt_lib.files import PACKAGE_ROOT
from tt_lib.rows import FD_COLUMNS, read_rows
from tt_lib.study.cells import Cell, Recipe, check_recipe, parse_timing, spell_timing, timing_path
from tt_lib.timing import load_timing
from tt_lib.tuning import TuneConfig

SPELLINGS = {
    "untuned": "untuned",
    "truncation-parallel": "truncation-parallel",
    "truncation-parallel,seed=3,images=16": "truncation-parallel,images=16,seed=3",
    "consistency-sequential,learning_rate=1e-3,iterations=2": "consistency-sequential,iterations=2,learning_rate=0.001",
    "consistency-parallel,freeze_last=0": "consistency-parallel-freeze0",
    "consistency-parallel-freeze1": "consistency-parallel",
    "consistency-parallel,gate=true,freeze_last=2": "consistency-parallel-freeze2,gate=true",
    "truncation-parallel,value=offset,source=generated": "truncation-parallel,source=generated,value=offset",
    "constant-0.90": "constant-0.9",
    "epsilon-1.00500001": "epsilon-1.00500001",
    "epsilon-1.0050": "epsilon-1.005",
    "time-shift": "time-shift",
}
WRONG = {
    "truncatoin-parallel": "choose one of: untuned.*truncation-parallel",
    "truncation-parallel,colour=3": "'colour=3' is not an option.*images.*seed",
    "truncation-parallel,images": "'images' is not an option; write name=value",
    "truncation-parallel,images=0": "images must be at least 1, got 0",
    "truncation-parallel,learning_rate=slow": "learning_rate must be a number, got 'slow'",
    "truncation-parallel,learning_rate=0": "learning rate must be positive, got 0",
    "truncation-parallel,learning_rate=nan": "lr must be a number, got nan",
    "truncation-parallel,iterations=0": "iterations must be at least 1, got 0",
    "truncation-parallel,seed=-1": "from 0 to 999,999,999, got the seed -1",
    "truncation-parallel,gate=yes": "gate must be true or false, got 'yes'",
    "truncation-parallel,source=drawn": "'drawn'; choose one of: generated, real",
    "truncation-parallel,optimiser=sgd": "'sgd'; choose one of: adam, search",
    "truncation-parallel,seed=1,seed=2": "seed is given twice",
    "truncation-parallel-freeze2,freeze_last=2": "freeze_last is given twice",
    "frechet-joint": "unknown timing 'frechet-joint'",
    "epsilon": "write what eps is divided by.*epsilon-1.005",
    "epsilon-0": "positive number a little above 1, got 0",
    "time-shift,window=80": "unknown timing 'time-shift,window=80'; write time-shift",
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_one_spelling(name):
    assert spell_timing(name) == SPELLINGS[name] == spell_timing(SPELLINGS[name])
    assert Cell("ddim", "uniform", 5, name) == Cell("ddim", "uniform", 5, SPELLINGS[name])


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_said(name):
    with pytest.raises(BadValue, match=WRONG[name]):
        Cell("ddim", "uniform", 5, name)


def test_the_recipe_of_a_name():
    assert parse_timing("truncation-parallel") == Recipe(TuneConfig("truncation", "parallel"), 256, "real")
    recipe = parse_timing(
        "consistency-sequential-freeze2,learning_rate=0.001,gate=true,images=16",
        {"source": "generated", "images": 3, "substeps": 2, "learning_rate": 1.0},
    )
    config = TuneConfig(freeze_last=2, lr=0.001, gate=True, substeps=2)
    assert recipe == Recipe(config, 16, "generated"), "what the name says goes before the defaults"


def test_cells_of_two_values_have_two_names():
    """A timing, its state and its lock are files of the label."""
    labels = {Cell("ddim", "uniform", 5, eta=eta).label for eta in (0.3, 0.3000001, 1, 1.0)}
    assert labels == {f"ddim-eta{eta}-uniform-5-untuned" for eta in ("0.3", "0.3000001", "1")}


@pytest.mark.parametrize(
    ("entry", "value", "type_name"),
    [
        ("solver", 3, "text"),
        ("nfe", "10", "a whole number"),
        ("nfe", True, "a whole number"),
        ("eta", float("nan"), "a number"),
    ],
)
def test_a_value_of_another_type(entry, value, type_name):
    with pytest.raises(BadValue, match=f"{entry} must be {type_name}, got .*{value!r}"):
        Cell(**{"solver": "ddim", "grid": "uniform", "nfe": 5, entry: value})


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (Cell("ddim", "uniform", 1, "truncation-parallel"), "1 step and freeze_last = 1"),
        (Cell("heun", "uniform", 3, "consistency-sequential-freeze2"), "2 steps and freeze_last = 2"),
        (Cell("ddpm", "uniform", 3, "truncation-parallel"), "cannot tune ddpm by truncation"),
        (Cell("ddim", "uniform", 3, "consistency-parallel,gate=true", 1.0), "no gate for ddim"),
        (Cell("analytic-ddpm", "uniform", 3, "consistency-parallel,images=2"), "at least 3 images, got images = 2"),
    ],
    ids=lambda value: value.label if isinstance(value, Cell) else "",
)
def test_a_recipe_that_cannot_be_is_refused_by_name(cell, message):
    with pytest.raises(BadValue, match=f"{cell.label}: .*{message}"):
        check_recipe(cell, parse_timing(cell.timing))
    check_recipe(Cell("heun", "uniform", 3, "consistency-sequential"), parse_timing("consistency-sequential"))


def test_files_have_legal_and_readable_names():
    path = timing_path("tiny", Cell("ddim", "uniform", 5, "consistency-sequential,learning_rate=0.001,seed=3"))
    assert path.name == "ddim-uniform-5-consistency-sequential,learning_rate=0.001,seed=3.json"
    assert not set(path.name) & set('/\\:*?"<>| ')
    assert timing_path("C:/my model?", Cell("ddim", "uniform", 5)).parent.name == "C----my model--"


def test_what_is_shipped_keeps_its_name():
    names = set(read_rows(PACKAGE_ROOT / "data" / "results" / "fd.csv", FD_COLUMNS)["timing"]) - {"floor"}
    timings = [load_timing(path) for path in (PACKAGE_ROOT / "data" / "timings").glob("*/*.json")]
    assert names and timings
    for name in names | {timing.name for timing in timings}:
        assert spell_timing(name) == name


@pytest.mark.parametrize(
    "name", ["learned-ld3,start=logsnr", "learned-timing,start=logsnr", "learned-gain,start=uniform"]
)
def test_a_start_that_nothing_would_begin_from(name):
    """Two names, two rows, and one and the same sampler."""
    with pytest.raises(BadValue, match=r"takes no option but loss|leave start out"):
        parse_timing(name)


def test_one_choice_by_two_names():
    with pytest.raises(BadValue, match="lr and learning_rate are the same option"):
        parse_timing("truncation-parallel", {"lr": 0.01, "learning_rate": 0.5})
