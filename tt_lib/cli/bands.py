"""``tt bands``: in which spatial frequencies the features see what a sampler got wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tt_lib.cli.sampler import (
    BatchOption,
    CompileOption,
    EtaOption,
    GridOption,
    ModelOption,
    NfeOption,
    SamplesOption,
    SolverOption,
)
from tt_lib.cli.shared import DeviceOption, ForceOption, SeedOption, pick_device, place, progress_bar, say

TIMINGS = ("frechet-joint", "consistency-parallel", "epsilon-1.005")
CUTS = (1.0, 3.0, 6.0, 10.0)
NOISES = (0.01, 0.02)
FEATURES = ("cifar10-resnet", "cifar10-simclr")


def bands(
    model: ModelOption = "cifar10",
    solver: SolverOption = "ddim",
    grid: GridOption = "uniform",
    nfe: NfeOption = 10,
    eta: EtaOption = 0.0,
    timing: Annotated[
        list[str] | None,
        typer.Option(help=f"A shipped timing, or a correction; may be repeated [default: {', '.join(TIMINGS)}]."),
    ] = None,
    cut: Annotated[
        list[float] | None,
        typer.Option(help=f"Where the bands meet, in cycles per image; may be repeated [default: {', '.join(f'{each:g}' for each in CUTS)}]."),
    ] = None,
    noise: Annotated[
        list[float] | None,
        typer.Option(
            help="Standard deviation of noise added to untuned images, where pixels go from -1 to 1 (0: none); may be repeated "
            f"[default: {', '.join(f'{each:g}' for each in NOISES)}]."
        ),
    ] = None,
    dataset: Annotated[str, typer.Option(help="Whose training images are the reference.")] = "cifar10",
    features: Annotated[
        list[str] | None, typer.Option(help=f"Features of the distances; may be repeated [default: {' and '.join(FEATURES)}].")
    ] = None,
    n: SamplesOption = 1000,
    seed: SeedOption = 0,
    batch: BatchOption = 500,
    bf16: Annotated[
        bool | None, typer.Option("--bf16/--no-bf16", help="Run the network in bfloat16 [default: on a GPU only, as `tt evaluate` does].")
    ] = None,
    compile: CompileOption = False,
    results: Annotated[
        Path | None, typer.Option(help="File to add the rows to [default: data/results/bands.csv].", callback=place)
    ] = None,
    device: DeviceOption = "auto",
    force: ForceOption = False,
) -> None:
    """Swap spatial frequencies between untuned and tuned images of the same noise, and measure the hybrids.

    Each timing gives two hybrids at each cut: its frequencies up to the cut with the untuned sampler's beyond it, and the other way
    round. Their Fréchet distances, beside those of whole images and of untuned ones with faint noise, say in which frequencies the
    features see a difference. What has rows is not measured again.

    Example: `tt bands --nfe 5 --timing epsilon-1.005 --cut 3 --n 20 --results runs/bands.csv`
    """
    from tt_lib.bands import run_bands
    from tt_lib.bench import Cell, make_bench
    from tt_lib.metrics.yardsticks import check_names, load_yardstick
    from tt_lib.results import results_folder

    names = features or list(FEATURES)
    check_names(names)
    where, path = pick_device(device), results or results_folder() / "bands.csv"
    yardsticks = [load_yardstick(name, dataset, where) for name in names]
    bench = make_bench(model, where, batch=batch, bf16=bf16, compile=compile)
    with progress_bar("bands") as report:
        rows = run_bands(
            bench, Cell(solver, grid, nfe, eta=eta), timing or TIMINGS, cut or CUTS, NOISES if noise is None else noise, yardsticks, n,
            path, dataset=dataset, seed=seed, force=force, progress=report,
        )  # fmt: skip
    for row in rows:
        say(f"{_images(row)}: {row['metric']} {row['value']:.4f} [{row['low']:.4f}, {row['high']:.4f}]")
    say(f"{len(rows)} rows written to {path}" if rows else f"all rows are in {path} already; --force measures them again")


def _images(row: dict) -> str:
    """What the images of a row are, in words."""
    if row["cut"] is not None:
        return f"{row['below']} up to {row['cut']:g} cycles, {row['above']} beyond"
    return row["below"] + (f" with noise {row['noise']:g}" if row["noise"] else "")
