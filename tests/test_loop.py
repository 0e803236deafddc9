"""The training loop on a network of 30 weights: what a step does, and that an interruption changes nothing."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from torch import nn

from tt_lib.errors import AlreadyDone, BadValue, CorruptFile, NotFinite
from tt_lib.files import read_json, write_json
from tt_lib.networks import loop
from tt_lib.networks.config import Config, FeatureConfig, TrainConfig
from tt_lib.networks.loop import CHECKPOINT, Training, compile_loss, refuse_finished, run_training, update_average
from tt_lib.rows import TRAINING_COLUMNS

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS = 12


@dataclass(frozen=True)
class Settings(Config):
    batch: int = 16
    lr: float = 0.1
    width: int = 4


class Loss(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.network(x) - x.sum(1, keepdim=True)).square().mean()


def batch_of(step: int) -> tuple[torch.Tensor]:
    return (torch.randn(16, 3, generator=torch.Generator().manual_seed(step)),)


def learning_rate(step: int) -> float:
    return 0.1 / (1 + step)


def make_network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 1))


@pytest.fixture(scope="module", autouse=True)
def quiet(tmp_path_factory):
    """Nothing written to the repository's data, no question to git; about four rows a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "LOG_ROWS", 4)
        patch.setenv("TT_DATA", str(tmp_path_factory.mktemp("data")))
        patch.setenv("TT_COMMIT", "abc")
        yield


def make_run(out: Path, config: Config | None = None, **changes) -> Training:
    config = config or Settings()
    network = make_network(config.seed)

    def write(facts: dict) -> None:
        torch.save(network.state_dict(), out / "net.pt")
        write_json(out / "facts.json", facts)

    optimizer = torch.optim.SGD(network.parameters(), lr=9.0, momentum=0.9)
    run = Training(config, STEPS, network, Loss(network), optimizer, batch_of, learning_rate, write, clip=0.5)
    return replace(run, **changes)


@pytest.fixture
def train(tmp_path) -> Callable[..., Path]:
    """``train(name, config, **options)`` trains into ``tmp_path / name`` and keeps its rows in ``name.csv``."""

    def start(name: str, config: Config | None = None, changes: dict | None = None, **options) -> Path:
        run = make_run(tmp_path / name, config, **changes or {})
        run_training(run, tmp_path / name, **{"results": tmp_path / f"{name}.csv"} | options)
        return tmp_path / name

    return start


@pytest.fixture
def whole(train, tmp_path) -> tuple[dict, pd.DataFrame]:
    """An uninterrupted run: (what was written, its rows)."""
    return torch.load(train("whole") / "net.pt"), pd.read_csv(tmp_path / "whole.csv")


@pytest.fixture
def fast_clock(monkeypatch):
    """Two seconds pass between any two looks at the clock, so that every step is shown."""
    now = iter(range(0, 10**9, 2))
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: float(next(now))))


def assert_same_run(folder: Path, whole) -> None:
    """The same weights to the last bit, and the same rows but for the times and the run's name."""
    weights = torch.load(folder / "net.pt")
    assert all(torch.equal(weights[name], value) for name, value in whole[0].items())
    rows, own = pd.read_csv(folder.with_suffix(".csv")), ["run", "images_per_s", "elapsed_s"]
    pd.testing.assert_frame_equal(rows.drop(columns=own), whole[1].drop(columns=own))
    assert rows.elapsed_s.is_monotonic_increasing
    assert sorted(file.name for file in folder.iterdir()) == ["facts.json", "net.pt"]


def done(folder: Path) -> int:
    return torch.load(folder / CHECKPOINT, weights_only=True)["step"]


# What a step does


def test_training_is_the_plain_loop(whole, tmp_path):
    """The same run, written down once more without checkpoints and rows."""
    network, losses = make_network(), []
    average = copy.deepcopy(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0, momentum=0.9)
    loss = Loss(network)
    for step in range(STEPS):
        torch.manual_seed(step * 1_000_003 + 1)
        value = loss(*batch_of(step))
        optimizer.zero_grad()
        value.backward()
        norm = torch.cat([weight.grad.flatten() for weight in network.parameters()]).norm().item()
        for weight in network.parameters():
            weight.grad *= min(1.0, 0.5 / norm)
        optimizer.param_groups[0]["lr"] = learning_rate(step)
        optimizer.step()
        keep = 0.5 ** (1 / (0.05 * (step + 1)))
        for mean, now in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
            mean.copy_(keep * mean + (1 - keep) * now if now.is_floating_point() else now)
        losses.append(value.item())
    for name, value in average.state_dict().items():
        assert torch.allclose(whole[0][name].double(), value.double(), atol=1e-6), name
    rows = whole[1]
    assert rows.loss.tolist() == pytest.approx([sum(losses[i : i + 3]) / 3 for i in range(0, STEPS, 3)], abs=1e-5)
    assert rows.columns.tolist() == list(TRAINING_COLUMNS)
    assert rows.step.tolist() == [3, 6, 9, 12] and rows.images.tolist() == [48, 96, 144, 192]
    assert set(rows.run) == {"whole"} and set(rows.commit) == {"abc"} and set(rows.devices) == {"1 x cpu (1 threads)"}
    facts = read_json(tmp_path / "whole" / "facts.json")
    assert facts == {"images_seen": 192, "devices": "1 x cpu (1 threads)", "elapsed_s": rows.elapsed_s.iloc[-1]}


@pytest.mark.parametrize("half_life", [0.05, 0.2])
def test_average_forgets_half_in_a_fraction_of_the_run(half_life):
    """Between steps n and (1 + h) n what was there before fades by 2^-(log(1 + h) / h)."""
    average, current = [torch.zeros(2, dtype=torch.float64)], [torch.ones(2, dtype=torch.float64)]
    for step in range(2001, round(2000 * (1 + half_life)) + 1):
        update_average(average, current, half_life, step)
    left = 2 ** -(math.log(1 + half_life) / half_life)
    assert 1 - average[0][0].item() == pytest.approx(left, abs=1e-3)
    average = [torch.full((1,), 100.0)]
    update_average(average, [torch.ones(1)], 0.05, 1)
    assert average[0].item() == pytest.approx(1 + 99 * 2**-20, abs=1e-5), "the first weights are forgotten at once"


def test_progress_and_the_default_log(train, tmp_path, monkeypatch, fast_clock):
    monkeypatch.setenv("TT_DATA", str(tmp_path / "elsewhere"))
    shown = []
    train("net", results=None, progress=lambda *said: shown.append(said), changes={"steps": 9})
    assert [(step, steps) for step, steps, _ in shown] == [(step, 9) for step in range(1, 10)]
    assert shown[0][2] == "" and shown[1][2].startswith("loss ") and shown[1][2].endswith(" images/s")
    assert len(pd.read_csv(tmp_path / "elsewhere" / "results" / "training.csv")) == 5  # 2, 4, 6, 8 and the last


def test_cudnn_tries_its_algorithms_while_training_only(train, monkeypatch):
    during = []
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    train("net", progress=lambda *said: during.append(torch.backends.cudnn.benchmark))
    assert set(during) == {True} and not torch.backends.cudnn.benchmark


# Interruptions


def test_stopped_and_resumed(train, whole):
    for stop, expected in ((4, 4), (1, 5), (3, 8)):
        folder = train("net", stop_after=stop)
        assert done(folder) == expected and not (folder / "net.pt").exists()
        # What has been done so far is in the log.
        assert pd.read_csv(folder.with_suffix(".csv")).step.tolist() == list(range(3, expected + 1, 3))
    torch.rand(7)  # dropout's masks are of seed and step
    assert_same_run(train("net"), whole)


def test_checkpoints_come_when_it_is_time(train, monkeypatch, fast_clock):
    saved, save = [], torch.save
    monkeypatch.setattr(torch, "save", lambda state, path: (saved.append(state.get("step")), save(state, path)))
    train("never", checkpoint_seconds=1e9)
    train("always", checkpoint_seconds=0)
    assert saved == [12, None, *range(1, 13), None]


def killed(*arguments, **options):
    raise KeyboardInterrupt


def test_killed_while_a_checkpoint_is_written(train, whole, tmp_path, monkeypatch):
    train("net", stop_after=4)
    save = torch.save

    def half(state, path):
        save(state, path)
        os.truncate(path, 1000)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch, "save", half)
        train("net", stop_after=4)
    assert [file.name for file in (tmp_path / "net").iterdir()] == [CHECKPOINT]
    assert_same_run(train("net"), whole)


@pytest.mark.parametrize("what", ["network", "rows"])
def test_killed_at_the_very_end(train, whole, tmp_path, monkeypatch, what):
    """The last checkpoint is there, what comes after it is not: the run that goes on writes it."""
    train("net", stop_after=11)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if what == "rows":
            patch.setattr(loop, "write_rows", killed)
        train("net", changes={"write": killed})
    assert done(tmp_path / "net") == STEPS
    assert_same_run(train("net"), whole)


def test_checkpoint_of_other_settings(train, whole):
    train("net", stop_after=4)
    with pytest.raises(BadValue, match=r"checkpoint\.pt .*'width': \(4, 5\)\}") as caught:
        train("net", Settings(width=5))
    assert "batch" not in str(caught.value)
    assert_same_run(train("net"), whole)


@pytest.mark.parametrize("content", [b"", b"half a file", None])
def test_damaged_checkpoint(train, content):
    checkpoint = train("net", stop_after=1) / CHECKPOINT
    checkpoint.write_bytes(checkpoint.read_bytes()[:-2000] if content is None else content)
    with pytest.raises(CorruptFile, match=r"checkpoint\.pt cannot be read.*delete it to start the run again"):
        train("net")


def test_finished_runs_are_kept(tmp_path):
    (tmp_path / "net.pt").touch()
    with pytest.raises(AlreadyDone, match=r"net\.pt exists; give --force"):
        refuse_finished(tmp_path, "net.pt", force=False)
    refuse_finished(tmp_path, "net.pt", force=True)
    # A forced run that was interrupted goes on without being forced again.
    (tmp_path / CHECKPOINT).touch()
    refuse_finished(tmp_path, "net.pt", force=False)


# What is refused


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_network_that_broke_is_not_written(train, tmp_path, value):
    """Not even if it breaks in the last step."""

    def batches(step):
        return (batch_of(step)[0] * (value if step == STEPS - 1 else 1),)

    with pytest.raises(NotFinite, match=r"at step 12; delete .*checkpoint\.pt, lower lr \(now 0\.1\)"):
        train("net", checkpoint_seconds=0, changes={"batches": batches})
    assert not (tmp_path / "net" / "net.pt").exists()


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        *((TrainConfig, name, value) for name in ("images", "batch", "lr") for value in (0, -1)),
        (FeatureConfig, "epochs", 0),
        *((TrainConfig, "dropout", value) for value in (1.0, -0.1, math.nan)),
        *((TrainConfig, "min_snr", value) for value in (-1.0, math.nan)),
    ],
)
def test_settings_that_cannot_be(kind, field, value):
    with pytest.raises(BadValue, match=f"{field} must be .* got {value}"):
        kind(**{field: value})


def test_steps_see_at_least_the_images():
    assert [TrainConfig(images=n, batch=16).steps for n in (1, 16, 17, 160)] == [1, 1, 2, 10]


# Compiled


@pytest.fixture
def compiled(monkeypatch) -> Iterator[list]:
    """``torch.compile`` gives the module as it is; the modes that were asked for, and a "step" for each step begun."""
    calls: list = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: calls.append("step"))
    monkeypatch.setattr(torch, "compile", lambda module, *, dynamic, mode=None: calls.append(mode) or module)
    with torch._dynamo.config.patch(optimize_ddp=True):
        yield calls


@pytest.mark.parametrize("graphs", [True, False])
def test_graphs_are_recorded_before_the_run_and_replayed_in_it(train, whole, compiled, monkeypatch, graphs):
    run = make_run(Path())
    before = copy.deepcopy(run.network[0].state_dict())
    assert compile_loss(run.loss, batch_of(0), graphs) is run.loss
    assert compiled == (["reduce-overhead", *["step"] * 3] if graphs else [None])
    assert not torch._dynamo.config.optimize_ddp
    assert all(weight.grad is None for weight in run.network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in run.network[0].state_dict().items())
    compiled.clear()
    assert_same_run(train("net", changes={"graphs": graphs}), whole)
    assert compiled == ["step"] * STEPS * graphs


def test_where_torch_refuses_graphs_the_loss_is_compiled_without(compiled, monkeypatch):
    class Refusing(Loss):
        def forward(self, x):
            super().forward(x).backward()
            raise RuntimeError("operation not permitted when stream is capturing")

    loss = Refusing(make_network())
    with pytest.warns(UserWarning, match="no CUDA graphs: operation not permitted"):
        assert compile_loss(loss, batch_of(0), graphs=True) is loss
    assert compiled == ["reduce-overhead", "step", None]
    assert all(weight.grad is None for weight in loss.parameters())
