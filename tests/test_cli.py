"""The command line: every command on a tiny model, what it refuses, and how it says so."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
import torch
import typer
from PIL import Image
from safetensors.torch import load_file, save_file
from test_evaluate import make_tiny_data
from typer.testing import CliRunner

import tt_lib.cli.sampler
from tt_lib.cli import app
from tt_lib.datasets import load_dataset
from tt_lib.files import PACKAGE_ROOT, file_hash, read_json, write_json
from tt_lib.metrics import evaluate as evaluating
from tt_lib.metrics.evaluate import measure
from tt_lib.metrics.features import load_features, statistics_of
from tt_lib.metrics.frechet import frechet_distance
from tt_lib.metrics.reference import Metric
from tt_lib.metrics.statistics import FeatureStatistics
from tt_lib.networks.unet import CARD, WEIGHTS
from tt_lib.rows import FD_COLUMNS, read_rows
from tt_lib.study.cells import Cell
from tt_lib.study.workbench import make_bench
from tt_lib.timing import load_timing
from tt_lib.tuning import tuner

pytestmark = pytest.mark.usefixtures("one_thread", "project")

COMMANDS = typer.main.get_command(app).commands
SEARCH = ("--model", "tiny", "--nfe", "3", "--optimiser", "search", "--source", "generated", "--images", "2")
PARALLEL = (*SEARCH, "--objective", "truncation", "--strategy", "parallel")
DIGITS = ("--dataset", "digits", "--features", "digits-resnet")
TIMING = "data/timings/tiny/ddim-uniform-3-truncation-parallel.json"
EVALUATE = ("evaluate", "--model", "tiny", "--nfe", "3", *DIGITS, "--n", "20")

TABLE = """
[table]
dataset = "digits"
model = "tiny"
features = "digits-resnet"
n = 20
seed = 0

[tuning]
optimiser = "search"
substeps = 2
images = 2
source = "generated"

[[cells]]
solver = "ddim"
grid = "quadratic"
nfe = 2
timing = ["untuned", "truncation-parallel"]
"""


def tt(*arguments):
    """Run a command in this process, as if it had been typed."""
    words = [str(argument) for argument in arguments]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["tt", *words])
        return CliRunner().invoke(app, words)


def succeeds(*arguments) -> str:
    result = tt(*arguments)
    if result.exit_code:
        raise AssertionError(result.output) from result.exception
    return result.output


def fails(*arguments) -> str:
    """Check that a command ends with one line ``error: ...`` and code 2; returns that line without the word."""
    result = tt(*arguments)
    if not isinstance(result.exception, SystemExit):
        raise AssertionError(f"no error that was meant: {result.output!r}") from result.exception
    assert result.exit_code == 2, result.output
    *before, last = result.output.splitlines()
    assert last.startswith("error: "), result.output
    # Only progress may stand before it.
    assert all(": " in line and "/" in line and " s, " in line for line in before), result.output
    return last.removeprefix("error: ")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder to work in, with a tiny model and features in ``data/``."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(make_tiny_data(tmp_path_factory.getbasetemp()), folder / "data")
    (folder / "a-file").write_text("not a folder")
    (folder / "table.toml").write_text(TABLE)
    (folder / "pictures").mkdir()
    (folder / "pictures" / "cat.png").write_bytes(b"miaow")
    (folder / "truncated").mkdir()
    (folder / "truncated" / "cifar-10-python.tar.gz").write_bytes(b"\x1f\x8b\x08" + bytes(1000))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TT_DATA", "data")
        patch.setenv("TT_COMMIT", "test")
        for name in ("TT_CIFAR10", "TT_COMMAND"):
            patch.delenv(name, raising=False)
        yield folder


@pytest.fixture(scope="module")
def pipeline(project, one_thread):
    """The whole job, one command after another: what each printed."""
    return {
        "stats": succeeds("stats", *DIGITS),
        "tune": succeeds("tune", *PARALLEL, "--history", "runs/history.csv"),
        "sample": succeeds(
            "sample", "--model", "tiny", "--nfe", 3, "--timing", TIMING, "--n", 5, "--out", "runs/a.png"
        ),
        "evaluate": succeeds(*EVALUATE),
        "evaluate tuned": succeeds(*EVALUATE, "--timing", TIMING, "--seed", 5),
        "table": succeeds("table", "--config", "table.toml"),
        "floor": succeeds("floor", *DIGITS),
        "demo": succeeds("demo", "--model", "data/pretrained/tiny", "--n", 20),
    }


@pytest.fixture(autouse=True)
def nothing_left(project):
    """What a failing test leaves behind must not fail the next one."""
    yield
    for path in Path("runs").glob("never*"):
        path.unlink()


def fd_rows() -> pd.DataFrame:
    return read_rows("data/results/fd.csv", FD_COLUMNS)


# Help


def test_commands_are_there():
    assert set(COMMANDS) >= {
        "demo",
        "tune",
        "sample",
        "evaluate",
        "table",
        "floor",
        "train",
        "features",
        "stats",
        "info",
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_is_explained(name):
    command = COMMANDS[name]
    summary = command.help.strip().splitlines()[0]
    assert summary.endswith(".") and 20 < len(summary) <= 120, summary
    for option in command.params:
        assert option.name == "help" or (option.help or "").strip(), f"{name} --{option.name} has no help"
    text = succeeds(name, "--help")
    for option in command.params:
        assert option.name.replace("_", "-").lower() in text.lower()


def test_python_m():
    """The one place where a real process starts: what is typed works, and lists every command."""
    answer = subprocess.run(
        [sys.executable, "-m", "tt_lib", "--help"], cwd=PACKAGE_ROOT, capture_output=True, text=True, timeout=300
    )
    assert answer.returncode == 0 and answer.stderr == ""
    for name in COMMANDS:
        assert f" {name} " in answer.stdout


# The job


def test_tune(pipeline):
    timing = load_timing(TIMING)
    assert (timing.name, timing.model, timing.solver, timing.grid) == ("truncation-parallel", "tiny", "ddim", "uniform")
    assert timing.weights == file_hash(Path("data/pretrained/tiny") / WEIGHTS)
    assert timing.nfe == 3 and timing.ratios[-1] == 1 and timing.ratios[0] != 1
    assert timing.tuning["source"] == "generated" and timing.tuning["images"] == 2
    assert timing.provenance["command"] == " ".join(["tt tune", *PARALLEL, "--history runs/history.csv"])
    history = pd.read_csv("runs/history.csv")
    assert tuple(history.columns) == tuner.HISTORY_COLUMNS and set(history.step) == {0, 1}
    assert TIMING in pipeline["tune"] and " ".join(f"{ratio:.3f}" for ratio in timing.ratios) in pipeline["tune"]
    assert not Path(TIMING).with_suffix(".state").exists()


def test_tune_options_reach_the_tuner(pipeline):
    succeeds(
        "tune",
        "--model",
        "tiny",
        "--nfe",
        2,
        "--solver",
        "dpmpp-2m",
        "--grid",
        "uniform-trailing",
        "--objective",
        "truncation",
        "--strategy",
        "sequential",
        "--iterations",
        2,
        "--tune-batch",
        3,
        "--lr",
        0.01,
        "--value",
        "offset",
        "--low",
        0.9,
        "--high",
        1.2,
        "--freeze-last",
        0,
        "--images",
        4,
        "--dataset",
        "digits",
        "--seed",
        7,
    )
    timing = load_timing("data/timings/tiny/dpmpp-2m-uniform-trailing-2-truncation-sequential-freeze0.json")
    wanted = {
        "objective": "truncation",
        "strategy": "sequential",
        "optimiser": "adam",
        "iterations": 2,
        "batch": 3,
        "lr": 0.01,
        "value": "offset",
        "bounds": [0.9, 1.2],
        "freeze_last": 0,
        "seed": 7,
        "images": 4,
        "source": "real",
    }
    assert {key: timing.tuning[key] for key in wanted} == wanted
    assert timing.ratios[-1] != 1, "freeze-last 0 tunes the last one too"


def test_sample(pipeline):
    first = Path("runs/a.png").read_bytes()
    with Image.open("runs/a.png") as picture:
        assert "5 samples of tiny: ddim, uniform grid, 3 evaluations, truncation-parallel" in picture.info["Title"]
    assert "runs/a.png" in pipeline["sample"]
    words = ["sample", "--model", "tiny", "--nfe", 3, "--n", 5, "--out", "runs/b.png", "--force"]
    pictures = []
    # The batch does not show, the seed and the timing do.
    for more in (["--timing", TIMING, "--batch", 2], ["--timing", TIMING, "--seed", 1], []):
        succeeds(*words, *more)
        pictures.append(Path("runs/b.png").read_bytes())
    assert pictures[0] == first and first not in pictures[1:]


def test_evaluate(pipeline):
    bench, features = make_bench("tiny", batch=500), load_features("digits-resnet")
    reference = statistics_of(load_dataset("digits", "train").pixels, features)
    rows = fd_rows()
    for timing, seed in ((None, 0), (load_timing(TIMING), 5)):
        name = timing.name if timing else "untuned"
        row = rows[(rows.solver == "ddim") & (rows.nfe == 3) & (rows.timing == name)]
        assert len(row) == 1
        expected = measure(
            bench.sampler(Cell("ddim", "uniform", 3), timing), Metric(features, reference), 20, first_seed=seed
        )
        assert row.value.item() == pytest.approx(expected.value, rel=1e-4)
        assert (row.low.item(), row.high.item()) == pytest.approx((expected.low, expected.high), rel=1e-3)
        assert (row.dataset.item(), row.seed.item(), row.n.item()) == ("digits", seed, 20)
    assert "FD (digits-resnet)" in pipeline["evaluate"] and "untuned" in pipeline["evaluate"]


def test_rows_hold_what_a_reader_would_type(pipeline, project):
    commands = set(fd_rows().command)
    assert f"tt {' '.join(EVALUATE)}" in commands and "tt table --config table.toml" in commands
    # An absolute path below the current folder is somebody's own; the same path from here is everybody's.
    succeeds(*EVALUATE, "--seed", 40, "--work", project / "runs" / "my work")
    rows = fd_rows()
    assert rows[rows.seed == 40].command.item() == f"tt {' '.join(EVALUATE)} --seed 40 --work 'runs/my work'"
    assert not any(str(project) in command for command in rows.command)


def test_evaluate_again_replaces_the_row(pipeline):
    before = fd_rows()
    succeeds(*EVALUATE)
    pd.testing.assert_frame_equal(fd_rows(), before)


def test_table(pipeline):
    rows = fd_rows()
    rows = rows[rows.grid == "quadratic"]
    assert set(rows.timing) == {"untuned", "truncation-parallel"} and set(rows.nfe) == {2}
    assert "2 rows written to data/results/fd.csv" in pipeline["table"]
    assert "ddim quadratic 2 truncation-parallel: FD (digits-resnet)" in pipeline["table"]
    assert load_timing("data/timings/tiny/ddim-quadratic-2-truncation-parallel.json").tuning["substeps"] == 2
    before = fd_rows()
    assert "0 rows written" in succeeds("table", "--config", "table.toml")
    said = succeeds("table", "--config", "table.toml", "--dry-run", "--n", 30)
    assert "ddim-quadratic-2-untuned: to do" in said and "2 of 2 cells to do, 120 evaluations" in said
    pd.testing.assert_frame_equal(fd_rows(), before)
    # Another number of samples is another row, in the file that is named.
    assert "2 rows written" in succeeds("table", "--config", "table.toml", "--n", 30, "--results", "runs/fd.csv")
    assert set(read_rows("runs/fd.csv", FD_COLUMNS).n) == {30}


def test_floor(pipeline):
    row = fd_rows()[fd_rows().timing == "floor"]
    features = load_features("digits-resnet")
    train, test = (statistics_of(load_dataset("digits", split).pixels, features) for split in ("train", "test"))
    assert row.value.item() == pytest.approx(frechet_distance(test, train), abs=1e-6) and row.n.item() == 297
    assert f"{row.value.item():.4f} [" in pipeline["floor"]


def test_demo(pipeline):
    table = pd.read_csv("runs/demo/demo.csv")
    assert list(table.sampler) == ["untuned", "tuned"] and list(table.nfe) == [10, 10]
    for name in ("distance", "fd"):
        assert (table[f"{name}_low"] <= table[name]).all() and (table[name] <= table[f"{name}_high"]).all()
    timing = load_timing("runs/demo/timing.json")
    assert timing.nfe == 10 and timing.name == "truncation-parallel" and timing.tuning["images"] == 4
    for name in ("samples.png", "timing.png"):
        with Image.open(f"runs/demo/{name}") as picture:
            assert picture.info["Title"] and picture.info["Description"]
        assert f"runs/demo/{name}" in pipeline["demo"]
    assert f"{table.distance[1]:.4f} [" in pipeline["demo"] and "FD (digits-resnet)" in pipeline["demo"]
    assert not Path("runs/demo/tuning.state").exists()


def test_demo_measures_what_sampling_gives(pipeline):
    """Its Fréchet distances are those of the same seeds, measured the usual way."""
    table = pd.read_csv("runs/demo/demo.csv", index_col="sampler")
    bench, features = make_bench("tiny", batch=50), load_features("digits-resnet")
    reference = statistics_of(load_dataset("digits", "train").pixels, features)
    for name, timing in (("untuned", None), ("tuned", load_timing("runs/demo/timing.json"))):
        found = measure(bench.sampler(Cell("ddim", "uniform", 10), timing), Metric(features, reference), 20)
        assert table.fd[name] == pytest.approx(found.value, rel=1e-4)


# Nothing is overwritten


@pytest.mark.parametrize(
    ("words", "path"),
    [
        (("tune", *PARALLEL), TIMING),
        (("tune", *SEARCH, "--out", TIMING), TIMING),
        (("sample", "--model", "tiny", "--out", "runs/a.png"), "runs/a.png"),
    ],
)
def test_refuses_to_overwrite(pipeline, words, path):
    before = {file: file.read_bytes() for file in Path("data").rglob("*") if file.is_file()}
    message = fails(*words)
    assert path in message and "--force" in message and message.startswith("AlreadyDone: ")
    assert {file: file.read_bytes() for file in Path("data").rglob("*") if file.is_file()} == before


def test_force_replaces(pipeline):
    path = Path("runs/again.json")
    succeeds("tune", *PARALLEL, "--out", path)
    path.write_text("old")
    succeeds("tune", *PARALLEL, "--out", path, "--force")
    assert load_timing(path).taus == load_timing(TIMING).taus


# Errors


@pytest.fixture(scope="module")
def damaged(project):
    """Models that cannot be used, in ``data/pretrained``: damaged, with NaN, of other images."""
    from diffusers import UNet2DModel

    from tt_lib.networks.unet import save_model

    models = project / "data" / "pretrained"
    for name in ("damaged", "nan", "retrained"):
        shutil.copytree(models / "tiny", models / name)
    weights = bytearray((models / "damaged" / WEIGHTS).read_bytes())
    weights[-5] ^= 1
    (models / "damaged" / WEIGHTS).write_bytes(weights)
    for name, change in (("nan", float("nan")), ("retrained", 0.5)):
        tensors = load_file(models / name / WEIGHTS)
        tensors["conv_out.bias"][:] = change
        save_file(tensors, models / name / WEIGHTS, {"format": "pt"})
        card = read_json(models / name / CARD) | {"sha256": file_hash(models / name / WEIGHTS)}
        write_json(models / name / CARD, card)
    network = UNet2DModel(
        sample_size=16,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )
    save_model(network, models / "larger", name="larger", schedule="linear", card={"dataset": "digits"})
    yield
    for name in ("damaged", "nan", "retrained", "larger"):
        shutil.rmtree(models / name)


SAMPLE = ("sample", "--model", "tiny", "--n", "1", "--nfe", "3", "--out", "runs/never.png")
TUNE = ("tune", "--model", "tiny", "--nfe", "3", "--out", "runs/never.json")
DEMO = ("demo", "--model", "tiny", "--out", "runs/refused")

ERRORS = {
    "missing model": (("sample", "--model", "nothing", "--out", "runs/never.png"), "'nothing'", "data/pretrained"),
    "damaged weights": ((*SAMPLE, "--model", "damaged"), WEIGHTS, "expected", "restore"),
    "no CIFAR-10": ((*TUNE, "--dataset", "cifar10"), "CIFAR-10 not found", "--data", "TT_CIFAR10"),
    "wrong image folder": ((*TUNE, "--data", "pictures"), "pictures", "cat.png", "cifar-10-python.tar.gz"),
    "missing image folder": ((*TUNE, "--data", "nowhere"), "nowhere", "no such file"),
    "truncated archive": ((*TUNE, "--data", "truncated"), "cifar-10-python.tar.gz", "truncated", "fetch"),
    "truncated archive itself": (
        (*TUNE, "--data", "truncated/cifar-10-python.tar.gz"),
        "cifar-10-python.tar.gz",
        "truncated",
    ),
    "digits from a folder": ((*TUNE, "--dataset", "digits", "--data", "pictures"), "pictures", "leave it out"),
    "more images than there are": ((*TUNE, "--dataset", "digits", "--images", 1501), "1501", "1500", "fewer"),
    "no step": ((*SAMPLE, "--nfe", 0), "at least 1", "got 0"),
    "no step to tune": ((*TUNE, *PARALLEL, "--nfe", 0), "at least 1", "got 0"),
    "no step to measure": ((*EVALUATE, "--nfe", 0), "at least 1", "got 0"),
    "more steps than levels": ((*SAMPLE, "--nfe", 1001), "at most 1000", "got 1001", "fewer"),
    "more steps than levels to measure": ((*EVALUATE, "--nfe", 1001), "at most 1000", "got 1001", "fewer"),
    "no image": ((*SAMPLE, "--n", 0), "at least one", "0"),
    "samples that do not divide": ((*EVALUATE, "--n", 25), "multiple of 10", "25"),
    "timing of another solver": (
        (*SAMPLE, "--solver", "dpmpp-2m", "--timing", TIMING),
        "solver 'ddim'",
        "solver 'dpmpp-2m'",
        "tt tune",
    ),
    "timing of eta 0": ((*SAMPLE, "--eta", 0.5, "--timing", TIMING), "'ddim'", "'ddim(eta=0.5)'"),
    "timing of another grid": ((*SAMPLE, "--grid", "quadratic", "--timing", TIMING), "'uniform", "'quadratic"),
    "timing of other steps": ((*SAMPLE, "--nfe", 4, "--timing", TIMING), "3 steps", "4 steps"),
    "timing of other weights": ((*SAMPLE, "--model", "retrained", "--timing", TIMING), "weights of the model"),
    "timing that is not there": ((*SAMPLE, "--timing", "no.json"), "no.json"),
    "timing that is none": ((*SAMPLE, "--timing", "data/pretrained/tiny/config.json"), "config.json", "tt tune"),
    "timing that is a picture": ((*SAMPLE, "--timing", "pictures/cat.png"), "cat.png"),
    "unwritable picture": ((*SAMPLE, "--out", "a-file/x.png"), "a-file/x.png", "choose another"),
    "not a picture": ((*SAMPLE, "--out", "runs/x.gif"), "x.gif", ".png"),
    "unwritable timing": ((*TUNE, *PARALLEL, "--out", "a-file/x.json"), "a-file/x", "choose another"),
    "unwritable statistics": (("stats", *DIGITS, "--out", "a-file/x"), "a-file/x", "choose another"),
    "unwritable results": ((*EVALUATE, "--results", "a-file/fd.csv"), "a-file/fd.csv", "choose another"),
    "unwritable state": ((*EVALUATE, "--seed", 9, "--work", "a-file/w"), "a-file/w", "choose another"),
    "unwritable demo": (
        (*DEMO, "--n", 20, "--out", "a-file/x"),
        "a-file/x",
        "choose",
    ),
    "unwritable table's state": (("table", "--config", "table.toml", "--work", "a-file/w", "--force"), "a-file/w"),
    "unknown device": ((*SAMPLE, "--device", "gpu"), "'gpu'", "auto or cpu"),
    "device without memory": ((*SAMPLE, "--device", "meta"), "'meta'", "auto or cpu"),
    "low without high": ((*TUNE, "--low", 0.5), "--low and --high"),
    "high without low": ((*TUNE, "--high", 1.5), "--low and --high"),
    "bounds that exclude 1": ((*TUNE, "--low", 1.1, "--high", 1.5), "bounds", "(1.1, 1.5)"),
    "unknown solver": ((*SAMPLE, "--solver", "eular"), "'eular'", "ddim, "),
    "unknown grid": ((*SAMPLE, "--grid", "cubic"), "'cubic'", "quadratic"),
    "unknown objective": ((*TUNE, "--objective", "fid"), "'fid'", "consistency, truncation"),
    "unknown source": ((*TUNE, "--source", "drawn"), "'drawn'", "generated, real"),
    "unknown data set": ((*TUNE, "--dataset", "mnist"), "'mnist'", "cifar10, digits"),
    "unknown features": ((*EVALUATE, "--features", "vgg"), "'vgg'", "digits-resnet"),
    "features that are not there": ((*EVALUATE, "--features", "cifar10-resnet"), "cifar10-resnet", "tt features"),
    "statistics that are not there": (
        ("evaluate", "--dataset", "cifar10", "--features", "digits-resnet"),
        "cifar10-train-digits-resnet",
        "tt stats --dataset cifar10 --split train --features digits-resnet",
    ),
    "eta of a solver without": ((*SAMPLE, "--solver", "dpmpp-2m", "--eta", 0.5), "dpmpp-2m", "'eta'"),
    "more eta than 1": ((*SAMPLE, "--eta", 5), "eta", "5"),
    "eta below 0": ((*SAMPLE, "--eta", -1), "eta", "-1"),
    "batch of none": ((*SAMPLE, "--batch", 0), "batch", "0"),
    "tuning in batches of none": ((*TUNE, *PARALLEL, "--out", "runs/never.json", "--batch", 0), "batch", "0"),
    "tuning on no image": ((*TUNE, *PARALLEL, "--out", "runs/never.json", "--images", 0), "image", "0"),
    "tuning on fewer": ((*TUNE, "--dataset", "digits", "--images", -1, "--iterations", 1), "image", "-1"),
    "tuning on images of another size": (
        (
            "tune",
            "--model",
            "larger",
            "--nfe",
            2,
            "--dataset",
            "digits",
            "--images",
            2,
            "--iterations",
            1,
            "--out",
            "runs/never.json",
        ),
        "16",
        "8",
        "digits",
    ),
    "table that is not there": (("table", "--config", "no.toml"), "no.toml", "data/tables"),
    "table that is none": (("table", "--config", "pictures/cat.png"), "cat.png", "TOML"),
    "table of no samples": (("table", "--config", "table.toml", "--n", 0), "multiple of 10", "0"),
    "timing by its name alone": ((*SAMPLE, "--timing", "truncation-parallel"), "truncation-parallel", "tt tune"),
    "seed beyond 64 bits": ((*SAMPLE, "--seed", 2**64), str(2**64), "smaller"),
    "results that are none": ((*EVALUATE, "--results", "table.toml"), "table.toml", "restore"),
    "demo of too few": ((*DEMO, "--n", 10), "multiple of 10 and at least 20", "got 10"),
    "demo that does not divide": ((*DEMO, "--n", 25), "multiple of 10 and at least 20", "got 25"),
    "folder that is no model": ((*SAMPLE, "--model", "pictures"), "pictures", "model folder", "give one"),
    "features for a model": ((*SAMPLE, "--model", "data/pretrained/digits-resnet"), "digits-resnet"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_are_one_line_that_helps(pipeline, damaged, name):
    words, *parts = ERRORS[name]
    before = fd_rows()
    message = fails(*words)
    for part in parts:
        assert part in message, message
    assert not list(Path("runs").glob("never*")), "something is left of it"
    pd.testing.assert_frame_equal(fd_rows(), before)


def test_network_that_answers_nan(pipeline, damaged):
    for words in (
        (*SAMPLE, "--model", "nan"),
        (*TUNE, *PARALLEL, "--out", "runs/never.json", "--model", "nan"),
        (*EVALUATE, "--model", "nan"),
    ):
        message = fails(*words)
        assert message.startswith("NotFinite: ") and "evaluation 1, t = " in message and "tau = " in message
    assert "t = 0.667, tau = 0.667" in message  # the first time of the uniform grid of 3


def test_cuda_where_there_is_none(project):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert "'cuda'" in fails(*SAMPLE, "--device", "cuda")


def test_statistics_of_other_features(pipeline):
    path = Path("data/stats/digits-train-digits-resnet.safetensors")
    before = path.read_bytes()
    statistics = FeatureStatistics.load(path)
    statistics.sha256 = "0" * 64
    statistics.save(path)
    try:
        assert "--features digits-resnet --force" in fails(*EVALUATE)
        path.write_bytes(before[:-100])
        assert "digits-train-digits-resnet" in fails(*EVALUATE)
    finally:
        path.write_bytes(before)


def test_damaged_state_of_a_tuning(pipeline):
    Path("runs/state.state").write_bytes(b"half a file")
    assert "state.state" in fails("tune", *PARALLEL, "--out", "runs/state.json")


def test_state_of_another_tuning(pipeline):
    state = Path("runs/other.state")
    torch.save({"fingerprint": "of another"}, state)
    assert "other.state is the state of another tuning" in fails("tune", *PARALLEL, "--out", "runs/other.json")


def test_unwritable_place_is_found_before_the_work(pipeline, monkeypatch):
    worked = []
    monkeypatch.setattr("tt_lib.study.workbench.make_bench", lambda *a, **k: worked.append(a) or make_bench(*a, **k))
    monkeypatch.setattr(
        "tt_lib.study.workbench.Bench.tune", lambda *a, **k: pytest.fail("hours of work, and no place for it")
    )
    fails("tune", *PARALLEL, "--out", "a-file/x.json")


@pytest.mark.parametrize(
    "words",
    [
        (*TUNE, "--history", "a-file/x.csv"),
        (*EVALUATE, "--results", "a-file/x.csv"),
        ("speed", "--results", "a-file/x.csv"),
        ("table", "--config", "table.toml", "--results", "a-file/x.csv"),
        ("direction", "--results", "a-file/x.csv"),
        ("direction", "--figure", "a-file/x.png"),
        ("direction", "--figure", "runs/x.jpg"),
        ("sample", "--out", "runs/x.jpg"),
    ],
)
def test_every_place_is_looked_at_before_the_work(pipeline, monkeypatch, words):
    monkeypatch.setattr("tt_lib.study.workbench.load_model", lambda *a: pytest.fail("work, and no place for it"))
    message = fails(*words)
    assert message.startswith("BadValue: ") and ("a-file/x" in message or "ends in .png" in message)


def test_tuning_ddim_with_noise(pipeline):
    """Common random numbers; the timing belongs to that eta."""
    words = ("--model", "tiny", "--nfe", 2, "--eta", 1)
    succeeds("tune", *words, "--strategy", "parallel", "--optimiser", "search", "--source", "generated", "--images", 2)
    path = "data/timings/tiny/ddim-eta1-uniform-2-consistency-parallel.json"
    assert load_timing(path).options == {"eta": 1.0}
    succeeds("sample", *words, "--timing", path, "--n", 2, "--out", "runs/eta.png")
    assert "ddim(eta=1)" in fails(
        "sample", "--model", "tiny", "--nfe", 2, "--timing", path, "--n", 2, "--out", "runs/never.png"
    )
    assert "draws noise" in fails(
        "tune", *words, "--objective", "truncation", "--source", "generated", "--out", "runs/never.json"
    )


def test_other_errors_keep_their_traceback(project, monkeypatch):
    """A bug is not dressed up as a mistake of the user's."""

    def broken(*arguments, **options):
        raise ValueError("a bug")

    monkeypatch.setattr("tt_lib.study.workbench.make_bench", broken)
    result = tt(*SAMPLE)
    assert isinstance(result.exception, ValueError) and result.exit_code == 1
    assert "error:" not in result.output
    assert any(frame.name == "broken" for frame in traceback_of(result))
    assert not app.pretty_exceptions_enable


def traceback_of(result):
    import traceback

    return traceback.extract_tb(result.exc_info[2])


def test_messages_are_text_not_markup(project):
    assert "[bold]x[/bold]" in fails("sample", "--model", "[bold]x[/bold]", "--out", "runs/never.png")


def test_paths_are_printed_in_one_piece(pipeline):
    path = "runs/" + "a-long-name-of-a-folder/" * 4 + "[red]x.png"
    assert path in succeeds("sample", "--model", "tiny", "--nfe", 1, "--n", 1, "--out", path)


# Interrupted and started again

KILLED = """
import os, signal
from {module} import {owner} as owner
save, saved = owner.{save}, []
def save_and_die(*arguments):
    save(*arguments)
    saved.append(None)
    if len(saved) == {times}:
        os.kill(os.getpid(), signal.SIGKILL)
owner.{save} = save_and_die
from tt_lib.cli import app
app()
"""


def run_until_killed(*words, module: str, owner: str, save: str, times: int) -> None:
    """A command in a process of its own, which is killed when it has called ``owner.save`` so many times."""
    program = KILLED.format(module=module, owner=owner, save=save, times=times)
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PACKAGE_ROOT)}
    ended = subprocess.run([sys.executable, "-c", program, *map(str, words)], env=env, capture_output=True, timeout=300)
    assert ended.returncode == -signal.SIGKILL, ended.stderr


def count_stages(monkeypatch) -> list:
    """Counts the steps that are tuned from now on."""
    stages, search = [], tuner.OPTIMISER_FUNCTIONS["search"]
    monkeypatch.setitem(
        tuner.OPTIMISER_FUNCTIONS,
        "search",
        lambda problem, *a, **k: stages.append(problem.steps) or search(problem, *a, **k),
    )
    return stages


def test_tune_killed_and_started_again(project, monkeypatch):
    words = ["tune", *SEARCH]
    run_until_killed(
        *words, "--out", "runs/killed.json", module="tt_lib.tuning.tuner", owner="_Tuning", save="_save", times=1
    )
    assert Path("runs/killed.state").exists() and not Path("runs/killed.json").exists()
    stages = count_stages(monkeypatch)
    succeeds(*words, "--out", "runs/killed.json")
    assert stages == [[1]], "the first of two steps was tuned already"
    assert not Path("runs/killed.state").exists()
    succeeds(*words, "--out", "runs/whole.json")
    assert stages[1:] == [[0], [1]]
    assert load_timing("runs/killed.json").taus == pytest.approx(load_timing("runs/whole.json").taus, rel=1e-6)


def test_table_killed_and_started_again(pipeline, monkeypatch):
    """Killed when three of the ten sets of its second cell are written: the first cell and these sets are not sampled again."""
    words = ["table", "--config", "table.toml", "--work", "runs/killed", "--results"]
    run_until_killed(*words, "runs/killed.csv", module="tt_lib.metrics", owner="evaluate", save="_keep", times=13)
    assert read_rows("runs/killed.csv", FD_COLUMNS)["timing"].tolist() == ["untuned"]
    sampled, statistics = [], evaluating._statistics
    monkeypatch.setattr(evaluating, "_statistics", lambda *arguments: sampled.append(None) or statistics(*arguments))
    assert "1 rows written" in succeeds(*words, "runs/killed.csv")
    assert 6 <= len(sampled) <= 7, "the next set may have been written as the process was killed"
    whole, found = fd_rows(), read_rows("runs/killed.csv", FD_COLUMNS)
    whole = whole[whole["command"].str.startswith("tt table --config table.toml")]
    assert found["value"].tolist() == pytest.approx(whole["value"].tolist(), rel=1e-6) and len(found) == 2


def test_adam_interrupted_in_the_middle_of_a_step(project, monkeypatch):
    words = ["tune", "--model", "tiny", "--nfe", 2, "--iterations", 6, "--images", 4, "--tune-batch", 2]
    words += ["--source", "generated", "--out"]
    succeeds(*words, "runs/adam.json", "--history", "runs/adam.csv")

    @contextmanager
    def interrupting_bar(title):
        def report(done, total, message):
            if done == 4:
                raise KeyboardInterrupt

        yield report

    with monkeypatch.context() as patch:
        patch.setitem(tuner.tune.__kwdefaults__, "save_seconds", 0.0)
        patch.setattr(tt_lib.cli.sampler, "progress_bar", interrupting_bar)
        assert tt(*words, "runs/interrupted.json").exit_code != 0
    assert len(torch.load("runs/interrupted.state")["partial"]["rows"]) == 4
    succeeds(*words, "runs/interrupted.json", "--history", "runs/interrupted.csv")
    assert load_timing("runs/interrupted.json").taus == load_timing("runs/adam.json").taus
    pd.testing.assert_frame_equal(pd.read_csv("runs/interrupted.csv"), pd.read_csv("runs/adam.csv"))


def test_evaluate_interrupted_and_started_again(pipeline, monkeypatch):
    words = [*EVALUATE, "--seed", 77]
    succeeds(*words, "--work", "runs/w1", "--results", "runs/whole.csv")

    @contextmanager
    def interrupting_bar(title):
        def report(done, total, message):
            if done == 10:
                raise KeyboardInterrupt

        yield report

    with monkeypatch.context() as patch:
        patch.setattr(tt_lib.cli.sampler, "progress_bar", interrupting_bar)
        assert tt(*words, "--work", "runs/w2", "--results", "runs/resumed.csv").exit_code != 0
    assert len(list(Path("runs/w2").iterdir())) == 4 and not Path("runs/resumed.csv").exists()
    succeeds(*words, "--work", "runs/w2", "--results", "runs/resumed.csv")
    first, second = (read_rows(f"runs/{name}.csv").drop(columns="command") for name in ("whole", "resumed"))
    pd.testing.assert_frame_equal(first, second)


# Joint tuning


JOINT = (
    "tune",
    "--model",
    "tiny",
    "--nfe",
    2,
    "--dataset",
    "digits",
    "--features",
    "digits-resnet",
    "--out",
    "runs/joint.json",
)


def test_joint_tuning(pipeline):
    succeeds(*JOINT, "--objective", "frechet", "--strategy", "joint", "--optimiser", "search", "--samples", 20)
    timing = load_timing("runs/joint.json")
    assert timing.name == "frechet-joint" and timing.tuning["samples"] == 20
    assert timing.tuning["loss_tuned"] <= timing.tuning["loss_untuned"]


@pytest.mark.parametrize(
    "words", [("--objective", "frechet"), ("--strategy", "joint"), ("--objective", "frechet", "--strategy", "joint")]
)
def test_joint_tuning_asked_for_by_half(pipeline, words):
    message = fails(*JOINT[:-1], "runs/never.json", *words)
    assert "give --objective frechet --strategy joint --optimiser search" in message
