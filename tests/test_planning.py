"""What a table will cost: counted beforehand and counted by the network are one number."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_evaluating import data, no_git, tiny_project  # noqa: F401 - fixtures
from test_tuning import LINEAR, PREDICTOR, images
from typer.testing import CliRunner

from tt_lib.cli import app
from tt_lib.files import data_folder
from tt_lib.grids import make_grid
from tt_lib.planning import plan_table
from tt_lib.results import FD_COLUMNS, read_rows, results_folder
from tt_lib.solvers import make_solver
from tt_lib.tables import read_table
from tt_lib.tuning import TuneConfig, tune
from tt_lib.tuning.tuner import count_evaluations

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIGS = {
    "search": TuneConfig("truncation", "parallel", "search", substeps=3),
    "sequential": TuneConfig("consistency", "sequential", "search", freeze_last=0),
    "adam": TuneConfig("consistency", "sequential", "adam", iterations=3, batch=4),
    "gate": TuneConfig("consistency", "sequential", "search", substeps=3, gate=True),
    "gate of all": TuneConfig("truncation", "parallel", "search", substeps=3, gate=True),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "heun"])
def test_counted_beforehand(solver, name):
    rows = 0

    def counting(x, t, tau):
        nonlocal rows
        rows += len(x)
        return PREDICTOR(x, t, tau)

    made, steps = make_solver(solver).for_nfe(5)
    grid = make_grid("uniform", steps, LINEAR)
    held = images(n=12, seed=5)
    tune(counting, LINEAR, made, grid, images(n=10), CONFIGS[name], held_out=held)
    assert count_evaluations(LINEAR, made, grid, CONFIGS[name], 10, len(held)) == rows > 0


def test_dry_run(tmp_path_factory):
    table = """
[table]
dataset = "digits"
model = "tiny"
features = "digits-resnet"
n = 20
seed = 0
[tuning]
optimiser = "search"
images = 2
[[cells]]
solver = ["ddim", "analytic-ddim"]
grid = "uniform"
nfe = 3
timing = ["untuned", "consistency-parallel"]
[[cells]]
solver = "ddim"
grid = "uniform"
nfe = 3
timing = ["time-shift", "end-joint,samples=10,tries=5"]
"""
    with tiny_project(tmp_path_factory) as folder:
        path = folder / "table.toml"
        path.write_text(table)
        answer = CliRunner().invoke(app, ["table", "--config", str(path), "--dry-run", "--results", "fd.csv"])
        assert answer.exit_code == 0, answer.output
        lines = answer.output.splitlines()
        # Two steps are tuned: each a target and 23 tries of two evaluations, on two images.
        each = 2 * 2 * (1 + 23 * 2)
        joint = (1 + 3 * 5) * 10 * 3
        assert "ddim-uniform-3-untuned: to do, 60 for sampling, 0 for tuning" in lines
        for name in ("ddim", "analytic-ddim"):
            assert f"{name}-uniform-3-consistency-parallel: to do, 60 for sampling, {each} for tuning" in lines
        assert f"6 of 6 cells to do: 360 evaluations for sampling, {2 * each + joint} for tuning" in lines
        assert not (folder / "fd.csv").exists() and not list((folder / "data").glob("timings/*"))


def test_a_cell_is_done_when_it_has_a_row_in_all_its_features_and_with_more_the_other_measures(tmp_path):
    table = read_table(data_folder() / "tables" / "study.toml")
    table = replace(table, cells=table.cells[:1])
    rows = read_rows(results_folder() / "fd.csv", FD_COLUMNS)
    lacking = rows[(rows["features"] != "cifar10-simclr") | (rows["n"] != table.n)]
    for kept, more, measured in ((rows, False, True), (lacking, False, False), (rows[~rows["metric"].str.startswith("FD-infinity")], True, False)):
        path = tmp_path / f"{measured}-{more}.csv"
        kept.to_csv(path, index=False)
        [plan] = plan_table(replace(table, more=more), path)
        assert plan.measured == measured
