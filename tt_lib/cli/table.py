"""``tt table`` and ``tt floor``: many samplers, and what a perfect one would score."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tt_lib.cli.sampler import BatchOption
from tt_lib.cli.shared import (
    DataOption,
    DeviceOption,
    FastFeaturesOption,
    ForceOption,
    console,
    faster,
    pick_device,
    pick_devices,
    place,
    progress_bar,
    say,
)

ResultsOption = Annotated[Path | None, typer.Option(help="File to add the rows to [default: data/results/fd.csv].", callback=place)]


def table(
    config: Annotated[Path, typer.Option(help="TOML file with the cells, or the name of a shipped one: spine, timings, paper.")],
    data: DataOption = None,
    results: ResultsOption = None,
    work: Annotated[Path, typer.Option(help="Folder for the state of unfinished cells.")] = Path("runs/table"),
    batch: BatchOption = 500,
    n: Annotated[int | None, typer.Option("--n", "--samples", help="Samples for each cell, in place of the file's.")] = None,
    tune_only: Annotated[bool, typer.Option("--tune-only", help="Tune the timings that are not there yet, measure nothing.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the cells, which are done, and the evaluations of the others.")] = False,
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

    from tt_lib.bench import make_bench
    from tt_lib.errors import BadValue, all_there
    from tt_lib.metrics.bank import load_reference_bank
    from tt_lib.metrics.features import load_feature_extractor
    from tt_lib.metrics.reference import load_reference
    from tt_lib.metrics.yardsticks import load_yardstick
    from tt_lib.models import load_model
    from tt_lib.published import published_beside
    from tt_lib.results import results_folder
    from tt_lib.tables import dry_run as dry_run_lines
    from tt_lib.tables import find_table, read_table, run_table, tune_table

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
            count = tune_table(spec, bench, features, reference, work, data=str(data) if data else None, progress=report)
        say(f"{count} timings tuned")
        return
    also = [load_yardstick(name, spec.dataset, where, more=spec.more) for name in spec.also]
    also = [replace(each, features=faster(each.features, fast_features, batch, compile)) for each in also]
    path = results or results_folder() / "fd.csv"
    with progress_bar(f"table {config.stem}") as report:
        rows = run_table(
            spec, bench, features, reference, path, work, data=str(data) if data else None, force=force, bank=bank, also=also,
            world=world, progress=report,
        )
    if not world.main:
        return
    for row in rows:
        console.print(
            f"{row['solver']} {row['grid']} {row['nfe']} {row['timing']}: "
            f"{row['metric']} {row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]{published_beside(row)}",
            highlight=False, markup=False, soft_wrap=True,
        )  # fmt: skip
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
    from tt_lib.evaluating import SETS, floor_row
    from tt_lib.metrics.features import disjoint_sets, load_feature_extractor
    from tt_lib.metrics.reference import load_reference
    from tt_lib.results import FD_COLUMNS, FD_KEY, results_folder, write_rows

    extractor = load_feature_extractor(features, None, pick_device(device))
    reference = load_reference(dataset, "train", extractor)
    images = load_dataset(dataset, "test", str(data) if data else None)
    row = floor_row(extractor, reference, dataset, disjoint_sets(images.pixels, extractor, SETS))
    write_rows(results or results_folder() / "fd.csv", [row], FD_COLUMNS, FD_KEY)
    console.print(
        f"floor, {row['metric']}, n {row['n']}: {row['value']:.4f} [{row['low']:.4f}, {row['high']:.4f}]",
        highlight=False,
    )
