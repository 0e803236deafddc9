"""Direction errors as rows: what is measured, what is kept, and the command."""

from __future__ import annotations

import sys
from dataclasses import replace

import pandas as pd
import pytest
import torch
from PIL import Image
from test_compare import fd_rows
from test_evaluate import tiny_project
from typer.testing import CliRunner

import tt_lib.study.directions
from tt_lib.cli import app
from tt_lib.errors import BadValue, MissingFile, TimingMismatch
from tt_lib.files import hold
from tt_lib.metrics.direction import MEASURES, measure_directions, reference_trajectory
from tt_lib.noise import SampleNoise
from tt_lib.rows import DIRECTION_COLUMNS, FD_COLUMNS, FD_KEY, read_rows, short_hash, write_rows
from tt_lib.study.cells import Cell, timing_path
from tt_lib.study.directions import Protocol, measurable, order, run_directions
from tt_lib.study.workbench import make_bench

pytestmark = pytest.mark.usefixtures("one_thread")
PROTOCOL = Protocol(n=4, seed=3, substeps=2)
TUNED = "truncation-parallel"
CELLS = [Cell("ddim", "uniform", 3), Cell("ddim", "uniform", 3, TUNED), Cell("dpmpp-2m", "quadratic", 2)]


@pytest.fixture(scope="module")
def bench(tmp_path_factory, one_thread):
    with tiny_project(tmp_path_factory):
        bench = make_bench("tiny", batch=3)
        sampler = bench.sampler(CELLS[1])
        sampler.make_timing(TUNED, [0.9 * t for t in sampler.grid.times[:-1]]).save(timing_path("tiny", CELLS[1]))
        yield bench


@pytest.fixture(scope="module")
def rows(bench, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    return run_directions(bench, CELLS, PROTOCOL, folder / "direction.csv", folder)


def test_a_row_for_each_step_of_each_cell(rows):
    assert list(rows.columns) == list(DIRECTION_COLUMNS)
    assert rows.groupby(["solver", "timing"])["step"].apply(list).to_dict() == {
        ("ddim", "untuned"): [0, 1, 2],
        ("ddim", TUNED): [0, 1, 2],
        ("dpmpp-2m", "untuned"): [0, 1],
    }
    assert set(rows["n"]) == {4} and set(rows["seed"]) == {3} and set(rows["substeps"]) == {2}


@pytest.mark.parametrize("which", [0, 1, 2])
def test_rows_are_what_measuring_one_sampler_gives(bench, rows, which):
    cell = CELLS[which]
    sampler = bench.sampler(cell)
    x = SampleNoise(range(3, 7)).start(bench.model.shape)
    taus = [0.9 * t for t in sampler.grid.times[:-1]] if cell.timing == TUNED else None
    with torch.no_grad():
        found = measure_directions(bench.predictor, sampler.schedule, sampler.solver, sampler.grid, x, taus, substeps=2)
    here = rows[(rows["solver"] == cell.solver) & (rows["timing"] == cell.timing)]
    for name in (*MEASURES, *(f"{measure}_margin" for measure in MEASURES), "doubt"):
        assert here[name].to_numpy() == pytest.approx(found.frame()[name].to_numpy(), rel=1e-4, abs=1e-5), name


def test_gains_are_part_of_the_sampler(bench, tmp_path):
    """A learned sampler was measured without its gains, and its rows said nothing of it."""
    cell = Cell("ddim", "uniform", 3, "learned-gain")
    sampler = bench.sampler(replace(cell, timing="untuned"))
    timing = sampler.make_timing(cell.timing, sampler.grid.times[:-1], gains=(1.2, 1.0, 0.8))
    timing.save(timing_path("tiny", cell))
    rows = run_directions(bench, [cell], PROTOCOL, tmp_path / "direction.csv", tmp_path)
    x = SampleNoise(range(3, 7)).start(bench.model.shape)

    def scaled(x, t, tau):
        return timing.gains[sampler.grid.times.index(float(t))] * bench.predictor(x, t, tau)

    with torch.no_grad():
        ends = replace(sampler, predictor=scaled)(range(3, 7), start=x).x
        truth = reference_trajectory(bench.predictor, sampler.schedule, sampler.grid, x, 2)[-1]
    accumulated = (ends - truth).flatten(1).square().mean(1).sqrt().mean().item()
    assert rows["accumulated"].iloc[-1] == pytest.approx(accumulated, rel=1e-4)
    assert len(rows) == 3 and rows["relative"].iloc[0] > 0.1


def test_what_has_rows_is_not_measured_again_unless_forced(bench, tmp_path, monkeypatch):
    path, measured = tmp_path / "direction.csv", []

    def counted(*arguments, **options):
        measured.append(arguments[2].name)
        return measure_directions(*arguments, **options)

    monkeypatch.setattr(tt_lib.study.directions, "measure_directions", counted)
    run_directions(bench, CELLS[:1], PROTOCOL, path, tmp_path)
    before = path.read_bytes()
    again = run_directions(bench, CELLS[:1], PROTOCOL, path, tmp_path)
    assert measured == ["ddim"] and path.read_bytes() == before and len(again) == 3
    run_directions(bench, CELLS[:1], replace(PROTOCOL, n=3), path, tmp_path)
    assert len(measured) == 2 and len(read_rows(path)) == 6
    run_directions(bench, CELLS[:1], PROTOCOL, path, tmp_path, force=True)
    assert len(measured) == 3 and len(read_rows(path)) == 6


def test_another_network_of_the_name_is_measured_for_itself(bench, tmp_path):
    path = tmp_path / "direction.csv"
    run_directions(bench, CELLS[:1], PROTOCOL, path, tmp_path)
    other = replace(bench, model=replace(bench.model, digest="cd" * 32))
    assert set(run_directions(other, CELLS[:1], PROTOCOL, path, tmp_path)["weights"]) == {"cd" * 8}
    rows = read_rows(path, DIRECTION_COLUMNS)
    assert rows.groupby("weights").size().to_dict() == {short_hash(bench.model.digest): 3, "cd" * 8: 3}
    with pytest.raises(TimingMismatch, match="weights of the model"):
        run_directions(other, CELLS[:2], PROTOCOL, path, tmp_path)


def test_cells_that_cannot_be_measured_are_refused_before_any_is(bench, tmp_path):
    path = tmp_path / "direction.csv"
    with pytest.raises(BadValue, match="ddpm draws noise"):
        run_directions(bench, [CELLS[0], Cell("ddpm", "uniform", 3)], PROTOCOL, path, tmp_path)
    with pytest.raises(BadValue, match=r"time-shift corrects the network.*leave it out"):
        run_directions(bench, [Cell("ddim", "uniform", 3, "time-shift")], PROTOCOL, path, tmp_path)
    with pytest.raises(MissingFile, match=r"ddim-uniform-4-truncation-parallel\.json.*tt tune"):
        run_directions(bench, [CELLS[0], Cell("ddim", "uniform", 4, TUNED)], PROTOCOL, path, tmp_path)
    assert not path.exists()
    with pytest.raises(BadValue, match="n of directions must be at least 2, got 1"):
        Protocol(n=1)


def test_paths_of_one_network_do_not_wait_for_each_other(bench, tmp_path):
    path, work, other = tmp_path / "direction.csv", tmp_path / "work", make_bench("tiny,path=flow", batch=3)
    with hold(bench.work_in(work) / f"{CELLS[0].label}.lock"):
        assert len(run_directions(other, CELLS[:1], PROTOCOL, path, work)) == 3
        assert run_directions(bench, CELLS[:1], PROTOCOL, path, work).empty
    assert other.work_in(work).parent == bench.work_in(work) == work / short_hash(bench.model.digest)
    run_directions(bench, CELLS[:1], PROTOCOL, path, work)
    assert read_rows(path).groupby("model").size().to_dict() == {"tiny": 3, "tiny,path=flow": 3}


def test_cells_of_a_table_that_have_a_direction_error(bench):
    others = [Cell("ddim", "uniform", 3, "epsilon-1.01"), Cell("ddpm", "uniform", 3), Cell("ddim", "uniform", 9)]
    ready, untimed = measurable(bench, [*CELLS, *others, Cell("ddim", "uniform", 4, TUNED), CELLS[0]], 8)
    assert ready == CELLS and untimed == 1
    heun, ddim = Cell("heun", "uniform", 4), Cell("ddim", "uniform", 4)
    assert sorted([ddim, heun, Cell("ddim", "logsnr", 4), *CELLS], key=order)[-2:] == [heun, ddim], (
        "two steps, then four"
    )


def test_the_command(bench, tmp_path):
    folder, work = tmp_path / "results", tmp_path / "work"

    def run(*arguments) -> str:
        words = ["direction", *map(str, arguments), "--n", "4", "--substeps", "2", "--work", str(work)]
        words += ["--results", str(folder / "direction.csv")]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["tt", *words])
            answer = CliRunner().invoke(app, words, catch_exceptions=False)
        assert answer.exit_code == 0
        return answer.output

    run("--model", "tiny", "--nfe", 3, "--timing", "untuned", "--timing", TUNED, "--figure", tmp_path / "a.png")
    assert len(read_rows(folder / "direction.csv", DIRECTION_COLUMNS)) == 6
    assert Image.open(tmp_path / "a.png").size[0] > 400

    table = tmp_path / "table.toml"
    table.write_text(
        '[table]\ndataset = "digits"\nmodel = "tiny"\nfeatures = ["a", "b"]\nn = 20\nseed = 0\n'
        '[[cells]]\nsolver = ["ddim", "dpmpp-2m", "ddpm"]\ngrid = "uniform"\nnfe = [2, 3, 50]\ntiming = "untuned"\n'
        '[[cells]]\nsolver = "heun"\ngrid = "uniform"\nnfe = 4\ntiming = "truncation-parallel"\n'
    )
    cells = [(solver, "uniform", nfe, "untuned") for solver in ("ddim", "dpmpp-2m") for nfe in (2, 3)]
    frame = fd_rows(*((*cell, 1.0 + place) for place, cell in enumerate(cells)), features="a", n=20, model="tiny")
    frame = frame.assign(weights=short_hash(bench.model.digest))
    # Distances of another network of this name are not drawn.
    frame = pd.concat([frame, frame.assign(weights="cd" * 8, value=frame["value"] + 0.05)])
    write_rows(folder / "fd.csv", frame.to_dict("records"), FD_COLUMNS, FD_KEY)
    with hold(work / short_hash(bench.model.digest) / "dpmpp-2m-uniform-3-untuned.lock"):
        said = run("--config", table)
    assert "1 samplers without a timing are left out" in said and "3 samplers in" in said
    assert "1 more are being measured by another process" in said
    assert "4 samplers in" in run("--config", table, "--figure", tmp_path / "b.png")
    assert Image.open(tmp_path / "b.png").size[0] > 400
