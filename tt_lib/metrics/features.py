"""The features that distances are taken in, by name, and the statistics of images in them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from tt_lib.errors import BadValue, choose
from tt_lib.files import data_folder
from tt_lib.metrics.statistics import FeatureStatistics
from tt_lib.networks import feature_nets
from tt_lib.networks.running import cudnn_flags

TRAINED = ("cifar10-resnet", "cifar10-simclr", "digits-resnet", "digits-simclr")
"""Those of networks trained in this project: ``resnet`` with labels, ``simclr`` without."""
INCEPTION = "inception-2015"
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
    """Features by name: ``cifar10-resnet``, ``cifar10-simclr``, the same of digits, or ``inception-2015``.

    Args:
        device: where to compute.
        weights: the network's folder (default ``data/pretrained/<name>``) or Inception's weights
            (default: see :func:`tt_lib.metrics.inception.find_inception`).

    Raises:
        BadValue: an unknown name.
        MissingFile, CorruptFile: the weights are not there or not the right ones.
    """
    choose("features", name, (*TRAINED, INCEPTION))
    device = torch.device(device)
    if name == INCEPTION:
        from tt_lib.metrics.inception import DIMENSION, load_inception

        inception = load_inception(weights).to(device)
        return Features(name, inception, DIMENSION, inception.sha256, device)
    folder = Path(weights) if weights else data_folder() / "pretrained" / name
    network = feature_nets.read_feature_network(folder, device)
    return Features(name, network, network.widths[-1], feature_nets.read_config(folder)["sha256"], device)


def make_fast(features: Features, size: int, compile: bool = False) -> Features:
    """The same features from :class:`tt_lib.metrics.inception.FastInception`; ``features`` is used up.

    Raises:
        BadValue: other features than Inception's, which are fast as they are.
    """
    from tt_lib.metrics.inception import FastInception

    if features.name != INCEPTION:
        raise BadValue(f"only the features {INCEPTION} have a faster form, {features.name} are fast as they are")
    return replace(features, network=FastInception(features.network, size, compile))


def metric_of(name: str) -> str:
    """What a distance in the features of this name is called: ``FID`` only for Inception-2015."""
    return "FID" if name == INCEPTION else f"FD ({name})"


def gain_of(name: str) -> str:
    """What the gain of a tuned sampler over the untuned one is called, in the features of this name."""
    return f"gain of {metric_of(name)}"


def empty_statistics(features: Features) -> FeatureStatistics:
    """Statistics of no image yet, in these features and where they are computed."""
    # Apple's GPUs have no float64, in which the sums are kept.
    device = features.device if features.device.type != "mps" else "cpu"
    return FeatureStatistics(features.dimension, features.name, features.sha256, device)


def statistics_of(pixels: Tensor, features: Features, batch: int = BATCH) -> FeatureStatistics:
    """Statistics of all images, uint8 [N, C, H, W].

    Raises:
        BadValue: no images, or a batch below 1.
        NotFinite: a feature is NaN.
    """
    if batch < 1 or not len(pixels):
        raise BadValue(f"need images and a batch of 1 or more, got {len(pixels)} images and batch {batch}")
    statistics = empty_statistics(features)
    for part in pixels.split(batch):
        statistics.update(features(part))
    return statistics


def disjoint_sets(pixels: Tensor, features: Features, sets: int = 10, batch: int = BATCH) -> list[FeatureStatistics]:
    """Statistics of ``sets`` consecutive, equal parts of ``pixels``, uint8 [N, C, H, W].

    They are what :func:`tt_lib.metrics.frechet.jackknife_interval` takes; merged, they are the whole.

    Raises:
        BadValue: fewer than two images a set, or a batch below 1.
        NotFinite: a feature is NaN.
    """
    if sets < 1 or len(pixels) < 2 * sets:
        raise BadValue(f"{sets} sets need at least 2 images each, got {len(pixels)} images; use fewer sets")
    return [statistics_of(part, features, batch) for part in pixels.tensor_split(sets)]
