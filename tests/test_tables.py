"""Tables: reading their files, filling in their rows, going on after an interruption, and sharing the cells."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
import torch
from test_evaluate import SCHEDULE, Counted, formula, make_tiny_data

from tt_lib.datasets import load_dataset
from tt_lib.errors import BadValue, CorruptFile, MissingFile, NothingLearned, TimingMismatch
from tt_lib.files import PACKAGE_ROOT, file_name, hold
from tt_lib.grids import make_grid
from tt_lib.metrics.evaluate import measure
from tt_lib.metrics.features import load_features, statistics_of
from tt_lib.metrics.reference import Metric
from tt_lib.networks.unet import Model
from tt_lib.predictors import Chunked, EpsPredictor
from tt_lib.rows import FD_COLUMNS, read_rows, short_hash
from tt_lib.schedules import make_schedule
from tt_lib.solvers.registry import SOLVERS
from tt_lib.study.cells import Cell, Recipe, find_timing, timing_path
from tt_lib.study.tables import Table, read_tables, run_table
from tt_lib.study.workbench import Bench
from tt_lib.timing import Timing, load_timing
from tt_lib.tuning import TuneConfig

pytestmark = pytest.mark.usefixtures("one_thread")

HEAD = """
[table]
dataset = "digits"
model = "tiny"
features = "digits-resnet"
n = 20
seed = 3
"""
TUNING = """
[tuning]
optimiser = "search"
substeps = 2
images = 2
source = "generated"
"""
ONE_CELL = """
[[cells]]
solver = "ddim"
grid = "uniform"
nfe = 2
timing = "untuned"
"""


@pytest.fixture
def write(tmp_path):
    """Write a table's file and return its path."""

    def write(*parts: str) -> Path:
        path = tmp_path / "table.toml"
        path.write_text("".join(parts))
        return path

    return write


# Reading


@pytest.mark.parametrize(
    ("cells", "message"),
    [(ONE_CELL + ONE_CELL.replace("2", "[]"), "nfe is an empty list"), ("", r"cells\]\] hold entries .* got 1")],
)
def test_cells_that_are_none(write, cells, message):
    with pytest.raises(BadValue, match=message):
        read_tables(write("" if cells else "cells = [1]\n", HEAD, cells))


def test_lists_give_every_combination(write):
    cells = """
[[cells]]
solver = ["ddim", "dpmpp-2m"]
grid = "quadratic"
nfe = [5, 10]
timing = ["untuned", "consistency-parallel"]

[[cells]]
solver = "ddim"
grid = ["uniform"]
nfe = 7
eta = [0.5, 1.0]
"""
    (table,) = read_tables(write(HEAD, TUNING, cells))
    expected = [
        Cell(solver, "quadratic", nfe, timing)
        for solver, nfe, timing in product(("ddim", "dpmpp-2m"), (5, 10), ("untuned", "consistency-parallel"))
    ]
    assert table.cells == (*expected, Cell("ddim", "uniform", 7, eta=0.5), Cell("ddim", "uniform", 7, eta=1.0))
    assert (table.dataset, table.model, table.features) == ("digits", "tiny", ("digits-resnet",))
    assert (table.n, table.seed) == (20, 3)
    (several,) = read_tables(write(HEAD.replace('"digits-resnet"', '["digits-resnet", "cifar10-resnet"]'), ONE_CELL))
    assert several.features == ("digits-resnet", "cifar10-resnet") and several.tuning == {}


def test_a_block_may_have_an_n_of_its_own(write):
    cell = '[[cells]]\nsolver = "ddim"\ngrid = "uniform"\nnfe = {}\n{}\n'
    blocks = [cell.format(2, ""), cell.format(3, "n = 50"), cell.format([4, 2], "")]
    shared, own = read_tables(write(HEAD, TUNING, *blocks))
    assert (shared.n, [each.nfe for each in shared.cells]) == (20, [2, 4, 2])
    assert own == replace(shared, n=50, cells=(Cell("ddim", "uniform", 3),))
    for n, words in (
        ("15", "multiple of 10 .*got 15"),
        ('"50"', "n of .* must be a whole number"),
        ("[20]", "got .20."),
    ):
        with pytest.raises(BadValue, match=words):
            read_tables(write(HEAD, cell.format(2, f"n = {n}")))


def test_a_name_and_the_table_make_a_recipe(write):
    """(Every option of a name is in test_cells.)"""
    names = '["consistency-parallel,substeps=3", "constant-0.9", "untuned"]'
    (table,) = read_tables(write(HEAD, TUNING, ONE_CELL.replace('"untuned"', names)))
    config = TuneConfig("consistency", "parallel", "search", substeps=3)
    assert [table.recipe(cell) for cell in table.cells] == [Recipe(config, 2, "generated"), None, None]


TUNED_CELL = ONE_CELL.replace("untuned", "truncation-parallel")
BAD_TABLES = {
    "unknown entry of the table": (
        HEAD + "colour = 3\n" + ONE_CELL,
        r"\[table\]: unknown entry 'colour'.*dataset.*seed",
    ),
    "missing entry of the table": (HEAD.replace("n = 20", "") + ONE_CELL, r"\[table\]: the entry 'n' is missing"),
    "unknown entry of a cell": (HEAD + ONE_CELL + "steps = 3\n", r"\[\[cells\]\]: unknown entry 'steps'.*eta.*timing"),
    "missing entry of a cell": (HEAD + ONE_CELL.replace("nfe = 2", ""), "the entry 'nfe' is missing"),
    "unknown entry of tuning": (HEAD + TUNING + "rate = 1.0\n" + TUNED_CELL, "unknown entry 'rate'.*learning_rate"),
    "frozen steps without a name": (HEAD + TUNING + "freeze_last = 2\n" + ONE_CELL, "freeze_last.*timing names them"),
    "no cells": (HEAD, r"no \[\[cells\]\]"),
    "single brackets": (HEAD + ONE_CELL.replace("[[cells]]", "[cells]"), "in two brackets"),
    "misspelt section": (HEAD + TUNING.replace("tuning", "tunning") + ONE_CELL, "unknown entry 'tunning'"),
    "nfe": (HEAD + ONE_CELL.replace("nfe = 2", "nfe = 0"), "ddim-uniform-0-untuned: .* at least 1 .*, got 0"),
    "an nfe that the solver does not make": (
        HEAD + ONE_CELL.replace("ddim", "dpm-solver-3").replace("nfe = 2", "nfe = [4, 6]"),
        "dpm-solver-3-uniform-6-untuned: .* 4, 7, 10, .* got 6",
    ),
    "n": (HEAD.replace("20", "25") + ONE_CELL, "multiple of 10"),
    "n beyond the last seed": (
        HEAD.replace("seed = 3", "seed = 999999990") + ONE_CELL,
        "seeds 999999990 to 1000000009 of",
    ),
    "model as a number": (HEAD.replace('"tiny"', "3") + ONE_CELL, "model must be text, got 3"),
    "one step, and it is frozen": (
        HEAD + TUNED_CELL.replace("nfe = 2", "nfe = [2, 1]"),
        "-1-truncation-parallel: .*1 s",
    ),
    "few images for gamma": (
        HEAD + TUNING + ONE_CELL.replace("ddim", "analytic-ddim"),
        "at least 3 images, got images = 2",
    ),
    "features twice": (HEAD.replace('"digits-resnet"', '["a", "a"]') + ONE_CELL, "one or more different names"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_entries_that_cannot_be(write, name):
    text, message = BAD_TABLES[name]
    with pytest.raises(BadValue, match=rf"table\.toml.*{message}"):
        read_tables(write(text))


def test_files_that_are_no_tables(tmp_path, write):
    with pytest.raises(MissingFile, match=r"nothing\.toml; give a TOML file, .*: bedroom, flow, network, paper, study"):
        read_tables(tmp_path / "nothing.toml")
    with pytest.raises(CorruptFile, match=r"table\.toml is not TOML"):
        read_tables(write("[table\n"))
    (tmp_path / "picture.toml").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(CorruptFile, match=r"picture\.toml"):
        read_tables(tmp_path / "picture.toml")


@pytest.mark.parametrize("path", sorted((PACKAGE_ROOT / "data" / "tables").glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_table_can_be_run(path):
    for table in read_tables(path):
        schedule = make_schedule("flow" if table.model.endswith("path=flow") else "linear")
        assert len(set(table.cells)) == len(table.cells), "a cell twice is measured once and says nothing"
        for cell in table.cells:
            _, steps = cell.make_solver().for_nfe(cell.nfe)
            assert steps >= 1 and len(make_grid(cell.start, steps, schedule).times) == steps + 1, cell.label
            assert file_name(f"{cell.label}.lock") == f"{cell.label}.lock"


def test_the_study_has_every_solver():
    tables = read_tables(PACKAGE_ROOT / "data" / "tables" / "study.toml")
    solvers = {cell.solver for table in tables for cell in table.cells}
    functions = {SOLVERS[name.split(",")[0]].function for name in solvers}
    assert functions == {solver.function for solver in SOLVERS.values()}


# Running

CELLS = (
    Cell("ddim", "uniform", 2),
    Cell("ddim", "quadratic", 3, "consistency-sequential"),
    Cell("dpmpp-2m", "uniform", 3, "truncation-parallel"),
)
SEQUENTIAL, MULTISTEP = CELLS[1:]
TABLE = Table(
    "digits",
    "tiny",
    ("digits-resnet",),
    20,
    3,
    CELLS,
    {"optimiser": "search", "substeps": 2, "images": 2, "source": "generated"},
)


@pytest.fixture(scope="session")
def parts(tmp_path_factory):
    """A bench with a network that costs nothing, and a metric; a test takes its own copy of the bench."""
    data = make_tiny_data(tmp_path_factory.getbasetemp())
    features = load_features("digits-resnet", weights=data / "pretrained" / "digits-resnet")
    metric = Metric(features, statistics_of(load_dataset("digits", "train").pixels, features), dataset="digits")
    model = Model(torch.nn.Identity(), SCHEDULE, (1, 8, 8), "tiny", "ab" * 32)
    predictor = EpsPredictor(formula, SCHEDULE)
    return Bench(model, Chunked(predictor, 50), predictor, torch.device("cpu"), 50), metric


class Project:
    """A data folder and a work folder of their own, and a bench that counts the calls of its network."""

    def __init__(self, folder: Path, parts) -> None:
        bench, self.metric = parts
        self.predictor = Counted(bench.predictor)
        self.bench = replace(bench, predictor=self.predictor, images={}, converged={})
        self.work, self.results = folder / "work", folder / "results" / "fd.csv"
        self.own = self.work / short_hash(bench.model.digest)

    def run(self, table: Table = TABLE, metrics=None, **options) -> list[dict]:
        return run_table(table, self.bench, metrics or [self.metric], self.results, self.work, **options)

    def rows(self) -> pd.DataFrame:
        """What should not depend on when and how the rows were made, in a fixed order."""
        rows = read_rows(self.results, FD_COLUMNS).drop(columns=["date", "versions", "device"])
        return rows.sort_values(["solver", "grid", "nfe", "timing"], ignore_index=True)

    def taus(self) -> dict[Cell, tuple[float, ...]]:
        return {cell: find_timing("tiny", cell).taus for cell in CELLS if find_timing("tiny", cell)}


@pytest.fixture
def project(tmp_path, parts, monkeypatch):
    monkeypatch.setenv("TT_DATA", str(tmp_path))
    return Project(tmp_path, parts)


@pytest.fixture(autouse=True)
def no_git(monkeypatch):
    monkeypatch.setenv("TT_COMMIT", "test")
    monkeypatch.setenv("TT_COMMAND", "tt test")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, parts, one_thread):
    """The table run without an interruption: (folder, project, what it returned, progress)."""
    folder, seen = tmp_path_factory.mktemp("whole"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TT_DATA", str(folder))
        patch.setenv("TT_COMMIT", "test")
        patch.setenv("TT_COMMAND", "tt test")
        project = Project(folder, parts)
        rows = project.run(progress=lambda *report: seen.append(report))
        taus = project.taus()
    return project, rows, seen, taus


def test_options_of_a_solver_are_part_of_its_name(project):
    cells = tuple(
        Cell(f"unipc,variant={variant},order=2", "uniform", 5, timing)
        for variant in ("bh1", "bh2")
        for timing in ("untuned", "truncation-parallel")
    )
    table = replace(TABLE, cells=(*cells, Cell("unipc", "uniform", 5)))
    rows = project.run(table)
    names = ["unipc,order=2,variant=bh1"] * 2 + ["unipc,order=2"] * 2 + ["unipc"]
    assert [row["solver"] for row in rows] == names == [cell.solver for cell in table.cells]
    assert len({row["value"] for row in rows if row["timing"] == "untuned"}) == 3
    assert timing_path("tiny", cells[1]).name == "unipc,order=2,variant=bh1-uniform-5-truncation-parallel.json"
    assert project.run(table) == [], "each is found again"
    with pytest.raises(TimingMismatch, match=r"unipc\(order=2, variant=bh1\).*unipc\(order=2"):
        project.bench.sampler(cells[2], find_timing("tiny", cells[1]))


def test_a_row_and_a_timing_for_each_cell(whole, parts, monkeypatch):
    project, rows, _, taus = whole
    bench, metric = parts
    assert [set(row) for row in rows] == [set(FD_COLUMNS)] * 3
    assert len(project.rows()) == 3
    for row, cell in zip(rows, CELLS, strict=True):
        names = (row["solver"], row["grid"], row["nfe"], row["timing"], row["eta"])
        assert names == (cell.solver, cell.grid, cell.nfe, cell.timing, 0)
        assert (row["dataset"], row["model"], row["n"], row["seed"]) == ("digits", "tiny", 20, 3)
        monkeypatch.setenv("TT_DATA", str(project.results.parent.parent))
        timing = find_timing("tiny", cell)
        expected = measure(bench.sampler(cell, timing), metric, 20, first_seed=3)
        assert row["value"] == pytest.approx(expected.value, abs=1e-6, rel=1e-6)
        assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high), abs=1e-6, rel=1e-6)
    assert set(taus) == {SEQUENTIAL, MULTISTEP}
    for cell, values in taus.items():
        timing = find_timing("tiny", cell)
        assert timing.weights == bench.model.digest and timing.name == cell.timing
        assert (timing.tuning["images"], timing.tuning["source"]) == (2, "generated")
        assert timing.tuning["optimiser"] == "search" and timing.tuning["substeps"] == 2
        assert values != timing.times


def test_a_table_goes_on_past_a_cell_that_learned_nothing(project, monkeypatch):
    def nothing(self, *_):
        raise NothingLearned("came no nearer")

    monkeypatch.setattr(Bench, "learn", nothing)
    learned = Cell("ddim", "learned", 2, "learned-grid")
    table, failed = replace(TABLE, cells=(learned, CELLS[0])), []
    rows = project.run(table, failed=failed)
    assert [row["timing"] for row in rows] == ["untuned"] == project.rows()["timing"].tolist()
    assert [str(each) for each in failed] == ["came no nearer"]
    with pytest.raises(NothingLearned):
        project.run(table)


def test_progress_counts_evaluations(whole):
    _, _, seen, _ = whole
    assert {total for _, total, _ in seen} == {20 * (2 + 3 + 3)}
    done = [count for count, _, _ in seen]
    assert done == sorted(done) and done[-1] == 160
    messages = [message for _, _, message in seen]
    for cell in CELLS:
        assert cell.label in messages and f"{cell.label} done" in messages
    assert any(message.startswith(f"tuning {SEQUENTIAL.label}: ") for message in messages)


def test_the_time_left_is_judged_by_what_is_still_to_do(whole, project, tmp_path):
    """What has its row when a run begins is no progress of that run, nor is what another process holds."""
    copy_of(whole, tmp_path)
    seen, more = [], (replace(CELLS[0], nfe=1), replace(CELLS[0], nfe=4))
    table = replace(TABLE, cells=(*CELLS, *more))
    with hold(project.own / f"{more[0].label}.lock"):
        assert len(project.run(table, progress=lambda *report: seen.append(report))) == 1
        # Not even by force: two processes would write over each other.
        assert project.run(replace(table, cells=more[:1]), force=True) == []
    assert seen[0] == (0, 20 * 4, f"{more[0].label} done") and {total for _, total, _ in seen} == {20 * 4}
    assert seen[-1] == (80, 80, f"{more[1].label} done")


def copy_of(whole, tmp_path) -> None:
    """A finished table in ``tmp_path``."""
    source = whole[0].results.parent.parent
    for name in ("results", "timings"):
        shutil.copytree(source / name, tmp_path / name)


def test_second_run_writes_nothing(whole, project, tmp_path):
    copy_of(whole, tmp_path)
    before = project.results.read_bytes()
    assert project.run() == []
    assert project.results.read_bytes() == before and project.predictor.calls == 0


def test_images_of_another_shape(project):
    """Not even a tuning begins: the cell's timing would be tuned by a reference that means nothing to it."""
    project.bench.model = replace(project.bench.model, shape=(1, 16, 16))
    with pytest.raises(BadValue, match=r"tiny has images of \[1, 16, 16\].*\[1, 8, 8\]"):
        project.run()
    assert project.predictor.calls == 0 and not project.results.exists()


@pytest.mark.parametrize("change", [{"n": 30}, {"seed": 4}, {"dataset": "other"}, {"model": "other"}], ids=str)
def test_rows_of_something_else_do_not_count(whole, project, tmp_path, change):
    copy_of(whole, tmp_path)
    if "model" in change:
        project.bench.model = replace(project.bench.model, name="other")
    metric = replace(project.metric, dataset=change.get("dataset", "digits"))
    assert len(project.run(replace(TABLE, cells=CELLS[:1], **change), [metric])) == 1 and len(project.rows()) == 4


# Interrupted and resumed


@contextlib.contextmanager
def interrupted():
    with pytest.raises(KeyboardInterrupt):
        yield


def interrupt(when, times: int = 1):
    """A progress function that interrupts at the given message's ``times``-th report."""
    left = [times]

    def progress(done, total, message):
        left[0] -= when(message)
        if left[0] == 0:
            raise KeyboardInterrupt

    return progress


MOMENTS = {
    # moment: (which reports, the how manieth, rows there should be, timings there should be, wasted calls at most)
    "between the sets of an untuned cell": (lambda m: m == CELLS[0].label, 4, 0, 0, 2),
    "between two cells": (lambda m: m == f"{CELLS[0].label} done", 1, 1, 0, 0),
    "at the first report of a tuning": (lambda m: m.startswith(f"tuning {SEQUENTIAL.label}"), 1, 1, 0, 5),
    "in the second step of a tuning": (lambda m: m.startswith(f"tuning {SEQUENTIAL.label}"), 30, 1, 0, 20),
    "between the sets of a tuned cell": (lambda m: m == SEQUENTIAL.label, 7, 1, 1, 3),
    "in a parallel tuning": (lambda m: m.startswith(f"tuning {MULTISTEP.label}"), 40, 2, 1, 20),
    "at the very end": (lambda m: m == f"{MULTISTEP.label} done", 1, 3, 2, 0),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_interrupted_and_resumed_is_uninterrupted(whole, project, moment):
    when, times, rows, timings, waste = MOMENTS[moment]
    with interrupted():
        project.run(progress=interrupt(when, times))
    assert len(project.rows()) == rows and len(project.taus()) == timings
    states = [path.name for path in project.own.glob("*.tuning")]
    assert bool(states) == (moment in ("in the second step of a tuning", "in a parallel tuning"))
    assert len(project.run()) == 3 - rows
    pd.testing.assert_frame_equal(project.rows(), whole[0].rows())
    assert project.taus() == whole[3]
    assert not list(project.own.glob("*.tuning"))
    assert project.predictor.calls <= whole[0].predictor.calls + waste, "what was finished is computed again"


@pytest.mark.parametrize(
    "cell", [SEQUENTIAL, replace(SEQUENTIAL, timing="constant-0.95")], ids=lambda cell: cell.timing
)
def test_an_unwritable_folder_of_timings_is_said_before_any_work(project, tmp_path, cell):
    (tmp_path / "timings").write_text("a file where the folder should be")
    with pytest.raises(BadValue, match=r"cannot write .*timings.*tiny"):
        project.run(replace(TABLE, cells=(CELLS[0], cell)))
    assert project.predictor.calls == 0 and not project.results.exists()
    # What has no timing to write does not mind.
    assert len(project.run(replace(TABLE, cells=CELLS[:1]))) == 1


# Timings


def plant(cell: Cell, bench, weights: str, factor: float = 0.97) -> Timing:
    """Put a timing where the shipped one of a cell lies."""
    sampler = bench.sampler(cell)
    times = sampler.grid.times[:-1]
    timing = Timing(
        name=cell.timing,
        taus=tuple(factor * t for t in times),
        times=times,
        model="tiny",
        schedule=sampler.schedule.name,
        solver=cell.solver,
        options={},
        grid=cell.grid,
        grid_times=sampler.grid.times,
        weights=weights,
    )
    timing.save(timing_path("tiny", cell))
    return timing


ONLY_TUNED = replace(TABLE, cells=(SEQUENTIAL,))


def test_shipped_timing_is_used(project):
    timing = plant(SEQUENTIAL, project.bench, project.bench.model.digest)
    [row] = project.run(ONLY_TUNED)
    assert load_timing(timing_path("tiny", SEQUENTIAL)) == timing
    assert project.predictor.calls == 10 * 3, "nothing but the samples"
    expected = measure(project.bench.sampler(SEQUENTIAL, timing), project.metric, 20, first_seed=3)
    assert row["value"] == pytest.approx(expected.value, abs=1e-6)


@pytest.mark.parametrize("weights", ["0" * 64, ""])
def test_timing_of_other_weights_is_an_error_before_any_work(whole, project, weights):
    """Another network of the name may need it: it is neither used nor replaced."""
    path = timing_path("tiny", SEQUENTIAL)
    plant(SEQUENTIAL, project.bench, weights)
    before = path.read_bytes()
    for options in ({}, {"force": True}):
        with pytest.raises(
            TimingMismatch, match=rf"{path}: .*weights of the model '{weights[:16] or 'not named'}'.*away"
        ):
            project.run(**options)
    assert project.predictor.calls == 0 and path.read_bytes() == before and not len(project.rows())
    path.unlink()
    project.run(ONLY_TUNED)
    assert load_timing(path).weights == project.bench.model.digest
    assert load_timing(path).taus == whole[3][SEQUENTIAL]


def test_two_networks_of_one_name(project, tmp_path, parts):
    """What lies in folders of one name: neither rows nor what an interrupted run kept are the other's."""
    table = replace(TABLE, cells=CELLS[:1])
    [first] = project.run(table)
    other = Project(tmp_path, parts)
    other.predictor = Counted(lambda x, t, tau: 0.5 * project.bench.predictor(x, t, tau))
    other.bench = replace(
        project.bench, predictor=other.predictor, model=replace(project.bench.model, digest="cd" * 32)
    )
    before = other.predictor.calls
    [second] = other.run(table)
    assert other.predictor.calls - before == 10 * 2, "nothing is taken from the first one's run"
    assert second["value"] != first["value"]
    rows = project.rows()
    assert rows["weights"].tolist() == ["ab" * 8, "cd" * 8] and rows["model"].tolist() == ["tiny", "tiny"]
    assert project.run(table) == other.run(table) == [], "each has its row"

    wider = replace(table, n=40)
    with pytest.raises(KeyboardInterrupt):
        project.run(wider, progress=interrupt(lambda message: True, 4))
    assert list(project.work.rglob("*.safetensors")), "some sets are finished"
    before = other.predictor.calls
    [again] = other.run(wider)
    assert other.predictor.calls - before == 10 * 2
    fresh = Project(tmp_path / "fresh", parts)
    fresh.bench = other.bench
    assert fresh.run(wider)[0]["value"] == again["value"]
    with hold(project.own / f"{CELLS[0].label}.lock"):
        assert len(other.run(wider, force=True)) == 1, "nor does one wait for the other"


def test_cells_with_a_row_are_measured_again_by_force(whole, project, tmp_path):
    copy_of(whole, tmp_path)
    rows = project.run(replace(TABLE, cells=CELLS[:2]), force=True)
    assert [row["value"] for row in rows] == [row["value"] for row in whole[1][:2]]
    assert len(project.rows()) == 3
    assert project.predictor.calls == 10 * (2 + 3), "the samples are made again, the timing is not tuned again"


# Several processes


def test_two_runs_share_the_cells(whole, project, tmp_path, parts):
    """While one run is in the middle of its first cell, a second one does all the others."""
    second = Project(tmp_path, parts)
    calls = []

    def other_run(done, total, message):
        if not calls:
            calls.append(second.run())

    first = project.run(progress=other_run)
    assert [row["solver"] for row in first] == ["ddim"] and first[0]["timing"] == "untuned"
    assert [row["timing"] for row in calls[0]] == [cell.timing for cell in CELLS[1:]]
    assert project.predictor.calls == 10 * 2
    assert project.predictor.calls + second.predictor.calls == whole[0].predictor.calls  # each measured once
    pd.testing.assert_frame_equal(project.rows(), whole[0].rows())


# Several features

NAMES = ["digits-resnet", "cifar10-resnet"]


@pytest.fixture(scope="session")
def metrics(parts, tmp_path_factory):
    """In both kinds of features."""
    folder, images = tmp_path_factory.getbasetemp() / "tiny-data" / "pretrained", load_dataset("digits", "train").pixels
    extractors = [load_features(name, weights=folder / name) for name in NAMES]
    return [Metric(each, statistics_of(images, each), "digits") for each in extractors]


def test_a_row_for_each_of_the_features(project, metrics):
    """A cell that has a row in the first features is sampled again for the second, and its row stays as it is."""
    assert {row["features"] for row in project.run(replace(TABLE, cells=CELLS[:2]))} == {NAMES[0]}
    before = project.results.read_text().splitlines()
    rows = project.run(metrics=metrics)
    assert [(row["timing"], row["features"]) for row in rows] == [
        *((cell.timing, NAMES[1]) for cell in CELLS[:2]),
        *((CELLS[2].timing, name) for name in NAMES),
    ]
    after = project.results.read_text().splitlines()
    assert after[: len(before)] == before and len(after) == 1 + 6 and not list((project.own / "sets").iterdir())
    expected = measure(project.bench.sampler(CELLS[0]), metrics[1], 20, first_seed=3)
    assert rows[0]["value"] == pytest.approx(expected.value, abs=1e-6) and rows[0]["metric"] == f"FD ({NAMES[1]})"
    calls = project.predictor.calls
    assert project.run(metrics=metrics) == [] and project.predictor.calls == calls
    assert len(project.run(metrics=metrics, force=True)) == 6 and len(project.rows()) == 6
    assert project.predictor.calls == calls + 10 * (2 + 3 + 3), "by force too the samples are made once"
