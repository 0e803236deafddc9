"""A diffusion's network on the straight path, and a table of it: data/tables/flow.toml on a network of a second."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from test_cli import fails, project, succeeds  # noqa: F401 - a fixture

from tt_lib.errors import BadValue
from tt_lib.files import PACKAGE_ROOT
from tt_lib.grids import Grid, make_grid
from tt_lib.networks.unet import load_model
from tt_lib.rows import FD_COLUMNS, read_rows, results_folder
from tt_lib.sampling import make_sampler
from tt_lib.study.tables import read_tables

pytestmark = pytest.mark.usefixtures("one_thread", "project")
TABLE = PACKAGE_ROOT / "data" / "tables" / "flow.toml"


def test_the_network_of_a_diffusion_on_the_straight_path():
    model, own = load_model("tiny,path=flow"), load_model("tiny")
    assert (model.name, model.schedule.name, model.digest) == ("tiny,path=flow", "flow", own.digest)
    path, diffusion = model.schedule, own.schedule
    for mine, theirs in ((path.t_min, diffusion.t_min), (path.t_max, diffusion.t_max)):
        assert float(path.lam(mine)) == pytest.approx(float(diffusion.lam(theirs))), "the network's own range of lambda"
    # One step from t = 1, where the path has no signal and the diffusion hardly any, is the network's image there. From
    # the largest time on, Euler's method makes DDIM's samples of the diffusion: the same noise, other variables.
    steps = make_grid("logsnr", 6, path, start=path.t_max)
    same = Grid("same", (*diffusion.time_of_lam(path.lam(steps.tensor()[:-1])).tolist(), 0.0))
    for grids in ((Grid("one", (1.0, 0.0)),) * 2, (steps, same)):
        x, expected = (
            replace(make_sampler(each, "ddim", nfe=6), grid=grid)([1, 2]).x
            for each, grid in zip((model, own), grids, strict=True)
        )
        assert torch.allclose(x, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
    assert load_model("tiny,path=ve,sigma_max=80.0").name == "tiny,path=ve", "one path, one spelling"
    with pytest.raises(BadValue, match="unknown schedule 'straight'"):
        load_model("tiny,path=straight")


def test_the_table_has_its_rows_and_runs(tmp_path):
    table, best = read_tables(TABLE)
    assert (table.model, table.n, len(table.cells)) == ("cifar10-ddpm-w96,path=flow", 10_000, 40)
    assert {cell.nfe for cell in table.cells} == {4, 5, 6, 8, 10}
    assert {cell.solver for cell in table.cells} == {"euler", "heun", "dpmpp-2m", "unipc"}
    assert best.n == 50_000 and {(cell.solver, cell.timing) for cell in best.cells} == {("unipc", "untuned")}
    text = TABLE.read_text().partition("# The best untuned")[0]
    small = "noises=24,validation=24,batch=24,iterations=6,learning_rate=0.1,loss=pixels"
    for old, new in (
        ('"cifar10"', '"digits"'),
        ("cifar10-ddpm-w96", "tiny"),
        (r'\["cifar10-resnet", .*\]', '"digits-resnet"'),
        ("n = 10000", "n = 20"),
        (r"nfe = \[.*\]", "nfe = [4]"),
        (r"solver = \[.*\]", 'solver = ["euler", "unipc"]'),
        ("start=uniform-trailing", f"start=uniform-trailing,{small}"),
    ):
        text = re.sub(old, new, text)
    (tmp_path / "small.toml").write_text(text)
    succeeds("stats", "--dataset", "digits", "--features", "digits-resnet", "--device", "cpu")
    succeeds("table", "--config", tmp_path / "small.toml", "--device", "cpu")
    rows = read_rows(results_folder() / "fd.csv", FD_COLUMNS)
    rows = rows[rows["model"] == "tiny,path=flow"]
    assert len(rows) == 4 and (rows["value"] > 0).all() and set(rows["solver"]) == {"euler", "unipc"}
    assert "cannot draw noise" in fails(
        "sample", "--model", "tiny,path=flow", "--solver", "ddpm", "--nfe", "4", "--out", "x.png"
    )
