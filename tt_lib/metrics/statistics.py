"""Mean and covariance of features, gathered batch by batch in float64 and merged without loss.

Batches are joined by the update of Chan, Golub & LeVeque (1979, Stanford STAN-CS-79-773): each keeps its
own mean and the scatter about it, so no large squares are subtracted from one another, whatever the mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor

from tt_lib.errors import BadValue, CorruptFile, MissingFile, NotFinite
from tt_lib.files import atomic_path
from tt_lib.metrics.world import World

FORMAT = "tt feature statistics 1"


class FeatureStatistics:
    """The number, mean and scatter matrix of the features seen so far.

    Args:
        dimension: D, the length of a feature vector.
        features: the features' name; distances are refused between statistics of different ones.
        sha256: hash of the weights that the features come from.
        meta: what else should be saved, such as ``dataset`` and ``split``; strings.
        device: where the sums are kept. The features may come from any device.
    """

    def __init__(
        self,
        dimension: int,
        features: str,
        sha256: str = "",
        meta: Mapping[str, str] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if dimension < 1:
            raise BadValue(f"the dimension of the features must be 1 or more, got {dimension}")
        self.dimension, self.features, self.sha256 = dimension, features, sha256
        self.meta = dict(meta or {})
        self.n = 0
        self.mean = torch.zeros(dimension, dtype=torch.float64, device=device)
        """The mean, float64 [D]."""
        self.scatter = torch.zeros(dimension, dimension, dtype=torch.float64, device=device)
        """Sum over the samples of the outer product of their deviation from the mean, float64 [D, D]."""

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
        """The statistics of both sets of samples, as new statistics with this one's ``meta``.

        Raises:
            BadValue: the two are of different features.
        """
        require_same_features(self, other)
        both = self.copy()
        both._join(other.n, other.mean.to(self.mean.device), other.scatter.to(self.mean.device))
        return both

    def joined(self, world: World) -> FeatureStatistics:
        """The statistics of all processes' samples together, in every process, as new statistics on the same device."""
        if world.size == 1:
            return self
        n = int(world.total(torch.tensor([float(self.n)], dtype=torch.float64, device=self.mean.device)).item())
        twin = self.copy()
        twin.mean = world.total(self.n * self.mean) / max(n, 1)
        shift = self.mean - twin.mean
        twin.scatter, twin.n = world.total(self.scatter + self.n * torch.outer(shift, shift)), n
        return twin

    def copy(self) -> FeatureStatistics:
        """Independent statistics with the same content."""
        twin = FeatureStatistics(self.dimension, self.features, self.sha256, self.meta, self.mean.device)
        twin.n, twin.mean, twin.scatter = self.n, self.mean.clone(), self.scatter.clone()
        return twin

    def to(self, device: torch.device | str) -> FeatureStatistics:
        """Independent statistics with the same content on another device."""
        twin = self.copy()
        twin.mean, twin.scatter = twin.mean.to(device), twin.scatter.to(device)
        return twin

    def save(self, path: Path | str, meta: Mapping[str, str] | None = None) -> Path:
        """Write a safetensors file, whole or not at all; ``meta`` is added to the own one.

        Raises:
            BadValue: the path cannot be written.
        """
        from safetensors.torch import save_file

        header = {**self.meta, **(meta or {}), "format": FORMAT}
        header |= {"features": self.features, "sha256": self.sha256, "n": str(self.n)}
        tensors = {"mean": self.mean.cpu().contiguous(), "scatter": self.scatter.cpu().contiguous()}
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, {key: str(value) for key, value in header.items()})
        return Path(path)

    @classmethod
    def load(cls, path: Path | str) -> FeatureStatistics:
        """Statistics as they were saved, on the CPU.

        Raises:
            MissingFile: no such file.
            BadValue: the statistics of another tool.
            CorruptFile: not a file that :meth:`save` wrote.
        """
        from safetensors import SafetensorError, safe_open

        path = Path(path)
        if not path.is_file():
            raise MissingFile(f"no feature statistics at {path}; make them with `tt stats`")
        if path.suffix == ".npz":
            # A mean and a covariance alone: whether of pytorch-fid's resizing or clean-fid's, nothing in the file tells.
            raise BadValue(
                f"{path} is of another tool (pytorch-fid, clean-fid, ...) and does not say how its images were resized, so nothing can be "
                "compared with it; make the reference from the images with `tt stats`"
            )
        try:
            with safe_open(path, framework="pt") as file:
                header = dict(file.metadata() or {})
                tensors = {key: file.get_tensor(key) for key in ("mean", "scatter")}
            if header.pop("format", None) != FORMAT:
                raise ValueError(f"its format is not {FORMAT!r}")
            mean, scatter = tensors["mean"], tensors["scatter"]
            if mean.ndim != 1 or scatter.shape != (len(mean), len(mean)):
                raise ValueError(f"mean {list(mean.shape)} and scatter {list(scatter.shape)} do not fit")
            loaded = cls(len(mean), header.pop("features"), header.pop("sha256"))
            loaded.n = int(header.pop("n"))
        except (SafetensorError, ValueError, KeyError, OSError) as error:
            raise CorruptFile(f"{path} does not hold feature statistics ({error}); make them again") from error
        loaded.mean, loaded.scatter, loaded.meta = mean, scatter, header
        return loaded

    def _join(self, n: int, mean: Tensor, scatter: Tensor) -> None:
        """Chan's update: add ``n`` samples with this mean and scatter."""
        total = self.n + n
        if not n:
            return
        shift = mean - self.mean
        self.mean = self.mean + shift * (n / total)
        self.scatter = self.scatter + scatter + torch.outer(shift, shift) * (self.n * n / total)
        self.n = total

    def __repr__(self) -> str:
        return f"FeatureStatistics(n={self.n}, features={self.identity})"


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
    """Raise :class:`BadValue`, naming both, unless the two are of the same features."""
    if (a.features, a.sha256, a.dimension) != (b.features, b.sha256, b.dimension):
        raise BadValue(
            f"statistics of different features cannot be compared or merged: {a.identity} and {b.identity}; "
            "take both with the same features"
        )
