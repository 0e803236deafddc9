"""The network of the features that were learnt without labels."""

from __future__ import annotations

import pytest
import torch

from tt_lib.networks.feature_nets import PlainNet, count_parameters, load_features, save_features

pytestmark = pytest.mark.usefixtures("one_thread")


def test_default_network_is_small_enough_to_ship(tmp_path):
    torch.manual_seed(0)
    network = PlainNet()
    assert 2e6 < count_parameters(network) < 6e6
    save_features(network, tmp_path, {})
    assert (tmp_path / "model.safetensors").stat().st_size < 12e6
    pixels = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    features = network(pixels)
    assert features.shape == (2, 384) and features.dtype == torch.float32
    assert torch.allclose(features[:1], network(pixels[:1]), atol=1e-5), (
        "also in training an image's features are its own"
    )
    again = load_features(tmp_path)
    assert isinstance(again, PlainNet) and torch.allclose(again(pixels), features, rtol=0.02, atol=0.01)
