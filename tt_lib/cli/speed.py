"""``tt speed``: what tuning, sampling and evaluating cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tt_lib.cli.shared import DataOption, DeviceOption, pick_device, say


def speed(
    model: Annotated[str, typer.Option(help="A model folder, a shipped model or its data set.")] = "cifar10",
    nfe: Annotated[int, typer.Option(help="Network evaluations for an image.")] = 10,
    features: Annotated[str, typer.Option(help="Features of the evaluation.")] = "cifar10-resnet",
    optimiser: Annotated[str, typer.Option(help="Of the tuning: adam (the authors') or search.")] = "search",
    images: Annotated[int, typer.Option(help="Images to tune on.")] = 256,
    source: Annotated[str, typer.Option(help="real (training images) or generated (by the network itself).")] = "real",
    dataset: Annotated[str, typer.Option(help="Data set of the real images: cifar10 or digits.")] = "cifar10",
    data: DataOption = None,
    n: Annotated[int, typer.Option(help="Samples to time.")] = 10_000,
    batch: Annotated[int, typer.Option(help="Images at a time.")] = 500,
    compile: Annotated[bool, typer.Option("--compile", help="torch.compile the network (on a GPU).")] = False,
    results: Annotated[
        Path | None, typer.Option(help="File to add the rows to [default: data/results/speed.csv].")
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Measure seconds of tuning, and images a second of sampling and of evaluating, as rows.

    On a CPU ask for little: `tt speed --source generated --images 2 --n 20 --batch 20 --nfe 2`.
    """
    from tt_lib.bench import Cell, make_bench
    from tt_lib.metrics.features import load_feature_extractor
    from tt_lib.results import SPEED_COLUMNS, SPEED_KEY, results_folder, write_rows
    from tt_lib.speed import measure_speed

    where = pick_device(device)
    extractor = load_feature_extractor(features, None, where)
    bench = make_bench(model, where, batch=batch, compile=compile)
    pictures = bench.tuning_images(source, images, dataset, str(data) if data else None)
    rows = measure_speed(
        bench, extractor, pictures, source, cell=Cell("ddim", "uniform", nfe), n=n, optimiser=optimiser, tell=say
    )
    path = results or results_folder() / "speed.csv"
    write_rows(path, rows, SPEED_COLUMNS, SPEED_KEY)
    for row in rows:
        peer = f" against {row['peer']}" if row["peer"] != "" else ""
        say(f"{row['what']}: {row['ours']}{peer} {row['unit']}")
    say(f"{len(rows)} rows written to {path}")
