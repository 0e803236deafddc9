"""Inception-2015 features: pytorch-fid's own, looked for and checked without a download.

The real weights are not at hand where tests run; random ones of the true architecture, planted under
torch hub's name for the file, stand in for them.
"""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_fid import fid_score
from pytorch_fid import inception as theirs
from torch import nn

from tt_lib.errors import BadValue, CorruptFile, MissingFile
from tt_lib.files import file_hash
from tt_lib.metrics import inception
from tt_lib.metrics.features import Features, load_features, make_fast

NAME = "pt_inception-2015-12-05-6726825d.pth"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A torch home whose cache holds random weights under the official name."""
    home = tmp_path_factory.mktemp("torch")
    inception.plant_random_inception(home)
    return home


@pytest.fixture(autouse=True)
def planted(monkeypatch, home):
    """torch hub looks into ``home``; nothing may be fetched."""

    def refuse(*args, **options):
        raise AssertionError("tried to connect")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(home))
    monkeypatch.delenv("TT_INCEPTION", raising=False)


def smooth(count: int, seed: int, darkest: int = 0) -> torch.Tensor:
    """So many colour images of 32x32, uint8."""
    coarse = torch.randint(darkest, 256, (count, 3, 4, 4), generator=torch.Generator().manual_seed(seed)).float()
    return torch.nn.functional.interpolate(coarse, size=32, mode="bilinear").to(torch.uint8)


def save(images: torch.Tensor, folder: Path) -> list[Path]:
    """Each image as a PNG file."""
    folder.mkdir(exist_ok=True)
    files = [folder / f"{number}.png" for number in range(len(images))]
    for image, file in zip(images, files, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)
    return files


@pytest.fixture
def pixels():
    return smooth(8, 0)


def weights(home):
    return home / "hub" / "checkpoints" / NAME


def test_same_as_pytorch_fid(home, pixels, tmp_path):
    files = save(pixels, tmp_path)
    block = theirs.InceptionV3.BLOCK_INDEX_BY_DIM[2048]
    expected = fid_score.get_activations(
        files, theirs.InceptionV3([block]), batch_size=8, dims=2048, device="cpu", num_workers=0
    )
    vectors = inception.InceptionFeatures(weights(home))(pixels)
    assert vectors.shape == (8, 2048) and vectors.dtype == torch.float32
    # Eight different images have eight different features, so the comparison means something.
    difference = np.abs(vectors.numpy() - expected).max()
    assert difference < 1e-4 * expected.max() and expected.std(0).max() > 100 * difference


def test_as_named_features(home, pixels, monkeypatch):
    monkeypatch.setattr(inception, "HASH_PREFIX", file_hash(weights(home))[:8])
    features = load_features("inception-2015")
    assert (features.name, features.dimension, features.metric) == ("inception-2015", 2048, "FID")
    assert features.sha256 == file_hash(weights(home))
    assert features(pixels[:2]).shape == (2, 2048)
    # pytorch-fid's own way to its weights is back in place.
    assert theirs.load_state_dict_from_url.__module__.startswith("torch")


def test_missing_weights_say_where_to_get_them(home, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(MissingFile) as error:
        inception.load_inception()
    for words in (
        NAME,
        f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{NAME}",
        "TT_INCEPTION",
    ):
        assert words in str(error.value)
    assert str(tmp_path / "hub" / "checkpoints" / NAME) in str(error.value)


def test_where_the_weights_are_looked_for(home, tmp_path, monkeypatch):
    assert inception.find_inception() == weights(home)
    own = tmp_path / "own.pth"
    own.touch()
    monkeypatch.setenv("TT_INCEPTION", str(own))
    assert inception.find_inception() == own
    assert inception.find_inception(weights(home).parent) == weights(home)
    monkeypatch.setenv("TT_INCEPTION", str(tmp_path / "gone"))
    with pytest.raises(MissingFile, match="gone"):  # a wrong setting is not passed over
        inception.find_inception()


@pytest.mark.parametrize("content", ["html", "another network"])
def test_damaged_weights(home, tmp_path, content):
    path = tmp_path / NAME
    if content == "html":
        path.write_bytes(b"<html>404</html>")
    else:
        torch.save({"fc.weight": torch.zeros(2)}, path)
    # The hash is looked at first, so nothing of a file that is not the official one is read.
    with pytest.raises(CorruptFile, match="which should begin with 6726825d"):
        inception.load_inception(path)
    with pytest.raises(CorruptFile, match="holds no Inception weights"):
        inception.InceptionFeatures(path)


def test_the_faster_form_is_the_same_in_any_batch():
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.sizes = nn.Conv2d(3, 5, 3), []

        def forward(self, pixels):
            self.sizes.append(len(pixels))
            return self.layer(pixels.float() / 255).mean((2, 3))

    slow = Features("inception-2015", Network(), 5, "", torch.device("cpu"))
    pixels, fast = smooth(7, 0), make_fast(slow, 3, dtype=torch.float16)
    expected = slow(pixels)
    vectors = fast(pixels)
    assert slow.network.sizes == [7, 3, 3, 3] and vectors.shape == (7, 5) and vectors.dtype == torch.float32
    assert torch.allclose(vectors, expected, atol=2e-3) and not torch.equal(vectors, expected), "float16, and near"
    exact = make_fast(slow, 3, dtype=torch.float32)(pixels)
    assert torch.allclose(exact, expected, atol=1e-6)
    other = replace(slow, name="cifar10-resnet")
    assert make_fast(other, 3) is other, "what enlarges no images is fast as it is"


def test_wrong_pixels(home):
    network = inception.InceptionFeatures(weights(home))
    with pytest.raises(BadValue, match=r"uint8 pixels \[B, 3, H, W\]"):
        network(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(BadValue, match="float32"):
        network(torch.zeros(1, 3, 8, 8))
