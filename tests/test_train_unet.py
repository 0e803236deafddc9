"""Training: what every step sees, that an interruption changes nothing, and that processes share one batch."""

from __future__ import annotations

import copy
import math
import os
import socket
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file

from tt_lib.datasets import Images, load_dataset, to_float
from tt_lib.errors import AlreadyDone, BadValue, CorruptFile, NotFinite
from tt_lib.files import PACKAGE_ROOT, file_hash, read_json
from tt_lib.networks import train_unet as training
from tt_lib.networks.train_unet import (
    CHECKPOINT,
    DEFAULTS,
    Batches,
    NoisePrediction,
    TrainConfig,
    learning_rate,
    train,
    update_average,
)
from tt_lib.networks.unet import CARD, WEIGHTS, load_model, make_unet
from tt_lib.rows import TRAINING_COLUMNS
from tt_lib.schedules import make_schedule, time_of_index

CONFIG = TrainConfig("digits", width=32, images=16 * 12, batch=16, lr=3e-3, flip=False, seed=0)
LINEAR = make_schedule("linear")
pytestmark = pytest.mark.usefixtures("one_thread")


def tiny_unet(dataset: str = "digits", width: int = 32, dropout: float = 0.0, attention: tuple = ()) -> UNet2DModel:
    """A network of 10,000 weights: a step takes 10 ms."""
    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        add_attention=False,
        dropout=dropout,
    )


@pytest.fixture(scope="module", autouse=True)
def tiny(one_thread, tmp_path_factory):
    """A tiny network on the CPU, nothing written to the repository's data, no question to git in every row."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "make_unet", tiny_unet)
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setenv("TT_DATA", str(tmp_path_factory.mktemp("data")))
        patch.setenv("TT_COMMIT", "abc")
        yield


@pytest.fixture(scope="module")
def digits(tiny) -> Images:
    return load_dataset("digits", "train").take(slice(0, 100))


@pytest.fixture
def run(digits, tmp_path):
    """``run(name, **options)`` trains into ``tmp_path / name`` and keeps its rows in ``name.csv``."""

    def start(name: str, config: TrainConfig = CONFIG, **options) -> Path:
        options = {"images": digits, "results": tmp_path / f"{name}.csv", "log_rows": 4} | options
        return train(config, tmp_path / name, **options)

    return start


@pytest.fixture(scope="module")
def whole(digits, tmp_path_factory):
    """An uninterrupted run: (model folder, its rows)."""
    place = tmp_path_factory.mktemp("whole")
    folder = train(CONFIG, place / "net", images=digits, results=place / "net.csv", log_rows=4)
    return folder, pd.read_csv(place / "net.csv")


@pytest.fixture
def fast_clock(monkeypatch):
    """Two seconds pass between any two looks at the clock, so that every step is shown."""
    now = iter(range(0, 10**9, 2))
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: float(next(now))))


def assert_same_run(folder: Path, rows: pd.DataFrame, whole) -> None:
    """The same weights to the last bit, and the same rows but for the times and the run's name."""
    assert file_hash(folder / WEIGHTS) == file_hash(whole[0] / WEIGHTS)
    own = ["run", "images_per_s", "elapsed_s"]
    pd.testing.assert_frame_equal(rows.drop(columns=own), whole[1].drop(columns=own))
    assert rows.elapsed_s.is_monotonic_increasing
    assert sorted(file.name for file in folder.iterdir()) == sorted(file.name for file in whole[0].iterdir())


# The parts of a step


def test_learning_rate():
    config = TrainConfig(images=1000 * 64, batch=64, lr=0.4, warmup=0.1)
    rates = [learning_rate(config, step) for step in range(config.steps)]
    assert config.steps == 1000
    assert rates[:100] == pytest.approx([0.4 * (step + 1) / 100 for step in range(100)])
    assert rates[99:] == sorted(rates[99:], reverse=True)
    assert rates[549] == pytest.approx(0.2) and rates[324] == pytest.approx(0.4 * (2 + 2**0.5) / 4)
    assert rates[-1] == pytest.approx(0, abs=1e-12)
    assert learning_rate(replace(config, warmup=0), 0) == pytest.approx(0.4, rel=1e-5)


def test_steps_see_at_least_the_images():
    assert [replace(CONFIG, images=n, batch=16).steps for n in (1, 16, 17, 160)] == [1, 1, 2, 10]


@pytest.mark.parametrize("batch", [1, 64])
@pytest.mark.parametrize("half_life", [0.05, 0.2])
def test_average_forgets_half_in_a_fraction_of_the_run(half_life, batch):
    """Between steps n and (1 + h) n what was there before fades by 2^-(log(1 + h) / h), whatever the batch."""
    config = TrainConfig(batch=batch, ema_half_life=half_life)
    average, current = [torch.zeros(2, dtype=torch.float64)], [torch.ones(2, dtype=torch.float64)]
    first, last = 2000, round(2000 * (1 + half_life))
    for step in range(first, last):
        update_average(average, current, config, step)
    left = 2 ** -(math.log(1 + half_life) / half_life)
    assert 1 - average[0][0].item() == pytest.approx(left, abs=1e-3)
    assert current[0].tolist() == [1, 1]


def test_average_forgets_the_first_weights_at_once():
    average, config = [torch.full((1,), 100.0)], TrainConfig(ema_half_life=0.05)
    update_average(average, [torch.ones(1)], config, 0)
    assert average[0].item() == pytest.approx(1 + 99 * 2**-20, abs=1e-5)
    update_average(average, [torch.zeros(1)], config, 9)
    assert average[0].item() == pytest.approx(2**-2, abs=1e-4)  # 1 step of a half-life of 0.5 steps


def test_loss_is_the_error_of_the_predicted_noise():
    class Network(torch.nn.Module):
        def forward(self, x, index):
            self.seen = x, index
            return SimpleNamespace(sample=0.5 * x)

    network = Network()
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randint(256, (3, 1, 2, 2), dtype=torch.uint8, generator=generator)
    noise = torch.randn(3, 1, 2, 2, generator=generator)
    alpha, sigma, index = torch.tensor([1.0, 0.8, 0.0]), torch.tensor([0.0, 0.6, 1.0]), torch.tensor([0.0, 7.0, 9.0])
    loss = NoisePrediction(network, False)(x0, noise, alpha, sigma, index, torch.ones_like(alpha))
    x = torch.stack([a * image + s * n for a, s, image, n in zip(alpha, sigma, to_float(x0), noise, strict=True)])
    assert torch.allclose(network.seen[0], x) and torch.equal(network.seen[1], index)
    assert loss.shape == () and loss.item() == pytest.approx((0.5 * x - noise).square().sum().item() / 12)


def test_bf16_is_for_the_network_only():
    class Network(torch.nn.Linear):
        def forward(self, x, index):
            self.answer = super().forward(x)
            return SimpleNamespace(sample=self.answer)

    x0, one = torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.ones(2)
    for bf16, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        network = Network(4, 4)
        loss = NoisePrediction(network, bf16)(x0, torch.ones(2, 1, 4, 4), one, 0 * one, one, one)
        assert network.answer.dtype == dtype and loss.dtype == torch.float32


# What every step sees


def numbered(count: int = 50) -> torch.Tensor:
    """Images that say which they are, and whether they are mirrored."""
    pixels = torch.zeros(count, 1, 2, 2, dtype=torch.uint8)
    pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = torch.arange(count).to(torch.uint8), 255
    return pixels


def make_batches(rank: int = 0, world: int = 1, count: int = 50, **changes) -> Batches:
    return Batches(numbered(count), LINEAR, replace(CONFIG, **changes), rank, world)


def rows_of(batches: Batches, steps) -> list[int]:
    """Which images the steps see, in order (images are not mirrored)."""
    return torch.cat([batches(step)[0][:, 0, 0, 0] for step in steps]).tolist()


@pytest.mark.parametrize("batch", [1, 16, 50, 120])
def test_every_epoch_sees_every_image_once(batch):
    steps = -(-200 // batch)
    seen = rows_of(make_batches(batch=batch), range(steps))
    epochs = [seen[start : start + 50] for start in range(0, 200, 50)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(50))] * 4
    assert all(first != second for i, first in enumerate(epochs) for second in epochs[:i])
    assert epochs[0] != sorted(epochs[0])


def test_a_step_is_the_same_whenever_it_is_asked_for():
    one, other = make_batches(flip=True), make_batches(flip=True)
    for step in (0, 1, 2, 3):
        one(step)
    for step in (3, 7, 0):
        assert all(torch.equal(a, b) for a, b in zip(one(step), other(step), strict=True))
    assert not torch.equal(one(0)[1], one(1)[1]) and not torch.equal(one(0)[4], one(1)[4])


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_one_batch(world):
    alone = make_batches(flip=True)
    ranks = [make_batches(rank, world, flip=True) for rank in range(world)]
    for step in range(8):
        shares = [batches(step) for batches in ranks]
        assert {len(part) for share in shares for part in share} == {16 // world}
        for whole_batch, *parts in zip(alone(step), *shares, strict=True):
            assert torch.equal(whole_batch, torch.cat(parts))


def test_noise_levels_are_those_of_the_schedule():
    x0, noise, alpha, sigma, index, weight = (
        torch.cat(parts) for parts in zip(*map(make_batches(), range(300)), strict=True)
    )
    assert x0.dtype == torch.uint8 and noise.shape == x0.shape and index.dtype == torch.float32
    assert (weight == 1).all() and index.min() >= 0 and index.max() <= 999 and torch.equal(index, index.round())
    # 4,800 draws of 1,000 levels: every tenth of them turns up 480 times, give or take 21.
    assert (torch.histc(index, 10, 0, 1000) - 480).abs().max() < 100 and index.min() < 5 and index.max() > 994
    times = time_of_index(index.double(), 1000)
    assert torch.allclose(alpha.double(), LINEAR.alpha(times)) and torch.allclose(sigma.double(), LINEAR.sigma(times))
    assert noise.mean().abs() < 0.03 and noise.var().item() == pytest.approx(1, abs=0.05)
    # Neighbours in a batch have noise of their own.
    assert (noise[:-1] * noise[1:]).mean().abs() < 0.03


def test_half_of_the_images_are_mirrored_if_wanted():
    for flip, least, most in ((True, 330, 470), (False, 0, 0)):
        batches = make_batches(flip=flip)
        images = torch.cat([batches(step)[0] for step in range(50)])
        mirrored = images[:, 0, 0, 0] == 255
        assert least <= mirrored.sum() <= most
        upright = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)
        assert torch.equal(upright, numbered()[upright[:, 0, 0, 0].long()])


def test_seeds_decide_the_data():
    first, again, other = (make_batches(seed=seed) for seed in (0, 0, 1))
    assert rows_of(first, range(6)) == rows_of(again, range(6)) != rows_of(other, range(6))
    # Nor does one seed's step 1 see what another's step 0 saw.
    assert not torch.equal(first(0)[1], other(0)[1]) and not torch.equal(first(1)[1], other(0)[1])


# A run


def test_loss_falls(digits, tmp_path):
    config = replace(CONFIG, images=32 * 70, batch=32, lr=1e-2)
    train(config, tmp_path / "net", images=digits, log_rows=7, results=tmp_path / "log.csv")
    loss = pd.read_csv(tmp_path / "log.csv").loss
    assert loss.iloc[0] > 0.5 and loss.iloc[-1] < 0.6 * loss.iloc[0] and loss.iloc[-1] < 0.4


def test_training_is_the_plain_loop(whole, digits):
    """The same run, written down once more without processes, checkpoints and rows."""
    torch.manual_seed(CONFIG.seed)
    network = tiny_unet()
    average, losses = copy.deepcopy(network), []
    optimizer = torch.optim.AdamW(network.parameters(), lr=1.0)
    batches = Batches(digits.pixels, LINEAR, CONFIG, 0, 1)
    for step in range(12):
        x0, noise, alpha, sigma, index, _ = batches(step)
        x = alpha.view(-1, 1, 1, 1) * to_float(x0) + sigma.view(-1, 1, 1, 1) * noise
        loss = torch.nn.functional.mse_loss(network(x, index).sample, noise)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.cat([weight.grad.flatten() for weight in network.parameters()]).norm()
        for weight in network.parameters():
            weight.grad *= min(1.0, CONFIG.clip / norm.item())
        optimizer.param_groups[0]["lr"] = learning_rate(CONFIG, step)
        optimizer.step()
        keep = 0.5 ** (1 / (CONFIG.ema_half_life * (step + 1)))
        for mean, weight in zip(average.parameters(), network.parameters(), strict=True):
            mean.data = keep * mean.data + (1 - keep) * weight.data
        losses.append(loss.item())
    written = load_file(whole[0] / WEIGHTS)
    for name, value in average.state_dict().items():
        assert torch.allclose(written[name].float(), value, rtol=2**-10, atol=1e-5), name
    # Each of the four rows is the mean of the three steps since the last.
    assert whole[1].loss.tolist() == pytest.approx(
        [sum(losses[start : start + 3]) / 3 for start in range(0, 12, 3)], abs=1e-5
    )


def test_rows(whole):
    rows = whole[1]
    assert rows.columns.tolist() == list(TRAINING_COLUMNS)
    assert rows.step.tolist() == [3, 6, 9, 12] and rows.images.tolist() == [48, 96, 144, 192]
    assert set(rows.run) == {"net"} and set(rows.commit) == {"abc"} and set(rows.devices) == {"1 x cpu (1 threads)"}
    assert (rows.images_per_s > 0).all() and (rows.elapsed_s >= 0).all()


def test_the_last_step_has_a_row(run, tmp_path):
    run("net", replace(CONFIG, images=16 * 5), log_rows=2)
    assert pd.read_csv(tmp_path / "net.csv").step.tolist() == [2, 4, 5]


def test_the_model_folder(whole):
    model = load_model(str(whole[0]))
    assert (model.name, model.shape, model.schedule.name) == ("net", (1, 8, 8), "linear")
    card = read_json(whole[0] / CARD)
    assert card["dataset"] == "digits" and card["commit"] == "abc"
    assert card["training"].items() >= (asdict(CONFIG) | {"attention": list(CONFIG.attention)}).items()
    assert card["training"]["images_seen"] == 192 and card["training"]["devices"] == "1 x cpu (1 threads)"
    assert not (whole[0] / CHECKPOINT).exists()


def test_progress_and_the_default_log(run, tmp_path, monkeypatch, fast_clock):
    monkeypatch.setenv("TT_DATA", str(tmp_path / "elsewhere"))
    shown = []
    run("net", results=None, progress=lambda *said: shown.append(said))
    assert [(step, steps) for step, steps, _ in shown] == [(step, 12) for step in range(1, 13)]
    assert shown[0][2] == "" and all("loss 0." in said[2] or "loss 1." in said[2] for said in shown[2:])
    assert len(pd.read_csv(tmp_path / "elsewhere" / "results" / "training.csv")) == 4


def test_seed_decides_the_weights(run):
    weights = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        folder = run(name, replace(CONFIG, images=16, lr=1e-12, seed=seed))
        weights[name] = load_file(folder / WEIGHTS)
    # With hardly a step made, these are the first weights.
    same = {name: torch.equal(weights["a"][name], weights["b"][name]) for name in weights["a"]}
    assert all(same.values())
    assert not torch.equal(weights["a"]["conv_in.weight"], weights["c"]["conv_in.weight"])


# Interruptions


def test_stopped_and_resumed(run, whole, tmp_path):
    for stop, expected in ((4, 4), (1, 5), (3, 8)):
        folder = run("net", stop_after=stop)
        assert torch.load(folder / CHECKPOINT, weights_only=True)["step"] == expected
        assert not (folder / WEIGHTS).exists()
        # What has been done so far is in the log.
        assert pd.read_csv(tmp_path / "net.csv").step.tolist() == list(range(3, expected + 1, 3))
    assert_same_run(run("net"), pd.read_csv(tmp_path / "net.csv"), whole)


def test_dropout_is_drawn_again_by_a_run_that_goes_on(run, whole):
    """Masks are of seed and step: stopped and resumed is the run that was not stopped, and not the one without dropout."""
    config = replace(CONFIG, dropout=0.3)
    straight, stopped = run("straight", config), run("stopped", config, stop_after=5)
    torch.rand(7)
    run("stopped", config)
    ours, theirs = (load_file(folder / WEIGHTS) for folder in (straight, stopped))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert any(not torch.equal(ours[name], value) for name, value in load_file(whole[0] / WEIGHTS).items())


def test_min_snr_weights_the_loss():
    """Hang et al. (2023): min(SNR, 5) / SNR for a network that predicts eps; every level alike without it."""
    x0, noise, alpha, sigma, index, weight = make_batches(min_snr=5.0)(0)
    snr = (alpha / sigma).square()
    assert (
        torch.allclose(weight, torch.minimum(snr, torch.tensor(5.0)) / snr) and weight.min() < 0.1 and weight.max() == 1
    )

    class Off(torch.nn.Module):
        def forward(self, x, t):
            return SimpleNamespace(sample=torch.zeros_like(x))

    loss = NoisePrediction(Off(), bf16=False)(x0, noise, alpha, sigma, index, weight)
    assert loss.item() == pytest.approx((noise.square().mean((1, 2, 3)) * weight).mean().item())


@pytest.mark.parametrize(
    ("field", "value"),
    [("dropout", 1.0), ("dropout", -0.1), ("dropout", float("nan")), ("min_snr", -1.0), ("min_snr", float("nan"))],
)
def test_what_no_run_can_have(field, value):
    with pytest.raises(BadValue, match=f"{field} must be .* got {value}"):
        replace(CONFIG, **{field: value})


def test_a_checkpoint_from_before_there_was_dropout(run, whole, tmp_path):
    folder = run("net", stop_after=4)
    state = torch.load(folder / CHECKPOINT, weights_only=True)
    for name in ("dropout", "attention", "min_snr"):
        del state["config"][name]
    torch.save(state, folder / CHECKPOINT)
    assert_same_run(run("net"), pd.read_csv(tmp_path / "net.csv"), whole)


def test_interrupted_again_and_again(run, whole, tmp_path, fast_clock):
    """Ctrl-C in the midst of a step loses that step at most."""

    class Until:
        def __init__(self, step):
            self.step = step

        def __call__(self, step, steps, message):
            if step == self.step:
                raise KeyboardInterrupt

    for step in (1, 2, 5, 9, 12):
        with pytest.raises(KeyboardInterrupt):
            run("net", checkpoint_seconds=0, progress=Until(step))
        checkpoint = tmp_path / "net" / CHECKPOINT
        done = torch.load(checkpoint, weights_only=True)["step"] if checkpoint.exists() else 0
        assert done == step - 1
    assert_same_run(run("net", checkpoint_seconds=0), pd.read_csv(tmp_path / "net.csv"), whole)


def test_checkpoints_come_when_it_is_time(run, monkeypatch, fast_clock):
    saved, save = [], training._save
    monkeypatch.setattr(training, "_save", lambda *a: (saved.append(a[2]["step"]), save(*a)))
    run("never", checkpoint_seconds=1e9)
    assert saved == [12]
    saved.clear()
    run("always", checkpoint_seconds=0)
    assert saved == list(range(1, 13))


def test_killed_while_a_checkpoint_is_written(run, whole, tmp_path, monkeypatch):
    run("net", stop_after=4)
    save = torch.save

    def half(state, path):
        save(state, path)
        os.truncate(path, 1000)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch, "save", half)
        run("net", stop_after=4)
    assert sorted(file.name for file in (tmp_path / "net").iterdir()) == [CHECKPOINT]
    assert_same_run(run("net"), pd.read_csv(tmp_path / "net.csv"), whole)


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_while_the_network_is_written(run, whole, tmp_path, monkeypatch, when):
    save = training.save_model

    def killed(*arguments, **options):
        if when == "after":  # the network is there, and so is the checkpoint still
            save(*arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "save_model", killed)
        run("net")
    assert (tmp_path / "net" / CHECKPOINT).exists() and (tmp_path / "net" / WEIGHTS).exists() == (when == "after")
    assert_same_run(run("net"), pd.read_csv(tmp_path / "net.csv"), whole)
    with pytest.raises(AlreadyDone):
        run("net")


def test_killed_before_the_last_rows_are_written(run, whole, tmp_path, monkeypatch):
    """The last checkpoint is there, its rows are not in the log: the run that goes on writes them."""

    def killed(*arguments):
        raise KeyboardInterrupt

    run("net", stop_after=11)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "write_rows", killed)
        run("net")
    assert torch.load(tmp_path / "net" / CHECKPOINT, weights_only=True)["step"] == 12
    assert_same_run(run("net"), pd.read_csv(tmp_path / "net.csv"), whole)


def test_checkpoint_of_other_settings(run, tmp_path):
    run("net", stop_after=2)
    before = file_hash(tmp_path / "net" / CHECKPOINT)
    with pytest.raises(BadValue, match=r"'lr': \(0\.003, 0\.001\).*'seed': \(0, 4\)") as caught:
        run("net", replace(CONFIG, lr=1e-3, seed=4))
    assert str(tmp_path / "net" / CHECKPOINT) in str(caught.value) and "batch" not in str(caught.value)
    assert file_hash(tmp_path / "net" / CHECKPOINT) == before


@pytest.mark.parametrize("content", [b"", b"half a file", None])
def test_damaged_checkpoint(run, tmp_path, content):
    run("net", stop_after=1)
    checkpoint = tmp_path / "net" / CHECKPOINT
    checkpoint.write_bytes(checkpoint.read_bytes()[:-2000] if content is None else content)
    with pytest.raises(CorruptFile, match="delete it to start the run again") as caught:
        run("net")
    assert str(checkpoint) in str(caught.value)
    checkpoint.unlink()
    run("net", stop_after=1)


def test_finished_runs_are_kept(run, tmp_path):
    short = replace(CONFIG, images=32)
    before = file_hash(run("net", short) / WEIGHTS)
    with pytest.raises(AlreadyDone, match="--force") as caught:
        run("net", short)
    assert str(tmp_path / "net") in str(caught.value) and file_hash(tmp_path / "net" / WEIGHTS) == before
    run("net", replace(short, seed=1), force=True)
    assert file_hash(tmp_path / "net" / WEIGHTS) != before
    assert load_model(str(tmp_path / "net")).card["training"]["seed"] == 1
    # A forced run that was interrupted goes on without being forced again, and does not start again.
    run("net", short, force=True, stop_after=1)
    run("net", short)
    assert file_hash(tmp_path / "net" / WEIGHTS) == before


# What is refused


def test_loss_that_is_not_finite(run, tmp_path):
    with pytest.raises(NotFinite, match=r"step \d.*lower lr \(now inf\)"):
        run("net", replace(CONFIG, lr=math.inf))
    assert not (tmp_path / "net" / WEIGHTS).exists()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_network_that_broke_is_not_written(run, tmp_path, monkeypatch, value):
    """Not even if it breaks in the last step, and the advice that the error gives can be followed."""
    forward, calls = NoisePrediction.forward, []

    def breaking(self, *batch):
        calls.append(1)
        return forward(self, *batch) * (value if len(calls) == 12 else 1)

    with monkeypatch.context() as patch, pytest.raises(NotFinite) as caught:
        patch.setattr(NoisePrediction, "forward", breaking)
        run("net", checkpoint_seconds=0)
    assert not (tmp_path / "net" / WEIGHTS).exists()
    # Going on with another lr is refused (other settings), so the way out is to delete the checkpoint.
    assert str(tmp_path / "net" / CHECKPOINT) in str(caught.value)
    (tmp_path / "net" / CHECKPOINT).unlink()
    run("net", replace(CONFIG, lr=1e-3))


def test_batch_that_cannot_be_shared(run, monkeypatch):
    three = SimpleNamespace(device=torch.device("cpu"), process_index=0, num_processes=3)
    monkeypatch.setattr("accelerate.Accelerator", lambda **options: three)
    with pytest.raises(BadValue, match="batch 16 cannot be shared by 3 processes; choose a multiple of 3"):
        run("net")


@pytest.mark.parametrize("name", ["images", "batch", "lr"])
@pytest.mark.parametrize("value", [0, -1])
def test_settings_that_cannot_be(name, value):
    with pytest.raises(BadValue, match=rf"{name}.*{value}"):
        replace(CONFIG, **{name: value})


def test_default_runs():
    assert DEFAULTS["cifar10"] == TrainConfig("cifar10", width=64, images=20_000_000, batch=1024, lr=1e-3, flip=True)
    digits = DEFAULTS["digits"]
    assert digits.dataset == "digits" and not digits.flip  # a mirrored digit is none
    with torch.device("meta"):
        for name, config in DEFAULTS.items():
            network = make_unet(name, config.width)
            parameters = sum(weight.numel() for weight in network.parameters())
            assert parameters < 10e6  # 20 MB to ship
    # The digits are for laptops: images times parameters are a thousandth of the other run's.
    assert digits.images * parameters < 20_000_000 * 9e6 / 1000


# Two processes


def test_two_processes_train_what_one_trains(tmp_path, monkeypatch):
    """The whole command, on real digits with the real network: it shares each batch, and one process writes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = "train --dataset digits --images 512 --batch 64 --lr 1e-3 --out runs/digits --results log.csv"
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(PACKAGE_ROOT),
        "TT_DATA": str(tmp_path),
    }
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port), "-m", "tt_lib"]
    ended = subprocess.run(
        [sys.executable, *launch, *arguments.split()],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "model folder: runs/digits" in ended.stdout

    monkeypatch.setattr(training, "make_unet", make_unet)
    config = replace(DEFAULTS["digits"], images=512, batch=64, lr=1e-3)
    train(config, tmp_path / "alone", results=tmp_path / "alone.csv")
    ours, alone = (load_file(tmp_path / name / WEIGHTS) for name in ("runs/digits", "alone"))
    for name, value in alone.items():
        assert (ours[name].float() - value.float()).abs().max() < 2e-3, name
    rows, expected = pd.read_csv(tmp_path / "log.csv"), pd.read_csv(tmp_path / "alone.csv")
    assert set(rows.devices) == {"2 x cpu (1 threads)"} and set(rows.run) == {"digits"}
    assert set(rows.command) == {f"torchrun --nproc_per_node 2 -m tt_lib {arguments}"}
    assert rows.step.tolist() == list(range(1, 9)) and rows.images.tolist() == [64 * step for step in rows.step]
    assert rows.loss.tolist() == pytest.approx(expected.loss.tolist(), abs=2e-3)
    assert read_json(tmp_path / "runs/digits" / CARD)["training"]["devices"] == "2 x cpu (1 threads)"
