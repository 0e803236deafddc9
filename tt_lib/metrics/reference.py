"""Reference statistics: what generated images are compared with, shipped in ``data/stats/``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from tt_lib.datasets import Images
from tt_lib.errors import BadValue, CorruptFile, MissingFile
from tt_lib.files import atomic_path, data_folder
from tt_lib.metrics.features import BATCH, Features, load_feature_extractor
from tt_lib.metrics.statistics import FeatureStatistics


def reference_path(dataset: str, split: str, features: str) -> Path:
    """Where the statistics of a split lie: ``data/stats/<dataset>-<split>-<features>.safetensors``."""
    return data_folder() / "stats" / f"{dataset}-{split}-{features}.safetensors"


def load_reference(dataset: str, split: str, features: Features) -> FeatureStatistics:
    """The shipped statistics of a split, checked to come from just these features.

    Raises:
        MissingFile: there are none; the message gives the command that makes them.
        BadValue: they were made with other weights of the features.
    """
    path = reference_path(dataset, split, features.name)
    if not path.exists():
        raise MissingFile(
            f"no statistics of the {dataset} {split} images in {features.name} features at {path}; "
            f"make them with `tt stats --dataset {dataset} --split {split} --features {features.name}`"
        )
    statistics = FeatureStatistics.load(path)
    if statistics.sha256 != features.sha256:
        raise BadValue(
            f"{path} was made with other weights of {features.name} ({statistics.sha256[:12]}, not {features.sha256[:12]}); "
            f"make it again with `tt stats --dataset {dataset} --split {split} --features {features.name} --force`"
        )
    return statistics


# FOLDED tt_lib.metrics.reference
# A bank of feature vectors: for what statistics do not suffice, the kernel distance and precision and recall.


FORMAT = "tt feature bank 1"
SIZE = 10_000
"""Vectors that are kept of a sample, and of the training images: enough for two digits, and 5 MB."""


@dataclass(frozen=True)
class FeatureBank:
    """Feature vectors that know what features they are.

    Attributes:
        vectors: float16 [N, D]; their rounding, a few parts in ten thousand, is far below what samples differ by.
        features: the features' name.
        sha256: hash of the features' weights.
        meta: what else is known, such as ``dataset`` and ``split``.
    """

    vectors: Tensor
    features: str
    sha256: str
    meta: Mapping[str, str] = field(default_factory=dict)

    def save(self, path: Path | str, meta: Mapping[str, str] | None = None) -> Path:
        """Write a safetensors file, whole or not at all; ``meta`` is added to the own one.

        Raises:
            BadValue: the path cannot be written.
        """
        from safetensors.torch import save_file

        header = {**self.meta, **(meta or {}), "format": FORMAT, "features": self.features, "sha256": self.sha256}
        with atomic_path(path) as temporary:
            save_file(
                {"vectors": self.vectors.cpu().contiguous()},
                temporary,
                {key: str(value) for key, value in header.items()},
            )
        return Path(path)


def load_bank(path: Path | str) -> FeatureBank:
    """Read a bank, on the CPU.

    Raises:
        MissingFile, CorruptFile
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise MissingFile(f"no bank of features at {path}; make it with `tt stats --bank {SIZE}`")
    try:
        with safe_open(path, framework="pt") as file:
            header = dict(file.metadata() or {})
            vectors = file.get_tensor("vectors")
        if header.pop("format", None) != FORMAT or vectors.ndim != 2:
            raise ValueError(f"its format is not {FORMAT!r}")
        return FeatureBank(vectors, header.pop("features"), header.pop("sha256"), header)
    except (SafetensorError, ValueError, KeyError, OSError) as error:
        raise CorruptFile(
            f"{path} holds no bank of features ({error}); make it again with `tt stats --bank {SIZE}`"
        ) from error


def bank_path(dataset: str, split: str, features: str) -> Path:
    """Where the bank of a split lies: ``data/stats/<dataset>-<split>-<features>-bank.safetensors``."""
    return data_folder() / "stats" / f"{dataset}-{split}-{features}-bank.safetensors"


def load_reference_bank(dataset: str, split: str, features: Features) -> FeatureBank:
    """The shipped bank of a split, checked to come from just these features.

    Raises:
        MissingFile: there is none; the message gives the command that makes it.
        BadValue: it was made with other weights of the features.
    """
    path = bank_path(dataset, split, features.name)
    command = f"`tt stats --dataset {dataset} --split {split} --features {features.name} --bank {SIZE}`"
    if not path.exists():
        raise MissingFile(
            f"no bank of the {dataset} {split} images in {features.name} features at {path}; make it with {command}"
        )
    bank = load_bank(path)
    if bank.sha256 != features.sha256:
        raise BadValue(f"{path} was made with other weights of {features.name}; make it again with {command} --force")
    return bank


def collect_bank(images: Images, features: Features, count: int, seed: int = 0, batch: int = BATCH) -> FeatureBank:
    """The features of ``count`` of the images, drawn without replacement by a generator with this seed.

    Raises:
        BadValue: fewer images than that, or fewer than two wanted.
    """
    if not 2 <= count <= len(images):
        raise BadValue(f"a bank of {images.name} holds 2 to {len(images)} vectors, got {count}")
    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:count]
    vectors = [features(images.pixels[part]).half().cpu() for part in rows.split(batch)]
    dataset, _, split = images.name.partition("-")
    return FeatureBank(
        torch.cat(vectors), features.name, features.sha256, {"dataset": dataset, "split": split or "all"}
    )


# FOLDED tt_lib.metrics.reference
# What a distance is taken in and from; and several features of the same samples, taken in one stream.


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
            :func:`~tt_lib.metrics.reference.load_reference` and :func:`~tt_lib.metrics.reference.load_reference_bank`.
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
