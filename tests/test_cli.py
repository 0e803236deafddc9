"""The command line: every command on a tiny model, what it refuses, and how it says so."""

from __future__ import annotations

import ast
import io
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pandas as pd
import pytest
import torch
import typer
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file
from test_evaluate import tiny_project
from test_tables import HEAD, ONE_CELL
from typer.testing import CliRunner

from tt_lib.cli import app
from tt_lib.cli.app import progress_bar
from tt_lib.datasets import load_dataset
from tt_lib.errors import BadValue
from tt_lib.files import PACKAGE_ROOT, file_hash, read_json, write_json
from tt_lib.metrics.evaluate import measure
from tt_lib.metrics.features import load_features, statistics_of
from tt_lib.metrics.reference import Metric
from tt_lib.metrics.statistics import FeatureStatistics
from tt_lib.networks.unet import CARD, WEIGHTS
from tt_lib.rows import FD_COLUMNS, read_rows
from tt_lib.study.cells import Cell
from tt_lib.study.tables import PUBLISHED
from tt_lib.study.workbench import HELD_OUT, make_bench
from tt_lib.timing import load_timing
from tt_lib.tuning import optimisers, tuner

pytestmark = pytest.mark.usefixtures("one_thread", "project")

COMMANDS = typer.main.get_command(app).commands
TINY = ("--model", "tiny", "--nfe", "3")
NAME = "truncation-parallel,images=2,source=generated"
PARALLEL = (*TINY, "--timing", NAME)
DIGITS = ("--dataset", "digits", "--features", "digits-resnet")
TIMING = f"data/timings/tiny/ddim-uniform-3-{NAME}.json"
EVALUATE = ("evaluate", *TINY, *DIGITS, "--n", "20")


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
    """Check that a command ends with code 2 and one line ``error: ...`` on stderr; returns it without the word."""
    result = tt(*arguments)
    if not isinstance(result.exception, SystemExit):
        raise AssertionError(f"no error that was meant: {result.output!r}") from result.exception
    assert result.exit_code == 2, result.output
    # A library may warn of what it lacks, as torch does of CUDA.
    (line,) = [line for line in result.stderr.splitlines() if "WARNING" not in line and "No CUDA" not in line]
    assert line.startswith("error: "), result.output
    # Nothing but progress is on stdout.
    assert all(": " in line and "/" in line and " s, " in line for line in result.stdout.splitlines()), result.output
    return line.removeprefix("error: ")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder to work in, with a tiny model and features in ``data/``."""
    with tiny_project(tmp_path_factory) as folder, pytest.MonkeyPatch.context() as patch:
        for name in ("TT_CIFAR10", "TT_COMMAND"):
            patch.delenv(name, raising=False)
        (folder / "a-file").write_text("not a folder")
        (folder / "a-folder.csv").mkdir()
        (folder / "pictures").mkdir()
        (folder / "pictures" / "cat.png").write_bytes(b"miaow")
        yield folder


@pytest.fixture(scope="module")
def pipeline(project, one_thread):
    """The whole job, one command after another: what each printed."""
    return {
        "stats": succeeds("stats", *DIGITS),
        "tune": succeeds("tune", *PARALLEL),
        "sample": succeeds("sample", *TINY, "--timing", TIMING, "--n", 5, "--out", "runs/a.png"),
        "evaluate": succeeds(*EVALUATE),
        "evaluate tuned": succeeds(*EVALUATE, "--timing", TIMING, "--seed", 5),
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
    assert (timing.name, timing.model, timing.solver, timing.grid) == (NAME, "tiny", "ddim", "uniform")
    assert timing.weights == file_hash(Path("data/pretrained/tiny") / WEIGHTS)
    assert timing.nfe == 3 and timing.ratios[-1] == 1 and timing.ratios[0] != 1
    facts = {"source": "generated", "images": 2, "optimiser": "search", "strategy": "parallel"}
    assert facts.items() <= timing.tuning.items()
    assert timing.provenance["command"] == " ".join(["tt tune", *PARALLEL])
    assert TIMING in pipeline["tune"] and " ".join(f"{ratio:.3f}" for ratio in timing.ratios) in pipeline["tune"]
    assert not Path(f"{TIMING}.state").exists()


def test_what_the_name_of_a_timing_says_reaches_the_tuner(pipeline):
    name = "consistency-sequential-freeze0,batch=3,images=4,iterations=2,learning_rate=0.01,optimiser=adam,seed=7"
    words = ("--model", "tiny", "--nfe", 2, "--solver", "dpmpp-2m", "--grid", "uniform-trailing")
    succeeds("tune", *words, "--timing", f"{name},value=offset", "--dataset", "digits")
    timing = load_timing(f"data/timings/tiny/dpmpp-2m-uniform-trailing-2-{name},value=offset.json")
    expected = {"objective": "consistency", "strategy": "sequential", "optimiser": "adam", "iterations": 2, "batch": 3}
    expected |= {"lr": 0.01, "value": "offset", "freeze_last": 0, "seed": 7, "images": 4, "source": "real"}
    assert expected.items() <= timing.tuning.items() and timing.name == f"{name},value=offset"
    assert timing.ratios[-1] != 1, "freeze0 tunes the last one, too"
    gated = "consistency-parallel,gate=true,images=2,source=generated"
    succeeds("tune", *TINY, "--timing", gated)
    tuning = load_timing(f"data/timings/tiny/ddim-uniform-3-{gated}.json").tuning
    assert [record["evaluation"] for record in tuning["gated"]] == [0, 1] and tuning["gate_images"] == HELD_OUT


def test_sample(pipeline):
    first = Path("runs/a.png").read_bytes()
    with Image.open("runs/a.png") as picture:
        assert (
            "5 samples of tiny: ddim, uniform grid, 3 evaluations, truncation-parallel,images=2"
            in picture.info["Title"]
        )
    assert "runs/a.png" in pipeline["sample"]
    words = ["sample", *TINY, "--n", 5, "--out", "runs/b.png", "--force"]
    pictures = []
    # The batch does not show, the seed and the timing do, and a correction.
    tuned = ["--timing", TIMING]
    for more in ([*tuned, "--batch", 2], [*tuned, "--seed", 1], [], ["--timing", "epsilon-1.1"]):
        succeeds(*words, *more)
        pictures.append(Path("runs/b.png").read_bytes())
    assert pictures[0] == first and len(set(pictures)) == 4
    # A name stands for the shipped file, one ratio needs none, and what is not there is named with its remedy.
    for timing, same in ((NAME, first), ("untuned", pictures[2]), ("constant-0.9", None)):
        succeeds(*words, "--timing", timing)
        assert same is None or Path("runs/b.png").read_bytes() == same, timing
    assert Path("runs/b.png").read_bytes() not in pictures
    assert "make it with `tt tune`" in fails(*words, "--timing", "consistency-parallel")


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
    assert f"tt {' '.join(EVALUATE)}" in commands
    # An absolute path below the current folder is somebody's own; the same path from here is everybody's.
    succeeds(*EVALUATE, "--seed", 40, "--work", project / "runs" / "my work")
    rows = fd_rows()
    assert rows[rows.seed == 40].command.item() == f"tt {' '.join(EVALUATE)} --seed 40 --work 'runs/my work'"
    assert not any(str(project) in command for command in rows.command)


def test_evaluate_again_replaces_the_row_and_a_correction_has_its_own(pipeline):
    before = fd_rows()
    succeeds(*EVALUATE)
    pd.testing.assert_frame_equal(fd_rows(), before)
    for timing in ("epsilon-1.1", "epsilon-1.2"):
        succeeds(*EVALUATE, "--timing", timing, "--results", "runs/epsilon.csv")
    rows = read_rows("runs/epsilon.csv", FD_COLUMNS)
    assert list(rows.timing) == ["epsilon-1.1", "epsilon-1.2"] and rows.value.nunique() == 2


# Nothing is overwritten


@pytest.mark.parametrize(
    ("words", "path"),
    [
        (("tune", *PARALLEL), TIMING),
        (("sample", "--model", "tiny", "--out", "runs/a.png"), "runs/a.png"),
    ],
)
def test_refuses_to_overwrite(pipeline, words, path):
    before = {file: file.read_bytes() for file in Path("data").rglob("*") if file.is_file()}
    message = fails(*words)
    assert path in message and "--force" in message
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
    """Models that cannot be used, in ``data/pretrained``: damaged, with NaN, of other weights. One is gone."""
    models = project / "data" / "pretrained"
    (models / "cifar10-resnet").rename(project / "gone")
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
    yield
    for name in ("damaged", "nan", "retrained"):
        shutil.rmtree(models / name)
    (project / "gone").rename(models / "cifar10-resnet")


SAMPLE = ("sample", *TINY, "--n", "1", "--out", "runs/never.png")
TUNE = ("tune", *TINY, "--out", "runs/never.json")

ERRORS = {
    "missing model": (("sample", "--model", "nothing", "--out", "runs/never.png"), "'nothing'", "data/pretrained"),
    "damaged weights": ((*SAMPLE, "--model", "damaged"), WEIGHTS, "expected", "restore"),
    "folder that is no model": ((*SAMPLE, "--model", "pictures"), "pictures", "model folder", "give one"),
    "no CIFAR-10": ((*TUNE, "--dataset", "cifar10"), "CIFAR-10 not found", "--data", "TT_CIFAR10"),
    "wrong image folder": ((*TUNE, "--data", "pictures"), "pictures", "cat.png", "cifar-10-python.tar.gz"),
    "unknown data set": ((*TUNE, "--dataset", "mnist"), "'mnist'", "cifar10, digits", "--data"),
    "more images than there are": (
        (*TUNE, "--dataset", "digits", "--timing", "truncation-parallel,images=1501"),
        "1501",
        "1500",
        "fewer",
    ),
    "no step": ((*SAMPLE, "--nfe", 0), "at least 1", "got 0"),
    "batch of none": ((*SAMPLE, "--batch", 0), "batch", "0"),
    "samples that do not divide": ((*EVALUATE, "--n", 25), "multiple of 10", "25"),
    "timing of another solver": (
        (*SAMPLE, "--solver", "dpmpp-2m", "--timing", TIMING),
        "solver 'ddim'",
        "solver 'dpmpp-2m'",
        "tt tune",
    ),
    "timing of other weights": ((*SAMPLE, "--model", "retrained", "--timing", TIMING), "weights of the model"),
    "timing that is none": ((*SAMPLE, "--timing", "data/pretrained/tiny/config.json"), "config.json", "tt tune"),
    "nothing to tune": (
        (*TUNE, "--timing", "constant-0.9"),
        "nothing to tune in 'constant-0.9'",
        "truncation-parallel",
    ),
    "gate of a solver that draws": (
        (*TUNE, "--solver", "ddpm", "--timing", "consistency-parallel,gate=true"),
        "no gate for ddpm",
        "leave gate=true out",
    ),
    "unknown device": ((*SAMPLE, "--device", "gpu"), "'gpu'", "auto or cpu"),
    "unknown solver": ((*SAMPLE, "--solver", "eular"), "'eular'", "ddim, "),
    "eta of a solver without": ((*SAMPLE, "--solver", "dpmpp-2m", "--eta", 0.5), "dpmpp-2m", "'eta'"),
    "unknown features": ((*EVALUATE, "--features", "vgg"), "'vgg'", "digits-resnet"),
    "features that are not there": ((*EVALUATE, "--features", "cifar10-resnet"), "cifar10-resnet", "tt features"),
    "statistics that are not there": (
        ("evaluate", "--dataset", "cifar10", "--features", "digits-resnet"),
        "cifar10-train-digits-resnet",
        "tt stats --dataset cifar10 --split train --features digits-resnet",
    ),
    "seed beyond 64 bits": ((*SAMPLE, "--seed", 2**64), "from 0 to 999,999,999", str(2**64), "give a seed"),
    "last seed of the project's own": ((*SAMPLE, "--seed", 999_999_999, "--n", 2), "to 1000000000 of 2 samples"),
    "seed of a training": (("train", "--seed", 10**9, "--out", "runs/never"), "999,999,999", "the seed 1000000000"),
}
"""One case of each kind: what else cannot be is refused below the commands, and tested there."""


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
        (*TUNE, *PARALLEL, "--model", "nan"),
        (*EVALUATE, "--model", "nan"),
    ):
        message = fails(*words)
        assert "evaluation 1, t = " in message and "tau = " in message
    assert "t = 0.667, tau = 0.667" in message  # the first time of the uniform grid of 3


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


@pytest.mark.parametrize("name", [NAME, "consistency-parallel,images=4,source=generated"])
def test_the_state_of_a_tuning_stays_until_its_timing_is_written(pipeline, monkeypatch, name):
    """With gamma of an analytic solver measured: what fails in between, or then, does not lose the tuning."""
    solver = ("--solver", "analytic-ddim") if name.startswith("consistency") else ()
    words = ("tune", *TINY, *DIGITS[:2], *solver, "--timing", name, "--out", "runs/kept.0.1.json", "--force")
    state, saves = Path("runs/kept.0.1.json.state"), []

    def fail(self, *args, **options):
        saves.append(self)
        raise BadValue("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("tt_lib.timing.Timing.save", fail)
        assert "the disk is full" in fails(*words)
    assert state.exists() and len(saves) == 1
    with monkeypatch.context() as patch:
        patch.setitem(optimisers.OPTIMISER_FUNCTIONS, "search", fail)
        succeeds(*words)
    assert load_timing("runs/kept.0.1.json").taus == saves[0].taus and not state.exists()


def test_a_gate_that_refuses_all_is_a_result(pipeline, monkeypatch):
    monkeypatch.setattr(tuner, "LEVEL", 0.0)
    words = (*TINY, "--timing", "consistency-parallel,gate=true,images=2,source=generated")
    assert "no conditioning time has changed" in succeeds("tune", *words, "--out", "runs/refused.json")
    timing = load_timing("runs/refused.json")
    assert timing.taus == timing.times and [each["kept"] for each in timing.tuning["gated"]] == [False, False]


PLACES = {
    ("tune",): {"--out": ".json"},
    ("learn",): {"--out": ".json"},
    ("sample",): {"--out": ".png"},
    ("evaluate",): {"--results": ".csv", "--work": ""},
    ("table", "--config", "data/table.toml"): {"--results": ".csv", "--work": ""},
    ("floor",): {"--results": ".csv"},
    ("direction",): {"--results": ".csv"},
    ("speed", "--against", "diffusers"): {"--results": ".csv"},
    ("demo",): {"--out": ""},
    ("train", "--out", "runs/never"): {"--results": ".csv", "--out": ""},
    ("features", "--out", "runs/never"): {"--results": ".csv", "--out": ""},
    ("stats",): {"--out": ".safetensors"},
}
"""What each command writes where it is told to: files with their endings, and folders."""
DEFAULT_PLACES = [
    *(
        (*words, "results/training.csv")
        for words in (("train", "--out", "runs/never"), ("features", "--out", "runs/never"))
    ),
    *((*words, "results/fd.csv") for words in (("evaluate",), ("table", "--config", "data/table.toml"), ("floor",))),
    ("direction", "results/direction.csv"),
    ("speed", "--against", "diffusers", "results/speed.csv"),
    ("stats", "stats/cifar10-train-cifar10-resnet.safetensors"),
    ("card", "MANIFEST.csv"),
    ("card", "results/README.md"),
]


def test_every_option_that_names_a_place_is_listed():
    names = {"out", "results", "work"}
    listed = {(words[0], option.strip("-")) for words, options in PLACES.items() for option in options}
    assert listed == {(name, each.name) for name, command in COMMANDS.items() for each in command.params} & {
        (name, each) for name in COMMANDS for each in names
    }


@pytest.fixture
def no_work(monkeypatch, project):
    """What any work begins with fails the test."""
    (project / "data" / "table.toml").write_text(HEAD + ONE_CELL)
    # The modules that import from others come first: they are imported as they are.
    for module in ("networks.train_unet", "networks.train_features"):
        monkeypatch.setattr(f"tt_lib.{module}.load_dataset", lambda *a, **k: pytest.fail("work, and no place for it"))
    for module in ("study.workbench", "networks.unet"):
        monkeypatch.setattr(f"tt_lib.{module}.load_model", lambda *a, **k: pytest.fail("work, and no place for it"))
    monkeypatch.setattr("tt_lib.metrics.features.load_features", lambda *a, **k: pytest.fail("work, and no place"))


@pytest.mark.parametrize(
    ("words", "option", "suffix"), [(words, *each) for words, options in PLACES.items() for each in options.items()]
)
def test_every_place_is_looked_at_before_the_work(no_work, words, option, suffix):
    needed = ("--out", "runs/never.png") if words == ("sample",) else ()
    bad = [f"a-file/x{suffix}", f"a-file/new/x{suffix}", "/proc/new/x" + suffix, "n" * 250 + suffix]
    bad += ["a-folder.csv", "runs/x.other", "runs/x", "new/"] if suffix else ["a-file"]
    for place in bad:
        message = fails(*words, *needed, option, place)
        assert place in message or "path that ends in" in message, message
    assert not Path("runs/never").exists() and not Path("new").exists()


@pytest.mark.parametrize("words", DEFAULT_PLACES)
def test_every_usual_place_is_looked_at_before_the_work(no_work, monkeypatch, tmp_path, words):
    *words, place = words
    monkeypatch.setenv("TT_DATA", str(tmp_path))
    (tmp_path / "results").mkdir()
    if words == ["card"]:
        (tmp_path / "results" / "fd.csv").write_text("")
        monkeypatch.setattr("tt_lib.rows.read_rows", lambda *a: pd.DataFrame())
    (tmp_path / place).mkdir(parents=True)
    assert f"cannot write {tmp_path / place}: it is a folder" in fails(*words)
    (tmp_path / place).rmdir()
    if words[0] in ("stats", "card"):
        return
    (tmp_path / place).write_text("not,rows\n1,2\n")
    assert place in fails(*words), "rows that cannot be read"


def test_published_rows_are_read_before_the_work(no_work, monkeypatch, tmp_path):
    monkeypatch.setenv("TT_DATA", str(tmp_path))
    path = tmp_path / "tables" / "published.csv"
    path.parent.mkdir()
    path.write_text(",".join(PUBLISHED) + "\ncifar10,FID,ddim,uniform,10,0.0,13.")
    assert f"{path} has a line that is cut" in fails("table", "--config", "data/table.toml")


def test_tuning_ddim_with_noise(pipeline):
    """Common random numbers; the timing belongs to that eta."""
    words, name = (*TINY, "--eta", 1), "consistency-parallel,images=2,source=generated"
    succeeds("tune", *words, "--timing", name)
    path = f"data/timings/tiny/ddim-eta1-uniform-3-{name}.json"
    assert load_timing(path).options == {"eta": 1.0}
    succeeds("sample", *words, "--timing", path, "--n", 2, "--out", "runs/eta.png")
    assert "ddim(eta=1)" in fails(*SAMPLE, "--timing", path)
    assert "cannot tune ddim by truncation: it draws noise" in fails(*TUNE, *PARALLEL, "--eta", 1)


def test_other_errors_keep_their_traceback(project, monkeypatch):
    """A bug is not dressed up as a mistake of the user's."""

    def broken(*arguments, **options):
        raise ValueError("a bug")

    monkeypatch.setattr("tt_lib.study.workbench.make_bench", broken)
    result = tt(*SAMPLE)
    assert isinstance(result.exception, ValueError) and result.exit_code == 1
    assert "error:" not in result.output
    assert any(frame.name == "broken" for frame in traceback.extract_tb(result.exc_info[2]))
    assert not app.pretty_exceptions_enable


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (OSError(28, "No space left on device"), "[Errno 28] No space left on device; remove the cause"),
        (PermissionError(13, "Permission denied", "x.bin"), "[Errno 13] Permission denied: 'x.bin'"),
        (MemoryError(), "not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 bytes\nmore"), "not enough memory (DefaultCPU"),
        (torch.OutOfMemoryError("CUDA out of memory."), "not enough memory (CUDA out of memory.)"),
    ],
)
def test_what_a_user_can_mend_is_one_line(project, monkeypatch, error, part):
    def broken(*arguments, **options):
        raise error

    monkeypatch.setattr("tt_lib.study.workbench.make_bench", broken)
    assert fails(*SAMPLE).startswith(part)


@pytest.mark.parametrize("swallow", [False, True])
def test_ctrl_c_is_one_line(project, monkeypatch, swallow):
    """NumPy and torch turn a Ctrl-C within their import into an ImportError or a RecursionError."""

    def stopped(*arguments, **options):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
        except KeyboardInterrupt:
            if not swallow:
                raise
        raise ImportError("cannot load module more than once per process")

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("tt_lib.study.workbench.make_bench", stopped)
    result = tt(*SAMPLE)
    assert result.exit_code == 130 and signal.getsignal(signal.SIGINT) is before
    assert result.stderr.splitlines() == [
        "error: stopped; start the same command again, and it resumes from what it has stored"
    ]


HUGE = 10**12
DIRECTION = ("direction", "--model", "tiny", "--nfe", 2)
SPEED = ("speed", "--against", "diffusers", "--model", "tiny")
DEMO = ("demo", "--model", "tiny", "--out", "runs/never")
TRAIN = ("train", "--dataset", "digits", "--out", "runs/never")
SAMPLERS = (SAMPLE, EVALUATE, DIRECTION, SPEED, DEMO)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        *(((*words, "--n", HUGE), "got") for words in SAMPLERS),
        ((*EVALUATE, "--n", 10**7 + 10), "at most 10,000,000, got 10,000,010"),
        *(((*words, "--batch", 10**6), "batch must be at most 100,000") for words in SAMPLERS if words != DEMO),
        ((*DIRECTION, "--substeps", HUGE), "substeps of directions must be at most 1,000"),
        ((*SPEED, "--against", "pytorch-fid", "--source", "generated", "--images", 0), "images must be at least 1"),
        *(((*TRAIN, f"--{name}", n), f"{n}") for name in ("images", "width") for n in (0, 10**20)),
        *(((*TRAIN, "--stop-after", value), f"at least 1 step, got {value}") for value in (0,)),
        *(((*TRAIN, "--checkpoint-seconds", value), f"or above, got {value}") for value in ("nan", -1.0)),
        *(((*SAMPLE, "--device", name), f"'{name}' cannot be used here") for name in ("cuda:99", "")),
        ((*SAMPLE, "--nosuch"), "No such option: --nosuch"),
        (("sample",), "Missing option '--out'"),
        ((*SAMPLE, "--n", "many"), "Invalid value for '--n'"),
        (("nosuch",), "No such command 'nosuch'"),
    ],
)  # fmt: skip
def test_values_that_cannot_be_meant(pipeline, words, part):
    assert part in fails(*words)
    assert not Path("runs/never").exists()


def test_a_terminal_without_the_letters(project):
    """ASCII for output, for file names, or for both: a letter is shown by its number, or refused before the work."""
    plain = {
        **os.environ,
        "PYTHONPATH": str(PACKAGE_ROOT),
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
    }
    for env, part in (
        (os.environ | {"PYTHONPATH": str(PACKAGE_ROOT), "PYTHONIOENCODING": "ascii"}, r"got \xe9.gif"),
        (plain, r"'\udcc3\udca9.gif' is not valid text in this locale; set PYTHONUTF8=1"),
    ):
        words = [sys.executable, "-m", "tt_lib", "sample", "--out", "é.gif"]  # refused before PyTorch is imported
        ended = subprocess.run(words, env=env, capture_output=True, timeout=300)
        (line,) = ended.stderr.decode("ascii").splitlines()
        assert ended.returncode == 2 and part in line


def test_a_reader_that_goes_away(project):
    pipe = f"'{sys.executable}' -m tt_lib --help | head -1"
    ended = subprocess.run(pipe, shell=True, cwd=PACKAGE_ROOT, capture_output=True, text=True, timeout=300)
    assert ended.stderr == "" and len(ended.stdout.splitlines()) == 1


def test_nothing_is_of_one_system_only():
    """Windows has none of these modules and functions, and opens text in its own encoding unless it is named."""
    modules, functions = {"fcntl", "grp", "pwd", "resource", "termios", "tty"}, {"fork", "getuid", "mkfifo", "setuid"}
    for path in PACKAGE_ROOT.glob("tt_lib/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not names & modules, f"{path}:{node.lineno}"
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
                assert node.attr not in functions, f"{path}:{node.lineno}"
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("read_text", "write_text"):
                own = isinstance(node.func, ast.Attribute)
                assert not own or any(word.arg == "encoding" for word in node.keywords), f"{path}:{node.lineno}"


def test_messages_are_text_not_markup(project):
    assert "[bold]x[/bold]" in fails("sample", "--model", "[bold]x[/bold]", "--out", "runs/never.png")


def test_paths_are_printed_in_one_piece(pipeline):
    path = "runs/" + "a-long-name-of-a-folder/" * 4 + "[red]x.png"
    assert path in succeeds("sample", "--model", "tiny", "--nfe", 1, "--n", 1, "--out", path)


def test_the_progress_bar(monkeypatch):
    stream = io.StringIO()
    module = sys.modules["tt_lib.cli.app"]  # the package's attribute of that name is the application
    monkeypatch.setattr(module, "console", Console(file=stream, force_terminal=True, width=100))
    with progress_bar("cooking") as report:
        report(3, 4, "stirring")
    assert all(word in stream.getvalue() for word in ("cooking", "3/4", "stirring"))
    monkeypatch.setenv("RANK", "1")
    with progress_bar("silent") as report:
        report(3, 4, "stirring")
    assert "silent" not in stream.getvalue(), "only the first process shows one"


# Killed and started again

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
