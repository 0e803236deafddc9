"""Where the time of an evaluation goes: network, features, statistics, distance, and the rest."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tt_lib.evaluating import measure
from tt_lib.metrics.features import NetworkFeatures
from tt_lib.metrics.statistics import FeatureStatistics
from tt_lib.sampling import Sampler
from tt_lib.speed import seconds, speed_row, wait

PARTS = ("sampling network", "features", "statistics", "distance and interval")


class _Watch(nn.Module):
    """A function, timed: the device has finished before and after each call, so that none pays for another."""

    def __init__(self, job: Callable, device: torch.device) -> None:
        super().__init__()
        self.job, self.device, self.spent, self.ended = job, device, 0.0, 0.0

    def forward(self, *arguments: Any) -> Any:
        wait(self.device)
        begun = time.perf_counter()
        answer = self.job(*arguments)
        wait(self.device)
        self.ended = time.perf_counter()
        self.spent += self.ended - begun
        return answer


def profile_evaluation(
    what: str, sampler: Sampler, features: NetworkFeatures, reference: FeatureStatistics, n: int, batch: int, work: Path
) -> list[dict[str, Any]]:
    """A row for each part of :func:`tt_lib.evaluating.measure`: its seconds, those of the whole, and its share.

    The clock waits for the device around every part, so the whole takes longer than without it. Noise is drawn beside the
    device's work and counts only as far as the device waits for it: that is in "the rest", with the solver's arithmetic and the
    writing of finished sets.

    Args:
        what: names the evaluation in the rows.
        work: an empty folder for the state.
    """
    device = torch.device(sampler.device)
    network, vectors = _Watch(sampler.predictor, device), _Watch(features.network, device)
    spent, ended = dict.fromkeys(PARTS, 0.0), 0.0

    def progress(done: int, total: int, message: str) -> None:
        # Called after every batch: what lies between its features and this call is the update of the statistics.
        nonlocal ended
        wait(device)
        ended = time.perf_counter()
        spent["statistics"] += ended - vectors.ended

    def job() -> None:
        timed = replace(sampler, predictor=network)
        measure(timed, replace(features, network=vectors), reference, n, batch=batch, work=work, progress=progress)
        wait(device)
        spent["distance and interval"] = time.perf_counter() - ended

    whole = seconds(job, device)
    spent |= {"sampling network": network.spent, "features": vectors.spent}
    spent["the rest"] = max(0.0, whole - sum(spent.values()))
    return [speed_row(f"{what}: {part}, peer the whole", taken, whole, "s of all", device) for part, taken in spent.items()]
