"""``tt demo``: the main job on the shipped weights, in a few minutes on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tt_lib.cli.shared import DeviceOption, console, pick_device, progress_bar, say


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
    from tt_lib.bench import make_bench
    from tt_lib.demo import demo as run
    from tt_lib.demo import write_demo
    from tt_lib.metrics.features import load_feature_extractor
    from tt_lib.metrics.reference import load_reference

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
    from tt_lib.results import SPEED_COLUMNS, SPEED_KEY, results_folder, write_rows
    from tt_lib.speed import speed_row

    row = speed_row("tt demo", round(seconds, 1), None, "s", device)
    write_rows(results_folder() / "speed.csv", [row], SPEED_COLUMNS, SPEED_KEY)
