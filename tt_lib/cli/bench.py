"""``tt bench``: what the library costs beside the network, and beside diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tt_lib.cli.sampler import BatchOption
from tt_lib.cli.shared import DeviceOption, pick_device, place, say


def bench(
    model: Annotated[str, typer.Option(help="A model folder, a shipped model or its data set.")] = "cifar10",
    solver: Annotated[
        list[str] | None, typer.Option(help="Solver whose overhead is measured; may be repeated [default: ddim, dpmpp-2m, unipc].")
    ] = None,
    nfe: Annotated[int, typer.Option(help="Network evaluations for an image.")] = 10,
    batch: BatchOption = 256,
    n: Annotated[int, typer.Option(help="Images that are sampled to compare with diffusers.")] = 1024,
    repeats: Annotated[int, typer.Option(help="Runs of each; the fastest counts.")] = 3,
    compile: Annotated[bool, typer.Option("--compile", help="torch.compile our network (diffusers' runs eagerly).")] = False,
    results: Annotated[
        Path | None, typer.Option(help="File to add the rows to [default: data/results/speed.csv].", callback=place)
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Measure what solver and engine add to the network's time, and images a second beside diffusers.

    On a CPU ask for little: `tt bench --nfe 5 --batch 8 --n 16`.
    """
    from tt_lib.bench import Cell, make_bench
    from tt_lib.benchmarks import measure_against_diffusers, measure_overhead
    from tt_lib.results import SPEED_COLUMNS, SPEED_KEY, results_folder, write_rows

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
