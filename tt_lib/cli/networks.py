"""Networks: ``tt train``, ``tt features`` and ``tt stats``; and ``tt info``, what is here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from tt_lib.cli.app import (
    DataOption,
    DatasetOption,
    DeviceOption,
    ForceOption,
    SeedOption,
    console,
    pick_device,
    place,
    progress_bar,
    results_file,
    rows_option,
    say,
)
from tt_lib.errors import BadValue, TTError, choose
from tt_lib.files import data_folder, read_json, refuse_overwrite
from tt_lib.networks.config import DEFAULTS, FEATURE_DEFAULTS, Config

AnyConfig = TypeVar("AnyConfig", bound=Config)
TrainedOnOption = Annotated[str, typer.Option(help="cifar10 or digits.")]
LogOption = Annotated[Path | None, rows_option("training.csv")]


def setting(text: str, name: str, defaults: Mapping[str, Config] = DEFAULTS) -> Any:
    """An option for a field of the settings, with each data set's default in its help."""

    def words(value: Any) -> str:
        return ",".join(map(str, value)) if isinstance(value, tuple) else f"{value:,}"

    cifar10, digits = (words(getattr(defaults[dataset], name)) for dataset in ("cifar10", "digits"))
    return typer.Option(help=f"{text} [default: {cifar10}{'' if digits == cifar10 else f'; digits {digits}'}].")


def settings(defaults: Mapping[str, AnyConfig], dataset: str, **given: Any) -> AnyConfig:
    """A data set's defaults, with the options that were given; of a user's own images those of CIFAR-10."""
    usual = defaults.get(dataset) or replace(defaults["cifar10"], dataset=dataset)
    return replace(usual, **{name: value for name, value in given.items() if value is not None})


def train(
    out: Annotated[Path, typer.Option(help="Model folder to write; its name becomes the model's name.")],
    dataset: DatasetOption = "cifar10",
    data: DataOption = None,
    images: Annotated[int | None, setting("Number of training images to see, with repetition", "images")] = None,
    width: Annotated[int | None, setting("Channels of the UNet's first level", "width")] = None,
    batch: Annotated[int | None, setting("Images in a batch, of all processes together", "batch")] = None,
    lr: Annotated[float | None, setting("Peak learning rate", "lr")] = None,
    dropout: Annotated[float | None, setting("Dropout in the residual blocks", "dropout")] = None,
    attention: Annotated[
        str | None, setting("Levels with attention, by their side in pixels, such as 16,8", "attention")
    ] = None,
    min_snr: Annotated[
        float | None, setting("Weight the loss by min(SNR, this) / SNR; 0 weights all noise levels alike", "min_snr")
    ] = None,
    # Not --start: torchrun takes what begins like its own --start-method for that.
    start: Annotated[
        str | None, typer.Option("--from", help="Model folder of the same architecture whose weights are the start.")
    ] = None,
    target: Annotated[
        str,
        typer.Option(
            help="What the network predicts: eps, the noise on linear betas; flow, the velocity on the straight path."
        ),
    ] = "eps",
    seed: SeedOption = 0,
    compile: Annotated[
        bool, typer.Option("--compile", help="torch.compile the network: slow to start, then about twice as fast.")
    ] = False,
    checkpoint_seconds: Annotated[float, typer.Option(help="Seconds between checkpoints.")] = 60.0,
    results: LogOption = None,
    stop_after: Annotated[int | None, typer.Option(help="Stop after this many steps and write a checkpoint.")] = None,
    force: ForceOption = False,
) -> None:
    """Train a network to predict the noise on the linear-beta schedule, or the velocity of a flow.

    Images of your own must be square, with a side that 8 divides. They get the defaults of cifar10; give --attention
    if their network has no level of side 16.

    If it is interrupted, start it again with the same options: it resumes from its last checkpoint and sees the same
    data as an uninterrupted run. On several GPUs, start it with
    `torchrun --nproc_per_node 2 -m tt_lib train --out ...` (or `accelerate launch`).

    Example: `tt train --dataset digits --out runs/digits` (a little more than a minute on two CPU cores).
    """
    from tt_lib.metrics.world import ALONE, join_world
    from tt_lib.networks.train_unet import train as run
    from tt_lib.rows import TRAINING_COLUMNS

    log = results_file(results, "training.csv", TRAINING_COLUMNS)
    given: dict[str, Any] = dict(images=images, width=width, batch=batch, lr=lr, dropout=dropout, min_snr=min_snr)
    sides = read_sides(attention) if attention else None
    config = settings(DEFAULTS, dataset, attention=sides, target=target, seed=seed, **given)
    world, _ = join_world() or (ALONE, None)
    with progress_bar(f"train {out.name}") as report:
        run(
            config,
            out,
            data=data,
            start=start,
            compile=compile,
            force=force,
            checkpoint_seconds=checkpoint_seconds,
            results=log,
            stop_after=stop_after,
            progress=report,
        )
    if world.main:
        say(f"model folder: {out}")


def read_sides(text: str) -> tuple[int, ...]:
    """The sides in ``16,8``."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise BadValue(f"--attention must be a list of sides such as 16,8, got {text!r}") from None


def features(
    out: Annotated[Path, typer.Option(help="Folder to write the network to.")],
    dataset: TrainedOnOption = "cifar10",
    data: DataOption = None,
    epochs: Annotated[int | None, setting("Passes over the training images", "epochs", FEATURE_DEFAULTS)] = None,
    batch: Annotated[int | None, setting("Images a step", "batch", FEATURE_DEFAULTS)] = None,
    seed: SeedOption = 0,
    results: LogOption = None,
    device: DeviceOption = "auto",
    force: ForceOption = False,
) -> None:
    """Train the classifier in whose features Fréchet distances are measured.

    Distances are named after the features, `FD (cifar10-resnet)`, and never FID. If it is interrupted, start it again
    with the same options: it resumes from its last checkpoint.

    Example: `tt features --dataset digits --out runs/digits-resnet`
    """
    from tt_lib.networks.train_features import train_features
    from tt_lib.rows import TRAINING_COLUMNS

    log = results_file(results, "training.csv", TRAINING_COLUMNS)
    choose("data set to train on", dataset, FEATURE_DEFAULTS)
    config = settings(FEATURE_DEFAULTS, dataset, epochs=epochs, batch=batch, seed=seed)
    with progress_bar(f"features {out.name}") as report:
        train_features(config, out, data=data, device=pick_device(device), force=force, results=log, progress=report)
    say(f"{out}: test accuracy {100 * read_json(out / 'config.json')['test_accuracy']:.2f} %")


def stats(
    dataset: DatasetOption = "cifar10",
    split: Annotated[str, typer.Option(help="train or test.")] = "train",
    features: Annotated[
        str,
        typer.Option(help="cifar10-resnet, digits-resnet, imagenet-efficientnet-lite0 or inception-2015."),
    ] = "cifar10-resnet",
    data: DataOption = None,
    out: Annotated[
        Path | None, typer.Option(help="File to write [default: data/stats/...].", callback=place(".safetensors"))
    ] = None,
    device: DeviceOption = "auto",
    force: ForceOption = False,
) -> None:
    """Compute mean and covariance of a data set's features (10 minutes on 2 CPU cores, seconds on a GPU).

    If it is interrupted, start the same command again: it resumes. For images of your own, `tt evaluate` does this
    itself.
    """
    from tt_lib.datasets import NAMED, load_dataset
    from tt_lib.metrics.features import load_features
    from tt_lib.metrics.reference import (
        collect_statistics,
        reference_path,
        require_unchanged,
        save_statistics,
    )

    own = None if dataset in NAMED else load_dataset(dataset, split, data)
    path = out or reference_path(dataset, split, features, own)
    refuse_overwrite(path, force)
    extractor = load_features(features, pick_device(device))
    images = own or load_dataset(dataset, split, data)
    with progress_bar("stats") as report:
        statistics = collect_statistics(images, extractor, path.with_name(f"{path.name}.state"), report)
    require_unchanged(images, dataset, data)
    save_statistics(path, statistics, images)
    say(f"{path}: {statistics.n} images, {statistics.dimension} features")


def info(
    path: Annotated[
        Path | None,
        typer.Argument(
            help="A model, by its folder or name, or a timing's JSON file [default: list this installation]."
        ),
    ] = None,
) -> None:
    """Show a model's card or a timing; or list versions, devices, models, solvers and data of this installation."""
    from tt_lib.networks.unet import CARD, find_model
    from tt_lib.timing import load_timing

    if path is not None:
        if path.suffix == ".json":
            console.print(asdict(load_timing(path)))
        else:
            card = (find_model(str(path)) or path) / CARD
            console.print(read_json(card, "give a model's folder or name, or a timing's .json"))
        return
    import platform

    import torch

    from tt_lib import __version__
    from tt_lib.datasets import load_cifar10
    from tt_lib.solvers.registry import SOLVERS

    say(f"tt_lib {__version__}, python {platform.python_version()}, torch {torch.__version__}")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    say(f"devices: cpu ({torch.get_num_threads()} threads) {' '.join(gpus)}")
    say(f"models: {', '.join(sorted(card.parent.name for card in (data_folder() / 'pretrained').glob(f'*/{CARD}')))}")
    say(f"solvers: {', '.join(SOLVERS)}")
    for name, solver in SOLVERS.items():
        for option, values in solver.choices.items():
            say(f"  {name},{option}={' or '.join(map(str, values))} (default {solver.defaults[option]})")
    say(f"timings: {len(list((data_folder() / 'timings').glob('*/*.json')))}")
    try:
        say(f"CIFAR-10: {len(load_cifar10('test'))} test images")
    except TTError as error:
        say(f"CIFAR-10: {error}")
