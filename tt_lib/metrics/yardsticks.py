"""What a distance is taken in and from; and several features of the same samples, taken in one stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tt_lib.errors import BadValue
from tt_lib.metrics.bank import FeatureBank, load_reference_bank
from tt_lib.metrics.features import Features, load_feature_extractor
from tt_lib.metrics.reference import load_reference
from tt_lib.metrics.statistics import FeatureStatistics


@dataclass(frozen=True)
class Yardstick:
    """Features, and what the real images are like in them.

    Attributes:
        features: what a distance is taken in.
        reference: the statistics of the real images, which it is taken from.
        bank: features of some real images, for what statistics do not suffice.
    """

    features: Features
    reference: FeatureStatistics
    bank: FeatureBank | None = None


def load_yardstick(
    name: str, dataset: str, device: torch.device | str, *, more: bool = False, weights: Path | None = None
) -> Yardstick:
    """The features of a name with the shipped reference of a data set's training images, and with ``more`` the bank.

    Raises:
        BadValue, MissingFile, CorruptFile: see :func:`~tt_lib.metrics.features.load_feature_extractor`,
            :func:`~tt_lib.metrics.reference.load_reference` and :func:`~tt_lib.metrics.bank.load_reference_bank`.
    """
    features = load_feature_extractor(name, weights, device)
    reference = load_reference(dataset, "train", features)
    return Yardstick(features, reference, load_reference_bank(dataset, "train", features) if more else None)


def check_names(names: Sequence[str]) -> None:
    """Raise :class:`BadValue` unless these are names of features, at least one and none twice."""
    if not names or not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
        raise BadValue(f"features must be one or more different names, got {list(names)}")


class JoinedFeatures:
    """Several features one after another in one vector: :class:`~tt_lib.metrics.features.Features` themselves.

    The statistics of the joined vectors hold those of every part: each part's mean and scatter are a piece of theirs.

    Args:
        parts: at least one; the device is the first's.
    """

    metric = ""
    """A distance in joined features means nothing: split the statistics first."""

    def __init__(self, parts: Sequence[Features]) -> None:
        self.parts = tuple(parts)
        self.name = " and ".join(part.name for part in parts)
        self.dimension = sum(part.dimension for part in parts)
        self.sha256 = " ".join(part.sha256 for part in parts)
        self.device = parts[0].device

    def __call__(self, pixels: Tensor) -> Tensor:
        """Features float32 [B, dimension] of uint8 pixels [B, C, H, W]."""
        return torch.cat([part(pixels).to(self.device) for part in self.parts], 1)

    def split(self, vectors: Tensor) -> list[Tensor]:
        """The vectors [B, D_i] of each part, of joined ones [B, dimension]."""
        return [part.contiguous() for part in vectors.split([part.dimension for part in self.parts], 1)]

    def split_statistics(self, joined: FeatureStatistics) -> list[FeatureStatistics]:
        """The statistics of each part, of joined ones."""
        found, start = [], 0
        for part in self.parts:
            rows = slice(start, start + part.dimension)
            one = FeatureStatistics(part.dimension, part.name, part.sha256, joined.meta, joined.mean.device)
            one.n, one.mean, one.scatter = joined.n, joined.mean[rows].clone(), joined.scatter[rows, rows].clone()
            found.append(one)
            start += part.dimension
        return found
