"""``tt train`` and ``tt features``: the two networks that everything else uses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from tt_lib.cli.app import (
    DataOption,
    DeviceOption,
    ForceOption,
    SeedOption,
    console,
    pick_device,
    place,
    progress_bar,
    say,
)
from tt_lib.errors import BadValue, choose
from tt_lib.files import refuse_overwrite
from tt_lib.rows import provenance


def train(
    out: Annotated[Path, typer.Option(help="Model folder to write; its name becomes the model's name.")],
    dataset: Annotated[str, typer.Option(help="cifar10 or digits.")] = "cifar10",
    data: DataOption = None,
    images: Annotated[
        int | None, typer.Option(help="Images to see in all [default: 20,000,000; digits 80,000].")
    ] = None,
    width: Annotated[
        int | None, typer.Option(help="Channels of the UNet's first level [default: 64; digits 16].")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(help="Global batch, shared by the processes [default: 1024; digits 128].")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate [default: 1e-3; digits 4e-3].")] = None,
    dropout: Annotated[float | None, typer.Option(help="Dropout in the residual blocks [default: 0].")] = None,
    attention: Annotated[
        str | None, typer.Option(help="Sides, in pixels, with attention, such as 16,8 [default: 16; digits 4].")
    ] = None,
    min_snr: Annotated[
        float | None, typer.Option(help="Weight the loss by min(SNR, this) / SNR; 0: all levels alike [default: 0].")
    ] = None,
    seed: SeedOption = 0,
    compile: Annotated[
        bool, typer.Option("--compile", help="torch.compile: slow to start, then about twice as fast.")
    ] = False,
    checkpoint_seconds: Annotated[float, typer.Option(help="Seconds between checkpoints.")] = 60.0,
    results: Annotated[
        Path | None,
        typer.Option(help="Training log to add rows to [default: data/results/training.csv].", callback=place),
    ] = None,
    stop_after: Annotated[
        int | None, typer.Option(help="Stop after this many steps, with a checkpoint to go on from.")
    ] = None,
    force: ForceOption = False,
) -> None:
    """Train an eps-prediction network on the linear-beta schedule.

    Killed and started again with the same options, it goes on from its last checkpoint and sees the
    same data as an uninterrupted run. On several GPUs, start it with
    `torchrun --nproc_per_node 2 -m tt_lib train --out ...` (or `accelerate launch`).

    Example: `tt train --dataset digits --out runs/digits` (a little more than a minute on two CPU cores).
    """
    from tt_lib.networks.train_unet import DEFAULTS
    from tt_lib.networks.train_unet import train as run

    choose("data set", dataset, DEFAULTS)
    given: dict[str, Any] = {
        "images": images,
        "width": width,
        "batch": batch,
        "lr": lr,
        "seed": seed,
        "dropout": dropout,
        "min_snr": min_snr,
    }
    given["attention"] = read_sides(attention) if attention else None
    config = replace(DEFAULTS[dataset], **{key: value for key, value in given.items() if value is not None})
    with progress_bar(f"train {out.name}") as report:
        folder = run(
            config,
            out,
            data=str(data) if data else None,
            compile=compile,
            checkpoint_seconds=checkpoint_seconds,
            results=results,
            force=force,
            stop_after=stop_after,
            progress=report,
        )
    say(f"model folder: {folder}")


def read_sides(text: str) -> tuple[int, ...]:
    """The sides in ``16,8``."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise BadValue(f"--attention is a list of sides such as 16,8, got {text!r}") from None


def features(
    out: Annotated[Path, typer.Option(help="Folder to write the network to.")],
    dataset: Annotated[str, typer.Option(help="cifar10 or digits.")] = "cifar10",
    data: DataOption = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training images [default: 60; digits 20].")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Images a step [default: 512; digits 100].")] = None,
    seed: SeedOption = 0,
    compile: Annotated[bool, typer.Option("--compile", help="torch.compile the network.")] = False,
    results: Annotated[
        Path | None,
        typer.Option(help="Training log to add rows to [default: data/results/training.csv].", callback=place),
    ] = None,
    device: DeviceOption = "auto",
    force: ForceOption = False,
) -> None:
    """Train a network whose features the Fréchet distances are taken in.

    Distances are called after the features, `FD (cifar10-resnet)`, never FID. Killed and started again with the same options, it
    goes on from its last checkpoint.

    Example: `tt features --dataset digits --out runs/digits-resnet`
    """
    from tt_lib.datasets import load_dataset
    from tt_lib.networks.train_features import train_features
    from tt_lib.rows import results_folder

    choose("data set", dataset, ("cifar10", "digits"))
    refuse_overwrite(out / "config.json", force)
    small: dict[str, Any] = {"widths": (16, 32), "epochs": 20, "batch": 100, "flip": False}
    given = {"epochs": epochs, "batch": batch}
    options = (small if dataset == "digits" else {}) | {key: value for key, value in given.items() if value is not None}
    root = str(data) if data else None
    report = train_features(
        load_dataset(dataset, "train", root),
        load_dataset(dataset, "test", root),
        out,
        **options,
        seed=seed,
        compile=compile,
        device=pick_device(device),
        results=results or results_folder() / "training.csv",
    )
    console.print(report, highlight=False)


# FOLDED tt_lib.cli.networks
# ``tt stats``: the reference statistics that distances are taken against.


def stats(
    dataset: Annotated[str, typer.Option(help="cifar10 or digits.")] = "cifar10",
    split: Annotated[str, typer.Option(help="train or test.")] = "train",
    features: Annotated[
        str, typer.Option(help="cifar10-resnet, cifar10-simclr, the same of digits, or inception-2015.")
    ] = "cifar10-resnet",
    weights: Annotated[
        Path | None, typer.Option(help="The features' weights, if they are not in their usual place.")
    ] = None,
    data: DataOption = None,
    bank: Annotated[
        int | None,
        typer.Option(help="Keep the features of so many images, in place of mean and covariance of all: 10000."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write [default: data/stats/...].")] = None,
    device: DeviceOption = "auto",
    force: ForceOption = False,
) -> None:
    """Compute mean and covariance of a data set's features (10 minutes on 2 CPU cores, seconds on a GPU).

    A bank of single features serves the kernel distance and precision and recall (`tt evaluate --more`).
    """
    from tt_lib.datasets import load_dataset
    from tt_lib.metrics.features import load_feature_extractor, reference_statistics
    from tt_lib.metrics.reference import bank_path, collect_bank, reference_path

    path = out or (reference_path if bank is None else bank_path)(dataset, split, features)
    refuse_overwrite(path, force)
    extractor = load_feature_extractor(features, weights, pick_device(device))
    images = load_dataset(dataset, split, str(data) if data else None)
    if bank is not None:
        kept = collect_bank(images, extractor, bank)
        kept.save(path, {**kept.meta, **provenance()})
        say(f"{path}: features of {len(kept.vectors)} images")
        return
    found = reference_statistics(images, extractor)
    found.save(path, {**found.meta, **provenance()})
    say(f"{path}: {found.n} images, {found.dimension} features")


def card() -> None:
    """Write what is said about the shipped files: `data/README.md`, all results, and those in README with their figure.

    The data card says what each file is, which command made it, and its hash; the results are tables and a figure of the
    rows in `data/results/`: all of them in its README.md, the most wanted in the project's.
    """
    from tt_lib.files import PACKAGE_ROOT, data_folder, write_text
    from tt_lib.rows import CORRELATION_COLUMNS, DIRECTION_COLUMNS, FD_COLUMNS, read_rows, results_folder
    from tt_lib.study.page import data_card, results_page, write_report

    path = data_folder() / "README.md"
    write_text(path, data_card(data_folder()))
    tables = {"fd.csv": FD_COLUMNS, "correlation.csv": CORRELATION_COLUMNS, "direction.csv": DIRECTION_COLUMNS}
    rows, *others = (read_rows(results_folder() / name, columns) for name, columns in tables.items())
    page = results_folder() / "README.md"
    write_text(page, results_page(rows, *others))
    written = [path, page]
    # A package installed without its repository has no README to write to.
    if (PACKAGE_ROOT / "README.md").exists():
        written += write_report(PACKAGE_ROOT, rows)
    for file in written:
        say(str(file))
