"""``tt speed``: what tuning, sampling and evaluating cost, and what they cost elsewhere."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tt_lib.cli.app import DataOption, DeviceOption, pick_device, pick_devices, place, say
from tt_lib.cli.sampler import BatchOption

if TYPE_CHECKING:
    import torch

    from tt_lib.metrics.world import World
    from tt_lib.study.cells import Cell
    from tt_lib.study.workbench import Bench


AGAINST = ("pytorch-fid", "authors", "one-process")


def speed(
    model: Annotated[str, typer.Option(help="A model folder, a shipped model or its data set.")] = "cifar10",
    against: Annotated[
        str | None,
        typer.Option(
            help="pytorch-fid: an evaluation, against PNG files and pytorch-fid's command. authors: tuning in one batch, against the "
            "authors' procedure. one-process (under torchrun): an evaluation by all processes, against one. [default: our own speeds]"
        ),
    ] = None,
    nfe: Annotated[int, typer.Option(help="Network evaluations for an image.")] = 10,
    features: Annotated[
        str, typer.Option(help="Features of the evaluation (pytorch-fid's are inception-2015).")
    ] = "cifar10-resnet",
    optimiser: Annotated[str, typer.Option(help="Of the tuning: adam (the authors') or search.")] = "search",
    iterations: Annotated[int, typer.Option(help="Of the authors' Adam, for each step.")] = 500,
    images: Annotated[
        int | None,
        typer.Option(
            help="Images to tune on, and with --against authors as many held out [default: 256]; else those of the reference [default: 10000]."
        ),
    ] = None,
    source: Annotated[str, typer.Option(help="real (training images) or generated (by the network itself).")] = "real",
    dataset: Annotated[str, typer.Option(help="Data set of the real images: cifar10 or digits.")] = "cifar10",
    data: DataOption = None,
    n: Annotated[
        int | None,
        typer.Option(
            "--n",
            "--samples",
            help="Samples to time [default: 10000; against pytorch-fid and one-process 50000; authors: 0, no distance].",
        ),
    ] = None,
    batch: BatchOption = 500,
    compile: Annotated[bool, typer.Option("--compile", help="torch.compile the network (on a GPU).")] = False,
    results: Annotated[
        Path | None, typer.Option(help="File to add the rows to [default: data/results/speed.csv].", callback=place)
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Measure seconds of tuning, and images a second of sampling and of evaluating, as rows.

    On a CPU ask for little: `tt speed --source generated --images 2 --n 20 --batch 20 --nfe 2`.
    """
    from tt_lib.errors import BadValue, choose
    from tt_lib.rows import SPEED_COLUMNS, SPEED_KEY, results_folder, write_rows
    from tt_lib.study.cells import Cell
    from tt_lib.study.workbench import make_bench

    if against is not None:
        choose("peer", against, AGAINST)
    world, where = pick_devices(device) if against == "one-process" else (None, pick_device(device))
    if iterations < 1:
        raise BadValue(f"iterations must be at least 1, got {iterations}")
    bench = make_bench(model, where, batch=batch, compile=compile)
    count = images or (256 if against in (None, "authors") else 10_000)
    pictures = bench.tuning_images(
        source, 2 * count if against == "authors" else count, dataset, str(data) if data else None
    )
    cell = Cell("ddim", "uniform", nfe)
    with tempfile.TemporaryDirectory() as folder:
        if against == "pytorch-fid":
            from tt_lib.study.speed import measure_against_pytorch_fid

            rows = measure_against_pytorch_fid(
                bench, pictures, Path(folder), cell=cell, n=50_000 if n is None else n, compiled=compile, tell=say
            )
        elif against == "authors":
            rows = _authors(bench, pictures, source, cell, iterations, features, dataset, n or 0)
        elif world is not None:
            rows = _one_process(
                bench, pictures, cell, features, world, 50_000 if n is None else n, Path(folder), compile
            )
        else:
            rows = _own(bench, pictures, source, cell, optimiser, features, where, 10_000 if n is None else n)
    if not rows:
        return
    path = results or results_folder() / "speed.csv"
    write_rows(path, rows, SPEED_COLUMNS, SPEED_KEY)
    for row in rows:
        peer = f" against {row['peer']}" if row["peer"] != "" else ""
        ratio = f", ratio {row['ratio']}" if row["peer"] != "" else ""
        say(f"{row['what']}: {row['ours']}{peer} {row['unit']}{ratio}")
    say(f"{len(rows)} rows written to {path}")


def _own(
    bench: Bench,
    images: torch.Tensor,
    source: str,
    cell: Cell,
    optimiser: str,
    features: str,
    where: torch.device,
    n: int,
) -> list[dict[str, Any]]:
    from tt_lib.metrics.features import load_feature_extractor
    from tt_lib.study.speed import measure_speed

    extractor = load_feature_extractor(features, None, where)
    return measure_speed(bench, extractor, images, source, cell=cell, n=n, optimiser=optimiser, tell=say)


def _authors(
    bench: Bench, images: torch.Tensor, source: str, cell: Cell, iterations: int, features: str, dataset: str, n: int
) -> list[dict[str, Any]]:
    from tt_lib.metrics.features import load_feature_extractor
    from tt_lib.metrics.reference import load_reference
    from tt_lib.study.speed import measure_against_authors

    extractor = load_feature_extractor(features, None, bench.device) if n else None
    reference = load_reference(dataset, "train", extractor) if extractor else None
    return measure_against_authors(
        bench, images, source, cell=cell, iterations=iterations, features=extractor, reference=reference, n=n, tell=say
    )


def _one_process(
    bench: Bench, images: torch.Tensor, cell: Cell, features: str, world: World, n: int, folder: Path, compile: bool
) -> list[dict[str, Any]]:
    from tt_lib.metrics.features import INCEPTION, load_feature_extractor, make_fast
    from tt_lib.study.speed import inception_features, inception_weights, measure_against_one_process, statistics_of

    on_gpu = bench.device.type == "cuda"
    how = f"sampling in {'bfloat16' if on_gpu else 'float32'}{', compiled' if compile else ''}"
    if features == INCEPTION:
        weights, which = inception_weights(folder)
        extractor = inception_features(weights, bench.device)
        extractor = make_fast(extractor, bench.batch, compile) if on_gpu else extractor
        how += f", {which}{' in float16' if on_gpu else ''}"
    else:
        extractor = load_feature_extractor(features, None, bench.device)
    reference = statistics_of(images, extractor, bench.batch)
    return measure_against_one_process(bench, extractor, reference, folder, world, cell=cell, n=n, how=how, tell=say)


# FOLDED tt_lib.cli.speed
# ``tt bench``: what the library costs beside the network, and beside diffusers.


def bench(
    model: Annotated[str, typer.Option(help="A model folder, a shipped model or its data set.")] = "cifar10",
    solver: Annotated[
        list[str] | None,
        typer.Option(help="Solver whose overhead is measured; may be repeated [default: ddim, dpmpp-2m, unipc]."),
    ] = None,
    nfe: Annotated[int, typer.Option(help="Network evaluations for an image.")] = 10,
    batch: BatchOption = 256,
    n: Annotated[int, typer.Option(help="Images that are sampled to compare with diffusers.")] = 1024,
    repeats: Annotated[int, typer.Option(help="Runs of each; the fastest counts.")] = 3,
    compile: Annotated[
        bool, typer.Option("--compile", help="torch.compile our network (diffusers' runs eagerly).")
    ] = False,
    results: Annotated[
        Path | None, typer.Option(help="File to add the rows to [default: data/results/speed.csv].", callback=place)
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Measure what solver and engine add to the network's time, and images a second beside diffusers.

    On a CPU ask for little: `tt bench --nfe 5 --batch 8 --n 16`.
    """
    from tt_lib.rows import SPEED_COLUMNS, SPEED_KEY, results_folder, write_rows
    from tt_lib.study.cells import Cell
    from tt_lib.study.speed import measure_against_diffusers, measure_overhead
    from tt_lib.study.workbench import make_bench

    where = pick_device(device)
    bf16 = where.type == "cuda"
    workbench = make_bench(model, where, batch=batch, bf16=bf16, compile=compile)
    cells = [Cell(name, "uniform", nfe) for name in solver or ("ddim", "dpmpp-2m", "unipc")]
    rows = measure_overhead(workbench, cells, compiled=compile, repeats=repeats, tell=say)
    rows += measure_against_diffusers(workbench, steps=nfe, n=n, bf16=bf16, compiled=compile, repeats=repeats, tell=say)
    path = results or results_folder() / "speed.csv"
    write_rows(path, rows, SPEED_COLUMNS, SPEED_KEY)
    for row in rows:
        peer = f" against {row['peer']} {row['unit']}, ratio {row['ratio']}" if row["peer"] != "" else f" {row['unit']}"
        say(f"{row['what']}: {row['ours']}{peer}")
    say(f"{len(rows)} rows written to {path}")
