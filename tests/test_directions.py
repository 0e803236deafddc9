"""Direction errors as rows: what is measured, what is refused, and the command."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from test_cli import fails, succeeds
from test_evaluate import tiny_project

from tt_lib.errors import BadValue
from tt_lib.metrics.direction import MEASURES, direction_rows, measure_directions
from tt_lib.noise import SampleNoise
from tt_lib.rows import DIRECTION_COLUMNS, read_rows, short_hash
from tt_lib.sampling import fine_solution
from tt_lib.study.cells import Cell, timing_path
from tt_lib.study.workbench import make_bench

pytestmark = pytest.mark.usefixtures("one_thread")
TUNED = "truncation-parallel"
CELLS = [Cell("ddim", "uniform", 3), Cell("ddim", "uniform", 3, TUNED), Cell("unipc,order=2", "quadratic", 2)]


@pytest.fixture(scope="module")
def bench(tmp_path_factory, one_thread):
    with tiny_project(tmp_path_factory):
        bench = make_bench("tiny", batch=3)
        sampler = bench.sampler(CELLS[1])
        sampler.make_timing(TUNED, [0.9 * t for t in sampler.grid.times[:-1]]).save(timing_path("tiny", CELLS[1]))
        yield bench


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.label)
def test_rows_are_what_measuring_the_steps_gives(bench, cell):
    sampler = bench.sampler(cell)
    x = SampleNoise(range(3, 7)).start(bench.model.shape)
    taus = [0.9 * t for t in sampler.grid.times[:-1]] if cell.timing == TUNED else None
    with torch.no_grad():
        found = measure_directions(bench.predictor, sampler.schedule, sampler.solver, sampler.grid, x, taus, substeps=2)
    if taus:
        sampler = replace(sampler, timing=sampler.make_timing(TUNED, taus))
    rows = direction_rows(sampler, timing=cell.timing, n=4, seed=3, substeps=2)
    assert [row["step"] for row in rows] == list(range(cell.nfe)) and set(rows[0]) == set(DIRECTION_COLUMNS)
    names = {"model": "tiny", "weights": short_hash(bench.model.digest), "n": 4, "seed": 3, "substeps": 2}
    names |= {"solver": cell.solver, "grid": cell.grid, "nfe": cell.nfe, "eta": 0.0, "timing": cell.timing}
    assert all(names.items() <= row.items() for row in rows)
    for name in (*MEASURES, *(f"{measure}_margin" for measure in MEASURES), "doubt"):
        assert [row[name] for row in rows] == pytest.approx(found.frame()[name].tolist(), rel=1e-4, abs=1e-5), name


def test_gains_are_part_of_the_sampler(bench):
    """A learned sampler was measured without its gains, and its rows said nothing of it."""
    sampler = bench.sampler(CELLS[0])
    timing = sampler.make_timing("learned-gain", sampler.grid.times[:-1], gains=(1.2, 1.0, 0.8))
    rows = direction_rows(replace(sampler, timing=timing), timing=timing.name, n=4, seed=3, substeps=2)
    truth = x = SampleNoise(range(3, 7)).start(bench.model.shape)

    def scaled(x, t, tau):
        return timing.gains[sampler.grid.times.index(float(t))] * bench.predictor(x, t, tau)

    with torch.no_grad():
        ends = replace(sampler, predictor=scaled)(range(3, 7), start=x).x
        for t, s in pairwise(sampler.grid.tensor()):
            truth = fine_solution(bench.predictor, sampler.schedule, truth, t, s, 2)
    accumulated = (ends - truth).flatten(1).square().mean(1).sqrt().mean().item()
    assert rows[-1]["accumulated"] == pytest.approx(accumulated, rel=1e-4)
    assert len(rows) == 3 and rows[0]["relative"] > 0.1


def test_samplers_that_cannot_be_measured(bench):
    with pytest.raises(BadValue, match="ddpm draws noise"):
        direction_rows(bench.sampler(Cell("ddpm", "uniform", 3)), timing="untuned", n=4)
    with pytest.raises(BadValue, match="time-shift corrects the network"):
        direction_rows(bench.sampler(Cell("ddim", "uniform", 3, "time-shift")), timing="time-shift", n=4)
    with pytest.raises(BadValue, match="n of directions must be at least 2, got 1"):
        direction_rows(bench.sampler(CELLS[0]), timing="untuned", n=1)


def test_the_command(bench, tmp_path):
    path = tmp_path / "direction.csv"
    words = ("direction", "--model", "tiny", "--nfe", 3, "--n", 4, "--substeps", 2, "--results", path)
    both = ("--timing", "untuned", "--timing", TUNED)
    said = succeeds(*words, *both)
    rows = read_rows(path, DIRECTION_COLUMNS)
    assert rows[["timing", "step"]].to_numpy().tolist() == [[name, k] for name in ("untuned", TUNED) for k in range(3)]
    expected = direction_rows(bench.sampler(CELLS[0]), timing="untuned", n=4, substeps=2)
    assert rows["angle"][:3].tolist() == pytest.approx([row["angle"] for row in expected], rel=2e-3)
    assert f"{TUNED}, step 3, t 0." in said and f"rows written to {path}" in said
    succeeds(*words, *both)
    assert len(read_rows(path)) == 6, "rows are replaced, not doubled"
    before = path.read_bytes()
    assert "ddim-uniform-3-consistency-parallel.json" in fails(*words, *both, "--timing", "consistency-parallel")
    assert path.read_bytes() == before, "all timings are looked at before anything is measured"
