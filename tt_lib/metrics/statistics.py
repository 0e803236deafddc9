"""Mean and covariance of features, gathered batch by batch in float64 and merged without loss.

Batches are joined by the update of Chan, Golub & LeVeque (1979, Stanford STAN-CS-79-773): each keeps its
own mean and the scatter about it, so no large squares are subtracted from one another, whatever the mean.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from functools import reduce
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from tt_lib.errors import BadValue, CorruptFile, MissingFile, NotFinite
from tt_lib.files import atomic_path
from tt_lib.metrics.world import World

T = TypeVar("T")
FORMAT = "tt feature statistics 2"


class FeatureStatistics:
    """The number, mean and scatter matrix of the features seen so far.

    Args:
        dimension: D, the length of a feature vector.
        features: the features' name; distances are refused between statistics of different ones.
        sha256: hash of the weights that the features come from.
        device: where the sums are kept. The features may come from any device.

    Attributes:
        n: the number of samples. Where it is unknown (a file of pytorch-fid) it is 2, with which the scatter is
            the covariance.
        mean: the mean, float64 [D].
        scatter: sum over the samples of the outer product of their deviation from the mean, float64 [D, D].
        shape: (C, H, W) of the images that the features are of; empty where they are of no images.
        facts: the header of the file that they were loaded from.
    """

    def __init__(self, dimension: int, features: str, sha256: str = "", device: torch.device | str = "cpu") -> None:
        if dimension < 1:
            raise BadValue(f"the dimension of the features must be 1 or more, got {dimension}")
        self.dimension, self.features, self.sha256 = dimension, features, sha256
        self.n = 0
        self.mean = torch.zeros(dimension, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(dimension, dimension, dtype=torch.float64, device=device)
        self.shape: tuple[int, ...] = ()
        self.facts: dict[str, str] = {}

    @property
    def covariance(self) -> Tensor:
        """The unbiased covariance, ``scatter / (n - 1)``, float64 [D, D].

        Raises:
            BadValue: fewer than two samples.
        """
        if self.n < 2:
            raise BadValue(f"a covariance needs at least 2 samples, these statistics hold {self.n}")
        return self.scatter / (self.n - 1)

    @property
    def identity(self) -> str:
        """Features, dimension and weights in words, as errors name them."""
        return f"{self.features!r} ({self.dimension} dimensions, weights {self.sha256[:12] or 'not named'})"

    def check(self) -> FeatureStatistics:
        """Returns itself, if there are samples that it can be of.

        Raises:
            BadValue: no samples, or tensors of other shapes or types.
            NotFinite: NaN, infinity or a variance below 0.
        """
        mean, scatter = self.mean, self.scatter
        size = [self.dimension]
        if self.n < 1 or [*mean.shape] != size or [*scatter.shape] != size * 2 or mean.dtype != scatter.dtype:
            raise BadValue(f"{self.n} samples, mean {list(mean.shape)} and scatter {list(scatter.shape)} do not fit")
        if not bool(mean.isfinite().all() and scatter.isfinite().all()):
            raise NotFinite(f"the statistics of the features {self.features!r} hold NaN or infinity; make them again")
        if bool((scatter.diagonal() < 0).any()):
            raise NotFinite(f"a variance of the features {self.features!r} is below 0; make the statistics again")
        return self

    def update(self, features: Tensor) -> FeatureStatistics:
        """Add a batch, any floating type [B, D]; returns itself.

        Raises:
            BadValue: another shape.
            NotFinite: a feature is NaN or infinite; nothing is added then.
        """
        if features.ndim != 2 or features.shape[1] != self.dimension:
            raise BadValue(f"features must be [B, {self.dimension}], got {list(features.shape)}")
        if not len(features):
            return self
        x = features.detach().to(self.mean.device, torch.float64)
        if not bool(x.isfinite().all()):
            bad = int((~x.isfinite()).any(1).nonzero()[0])
            raise NotFinite(
                f"the features {self.features!r} of sample {self.n + bad} are NaN or infinite; "
                "look at the images they were taken from"
            )
        mean = x.mean(0)
        centred = x - mean
        self._join(len(x), mean, centred.T @ centred)
        return self

    def merge(self, other: FeatureStatistics) -> FeatureStatistics:
        """The statistics of both sets of samples, as new statistics on this one's device.

        Raises:
            BadValue: the two are of different features.
        """
        require_same_features(self, other)
        both = copy(self)
        both.shape = self.shape or other.shape
        both._join(other.n, other.mean.to(self.mean.device), other.scatter.to(self.mean.device))
        return both

    def joined(self, world: World) -> FeatureStatistics:
        """The statistics of all processes' samples together, in every process and on the same device."""
        if world.size == 1:
            return self
        n = int(world.total(torch.tensor(float(self.n), dtype=torch.float64, device=self.mean.device)).item())
        both = copy(self)
        both.mean = world.total(self.n * self.mean) / max(n, 1)
        shift = self.mean - both.mean
        both.scatter, both.n = world.total(self.scatter + self.n * torch.outer(shift, shift)), n
        return both

    def to(self, device: torch.device | str) -> FeatureStatistics:
        """The same statistics on another device, as new ones."""
        moved = copy(self)
        moved.mean, moved.scatter = self.mean.to(device), self.scatter.to(device)
        return moved

    def save(self, path: Path | str, facts: Mapping[str, object] | None = None) -> Path:
        """Write a safetensors file, whole or not at all, with ``facts`` beside the statistics' own in its header.

        Of the scatter matrix, which is symmetric, the file has the upper triangle, row by row: half the size.

        Raises:
            BadValue: the path cannot be written.
            BadValue, NotFinite: see :meth:`check`.
        """
        self.check()
        own = {"features": self.features, "sha256": self.sha256, "n": self.n, "shape": list(self.shape)}
        header = {**(facts or {}), **own}
        rows, columns = torch.triu_indices(self.dimension, self.dimension)
        return save_tensors(path, {"mean": self.mean, "scatter": self.scatter[rows, columns]}, FORMAT, header)

    @classmethod
    def load(cls, path: Path | str, command: str = "tt stats") -> FeatureStatistics:
        """Statistics as they were saved, on the CPU; ``command`` makes them, for errors.

        Raises:
            MissingFile: no such file.
            CorruptFile: not a file that :meth:`save` wrote.
        """

        def build(tensors: dict[str, Tensor], header: dict[str, str]) -> FeatureStatistics:
            mean, triangle = tensors["mean"], tensors["scatter"]
            loaded = cls(mean.numel(), header["features"], header["sha256"])
            rows, columns = torch.triu_indices(loaded.dimension, loaded.dimension)
            if triangle.shape != rows.shape:
                raise ValueError(f"mean {list(mean.shape)} and triangle {list(triangle.shape)} do not fit")
            loaded.n, loaded.mean, loaded.scatter = int(header["n"]), mean, loaded.scatter.to(triangle.dtype)
            loaded.scatter[rows, columns] = loaded.scatter[columns, rows] = triangle
            loaded.shape, loaded.facts = tuple(json.loads(header["shape"])), header
            return loaded.check()

        return load_tensors(path, FORMAT, build, "feature statistics", command)

    def _join(self, n: int, mean: Tensor, scatter: Tensor) -> None:
        """Chan's update: add ``n`` samples with this mean and scatter. The old tensors, which copies share, stay."""
        total = self.n + n
        if not n:
            return
        shift = mean - self.mean
        self.mean = self.mean + shift * (n / total)
        self.scatter = self.scatter + scatter + torch.outer(shift, shift) * (self.n * n / total)
        self.n = total


def merge_all(sets: Iterable[FeatureStatistics]) -> FeatureStatistics:
    """The statistics of all sets together.

    Raises:
        BadValue: no set, or sets of different features.
    """
    sets = list(sets)
    if not sets:
        raise BadValue("no statistics to merge; give at least one")
    return reduce(FeatureStatistics.merge, sets)


def require_same_features(a: FeatureStatistics, b: FeatureStatistics) -> None:
    """Raise :class:`BadValue`, naming both, unless the two are of the same features, of images of one shape."""
    if (a.features, a.sha256, a.dimension) != (b.features, b.sha256, b.dimension):
        raise BadValue(
            f"statistics of different features cannot be compared or merged: {a.identity} and {b.identity}; "
            "take both with the same features"
        )
    if a.shape and b.shape and a.shape != b.shape:
        raise BadValue(
            f"statistics of images of different shapes cannot be compared or merged: {list(a.shape)} and "
            f"{list(b.shape)}; take both of images of one shape"
        )


def save_tensors(path: Path | str, tensors: Mapping[str, Tensor], format: str, header: Mapping[str, object]) -> Path:
    """Write a safetensors file, whole or not at all, with ``format`` and ``header`` (as text) in its metadata.

    A digest of both is stored with them: a number that changes on a disk is a number still.

    Raises:
        BadValue: the path cannot be written.
    """
    from safetensors.torch import save_file

    metadata = {key: str(value) for key, value in {**header, "format": format}.items()}
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata | {"digest": _digest(tensors, metadata)})
    return Path(path)


def _digest(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    """sha256 of the header and of the tensors with their names, types and shapes."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def load_tensors(
    path: Path | str, format: str, build: Callable[[dict[str, Tensor], dict[str, str]], T], what: str, command: str
) -> T:
    """What ``build`` makes of the tensors (on the CPU) and the header of a file of :func:`save_tensors`.

    Args:
        what, command: what such a file holds and what makes it, for errors.

    Raises:
        MissingFile: no such file.
        CorruptFile: another format, a content that its digest does not name, or ``build`` raised a ValueError, a
            KeyError or a NotFinite.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise MissingFile(f"no {what} at {path}; make it with `{command}`")
    try:
        with safe_open(path, framework="pt") as file:
            header = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        if header.get("format") != format:
            raise ValueError(f"its format is not {format!r}")
        if header.pop("digest", "") != _digest(tensors, header):
            raise ValueError("its content is not what its digest says")
        return build(tensors, header)
    except (SafetensorError, ValueError, KeyError, OSError, NotFinite) as error:
        raise CorruptFile(f"{path} holds no {what} ({error}); make it again with `{command}`") from error
