"""Feature statistics: against numpy, against themselves in parts, on disk, and with bad input."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tt_lib.errors import BadValue, CorruptFile, MissingFile, NotFinite
from tt_lib.metrics.features import disjoint_sets, statistics_of
from tt_lib.metrics.statistics import FORMAT, FeatureStatistics, merge_all, save_tensors

CPU = torch.device("cpu")


def samples(n: int = 301, dimension: int = 5, seed: int = 0) -> torch.Tensor:
    """Correlated float64 samples [n, dimension] with unlike means and scales."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, dimension, generator=generator, dtype=torch.float64)
    mix = torch.randn(dimension, dimension, generator=generator, dtype=torch.float64)
    return x @ mix + torch.arange(dimension)


def gathered(x: torch.Tensor, *cuts: int) -> FeatureStatistics:
    """Statistics of the rows of ``x``, added in parts that end at ``cuts``."""
    statistics = FeatureStatistics(x.shape[1], "made", "abc")
    for part in x.tensor_split(torch.tensor(cuts)) if cuts else (x,):
        statistics.update(part)
    return statistics


def equal(a: FeatureStatistics, b: FeatureStatistics) -> bool:
    return (
        a.n == b.n
        and torch.allclose(a.mean, b.mean, rtol=1e-10, atol=0)
        and torch.allclose(a.covariance, b.covariance, rtol=1e-10, atol=1e-10)
    )


def test_against_numpy():
    x = samples()
    statistics = gathered(x, 1, 7, 7, 150)
    assert statistics.n == 301 and statistics.mean.dtype == statistics.covariance.dtype == torch.float64
    assert np.allclose(statistics.mean, x.numpy().mean(0), rtol=1e-12)
    assert np.allclose(statistics.covariance, np.cov(x.numpy(), rowvar=False), rtol=1e-12)


def test_merge_is_one_pass():
    x = samples()
    parts = [gathered(part) for part in x.tensor_split([3, 4, 200])]
    before = parts[0].mean.clone()
    assert equal(merge_all(parts), gathered(x))
    empty = FeatureStatistics(5, "made", "abc")
    assert equal(empty.merge(parts[3]).merge(parts[0]).merge(parts[2]).merge(empty).merge(parts[1]), gathered(x))
    assert torch.equal(parts[0].mean, before) and parts[0].n == 3  # the parts stay as they were


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
    statistics = gathered(samples())
    before = copy(statistics)
    for value in (float("nan"), float("inf")):
        bad = samples(4)
        bad[2, 3] = value
        with pytest.raises(NotFinite, match="'made' of sample 303"):
            statistics.update(bad)
    for bad in (samples(4, 6), samples(4)[0]):
        with pytest.raises(BadValue, match=r"\[B, 5\]"):
            statistics.update(bad)
    statistics.update(samples(0))
    assert statistics.n == 301 and torch.equal(statistics.scatter, before.scatter)


def test_too_few_samples():
    with pytest.raises(BadValue, match="at least 2 samples"):
        _ = gathered(samples(1)).covariance
    with pytest.raises(BadValue, match="1 or more"):
        FeatureStatistics(0, "made")
    with pytest.raises(BadValue, match="at least one"):
        merge_all([])


@pytest.mark.parametrize("other", [(5, "others", "abc"), (5, "made", "xyz"), (6, "made", "abc")], ids=str)
def test_merge_of_different_features_names_both(other):
    with pytest.raises(BadValue, match=r"'made' .*abc.* and '(made|others)'"):
        gathered(samples()).merge(FeatureStatistics(*other))


# On disk


def test_saved_and_loaded(tmp_path):
    statistics = gathered(samples())
    path = statistics.save(tmp_path / "new" / "s.safetensors", {"split": "train"})
    loaded = FeatureStatistics.load(path)
    assert (loaded.n, loaded.features, loaded.sha256, loaded.dimension) == (301, "made", "abc", 5)
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["split"] == "train"
    assert torch.equal(loaded.mean, statistics.mean) and torch.equal(loaded.scatter, loaded.scatter.T)
    assert torch.equal(loaded.scatter.triu(), statistics.scatter.triu()) and equal(loaded, statistics)
    assert load_file(path)["scatter"].shape == (15,), "a triangle"
    assert [file.name for file in path.parent.iterdir()] == ["s.safetensors"]
    # A loaded file can be gathered on, and saved again.
    assert FeatureStatistics.load(loaded.update(samples(9)).save(path)).n == 310


def test_copies_are_independent():
    first = gathered(samples())
    twin = first.to("cpu")
    first.update(samples(1))
    assert (twin.n, first.n) == (301, 302) and equal(twin, gathered(samples()))


def header(**changes) -> dict[str, str]:
    return {"features": "made", "sha256": "", "n": "3", "shape": "[]"} | changes


def test_files_that_are_missing_damaged_or_of_another_kind(tmp_path):
    """Each write but the first two has the digest of what it writes."""
    path = tmp_path / "s"
    with pytest.raises(MissingFile, match="`make it`"):
        FeatureStatistics.load(path, "make it")
    whole = gathered(samples()).save(path).read_bytes()
    right = {"mean": torch.zeros(5), "scatter": torch.ones(15)}
    nan, negative = torch.full((5,), float("nan")), -torch.ones(15)

    def save(tensors, **changes):
        save_tensors(path, right | tensors, FORMAT, header(**changes))

    for write, message in (
        (lambda: path.write_bytes(whole[:-8]), ""),
        (lambda: save_file(right, path, header(format=FORMAT)), "digest"),
        (lambda: save_tensors(path, right, "other", header()), "format"),
        (lambda: save({"scatter": torch.zeros(5, 5)}), "do not fit"),
        (lambda: save({"mean": torch.zeros(5, dtype=torch.float64)}), "do not fit"),
        (lambda: save({}, n="three"), "three"),
        (lambda: save({}, n="0"), "0 samples"),
        (lambda: save_tensors(path, right, FORMAT, {}), "features"),
        (lambda: save_tensors(path, {"mean": torch.zeros(5)}, FORMAT, header()), "scatter"),
        (lambda: save({"mean": nan}), "NaN or infinity"),
        (lambda: save({"scatter": negative}), "below 0"),
    ):
        write()
        with pytest.raises(
            CorruptFile, match=rf"holds no feature statistics .*{message}.*make it again with `tt stats`"
        ):
            FeatureStatistics.load(path)
    save({})
    assert FeatureStatistics.load(path).n == 3


@pytest.mark.parametrize("change", ["mean", "scatter", "n", "sha256", "shape"])
def test_a_number_that_changed_on_the_disk_is_no_number(tmp_path, change):
    """The file is a safetensors file still, with finite numbers."""
    path = gathered(samples()).save(tmp_path / "s", {"split": "train"})
    with safe_open(path, framework="pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    if change in tensors:
        tensors[change].view(-1)[0] += 1
    else:
        metadata[change] = {"n": "310", "sha256": "other", "shape": "[3, 2, 2]"}[change]
    save_file(tensors, path, metadata)
    with pytest.raises(CorruptFile, match="its content is not what its digest says"):
        FeatureStatistics.load(path)


@pytest.mark.parametrize("name", ["mean", "scatter"])
def test_what_cannot_be_loaded_is_not_saved(tmp_path, name):
    statistics = gathered(samples())
    setattr(statistics, name, torch.full_like(getattr(statistics, name), float("nan")))
    with pytest.raises(NotFinite, match="'made' hold NaN or infinity"):
        statistics.save(tmp_path / "s")
    with pytest.raises(BadValue, match="0 samples"):
        FeatureStatistics(5, "made").save(tmp_path / "s")
    assert not list(tmp_path.iterdir())


# Of images


@dataclass(frozen=True)
class MeanColours:
    """Features for tests: the mean of each channel; remembers the batches that it was given."""

    batches: list[int]
    name: str = "mean-colours"
    dimension: int = 3
    sha256: str = "0"
    device: torch.device = CPU

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(pixels))
        return pixels.float().mean((2, 3))


def pixels(n: int) -> torch.Tensor:
    return torch.randint(256, (n, 3, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_statistics_of_images_and_of_disjoint_sets():
    features = MeanColours([])
    whole = statistics_of(pixels(23), features, batch=10)
    assert (whole.features, whole.sha256, whole.n) == ("mean-colours", "0", 23) and features.batches == [10, 10, 3]
    assert np.allclose(whole.covariance, np.cov(pixels(23).float().mean((2, 3)).numpy(), rowvar=False))
    sets = disjoint_sets(pixels(23), features, sets=5, batch=2)
    assert [one.n for one in sets] == [5, 5, 5, 4, 4] and equal(merge_all(sets), whole)
    with pytest.raises(BadValue, match="at least 2 images"):
        disjoint_sets(pixels(9), features, sets=5)
    with pytest.raises(BadValue, match="batch 0"):
        statistics_of(pixels(9), features, batch=0)
    with pytest.raises(BadValue, match="0 images"):
        statistics_of(pixels(0), features)


def test_the_shape_of_the_images_stays_with_the_statistics(tmp_path):
    """Features of images of any size are alike; distances between images of two sizes mean nothing."""
    features = MeanColours([])
    small, large = statistics_of(pixels(5), features), statistics_of(pixels(5).repeat(1, 1, 2, 2), features)
    empty = FeatureStatistics(3, "mean-colours", "0")
    assert small.shape == FeatureStatistics.load(small.save(tmp_path / "s")).shape == (3, 2, 2)
    assert empty.merge(small).shape == small.merge(empty).shape == small.to("cpu").shape == (3, 2, 2)
    with pytest.raises(BadValue, match=r"different shapes .*\[3, 2, 2\] and \[3, 4, 4\]"):
        small.merge(large)
