"""Several processes measure what one measures: the commands under torchrun, on the CPU."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager
from itertools import chain

import pytest
import torch
from test_evaluate import make_tiny_data

from tt_lib.datasets import load_dataset
from tt_lib.errors import BadValue
from tt_lib.files import PACKAGE_ROOT
from tt_lib.metrics.evaluate import fd_rows, measure
from tt_lib.metrics.features import load_features, statistics_of
from tt_lib.metrics.reference import collect_bank, load_metric, reference_path, save_bank
from tt_lib.metrics.world import ALONE, World, join_world
from tt_lib.rows import FD_COLUMNS, read_rows
from tt_lib.study.cells import Cell
from tt_lib.study.workbench import make_bench

pytestmark = pytest.mark.usefixtures("one_thread")
CELL = Cell("ddim", "uniform", 2)

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
    (folder / "table.toml").write_text(TABLE)
    pixels = load_dataset("digits", "train").pixels
    with in_project(folder):
        for name in ("digits-resnet", "digits-simclr"):
            features = load_features(name)
            statistics_of(pixels, features).save(reference_path("digits", "train", name))
            bank = collect_bank(pixels, features, 60)
            save_bank(reference_path("digits", "train", name, bank=True), bank, features, {})
    return folder


@contextmanager
def in_project(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TT_DATA", "data")
        yield


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
    rows = {}
    for processes in (1, 3):
        shutil.rmtree(folder / "data" / "timings", ignore_errors=True)
        out = f"runs/{processes}.csv"
        words = f"table --config table.toml --batch 2 --results {out} --work runs/w{processes}"
        printed = launch(folder, processes, *words.split())
        assert printed.count("6 rows written") == 1, "one process speaks"
        rows[processes] = read_rows(folder / out, FD_COLUMNS)
    assert rows[1]["value"].nunique() == 6, "else equal rows would mean nothing"
    return rows


def test_any_number_of_processes_gives_the_same_rows(tables):
    processes = 3
    one, several = tables[1], tables[processes]
    names = ["solver", "timing", "nfe", "n", "features"]
    assert several[names].to_numpy().tolist() == one[names].to_numpy().tolist()
    for column in ("value", "low", "high"):
        assert several[column].to_numpy() == pytest.approx(one[column].to_numpy(), rel=1e-6, abs=2e-6), column
    assert set(several["device"]) == {f"{processes} x cpu (1 threads)"} and set(one["device"]) == {"cpu (1 threads)"}
    assert all(
        command.startswith(f"torchrun --nproc_per_node {processes} -m tt_lib table") for command in several["command"]
    )


def test_evaluate_in_two_processes_gives_the_tables_row(folder, tables):
    words = "--model tiny --nfe 2 --dataset digits --features digits-resnet --samples 50 --batch 2 --seed 7 --more"
    launch(folder, 2, "evaluate", *words.split(), "--results", "runs/e.csv", "--work", "runs/e")
    rows, table = read_rows(folder / "runs" / "e.csv", FD_COLUMNS), tables[1]
    expected = table[(table["solver"] == "ddim") & (table["timing"] == "untuned")]
    assert rows["value"][0] == pytest.approx(expected["value"].iloc[0], rel=1e-6, abs=2e-6)
    assert not list((folder / "runs" / "e").glob("*.safetensors")), "what was kept is forgotten"
    with in_project(folder):
        metric, sampler = load_metric("digits-resnet", "digits", bank=True), make_bench("tiny").sampler(CELL)
        alone = measure(sampler, metric, 50, first_seed=7, batch=2)
        again = fd_rows(alone, sampler, metric, dataset="digits", seed=7, timing="untuned")
    assert rows["metric"].tolist() == [row["metric"] for row in again] and len(again) == 5
    assert rows["value"].tolist() == pytest.approx([row["value"] for row in again], rel=1e-6, abs=2e-6)


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


@pytest.mark.parametrize(
    "environment",
    [
        {"WORLD_SIZE": "2"},
        {"WORLD_SIZE": "two"},
        {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": "29500"},
        {"WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"},
    ],
)
def test_half_an_environment_is_refused(monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        BadValue, match=r"no processes can be joined by WORLD_SIZE=.*start them with torchrun, or unset"
    ):
        join_world("cpu")
    monkeypatch.setenv("WORLD_SIZE", "")
    assert join_world("cpu") is None


LEAVING = """
import os, sys, time
from accelerate import PartialState
destroy = PartialState.destroy_process_group
def leave(state):
    os.write(1, f"{state.process_index} leaves\\n".encode())  # one write: what processes print in pieces may come mixed
    destroy(state)
PartialState.destroy_process_group = leave
from tt_lib.metrics.world import join_world
world, device = join_world("cpu")
assert world.gather(world.rank) == [0, 1, 2] and world.decide(world.rank) == 0
time.sleep(world.main)
"""


def test_processes_leave_their_group_in_order(tmp_path):
    """Gloo's threads that outlived Python aborted a process, once in some dozens of runs, whose work was done."""
    (tmp_path / "leaving.py").write_text(LEAVING)
    printed = launch(tmp_path, 3, program=("leaving.py",))
    assert printed.split() == ["2", "leaves", "1", "leaves", "0", "leaves"]
