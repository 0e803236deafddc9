"""Feature statistics: against numpy, against themselves in parts, on disk, and with bad input."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tt_lib.datasets import Images
from tt_lib.errors import BadValue, CorruptFile, MissingFile, NotFinite
from tt_lib.metrics.features import disjoint_sets, reference_statistics
from tt_lib.metrics.statistics import FeatureStatistics, merge_all


def samples(n: int = 301, dimension: int = 5, seed: int = 0) -> torch.Tensor:
    """Correlated float64 samples [n, dimension] with unlike means and scales."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, dimension, generator=generator, dtype=torch.float64)
    mix = torch.randn(dimension, dimension, generator=generator, dtype=torch.float64)
    return x @ mix + torch.arange(dimension)


def gathered(x: torch.Tensor, *cuts: int) -> FeatureStatistics:
    """Statistics of the rows of ``x``, added in parts that end at ``cuts``."""
    found = FeatureStatistics(x.shape[1], "made", "abc")
    for part in x.tensor_split(torch.tensor(cuts)) if cuts else (x,):
        found.update(part)
    return found


def equal(a: FeatureStatistics, b: FeatureStatistics) -> bool:
    return (
        a.n == b.n
        and torch.allclose(a.mean, b.mean, rtol=1e-10, atol=0)
        and torch.allclose(a.covariance, b.covariance, rtol=1e-10, atol=1e-10)
    )


def test_against_numpy():
    x = samples()
    found = gathered(x, 1, 7, 7, 150)
    assert found.n == 301 and found.mean.dtype == found.covariance.dtype == torch.float64
    assert np.allclose(found.mean, x.numpy().mean(0), rtol=1e-12)
    assert np.allclose(found.covariance, np.cov(x.numpy(), rowvar=False), rtol=1e-12)


def test_merge_is_one_pass():
    x = samples()
    parts = [gathered(part) for part in x.tensor_split([3, 4, 200])]
    before = parts[0].mean.clone()
    assert equal(merge_all(parts), gathered(x))
    assert equal(parts[3].merge(parts[0]).merge(parts[2]).merge(parts[1]), gathered(x))
    assert torch.equal(parts[0].mean, before) and parts[0].n == 3  # the parts stay as they were


def test_merge_with_nothing():
    empty, full = FeatureStatistics(5, "made", "abc"), gathered(samples())
    assert equal(empty.merge(full), full) and equal(full.merge(empty), full)


def test_large_means_do_not_eat_the_covariance():
    """With sums of squares instead of centred ones, nothing would be left of the covariance here."""
    x = samples()
    far = gathered(x + 1e8, 100, 200)
    assert torch.allclose(far.covariance, gathered(x).covariance, rtol=1e-6)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32])
def test_any_floating_type_is_summed_in_float64(kind):
    x = samples().to(kind)
    assert equal(gathered(x), gathered(x.double()))


def test_bad_batches_add_nothing():
    found = gathered(samples())
    before = found.copy()
    for value in (float("nan"), float("inf")):
        bad = samples(4)
        bad[2, 3] = value
        with pytest.raises(NotFinite, match="'made' of sample 303"):
            found.update(bad)
    with pytest.raises(BadValue, match=r"\[B, 5\]"):
        found.update(samples(4, 6))
    with pytest.raises(BadValue, match=r"\[B, 5\]"):
        found.update(samples(4)[0])
    found.update(samples(0))
    assert found.n == 301 and torch.equal(found.scatter, before.scatter)


def test_too_few_samples():
    with pytest.raises(BadValue, match="at least 2 samples"):
        _ = gathered(samples(1)).covariance
    with pytest.raises(BadValue, match="1 or more"):
        FeatureStatistics(0, "made")
    with pytest.raises(BadValue, match="at least one"):
        merge_all([])


@pytest.mark.parametrize(
    "other",
    [
        FeatureStatistics(5, "others", "abc"),
        FeatureStatistics(5, "made", "xyz"),
        FeatureStatistics(6, "made", "abc"),
    ],
)
def test_merge_of_different_features_names_both(other):
    with pytest.raises(BadValue, match=r"'made' .*abc.* and '(made|others)'"):
        gathered(samples()).merge(other)


# On disk


def test_saved_and_loaded(tmp_path):
    found = gathered(samples())
    found.meta["dataset"] = "digits"
    path = found.save(tmp_path / "new" / "s.safetensors", {"split": "train"})
    loaded = FeatureStatistics.load(path)
    assert (loaded.n, loaded.features, loaded.sha256, loaded.dimension) == (301, "made", "abc", 5)
    assert loaded.meta == {"dataset": "digits", "split": "train"}
    assert torch.equal(loaded.mean, found.mean) and torch.equal(loaded.scatter, found.scatter)
    assert [file.name for file in path.parent.iterdir()] == ["s.safetensors"]
    # A loaded file can be saved again and gathered on.
    assert FeatureStatistics.load(loaded.update(samples(9)).save(path)).n == 310


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(MissingFile, match="tt stats"):
        FeatureStatistics.load(tmp_path / "none")
    path = gathered(samples()).save(tmp_path / "s")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CorruptFile, match="make them again"):
        FeatureStatistics.load(path)
    path.write_bytes(b"<html>404</html>")
    with pytest.raises(CorruptFile, match="make them again"):
        FeatureStatistics.load(path)


@pytest.mark.parametrize(
    ("shape", "header"),
    [
        ((5, 5), {"format": "other", "features": "made", "sha256": "", "n": "3"}),
        ((5, 4), {"format": "tt feature statistics 1", "features": "made", "sha256": "", "n": "3"}),
        ((5, 5), {"format": "tt feature statistics 1", "sha256": "", "n": "3"}),
        ((5, 5), {"format": "tt feature statistics 1", "features": "made", "sha256": "", "n": "three"}),
    ],
)
def test_files_of_another_kind(tmp_path, shape, header):
    save_file({"mean": torch.zeros(5), "scatter": torch.zeros(shape)}, tmp_path / "s", header)
    with pytest.raises(CorruptFile, match="does not hold feature statistics"):
        FeatureStatistics.load(tmp_path / "s")


# Of images


CPU = torch.device("cpu")


@dataclass(frozen=True)
class MeanColours:
    """Features for tests: the mean of each channel; remembers the batches that it was given."""

    batches: list[int]
    name: str = "mean-colours"
    dimension: int = 3
    sha256: str = "0"
    metric: str = "FD (mean-colours)"
    device: torch.device = CPU

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(pixels))
        return pixels.float().mean((2, 3))


def pixels(n: int) -> torch.Tensor:
    return torch.randint(256, (n, 3, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_reference_knows_what_it_is_of():
    features = MeanColours([])
    images = Images(pixels(23), torch.zeros(23, dtype=torch.int64), "cifar10-train", ("a",))
    found = reference_statistics(images, features, batch=10)
    assert found.meta == {"dataset": "cifar10", "split": "train"}
    assert (found.features, found.sha256, found.n) == ("mean-colours", "0", 23)
    assert features.batches == [10, 10, 3]
    assert np.allclose(found.covariance, np.cov(images.pixels.float().mean((2, 3)).numpy(), rowvar=False))


def test_disjoint_sets_make_up_the_whole():
    features = MeanColours([])
    sets = disjoint_sets(pixels(52), features, sets=5, batch=10)
    assert [one.n for one in sets] == [11, 11, 10, 10, 10]
    whole = FeatureStatistics(3, "mean-colours", "0").update(pixels(52).float().mean((2, 3)))
    assert equal(merge_all(sets), whole)


def test_impossible_sets_and_batches():
    with pytest.raises(BadValue, match="at least 2 images"):
        disjoint_sets(pixels(9), MeanColours([]), sets=5)
    with pytest.raises(BadValue, match="batch 0"):
        disjoint_sets(pixels(9), MeanColours([]), sets=1, batch=0)
    with pytest.raises(BadValue, match="0 images"):
        reference_statistics(Images(pixels(0), torch.zeros(0, dtype=torch.int64), "x", ()), MeanColours([]))


def test_references_of_other_tools_are_refused(tmp_path):
    """pytorch-fid and clean-fid write mean and covariance alone: how the images were resized is not in the file."""
    path = tmp_path / "cifar10.npz"
    np.savez(path, mu=np.zeros(5), sigma=np.eye(5))
    with pytest.raises(BadValue, match=r"cifar10\.npz.*resized.*tt stats"):
        FeatureStatistics.load(path)
