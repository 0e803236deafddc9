"""The networks of the features and their folders: shapes, normalisation, what is written and what damages it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tt_lib.errors import BadValue, CorruptFile, MissingFile
from tt_lib.files import file_hash, read_json, write_json
from tt_lib.networks.config import FeatureConfig
from tt_lib.networks.feature_nets import CONFIG, WEIGHTS, FeatureNet, read_feature_network, save_features

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folder(tmp_path) -> Path:
    torch.manual_seed(0)
    save_features(FeatureNet((8, 16), in_channels=1), tmp_path, {"note": 7})
    return tmp_path


def test_folders_keep_the_network(tmp_path):
    torch.manual_seed(0)
    network = FeatureNet(FeatureConfig().widths).eval()
    save_features(network, tmp_path, {"note": 7})
    assert (tmp_path / WEIGHTS).stat().st_size < 12e6
    config = json.loads((tmp_path / CONFIG).read_text())
    assert config["n_params"] == 5_203_786 and config["note"] == 7
    assert config["sha256"] == file_hash(tmp_path / WEIGHTS)
    stored = load_file(tmp_path / WEIGHTS)
    assert {value.dtype for value in stored.values() if value.ndim > 1} == {torch.float16}
    again = read_feature_network(tmp_path)
    assert not again.training
    assert {(value.dtype, value.requires_grad) for value in again.parameters()} == {(torch.float32, False)}
    pixels = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    answer = network(pixels)
    assert answer.shape == (2, 256) and answer.dtype == torch.float32
    assert torch.allclose(again(pixels), answer, rtol=0.02, atol=0.02)
    assert torch.allclose(network(pixels[:1]), answer[:1], atol=1e-5), "an image's features are its own"


def test_features_are_pooled_over_places():
    """Where a spot lies (in whole strides, off the borders) hardly matters; that there is one does."""
    torch.manual_seed(0)
    network = FeatureNet((8, 8), in_channels=1).eval()
    pixels = torch.zeros(3, 1, 32, 32, dtype=torch.uint8)
    pixels[0, :, 8:12, 8:12] = pixels[1, :, 18:22, 18:22] = 255
    features = network(pixels)
    moved, gone = ((features[0] - features[i]).abs().max() for i in (1, 2))
    assert 20 * moved < gone


def test_normalisation_is_the_training_images():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (50, 3, 8, 8), dtype=torch.uint8, generator=generator)
    pixels[:, 1] //= 3
    network = FeatureNet((4,))
    network.set_normalisation(pixels)
    x = pixels.double() / 127.5 - 1
    assert torch.allclose(network.mean.double(), x.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(network.deviation.double(), x.std((0, 2, 3), correction=0), atol=1e-6)


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


def test_damaged_and_missing_files(folder):
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-7] ^= 1
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(CorruptFile, match="restore the folder"):
        read_feature_network(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(MissingFile, match=r"model\.safetensors"):
        read_feature_network(folder)
    (folder / CONFIG).unlink()
    with pytest.raises(MissingFile, match=r"lacks config\.json.*tt features"):
        read_feature_network(folder)


@pytest.mark.parametrize("change", [{"architecture": "vgg"}, {"widths": [8, 8]}, {"in_channels": 3}, {"sha256": None}])
def test_configuration_that_does_not_fit(folder, change):
    config = read_json(folder / CONFIG) | change
    write_json(folder / CONFIG, {key: value for key, value in config.items() if value is not None})
    with pytest.raises(CorruptFile, match=r"config\.json"):
        read_feature_network(folder)
