"""A bank of feature vectors: for what statistics do not suffice, the kernel distance and precision and recall."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from tt_lib.datasets import Images
from tt_lib.errors import BadValue, CorruptFile, MissingFile
from tt_lib.files import atomic_path, data_folder
from tt_lib.metrics.features import BATCH, Features

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
            save_file({"vectors": self.vectors.cpu().contiguous()}, temporary, {key: str(value) for key, value in header.items()})
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
        raise CorruptFile(f"{path} holds no bank of features ({error}); make it again with `tt stats --bank {SIZE}`") from error


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
        raise MissingFile(f"no bank of the {dataset} {split} images in {features.name} features at {path}; make it with {command}")
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
    return FeatureBank(torch.cat(vectors), features.name, features.sha256, {"dataset": dataset, "split": split or "all"})
