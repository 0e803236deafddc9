"""The feature classifier: its shape, its training on digits, resuming, its files, and what breaks them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from tt_lib.datasets import load_dataset
from tt_lib.errors import BadValue, CorruptFile, MissingFile, NotFinite
from tt_lib.files import file_hash
from tt_lib.metrics.features import load_feature_extractor
from tt_lib.networks.augment import augment
from tt_lib.networks.feature_nets import FeatureNet, accuracy, count_parameters, load_features, save_features
from tt_lib.networks.loop import update_average
from tt_lib.networks.train_features import (
    Recipe,
    epoch_images,
    learning_rate,
    make_optimizer,
    train_features,
)

pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS = dict(widths=(8, 16), epochs=6, batch=100, lr=0.2, flip=False, device="cpu")


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", "train"), load_dataset("digits", "test")


@pytest.fixture(scope="module")
def trained(digits, one_thread, tmp_path_factory):
    """A small classifier of digits: (folder, report, log lines)."""
    folder, lines = tmp_path_factory.mktemp("features") / "digits-resnet", []
    return folder, train_features(*digits, folder, log=lines.append, **SETTINGS), lines


@pytest.fixture
def folder(trained, tmp_path):
    """A copy of the trained folder, to be damaged."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in trained[0].iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


# The network


def test_default_network_is_small_enough_to_ship(tmp_path):
    torch.manual_seed(0)
    network = FeatureNet()
    assert count_parameters(network) == 5_203_786
    save_features(network, tmp_path, {})
    assert (tmp_path / "model.safetensors").stat().st_size < 12e6
    pixels = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    features = network.eval()(pixels)
    assert features.shape == (2, 256) and features.dtype == torch.float32
    assert torch.equal(network.logits(pixels), network.head(features))


def test_features_are_pooled_over_places():
    """Where a spot lies (in whole strides, off the borders) hardly matters; that there is one does."""
    torch.manual_seed(0)
    network = FeatureNet((8, 8), in_channels=1).eval()
    pixels = torch.zeros(3, 1, 32, 32, dtype=torch.uint8)
    pixels[0, :, 8:12, 8:12] = pixels[1, :, 18:22, 18:22] = 255
    features = network(pixels)
    moved, gone = ((features[0] - features[i]).abs().max() for i in (1, 2))
    assert 20 * moved < gone


@pytest.mark.parametrize(("widths", "channels", "classes"), [((), 3, 10), ((8, 0), 3, 10), ((8,), 0, 10), ((8,), 3, 0)])
def test_impossible_networks(widths, channels, classes):
    with pytest.raises(BadValue, match="1 or more"):
        FeatureNet(widths, channels, classes)


def test_wrong_pixels():
    network = FeatureNet((4,))
    with pytest.raises(BadValue, match=r"\[B, 3, H, W\]"):
        network(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(BadValue, match="uint8"):
        network(torch.zeros(1, 3, 8, 8))


def test_normalisation_is_the_training_images(digits):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (50, 3, 8, 8), dtype=torch.uint8, generator=generator)
    pixels[:, 1] //= 3
    network = FeatureNet((4,))
    network.set_normalisation(pixels)
    x = pixels.double() / 127.5 - 1
    assert torch.allclose(network.mean.double(), x.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(network.deviation.double(), x.std((0, 2, 3), correction=0), atol=1e-6)


# The parts of the recipe


def test_augmented_images_are_crops_mirrors_and_holes():
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(256, (30, 3, 32, 32), dtype=torch.uint8, generator=generator)
    changed = augment(pixels, generator)
    padded = F.pad(pixels.float(), (4, 4, 4, 4), mode="reflect").to(torch.uint8)
    mean = pixels.float().mean((0, 2, 3)).round().to(torch.uint8).view(3, 1, 1)
    places, mirrored = set(), 0
    for image, source in zip(changed, padded, strict=True):
        for place in range(81):
            crop = source[:, place // 9 : place // 9 + 32, place % 9 : place % 9 + 32]
            for flip in (False, True):
                same = (image == (crop.flip(2) if flip else crop)).all(0)
                if same.float().mean() > 0.9:
                    places.add(place)
                    mirrored += flip
                    hole = ~same
                    break
        # What is not the crop is one square of at most 8x8 in the mean colour.
        assert (image == mean).all(0)[hole].all()
        rows, columns = hole.any(1).nonzero(), hole.any(0).nonzero()
        assert rows.max() - rows.min() < 8 and columns.max() - columns.min() < 8 and 9 <= hole.sum() <= 64
    assert len(places) > 15 and 5 < mirrored < 25


def test_augmentation_without_mirror_follows_its_generator():
    ramp = torch.arange(0, 256, 8, dtype=torch.uint8).expand(40, 1, 32, 32)
    changed = augment(ramp, torch.Generator().manual_seed(0), flip=False)
    # Columns 13 and 14 lie inside every crop, so the ramp still rises there, outside the hole.
    rises = changed[:, 0, :, 14].int() - changed[:, 0, :, 13].int()
    assert (rises == 8).any(1).all() and not (rises == -8).any()
    assert torch.equal(changed, augment(ramp, torch.Generator().manual_seed(0), flip=False))
    assert not torch.equal(changed, augment(ramp, torch.Generator().manual_seed(1), flip=False))


def test_every_epoch_and_seed_has_its_own_order(digits):
    recipe = Recipe("x", (4,), epochs=1, batch=1, lr=0.4, seed=0, flip=False)
    train = digits[0]
    first, again, later, other = (
        epoch_images(train.pixels, train.labels, replace(recipe, seed=seed), epoch)
        for seed, epoch in ((0, 3), (0, 3), (0, 4), (1, 3))
    )
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    for drawn in (later, other):
        assert not torch.equal(first[0], drawn[0]) and not torch.equal(first[1], drawn[1])
        assert torch.equal(drawn[1].bincount(), train.labels.bincount())


def test_learning_rate_rises_and_falls_to_nothing():
    recipe = Recipe("x", (4,), epochs=1, batch=1, lr=0.4, seed=0, flip=False)
    rates = [learning_rate(recipe, step, 1000) for step in range(1000)]
    peak = rates.index(max(rates))
    assert peak in (149, 150) and max(rates) == pytest.approx(0.4, rel=0.01)
    assert rates[:peak] == sorted(rates[:peak]) and rates[peak:] == sorted(rates[peak:], reverse=True)
    assert 0 < rates[-1] < 0.001


def test_weight_decay_spares_norms_and_biases():
    network = FeatureNet((4, 8))
    optimizer = make_optimizer(network, Recipe("x", (4,), 1, 1, 0.1, 0, False))
    decay = {id(weight): group["weight_decay"] for group in optimizer.param_groups for weight in group["params"]}
    assert len(decay) == len(list(network.parameters()))
    for name, weight in network.named_parameters():
        spared = "norm" in name or name.endswith("bias")
        assert decay[id(weight)] == (0 if spared else 5e-4), name


def test_average():
    average, current = [torch.tensor([1.0, 2.0])], [torch.tensor([3.0, 2.0])]
    update_average(average, current, decay=0.75)
    assert average[0].tolist() == [1.5, 2.0] and current[0].tolist() == [3.0, 2.0]


# Training


def test_training_learns_and_reports(trained, digits):
    folder, report, lines = trained
    assert report["test_accuracy"] > 0.9
    assert report == json.loads((folder / "config.json").read_text())
    assert report["n_params"] == count_parameters(load_features(folder))
    assert report["sha256"] == file_hash(folder / "model.safetensors")
    assert report["widths"] == [8, 16] and report["in_channels"] == 1 and report["epochs"] == 6
    assert any("test accuracy" in line and "left" in line for line in lines)
    assert not (folder / "checkpoint.pt").exists()


def test_reported_accuracy_is_that_of_the_shipped_weights(trained, digits):
    folder, report, _ = trained
    network = load_features(folder)
    assert not network.training and not any(weight.requires_grad for weight in network.parameters())
    assert {value.dtype for value in network.parameters()} == {torch.float32}
    assert accuracy(network, digits[1].pixels, digits[1].labels) == pytest.approx(report["test_accuracy"], abs=1e-6)
    stored = load_file(folder / "model.safetensors")
    assert all(value.dtype == torch.float16 for value in stored.values() if value.ndim > 1)


def test_interrupted_training_ends_the_same(trained, digits, tmp_path):
    out = tmp_path / "resumed"
    # Killed twice: in the middle of an epoch and at the end of one.
    for stop, expected in ((22, 22), (23, 45)):
        place = train_features(*digits, out, log=str, stop_after=stop, checkpoint_seconds=1e9, **SETTINGS)
        assert place == {"step": expected, "steps": 90} and (out / "checkpoint.pt").exists()
    lines: list[str] = []
    train_features(*digits, out, log=lines.append, **SETTINGS)
    assert lines[0] == "going on from step 45 of 90"
    ours, whole = load_file(out / "model.safetensors"), load_file(trained[0] / "model.safetensors")
    assert all(torch.equal(ours[key], whole[key]) for key in whole)


def test_checkpoints_are_written_on_the_way(digits, tmp_path):
    def die(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_features(*digits, tmp_path, log=die, checkpoint_seconds=0, **SETTINGS)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["step"] == 14  # the log line of the first epoch's end came before the save of step 15


def test_seed_decides(trained, digits, tmp_path):
    other = SETTINGS | {"epochs": 1}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train_features(*digits, tmp_path / name, seed=seed, log=str, **other)
    a, b, c = (file_hash(tmp_path / name / "model.safetensors") for name in "abc")
    assert a == b != c


def test_settings_that_cannot_be(digits, tmp_path):
    with pytest.raises(BadValue, match="make no step"):
        train_features(*digits, tmp_path, log=str, **SETTINGS | {"batch": 1501})
    with pytest.raises(NotFinite, match="lower lr"):
        train_features(*digits, tmp_path, log=str, **SETTINGS | {"lr": 1e30, "epochs": 1})


def test_checkpoint_of_another_run(digits, tmp_path):
    train_features(*digits, tmp_path, log=str, stop_after=1, **SETTINGS)
    with pytest.raises(BadValue, match=r"'lr': \(0\.2, 0\.1\)"):
        train_features(*digits, tmp_path, log=str, **SETTINGS | {"lr": 0.1})
    place = train_features(*digits, tmp_path, log=str, resume=False, stop_after=2, **SETTINGS)
    assert place["step"] == 2


def test_damaged_checkpoint(digits, tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"half a file")
    with pytest.raises(CorruptFile, match="resume=False"):
        train_features(*digits, tmp_path, log=str, **SETTINGS)


# Files


def test_damaged_weights(folder):
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-7] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(CorruptFile, match="restore the folder"):
        load_features(folder)


def test_missing_parts(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(MissingFile, match=r"model\.safetensors"):
        load_features(folder)
    (folder / "config.json").unlink()
    with pytest.raises(MissingFile, match=r"lacks config\.json.*tt features"):
        load_features(folder)


@pytest.mark.parametrize("change", [{"architecture": "vgg"}, {"widths": [8, 8]}, {"in_channels": 3}, {"sha256": None}])
def test_configuration_that_does_not_fit(folder, change):
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    with pytest.raises(CorruptFile, match=r"config\.json"):
        load_features(folder)


def test_extractor_by_name(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("TT_DATA", str(tmp_path))
    with pytest.raises(MissingFile, match=r"pretrained.digits-resnet"):
        load_feature_extractor("digits-resnet")
    with pytest.raises(BadValue, match="cifar10-resnet, cifar10-simclr, digits-resnet, digits-simclr, inception-2015"):
        load_feature_extractor("vgg")
    (tmp_path / "pretrained").mkdir()
    (tmp_path / "pretrained" / "digits-resnet").symlink_to(trained[0])
    features = load_feature_extractor("digits-resnet")
    assert (features.name, features.dimension, features.metric) == ("digits-resnet", 16, "FD (digits-resnet)")
    assert features.sha256 == trained[1]["sha256"]
    pixels = load_dataset("digits", "test").pixels[:5]
    assert torch.equal(features(pixels), load_features(trained[0])(pixels))
    assert load_feature_extractor("cifar10-resnet", trained[0]).metric == "FD (cifar10-resnet)"
