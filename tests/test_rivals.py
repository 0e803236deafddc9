"""One ratio for all steps: what it holds, where it stops, and as a cell of a table."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_evaluate import data, make_sampler, no_git, sampler  # noqa: F401 - fixtures
from test_tables import TABLE, parts, project  # noqa: F401 - fixtures

from tt_lib.baselines import read_constant
from tt_lib.errors import BadValue
from tt_lib.study.cells import Cell, find_timing
from tt_lib.study.tables import Table
from tt_lib.study.workbench import constant_timing

pytestmark = pytest.mark.usefixtures("one_thread")


def test_one_ratio_for_all_steps_but_the_last(sampler):  # noqa: F811
    timing = constant_timing(sampler, 0.95)
    assert timing.name == "constant-0.95" and timing.times == sampler.grid.times[:-1]
    assert timing.ratios[:-1] == pytest.approx([0.95] * (len(timing.taus) - 1)) and timing.ratios[-1] == 1
    every = constant_timing(sampler, 0.95, freeze_last=0)
    assert every.taus[:-1] == timing.taus[:-1] and every.taus[-1] == max(sampler.schedule.t_min, 0.95 * every.times[-1])
    fewer = constant_timing(sampler, 0.95, freeze_last=len(timing.taus))
    assert fewer.taus == fewer.times
    high = constant_timing(sampler, 5.0, freeze_last=0)
    assert max(high.taus) == 1 and all(t <= tau for tau, t in zip(high.taus, high.times, strict=True))
    low = constant_timing(sampler, 1e-9, freeze_last=0)
    assert set(low.taus) == {sampler.schedule.t_min}
    replace(sampler, timing=timing)  # it belongs to this sampler
    with pytest.raises(BadValue, match="positive, got 0"):
        constant_timing(sampler, 0)


def test_names():
    assert read_constant("constant-0.95") == 0.95 and read_constant("constant-1") == 1
    assert read_constant("truncation-parallel") is None
    for wrong in ("constant", "constant-", "constant-x", "constant-0", "constant--1", "constant-0.9-freeze2"):
        with pytest.raises(BadValue, match=f"unknown timing '{wrong}'.*constant-0.95"):
            read_constant(wrong)


def test_as_a_cell(project):  # noqa: F811
    cells = tuple(Cell("ddim", "uniform", 3, timing) for timing in ("untuned", "constant-0.9", "constant-1"))
    table: Table = replace(TABLE, cells=cells)
    rows = {row["timing"]: row["value"] for row in project.run(table)}
    assert rows["constant-1"] == rows["untuned"] != rows["constant-0.9"]
    timing = find_timing("tiny", cells[1])
    assert timing.tuning == {"objective": "constant", "ratio": 0.9, "freeze_last": 1}
    assert project.run(table) == []
