"""Measuring a sampler: sampling, features and statistics in one stream, nothing written as an image.

The samples of a cell come in ``SETS`` disjoint sets by their seeds. The statistics of each finished set are
kept in the work folder, so that a killed evaluation goes on with the next set, and the interval of the
distance is taken from the same sets.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tt_lib.datasets import to_uint8
from tt_lib.engine import Run
from tt_lib.errors import BadValue, CorruptFile
from tt_lib.metrics.features import BATCH, Features, empty_statistics, gain_of
from tt_lib.metrics.frechet import extrapolated_interval, jackknife_interval, paired_interval
from tt_lib.metrics.kernel import kernel_distance, precision_recall
from tt_lib.metrics.reference import BANK_SIZE, Metric
from tt_lib.metrics.statistics import FeatureStatistics, to_half
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


def sample_statistics(
    sampler: Sampler, features: Features, seeds: range, *, batch: int = BATCH, start: StartNoise | None = None
) -> FeatureStatistics:
    """Statistics of the features of the samples with these seeds.

    Args:
        batch: samples at a time, for the network as for the features.
        start: where to take x_T from (deterministic solvers only).
    """
    runs = run_batches(sampler, batches(seeds.start, len(seeds), batch), start)
    return _gather([features], runs)[0]


def measure(sampler: Sampler, metric: Metric, n: int, **options: Any) -> Measured:
    """The Fréchet distance of ``n`` samples: :func:`measure_all` by one metric, with the same options."""
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

    The samples are made once, and all features are taken from them. Where a metric has a bank, the features of
    ``BANK_SIZE`` samples are kept, the same number of each set.

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
    vectors = min(n, BANK_SIZE) // SETS if any(metric.bank is not None for metric in metrics) else 0
    seeds = [range(begin, begin + size) for begin in range(first_seed, first_seed + n, size)]
    paths = [[work and work / _name(sampler, metric.features, part) for metric in metrics] for part in seeds]
    # The statistics of set i in features j, or None.
    sets = world.decide([[_load(path, vectors) for path in row] for row in paths] if world.main else [])
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
                kept = range(seeds[i].start, seeds[i].start + vectors)
                new = _gather(features, islice(runs, len(parts[i])), world, kept, report)
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
    keep: range = range(0),
    report: Callable[[int], None] | None = None,
) -> list[FeatureStatistics]:
    """Statistics of runs in each of the features, with the vectors of the seeds to keep, all processes' together.

    Args:
        report: called with the number of samples of each batch, all processes' counted.
    """
    statistics = [empty_statistics(each) for each in features]
    vectors: list[dict[int, Tensor]] = [{} for _ in features]
    for seeds, run in runs:
        pixels = to_uint8(run.x)
        for extract, own, kept in zip(features, statistics, vectors, strict=True):
            x = extract(pixels)
            own.update(x)
            own.shape = tuple(pixels.shape[1:])
            if seeds.start in keep:
                kept[seeds.start] = to_half(x)
        if report:
            report(len(seeds) * world.size)
    statistics = [own.joined(world) for own in statistics]
    if keep:
        for own, kept in zip(statistics, vectors, strict=True):
            kept = {seed: x for part in world.gather(kept) for seed, x in part.items()}
            own.vectors = torch.cat([kept[seed] for seed in sorted(kept)])[: len(keep)]
    return statistics


def _name(sampler: Sampler, features: Features, seeds: range) -> str:
    """The name of the file that holds the statistics of a set."""
    return f"{fingerprint(sampler, features, seeds)}.safetensors"


def _load(path: Path | None, vectors: int) -> FeatureStatistics | None:
    """The statistics that an earlier call kept of a set, with so many vectors; None if it kept nothing, or too few.

    Raises:
        CorruptFile: what it kept is damaged.
    """
    if path is None or not path.exists():
        return None
    try:
        statistics = FeatureStatistics.load(path)
    except CorruptFile as error:
        raise CorruptFile(f"{path} is no finished set of samples ({error.__cause__}); delete it") from error
    kept = statistics.vectors[:vectors] if statistics.vectors is not None and vectors else None
    if vectors and (kept is None or len(kept) < vectors):
        return None
    statistics.vectors = kept
    return statistics


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


def fd_rows(
    measured: Measured,
    sampler: Sampler,
    metric: Metric,
    *,
    seed: int,
    timing: str,
    baseline: Sequence[FeatureStatistics] = (),
    world: World = ALONE,
) -> list[dict[str, Any]]:
    """The rows of ``fd.csv`` of one measurement.

    The Fréchet distance comes first. If the metric has a bank there follow ``FD-infinity``
    (:func:`tt_lib.metrics.frechet.extrapolated_interval`), ``kernel distance`` (``KID`` in Inception's features),
    ``precision`` and ``recall``, the last two without an interval. The last three are of the vectors, whose number is
    in their rows.

    Args:
        seed: the first sample's.
        timing: its name.
        baseline: sets of an untuned sampler from the same seeds; a last row has the gain over it.
    """
    name, sets, reference = metric.features.name, measured.sets, metric.reference
    n = sum(part.n for part in sets)
    values = {metric.features.metric: (n, measured.value, measured.low, measured.high)}
    vectors = [part.vectors for part in sets if part.vectors is not None]
    if vectors and metric.bank is not None:
        samples, real = torch.cat(vectors).float(), metric.bank.float()
        samples, real = samples.to(metric.features.device), real.to(metric.features.device)
        kernel = "KID" if metric.features.metric == "FID" else f"kernel distance ({name})"
        values[f"FD-infinity ({name})"] = (n, *extrapolated_interval(sets, reference))
        values[kernel] = (len(samples), *kernel_distance(samples, real))
        for what, share in zip(("precision", "recall"), precision_recall(samples, real), strict=True):
            values[f"{what} ({name})"] = (len(samples), share, math.nan, math.nan)
    if baseline:
        values[gain_of(name)] = (n, *paired_interval(baseline, sets, reference))
    facts = {
        "model": sampler.model,
        "weights": short_hash(sampler.weights),
        "solver": sampler.solver.spelling,
        "grid": sampler.grid.name,
        "nfe": len(sampler.evaluations),
        "eta": sampler.solver.eta,
        "timing": timing,
        "seed": seed,
        "device": device_name(sampler.device, world.size),
    }
    return _rows(values, metric, **facts)


def floor_row(metric: Metric, sets: Sequence[FeatureStatistics]) -> dict[str, Any]:
    """The floor as a row: the distance of real test images from the same reference, as a perfect sampler would have."""
    values = {metric.features.metric: (sum(part.n for part in sets), *jackknife_interval(sets, metric.reference))}
    facts = {"model": "test images", "weights": "", "solver": "floor", "grid": "", "nfe": 0, "eta": 0.0}
    facts |= {"timing": "floor", "seed": 0}
    return _rows(values, metric, device=device_name(metric.features.device), **facts)[0]


def _rows(values: dict[str, tuple[int, float, float, float]], metric: Metric, **facts: Any) -> list[dict[str, Any]]:
    """A row for each metric's name, with its (n, value, low, high)."""
    facts |= {"dataset": metric.dataset, "features": metric.features.name, "reference": metric.split, **provenance()}
    return [
        {**facts, "metric": name, "n": n, "value": round(value, 6), "low": round(low, 6), "high": round(high, 6)}
        for name, (n, value, low, high) in values.items()
    ]
