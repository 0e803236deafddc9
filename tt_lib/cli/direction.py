"""``tt direction``: how far from the right direction a sampler moves, step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tt_lib.cli.sampler import BatchOption
from tt_lib.cli.shared import DeviceOption, ForceOption, SeedOption, pick_device, place, png_place, progress_bar, say

PROFILE_CAPTION = (
    "Direction error of each step, and the distance from the true trajectory that has gathered, against the time at which "
    "the step begins, with 95 % intervals."
)
PROFILE_ALT = "Relative direction error and accumulated truncation error over the steps, a line for each timing."
SCATTER_CAPTION = "Fréchet distance of each sampler against four measures of how far it strays from the true trajectory."
SCATTER_ALT = "Four scatter plots, a point for each sampler, coloured by its timing."


def direction(
    model: Annotated[str, typer.Option(help="A model folder, a shipped model or its data set.")] = "cifar10",
    solver: Annotated[list[str] | None, typer.Option(help="Solver; may be repeated [default: ddim].")] = None,
    grid: Annotated[list[str] | None, typer.Option(help="Grid; may be repeated [default: uniform].")] = None,
    nfe: Annotated[list[int] | None, typer.Option(help="Network evaluations; may be repeated [default: 10].")] = None,
    timing: Annotated[
        list[str] | None, typer.Option(help="untuned, or a shipped timing; may be repeated [default: untuned].")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A table's TOML file: its deterministic cells, in place of the options above.")
    ] = None,
    most_nfe: Annotated[int, typer.Option(help="With --config: leave out cells of more evaluations.")] = 20,
    n: Annotated[int, typer.Option(help="Samples, each its own trajectory.")] = 64,
    seed: SeedOption = 0,
    substeps: Annotated[int, typer.Option(help="Steps of the fine solution in each interval; even.")] = 16,
    batch: BatchOption = 64,
    bf16: Annotated[bool, typer.Option("--bf16", help="Run the network in bfloat16: fast, and less exact.")] = False,
    compile: Annotated[bool, typer.Option("--compile", help="torch.compile the network (on a GPU).")] = False,
    figure: Annotated[Path | None, typer.Option(help="PNG to draw.", callback=png_place)] = None,
    results: Annotated[
        Path | None, typer.Option(help="File to add the rows to [default: data/results/direction.csv].", callback=place)
    ] = None,
    device: DeviceOption = "auto",
    work: Annotated[Path, typer.Option(help="Folder for the locks of samplers that are being measured.")] = Path("runs/direction"),
    force: ForceOption = False,
) -> None:
    """Measure the direction error of each step of samplers: angle, relative, local and accumulated.

    The right direction is the mean of eps along a fine solution. What has rows is not measured again, so a killed run goes on
    when it is started again, and several may be started, one for each GPU. With --config samplers whose timing is not tuned yet are
    left out; with --figure, too, the figure and rows of correlation.csv compare the errors with the rows of fd.csv.

    Example: `tt direction --nfe 5 --timing untuned --timing truncation-parallel --n 4 --figure runs/direction.png`
    """
    from itertools import product

    from tt_lib.bench import Cell, make_bench
    from tt_lib.direction_study import JOINED, Protocol, measurable, order, run_directions
    from tt_lib.plots import save_figure
    from tt_lib.plots_direction import direction_profile
    from tt_lib.results import results_folder
    from tt_lib.tables import read_table

    spec = read_table(config) if config else None
    bench = make_bench(spec.model if spec else model, pick_device(device), batch=batch, bf16=bf16, compile=compile)
    path = results or results_folder() / "direction.csv"
    if spec:
        cells, untimed = measurable(bench, spec.cells, most_nfe)
        if untimed:
            say(f"{untimed} samplers are left out: their timing is not there yet; `tt table --config {config}` tunes them")
    else:
        lists = (solver or ["ddim"], grid or ["uniform"], nfe or [10], timing or ["untuned"])
        cells = [Cell(*names) for names in product(*lists)]
    cells.sort(key=order)
    with progress_bar("direction") as report:
        rows = run_directions(bench, cells, Protocol(n, seed, substeps), path, work=work, force=force, progress=report)
    measured = len(rows[JOINED].drop_duplicates())
    say(f"{measured} samplers in {path}")
    if measured < len(cells):
        say(f"{len(cells) - measured} more are being measured by another process; start this again when it has ended")
    elif figure and spec:
        _compare(rows, spec, bench.model.name, path.parent, figure)
    elif figure:
        say(str(save_figure(direction_profile(rows), figure, PROFILE_CAPTION, PROFILE_ALT)))


def _compare(rows, spec, model: str, folder: Path, figure: Path) -> None:
    """Write the rank correlations with the table's distances in each of its features, and the figure of the first."""
    from tt_lib.changes import distances
    from tt_lib.direction_study import beside_distances, correlations
    from tt_lib.metrics.features import metric_of
    from tt_lib.plots import save_figure
    from tt_lib.plots_direction import direction_against_distance
    from tt_lib.results import CORRELATION_COLUMNS, CORRELATION_KEY, FD_COLUMNS, read_rows, write_rows

    frame = read_rows(folder / "fd.csv", FD_COLUMNS)
    for features in (spec.features, *spec.also):
        joined = beside_distances(rows, distances(frame, features, spec.n, model))
        if features == spec.features:
            say(str(save_figure(direction_against_distance(joined), figure, SCATTER_CAPTION, SCATTER_ALT)))
        found = correlations(joined, distance="Fréchet distance" if features == spec.features else metric_of(features))
        write_rows(folder / "correlation.csv", found, CORRELATION_COLUMNS, CORRELATION_KEY)
        for row in found:
            say(f"{row['what']}, {row['among']}: {row['spearman']} [{row['low']}, {row['high']}], {row['cells']} samplers")
