"""Direction errors as rows: what is measured, what is kept, what they are compared with, and how that is drawn."""

from __future__ import annotations

import sys
from dataclasses import replace

import pandas as pd
import pytest
import torch
from PIL import Image
from test_evaluate import tiny_project
from typer.testing import CliRunner

import tt_lib.study.directions
from tt_lib.cli import app
from tt_lib.errors import BadValue, MissingFile
from tt_lib.figures.results import direction_against_distance, direction_profile
from tt_lib.files import hold
from tt_lib.metrics.direction import MEASURES, measure_directions
from tt_lib.noise import SampleNoise
from tt_lib.rows import CORRELATION_COLUMNS, DIRECTION_COLUMNS, FD_COLUMNS, FD_KEY, read_rows, write_rows
from tt_lib.study.cells import Cell, timing_path
from tt_lib.study.compare import beside_distances, correlations, summarise
from tt_lib.study.directions import Protocol, measurable, order, run_directions
from tt_lib.study.workbench import make_bench
from tt_lib.timing import Timing

pytestmark = pytest.mark.usefixtures("one_thread")
PROTOCOL = Protocol(n=4, seed=3, substeps=2)
TUNED = "truncation-parallel"
CELLS = [Cell("ddim", "uniform", 3), Cell("ddim", "uniform", 3, TUNED), Cell("dpmpp-2m", "quadratic", 2)]


@pytest.fixture(scope="module")
def bench(tmp_path_factory, one_thread):
    with tiny_project(tmp_path_factory):
        bench = make_bench("tiny", batch=3)
        sampler = bench.sampler(CELLS[1])
        times = sampler.grid.times[:-1]
        Timing(
            TUNED,
            tuple(0.9 * t for t in times),
            times,
            "tiny",
            sampler.schedule.name,
            "ddim",
            {},
            "uniform",
            sampler.grid.times,
            weights=bench.model.digest,
        ).save(timing_path("tiny", CELLS[1]))
        yield bench


@pytest.fixture(scope="module")
def rows(bench, tmp_path_factory):
    return run_directions(bench, CELLS, PROTOCOL, tmp_path_factory.mktemp("rows") / "direction.csv")


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


def test_another_timing_changes_the_first_step(rows):
    first = rows[(rows["solver"] == "ddim") & (rows["step"] == 0)].set_index("timing")
    assert abs(first.loc["untuned", "relative"] - first.loc[TUNED, "relative"]) > 1e-3


def test_what_has_rows_is_not_measured_again_unless_forced(bench, tmp_path, monkeypatch):
    path, measured = tmp_path / "direction.csv", []

    def counted(*arguments, **options):
        measured.append(arguments[2].name)
        return measure_directions(*arguments, **options)

    monkeypatch.setattr(tt_lib.study.directions, "measure_directions", counted)
    run_directions(bench, CELLS[:1], PROTOCOL, path)
    before = path.read_bytes()
    again = run_directions(bench, CELLS[:1], PROTOCOL, path)
    assert measured == ["ddim"] and path.read_bytes() == before and len(again) == 3
    run_directions(bench, CELLS[:1], replace(PROTOCOL, n=3), path)
    assert len(measured) == 2 and len(read_rows(path)) == 6
    run_directions(bench, CELLS[:1], PROTOCOL, path, force=True)
    assert len(measured) == 3 and len(read_rows(path)) == 6


def test_cells_that_cannot_be_measured_are_refused_before_any_is(bench, tmp_path):
    path = tmp_path / "direction.csv"
    with pytest.raises(BadValue, match="ddpm draws noise"):
        run_directions(bench, [CELLS[0], Cell("ddpm", "uniform", 3)], PROTOCOL, path)
    with pytest.raises(MissingFile, match=r"ddim-uniform-4-truncation-parallel\.json.*tt tune"):
        run_directions(bench, [CELLS[0], Cell("ddim", "uniform", 4, TUNED)], PROTOCOL, path)
    assert not path.exists()
    with pytest.raises(BadValue, match="at least 2 samples, got n = 1"):
        Protocol(n=1)


def test_a_sampler_that_another_process_measures_is_left_to_it(bench, tmp_path):
    path, work = tmp_path / "direction.csv", tmp_path / "work"
    with hold(work / f"{CELLS[1].label}.lock") as mine:
        seen = []
        rows = run_directions(bench, CELLS[:2], PROTOCOL, path, work=work, progress=lambda *report: seen.append(report))
        assert seen[0][:2] == (1, 6) and seen[-1][:2] == (3, 3), "what the other does is no progress of this one"
        assert mine and set(rows["timing"]) == {"untuned"} and len(read_rows(path)) == 3
    seen.clear()
    rows = run_directions(bench, CELLS[:2], PROTOCOL, path, work=work, progress=lambda *report: seen.append(report))
    assert len(rows) == 6 and {total for _, total, _ in seen} == {3}, "it let go: now it is measured, and it alone"


def test_cells_of_a_table_that_have_a_direction_error(bench):
    others = [Cell("ddim", "uniform", 3, "epsilon-1.01"), Cell("ddpm", "uniform", 3), Cell("ddim", "uniform", 9)]
    ready, untimed = measurable(bench, [*CELLS, *others, Cell("ddim", "uniform", 4, TUNED), CELLS[0]], 8)
    assert ready == CELLS and untimed == 1
    heun, ddim = Cell("heun", "uniform", 4), Cell("ddim", "uniform", 4)
    assert sorted([ddim, heun, Cell("ddim", "logsnr", 4), *CELLS], key=order)[-2:] == [heun, ddim], (
        "two steps, then four"
    )


def test_summary_is_means_over_steps_and_the_last_accumulated_error(rows):
    summary = summarise(rows).set_index(["solver", "timing"])
    here = rows[(rows["solver"] == "ddim") & (rows["timing"] == TUNED)]
    found = summary.loc[("ddim", TUNED)]
    assert found["angle"] == pytest.approx(here["angle"].mean()) and found["local"] == pytest.approx(
        here["local"].mean()
    )
    assert found["accumulated"] == here["accumulated"].iloc[-1] and len(summary) == 3
    assert found["doubt"] == here["doubt"].max() > 0
    with pytest.raises(BadValue, match="no rows"):
        summarise(rows.iloc[:0])


def distances(cells, values) -> pd.DataFrame:
    base = dict.fromkeys(FD_COLUMNS, "") | {
        "dataset": "digits",
        "model": "tiny",
        "eta": 0.0,
        "features": "digits-resnet",
        "n": 20,
    }
    return pd.DataFrame(
        [
            base
            | {
                "solver": cell.solver,
                "grid": cell.grid,
                "nfe": cell.nfe,
                "timing": cell.timing,
                "value": value,
                "low": value,
                "high": value,
                "seed": 0,
            }
            for cell, value in zip(cells, values, strict=True)
        ]
    )


def test_distances_are_joined_by_sampler(rows):
    found = beside_distances(rows, distances(CELLS[:2], [5.0, 4.0]))
    assert found[["timing", "value"]].to_numpy().tolist() == [["untuned", 5.0], [TUNED, 4.0]]
    with pytest.raises(BadValue, match="several distances of ddim, uniform, NFE 3, untuned"):
        beside_distances(rows, distances([CELLS[0], CELLS[0]], [5.0, 4.0]))


def joined(n: int = 8) -> pd.DataFrame:
    """Samplers whose angle ranks as the distance, whose local error ranks the other way round."""
    frame = pd.DataFrame({"value": [float(i + 1) ** 2 for i in range(n)], "n": 4, "substeps": 2})
    frame["timing"] = ["untuned" if i % 2 else TUNED for i in range(n)]
    frame["angle"], frame["relative"] = frame["value"] ** 3, 1.0 + frame["value"]
    frame["local"], frame["accumulated"] = 1 / frame["value"], [3.0, 1, 4, 1.5, 9, 2, 6, 5][:n]
    return frame


def test_rank_correlations():
    found = {(row["what"].split(",")[0], row["among"]): row for row in correlations(joined())}
    assert set(found) == {(name, "all") for name in MEASURES}, "groups of four samplers are left out"
    assert found["angle", "all"]["spearman"] == 1 and found["local", "all"]["spearman"] == -1
    doubtful = found["accumulated", "all"]
    assert doubtful["low"] < doubtful["spearman"] < doubtful["high"] and doubtful["high"] - doubtful["low"] > 0.3
    assert correlations(joined()) == correlations(joined()) and correlations(joined(4)) == []
    assert set(found["angle", "all"]) == set(CORRELATION_COLUMNS)


def test_figures(rows):
    profile = direction_profile(rows, ("angle", "local"))
    assert [axes.get_title() for axes in profile.axes[:2]] == ["ddim · uniform · NFE 3", "dpmpp-2m · quadratic · NFE 2"]
    drawn = profile.axes[0].lines[0].get_xydata()
    here = rows[(rows["solver"] == "ddim") & (rows["timing"] == "untuned")]
    assert drawn.tolist() == here[["t", "angle"]].to_numpy().tolist()
    with pytest.raises(BadValue, match="5 samplers do not fit"):
        direction_profile(
            pd.concat([rows.assign(nfe=nfe) for nfe in range(5)])[lambda frame: frame["solver"] == "ddim"]
        )
    scatter = direction_against_distance(joined())
    assert len(scatter.axes) == 4 and scatter.axes[0].lines[0].get_xydata()[:, 1].tolist() == [1, 9, 25, 49]


def test_the_command(bench, tmp_path):
    folder = tmp_path / "results"

    def run(*arguments):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["tt", "direction", *map(str, arguments)])
            return CliRunner().invoke(app, ["direction", *map(str, arguments)], catch_exceptions=False)

    common = ("--n", 4, "--substeps", 2, "--results", folder / "direction.csv")
    answer = run(
        "--model", "tiny", "--nfe", 3, "--timing", "untuned", "--timing", TUNED, *common, "--figure", tmp_path / "a.png"
    )
    assert answer.exit_code == 0 and len(read_rows(folder / "direction.csv", DIRECTION_COLUMNS)) == 6
    assert Image.open(tmp_path / "a.png").size[0] > 400

    table = tmp_path / "table.toml"
    table.write_text(
        '[table]\ndataset = "digits"\nmodel = "tiny"\nfeatures = ["digits-resnet", "digits-simclr"]\nn = 20\nseed = 0\n'
        '[[cells]]\nsolver = ["ddim", "dpmpp-2m", "ddpm"]\ngrid = ["uniform", "quadratic"]\nnfe = [2, 3, 4, 50]\ntiming = "untuned"\n'
        '[[cells]]\nsolver = "heun"\ngrid = "uniform"\nnfe = 4\ntiming = "truncation-parallel"\n'
    )
    cells = [Cell(s, g, n) for s in ("ddim", "dpmpp-2m") for g in ("uniform", "quadratic") for n in (2, 3, 4)]
    measured = distances(cells, [float(1 + i) for i in range(12)]).assign(
        metric="FD (digits-resnet)", reference="train"
    )
    second = measured.assign(metric="FD (digits-simclr)", features="digits-simclr", value=-measured["value"])
    write_rows(folder / "fd.csv", pd.concat([measured, second]).to_dict("records"), FD_COLUMNS, FD_KEY)
    held = ("--work", tmp_path / "work")
    with hold(tmp_path / "work" / f"{cells[5].label}.lock"):
        answer = run("--config", table, *common, *held)
    assert (
        "1 samplers are left out" in answer.output and "1 more are being measured by another process" in answer.output
    )
    assert "11 samplers in" in answer.output and not (folder / "correlation.csv").exists()
    assert (
        "12 samplers in" in run("--config", table, *common, *held).output and not (folder / "correlation.csv").exists()
    ), "no figure, no comparison"
    answer = run("--config", table, *common, *held, "--figure", tmp_path / "b.png")
    assert (
        answer.exit_code == 0 and "angle, Fréchet distance, all:" in answer.output and "12 samplers in" in answer.output
    )
    found = read_rows(folder / "correlation.csv", CORRELATION_COLUMNS)
    value = found[found["among"] == "all"].set_index("what")["spearman"]
    assert len(value) == 8 and value["angle, Fréchet distance"] == -value["angle, FD (digits-simclr)"] != 0
    assert set(found["cells"]) == {12} and set(found["among"]) == {"all", "untuned"} and (tmp_path / "b.png").is_file()
