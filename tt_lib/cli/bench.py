"""``tt bench``: what the library costs beside the network, and beside diffusers; how near the network is to the device's limits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tt_lib.cli.sampler import BatchOption
from tt_lib.cli.shared import DeviceOption, pick_device, place, say

if TYPE_CHECKING:
    import torch


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
    roofline: Annotated[
        bool, typer.Option("--roofline", help="Instead: TFLOP/s of the model, of --network and of Inception, beside what the device does at best.")
    ] = False,
    network: Annotated[
        list[str] | None, typer.Option(help="For --roofline also this one with random weights: ddpm-cifar10-32 or ddpm-celebahq-256; may be repeated.")
    ] = None,
    large_batch: Annotated[int, typer.Option(help="Images at a time of a 256x256 network.")] = 32,
    inception: Annotated[bool, typer.Option("--inception", help="For --roofline also Inception-2015.")] = False,
    results: Annotated[
        Path | None, typer.Option(help="File to add the rows to [default: data/results/speed.csv].", callback=place)
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Measure what solver and engine add to the network's time, and images a second beside diffusers; or the roofline.

    On a CPU ask for little: `tt bench --nfe 5 --batch 8 --n 16`.
    """
    from tt_lib.bench import Cell, make_bench
    from tt_lib.benchmarks import measure_against_diffusers, measure_overhead
    from tt_lib.results import SPEED_COLUMNS, SPEED_KEY, results_folder, write_rows

    where = pick_device(device)
    if roofline:
        rows = _roofline(model, network or [], batch, large_batch, inception, repeats, compile, where)
    else:
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


def _roofline(
    model: str, network: list[str], batch: int, large_batch: int, inception: bool, repeats: int, compile: bool, where: torch.device
) -> list[dict[str, Any]]:
    import tempfile

    import torch

    from tt_lib.errors import BadValue
    from tt_lib.metrics.fast import make_fast
    from tt_lib.models import load_model
    from tt_lib.roofline import count_flops, make_network, measure_roofline
    from tt_lib.speed_fid import inception_features, inception_weights

    if min(batch, large_batch) < 1:
        raise BadValue(f"a batch must be at least 1, got {min(batch, large_batch)}")
    loaded = load_model(model, where)
    networks = {loaded.name: (loaded.network, batch)}
    for name in network:
        made = make_network(name)
        networks[name] = (made, batch if made.config["sample_size"] <= 64 else large_batch)
    extra = None
    if inception:
        with tempfile.TemporaryDirectory() as folder:
            features = inception_features(inception_weights(Path(folder))[0], where)
        flops = count_flops(features.network, torch.empty(1, 3, 32, 32, dtype=torch.uint8))
        extra = (make_fast(features, batch, compile) if where.type == "cuda" else features, flops, batch)
    return measure_roofline(networks, where, compiled=compile, inception=extra, repeats=repeats, tell=say)
