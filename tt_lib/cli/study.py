"""``tt demo``, the main job; ``tt table`` and ``tt floor``: many samplers; ``tt card``: their pages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tt_lib.cli.app import (
    DataOption,
    DatasetOption,
    DeviceOption,
    FastFeaturesOption,
    ForceOption,
    console,
    faster,
    pick_device,
    pick_devices,
    progress_bar,
    results_file,
    rows_option,
    say,
    work_place,
)
from tt_lib.cli.sampler import BatchOption, CompileOption
from tt_lib.errors import BadValue
from tt_lib.files import check_writable

if TYPE_CHECKING:
    from tt_lib.study.demo import Demo


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the table, the timing and the figures.")] = Path("runs/demo"),
    model: Annotated[str, typer.Option(help="A model folder, or cifar10, the shipped model.")] = "cifar10",
    n: Annotated[int, typer.Option(help="Number of images for each sampler, a multiple of 10.")] = 100,
    device: DeviceOption = "auto",
) -> None:
    """Sample images in 10 steps, tune the timing, sample again from the same noise, and compare both.

    Writes `demo.csv`, `timing.json` and two figures to `--out`, and shows the table.
    """
    from tt_lib.datasets import NAMED
    from tt_lib.errors import choose
    from tt_lib.metrics.evaluate import check_n
    from tt_lib.metrics.reference import load_metric
    from tt_lib.study.demo import demo as run
    from tt_lib.study.demo import demo_files, write_demo
    from tt_lib.study.workbench import make_bench

    for path in demo_files(out):
        check_writable(path)
    check_n(n)
    if n > 10_000:
        raise BadValue(f"a demonstration takes at most 10,000 images, got --n {n:,}; `tt evaluate` measures more")
    where = pick_device(device)
    bench = make_bench(model, where, batch=50)
    dataset = bench.model.card.get("dataset", "cifar10")
    choose("data set of a demonstration's network", dataset, NAMED)
    metric = load_metric(f"{dataset}-resnet", dataset, where, model=bench.model)
    with progress_bar("demo") as report:
        result = run(bench, metric, n=n, state=out / "tuning.state", progress=report)
    paths = write_demo(result, out)
    (out / "tuning.state").unlink(missing_ok=True)
    _show(result, metric.features.metric, n)
    for path in paths:
        say(str(path))
    say(f"took {result.seconds:.0f} s")


def _show(result: Demo, metric: str, n: int) -> None:
    from rich.table import Table

    caption = (
        f"Means with 95 % intervals; smaller is better. A Fréchet distance of {n} images is far too large: compare it "
        "only within this table. data/results/fd.csv has those of 10,000."
    )
    table = Table(title="The same noise, the same number of evaluations", caption=caption)
    for heading in ("sampler", "evaluations", "distance from the converged solution", f"{metric}, n = {n}"):
        table.add_column(heading, justify="left" if heading == "sampler" else "right")
    for row in result.table.to_dict("records"):
        distance = f"{row['distance']:.4f} [{row['distance_low']:.4f}, {row['distance_high']:.4f}]"
        frechet = f"{row['fd']:.2f} [{row['fd_low']:.2f}, {row['fd_high']:.2f}]"
        table.add_row(row["sampler"], str(row["nfe"]), distance, frechet)
    console.print(table)


def table(
    config: Annotated[
        Path,
        typer.Option(help="A TOML file with the cells, or the name of a shipped one: study, flow, paper, bedroom."),
    ],
    data: DataOption = None,
    results: Annotated[Path | None, rows_option("fd.csv")] = None,
    work: Annotated[Path, typer.Option(help="Folder for the state of unfinished cells.")] = Path("runs/table"),
    batch: BatchOption = 500,
    n: Annotated[
        int | None, typer.Option("--n", "--samples", help="Number of samples for each cell, in place of the file's.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Only list the cells: which are done, and how many evaluations the others need."
        ),
    ] = False,
    compile: CompileOption = False,
    fast_features: FastFeaturesOption = False,
    device: DeviceOption = "auto",
    force: ForceOption = False,
) -> None:
    """Tune and measure every cell of a table: a cell is one sampler at one number of evaluations.

    Cells that have their rows are skipped, so an interrupted table resumes when it is started again. Rows hold the
    hash of the model's weights: a network that was trained again is measured again.

    To share the cells among GPUs, start the command once for each: `--device cuda:0`, `--device cuda:1`, ... To share
    the samples of each cell, start it once: `torchrun --nproc_per_node 2 -m tt_lib table ...`

    Example: `tt table --config study --dry-run`
    """
    from dataclasses import replace

    from tt_lib.errors import NothingLearned, all_there
    from tt_lib.metrics.features import load_features
    from tt_lib.metrics.reference import load_metric, require_reference
    from tt_lib.networks.unet import load_model
    from tt_lib.rows import FD_COLUMNS, results_folder
    from tt_lib.study.tables import dry_run as dry_run_lines
    from tt_lib.study.tables import find_table, published_beside, published_rows, read_tables, run_table
    from tt_lib.study.workbench import make_bench

    tables = [replace(each, n=each.n if n is None else n) for each in read_tables(find_table(config))]
    spec = tables[0]  # they differ in n and cells alone
    if dry_run:
        model = load_model(spec.model)
        for each in tables:
            for line in dry_run_lines(each, model, results or results_folder() / "fd.csv", data):
                say(line)
        return
    path, work = results_file(results, "fd.csv", FD_COLUMNS), work_place(work)
    published_rows()  # shown when all is measured: a damaged file is refused now
    world, where = pick_devices(device)
    bench, *extractors, _ = all_there(
        lambda: make_bench(spec.model, where, batch=batch, compile=compile),
        *(lambda name=name: load_features(name, where) for name in spec.features),
        lambda: require_reference(spec.dataset, spec.features, data),
    )
    with progress_bar(f"table {config.stem}") as report:
        options = {"data": data, "model": bench.model, "world": world, "progress": report}
        metrics = [load_metric(each, spec.dataset, **options) for each in extractors]
        metrics = [faster(metric, fast_features, batch, compile) for metric in metrics]
        failed: list[NothingLearned] = []
        more: dict[str, Any] = {"data": data, "force": force, "world": world, "progress": report, "failed": failed}
        rows = [row for each in tables for row in run_table(each, bench, metrics, path, work, **more)]
    if not world.main:
        return world.wait()
    for row in rows:
        sampler = f"{row['solver']} {row['grid']} {row['nfe']} {row['timing']}"
        value = f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        say(f"{sampler}: {row['metric']} {value}{published_beside(row)}")
    say(f"{len(rows)} rows written to {path}")
    world.wait()
    if failed:
        raise NothingLearned("; ".join(map(str, failed)))


def floor(
    dataset: DatasetOption = "cifar10",
    features: Annotated[
        str, typer.Option(help="cifar10-resnet, digits-resnet, imagenet-efficientnet-lite0 or inception-2015.")
    ] = "cifar10-resnet",
    data: DataOption = None,
    results: Annotated[Path | None, rows_option("fd.csv")] = None,
    device: DeviceOption = "auto",
) -> None:
    """Measure the floor, the Fréchet distance of real test images from the training images, and write it as a row.

    Images of your own must lie in `train/` and `test/`.
    """
    from tt_lib.datasets import NAMED, load_dataset
    from tt_lib.metrics.evaluate import SETS, floor_row
    from tt_lib.metrics.features import disjoint_sets
    from tt_lib.metrics.reference import load_metric
    from tt_lib.rows import FD_COLUMNS, FD_KEY, write_rows

    path = results_file(results, "fd.csv", FD_COLUMNS)
    where = pick_device(device)
    own = None if dataset in NAMED else load_dataset(dataset, "test", data)  # before statistics are made
    with progress_bar("floor") as report:
        metric = load_metric(features, dataset, where, data=data, progress=report)
    images = own or load_dataset(dataset, "test", data)
    metric.require_shape(images.pixels.shape[1:], images.name)
    row = floor_row(metric, disjoint_sets(images.pixels, metric.features, SETS))
    write_rows(path, [row], FD_COLUMNS, FD_KEY)
    say(f"floor, {row['metric']}, n {row['n']}: {row['value']:.4f} [{row['low']:.4f}, {row['high']:.4f}]")


def card(
    samples: Annotated[
        bool, typer.Option("--samples", help="Also draw README's picture of samples again (minutes on a CPU).")
    ] = False,
) -> None:
    """For maintainers: write the pages of results from their rows, and the list of shipped files.

    These are `data/results/README.md`, the results and their figure in the project's README, and `data/MANIFEST.csv`.
    """
    from tt_lib.errors import MissingFile
    from tt_lib.files import PACKAGE_ROOT, data_folder, write_text
    from tt_lib.rows import FD_COLUMNS, read_rows, results_folder
    from tt_lib.study.page import MODEL, manifest, results_page, write_report, write_samples
    from tt_lib.study.workbench import make_bench

    results = results_folder() / "fd.csv"
    if not results.is_file():
        raise MissingFile(f"no results at {results}; measure some with `tt table`, or set TT_DATA to where they are")
    frame = read_rows(results, FD_COLUMNS)
    files, page = data_folder() / "MANIFEST.csv", results_folder() / "README.md"
    for path in (files, page):
        check_writable(path)
    write_text(files, manifest(data_folder()))
    write_text(page, results_page(frame))
    # A package installed without its repository has no README to write to.
    report = write_report(PACKAGE_ROOT, frame) if (PACKAGE_ROOT / "README.md").exists() else []
    if samples:
        report.append(write_samples(PACKAGE_ROOT, make_bench(MODEL, pick_device("auto"))))
    for path in (files, page, *report):
        say(str(path))
