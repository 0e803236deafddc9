"""``tt demo``, ``tt table``, ``tt floor`` and ``tt card``; ``tt direction`` is in test_directions."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from test_cli import fails, run_until_killed, succeeds
from test_evaluate import tiny_project
from test_tables import HEAD, TUNING

from tt_lib.datasets import load_dataset
from tt_lib.files import PACKAGE_ROOT
from tt_lib.metrics import evaluate
from tt_lib.metrics.evaluate import measure
from tt_lib.metrics.features import statistics_of
from tt_lib.metrics.frechet import frechet_distance
from tt_lib.metrics.reference import load_metric
from tt_lib.rows import FD_COLUMNS, read_rows
from tt_lib.study.cells import Cell
from tt_lib.study.workbench import make_bench
from tt_lib.timing import load_timing

pytestmark = pytest.mark.usefixtures("one_thread")
DIGITS = ("--dataset", "digits", "--features", "digits-resnet")
CELLS = """
[[cells]]
solver = "ddim"
grid = "quadratic"
nfe = 2
timing = ["untuned", "truncation-parallel"]
"""


@pytest.fixture(scope="module", autouse=True)
def printed(tmp_path_factory, one_thread):
    """A project in which each command has run: what they printed."""
    with tiny_project(tmp_path_factory):
        Path("table.toml").write_text(HEAD + TUNING + CELLS)
        Path("a-file").write_text("not a folder")
        succeeds("stats", *DIGITS)
        yield {
            "table": succeeds("table", "--config", "table.toml"),
            "floor": succeeds("floor", *DIGITS),
            "demo": succeeds("demo", "--model", "tiny", "--n", 20),
        }


def test_table(printed):
    rows = read_rows("data/results/fd.csv", FD_COLUMNS)
    rows = rows[rows["grid"] == "quadratic"]
    assert rows["timing"].tolist() == ["untuned", "truncation-parallel"] and set(rows["nfe"]) == {2}
    assert set(rows["command"]) == {"tt table --config table.toml"}
    assert "2 rows written to data/results/fd.csv" in printed["table"]
    assert "ddim quadratic 2 truncation-parallel: FD (digits-resnet)" in printed["table"]
    assert load_timing("data/timings/tiny/ddim-quadratic-2-truncation-parallel.json").tuning["substeps"] == 2
    assert "0 rows written" in succeeds("table", "--config", "table.toml")
    said = succeeds("table", "--config", "table.toml", "--dry-run", "--n", 30)
    assert "ddim-quadratic-2-untuned: to do" in said and "2 of 2 cells to do, 120 evaluations" in said
    # Another number of samples is another row, in the file that is named.
    assert "2 rows written" in succeeds("table", "--config", "table.toml", "--n", 30, "--results", "runs/fd.csv")
    assert set(read_rows("runs/fd.csv", FD_COLUMNS)["n"]) == {30}


def test_table_killed_and_started_again(monkeypatch):
    """Killed when three of the ten sets of its second cell are written: what was written is not sampled again."""
    words = ["table", "--config", "table.toml", "--work", "runs/killed", "--results", "runs/killed.csv"]
    run_until_killed(*words, module="tt_lib.metrics.statistics", owner="FeatureStatistics", save="save", times=13)
    assert read_rows("runs/killed.csv", FD_COLUMNS)["timing"].tolist() == ["untuned"]
    sampled, gather = [], evaluate._gather
    monkeypatch.setattr(evaluate, "_gather", lambda *arguments: sampled.append(None) or gather(*arguments))
    assert "1 rows written" in succeeds(*words) and len(sampled) == 7
    whole, found = (read_rows(path, FD_COLUMNS) for path in ("data/results/fd.csv", "runs/killed.csv"))
    whole = whole[whole["grid"] == "quadratic"]
    assert found["value"].tolist() == pytest.approx(whole["value"].tolist(), rel=1e-6) and len(found) == 2


def test_floor(printed):
    rows = read_rows("data/results/fd.csv", FD_COLUMNS).set_index("solver")
    metric = load_metric("digits-resnet", "digits")
    test = statistics_of(load_dataset("digits", "test").pixels, metric.features)
    assert rows.loc["floor", "value"] == pytest.approx(frechet_distance(test, metric.reference), abs=1e-6)
    assert f"n 297: {rows.loc['floor', 'value']:.4f} [" in printed["floor"]


def test_demo(printed):
    table = pd.read_csv("runs/demo/demo.csv", index_col="sampler")
    assert list(table.index) == ["untuned", "tuned"] and list(table["nfe"]) == [10, 10]
    for name in ("distance", "fd"):
        assert (table[f"{name}_low"] <= table[name]).all() and (table[name] <= table[f"{name}_high"]).all()
    timing = load_timing("runs/demo/timing.json")
    assert timing.nfe == 10 and timing.name == "truncation-parallel" and timing.tuning["images"] == 4
    for name in ("samples.png", "timing.png"):
        with Image.open(f"runs/demo/{name}") as picture:
            assert picture.info["Title"] and picture.info["Description"]
        assert f"runs/demo/{name}" in printed["demo"]
    assert f"{table.loc['tuned', 'distance']:.4f} [" in printed["demo"] and "FD (digits-resnet)" in printed["demo"]
    assert not Path("runs/demo/tuning.state").exists()
    # Its Fréchet distances are those of the same seeds, measured the usual way.
    bench, metric = make_bench("tiny", batch=50), load_metric("digits-resnet", "digits")
    for name, own in (("untuned", None), ("tuned", timing)):
        found = measure(bench.sampler(Cell("ddim", "uniform", 10), own), metric, 20)
        assert table.loc[name, "fd"] == pytest.approx(found.value, rel=1e-4)


def test_card(monkeypatch, tmp_path):
    """Without a repository there is no README to write to."""
    monkeypatch.setattr("tt_lib.files.PACKAGE_ROOT", tmp_path)
    monkeypatch.setenv("TT_DATA", str(tmp_path))
    for name in ("tables", "results/fd.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(PACKAGE_ROOT / "data" / name)
    monkeypatch.setattr("tt_lib.study.page.results_page", lambda frame: str(len(frame)))
    assert succeeds("card").split() == [str(tmp_path / name) for name in ("MANIFEST.csv", "results/README.md")]
    rows = read_rows(tmp_path / "results" / "fd.csv")
    assert (tmp_path / "results" / "README.md").read_text(encoding="utf-8") == str(len(rows))


DEMO = ("demo", "--model", "tiny", "--out", "runs/refused")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("table", "--config", "table.toml", "--n", 0), ("multiple of 10", "0")),
        ((*DEMO, "--n", 10), ("multiple of 10 and at least 20", "got 10")),
    ],
)
def test_errors_are_one_line_that_helps(words, parts):
    before = Path("data/results/fd.csv").read_bytes()
    message = fails(*words)
    assert all(part in message for part in parts), message
    assert Path("data/results/fd.csv").read_bytes() == before
