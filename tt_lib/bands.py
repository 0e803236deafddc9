"""In which spatial frequencies a judge, a network of features, sees what a sampler got wrong.

Two samplers start from the same noise, so their images are of the same things and can be taken apart and put together anew: a
hybrid image (Oliva, Torralba & Schyns 2006, ACM Trans. Graph. 25, 527-532) has the low frequencies of one and the high ones of the
other. Where its Fréchet distance follows the one, the judge looks there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from tt_lib.bench import Bench, Cell, require_timing
from tt_lib.datasets import to_uint8
from tt_lib.errors import BadValue
from tt_lib.evaluating import SETS, Measured, check_n, drawing
from tt_lib.metrics.features import BATCH, empty_statistics
from tt_lib.metrics.frechet import jackknife_interval
from tt_lib.metrics.yardsticks import Yardstick
from tt_lib.noise import SampleNoise, derive_seed, drawn_ahead
from tt_lib.results import BANDS_COLUMNS, BANDS_KEY, device_name, matching, provenance, read_rows, write_rows
from tt_lib.sampling import Sampler, batches
from tt_lib.timing import UNTUNED

Progress = Callable[[int, int, str], None]
PIXEL_NOISE = 1_000_000_000
"""The counter that :func:`~tt_lib.noise.derive_seed` makes the seed of a sample's pixel noise with: x_T and the steps have the sample's own."""


def swap_bands(low: Tensor, high: Tensor, cut: float) -> Tensor:
    """Images with the spatial frequencies of ``low`` up to ``cut`` and those of ``high`` beyond it.

    A frequency is a pair of whole numbers, cycles across the image and down it, and its size is their root sum of squares: at most
    the cut (0: the mean alone) it comes from ``low``. So ``swap_bands(a, b, cut) + swap_bands(b, a, cut)`` is ``a + b``.

    Args:
        low, high: floats [B, C, H, W], square or not, of one shape.
        cut: in cycles per image, 0 or more.

    Returns:
        Floats [B, C, H, W]; of images in [-1, 1] some pixels come to lie outside.

    Raises:
        BadValue: other shapes, or a cut below 0.
    """
    if low.shape != high.shape or low.dim() != 4:
        raise BadValue(f"bands are swapped between images of one shape [B, C, H, W], got {list(low.shape)} and {list(high.shape)}")
    _check_cut(cut)
    height, width = low.shape[2:]
    # Whole numbers, so that a frequency at the cut is not lost to rounding.
    down = (torch.arange(height, device=low.device) + height // 2) % height - height // 2
    across = torch.arange(width // 2 + 1, device=low.device)
    within = down[:, None].square() + across.square() <= cut * cut
    return high + torch.fft.irfft2(torch.fft.rfft2(low - high) * within, s=(height, width))


def _check_cut(cut: float) -> None:
    if not 0 <= cut < math.inf:
        raise BadValue(f"a cut is a number of cycles per image, 0 or more, got {cut}; the finest detail of 32 pixels has 16 along a side")


@dataclass(frozen=True)
class Hybrid:
    """What images are made of; the two parts by the names of their timings.

    Attributes:
        below, above: whose frequencies are taken up to the cut, and whose beyond; one and the same if there is no cut.
        cut: in cycles per image; None for whole images.
        noise: standard deviation of Gaussian noise that is added, where pixels go from -1 to 1.
    """

    below: str
    above: str
    cut: float | None = None
    noise: float = 0.0

    def __post_init__(self) -> None:
        if self.cut is not None:
            _check_cut(self.cut)
        if not 0 <= self.noise < math.inf:
            raise BadValue(f"noise is added with a standard deviation of 0 (none) or more, got {self.noise}; 0.01 is faint")

    def make(self, images: Mapping[str, Tensor], noise: Tensor) -> Tensor:
        """The images [B, C, H, W]: parts of ``images``, which are in [-1, 1], and as much of the standard normal ``noise`` as is asked for."""
        made = images[self.below] if self.cut is None else swap_bands(images[self.below], images[self.above], self.cut)
        return made + self.noise * noise if self.noise else made


def pixel_noise(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Standard normal noise [B, *shape] on the CPU for samples' pixels: a sample's own, and not what it was made from."""
    return SampleNoise([derive_seed(seed, PIXEL_NOISE) for seed in seeds]).start(shape)


def plan_hybrids(timings: Sequence[str], cuts: Sequence[float], noises: Sequence[float]) -> list[Hybrid]:
    """Whole images of the untuned sampler and of each timing; for each timing and cut both hybrids with untuned; untuned with noise.

    Raises:
        BadValue: untuned is among the timings, a cut is below 0, or a noise.
    """
    if UNTUNED in timings:
        raise BadValue(f"{UNTUNED} is what each timing is compared with, got it among {list(timings)}; leave it out")
    whole = [Hybrid(name, name) for name in (UNTUNED, *timings)]
    pairs = [pair for name in timings for pair in ((name, UNTUNED), (UNTUNED, name))]
    swapped = [Hybrid(below, above, cut) for below, above in pairs for cut in cuts]
    return list(dict.fromkeys([*whole, *swapped, *(Hybrid(UNTUNED, UNTUNED, noise=size) for size in noises)]))


def measure_hybrids(
    samplers: Mapping[str, Sampler],
    wanted: Mapping[Hybrid, Sequence[Yardstick]],
    n: int,
    *,
    first_seed: int = 0,
    batch: int = BATCH,
    progress: Progress | None = None,
) -> dict[Hybrid, list[Measured]]:
    """The Fréchet distances of ``n`` of each of the hybrids by each of its yardsticks, with intervals from :data:`SETS` disjoint sets.

    Each sampler makes a batch of images once, for all hybrids; of a batch only its features' statistics are kept.

    Args:
        samplers: by the names of their timings; all start from the same noise.
        wanted: what each hybrid is measured by.
        n, first_seed, batch: as in :func:`tt_lib.evaluating.measure_all`.
        progress: called with (samples done, n, message).

    Raises:
        BadValue: ``n`` does not divide into the sets, or a batch below 1.
    """
    check_n(n)
    size, one = n // SETS, samplers[UNTUNED]
    used = {name: sampler for name, sampler in samplers.items() if any(name in (each.below, each.above) for each in wanted)}
    sets = {each: [[empty_statistics(by.features) for by in yardsticks] for _ in range(SETS)] for each, yardsticks in wanted.items()}
    # A batch ends with its set, as in an evaluation: whole images give just its numbers.
    parts = [part for index in range(SETS) for part in batches(first_seed + index * size, size, batch)]
    nfe = 0
    for part, start in drawn_ahead(parts, drawing(one)):
        runs = {name: sampler(part, start=start) for name, sampler in used.items()}
        nfe = max(run.nfe for run in runs.values())
        # What lies outside [-1, 1] no judge ever sees, so it is no part of an image that could be swapped.
        images = {name: run.x.clamp(-1, 1) for name, run in runs.items()}
        noise = pixel_noise(part, one.shape).to(one.device)
        for hybrid, yardsticks in wanted.items():
            pixels = to_uint8(hybrid.make(images, noise))
            for by, found in zip(yardsticks, sets[hybrid][(part.start - first_seed) // size], strict=True):
                found.update(by.features(pixels))
        if progress:
            progress(part.stop - first_seed, n, f"{len(used)} samplers, {len(wanted)} kinds of images")
    return {
        hybrid: [
            Measured(*jackknife_interval([each[number] for each in sets[hybrid]], by.reference.to(by.features.device)), nfe)
            for number, by in enumerate(yardsticks)
        ]
        for hybrid, yardsticks in wanted.items()
    }


def run_bands(
    bench: Bench,
    cell: Cell,
    timings: Sequence[str],
    cuts: Sequence[float],
    noises: Sequence[float],
    yardsticks: Sequence[Yardstick],
    n: int,
    results: Path,
    *,
    dataset: str,
    seed: int = 0,
    force: bool = False,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Measure what :func:`plan_hybrids` lists, and write a row for each of them in each of the features.

    Args:
        bench: the model; its batch is the one that is measured in.
        cell: the untuned sampler.
        timings: names of shipped timings, or of corrections.
        cuts: in cycles per image.
        noises: standard deviations, where pixels go from -1 to 1.
        yardsticks: features and references.
        results: the ``bands.csv`` to write to.
        dataset: whose images the references are of.
        seed: of the first sample.
        force: measure again what has rows.
        progress: called with (samples done, n, message).

    Returns:
        The rows that this call wrote; what has a row is not measured again.

    Raises:
        BadValue: the cell is not untuned, or see :func:`plan_hybrids` and :func:`measure_hybrids`.
        MissingFile: a timing is not there.
    """
    if cell.timing != UNTUNED:
        raise BadValue(f"the cell must be {UNTUNED}, got {cell.timing}; name it among the timings")
    check_n(n)
    tuned = [replace(cell, timing=timing) for timing in timings]
    hybrids = plan_hybrids([each.timing for each in tuned], cuts, noises)
    # All is looked at before anything is measured.
    samplers = {each.timing: bench.sampler(each, require_timing(bench.model.name, each)) for each in (cell, *tuned)}
    facts = {
        "dataset": dataset, "model": bench.model.name, "solver": samplers[UNTUNED].solver.spelling, "grid": cell.grid, "nfe": cell.nfe,
        "eta": cell.eta, "reference": "train", "n": n, "seed": seed,
    }  # fmt: skip
    known = set() if force else _known(results, facts)
    lacking = {each: [by for by in yardsticks if (each, by.features.name) not in known] for each in hybrids}
    wanted = {each: found for each, found in lacking.items() if found}
    if not wanted:
        return []
    measured = measure_hybrids(samplers, wanted, n, first_seed=seed, batch=bench.batch, progress=progress)
    rows = [
        _row(facts, hybrid, by, one, bench)
        for hybrid, found in measured.items()
        for by, one in zip(wanted[hybrid], found, strict=True)
    ]  # fmt: skip
    write_rows(results, rows, BANDS_COLUMNS, BANDS_KEY)
    return rows


def _known(results: Path, facts: Mapping[str, Any]) -> set[tuple[Hybrid, str]]:
    """What has a row, and in which features."""
    rows = read_rows(results, BANDS_COLUMNS)
    rows = rows[matching(rows, facts)]
    return {
        (Hybrid(row["below"], row["above"], None if pd.isna(row["cut"]) else row["cut"], row["noise"]), row["features"])
        for row in rows.to_dict("records")
    }


def _row(facts: Mapping[str, Any], hybrid: Hybrid, by: Yardstick, measured: Measured, bench: Bench) -> dict[str, Any]:
    return {
        **facts, "nfe": measured.nfe, "below": hybrid.below, "above": hybrid.above, "cut": hybrid.cut, "noise": hybrid.noise,
        "metric": by.features.metric, "features": by.features.name, "value": round(measured.value, 6), "low": round(measured.low, 6),
        "high": round(measured.high, 6), "device": device_name(bench.device), **provenance(),
    }  # fmt: skip
