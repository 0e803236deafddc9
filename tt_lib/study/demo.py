"""The main job in a few minutes on a CPU: sample, tune, sample again from the same noise, measure both."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from torch import Tensor

from tt_lib.datasets import to_uint8
from tt_lib.files import atomic_path
from tt_lib.metrics.evaluate import check_n
from tt_lib.metrics.features import Features, disjoint_sets
from tt_lib.metrics.frechet import jackknife_interval
from tt_lib.metrics.statistics import FeatureStatistics
from tt_lib.sampling import FINE_STEPS, end_distances, fine_ends, sample_floats
from tt_lib.study.cells import Cell
from tt_lib.study.workbench import Bench
from tt_lib.timing import Timing
from tt_lib.tuning import TuneConfig
from tt_lib.tuning.optimisers import SEARCH_TRIES

CELL = Cell("ddim", "uniform", 10, "truncation-parallel")
Progress = Callable[[int, int, str], None]


@dataclass
class Demo:
    """What a demonstration gave.

    Attributes:
        table: one row for the untuned and one for the tuned sampler; see :func:`demo`.
        pixels: uint8 images [n, C, H, W] by name: ``untuned``, ``tuned``, ``fine solution`` (fewer of these).
        timing: the tuned timing.
        seconds: wall-clock time of it all.
    """

    table: pd.DataFrame
    pixels: dict[str, Tensor]
    timing: Timing
    seconds: float


def demo(
    bench: Bench,
    features: Features,
    reference: FeatureStatistics,
    *,
    n: int = 100,
    fine: int = 32,
    images: int = 4,
    cell: Cell = CELL,
    state: Path | None = None,
    progress: Progress | None = None,
) -> Demo:
    """Sample ``n`` images untuned, tune, sample them again from the same noise, and measure both.

    The table has the columns ``sampler``, ``nfe``, ``distance`` (root mean square over pixels, on the scale
    [-1, 1], between the end of the few-step run and that of a fine solution from the same noise, mean over
    images), ``distance_low`` and ``distance_high`` (95 %, from the spread over images), and ``fd``, ``fd_low``,
    ``fd_high``: the Fréchet distance of so few samples is far too large on its own, and comparable only
    within the table, since both samplers start from the same noise.

    Args:
        n: images for the Fréchet distance, a multiple of 10.
        fine: how many of them are also solved finely (``FINE_STEPS`` steps of DPM-Solver++(2M)).
        images: images that the network makes for itself to tune on.
        state: file for the state of the tuning, so that an interrupted demonstration goes on.
        progress: called with (network evaluations done, of all, message).
    """
    begun = time.monotonic()
    check_n(n)
    fine = min(fine, n)

    objective, strategy = cell.timing.split("-")
    config = TuneConfig(objective=objective, strategy=strategy, optimiser="search")
    # Progress is counted in evaluations of the network on one image, which is where the time goes.
    tries = (cell.nfe - config.freeze_last) * images
    costs = (n * cell.nfe, tries * config.substeps, tries * SEARCH_TRIES, n * cell.nfe, fine * FINE_STEPS)

    def tell(stages: int, message: str, share: float = 0.0) -> None:
        if progress:
            done = sum(costs[:stages]) + (int(share * costs[stages]) if share else 0)
            progress(done, sum(costs), message)

    tell(0, f"untuned: {n} images in {cell.nfe} evaluations")
    untuned = bench.sampler(cell)
    ends = {"untuned": sample_floats(untuned, n, bench.batch)}
    tuning = f"tuning {cell.nfe} times on {images} images of the network's own"
    tell(1, tuning)
    own = bench.tuning_images("generated", images, "", None)
    timing = bench.tune(
        cell,
        config,
        own,
        "generated",
        state,
        lambda done, of, what: tell(2, f"{tuning}: {what}", done / of) if done else None,
    ).timing
    tell(3, "tuned: the same noise again")
    ends["tuned"] = sample_floats(bench.sampler(cell, timing), n, bench.batch)
    tell(4, f"fine solution of {fine} images in {FINE_STEPS} evaluations")
    exact = fine_ends(untuned, fine, bench.batch)
    tell(5, "features and distances")
    table = pd.DataFrame([_row(name, cell, end, exact, features, reference) for name, end in ends.items()])
    pixels = {name: to_uint8(end) for name, end in ends.items()} | {"fine solution": to_uint8(exact)}
    return Demo(table, pixels, timing, time.monotonic() - begun)


def _row(name: str, cell: Cell, end: Tensor, exact: Tensor, features: Features, reference: FeatureStatistics) -> dict:
    distances = end_distances(end, exact)
    margin = 1.96 * distances.std().item() / math.sqrt(len(distances))
    value, low, high = jackknife_interval(disjoint_sets(to_uint8(end), features), reference)
    mean = distances.mean().item()
    return {
        "sampler": name,
        "nfe": cell.nfe,
        "distance": mean,
        "distance_low": mean - margin,
        "distance_high": mean + margin,
        "fd": value,
        "fd_low": low,
        "fd_high": high,
    }


def write_demo(result: Demo, folder: Path) -> list[Path]:
    """Write the table, the timing and two figures; returns their paths."""
    from tt_lib.figures.pictures import compare_rows
    from tt_lib.figures.results import timing_plot
    from tt_lib.figures.style import save_figure

    shown = min(8, *map(len, result.pixels.values()))
    table, samples, times = folder / "demo.csv", folder / "samples.png", folder / "timing.png"
    with atomic_path(table) as temporary:
        result.table.to_csv(temporary, index=False)
    result.timing.save(folder / "timing.json")
    few = {name: pixels[:shown] for name, pixels in result.pixels.items()}
    nfe = result.timing.nfe
    save_figure(
        compare_rows(few),
        samples,
        f"The same noise, sampled in {nfe} evaluations untuned and tuned, and solved finely.",
        f"Three rows of {shown} small images: untuned, tuned and fine solution of the same noise.",
    )
    save_figure(
        timing_plot({result.timing.name: (result.timing.times, result.timing.taus)}),
        times,
        f"Tuned conditioning times of DDIM in {nfe} steps, as ratios to the nominal times.",
        "A line of tau over t against time, from noise to data; untuned would be 1 everywhere.",
    )
    return [table, folder / "timing.json", samples, times]
