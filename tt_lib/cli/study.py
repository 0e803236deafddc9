"""``tt table`` and ``tt floor``: many samplers, and what a perfect one would score."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Annotated

import typer

from tt_lib.cli.app import (
    DataOption,
    DeviceOption,
    FastFeaturesOption,
    ForceOption,
    SeedOption,
    console,
    faster,
    pick_device,
    pick_devices,
    place,
    png_place,
    progress_bar,
    say,
)
from tt_lib.cli.sampler import BatchOption

ResultsOption = Annotated[
    Path | None, typer.Option(help="File to add the rows to [default: data/results/fd.csv].", callback=place)
]


def table(
    config: Annotated[
        Path, typer.Option(help="TOML file with the cells, or the name of a shipped one: spine, timings, paper.")
    ],
    data: DataOption = None,
    results: ResultsOption = None,
    work: Annotated[Path, typer.Option(help="Folder for the state of unfinished cells.")] = Path("runs/table"),
    batch: BatchOption = 500,
    n: Annotated[
        int | None, typer.Option("--n", "--samples", help="Samples for each cell, in place of the file's.")
    ] = None,
    tune_only: Annotated[
        bool, typer.Option("--tune-only", help="Tune the timings that are not there yet, measure nothing.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the cells, which are done, and the evaluations of the others.")
    ] = False,
    compile: Annotated[bool, typer.Option("--compile", help="torch.compile the network (on a GPU).")] = False,
    fast_features: FastFeaturesOption = False,
    device: DeviceOption = "auto",
    force: ForceOption = False,
) -> None:
    """Tune and measure every cell of a table.

    Cells that have a row are skipped, so a killed table goes on when it is started again. Rows name the model and not its
    weights: after training one anew under an old name, give --force. On several
    GPUs either start it once for each, with `--device cuda:0`, `--device cuda:1`, ...: they share the cells; or once with
    `torchrun --nproc_per_node 2 -m tt_lib table ...`: they share the samples of each cell.
    """
    from dataclasses import replace

    from tt_lib.errors import BadValue, all_there
    from tt_lib.metrics.features import load_feature_extractor
    from tt_lib.metrics.reference import load_reference, load_reference_bank, load_yardstick
    from tt_lib.networks.unet import load_model
    from tt_lib.rows import results_folder
    from tt_lib.study.page import published_beside
    from tt_lib.study.tables import dry_run as dry_run_lines
    from tt_lib.study.tables import find_table, read_table, run_table, tune_table
    from tt_lib.study.workbench import make_bench

    spec = read_table(find_table(config))
    spec = replace(spec, n=n) if n is not None else spec
    if dry_run:
        for line in dry_run_lines(spec, load_model(spec.model).name, results or results_folder() / "fd.csv"):
            say(line)
        return
    world, where = pick_devices(device)
    features, bench = all_there(
        lambda: load_feature_extractor(spec.features, None, where),
        lambda: make_bench(spec.model, where, batch=batch, compile=compile),
    )
    reference = load_reference(spec.dataset, "train", features)
    bank = load_reference_bank(spec.dataset, "train", features) if spec.more else None
    features = faster(features, fast_features, batch, compile)
    if tune_only:
        if world.size > 1:
            raise BadValue("--tune-only is one process's work; start it without torchrun, once for each GPU")
        with progress_bar(f"tuning {config.stem}") as report:
            count = tune_table(
                spec, bench, features, reference, work, data=str(data) if data else None, progress=report
            )
        say(f"{count} timings tuned")
        return
    also = [load_yardstick(name, spec.dataset, where, more=spec.more) for name in spec.also]
    also = [replace(each, features=faster(each.features, fast_features, batch, compile)) for each in also]
    path = results or results_folder() / "fd.csv"
    with progress_bar(f"table {config.stem}") as report:
        rows = run_table(
            spec,
            bench,
            features,
            reference,
            path,
            work,
            data=str(data) if data else None,
            force=force,
            bank=bank,
            also=also,
            world=world,
            progress=report,
        )
    if not world.main:
        return
    for row in rows:
        console.print(
            f"{row['solver']} {row['grid']} {row['nfe']} {row['timing']}: "
            f"{row['metric']} {row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]{published_beside(row)}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    say(f"{len(rows)} rows written to {path}")


def floor(
    dataset: Annotated[str, typer.Option(help="cifar10 or digits.")] = "cifar10",
    features: Annotated[str, typer.Option(help="Features of the distance.")] = "cifar10-resnet",
    data: DataOption = None,
    results: ResultsOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Measure the floor: real test images against the training images' statistics, as a row."""
    from tt_lib.datasets import load_dataset
    from tt_lib.metrics.evaluate import SETS, floor_row
    from tt_lib.metrics.features import disjoint_sets, load_feature_extractor
    from tt_lib.metrics.reference import load_reference
    from tt_lib.rows import FD_COLUMNS, FD_KEY, results_folder, write_rows

    extractor = load_feature_extractor(features, None, pick_device(device))
    reference = load_reference(dataset, "train", extractor)
    images = load_dataset(dataset, "test", str(data) if data else None)
    row = floor_row(extractor, reference, dataset, disjoint_sets(images.pixels, extractor, SETS))
    write_rows(results or results_folder() / "fd.csv", [row], FD_COLUMNS, FD_KEY)
    console.print(
        f"floor, {row['metric']}, n {row['n']}: {row['value']:.4f} [{row['low']:.4f}, {row['high']:.4f}]",
        highlight=False,
    )


# FOLDED tt_lib.cli.study
# ``tt correlate``: whether distances in different features agree.


def correlate(
    features: Annotated[
        list[str] | None,
        typer.Option(
            help="Features, two or more times; every pair is compared [default: cifar10-resnet and cifar10-simclr]."
        ),
    ] = None,
    model: Annotated[str, typer.Option(help="Whose samplers; its name as the rows have it.")] = "cifar10-ddpm-w64",
    n: Annotated[int, typer.Option("--n", "--samples", help="Samples of the rows that are compared.")] = 50_000,
    results: Annotated[
        Path | None,
        typer.Option(
            help="fd.csv to read; rows go to correlation.csv beside it [default: data/results/fd.csv].", callback=place
        ),
    ] = None,
) -> None:
    """Compare the order in which different features put the samplers, as rows: Spearman's correlation with a 95 % interval.

    Among all samplers that were measured in both, among the untuned and among the tuned. Nothing is measured.
    """
    from tt_lib.errors import BadValue
    from tt_lib.rows import (
        CORRELATION_COLUMNS,
        CORRELATION_KEY,
        FD_COLUMNS,
        read_rows,
        results_folder,
        write_rows,
    )
    from tt_lib.study.compare import agreement

    names = features or ["cifar10-resnet", "cifar10-simclr"]
    if len(names) < 2:
        raise BadValue(f"two features or more are compared, got {names}")
    path = results or results_folder() / "fd.csv"
    distances = read_rows(path, FD_COLUMNS)
    found = [row for first, second in combinations(names, 2) for row in agreement(distances, first, second, model, n)]
    write_rows(path.parent / "correlation.csv", found, CORRELATION_COLUMNS, CORRELATION_KEY)
    for row in found:
        say(f"{row['what']}, {row['among']}: {row['spearman']} [{row['low']}, {row['high']}], {row['cells']} samplers")


# FOLDED tt_lib.cli.study
# ``tt demo``: the main job on the shipped weights, in a few minutes on a CPU.


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the table, the timing and the figures.")] = Path("runs/demo"),
    model: Annotated[str, typer.Option(help="A shipped model or a model folder.")] = "cifar10",
    n: Annotated[int, typer.Option(help="Images for each sampler, a multiple of 10.")] = 100,
    fine: Annotated[int, typer.Option(help="Images that are solved finely too.")] = 32,
    images: Annotated[int, typer.Option(help="Images to tune on, made by the network itself.")] = 4,
    record: Annotated[bool, typer.Option("--record", help="Add the time it took to data/results/speed.csv.")] = False,
    device: DeviceOption = "auto",
) -> None:
    """Sample CIFAR-10 images in 10 steps, tune the timing, sample again from the same noise, measure both.

    Writes `demo.csv`, `timing.json` and two figures to `--out`, and shows the table.
    """
    from tt_lib.metrics.features import load_feature_extractor
    from tt_lib.metrics.reference import load_reference
    from tt_lib.study.demo import demo as run
    from tt_lib.study.demo import write_demo
    from tt_lib.study.workbench import make_bench

    where = pick_device(device)
    bench = make_bench(model, where, batch=50)
    dataset = bench.model.card.get("dataset", "cifar10")
    features = load_feature_extractor(f"{dataset}-resnet", None, where)
    reference = load_reference(dataset, "train", features)
    with progress_bar("demo") as report:
        result = run(
            bench, features, reference, n=n, fine=fine, images=images, state=out / "tuning.state", progress=report
        )
    paths = write_demo(result, out)
    _show(result, features.metric, n)
    for path in paths:
        say(str(path))
    say(f"took {result.seconds:.0f} s")
    if record:
        _record(result.seconds, where)


def _show(result, metric: str, n: int) -> None:
    from rich.table import Table

    table = Table(title="The same noise, the same number of evaluations", caption=_caption(n))
    for heading in ("sampler", "evaluations", "distance from the fine solution", f"{metric}, n = {n}"):
        table.add_column(heading, justify="left" if heading == "sampler" else "right")
    for row in result.table.to_dict("records"):
        distance = f"{row['distance']:.4f} [{row['distance_low']:.4f}, {row['distance_high']:.4f}]"
        frechet = f"{row['fd']:.2f} [{row['fd_low']:.2f}, {row['fd_high']:.2f}]"
        table.add_row(row["sampler"], str(row["nfe"]), distance, frechet)
    console.print(table)


def _caption(n: int) -> str:
    return (
        f"Means with 95 % intervals; smaller is better. A Fréchet distance of {n} images is far too large: compare it "
        "only within this table. data/results/fd.csv has those of 50,000."
    )


def _record(seconds: float, device) -> None:
    from tt_lib.rows import SPEED_COLUMNS, SPEED_KEY, results_folder, write_rows
    from tt_lib.study.speed import speed_row

    row = speed_row("tt demo", round(seconds, 1), None, "s", device)
    write_rows(results_folder() / "speed.csv", [row], SPEED_COLUMNS, SPEED_KEY)


# FOLDED tt_lib.cli.study
# ``tt direction``: how far from the right direction a sampler moves, step by step.


PROFILE_CAPTION = (
    "Direction error of each step, and the distance from the true trajectory that has gathered, against the time at which "
    "the step begins, with 95 % intervals."
)
PROFILE_ALT = "Relative direction error and accumulated truncation error over the steps, a line for each timing."
SCATTER_CAPTION = (
    "Fréchet distance of each sampler against four measures of how far it strays from the true trajectory."
)
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
    work: Annotated[Path, typer.Option(help="Folder for the locks of samplers that are being measured.")] = Path(
        "runs/direction"
    ),
    force: ForceOption = False,
) -> None:
    """Measure the direction error of each step of samplers: angle, relative, local and accumulated.

    The right direction is the mean of eps along a fine solution. What has rows is not measured again, so a killed run goes on
    when it is started again, and several may be started, one for each GPU. With --config samplers whose timing is not tuned yet are
    left out; with --figure, too, the figure and rows of correlation.csv compare the errors with the rows of fd.csv.

    Example: `tt direction --nfe 5 --timing untuned --timing truncation-parallel --n 4 --figure runs/direction.png`
    """
    from itertools import product

    from tt_lib.figures.results import direction_profile
    from tt_lib.figures.style import save_figure
    from tt_lib.rows import results_folder
    from tt_lib.study.cells import Cell
    from tt_lib.study.compare import JOINED
    from tt_lib.study.directions import Protocol, measurable, order, run_directions
    from tt_lib.study.tables import read_table
    from tt_lib.study.workbench import make_bench

    spec = read_table(config) if config else None
    bench = make_bench(spec.model if spec else model, pick_device(device), batch=batch, bf16=bf16, compile=compile)
    path = results or results_folder() / "direction.csv"
    if spec:
        cells, untimed = measurable(bench, spec.cells, most_nfe)
        if untimed:
            say(
                f"{untimed} samplers are left out: their timing is not there yet; `tt table --config {config}` tunes them"
            )
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
    from tt_lib.figures.results import direction_against_distance
    from tt_lib.figures.style import save_figure
    from tt_lib.metrics.features import metric_of
    from tt_lib.rows import CORRELATION_COLUMNS, CORRELATION_KEY, FD_COLUMNS, read_rows, write_rows
    from tt_lib.study.compare import beside_distances, correlations, distances

    frame = read_rows(folder / "fd.csv", FD_COLUMNS)
    for features in (spec.features, *spec.also):
        joined = beside_distances(rows, distances(frame, features, spec.n, model))
        if features == spec.features:
            say(str(save_figure(direction_against_distance(joined), figure, SCATTER_CAPTION, SCATTER_ALT)))
        found = correlations(joined, distance="Fréchet distance" if features == spec.features else metric_of(features))
        write_rows(folder / "correlation.csv", found, CORRELATION_COLUMNS, CORRELATION_KEY)
        for row in found:
            say(
                f"{row['what']}, {row['among']}: {row['spearman']} [{row['low']}, {row['high']}], {row['cells']} samplers"
            )
