"""``tt estimate``: what many samples of a large network would take and cost on many GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tt_lib.cli.shared import say


def estimate(
    network: Annotated[str, typer.Option(help="A network with a row of `tt bench --roofline`, such as ddpm-celebahq-256.")] = "ddpm-celebahq-256",
    images: Annotated[int, typer.Option(help="Samples.")] = 50_000,
    nfe: Annotated[int, typer.Option(help="Network evaluations for an image.")] = 10,
    gpus: Annotated[int, typer.Option(help="How many, of the kind that the rows were measured on.")] = 64,
    price: Annotated[float, typer.Option(help="Of one GPU for one hour, in your currency.")] = 3.0,
    start: Annotated[float, typer.Option(help="Seconds until all GPUs sample: loading, compiling.")] = 180.0,
    device_name: Annotated[str | None, typer.Option(help="The device as the rows name it [default: that of the network's last row].")] = None,
    results: Annotated[Path | None, typer.Option(help="File with the rows [default: data/results/speed.csv].")] = None,
) -> None:
    """Estimate time and cost of sampling and evaluating on many GPUs from measured rows, and say what is assumed."""
    from tt_lib import cost
    from tt_lib.results import results_folder

    found = cost.estimate(
        results or results_folder() / "speed.csv", network=network, images=images, nfe=nfe, gpus=gpus, price=price,
        start=start, device=device_name,
    )  # fmt: skip
    say(f"{images} images of {network} in {nfe} evaluations each on {gpus} GPUs: {found.seconds / 60:.1f} minutes, "
        f"{found.gpu_hours:.2f} GPU hours, cost {found.cost:.2f} at {price:g} an hour")  # fmt: skip
    for line in found.said:
        say(f"- {line}")
