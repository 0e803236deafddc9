"""Several processes measure what one measures: the commands under torchrun, on the CPU."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from itertools import chain

import pytest
import torch
from test_evaluate import make_tiny_data

from tt_lib.datasets import load_dataset
from tt_lib.errors import BadValue
from tt_lib.files import PACKAGE_ROOT
from tt_lib.metrics.evaluate import measure, more_rows
from tt_lib.metrics.features import load_feature_extractor, reference_statistics
from tt_lib.metrics.reference import collect_bank, load_reference, load_reference_bank
from tt_lib.metrics.statistics import FeatureStatistics
from tt_lib.metrics.world import ALONE, World, join_world
from tt_lib.rows import FD_COLUMNS, read_rows
from tt_lib.study.cells import Cell
from tt_lib.study.workbench import make_bench

pytestmark = pytest.mark.usefixtures("one_thread")

TABLE = """
[table]
dataset = "digits"
model = "tiny"
features = ["digits-resnet", "digits-simclr"]
n = 50
seed = 7

[tuning]
optimiser = "search"
substeps = 2
images = 2
source = "generated"

[[cells]]
solver = "ddim"
grid = "uniform"
nfe = 2
timing = ["untuned", "truncation-parallel"]

[[cells]]
solver = "ddpm"
grid = "uniform"
nfe = 2
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, one_thread):
    folder = tmp_path_factory.mktemp("world")
    shutil.copytree(make_tiny_data(tmp_path_factory.getbasetemp()), folder / "data")
    images, stats = load_dataset("digits", "train"), folder / "data" / "stats"
    for name in ("digits-resnet", "digits-simclr"):
        features = load_feature_extractor(name, folder / "data" / "pretrained" / name)
        reference_statistics(images, features).save(stats / f"digits-train-{name}.safetensors")
        collect_bank(images, features, 60).save(stats / f"digits-train-{name}-bank.safetensors")
    (folder / "table.toml").write_text(TABLE)
    return folder


def launch(folder, processes: int, *arguments: str, program: tuple[str, ...] = ("-m", "tt_lib")) -> str:
    """A ``tt`` command, or another program, in so many processes; its output."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(PACKAGE_ROOT),
        "TT_DATA": "data",
        "TT_COMMIT": "test",
    }
    start = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", str(port), *program]
    ended = subprocess.run(
        [sys.executable, *start, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stdout[-1000:] + ended.stderr[-2000:]
    return ended.stdout


@pytest.fixture(scope="module")
def tables(folder):
    """The rows of the table by the number of processes; with three, some have a batch less than others."""
    found = {}
    for processes in (1, 2, 3):
        shutil.rmtree(folder / "data" / "timings", ignore_errors=True)
        out = f"runs/{processes}.csv"
        printed = launch(
            folder,
            processes,
            "table",
            "--config",
            "table.toml",
            "--batch",
            "2",
            "--results",
            out,
            "--work",
            f"runs/w{processes}",
        )
        assert printed.count("6 rows written") == 1, "one process speaks"
        found[processes] = read_rows(folder / out, FD_COLUMNS)
    return found


@pytest.mark.parametrize("processes", [2, 3])
def test_any_number_of_processes_gives_the_same_rows(tables, processes):
    one, several = tables[1], tables[processes]
    names = ["solver", "timing", "nfe", "n", "features"]
    assert several[names].to_numpy().tolist() == one[names].to_numpy().tolist()
    for column in ("value", "low", "high"):
        assert several[column].to_numpy() == pytest.approx(one[column].to_numpy(), rel=1e-6, abs=2e-6), column
    assert set(several["device"]) == {f"{processes} x cpu (1 threads)"} and set(one["device"]) == {"cpu (1 threads)"}
    assert all(
        command.startswith(f"torchrun --nproc_per_node {processes} -m tt_lib table") for command in several["command"]
    )


def test_distances_differ_where_they_should(tables):
    """Otherwise the test above could not fail."""
    assert tables[1]["value"].nunique() == 6


def test_evaluate_in_two_processes_gives_the_tables_row(folder, tables):
    launch(
        folder,
        2,
        "evaluate",
        "--model",
        "tiny",
        "--nfe",
        "2",
        "--dataset",
        "digits",
        "--features",
        "digits-resnet",
        "--samples",
        "50",
        "--batch",
        "2",
        "--seed",
        "7",
        "--more",
        "--results",
        "runs/e.csv",
        "--work",
        "runs/e",
    )
    rows, table = read_rows(folder / "runs" / "e.csv", FD_COLUMNS), tables[1]
    expected = table[(table["solver"] == "ddim") & (table["timing"] == "untuned")]
    assert rows["value"][0] == pytest.approx(expected["value"].iloc[0], rel=1e-6, abs=2e-6)
    assert rows["metric"].tolist()[2:] == [
        f"{name} (digits-resnet)" for name in ("kernel distance", "precision", "recall")
    ]

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TT_DATA", "data")
        bench, features = make_bench("tiny", batch=2), load_feature_extractor("digits-resnet")
        stats, bank = load_reference("digits", "train", features), load_reference_bank("digits", "train", features)
        sampler = bench.sampler(Cell("ddim", "uniform", 2))
        alone = measure(sampler, features, stats, 50, first_seed=7, batch=2, keep=1000)
        again = more_rows({"n": 50}, alone, stats, bank, features)
    assert rows["value"].tolist()[1:] == pytest.approx([row["value"] for row in again], rel=1e-6, abs=2e-6)
    assert not list((folder / "runs" / "e").glob("*.safetensors")), "what was kept is forgotten"


def test_shares_are_disjoint_and_complete():
    items = list(range(11))
    shares = [World(rank, 3).share(items) for rank in range(3)]
    assert sorted(chain(*shares)) == items and max(map(len, shares)) - min(map(len, shares)) <= 1
    assert ALONE.share(items) == items and ALONE.gather("a") == ["a"] and ALONE.decide("a") == "a" and ALONE.main


def test_one_device_for_several_processes_is_refused(monkeypatch):
    assert join_world("cpu") is None
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(BadValue, match="cuda:1 is one device for 2 processes"):
        join_world("cuda:1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(BadValue, match="2 processes were started on a machine with 1 GPUs"):
        join_world("auto")


LEAVING = """
import atexit
import os
import torch
# One write each: what two processes print in pieces may come mixed.
atexit.register(lambda: os.write(1, f"left: {not torch.distributed.is_initialized()}\\n".encode()))
from tt_lib.metrics.world import join_world
world, device = join_world("cpu")
assert world.size == 2 and world.total(torch.ones(1)) == 2
"""


def test_processes_leave_their_group_before_python_is_gone(tmp_path):
    """Gloo's threads that outlived Python aborted a process, once in some dozens of runs, whose work was done."""
    (tmp_path / "leaving.py").write_text(LEAVING)
    assert launch(tmp_path, 2, program=("leaving.py",)).count("left: True") == 2


def test_statistics_move_whole():
    stats = FeatureStatistics(2, "f", meta={"a": "b"}).update(torch.tensor([[1.0, 2.0], [3.0, 5.0]]))
    twin = stats.to("cpu")
    stats.update(torch.zeros(1, 2))
    assert (twin.n, twin.meta) == (2, {"a": "b"}) and twin.mean.tolist() == [2.0, 3.5]
