"""``tt analytic``: what Analytic-DDIM and Analytic-DDPM need to know of a network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tt_lib.cli.sampler import BatchOption, GridOption, ModelOption, NfeOption
from tt_lib.cli.shared import DataOption, DeviceOption, ForceOption, SeedOption, pick_device, progress_bar, say
from tt_lib.files import refuse_overwrite


def analytic(
    model: ModelOption = "cifar10",
    solver: Annotated[
        str, typer.Option(help="analytic-ddim or analytic-ddpm; without a timing the two have the same gamma.")
    ] = "analytic-ddim",
    grid: GridOption = "uniform",
    nfe: NfeOption = 10,
    timing: Annotated[Path | None, typer.Option(help="A timing tuned for the solver (JSON); untuned without.")] = None,
    images: Annotated[int, typer.Option(help="Images to measure on.")] = 256,
    source: Annotated[str, typer.Option(help="real (training images) or generated (by the network itself).")] = "real",
    dataset: Annotated[str, typer.Option(help="Data set of the real images: cifar10 or digits.")] = "cifar10",
    data: DataOption = None,
    out: Annotated[
        Path | None, typer.Option(help="File to write [default: data/gamma/<model>/..., where samplers look].")
    ] = None,
    batch: BatchOption = 64,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    force: ForceOption = False,
) -> None:
    """Measure gamma, from which the analytic solvers take the noise of their steps.

    gamma is the mean square of the network's eps at each evaluation, on noised images (Bao et al. 2022). It belongs to one
    model, grid, NFE and timing; `tt tune` and `tt table` measure it themselves where it is missing.

    Example: `tt analytic --nfe 10 --source generated --images 64`
    """
    from tt_lib.analytic import gamma_path
    from tt_lib.bench import Cell, make_bench
    from tt_lib.timing import load_timing

    bench = make_bench(model, pick_device(device), batch=batch)
    tuned = load_timing(timing) if timing else None
    path = out or gamma_path(bench.model.name, grid, nfe, tuned)
    refuse_overwrite(path, force)
    pictures = bench.tuning_images(source, images, dataset, str(data) if data else None)
    with progress_bar("analytic") as report:
        gamma = bench.measure_gamma(
            Cell(solver, grid, nfe), tuned, pictures, source, seed=seed, progress=report
        )
    gamma.save(path)
    say(f"{'t':>8} {'tau':>8} {'gamma':>10} {'error':>8} {'1 - gamma':>10} {'residual':>10}")
    for row in zip(gamma.times, gamma.taus, gamma.values, gamma.errors, gamma.residuals, strict=True):
        t, tau, value, error, residual = row
        say(f"{t:8.4f} {tau:8.4f} {value:10.6f} {error:8.1e} {1 - value:10.6f} {residual:10.6f}")
    say(f"{path}: {len(gamma.values)} evaluations of {gamma.model}, {gamma.images} images, timing {gamma.timing}")
