"""``tt correlate``: whether distances in different features agree."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Annotated

import typer

from tt_lib.cli.shared import place, say


def correlate(
    features: Annotated[
        list[str] | None,
        typer.Option(help="Features, two or more times; every pair is compared [default: cifar10-resnet and cifar10-simclr]."),
    ] = None,
    model: Annotated[str, typer.Option(help="Whose samplers; its name as the rows have it.")] = "cifar10-ddpm-w64",
    n: Annotated[int, typer.Option("--n", "--samples", help="Samples of the rows that are compared.")] = 50_000,
    results: Annotated[
        Path | None, typer.Option(help="fd.csv to read; rows go to correlation.csv beside it [default: data/results/fd.csv].", callback=place)
    ] = None,
) -> None:
    """Compare the order in which different features put the samplers, as rows: Spearman's correlation with a 95 % interval.

    Among all samplers that were measured in both, among the untuned and among the tuned. Nothing is measured.
    """
    from tt_lib.agreement import agreement
    from tt_lib.errors import BadValue
    from tt_lib.results import CORRELATION_COLUMNS, CORRELATION_KEY, FD_COLUMNS, read_rows, results_folder, write_rows

    names = features or ["cifar10-resnet", "cifar10-simclr"]
    if len(names) < 2:
        raise BadValue(f"two features or more are compared, got {names}")
    path = results or results_folder() / "fd.csv"
    distances = read_rows(path, FD_COLUMNS)
    found = [row for first, second in combinations(names, 2) for row in agreement(distances, first, second, model, n)]
    write_rows(path.parent / "correlation.csv", found, CORRELATION_COLUMNS, CORRELATION_KEY)
    for row in found:
        say(f"{row['what']}, {row['among']}: {row['spearman']} [{row['low']}, {row['high']}], {row['cells']} samplers")
