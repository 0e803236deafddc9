"""Measuring a sampler: sampling, features and statistics in one stream, nothing written as an image.

The samples of a cell come in ``SETS`` disjoint sets by their seeds. The statistics of each finished set are
kept in the work folder, so that a killed evaluation goes on with the next set, and the interval of the
distance is taken from the same sets.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tt_lib.datasets import to_uint8
from tt_lib.errors import BadValue
from tt_lib.metrics.features import BATCH, Features
from tt_lib.metrics.frechet import jackknife_interval
from tt_lib.metrics.statistics import FeatureStatistics, merge_all
from tt_lib.noise import SampleNoise
from tt_lib.results import device_name, provenance
from tt_lib.sampling import Sampler, batches
from tt_lib.world import ALONE, World

SETS = 10
Progress = Callable[[int, int, str], None]


class StartNoise:
    """x_T of ranges of seeds, kept on the device: the cells of a table start from the same noise.

    Args:
        shape: of one sample.
        device: where it is kept.
        most: how many samples are kept; beyond that, noise is drawn each time.
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device | str, most: int = 100_000) -> None:
        self.shape, self.device, self.most = shape, device, most
        self.kept: dict[range, Tensor] = {}

    def __call__(self, seeds: range) -> Tensor:
        """x_T [len(seeds), *shape] on the device."""
        if seeds in self.kept:
            return self.kept[seeds]
        noise = SampleNoise(seeds).start(self.shape).to(self.device)
        if sum(map(len, self.kept)) + len(seeds) <= self.most:
            self.kept[seeds] = noise
        return noise


@dataclass(frozen=True)
class Measured:
    """A Fréchet distance with its 95 % interval, and the evaluations that one sample cost."""

    value: float
    low: float
    high: float
    nfe: int


def sample_statistics(
    sampler: Sampler,
    features: Features,
    seeds: range,
    *,
    batch: int = BATCH,
    start: StartNoise | None = None,
    world: World = ALONE,
    progress: Callable[[int], None] | None = None,
) -> tuple[FeatureStatistics, int]:
    """Statistics of the features of the samples with these seeds, and the NFE that was counted.

    Args:
        batch: samples at a time, for the network as for the features.
        start: where to take x_T from (deterministic solvers only).
        world: the processes that share the batches; each gets the statistics of all samples.
        progress: called with the number of samples of each finished batch, all processes' counted.
    """
    found = FeatureStatistics(features.dimension, features.name, features.sha256, {}, features.device)
    nfe = 0
    for part in world.share(list(batches(seeds.start, len(seeds), batch))):
        run = sampler(part, start=start(part) if start and not sampler.solver.stochastic else None)
        nfe = run.nfe
        found.update(features(to_uint8(run.x)))
        if progress:
            progress(len(part) * world.size)
    if world.size == 1:
        return found, nfe
    # A process without a batch counted no evaluation.
    return merge_all(world.gather(found.to("cpu"))), max(world.gather(nfe))


def measure(
    sampler: Sampler,
    features: Features,
    reference: FeatureStatistics,
    n: int,
    *,
    first_seed: int = 0,
    batch: int = BATCH,
    work: Path | None = None,
    start: StartNoise | None = None,
    world: World = ALONE,
    progress: Progress | None = None,
) -> Measured:
    """The Fréchet distance of ``n`` samples from the reference, with an interval from :data:`SETS` disjoint sets.

    Args:
        n: samples; a multiple of :data:`SETS`, at least two in each set.
        first_seed: the samples have the seeds ``first_seed .. first_seed + n - 1``.
        work: folder for the statistics of finished sets; an interrupted call goes on from there.
        world: the processes that measure it together; each gets the result.
        progress: called with (samples done, n, message).

    Raises:
        BadValue: ``n`` does not divide into the sets.
    """
    check_n(n)
    size = n // SETS
    sets, done = [], 0
    paths = set_files(sampler, features, n, first_seed, work) if work else [None] * SETS
    nfe = sampler.timing.nfe if sampler.timing else 0
    for index, path in enumerate(paths):
        seeds = range(first_seed + index * size, first_seed + (index + 1) * size)
        kept = world.decide(FeatureStatistics.load(path) if world.main and path and path.exists() else None)
        if kept is not None:
            part, nfe = kept, int(kept.meta["nfe"])
        else:
            end = (index + 1) * size

            def tell(count: int, end: int = end) -> None:
                nonlocal done
                done = min(done + count, end)
                if progress:
                    progress(done, n, f"{sampler.solver.name}, {sampler.grid.name}, {sampler.grid.steps} steps")

            part, nfe = sample_statistics(sampler, features, seeds, batch=batch, start=start, world=world, progress=tell)
            if path and world.main:
                part.save(path, {"nfe": str(nfe)})
        done = (index + 1) * size
        sets.append(part)
    value, low, high = world.decide(jackknife_interval(sets, reference) if world.main else (0.0, 0.0, 0.0))
    return Measured(value, low, high, nfe)


def check_n(n: int) -> None:
    """Raise :class:`BadValue` unless ``n`` samples divide into the sets, with at least two in each."""
    if n % SETS or n < 2 * SETS:
        raise BadValue(
            f"n must be a multiple of {SETS} and at least {2 * SETS} (the interval is taken from {SETS} sets), got {n}"
        )


def forget_sets(sampler: Sampler, features: Features, n: int, first_seed: int, work: Path) -> None:
    """Delete what :func:`measure` kept in ``work``: for whoever has written the row."""
    for path in set_files(sampler, features, n, first_seed, work):
        path.unlink(missing_ok=True)


def set_files(sampler: Sampler, features: Features, n: int, first_seed: int, work: Path) -> list[Path]:
    """Where :func:`measure` keeps the statistics of its sets."""
    size = n // SETS
    starts = range(first_seed, first_seed + SETS * size, size)
    return [work / f"{fingerprint(sampler, features, range(s, s + size))}.safetensors" for s in starts]


def fingerprint(sampler: Sampler, features: Features, seeds: range) -> str:
    """A name for the statistics of just these samples: whatever changes them changes it."""
    taus = sampler.timing.taus if sampler.timing else None
    solver = [sampler.solver.name, sampler.solver.options]
    parts = [
        sampler.model,
        sampler.weights,
        sampler.schedule.name,
        solver,
        sampler.grid.times,
        taus,
        features.sha256,
        seeds.start,
        len(seeds),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def fd_row(
    measured: Measured,
    sampler: Sampler,
    features: Features,
    *,
    dataset: str,
    reference: str,
    n: int,
    seed: int,
    timing: str,
    world: World = ALONE,
) -> dict[str, Any]:
    """A row of ``fd.csv``."""
    return {
        "dataset": dataset, "model": sampler.model, "solver": sampler.solver.spelling, "grid": sampler.grid.name,
        "nfe": measured.nfe, "eta": sampler.solver.eta, "timing": timing, "metric": features.metric,
        "features": features.name, "reference": reference, "n": n, "value": round(measured.value, 6),
        "low": round(measured.low, 6), "high": round(measured.high, 6), "seed": seed,
        "device": device_name(sampler.device, world.size), **provenance(),
    }  # fmt: skip


def floor_row(
    features: Features, reference: FeatureStatistics, dataset: str, sets: list[FeatureStatistics]
) -> dict[str, Any]:
    """The floor as a row: real test images against the same reference, the distance of a perfect sampler of that size."""
    value, low, high = jackknife_interval(sets, reference)
    n = sum(part.n for part in sets)
    return {
        "dataset": dataset, "model": "test images", "solver": "floor", "grid": "", "nfe": 0, "eta": 0.0, "timing": "floor",
        "metric": features.metric, "features": features.name, "reference": "train", "n": n, "value": round(value, 6),
        "low": round(low, 6), "high": round(high, 6), "seed": 0, "device": device_name(features.device), **provenance(),
    }  # fmt: skip
