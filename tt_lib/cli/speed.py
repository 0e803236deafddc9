"""``tt speed``: how fast sampling and evaluating are, beside how fast they are elsewhere."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from tt_lib.cli.app import DataOption, DatasetOption, DeviceOption, pick_device, results_file, rows_option, say
from tt_lib.cli.sampler import BatchOption, CompileOption

SAMPLES = {"diffusers": 1024, "pytorch-fid": 50_000}
"""The peers, and of how many samples the time is taken."""


def speed(
    against: Annotated[
        str,
        typer.Option(
            help="diffusers: sampling is compared with its DDIMPipeline. pytorch-fid: an evaluation is compared with "
            "its command on PNG files."
        ),
    ],
    model: Annotated[str, typer.Option(help="A model folder, or cifar10, the shipped model.")] = "cifar10",
    nfe: Annotated[int, typer.Option(help="Number of network evaluations for each image (NFE).")] = 10,
    images: Annotated[int, typer.Option(help="Number of images in pytorch-fid's reference.")] = 10_000,
    source: Annotated[
        str, typer.Option(help="Images of that reference: real (training images) or generated (by the network itself).")
    ] = "real",
    dataset: DatasetOption = "cifar10",
    data: DataOption = None,
    n: Annotated[
        int | None,
        typer.Option("--n", "--samples", help="Number of samples to time [default: 1024; pytorch-fid: 50000]."),
    ] = None,
    batch: BatchOption = 500,
    compile: CompileOption = False,
    results: Annotated[Path | None, rows_option("speed.csv")] = None,
    device: DeviceOption = "auto",
) -> None:
    """Measure the speed of sampling or of evaluating, in images a second, beside another program's.

    A CPU needs small numbers: `tt speed --against diffusers --n 20 --batch 20 --nfe 2`.
    """
    from tt_lib.errors import check_range, choose
    from tt_lib.metrics.evaluate import MOST
    from tt_lib.rows import SPEED_COLUMNS, SPEED_KEY, write_rows
    from tt_lib.study import speed as study
    from tt_lib.study.cells import Cell
    from tt_lib.study.workbench import make_bench

    choose("peer", against, SAMPLES)
    n = SAMPLES[against] if n is None else n
    check_range("n", n, 1, MOST)
    path = results_file(results, "speed.csv", SPEED_COLUMNS)
    bench, cell = make_bench(model, pick_device(device), batch=batch, compile=compile), Cell("ddim", "uniform", nfe)
    if against == "diffusers":
        rows = study.measure_against_diffusers(bench, steps=nfe, n=n, compiled=compile, tell=say)
    else:
        pictures = bench.tuning_images(source, images, dataset, data)
        with tempfile.TemporaryDirectory() as folder:
            rows = study.measure_against_pytorch_fid(
                bench, pictures, Path(folder), cell=cell, n=n, compiled=compile, tell=say
            )
    write_rows(path, rows, SPEED_COLUMNS, SPEED_KEY)
    for row in rows:
        say(f"{row['what']}: {row['ours']} against {row['peer']} {row['unit']}, ratio {row['ratio']}")
    say(f"{len(rows)} rows written to {path}")
