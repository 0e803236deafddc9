"""The main job in a few minutes on a CPU: sample, tune, sample again from the same noise, measure both."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from torch import Tensor

from tt_lib.datasets import to_uint8
from tt_lib.files import atomic_path
from tt_lib.metrics.evaluate import check_n
from tt_lib.metrics.features import disjoint_sets
from tt_lib.metrics.frechet import jackknife_interval
from tt_lib.metrics.reference import Metric
from tt_lib.sampling import FINE_STEPS, end_distances, fine_sampler, sample_images
from tt_lib.study.cells import Cell
from tt_lib.study.workbench import Bench, Progress
from tt_lib.timing import UNTUNED, Timing
from tt_lib.tuning import TuneConfig
from tt_lib.tuning.optimisers import SEARCH_TRIES

CELL = Cell("ddim", "uniform", 10, "truncation-parallel")
IMAGES, CONVERGED = 4, 32
"""Images that the network makes for itself to tune on, and samples whose converged solution is computed."""


@dataclass
class Demo:
    """What a demonstration gave.

    Attributes:
        table: one row for the untuned and one for the tuned sampler; see :func:`demo`.
        pixels: uint8 images [n, C, H, W] by name: ``untuned``, ``tuned``, ``converged`` (fewer of these).
        timing: the tuned timing.
        seconds: wall-clock time of it all.
    """

    table: pd.DataFrame
    pixels: dict[str, Tensor]
    timing: Timing
    seconds: float


def demo(
    bench: Bench, metric: Metric, *, n: int = 100, state: Path | None = None, progress: Progress | None = None
) -> Demo:
    """Sample ``n`` images untuned, tune, sample them again from the same noise, and measure both.

    The table has the columns ``sampler``, ``nfe``; ``distance``, between a sample and the converged solution from the
    same noise (root mean square over pixels, which go from -1 to 1; mean over images), ``distance_low`` and
    ``distance_high`` (95 %, from the spread over images); and ``fd``, ``fd_low``, ``fd_high``. The Fréchet distance
    of so few samples is far too large on its own. It is comparable within the table, since both samplers start from
    the same noise.

    Args:
        n: images for the Fréchet distance, a multiple of 10.
        state: file for the state of the tuning, so that an interrupted demonstration goes on. Whoever has written the
            timing removes it.
        progress: called with (network evaluations done, of all, message).
    """
    begun = time.monotonic()
    check_n(n)
    config = TuneConfig("truncation", "parallel", "search")
    count, nfe = min(CONVERGED, n), CELL.nfe
    # Progress is counted in evaluations of the network on one image, which is where the time goes.
    tuning = (nfe - 1) * IMAGES * (config.substeps + SEARCH_TRIES)
    done, total = 0, 2 * n * nfe + tuning + count * FINE_STEPS

    def stage(message: str, cost: int) -> Progress:
        nonlocal done
        base, done = done, done + cost

        def report(part: int, of: int, _: str = "") -> None:
            if progress:
                progress(base + cost * part // of, total, message)

        report(0, 1)
        return report

    report = stage(f"untuned: {n} images in {nfe} evaluations", n * nfe)
    untuned = bench.sampler(CELL)
    ends = {UNTUNED: sample_images(untuned, n, batch=bench.batch, progress=report)}
    report = stage(f"tuning {nfe} times on {IMAGES} images of the network's own", tuning)
    images = bench.tuning_images("generated", IMAGES, "", None)
    timing = bench.tune(CELL, config, images, "generated", state, report).timing
    report = stage("tuned: the same noise again", n * nfe)
    ends["tuned"] = sample_images(bench.sampler(CELL, timing), n, batch=bench.batch, progress=report)
    report = stage(f"converged solution of {count} images in {FINE_STEPS} evaluations", count * FINE_STEPS)
    converged = sample_images(fine_sampler(untuned), count, batch=bench.batch, progress=report)
    stage("features and distances", 0)
    table = pd.DataFrame([_row(name, end, converged, metric) for name, end in ends.items()])
    pixels = {name: to_uint8(end) for name, end in {**ends, "converged": converged}.items()}
    return Demo(table, pixels, timing, time.monotonic() - begun)


def _row(name: str, end: Tensor, converged: Tensor, metric: Metric) -> dict:
    distances = end_distances(end, converged)
    mean, margin = distances.mean().item(), 1.96 * distances.std().item() / math.sqrt(len(distances))
    value, low, high = jackknife_interval(disjoint_sets(to_uint8(end), metric.features), metric.reference)
    return {
        "sampler": name,
        "nfe": CELL.nfe,
        "distance": mean,
        "distance_low": mean - margin,
        "distance_high": mean + margin,
        "fd": value,
        "fd_low": low,
        "fd_high": high,
    }


def demo_files(folder: Path) -> list[Path]:
    """The paths of the table, the timing and two figures."""
    return [folder / name for name in ("demo.csv", "timing.json", "samples.png", "timing.png")]


def write_demo(result: Demo, folder: Path) -> list[Path]:
    """Write the table, the timing and two figures; returns their paths."""
    from tt_lib.figures.pictures import compare_rows
    from tt_lib.figures.results import timing_plot
    from tt_lib.figures.style import save_figure

    paths = table, timing, samples, times = demo_files(folder)
    with atomic_path(table) as temporary:
        result.table.to_csv(temporary, index=False)
    result.timing.save(timing)
    shown = min(8, *map(len, result.pixels.values()))
    save_figure(
        compare_rows({name: pixels[:shown] for name, pixels in result.pixels.items()}),
        samples,
        f"The same noise, sampled in {result.timing.nfe} evaluations untuned and tuned, and the converged solution.",
        f"Three rows of {shown} small images: untuned, tuned and converged solution of the same noise.",
    )
    save_figure(
        timing_plot({result.timing.name: result.timing}),
        times,
        f"Tuned conditioning times of DDIM in {result.timing.nfe} steps, as ratios to the nominal times.",
        "A line of tau over t against time, from noise to data; untuned would be 1 everywhere.",
    )
    return paths
