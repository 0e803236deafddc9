"""Metrics: features with what the real images are like in them, shipped in ``data/stats/``.

Statistics of the real images suffice for a Fréchet distance. A bank of single feature vectors serves what they do not
suffice for: the kernel distance, and precision and recall.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tt_lib.datasets import check_dataset
from tt_lib.errors import BadValue, CorruptFile, NotFinite
from tt_lib.files import data_folder
from tt_lib.metrics.features import BATCH, Features, load_features
from tt_lib.metrics.statistics import FeatureStatistics, load_tensors, save_tensors, to_half

BANK_FORMAT = "tt feature bank 2"
BANK_SIZE = 10_000
"""Vectors that are kept of a sample, and of the training images: enough for two digits, and 5 MB."""


@dataclass(frozen=True)
class Metric:
    """Features, and what the real images are like in them.

    Attributes:
        features: what a distance is taken in.
        reference: the statistics of the real images, which it is taken from.
        bank: float16 [N, D], features of some real images, for what statistics do not suffice.
    """

    features: Features
    reference: FeatureStatistics
    bank: Tensor | None = None

    def require_shape(self, shape: Sequence[int], what: str) -> None:
        """Raise :class:`BadValue` unless the real images are of this shape, (C, H, W); ``what`` has it, for errors."""
        if self.reference.shape and self.reference.shape != tuple(shape):
            raise BadValue(
                f"{what} has images of {list(shape)}, the reference in {self.features.name} is of images of "
                f"{list(self.reference.shape)}: their distance says nothing; choose a data set of its own shape"
            )


def load_metric(
    name: str, dataset: str, device: torch.device | str = "cpu", *, split: str = "train", bank: bool = False
) -> Metric:
    """The features of a name with the shipped statistics of a data set's images, and with ``bank`` their bank.

    Args:
        name, device: see :func:`tt_lib.metrics.features.load_features`.
        split: whose images are the reference.

    Raises:
        BadValue: an unknown name of features, a bad one of a data set, or a file of other weights of the features.
        MissingFile: no weights, no statistics or no bank; the message gives the command that makes them.
        CorruptFile: a file is damaged.
    """
    check_dataset(dataset)
    features = load_features(name, device)
    own = "" if dataset in ("cifar10", "digits") else " --data FOLDER"
    command = f"tt stats --dataset {dataset}{own} --split {split} --features {name}"
    path = reference_path(dataset, split, name)
    reference = FeatureStatistics.load(path, command)
    _require_origin(path, reference.facts, dataset, split, features, command)
    if not reference.shape:
        raise CorruptFile(f"{path} does not say of which shape its images were; make it again with `{command} --force`")
    if not bank:
        return Metric(features, reference)
    path, command = reference_path(dataset, split, name, bank=True), f"{command} --bank {BANK_SIZE}"
    vectors, header = load_tensors(path, BANK_FORMAT, _bank_of, "bank of features", command)
    _require_origin(path, header, dataset, split, features, command)
    return Metric(features, reference, vectors)


def reference_path(dataset: str, split: str, features: str, bank: bool = False) -> Path:
    """Where a split's statistics or bank lie: ``data/stats/<dataset>-<split>-<features>[-bank].safetensors``."""
    return data_folder() / "stats" / f"{dataset}-{split}-{features}{'-bank' if bank else ''}.safetensors"


def collect_bank(pixels: Tensor, features: Features, count: int) -> Tensor:
    """The features, float16 [count, D], of images drawn from ``pixels``, uint8 [N, C, H, W], without replacement.

    The draw is always the same. float16 rounds by a few parts in ten thousand, far below what samples differ by.

    Raises:
        BadValue: fewer images than that, or fewer than two asked for.
        NotFinite: a feature is too large for float16.
    """
    if not 2 <= count <= len(pixels):
        raise BadValue(f"a bank of {len(pixels)} images holds 2 to {len(pixels)} vectors, got {count}")
    rows = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))[:count]
    return torch.cat([to_half(features(pixels[part])) for part in rows.split(BATCH)])


def save_bank(path: Path | str, vectors: Tensor, features: Features, facts: Mapping[str, object]) -> Path:
    """Write a bank, with ``facts`` beside the identity of its features in its header.

    Raises:
        BadValue: the path cannot be written.
    """
    header = {**facts, "features": features.name, "sha256": features.sha256}
    return save_tensors(path, {"vectors": vectors}, BANK_FORMAT, header)


def check_names(names: Sequence[str]) -> None:
    """Raise :class:`BadValue` unless these are names of features, at least one and none twice."""
    if not names or not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
        raise BadValue(f"features must be one or more different names, got {list(names)}")


def _bank_of(tensors: dict[str, Tensor], header: dict[str, str]) -> tuple[Tensor, dict[str, str]]:
    if tensors["vectors"].ndim != 2:
        raise ValueError(f"its vectors are {list(tensors['vectors'].shape)}")
    if not bool(tensors["vectors"].isfinite().all()):
        raise NotFinite("its vectors hold NaN or infinity")
    return tensors["vectors"], header


def _require_origin(
    path: Path, header: Mapping[str, str], dataset: str, split: str, features: Features, command: str
) -> None:
    """Raise :class:`BadValue` unless a file is of these weights, and, where it says so, of these images."""
    sha256 = header.get("sha256", "")
    if sha256 != features.sha256:
        raise BadValue(
            f"{path} was made with other weights of {features.name} ({sha256[:12]}, not {features.sha256[:12]}); "
            f"make it again with `{command} --force`"
        )
    for name, asked in {"dataset": dataset, "split": split}.items():
        if (own := header.get(name, asked)) != asked:
            raise BadValue(f"{path} is of the {name} {own}, not {asked}; make it again with `{command} --force`")
