"""Metrics: features with what the real images are like in them, shipped in ``data/stats/``.

A user's own images are a reference as well. Their statistics are made when they are first asked for, in one pass that
never holds more than a batch of images and goes on after an interruption. They are known by two hashes: the listing of
their files, under which the statistics are kept and which takes no reading, and the digest of the images, by which rows
name them.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tt_lib.datasets import NAMED, Images, find_images, load_dataset
from tt_lib.datasets.folder import ONE_SPLIT, Stored, holds_statistics, read_moments
from tt_lib.datasets.images import hash_each, join_hashes
from tt_lib.errors import BadValue, CorruptFile, MissingFile
from tt_lib.files import check_writable, data_folder, file_hash, file_name
from tt_lib.metrics.features import BATCH, INCEPTION, Features, empty_statistics, load_features
from tt_lib.metrics.statistics import FeatureStatistics, load_tensors, save_tensors
from tt_lib.metrics.world import ALONE, World
from tt_lib.networks.unet import Model
from tt_lib.rows import provenance, short_hash
from tt_lib.sampling import Progress

STATE_FORMAT = "tt unfinished statistics 1"
STATE_SECONDS = 60.0
"""Between two states of unfinished statistics."""
PYTORCH_FID = "mu and sigma of pytorch-fid; n and resizing unknown"
"""What rows say of the reference where its statistics come from elsewhere."""


@dataclass(frozen=True)
class Metric:
    """Features, and what the real images are like in them.

    Attributes:
        features: what a distance is taken in.
        reference: the statistics of the real images, which it is taken from.
        dataset: which images those are, as rows say it: ``cifar10``, or a user's own as ``NAME@DIGEST``.
        split: which of them, or where else the statistics come from.
    """

    features: Features
    reference: FeatureStatistics
    dataset: str = ""
    split: str = "train"

    def require_shape(self, shape: Sequence[int], what: str) -> None:
        """Raise :class:`BadValue` unless the real images are of this shape, (C, H, W); ``what`` has it, for errors."""
        require_shape(self.reference.shape or shape, shape, what, f"the reference in {self.features.name}")


def require_shape(own: Sequence[int], shape: Sequence[int], what: str, reference: str) -> None:
    """Raise :class:`BadValue` unless the images of a reference are of the shape (C, H, W) of those of ``what``."""
    if tuple(own) != tuple(shape):
        raise BadValue(
            f"{what} has images of {list(shape)}, {reference} is of images of {list(own)}, and they cannot be "
            "compared; choose a data set of the same shape"
        )


def load_metric(
    name: str | Features,
    dataset: str,
    device: torch.device | str = "cpu",
    *,
    data: Path | str | None = None,
    model: Model | None = None,
    world: World = ALONE,
    progress: Progress | None = None,
) -> Metric:
    """What a Fréchet distance needs: features, and the statistics of a data set's images in them.

    Statistics of ``cifar10`` and ``digits`` are shipped, or made by ``tt stats``. Those of a user's own images are made
    here where they are missing. The mu and sigma of pytorch-fid are taken as they are, for Inception's features.

    Args:
        name, device: see :func:`tt_lib.metrics.features.load_features`; or features that are loaded.
        dataset, data: see :func:`tt_lib.datasets.load_dataset`; or an npz file with ``mu`` and ``sigma``.
        model: whose samples will be compared; that their shapes agree is checked first.
        world: the processes of which the main one makes what is missing.
        progress: called with (images done, all, message).

    Raises:
        BadValue: an unknown name of features, a bad one of a data set, a file of other weights of the features, images
            of another shape than the model's, or statistics of pytorch-fid with other features.
        MissingFile: no weights or no statistics; the message gives the command that makes them.
        CorruptFile: a file is damaged.
    """
    own = None if dataset in NAMED else find_images(dataset, data)
    of_pytorch_fid = own is not None and holds_statistics(own[1])
    if of_pytorch_fid:
        asked = name if isinstance(name, str) else name.name
        if asked != INCEPTION:
            raise BadValue(
                f"{dataset} holds mu and sigma of pytorch-fid, which are of Inception's features: no reference in "
                f"{asked}; give --features {INCEPTION}, or images"
            )
    features = load_features(name, device) if isinstance(name, str) else name
    if own and of_pytorch_fid:
        return _pytorch_fid(own, features)
    command = _command(dataset, features.name)
    images = load_dataset(dataset, "train", data) if own else None
    if images and model:
        require_shape(images.pixels.shape[1:], model.shape, model.name, images.name)
    path = reference_path(dataset, "train", features.name, images=images)
    if images and not path.exists() and world.main:
        check_writable(path)
        statistics = collect_statistics(images, features, path.with_name(f"{path.name}.state"), progress)
        require_unchanged(images, dataset, data)
        save_statistics(path, statistics, images)
    world.wait()
    reference = FeatureStatistics.load(path, command)
    stored = images.pixels if images and isinstance(images.pixels, Stored) else None
    facts = {"listing": stored.listing} if stored else {"dataset": dataset}
    facts["split"] = split = stored.split if stored else "train"
    _require_origin(path, reference.facts, facts, features, command)
    if not reference.shape:
        raise CorruptFile(f"{path} does not say of which shape its images were; make it again with `{command} --force`")
    metric = Metric(features, reference, reference.facts["dataset"] if own else dataset, split)
    if model:
        metric.require_shape(model.shape, model.name)
    return metric


def reference_path(dataset: str, split: str, features: str, images: Images | None = None) -> Path:
    """Where a split's statistics lie: ``data/stats/<dataset>-<split>-<features>.safetensors``.

    Args:
        images: a user's own, whose files are named by the listing: ``data/stats/<name>-<listing>-...``.
    """
    of = f"{dataset}-{split}"
    if images and isinstance(images.pixels, Stored):
        called, split = images.name.rpartition("-")[0], images.pixels.split
        of = f"{file_name(called)}-{short_hash(images.pixels.listing)}-{split}"
    return data_folder() / "stats" / f"{of}-{features}.safetensors"


def require_reference(dataset: str, features: Sequence[str], data: Path | str | None = None) -> None:
    """Raise :class:`MissingFile` where :func:`load_metric` would for want of statistics or images: before any work."""
    if dataset not in NAMED:
        find_images(dataset, data)
        return
    for name in features:
        if not (path := reference_path(dataset, "train", name)).is_file():
            raise MissingFile(f"no feature statistics at {path}; make it with `{_command(dataset, name)}`")


def require_unchanged(images: Images, dataset: str, data: Path | str | None = None) -> None:
    """Raise :class:`CorruptFile` if a user's own images, which have been read, are not those that are there now."""
    if not isinstance(read := images.pixels, Stored):
        return
    now = load_dataset(dataset, "train" if read.split == ONE_SPLIT else read.split, data).pixels
    if isinstance(now, Stored) and now.listing != read.listing:
        raise CorruptFile(
            f"the images of {dataset} changed while they were read; start again when all of them lie there"
        )


def _command(dataset: str, features: str) -> str:
    return f"tt stats --dataset {shlex.quote(dataset)} --split train --features {features}"


def dataset_label(dataset: str, features: str, data: Path | str | None = None) -> str:
    """What rows call a data set against which these features measure; empty if its images have not been read yet."""
    if dataset in NAMED:
        return dataset
    called, place = find_images(dataset, data)
    if holds_statistics(place):
        return f"{called}@{short_hash(file_hash(place))}"
    path = reference_path(dataset, "train", features, images=load_dataset(dataset, "train", data))
    return FeatureStatistics.load(path).facts["dataset"] if path.exists() else ""


def collect_statistics(
    images: Images, features: Features, state: Path | None = None, progress: Progress | None = None
) -> FeatureStatistics:
    """Statistics of all images in one pass, a batch at a time; ``facts`` has their digest as ``images``.

    Args:
        state: a file in which unfinished statistics are kept; the next call goes on from there.

    Raises:
        BadValue: fewer than two images.
        CorruptFile: an image or the state is damaged.
        NotFinite: a feature is NaN.
    """
    pixels = images.pixels
    if len(pixels) < 2:
        raise BadValue(f"{images.name} has {len(pixels)} images; statistics need at least 2")
    origin = f"{features.sha256} {getattr(pixels, 'listing', images.digest)}"
    statistics, hashes = _resumed(state, empty_statistics(features), origin)
    statistics.shape = tuple(pixels.shape[1:])
    saved = time.monotonic()
    for begin in range(statistics.n, len(pixels), BATCH):
        rows = slice(begin, begin + BATCH)
        part = pixels[rows]
        statistics.update(features(part))
        hashes += hash_each(part, images.labels[rows])
        if progress:
            progress(statistics.n, len(pixels), f"statistics of {images.name} in {features.name}")
        if state and statistics.n < len(pixels) and time.monotonic() - saved >= STATE_SECONDS:
            seen = torch.from_numpy(np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, 32).copy())
            tensors = {"mean": statistics.mean, "scatter": statistics.scatter, "hashes": seen}
            save_tensors(state, tensors, STATE_FORMAT, {"origin": origin})
            saved = time.monotonic()
    statistics.facts = {"images": join_hashes(statistics.shape, hashes)}
    return statistics


def _resumed(state: Path | None, empty: FeatureStatistics, origin: str) -> tuple[FeatureStatistics, list[bytes]]:
    """Unfinished statistics with the hashes of their images; empty ones where there is no state, or one of others."""
    if state is None or not state.exists():
        return empty, []

    def build(tensors: dict[str, Tensor], header: dict[str, str]) -> tuple[FeatureStatistics, list[bytes]]:
        if header["origin"] != origin:
            return empty, []
        device = empty.mean.device
        empty.mean, empty.scatter = tensors["mean"].to(device), tensors["scatter"].to(device)
        empty.n = len(tensors["hashes"])
        return empty.check(), [row.tobytes() for row in tensors["hashes"].numpy()]

    return load_tensors(state, STATE_FORMAT, build, "unfinished statistics", f"rm {state}` and the same command")


def save_statistics(path: Path, statistics: FeatureStatistics, images: Images) -> Path:
    """Write the statistics of :func:`collect_statistics`, with what the images are, and delete their state.

    Raises:
        BadValue: the path cannot be written.
    """
    statistics.save(path, facts_of(images, statistics.facts["images"]))
    with suppress(FileNotFoundError):
        path.with_name(f"{path.name}.state").unlink()
    return path


def facts_of(images: Images, digest: str) -> dict[str, str]:
    """What the header of a file of statistics says of the images, whose digest is given."""
    called, _, split = images.name.rpartition("-")
    facts = {"dataset": called, "split": split, "images": digest, **provenance()}
    if isinstance(images.pixels, Stored):
        facts |= {"dataset": f"{called}@{short_hash(digest)}", "listing": images.pixels.listing}
    return facts


def _pytorch_fid(own: tuple[str, Path], features: Features) -> Metric:
    """The reference of an npz with ``mu`` and ``sigma``, whose number of images and resizing nobody knows."""
    called, path = own
    mean, covariance = read_moments(path)
    if len(mean) != features.dimension:
        raise BadValue(
            f"{path} holds {len(mean)} features, {features.name} has {features.dimension}; make it with "
            f"pytorch-fid --dims {features.dimension}"
        )
    reference = FeatureStatistics(features.dimension, features.name, features.sha256)
    reference.n, reference.mean, reference.scatter = 2, torch.from_numpy(mean), torch.from_numpy(covariance)
    return Metric(features, reference.check(), f"{called}@{short_hash(file_hash(path))}", PYTORCH_FID)


def check_names(names: Sequence[str]) -> None:
    """Raise :class:`BadValue` unless these are names of features, at least one and none twice."""
    if not names or not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
        raise BadValue(f"features must be one or more different names, got {list(names)}")


def _require_origin(
    path: Path, header: Mapping[str, str], facts: Mapping[str, str], features: Features, command: str
) -> None:
    """Raise :class:`BadValue` unless a file is of these weights, and, where it says so, of these images."""
    sha256 = header.get("sha256", "")
    if sha256 != features.sha256:
        raise BadValue(
            f"{path} was made with other weights of {features.name} ({sha256[:12]}, not {features.sha256[:12]}); "
            f"make it again with `{command} --force`"
        )
    for name, asked in facts.items():
        if (own := header.get(name, asked)) != asked:
            raise BadValue(f"{path} is of the {name} {own}, not {asked}; make it again with `{command} --force`")
