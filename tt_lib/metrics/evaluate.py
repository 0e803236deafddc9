"""Measuring a sampler: sampling, features and statistics in one stream, nothing written as an image.

The samples of a cell come in ``SETS`` disjoint sets by their seeds. The statistics of each finished set are
kept in the work folder, so that a killed evaluation goes on with the next set, and the interval of the
distance is taken from the same sets.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from tt_lib.datasets import to_uint8
from tt_lib.engine import Run
from tt_lib.errors import BadValue, CorruptFile
from tt_lib.metrics.features import BATCH, Features, empty_statistics
from tt_lib.metrics.frechet import jackknife_interval
from tt_lib.metrics.reference import Metric
from tt_lib.metrics.statistics import FeatureStatistics
from tt_lib.metrics.world import ALONE, World
from tt_lib.noise import StartNoise, check_seeds
from tt_lib.rows import device_name, provenance, short_hash
from tt_lib.sampling import Progress, Sampler, batches, run_batches

SETS = 10
MOST = 10_000_000
"""More samples than anyone has use for; beyond that a number was mistyped."""


@dataclass(frozen=True)
class Measured:
    """A Fréchet distance with its 95 % interval, and the statistics of the disjoint sets that it was taken from."""

    value: float
    low: float
    high: float
    sets: tuple[FeatureStatistics, ...] = field(default=(), compare=False, repr=False)


def sample_statistics(sampler: Sampler, features: Features, seeds: range, *, batch: int = BATCH) -> FeatureStatistics:
    """Statistics of the features of the samples with these seeds.

    Args:
        batch: samples at a time, for the network as for the features.
    """
    return _gather([features], run_batches(sampler, batches(seeds.start, len(seeds), batch)))[0]


def measure(sampler: Sampler, metric: Metric, n: int, **options: Any) -> Measured:
    """The Fréchet distance of ``n`` samples with its interval: :func:`measure_all` of one metric, with its options."""
    return measure_all(sampler, [metric], n, **options)[0]


def measure_all(
    sampler: Sampler, metrics: Sequence[Metric], n: int, *, world: World = ALONE, **options: Any
) -> list[Measured]:
    """The Fréchet distances of ``n`` samples by each metric, with intervals from :data:`SETS` disjoint sets.

    Args:
        metrics: at least one.
        n, world, options: see :func:`sample_sets`.

    Raises:
        BadValue: ``n`` does not divide into the sets.
    """
    measured = []
    for metric, sets in zip(metrics, sample_sets(sampler, metrics, n, world=world, **options), strict=True):
        # A GPU decomposes a covariance of 2,048 features many times faster than a CPU.
        reference = metric.reference.to(metric.features.device)
        measured.append(Measured(*world.decide(jackknife_interval(sets, reference, world)), sets))
    return measured


def sample_sets(
    sampler: Sampler,
    metrics: Sequence[Metric],
    n: int,
    *,
    first_seed: int = 0,
    batch: int = BATCH,
    work: Path | None = None,
    start: StartNoise | None = None,
    world: World = ALONE,
    progress: Progress | None = None,
) -> list[tuple[FeatureStatistics, ...]]:
    """Statistics of the :data:`SETS` disjoint sets of ``n`` samples, for each metric.

    The samples are made once, and all features are taken from them.

    Args:
        metrics: whose features; at least one.
        n: samples; a multiple of :data:`SETS`, at least two in each set.
        first_seed: the samples have the seeds ``first_seed .. first_seed + n - 1``.
        work: folder for the statistics of finished sets; an interrupted call goes on from there. What it holds of a set
            for some of the features is not measured again.
        world: the processes that do it together; each gets the result.
        progress: called with (samples done, n, message).

    Raises:
        BadValue: ``n`` does not divide into the sets, there are no such seeds, or a metric's real images are of another
            shape than the samples.
    """
    check_n(n)
    check_seeds(first_seed, n)
    for metric in metrics:
        metric.require_shape(sampler.shape, sampler.model or "the sampler")
    size, done = n // SETS, 0
    seeds = [range(begin, begin + size) for begin in range(first_seed, first_seed + n, size)]
    paths = [[work and work / _name(sampler, metric.features, part) for metric in metrics] for part in seeds]
    # The statistics of set i in features j, or None.
    sets = world.decide([[_load(path) for path in row] for row in paths] if world.main else [])
    todo = [[j for j, statistics in enumerate(row) if statistics is None] for row in sets]
    parts = [
        world.share(batches(part.start, size, batch)) if missing else []
        for part, missing in zip(seeds, todo, strict=True)
    ]

    # Noise is drawn ahead across the sets: the device need not wait.
    with closing(run_batches(sampler, list(chain(*parts)), start)) as runs:
        for i, missing in enumerate(todo):
            if missing:

                def report(count: int, end: int = (i + 1) * size) -> None:
                    nonlocal done
                    done = min(done + count, end)
                    if progress:
                        progress(done, n, f"{sampler.solver.name}, {sampler.grid.name}, {sampler.grid.steps} steps")

                features = [metrics[j].features for j in missing]
                new = _gather(features, islice(runs, len(parts[i])), world, report)
                for j, statistics in zip(missing, new, strict=True):
                    sets[i][j], path = statistics, paths[i][j]
                    if path and world.main:
                        statistics.save(path)
            done = (i + 1) * size
    return list(zip(*sets, strict=True))


def _gather(
    features: Sequence[Features],
    runs: Iterable[tuple[range, Run]],
    world: World = ALONE,
    report: Callable[[int], None] | None = None,
) -> list[FeatureStatistics]:
    """Statistics of runs in each of the features, all processes' together.

    Args:
        report: called with the number of samples of each batch, all processes' counted.
    """
    statistics = [empty_statistics(each) for each in features]
    for seeds, run in runs:
        pixels = to_uint8(run.x)
        for extract, own in zip(features, statistics, strict=True):
            own.update(extract(pixels)).shape = tuple(pixels.shape[1:])
        if report:
            report(len(seeds) * world.size)
    return [own.joined(world) for own in statistics]


def _name(sampler: Sampler, features: Features, seeds: range) -> str:
    """The name of the file that holds the statistics of a set."""
    return f"{fingerprint(sampler, features, seeds)}.safetensors"


def _load(path: Path | None) -> FeatureStatistics | None:
    """The statistics that an earlier call kept of a set; None if it kept nothing.

    Raises:
        CorruptFile: what it kept is damaged.
    """
    if path is None or not path.exists():
        return None
    try:
        return FeatureStatistics.load(path)
    except CorruptFile as error:
        raise CorruptFile(f"{path} is not a finished set of samples ({error.__cause__}); delete it") from error


def check_n(n: int) -> None:
    """Raise :class:`BadValue` unless ``n`` samples divide into the sets, with at least two in each."""
    if n > MOST:
        raise BadValue(f"n must be at most {MOST:,}, got {n:,}")
    if n % SETS or n < 2 * SETS:
        raise BadValue(
            f"n must be a multiple of {SETS} and at least {2 * SETS} (the interval is taken from {SETS} sets), got {n}"
        )


def forget_sets(sampler: Sampler, features: Features, n: int, first_seed: int, work: Path) -> None:
    """Delete what :func:`sample_sets` kept in ``work``: for whoever has written the row."""
    size = n // SETS
    for begin in range(first_seed, first_seed + n, size):
        (work / _name(sampler, features, range(begin, begin + size))).unlink(missing_ok=True)


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
    # Only where there is one: the names of what was measured before stay.
    parts += [sampler.correction.name] if sampler.correction else []
    parts += [sampler.timing.gains] if sampler.timing and sampler.timing.gains else []
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def fd_row(
    measured: Measured, sampler: Sampler, metric: Metric, *, seed: int, timing: str, world: World = ALONE
) -> dict[str, Any]:
    """The row of ``fd.csv`` of one measurement.

    Args:
        seed: the first sample's.
        timing: its name.
    """
    return _row(
        (measured.value, measured.low, measured.high),
        metric,
        model=sampler.model,
        weights=short_hash(sampler.weights),
        solver=sampler.solver.spelling,
        grid=sampler.grid.name,
        nfe=len(sampler.evaluations),
        eta=sampler.solver.eta,
        timing=timing,
        n=sum(part.n for part in measured.sets),
        seed=seed,
        device=device_name(sampler.device, world.size),
    )


def floor_row(metric: Metric, sets: Sequence[FeatureStatistics]) -> dict[str, Any]:
    """The floor as a row: the distance of real test images from the same reference, as a perfect sampler would have."""
    facts = {"model": "test images", "weights": "", "solver": "floor", "grid": "", "nfe": 0, "eta": 0.0}
    facts |= {"timing": "floor", "n": sum(part.n for part in sets), "seed": 0}
    interval = jackknife_interval(sets, metric.reference)
    return _row(interval, metric, device=device_name(metric.features.device), **facts)


def _row(interval: tuple[float, float, float], metric: Metric, **facts: Any) -> dict[str, Any]:
    """A row of a distance by this metric, (value, low, high)."""
    distance = {name: round(each, 6) for name, each in zip(("value", "low", "high"), interval, strict=True)}
    facts |= {"dataset": metric.dataset, "features": metric.features.name, "reference": metric.split, **provenance()}
    return {**facts, "metric": metric.features.metric, **distance}
