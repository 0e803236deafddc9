"""What an evaluation would cost on many GPUs, from rates that were measured on one and two.

It multiplies and divides, and nothing more; what it assumes is said with the answer.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from tt_lib.errors import BadValue, MissingFile
from tt_lib.evaluating import SETS
from tt_lib.results import SPEED_COLUMNS, read_rows


@dataclass(frozen=True)
class Estimate:
    """Time and cost of sampling images and taking their features.

    Attributes:
        seconds: wall-clock time on all GPUs.
        gpu_hours: of all GPUs together.
        cost: in the price's currency.
        said: the rates that were used and what was assumed, a line each.
    """

    seconds: float
    gpu_hours: float
    cost: float
    said: tuple[str, ...]


def estimate(
    results: Path, *, network: str, images: int, nfe: int, gpus: int, price: float, start: float = 180.0, device: str | None = None
) -> Estimate:
    """The estimate, from rows that ``tt bench --roofline`` and ``tt speed --against one-process`` have written.

    Args:
        results: the ``speed.csv``.
        network: as its row names it, for example ``ddpm-celebahq-256``.
        images, nfe: how many samples, and evaluations of the network for each.
        gpus, price: how many, and what one costs an hour.
        start: seconds in which every GPU is paid for and does not sample yet: loading and compiling.
        device: as the rows name it [default: that of the network's last row].

    Raises:
        BadValue: a number that is out of range.
        MissingFile: no such row; the message gives the command that makes it.
    """
    for name, value in {"images": images, "nfe": nfe, "gpus": gpus}.items():
        if value < 1:
            raise BadValue(f"{name} must be at least 1, got {value}")
    if price < 0 or start < 0:
        raise BadValue(f"price and start must be 0 or more, got {price} and {start}")
    rows = read_rows(results, SPEED_COLUMNS)
    sampling = _rate(rows, network, device, results, f"--network {network}")
    device = str(sampling["device"])
    features = _rate(rows, "inception-2015", device, results, "--inception")
    several = rows[rows["what"].str.startswith("evaluating ") & rows["what"].str.endswith(" processes, peer one")]
    several = several[several["device"].str.fullmatch(rf"\d+ x {re.escape(device)}")]
    if len(several):
        last = several.iloc[-1]
        count = int(str(last["device"]).split(" ")[0])
        efficiency, whence = min(1.0, float(last["ratio"]) / count), f"measured: {last['ratio']:g} times one with {count} ({last['what']})"
    else:
        efficiency, whence = 1.0, "assumed: no row of `tt speed --against one-process` on this device"
    batch = int(str(sampling["what"]).split(", batch ")[1].split(",")[0])
    # GPUs share whole batches of each of the disjoint sets, so where these do not come out even, some wait.
    rounds = SETS * math.ceil(math.ceil(images / SETS / batch) / gpus)
    seconds = start + rounds * batch * (nfe / float(sampling["ours"]) + 1 / float(features["ours"])) / efficiency
    hours = seconds * gpus / 3600
    return Estimate(seconds, hours, hours * price, (
        f"sampling: {float(sampling['ours']):g} evaluations a second on one {device} ({sampling['what']})",
        f"features: {float(features['ours']):g} images a second ({features['what']})",
        f"sharing: {SETS} sets in batches of {batch} come to {rounds} batches for the GPU that has most, {images / batch / gpus:.1f} if all were even",
        f"several GPUs: {efficiency:.3f} of their number, taken to hold for {gpus}; {whence}",
        f"before sampling: {start:g} s of all GPUs; the solver's arithmetic, noise and storage count nothing",
    ))  # fmt: skip


def _rate(rows: pd.DataFrame, network: str, device: str | None, results: Path, option: str) -> pd.Series:
    """The last row with the images a second of a network."""
    found = rows[rows["what"].str.startswith(f"network {network}, batch ") & (rows["unit"] == "images/s")]
    if device is not None:
        found = found[found["device"] == device]
    if not len(found):
        on = f" on {device}" if device else ""
        raise MissingFile(f"{results} has no rate of {network}{on}; measure it with `tt bench --roofline {option}`")
    return found.iloc[-1]
