"""The features that distances are taken in, by name, and the statistics of images in them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from tt_lib.datasets import Images
from tt_lib.errors import BadValue, choose
from tt_lib.files import data_folder
from tt_lib.metrics.statistics import FeatureStatistics
from tt_lib.networks.feature_nets import full_precision, load_features, read_config
from tt_lib.networks.running import compile_network

TRAINED = ("cifar10-resnet", "cifar10-simclr", "digits-resnet", "digits-simclr")
"""Those that `tt features` trains: ``resnet`` with labels, ``simclr`` without."""
INCEPTION = "inception-2015"
BATCH = 500
"""Images a batch. It is fixed, as the last digits of a convolution depend on the batch it is part of."""


class Features(Protocol):
    """A function from images to feature vectors that knows what it is.

    Attributes:
        name: for example ``cifar10-resnet``.
        dimension: length of a feature vector.
        sha256: hash of the weights' file.
        metric: what a distance in these features is called: ``FID`` only for Inception-2015.
        device: where it computes.
    """

    @property
    def name(self) -> str: ...
    @property
    def dimension(self) -> int: ...
    @property
    def sha256(self) -> str: ...
    @property
    def metric(self) -> str: ...
    @property
    def device(self) -> torch.device: ...

    def __call__(self, pixels: Tensor) -> Tensor:
        """Features float32 [B, dimension], on ``device``, of uint8 pixels [B, C, H, W] from any device."""
        ...


@dataclass(frozen=True)
class NetworkFeatures:
    """:class:`Features` of a network that maps uint8 pixels to vectors."""

    name: str
    network: nn.Module
    dimension: int
    sha256: str
    metric: str
    device: torch.device

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        with full_precision():
            return self.network(pixels.to(self.device)).float()


def load_feature_extractor(
    name: str, path: Path | str | None = None, device: torch.device | str = "cpu"
) -> NetworkFeatures:
    """Features by name: ``cifar10-resnet``, ``cifar10-simclr``, the same of digits, or ``inception-2015``.

    Args:
        path: the network's folder (default ``data/pretrained/<name>``) or Inception's weights
            (default: see :func:`tt_lib.metrics.inception.find_inception`).
        device: where to compute.

    Raises:
        BadValue: an unknown name.
        MissingFile, CorruptFile: the weights are not there or not the right ones.
    """
    choose("features", name, (*TRAINED, INCEPTION))
    device = torch.device(device)
    if name == INCEPTION:
        from tt_lib.metrics.inception import DIMENSION, load_inception

        inception = load_inception(path, device)
        return NetworkFeatures(name, inception, DIMENSION, inception.sha256, metric_of(name), device)
    folder = Path(path) if path else data_folder() / "pretrained" / name
    network = load_features(folder, device)
    return NetworkFeatures(name, network, network.widths[-1], read_config(folder)["sha256"], metric_of(name), device)


def metric_of(name: str) -> str:
    """What a distance in the features of this name is called: ``FID`` only for Inception-2015."""
    return "FID" if name == INCEPTION else f"FD ({name})"


def gain_of(name: str) -> str:
    """What the gain of a tuned sampler over the untuned one is called, in the features of this name."""
    return f"gain of {metric_of(name)}"


def reference_statistics(images: Images, features: Features, batch: int = BATCH) -> FeatureStatistics:
    """Statistics of all ``images``, with their data set and split as ``meta``.

    Raises:
        BadValue: no images, or a batch below 1.
        NotFinite: a feature is NaN.
    """
    dataset, _, split = images.name.partition("-")
    return _statistics(images.pixels, features, batch, {"dataset": dataset, "split": split or "all"})


def disjoint_sets(pixels: Tensor, features: Features, sets: int = 10, batch: int = BATCH) -> list[FeatureStatistics]:
    """Statistics of ``sets`` consecutive, equal parts of ``pixels``, uint8 [N, C, H, W].

    They are what :func:`tt_lib.metrics.frechet.jackknife_interval` takes; merged, they are the whole.

    Raises:
        BadValue: fewer than two images a set, or a batch below 1.
        NotFinite: a feature is NaN.
    """
    if sets < 1 or len(pixels) < 2 * sets:
        raise BadValue(f"{sets} sets need at least 2 images each, got {len(pixels)} images; use fewer sets")
    return [_statistics(part, features, batch, {}) for part in pixels.tensor_split(sets)]


def empty_statistics(features: Features, meta: dict[str, str] | None = None) -> FeatureStatistics:
    """Statistics of no image yet, in these features and where they are computed."""
    # Apple's GPUs have no float64, in which the sums are kept.
    device = features.device if features.device.type != "mps" else "cpu"
    return FeatureStatistics(features.dimension, features.name, features.sha256, meta or {}, device)


def _statistics(pixels: Tensor, features: Features, batch: int, meta: dict[str, str]) -> FeatureStatistics:
    if batch < 1 or not len(pixels):
        raise BadValue(f"need images and a batch of 1 or more, got {len(pixels)} images and batch {batch}")
    found = empty_statistics(features, meta)
    for part in pixels.split(batch):
        found.update(features(part))
    return found


# FOLDED tt_lib.metrics.features
# Inception-2015 features as fast as a GPU gives them: float16, channels last, compiled, batches of one size.
#
# A distance may be taken in them where it is measured to agree with the distance in float32 (`tt speed --against pytorch-fid`
# writes both). float16 and not bfloat16: it has eight times its precision at the same speed, and the activations fit its range.
#


class FastNetwork(nn.Module):
    """A network of uint8 pixels in float16 under autocast, for batches of ``size``, which a last one is filled up to.

    Args:
        network: :class:`tt_lib.metrics.inception.InceptionFeatures`; it is changed in place.
        size: images at a time.
        compile: compile it for that size.
    """

    def __init__(self, network: nn.Module, size: int, compile: bool) -> None:
        super().__init__()
        self.size = size
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.run = compile_network(self.network) if compile else self.network

    def forward(self, pixels: Tensor) -> Tensor:
        found = []
        for part in pixels.split(self.size):
            rows = torch.arange(self.size, device=part.device).clamp(max=len(part) - 1)
            filled = part[rows].contiguous(memory_format=torch.channels_last)
            with torch.autocast(part.device.type, dtype=torch.float16):
                found.append(self.run(filled)[: len(part)].float())
        return torch.cat(found)


def make_fast(features: NetworkFeatures, size: int, compile: bool = False) -> NetworkFeatures:
    """The same features from a faster network; ``features`` itself is used up.

    Raises:
        BadValue: other features than Inception's, which are fast as they are.
    """
    if features.name != INCEPTION:
        raise BadValue(f"only the features {INCEPTION} have a faster form, {features.name} are fast as they are")
    return replace(features, network=FastNetwork(features.network, size, compile))
