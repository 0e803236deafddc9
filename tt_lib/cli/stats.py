"""``tt stats``: the reference statistics that distances are taken against."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tt_lib.cli.shared import DataOption, DeviceOption, ForceOption, pick_device, say
from tt_lib.files import refuse_overwrite
from tt_lib.results import provenance


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
        int | None, typer.Option(help="Keep the features of so many images, in place of mean and covariance of all: 10000.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write [default: data/stats/...].")] = None,
    device: DeviceOption = "auto",
    force: ForceOption = False,
) -> None:
    """Compute mean and covariance of a data set's features (10 minutes on 2 CPU cores, seconds on a GPU).

    A bank of single features serves the kernel distance and precision and recall (`tt evaluate --more`).
    """
    from tt_lib.datasets import load_dataset
    from tt_lib.metrics.bank import bank_path, collect_bank
    from tt_lib.metrics.features import load_feature_extractor, reference_statistics
    from tt_lib.metrics.reference import reference_path

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
    from tt_lib.card import data_card
    from tt_lib.files import PACKAGE_ROOT, data_folder, write_text
    from tt_lib.report import write_report
    from tt_lib.results import (
        CORRELATION_COLUMNS,
        DIRECTION_COLUMNS,
        FD_COLUMNS,
        read_rows,
        results_folder,
    )
    from tt_lib.results_page import results_page

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
