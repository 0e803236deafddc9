"""``tt speed``: what tuning, sampling and evaluating cost, and what they cost elsewhere."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from tt_lib.cli.app import DataOption, DatasetOption, DeviceOption, pick_devices, place, results_file, say
from tt_lib.cli.sampler import BatchOption, CompileOption

SAMPLES = {None: 10_000, "diffusers": 1024, "pytorch-fid": 50_000, "authors": 0, "one-process": 50_000}
"""What can be measured, and of how many samples."""


def speed(
    model: Annotated[str, typer.Option(help="A model folder, a shipped model or its data set.")] = "cifar10",
    against: Annotated[
        str | None,
        typer.Option(
            help="diffusers: sampling, against its DDIMPipeline. pytorch-fid: an evaluation, against PNG files and its "
            "command. authors: tuning in one batch, against the authors' procedure. one-process (under torchrun): an "
            "evaluation by all processes, against one. [default: our own speeds, and the overhead beside the network]"
        ),
    ] = None,
    nfe: Annotated[int, typer.Option(help="Network evaluations for an image.")] = 10,
    features: Annotated[str, typer.Option(help="Features of an evaluation.")] = "cifar10-resnet",
    iterations: Annotated[int, typer.Option(help="Of the authors' Adam, for each step.")] = 500,
    images: Annotated[
        int | None,
        typer.Option(
            help="Images to tune on, and with --against authors as many held out [default: 256]; else those of the "
            "reference [default: 10000]."
        ),
    ] = None,
    source: Annotated[str, typer.Option(help="real (training images) or generated (by the network itself).")] = "real",
    dataset: DatasetOption = "cifar10",
    data: DataOption = None,
    n: Annotated[
        int | None,
        typer.Option(
            "--n",
            "--samples",
            help="Samples to time [default: 10000; diffusers: 1024; pytorch-fid and one-process: 50000].",
        ),
    ] = None,
    batch: BatchOption = 500,
    compile: CompileOption = False,
    results: Annotated[
        Path | None,
        typer.Option(help="File to add the rows to [default: data/results/speed.csv].", callback=place(".csv")),
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Measure seconds of tuning, and images a second of sampling and of evaluating, as rows.

    On a CPU ask for little: `tt speed --source generated --images 2 --n 20 --batch 20 --nfe 2`.
    """
    from tt_lib.datasets import to_uint8
    from tt_lib.errors import BadValue, choose
    from tt_lib.metrics.evaluate import MOST
    from tt_lib.metrics.features import load_features, statistics_of
    from tt_lib.metrics.reference import Metric
    from tt_lib.rows import SPEED_COLUMNS, SPEED_KEY, write_rows
    from tt_lib.study import speed as study
    from tt_lib.study.cells import Cell
    from tt_lib.study.workbench import make_bench

    if against is not None:
        choose("peer", against, [name for name in SAMPLES if name])
    n = SAMPLES[against] if n is None else n
    if n > MOST:
        raise BadValue(f"n must be at most {MOST:,}, got {n:,}")
    if images is None:
        images = 10_000 if against in ("pytorch-fid", "one-process") else 256
    if iterations < 1:
        raise BadValue(f"iterations must be at least 1, got {iterations}")
    path = results_file(results, "speed.csv", SPEED_COLUMNS)
    world, where = pick_devices(device)
    bench, cell = make_bench(model, where, batch=batch, compile=compile), Cell("ddim", "uniform", nfe)
    common: dict[str, Any] = {"n": n, "tell": say if world.main else lambda text: None}
    with tempfile.TemporaryDirectory() as folder:
        if against == "diffusers":
            rows = study.measure_against_diffusers(bench, steps=nfe, compiled=compile, **common)
        elif against == "pytorch-fid":
            pictures = bench.tuning_images(source, images, dataset, data)
            rows = study.measure_against_pytorch_fid(
                bench, pictures, Path(folder), cell=cell, compiled=compile, **common
            )
        elif against == "authors":
            pictures = bench.tuning_images(source, 2 * images, dataset, data)
            rows = study.measure_against_authors(
                bench, pictures, source, cell=cell, iterations=iterations, tell=common["tell"]
            )
        elif against == "one-process":
            extractor = load_features(features, where)
            pictures = to_uint8(bench.tuning_images(source, images, dataset, data))
            metric = Metric(extractor, statistics_of(pictures, extractor, batch))
            rows = study.measure_against_one_process(
                bench, metric, Path(folder), world, cell=cell, compiled=compile, **common
            )
        else:
            pictures, extractor = bench.tuning_images(source, images, dataset, data), load_features(features, where)
            rows = study.measure_own(bench, extractor, pictures, source, cell=cell, compiled=compile, **common)
    if not rows:
        return
    write_rows(path, rows, SPEED_COLUMNS, SPEED_KEY)
    for row in rows:
        peer = f" against {row['peer']}" if row["peer"] != "" else ""
        ratio = f", ratio {row['ratio']}" if row["peer"] != "" else ""
        say(f"{row['what']}: {row['ours']}{peer} {row['unit']}{ratio}")
    say(f"{len(rows)} rows written to {path}")
