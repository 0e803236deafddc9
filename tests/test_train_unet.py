"""Training the UNet: its loss, and what every step sees."""

from __future__ import annotations

import copy
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file

from tt_lib.datasets import load_dataset, to_float
from tt_lib.errors import AlreadyDone, BadValue
from tt_lib.files import file_hash, read_json
from tt_lib.networks import train_unet as training
from tt_lib.networks.config import TrainConfig
from tt_lib.networks.loop import CHECKPOINT
from tt_lib.networks.train_unet import Batches, PredictionLoss, learning_rate, train
from tt_lib.networks.unet import CARD, WEIGHTS, load_model, save_model
from tt_lib.noise import SampleNoise
from tt_lib.sampling import make_sampler
from tt_lib.schedules import make_schedule, time_of_index

CONFIG = TrainConfig("digits", width=32, images=16 * 12, batch=16, lr=3e-3, flip=False, seed=0)
pytestmark = pytest.mark.usefixtures("one_thread")


def tiny_unet(
    dataset: str = "digits", width: int = 32, dropout: float = 0.0, attention: tuple = (), *shape
) -> UNet2DModel:
    """A network of 10,000 weights: a step takes 10 ms."""
    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, width // 4),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        add_attention=False,
        dropout=dropout,
    )


@pytest.fixture(scope="module", autouse=True)
def tiny(one_thread, tmp_path_factory):
    """A tiny network on the CPU, nothing written to the repository's data, no question to git."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "make_unet", tiny_unet)
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setenv("TT_DATA", str(tmp_path_factory.mktemp("data")))
        patch.setenv("TT_COMMIT", "abc")
        yield


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory) -> Path:
    """The folder of an uninterrupted run."""
    return train(CONFIG, tmp_path_factory.mktemp("whole") / "net")


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
    weight = torch.tensor([1.0, 0.5, 0.1])
    loss = PredictionLoss(network, False)(x0, noise, alpha, sigma, index, weight)
    x = torch.stack([a * image + s * n for a, s, image, n in zip(alpha, sigma, to_float(x0), noise, strict=True)])
    assert torch.allclose(network.seen[0], x) and torch.equal(network.seen[1], index)
    errors = (0.5 * x - noise).square().flatten(1).mean(1)
    assert loss.shape == () and loss.item() == pytest.approx((errors * weight).sum().item() / 3)


@pytest.mark.parametrize(("bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_bf16_is_for_the_network_only(bf16, dtype):
    class Network(torch.nn.Linear):
        def forward(self, x, index):
            self.answer = super().forward(x)
            return SimpleNamespace(sample=self.answer)

    network, one = Network(4, 4), torch.ones(2)
    x0 = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    loss = PredictionLoss(network, bf16)(x0, torch.ones(2, 1, 4, 4), one, 0 * one, one, one)
    assert network.answer.dtype == dtype and loss.dtype == torch.float32


# What every step sees


def numbered(count: int = 50) -> torch.Tensor:
    """Images that say which they are, and whether they are mirrored."""
    pixels = torch.zeros(count, 1, 2, 2, dtype=torch.uint8)
    pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = torch.arange(count).to(torch.uint8), 255
    return pixels


def make_batches(rank: int = 0, world: int = 1, **changes) -> Batches:
    return Batches(numbered(), replace(CONFIG, **changes), rank, world)


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


def test_seed_and_step_decide_the_data():
    one, again, other = (make_batches(flip=True, seed=seed) for seed in (0, 0, 1))
    for step in (0, 1, 2, 3):
        one(step)
    for step in (3, 7, 0):
        assert all(torch.equal(a, b) for a, b in zip(one(step), again(step), strict=True))
    assert not torch.equal(one(0)[1], one(1)[1]) and not torch.equal(one(0)[4], one(1)[4])
    # Nor does one seed's step 1 see what another's step 0 saw.
    assert not torch.equal(one(0)[1], other(0)[1]) and not torch.equal(one(1)[1], other(0)[1])
    assert rows_of(make_batches(), range(6)) != rows_of(make_batches(seed=1), range(6))


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
    linear = make_schedule("linear")
    x0, noise, alpha, sigma, index, weight = (
        torch.cat(parts) for parts in zip(*map(make_batches(), range(300)), strict=True)
    )
    assert x0.dtype == torch.uint8 and noise.shape == x0.shape and index.dtype == torch.float32
    assert (weight == 1).all() and index.min() >= 0 and index.max() <= 999 and torch.equal(index, index.round())
    # 4,800 draws of 1,000 levels: every tenth of them turns up 480 times, give or take 21.
    assert (torch.histc(index, 10, 0, 1000) - 480).abs().max() < 100 and index.min() < 5 and index.max() > 994
    times = time_of_index(index.double(), 1000)
    assert torch.allclose(alpha.double(), linear.alpha(times)) and torch.allclose(sigma.double(), linear.sigma(times))
    assert noise.mean().abs() < 0.03 and noise.var().item() == pytest.approx(1, abs=0.05)
    # Neighbours in a batch have noise of their own.
    assert (noise[:-1] * noise[1:]).mean().abs() < 0.03


def test_min_snr_weights_the_loss():
    """Hang et al. (2023): min(SNR, 5) / SNR for a network that predicts eps."""
    _, _, alpha, sigma, _, weight = make_batches(min_snr=5.0)(0)
    snr = (alpha / sigma).square()
    assert torch.allclose(weight, torch.minimum(snr, torch.tensor(5.0)) / snr)
    assert weight.min() < 0.1 and weight.max() == 1


@pytest.mark.parametrize(("flip", "least", "most"), [(True, 330, 470), (False, 0, 0)])
def test_half_of_the_images_are_mirrored_on_request(flip, least, most):
    batches = make_batches(flip=flip)
    images = torch.cat([batches(step)[0] for step in range(50)])
    mirrored = images[:, 0, 0, 0] == 255
    assert least <= mirrored.sum() <= most
    upright = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)
    assert torch.equal(upright, numbered()[upright[:, 0, 0, 0].long()])


# A run


def test_training_is_the_plain_loop(whole):
    """The same run, written down once more."""
    torch.manual_seed(CONFIG.seed)
    network = tiny_unet()
    average = copy.deepcopy(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1.0)
    batches = Batches(load_dataset("digits", "train").pixels, CONFIG)
    for step in range(CONFIG.steps):
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
    assert_close(whole, dict(average.named_parameters()))


def assert_close(folder: Path, expected: dict[str, torch.Tensor]) -> None:
    for name, value in load_file(folder / WEIGHTS).items():
        assert torch.allclose(value.float(), expected[name].float(), rtol=2**-9, atol=2e-5), name


def test_the_model_folder(whole, tmp_path):
    model = load_model(str(whole))
    assert (model.name, model.shape, model.schedule.name) == ("net", (1, 8, 8), "linear")
    card = read_json(whole / CARD)
    assert card["dataset"] == "digits" and card["commit"] == "abc"
    assert card["training"].items() >= (asdict(CONFIG) | {"attention": list(CONFIG.attention)}).items()
    assert card["training"]["images_seen"] == 192 and card["training"]["devices"] == "1 x cpu (1 threads)"
    with pytest.raises(AlreadyDone, match="--force"):
        train(CONFIG, whole)


def test_batch_that_cannot_be_shared(monkeypatch, tmp_path):
    three = SimpleNamespace(device=torch.device("cpu"), process_index=0, num_processes=3)
    monkeypatch.setattr("accelerate.Accelerator", lambda **options: three)
    with pytest.raises(BadValue, match="batch 16 cannot be shared by 3 processes; choose a multiple of 3"):
        train(CONFIG, tmp_path / "net")


def test_compile_is_asked_for_without_graphs_on_a_cpu(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(training, "compile_loss", lambda loss, batch, graphs: asked.append(graphs) or loss)
    train(CONFIG, tmp_path / "net", compile=True, stop_after=1)
    assert asked == [False]


# A flow


def test_the_loss_of_a_flow_is_that_of_the_velocity():
    batches = make_batches(target="flow")
    x0, noise, alpha, sigma, c, weight = batches(3)
    assert torch.allclose(alpha + sigma, torch.ones(16)) and (weight == 1).all()
    assert torch.allclose(c, 1000 * sigma) and sigma.min() > 0 and torch.equal(c, c.round())
    seen = []
    network = torch.nn.Module()
    network.forward = lambda x, c: seen.append(x) or SimpleNamespace(sample=0.25 * x)
    loss = PredictionLoss(network, False, "velocity")(x0, noise, alpha, sigma, c, weight)
    t = sigma.view(-1, 1, 1, 1)
    x = (1 - t) * to_float(x0) + t * noise
    assert torch.allclose(seen[0], x, atol=1e-6)
    assert loss.item() == pytest.approx((0.25 * x - (noise - to_float(x0))).square().mean().item(), rel=1e-5)


def test_a_flow_is_trained_resumed_exactly_and_sampled(tmp_path):
    config = replace(CONFIG, target="flow", images=16 * 6)
    whole = train(config, tmp_path / "whole" / "flow")
    folder = train(config, tmp_path / "parts" / "flow", stop_after=3)
    with pytest.raises(BadValue, match=r"'target': \('flow', 'eps'\)"):
        train(replace(config, target="eps"), folder)
    train(config, folder)
    assert file_hash(folder / WEIGHTS) == file_hash(whole / WEIGHTS)
    card = read_json(folder / CARD)
    assert (card["schedule"], card["kind"], card["training"]["target"]) == ("flow", "velocity", "flow")
    model = load_model(str(folder))
    assert (model.schedule.name, model.kind) == ("flow", "velocity")
    sampler = make_sampler(model, "euler", "uniform-trailing", 3)
    (x,) = (noise := SampleNoise([4]).start((1, 8, 8)))[None]
    for t in (1.0, 2 / 3, 1 / 3):  # Euler's method on the network itself
        with torch.no_grad():
            x = x - model.network(x, torch.tensor([1000 * t])).sample / 3
    assert torch.allclose(sampler([4]).x, x, atol=1e-5) and not torch.allclose(x, noise)
    for target, message in (("v", "unknown target 'v'"), ("flow", "min_snr weights the loss of eps")):
        with pytest.raises(BadValue, match=message):
            replace(CONFIG, target=target, min_snr=5.0)


# From the weights of another network


def test_a_start_from_trained_weights(whole, tmp_path):
    """Steps change hardly anything: the weights are those of the start, and not those of the seed."""
    config = replace(CONFIG, images=32, lr=1e-12)
    folder = train(config, tmp_path / "again", start=str(whole), stop_after=1)
    digest = file_hash(whole / WEIGHTS)
    state = torch.load(folder / CHECKPOINT, weights_only=True)
    assert state["config"]["start"] == f"net {digest}"
    with pytest.raises(BadValue, match=rf"'start': \('net {digest}', ''\)"):
        train(config, tmp_path / "again")
    train(config, folder, start=str(whole))
    assert read_json(folder / CARD)["training"]["start"] == f"net {digest}"
    assert_close(folder, load_file(whole / WEIGHTS))


def test_a_start_of_another_architecture(whole, tmp_path):
    with pytest.raises(BadValue, match=r"cannot start from net, .*'block_out_channels': \(\(8, 8\), \(8, 16\)\)\}"):
        train(replace(CONFIG, width=64), tmp_path / "net", start=str(whole))
    save_model(tiny_unet(), tmp_path / "cosine", name="cosine", schedule="cosine", card={})
    with pytest.raises(BadValue, match=r"cannot start from cosine, .*'schedule': \('cosine', 'linear'\)\}"):
        train(CONFIG, tmp_path / "net", start=str(tmp_path / "cosine"))
