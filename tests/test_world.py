"""Several processes measure what one measures: the commands under torchrun, on the CPU."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain

import pytest
import torch
from safetensors.torch import load_file
from test_evaluate import make_tiny_data
from typer.testing import CliRunner

from tt_lib.cli import app
from tt_lib.datasets import load_dataset
from tt_lib.errors import BadValue
from tt_lib.files import PACKAGE_ROOT, read_json
from tt_lib.metrics.evaluate import fd_row, measure
from tt_lib.metrics.features import load_features, statistics_of
from tt_lib.metrics.reference import load_metric, reference_path
from tt_lib.metrics.world import ALONE, World, join_world
from tt_lib.networks.config import DEFAULTS
from tt_lib.networks.train_unet import train
from tt_lib.networks.unet import CARD, WEIGHTS
from tt_lib.rows import FD_COLUMNS, TRAINING_COLUMNS, read_rows
from tt_lib.study.cells import Cell
from tt_lib.study.workbench import make_bench

pytestmark = pytest.mark.usefixtures("one_thread")
CELL = Cell("ddim", "uniform", 2)

TABLE = """
[table]
dataset = "digits"
model = "tiny"
features = ["digits-resnet", "cifar10-resnet"]
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
        for name in ("digits-resnet", "cifar10-resnet"):
            features = load_features(name)
            statistics_of(pixels, features).save(reference_path("digits", "train", name))
    return folder


@contextmanager
def in_project(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TT_DATA", "data")
        yield


SEVERAL = """
import os, shlex, sys, time
from accelerate import PartialState
destroy = PartialState.destroy_process_group
def leave(state):
    os.write(1, f"{state.process_index} leaves\\n".encode())  # one write: what processes print in pieces may come mixed
    destroy(state)
PartialState.destroy_process_group = leave
from tt_lib.cli import app
from tt_lib.metrics.world import join_world
world, device = join_world("cpu")
assert world.gather(world.rank) == [0, 1, 2] and world.decide(world.rank) == 0
for command in open("commands.txt").read().splitlines():
    sys.argv = ["tt", *shlex.split(command)]
    app(standalone_mode=False)
time.sleep(world.main)
"""
COMMANDS = {
    "table": "table --config table.toml --batch 2 --results runs/3.csv --work runs/w3",
    "evaluate": "evaluate --model tiny --nfe 2 --dataset digits --features digits-resnet --samples 50 --batch 2 "
    "--seed 7 --results runs/e.csv --work runs/e",
    "train": "train --dataset digits --images 264 --batch 66 --lr 1e-3 --out runs/digits --results runs/log.csv",
}


@pytest.fixture(scope="module")
def printed(folder):
    """What three processes say that run the commands one after another; some have a batch less than others."""
    (folder / "several.py").write_text(SEVERAL)
    (folder / "commands.txt").write_text("\n".join(COMMANDS.values()))
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
    start = ["-m", "torch.distributed.run", "--nproc_per_node", "3", "--master_port", str(port), "several.py"]
    ended = subprocess.run(
        [sys.executable, *start], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stdout[-1000:] + ended.stderr[-2000:]
    return ended.stdout


@pytest.fixture(scope="module")
def alone(folder, printed):
    """The rows of the table in this one process, once the three have theirs."""
    shutil.rmtree(folder / "data" / "timings", ignore_errors=True)
    with in_project(folder):
        answer = CliRunner().invoke(app, shlex.split(COMMANDS["table"].replace("3", "1")))
        assert answer.exit_code == 0, answer.output
        rows = read_rows("runs/1.csv", FD_COLUMNS)
    assert rows["value"].nunique() == 6, "else equal rows would mean nothing"
    return rows


def command_of_three(name):
    return f"torchrun --nproc_per_node 3 -m tt_lib {COMMANDS[name]}"


def test_any_number_of_processes_gives_the_same_rows(folder, printed, alone):
    assert printed.count("6 rows written") == 1, "one process speaks"
    several = read_rows(folder / "runs" / "3.csv", FD_COLUMNS)
    names = ["solver", "timing", "nfe", "n", "features"]
    assert several[names].to_numpy().tolist() == alone[names].to_numpy().tolist()
    for column in ("value", "low", "high"):
        assert several[column].to_numpy() == pytest.approx(alone[column].to_numpy(), rel=1e-6, abs=2e-6), column
    assert set(several["device"]) == {"3 x cpu (1 threads)"} and set(alone["device"]) == {"cpu (1 threads)"}
    assert set(several["command"]) == {command_of_three("table")}


def test_evaluate_in_several_processes_gives_the_tables_row(folder, printed, alone):
    rows = read_rows(folder / "runs" / "e.csv", FD_COLUMNS)
    expected = alone[(alone["solver"] == "ddim") & (alone["timing"] == "untuned")]
    assert rows["value"][0] == pytest.approx(expected["value"].iloc[0], rel=1e-6, abs=2e-6)
    assert not list((folder / "runs" / "e").glob("*.safetensors")), "what was kept is forgotten"
    with in_project(folder):
        metric, sampler = load_metric("digits-resnet", "digits"), make_bench("tiny").sampler(CELL)
        measured = measure(sampler, metric, 50, first_seed=7, batch=2)
        again = fd_row(measured, sampler, metric, seed=7, timing="untuned")
    assert rows["metric"].tolist() == [again["metric"]]
    assert rows["value"].tolist() == pytest.approx([again["value"]], rel=1e-6, abs=2e-6)


def test_several_processes_train_what_one_trains(folder, printed):
    """The whole command, on real digits with the real network: it shares each batch, and one process writes."""
    assert printed.count("model folder: runs/digits") == 1
    config = replace(DEFAULTS["digits"], images=264, batch=66, lr=1e-3)
    train(config, folder / "runs" / "alone", results=folder / "runs" / "alone.csv")
    ours, expected = (load_file(folder / "runs" / name / WEIGHTS) for name in ("digits", "alone"))
    for name, value in expected.items():
        assert (ours[name].float() - value.float()).abs().max() < 2e-3, name
    rows, one = (read_rows(folder / "runs" / name, TRAINING_COLUMNS) for name in ("log.csv", "alone.csv"))
    assert set(rows["devices"]) == {"3 x cpu (1 threads)"} and set(rows["run"]) == {"digits"}
    assert set(rows["command"]) == {command_of_three("train")}
    assert rows["step"].tolist() == list(range(1, 5)) and rows["images"].tolist() == [
        66 * step for step in rows["step"]
    ]
    assert rows["loss"].tolist() == pytest.approx(one["loss"].tolist(), abs=2e-3)
    assert read_json(folder / "runs" / "digits" / CARD)["training"]["devices"] == "3 x cpu (1 threads)"


def test_processes_leave_their_group_in_order(printed):
    """Gloo's threads that outlived Python aborted a process, once in some dozens of runs, whose work was done."""
    assert printed.split()[-6:] == ["2", "leaves", "1", "leaves", "0", "leaves"]


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
