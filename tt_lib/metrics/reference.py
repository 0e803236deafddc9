"""Reference statistics: what generated images are compared with, shipped in ``data/stats/``."""

from __future__ import annotations

from pathlib import Path

from tt_lib.errors import BadValue, MissingFile
from tt_lib.files import data_folder
from tt_lib.metrics.features import Features
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
