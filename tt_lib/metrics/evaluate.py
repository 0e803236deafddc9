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
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tt_lib.datasets import to_uint8
from tt_lib.errors import BadValue
from tt_lib.metrics.features import BATCH, Features, empty_statistics
from tt_lib.metrics.frechet import extrapolated_interval, jackknife_interval
from tt_lib.metrics.kernel import kernel_distance, precision_recall
from tt_lib.metrics.reference import FeatureBank, JoinedFeatures, Yardstick, load_bank
from tt_lib.metrics.statistics import FeatureStatistics
from tt_lib.metrics.world import ALONE, World
from tt_lib.noise import StartNoise, drawn_ahead
from tt_lib.rows import device_name, provenance
from tt_lib.sampling import Sampler, batches

SETS = 10
Progress = Callable[[int, int, str], None]
_Set = tuple[FeatureStatistics, Tensor | None]
"""A set's statistics in one of the features, and the vectors that are kept of it."""


@dataclass(frozen=True)
class Measured:
    """A Fréchet distance with its 95 % interval, and the evaluations that one sample cost."""

    value: float
    low: float
    high: float
    nfe: int
    sets: tuple[FeatureStatistics, ...] = field(default=(), compare=False, repr=False)
    """Statistics of the disjoint sets."""
    vectors: Tensor | None = field(default=None, compare=False, repr=False)
    """float16 [V, D]: features of the first samples of each set, if they were kept."""


def sample_statistics(
    sampler: Sampler,
    features: Features,
    seeds: range,
    *,
    batch: int = BATCH,
    start: StartNoise | None = None,
    world: World = ALONE,
    collect: Callable[[int, Tensor], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[FeatureStatistics, int]:
    """Statistics of the features of the samples with these seeds, and the NFE that was counted.

    Args:
        batch: samples at a time, for the network as for the features.
        start: where to take x_T from (deterministic solvers only).
        world: the processes that share the batches; each gets the statistics of all samples.
        collect: called with the first seed and the features of each of this process's batches.
        progress: called with the number of samples of each finished batch, all processes' counted.
    """
    parts = world.share(list(batches(seeds.start, len(seeds), batch)))
    return _statistics(sampler, features, drawn_ahead(parts, drawing(sampler, start)), world, collect, progress)


def drawing(sampler: Sampler, start: StartNoise | None = None) -> StartNoise | None:
    """What draws x_T; a stochastic solver draws its own, from the stream of its steps."""
    return None if sampler.solver.stochastic else start or StartNoise(sampler.shape, sampler.device, most=0)


def _statistics(
    sampler: Sampler,
    features: Features,
    drawn: Iterable[tuple[range, Tensor | None]],
    world: World,
    collect: Callable[[int, Tensor], None] | None,
    progress: Callable[[int], None] | None,
) -> tuple[FeatureStatistics, int]:
    """:func:`sample_statistics` of this process's batches, each with its x_T."""
    found = empty_statistics(features)
    nfe = 0
    for part, noise in drawn:
        run = sampler(part, start=noise)
        nfe = run.nfe
        vectors = features(to_uint8(run.x))
        found.update(vectors)
        if collect:
            collect(part.start, vectors)
        if progress:
            progress(len(part) * world.size)
    # A process without a batch counted no evaluation.
    return found.joined(world), max(world.gather(nfe))


def measure(sampler: Sampler, features: Features, reference: FeatureStatistics, n: int, **options: Any) -> Measured:
    """The Fréchet distance of ``n`` samples from the reference: :func:`measure_all` with one yardstick and the same options."""
    return measure_all(sampler, [Yardstick(features, reference)], n, **options)[0]


def measure_all(
    sampler: Sampler, yardsticks: Sequence[Yardstick], n: int, *, world: World = ALONE, **options: Any
) -> list[Measured]:
    """The Fréchet distances of ``n`` samples by each yardstick, with intervals from :data:`SETS` disjoint sets.

    Args:
        yardsticks: features and references; at least one.
        n, world, options: see :func:`sample_sets`.

    Raises:
        BadValue: ``n`` does not divide into the sets.
    """
    found = sample_sets(sampler, yardsticks, n, world=world, **options)
    nfe = int(found[0][-1][0].meta["nfe"])
    return [
        _measured(sets, each.reference.to(each.features.device), nfe, world)
        for sets, each in zip(found, yardsticks, strict=True)
    ]


def sample_sets(
    sampler: Sampler,
    yardsticks: Sequence[Yardstick],
    n: int,
    *,
    first_seed: int = 0,
    batch: int = BATCH,
    work: Path | None = None,
    start: StartNoise | None = None,
    world: World = ALONE,
    keep: int = 0,
    progress: Progress | None = None,
) -> list[list[_Set]]:
    """The :data:`SETS` disjoint sets of ``n`` samples, a list for each yardstick: their statistics, and the vectors that are kept.

    The samples are made once, and all features are taken from them.

    Args:
        yardsticks: whose features; at least one.
        n: samples; a multiple of :data:`SETS`, at least two in each set.
        first_seed: the samples have the seeds ``first_seed .. first_seed + n - 1``.
        work: folder for the statistics of finished sets; an interrupted call goes on from there. What it holds of a set for some
            of the features is not measured again.
        world: the processes that do it together; each gets the result.
        keep: so many feature vectors are kept, the same number of each set; all, if there are fewer.
        progress: called with (samples done, n, message).

    Raises:
        BadValue: ``n`` does not divide into the sets.
    """
    check_n(n)
    size, share, done = n // SETS, min(n, keep) // SETS, 0
    paths = list(
        zip(
            *(set_files(sampler, each.features, n, first_seed, work) if work else [None] * SETS for each in yardsticks),
            strict=True,
        )
    )
    sets = world.decide([_found(of_set, share) for of_set in paths] if world.main else [])
    lacking = [[number for number in range(len(yardsticks)) if number not in found] for found in sets]
    plans = [
        world.share(list(batches(first_seed + index * size, size, batch))) if numbers else []
        for index, numbers in enumerate(lacking)
    ]
    # Noise is drawn ahead across the sets, and a finished set is written while the next is sampled: the device need not wait.
    drawn = drawn_ahead([part for plan in plans for part in plan], drawing(sampler, start))
    with closing(drawn), ThreadPoolExecutor(1) as writer:
        writing: list[Future] = []
        for index, (found, numbers, plan) in enumerate(zip(sets, lacking, plans, strict=True)):
            end = (index + 1) * size
            if numbers:

                def tell(count: int, end: int = end) -> None:
                    nonlocal done
                    done = min(done + count, end)
                    if progress:
                        progress(done, n, f"{sampler.solver.name}, {sampler.grid.name}, {sampler.grid.steps} steps")

                features = JoinedFeatures([yardsticks[number].features for number in numbers])
                first = _First(first_seed + index * size, share)
                taken = _take(sampler, features, islice(drawn, len(plan)), first, world, tell)
                found.update(zip(numbers, taken, strict=True))
                _finish(writing)
                if work and world.main:
                    writing += [writer.submit(_keep, paths[index][number], *found[number]) for number in numbers]
            done = end
        _finish(writing)
    return [[one[number] for one in sets] for number in range(len(yardsticks))]


def _found(paths: Sequence[Path | None], share: int) -> dict[int, _Set]:
    """What an earlier call kept of a set, by the number of the yardstick."""
    kept = {number: _kept(path, share) if path else None for number, path in enumerate(paths)}
    return {number: one for number, one in kept.items() if one is not None}


def _finish(writing: list[Future]) -> None:
    """Wait until what is being written is written; what went wrong there is raised here."""
    while writing:
        writing.pop(0).result()


def _take(
    sampler: Sampler,
    features: JoinedFeatures,
    drawn: Iterable[tuple[range, Tensor | None]],
    first: _First,
    world: World,
    tell: Callable[[int], None],
) -> list[_Set]:
    """What a set is like in each of the joined features, the NFE in the statistics' ``meta``."""
    joined, nfe = _statistics(sampler, features, drawn, world, first if first.count else None, tell)
    joined.meta = {"nfe": str(nfe)}
    vectors = first.joined(world)
    parts = features.split_statistics(joined)
    return list(zip(parts, [None] * len(parts) if vectors is None else features.split(vectors), strict=True))


def _measured(sets: list[_Set], reference: FeatureStatistics, nfe: int, world: World) -> Measured:
    """The distance, from its sets."""
    parts, vectors = [part for part, _ in sets], [one for _, one in sets if one is not None]
    # A GPU decomposes a covariance of 2,048 features many times faster than a CPU.
    value, low, high = world.decide(jackknife_interval(parts, reference, world=world))
    return Measured(value, low, high, nfe, tuple(parts), torch.cat(vectors) if vectors else None)


class _First:
    """Collects the features of the samples with the first ``count`` seeds of a set."""

    def __init__(self, first_seed: int, count: int) -> None:
        self.first_seed, self.count = first_seed, count
        self.found: dict[int, Tensor] = {}

    def __call__(self, seed: int, vectors: Tensor) -> None:
        if seed < self.first_seed + self.count:
            self.found[seed] = vectors.half().cpu()

    def joined(self, world: World) -> Tensor | None:
        """Of all processes, in the order of the seeds."""
        if not self.count:
            return None
        found = {seed: vectors for each in world.gather(self.found) for seed, vectors in each.items()}
        return torch.cat([found[seed] for seed in sorted(found)])[: self.count]


def _keep(path: Path, part: FeatureStatistics, vectors: Tensor | None) -> None:
    """Write what a set is like in one of the features, the statistics last."""
    if vectors is not None:
        FeatureBank(vectors, part.features, part.sha256).save(_bank_of(path))
    part.save(path)


def _kept(path: Path, share: int) -> _Set | None:
    """What an earlier call kept of a set; None if it kept nothing, or too few vectors."""
    if not path.exists():
        return None
    if not share:
        return FeatureStatistics.load(path), None
    if not _bank_of(path).exists():
        return None
    vectors = load_bank(_bank_of(path)).vectors
    return (FeatureStatistics.load(path), vectors[:share]) if len(vectors) >= share else None


def _bank_of(path: Path) -> Path:
    return path.with_suffix(".bank.safetensors")


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
        _bank_of(path).unlink(missing_ok=True)


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
    # Only where there is one: the names of what was measured before stay.
    parts += [sampler.correction.name] if sampler.correction else []
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
        "dataset": dataset,
        "model": sampler.model,
        "solver": sampler.solver.spelling,
        "grid": sampler.grid.name,
        "nfe": measured.nfe,
        "eta": sampler.solver.eta,
        "timing": timing,
        "metric": features.metric,
        "features": features.name,
        "reference": reference,
        "n": n,
        "value": round(measured.value, 6),
        "low": round(measured.low, 6),
        "high": round(measured.high, 6),
        "seed": seed,
        "device": device_name(sampler.device, world.size),
        **provenance(),
    }


def floor_row(
    features: Features, reference: FeatureStatistics, dataset: str, sets: list[FeatureStatistics]
) -> dict[str, Any]:
    """The floor as a row: real test images against the same reference, the distance of a perfect sampler of that size."""
    value, low, high = jackknife_interval(sets, reference)
    n = sum(part.n for part in sets)
    return {
        "dataset": dataset,
        "model": "test images",
        "solver": "floor",
        "grid": "",
        "nfe": 0,
        "eta": 0.0,
        "timing": "floor",
        "metric": features.metric,
        "features": features.name,
        "reference": "train",
        "n": n,
        "value": round(value, 6),
        "low": round(low, 6),
        "high": round(high, 6),
        "seed": 0,
        "device": device_name(features.device),
        **provenance(),
    }


def more_rows(
    row: dict[str, Any], measured: Measured, reference: FeatureStatistics, bank: FeatureBank, features: Features
) -> list[dict[str, Any]]:
    """Rows for what a Fréchet distance does not say, of the same samples as its own ``row``.

    ``FD-infinity`` (:func:`tt_lib.metrics.frechet.extrapolated_interval`), ``kernel distance`` (``KID`` in Inception's features),
    ``precision`` and ``recall``; the last three of the vectors that were kept, whose number is in the row. Precision and recall
    have no interval.

    Raises:
        BadValue: the bank is of other features, or no vectors were kept.
    """
    if measured.vectors is None:
        raise BadValue("no feature vectors were kept; measure with keep > 0")
    if bank.sha256 != features.sha256:
        raise BadValue(f"the bank is of {bank.features} with other weights than the samples' features {features.name}")
    of = f"({features.name})"
    samples, real = (vectors.to(features.device).float() for vectors in (measured.vectors, bank.vectors))
    kernel = "KID" if features.metric == "FID" else f"kernel distance {of}"
    found = {
        f"FD-infinity {of}": (row["n"], *extrapolated_interval(measured.sets, reference)),
        kernel: (len(samples), *kernel_distance(samples, real)),
    }
    for name, share in zip(("precision", "recall"), precision_recall(samples, real), strict=True):
        found[f"{name} {of}"] = (len(samples), share, math.nan, math.nan)
    return [
        {**row, "metric": metric, "n": n, "value": round(value, 6), "low": round(low, 6), "high": round(high, 6)}
        for metric, (n, value, low, high) in found.items()
    ]
