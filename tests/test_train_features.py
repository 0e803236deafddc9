"""Training the feature classifier: its recipe, and a run on digits."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch
from torch.nn import functional as F

from tt_lib.datasets import load_dataset
from tt_lib.errors import AlreadyDone, BadValue
from tt_lib.files import file_hash, read_json
from tt_lib.networks.config import FeatureConfig
from tt_lib.networks.feature_nets import CONFIG, WEIGHTS, FeatureNet, read_feature_network
from tt_lib.networks.train_features import (
    AugmentedBatches,
    accuracy,
    augment,
    learning_rate,
    make_optimizer,
    train_features,
)

pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS = FeatureConfig("digits", widths=(8, 16), epochs=6, batch=100, lr=0.2, flip=False)


@pytest.fixture(scope="module", autouse=True)
def nowhere(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TT_DATA", str(tmp_path_factory.mktemp("data")))
        patch.setenv("TT_COMMIT", "abc")
        yield


@pytest.fixture(scope="module")
def trained(one_thread, nowhere, tmp_path_factory):
    return train_features(SETTINGS, tmp_path_factory.mktemp("features") / "digits-resnet")


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


def test_seed_and_step_decide_the_batches():
    train, device = load_dataset("digits", "train"), torch.device("cpu")
    first, again, other = (AugmentedBatches(train, replace(SETTINGS, seed=seed), device) for seed in (0, 0, 1))
    epoch = [first(step) for step in range(15)]
    assert torch.equal(torch.cat([labels for _, labels in epoch]).bincount(), train.labels.bincount())
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(epoch[7], again(7), strict=True))
    for pixels, labels in (first(15 + 7), other(7)):
        assert not torch.equal(pixels, epoch[7][0]) and not torch.equal(labels, epoch[7][1])


def test_learning_rate_rises_and_falls_to_nothing():
    rates = [learning_rate(FeatureConfig(lr=0.4), 1000, step) for step in range(1000)]
    peak = rates.index(max(rates))
    assert peak in (149, 150) and max(rates) == pytest.approx(0.4, rel=0.01)
    assert rates[:peak] == sorted(rates[:peak]) and rates[peak:] == sorted(rates[peak:], reverse=True)
    assert 0 < rates[-1] < 0.001


def test_weight_decay_spares_norms_and_biases():
    network = FeatureNet((4, 8))
    optimizer = make_optimizer(network, FeatureConfig())
    decay = {id(weight): group["weight_decay"] for group in optimizer.param_groups for weight in group["params"]}
    assert len(decay) == len(list(network.parameters()))
    for name, weight in network.named_parameters():
        spared = "norm" in name or name.endswith("bias")
        assert decay[id(weight)] == (0 if spared else 5e-4), name


def test_training_learns_and_reports_the_accuracy_of_what_is_written(trained):
    config = read_json(trained / CONFIG)
    assert config["test_accuracy"] > 0.9
    network = read_feature_network(trained)
    assert accuracy(network, load_dataset("digits", "test")) == pytest.approx(config["test_accuracy"], abs=1e-6)
    settings = asdict(SETTINGS) | {"widths": [8, 16], "images_seen": 9000, "in_channels": 1, "commit": "abc"}
    assert settings.items() <= config.items()
    assert sorted(file.name for file in trained.iterdir()) == [CONFIG, WEIGHTS]


def test_interrupted_training_ends_the_same(trained, tmp_path):
    # Killed twice: in the middle of an epoch and at the end of one.
    for stop in (22, 23):
        train_features(SETTINGS, tmp_path, stop_after=stop)
    train_features(SETTINGS, tmp_path)
    assert file_hash(tmp_path / WEIGHTS) == file_hash(trained / WEIGHTS)
    with pytest.raises(AlreadyDone, match="--force"):
        train_features(SETTINGS, tmp_path)
    train_features(replace(SETTINGS, seed=1, epochs=1), tmp_path, force=True)
    assert file_hash(tmp_path / WEIGHTS) != file_hash(trained / WEIGHTS)


def test_a_batch_of_more_than_there_are(tmp_path):
    with pytest.raises(BadValue, match="batch of 1501 is more than the 1500 training images"):
        train_features(replace(SETTINGS, batch=1501), tmp_path)
