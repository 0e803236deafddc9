"""What things cost: seconds of tuning, images a second of sampling and of evaluating, as rows of ``speed.csv``."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from tt_lib.bench import Bench, Cell
from tt_lib.errors import BadValue
from tt_lib.evaluating import SETS, measure, sample_statistics
from tt_lib.metrics.features import Features
from tt_lib.metrics.statistics import FeatureStatistics
from tt_lib.noise import StartNoise
from tt_lib.results import device_name, provenance
from tt_lib.sampling import Sampler, batches
from tt_lib.timing import UNTUNED
from tt_lib.tuning import STRATEGIES, TuneConfig
from tt_lib.world import ALONE, World

Tell = Callable[[str], None]
LESS_IS_BETTER = ("s", "loss")


def seconds(job: Callable[[], Any], device: torch.device) -> float:
    """Wall-clock time of a job, with all that it left running on the device."""
    wait(device)
    begun = time.perf_counter()
    job()
    wait(device)
    return time.perf_counter() - begun


def wait(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def warm_up(sampler: Sampler, features: Features, reference: FeatureStatistics, batch: int, first_seed: int, world: World = ALONE) -> None:
    """Run all of an evaluation once, with a whole batch and with few samples, from ``first_seed`` on: compiling, tuning of kernels, caches."""
    sample_statistics(sampler, features, range(first_seed, first_seed + batch), batch=batch)
    measure(sampler, features, reference, 2 * SETS, first_seed=first_seed + batch, batch=batch, world=world)


def measure_speed(
    bench: Bench,
    features: Features,
    images: torch.Tensor,
    source: str,
    *,
    cell: Cell = Cell("ddim", "uniform", 10),
    n: int = 10_000,
    optimiser: str = "search",
    tell: Tell | None = None,
) -> list[dict[str, Any]]:
    """Rows for ``speed.csv``: tuning (parallel against sequential), sampling (tuned against untuned), evaluating.

    Everything runs once before it is timed, so that compiling is not counted.

    Args:
        images: to tune on, [P, C, H, W] in [-1, 1].
        source: where they come from, ``real`` or ``generated``.
        cell: solver, grid and NFE.
        n: samples that are timed.
        optimiser: of the tuning.
        tell: called with what is measured next.

    Raises:
        BadValue: fewer than two samples.
    """
    if n < 2:
        raise BadValue(f"n must be at least 2, got {n}")
    tell = tell or (lambda message: None)
    where = f"{cell.solver}, {cell.grid}, {cell.nfe} steps"
    tell("first runs, which are not timed (compiling, if asked for, takes a minute)")
    tuned_cell = Cell(cell.solver, cell.grid, cell.nfe, "consistency-parallel", cell.eta)
    quick = TuneConfig(strategy="parallel", optimiser="search")
    timing = bench.tune(tuned_cell, quick, images, source).timing
    samplers = {UNTUNED: bench.sampler(cell), "tuned": bench.sampler(cell, timing)}
    start = StartNoise(bench.model.shape, bench.device)
    sample_statistics(samplers[UNTUNED], features, range(n), batch=bench.batch, start=start)

    spent = {}
    for strategy in STRATEGIES:
        tell(f"tuning, consistency, {strategy}, {optimiser}")
        config = TuneConfig(strategy=strategy, optimiser=optimiser)
        spent[strategy] = seconds(partial(bench.tune, tuned_cell, config, images, source), bench.device)
    what = f"tuning {where}, consistency, {optimiser}, {len(images)} images: parallel, peer sequential"
    rows = [speed_row(what, spent["parallel"], spent["sequential"], "s", bench.device)]

    rates = {}
    for name, sampler in samplers.items():
        tell(f"sampling, {name}")

        def job(sampler=sampler) -> None:
            for seeds in batches(0, n, bench.batch):
                sampler(seeds, start=start(seeds))

        rates[name] = n / seconds(job, bench.device)
    rows.append(
        speed_row(f"sampling {where}: tuned, peer untuned", rates["tuned"], rates[UNTUNED], "images/s", bench.device)
    )

    tell("evaluating: sampling, features and statistics in one stream")
    taken = seconds(
        lambda: sample_statistics(samplers["tuned"], features, range(n), batch=bench.batch, start=start), bench.device
    )
    rows.append(speed_row(f"evaluating {where}, {features.name}", n / taken, None, "images/s", bench.device))
    return rows


def speed_row(what: str, ours: float, peer: float | None, unit: str, device: torch.device) -> dict[str, Any]:
    """A row of ``speed.csv``, to five digits; the ratio is how many times better ours is: fewer seconds or more images a second.

    Where neither is better (a distance, a share), it is ours over the peer.
    """
    ratio: float | str = ""
    if peer is not None:
        ratio = round(peer / ours if unit in LESS_IS_BETTER else ours / peer, 3)
    return {
        "what": what, "ours": float(f"{ours:.5g}"), "peer": "" if peer is None else float(f"{peer:.5g}"), "ratio": ratio,
        "unit": unit, "device": device_name(device), **provenance(),
    }  # fmt: skip
