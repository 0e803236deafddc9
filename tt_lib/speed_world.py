"""An evaluation by all processes that torchrun has started beside the same evaluation by one of them, in one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tt_lib.bench import Bench, Cell
from tt_lib.errors import BadValue
from tt_lib.evaluating import measure
from tt_lib.metrics.features import NetworkFeatures
from tt_lib.metrics.statistics import FeatureStatistics
from tt_lib.results import device_name
from tt_lib.speed import Tell, seconds, speed_row, warm_up
from tt_lib.world import ALONE, World

ROUNDING = 1e-6
"""The largest relative difference of two distances of the same samples that is put down to rounding."""


def measure_against_one_process(
    bench: Bench, features: NetworkFeatures, reference: FeatureStatistics, folder: Path, world: World, *, cell: Cell, n: int,
    how: str, tell: Tell | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Two rows: images a second of all processes together, beside those of the main one while the others wait, and how far
    their distances lie apart.

    Both begin with seeds and end with a distance and its interval, and everything has run once before. All processes run the same
    kernels (:func:`tt_lib.predictors.compile_options`), so the distances differ by the order in which statistics are added.

    Args:
        folder: an empty folder for the state, the same for all processes or one for each: the main process writes.
        how: precision and compiling, for the row.

    Raises:
        BadValue: there is only one process, or rounding does not explain how far the distances lie apart.
    """
    if world.size == 1:
        raise BadValue("there is one process only; start it with torchrun --nproc_per_node 2 -m tt_lib speed --against one-process ...")
    tell = tell if tell and world.main else (lambda message: None)
    sampler = bench.sampler(cell)

    def job(who: World, work: str) -> float:
        return measure(sampler, features, reference, n, batch=bench.batch, work=folder / work, world=who).value

    tell("first runs, which are not timed (compiling, if asked for, takes minutes)")
    warm_up(sampler, features, reference, bench.batch, n, world)
    values = []
    tell(f"{n} samples by one process")
    world.gather(0)
    alone = seconds(lambda: values.append(job(ALONE, "one")), bench.device) if world.main else 0.0
    world.gather(0)
    tell(f"{n} samples by {world.size} processes")
    together = seconds(lambda: values.append(job(world, "all")), bench.device)
    if not world.main:
        return []
    apart = abs(values[1] / values[0] - 1)
    if apart > ROUNDING:
        raise BadValue(
            f"one process measured {values[0]} and {world.size} measured {values[1]}, which should be the same but for {ROUNDING:g}; "
            f"with --compile on a GPU that takes torch 2.10 or newer, and this is {torch.__version__}"
        )
    what = f"evaluating {cell.solver}, {cell.grid}, {cell.nfe} steps, {bench.model.name}, n {n}, {features.name} ({how})"
    rows = [
        speed_row(f"{what}: {world.size} processes, peer one", n / together, n / alone, "images/s", bench.device),
        speed_row(f"{what}: distance by {world.size} processes and by one, relative difference", apart, None, "share", bench.device),
    ]
    return [{**row, "device": device_name(bench.device, world.size)} for row in rows]
