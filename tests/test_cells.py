"""Names of timings: one spelling each, options that override a table's, and what cannot be said."""

from __future__ import annotations

import pytest

from tt_lib.errors import BadValue
from tt_lib.files import PACKAGE_ROOT
from tt_lib.rows import FD_COLUMNS, read_rows
from tt_lib.study.cells import Cell, parse_timing, spell_timing, timing_path
from tt_lib.timing import load_timing
from tt_lib.tuning import TuneConfig
from tt_lib.tuning.joint import JointConfig

SPELLINGS = {
    "untuned": "untuned",
    "truncation-parallel": "truncation-parallel",
    "truncation-parallel,seed=3,images=16": "truncation-parallel,images=16,seed=3",
    "consistency-sequential,learning_rate=1e-3,iterations=2": "consistency-sequential,iterations=2,learning_rate=0.001",
    "consistency-parallel,freeze_last=0": "consistency-parallel-freeze0",
    "consistency-parallel,freeze_last=1": "consistency-parallel",
    "consistency-parallel-freeze1": "consistency-parallel",
    "consistency-parallel,gate=true,freeze_last=2": "consistency-parallel-freeze2,gate=true",
    "truncation-parallel,value=offset,source=generated": "truncation-parallel,source=generated,value=offset",
    "frechet-joint,freeze_last=0": "frechet-joint",
    "end-joint-freeze1,tries=10,samples=50": "end-joint-freeze1,samples=50,tries=10",
    "constant-0.90": "constant-0.9",
    "epsilon-1.0050": "epsilon-1.005",
    "time-shift,window=40": "time-shift",
    "time-shift,window=80,cutoff=200": "time-shift,cutoff=200,window=80",
}
WRONG = {
    "truncatoin-parallel": "choose one of: untuned.*truncation-parallel",
    "truncation-parallel,colour=3": "'colour=3' is no option.*images.*seed",
    "truncation-parallel,images": "'images' is no option; write name=value",
    "truncation-parallel,": "'' is no option",
    "truncation-parallel,images=0": "images must be at least 1, got 0",
    "truncation-parallel,images=few": "images must be a whole number, got 'few'",
    "truncation-parallel,learning_rate=slow": "learning_rate must be a number, got 'slow'",
    "truncation-parallel,learning_rate=0": "learning rate must be positive, got 0",
    "truncation-parallel,gate=yes": "gate must be true or false, got 'yes'",
    "truncation-parallel,source=drawn": "'drawn'; choose one of: generated, real",
    "truncation-parallel,optimiser=sgd": "'sgd'; choose one of: adam, search",
    "truncation-parallel,seed=1,seed=2": "seed is given twice",
    "truncation-parallel-freeze2,freeze_last=2": "freeze_last is given twice",
    "frechet-joint,images=16": "'images=16' is no option",
    "epsilon": "write what eps is divided by.*epsilon-1.005",
    "epsilon-0": "positive number a little above 1, got 0",
    "time-shift,width=3": "'width=3' is no option",
    "time-shift,window=1": "window of at least 2 levels",
    "time-shift,window=wide": "window must be a number.*got 'wide'",
    "time-shifted": "unknown timing 'time-shifted'",
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
    assert parse_timing("truncation-parallel") == (TuneConfig("truncation", "parallel"), 256, "real")
    config, images, source = parse_timing(
        "consistency-sequential-freeze2,learning_rate=0.001,gate=true,images=16",
        {"source": "generated", "images": 3, "substeps": 2, "samples": 9, "learning_rate": 1.0},
    )
    assert config == TuneConfig(freeze_last=2, lr=0.001, gate=True, substeps=2)
    assert (images, source) == (16, "generated"), "what the name says goes before the defaults"
    assert parse_timing("end-joint,tries=5", {"samples": 30, "optimiser": "search"})[0] == JointConfig(
        "end", samples=30, tries=5
    )


def test_files_have_legal_and_readable_names():
    path = timing_path("tiny", Cell("ddim", "uniform", 5, "consistency-sequential,learning_rate=0.001,seed=3"))
    assert path.name == "ddim-uniform-5-consistency-sequential,learning_rate=0.001,seed=3.json"
    assert not set(path.name) & set('/\\:*?"<>| ')


def test_what_is_shipped_keeps_its_name():
    names = set(read_rows(PACKAGE_ROOT / "data" / "results" / "fd.csv", FD_COLUMNS)["timing"]) - {"floor"}
    timings = [load_timing(path) for path in (PACKAGE_ROOT / "data" / "timings").glob("*/*.json")]
    assert names and timings
    for name in names | {timing.name for timing in timings}:
        assert spell_timing(name) == name
