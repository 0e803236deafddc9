"""Learned samplers by their names: in cells, on the command line, with the grid that they bring."""

from __future__ import annotations

import pytest

from tt_lib.errors import BadValue
from tt_lib.study.cells import Cell, LearnRecipe, brings_grid, parse_timing, spell_timing
from tt_lib.tuning.learn import LearnConfig


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("learned-grid-timing", LearnRecipe(LearnConfig())),
        ("learned-gain,seed=3", LearnRecipe(LearnConfig(("gain",), seed=3))),
        (
            "learned-grid-timing-gain,learning_rate=0.01,noises=256,start=logsnr,loss=pixels",
            LearnRecipe(LearnConfig(("grid", "timing", "gain"), noises=256, lr=0.01), "pixels", "logsnr"),
        ),
        ("learned-gits", LearnRecipe("gits")),
        ("learned-ld3,loss=pixels", LearnRecipe("ld3", "pixels")),
    ],
)
def test_a_name_is_a_recipe(name, recipe):
    assert parse_timing(name) == recipe
    assert parse_timing(spell_timing(name)) == recipe


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("learned-timing-grid", "unknown timing"),
        ("learned-tau", "unknown timing"),
        ("learned-grid-freeze2", "leave -freeze2 out"),
        ("learned-gits,start=logsnr", "learned-gits takes no option"),
        ("learned-ld3,noises=7", "takes no option but loss"),
        ("learned-grid,images=16", "'images=16' is no option"),
        ("learned-grid,start=spiral", "unknown start grid 'spiral'"),
        ("learned-grid,loss=taste", "unknown loss 'taste'"),
        ("learned-grid,noises=0", "batch of 128 is more than the 0 noises|noises of learning must be at least 1"),
    ],
)
def test_names_that_stand_for_nothing(name, message):
    with pytest.raises(BadValue, match=message):
        spell_timing(name)


def test_a_learned_grid_and_its_timing_go_together():
    assert [brings_grid(name) for name in ("learned-grid-gain", "learned-ld3", "learned-timing", "untuned")] == [
        True,
        True,
        False,
        False,
    ]
    cell = Cell("unipc", "learned", 6, "learned-grid-timing,start=quadratic")
    assert cell.start == "quadratic" and cell.label == "unipc-learned-6-learned-grid-timing,start=quadratic"
    assert Cell("ddim", "logsnr", 6, "learned-timing").start == "logsnr"
    for grid, timing in (("uniform", "learned-grid"), ("learned", "untuned"), ("learned", "learned-timing")):
        with pytest.raises(BadValue, match="do not go together"):
            Cell("ddim", grid, 6, timing)
