"""The features that distances are taken in, by name, and the statistics of images in them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from tt_lib.datasets.images import Pixels
from tt_lib.errors import BadValue, choose
from tt_lib.files import data_folder
from tt_lib.metrics.statistics import FeatureStatistics
from tt_lib.networks import feature_nets
from tt_lib.networks.running import compile_network, cudnn_flags

TRAINED = ("cifar10-resnet", "digits-resnet")
"""Those of classifiers trained in this project."""
IMAGENET = "imagenet-efficientnet-lite0"
INCEPTION = "inception-2015"
FAST = (IMAGENET, INCEPTION)
"""Those of networks that enlarge images, which take most of an evaluation's time. On a GPU their faster form runs in
float16, which has eight times the precision of bfloat16 at the same speed. An H200 then takes 37,900 images a second in
EfficientNet-lite0's features, and 13,100 in float32; a distance of 8.131 becomes 8.138. What it changes in Inception's
with random weights is in ``data/results/speed.csv``."""
BATCH = 500
"""Images a batch. It is fixed, as the last digits of a convolution depend on the batch it is part of."""


@dataclass(frozen=True)
class Features:
    """A function from images to feature vectors that knows what it is.

    Attributes:
        name: for example ``cifar10-resnet``.
        network: maps uint8 pixels [B, C, H, W] to vectors [B, dimension].
        dimension: length of a feature vector.
        sha256: hash of the weights' file.
        device: where it computes.
    """

    name: str
    network: nn.Module
    dimension: int
    sha256: str
    device: torch.device

    @property
    def metric(self) -> str:
        """What a distance in these features is called."""
        return metric_of(self.name)

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Features float32 [B, dimension], on ``device``, of uint8 pixels [B, C, H, W] from any device."""
        with cudnn_flags(allow_tf32=False):  # a distance must not depend on the GPU
            return self.network(pixels.to(self.device)).float()


def load_features(name: str, device: torch.device | str = "cpu", weights: Path | str | None = None) -> Features:
    """Features by name: one of :data:`TRAINED`, ``imagenet-efficientnet-lite0`` or ``inception-2015``.

    Args:
        device: where to compute.
        weights: the network's folder (default ``data/pretrained/<name>``), EfficientNet's weights (default: those of
            their package) or Inception's (default: see :func:`tt_lib.metrics.inception.find_inception`).

    Raises:
        BadValue: an unknown name.
        MissingFile, CorruptFile: the weights are not there or not the right ones.
    """
    choose("features", name, (*TRAINED, IMAGENET, INCEPTION))
    device = torch.device(device)
    if name == IMAGENET:
        from tt_lib.metrics import imagenet

        return Features(
            name, imagenet.ImageNetFeatures(weights).to(device), imagenet.DIMENSION, imagenet.SHA256, device
        )
    if name == INCEPTION:
        from tt_lib.metrics.inception import DIMENSION, load_inception

        inception = load_inception(weights).to(device)
        return Features(name, inception, DIMENSION, inception.sha256, device)
    folder = Path(weights) if weights else data_folder() / "pretrained" / name
    network = feature_nets.read_feature_network(folder, device)
    return Features(name, network, network.widths[-1], feature_nets.read_config(folder)["sha256"], device)


class FastFeatures(nn.Module):
    """A network of uint8 pixels, channels last, for batches of ``size``; a smaller last one is filled up.

    Args:
        network: maps uint8 pixels [B, C, H, W] to vectors [B, D]; it is changed in place.
        size: images at a time.
        compile: compile it for that size, with the enlarging of the images: for a GPU.
        dtype: float32, or the precision of autocast.
    """

    def __init__(self, network: nn.Module, size: int, compile: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.size, self.dtype = size, dtype
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.run = compile_network(self.network) if compile else self.network

    def forward(self, pixels: Tensor) -> Tensor:
        features = []
        for part in pixels.split(self.size):
            rows = torch.arange(self.size, device=part.device).clamp(max=len(part) - 1)
            filled = part[rows].contiguous(memory_format=torch.channels_last)
            with torch.autocast(part.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
                features.append(self.run(filled)[: len(part)].float())
        return torch.cat(features)


def make_fast(features: Features, size: int, compile: bool = False, dtype: torch.dtype | None = None) -> Features:
    """The same features from :class:`FastFeatures`; ``features`` is used up. What enlarges no images stays as it is.

    Args:
        size, compile: see :class:`FastFeatures`.
        dtype: a precision; by default float16 on a GPU, and float32 on a CPU, which has no faster one.
    """
    if features.name not in FAST:
        return features
    dtype = dtype or (torch.float16 if features.device.type == "cuda" else torch.float32)
    return replace(features, network=FastFeatures(features.network, size, compile, dtype))


def metric_of(name: str) -> str:
    """What a distance in the features of this name is called: ``FID`` only for Inception-2015."""
    return "FID" if name == INCEPTION else f"FD ({name})"


def empty_statistics(features: Features) -> FeatureStatistics:
    """Statistics of no image yet, in these features and where they are computed."""
    # Apple's GPUs have no float64, in which the sums are kept.
    device = features.device if features.device.type != "mps" else "cpu"
    return FeatureStatistics(features.dimension, features.name, features.sha256, device)


def statistics_of(pixels: Pixels, features: Features, batch: int = BATCH) -> FeatureStatistics:
    """Statistics of all images, uint8 [N, C, H, W].

    Raises:
        BadValue: no images, or a batch below 1.
        NotFinite: a feature is NaN.
    """
    if batch < 1 or not len(pixels):
        raise BadValue(f"need images and a batch of 1 or more, got {len(pixels)} images and batch {batch}")
    return _statistics_of(pixels, torch.arange(len(pixels)), features, batch)


def _statistics_of(pixels: Pixels, rows: Tensor, features: Features, batch: int) -> FeatureStatistics:
    statistics = empty_statistics(features)
    statistics.shape = tuple(pixels.shape[1:])
    for part in rows.split(batch):
        statistics.update(features(pixels[part]))
    return statistics


def disjoint_sets(pixels: Pixels, features: Features, sets: int = 10, batch: int = BATCH) -> list[FeatureStatistics]:
    """Statistics of ``sets`` consecutive, equal parts of ``pixels``, uint8 [N, C, H, W].

    They are what :func:`tt_lib.metrics.frechet.jackknife_interval` takes; merged, they are the whole.

    Raises:
        BadValue: fewer than two images a set, or a batch below 1.
        NotFinite: a feature is NaN.
    """
    if sets < 1 or len(pixels) < 2 * sets:
        raise BadValue(f"{sets} sets need at least 2 images each, got {len(pixels)} images; use fewer sets")
    return [_statistics_of(pixels, rows, features, batch) for rows in torch.arange(len(pixels)).tensor_split(sets)]
