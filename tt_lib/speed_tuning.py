"""Tuning in one batch beside the authors' procedure, with what both timings are worth.

The peer is the paper's own way with the defaults of the authors' code (:class:`tt_lib.tuning.TuneConfig`): consistency, one step
after another on the states of the tuned sampler, 500 iterations of Adam each. Ours is the same objective for all steps in one
batch by a search without gradients. Being faster says nothing unless the timings are as good, so both, and no timing at
all, are judged in the same way on images that neither was tuned on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tt_lib.bench import Bench, Cell
from tt_lib.errors import BadValue
from tt_lib.evaluating import check_n, measure
from tt_lib.metrics.features import Features
from tt_lib.metrics.statistics import FeatureStatistics
from tt_lib.noise import StartNoise
from tt_lib.speed import Tell, seconds, speed_row
from tt_lib.timing import Timing
from tt_lib.tuning import OBJECTIVES, TuneConfig
from tt_lib.tuning.layout import layout
from tt_lib.tuning.problems import Setting, sequential_problem

AUTHORS = TuneConfig()
OURS = TuneConfig(strategy="parallel", optimiser="search")


def measure_against_authors(
    bench: Bench, images: Tensor, source: str, *, cell: Cell, iterations: int = AUTHORS.iterations,
    features: Features | None = None, reference: FeatureStatistics | None = None, n: int = 0, tell: Tell | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Rows for ``speed.csv``: seconds of both tunings; both objectives on held-out images, ours and untuned beside the authors'.

    Args:
        images: [2 P, C, H, W] in [-1, 1]: the first half is tuned on, the second is held out.
        source: where they come from.
        cell: solver, grid and NFE.
        iterations: of the peer's Adam, for a rehearsal.
        features, reference, n: for a row with the distance of ``n`` samples by both timings, where ``n`` is not 0.

    Raises:
        BadValue: fewer than two images.
    """
    if len(images) < 2:
        raise BadValue(f"one half of the images is held out, so at least 2 are needed, got {len(images)}")
    if n:
        check_n(n)
    tell = tell or (lambda message: None)
    mine, held_out = images.chunk(2)
    tell("first runs, which are not timed (compiling, if asked for, takes a minute)")
    bench.tune(cell, OURS, mine, source)
    bench.tune(cell, TuneConfig(iterations=2), mine, source)

    timings: dict[str, Timing | None] = {"untuned": None}
    taken = {}
    for name, config in {"parallel": OURS, "authors": TuneConfig(iterations=iterations)}.items():
        tell(f"tuning, {config.name}, {config.optimiser}")

        def job(name: str = name, config: TuneConfig = config) -> None:
            timings[name] = bench.tune(cell, config, mine, source).timing

        taken[name] = seconds(job, bench.device)
    peer = f"peer the authors' procedure (sequential, Adam, {iterations} iterations a step)"
    where = f"{cell.solver}, {cell.grid}, {cell.nfe} steps, {bench.model.name}, {len(mine)} {source} images"
    rows = [speed_row(f"tuning {where}, consistency, parallel, search: {peer}", taken["parallel"], taken["authors"], "s", bench.device)]

    tell("what the timings are worth")
    for objective in OBJECTIVES:
        losses = {name: held_out_loss(bench, cell, timing, held_out, objective) for name, timing in timings.items()}
        for name in ("parallel", "untuned"):
            what = f"{objective} of {len(held_out)} held-out images, {where}, {name}: {peer}"
            rows.append(speed_row(what, losses[name], losses["authors"], "loss", bench.device))
    if n:
        assert features is not None and reference is not None
        start = StartNoise(bench.model.shape, bench.device)
        found = {
            name: measure(bench.sampler(cell, timing), features, reference, n, batch=bench.batch, start=start).value
            for name, timing in timings.items()
        }
        for name in ("parallel", "untuned"):
            what = f"{features.metric} of {n} samples, {where}, {name}: {peer}"
            rows.append(speed_row(what, found[name], found["authors"], "FD", bench.device))
    return rows


@torch.no_grad()
def held_out_loss(bench: Bench, cell: Cell, timing: Timing | None, images: Tensor, objective: str) -> float:
    """The mean over the tuned steps of an objective along a sampler's own way from noised images, in float32.

    Each step is judged at the state that the steps before it, with their taus, have reached: what the authors minimise. The last
    step, which neither side tunes, does not count.

    Args:
        timing: None is untuned.
        images: x0 [P, ...] in [-1, 1].
        objective: ``consistency`` or ``truncation``; sums over pixels, means over images.
    """
    sampler, schedule = bench.sampler(cell), bench.model.schedule
    times = torch.tensor(sampler.grid.times, dtype=torch.float64)
    evaluations = layout(sampler.solver, times, schedule)
    setting = Setting(
        sampler.solver, schedule, bench.tuner_predictor, objective, AUTHORS.substeps, times, evaluations, seed=1
    )
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1)).to(images.device)
    x = schedule.alpha(times[0]).item() * images + schedule.sigma(times[0]).item() * noise
    taus: Sequence[float] = timing.taus if timing else [each.t for each in evaluations]
    answers: list[Tensor] = []
    losses = []
    for index, each in enumerate(evaluations):
        if each.step >= sampler.grid.steps - AUTHORS.freeze_last:
            break
        problem = sequential_problem(setting, index, x, list(answers))
        losses.append(problem.losses(torch.tensor([taus[index]], dtype=torch.float64)).item())
        answers.append(problem.answer_at(taus[index]))
    if not losses:
        raise BadValue(f"{cell.label} has no step but the last, which is not tuned; give more evaluations")
    return sum(losses) / len(losses)
