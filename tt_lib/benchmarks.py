"""What the library itself costs: solver and engine beside the network, and sampling beside diffusers' own pipeline.

Rows of ``speed.csv``, as in :mod:`tt_lib.speed`. The two sides of a row run in one process, on one device, with one network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from torch import Tensor

from tt_lib.bench import Bench, Cell
from tt_lib.engine import drive
from tt_lib.errors import BadValue
from tt_lib.noise import SampleNoise
from tt_lib.sampling import Sampler, batches, sample_pixels
from tt_lib.speed import Tell, seconds, speed_row

REPEATS = 3


def measure_overhead(bench: Bench, cells: Sequence[Cell], *, compiled: bool = False, repeats: int = REPEATS, tell: Tell | None = None) -> list[dict[str, Any]]:
    """Seconds of one batch beside those of the same evaluations of the network alone: two rows for each cell.

    - The whole run. Its ratio is the network's share: 0.98 is an overhead of 2 %. The CPU prepares a solver's next step while a
      GPU works on the last, so this is less than the sum of both.
    - Solver and engine alone, with the network's answer there already. The ratio says how many times the network takes that.
    """
    rows = []
    for cell in cells:
        if tell:
            tell(f"overhead of {cell.label}, batch {bench.batch}")
        sampler = bench.sampler(cell)
        noise = SampleNoise(range(bench.batch)) if sampler.solver.stochastic else None
        start = SampleNoise(range(bench.batch)).start(sampler.shape).to(bench.device)
        answer = torch.zeros_like(start)

        def around(sampler: Sampler = sampler, start: Tensor = start, noise=noise, answer: Tensor = answer) -> None:
            drive(sampler.solver(start, sampler.grid, sampler.schedule, noise), lambda x, t, tau: answer)

        def run(sampler: Sampler = sampler, start: Tensor = start, noise=noise) -> None:
            drive(sampler.solver(start, sampler.grid, sampler.schedule, noise), sampler.predictor)

        def network(sampler: Sampler = sampler, start: Tensor = start, nfe: int = cell.nfe) -> None:
            t = torch.tensor(0.5, dtype=torch.float64)
            with torch.no_grad():
                for _ in range(nfe):
                    sampler.predictor(start, t, t)

        whole, ours, peer = fastest(repeats, (run, around, network), bench.device)
        how = f"{cell.solver}, {cell.grid}, NFE {cell.nfe}, batch {bench.batch}{', compiled' if compiled else ''}: peer the network"
        rows.append(speed_row(f"whole run, {how}", whole, peer, "s", bench.device))
        rows.append(speed_row(f"solver and engine, {how}", ours, peer, "s", bench.device))
    return rows


def measure_against_diffusers(
    bench: Bench, *, steps: int = 10, n: int = 256, bf16: bool, compiled: bool, repeats: int = REPEATS, tell: Tell | None = None
) -> list[dict[str, Any]]:
    """Images a second of DDIM, from seeds to uint8 on the CPU, beside diffusers' DDIMPipeline on the same network.

    Args:
        bench: its predictor is ours; the pipeline runs the same network in eager mode.
        steps: of DDIM.
        n: images, in batches of ``bench.batch``.
        bf16, compiled: what the bench's predictor is; the pipeline runs in the same precision.

    Raises:
        BadValue: the network is not a diffusers UNet2DModel.
    """
    run = ddim_pipeline(bench, steps, bf16=bf16)
    if tell:
        tell(f"DDIM in {steps} steps, {n} images, ours against diffusers' DDIMPipeline")

    def theirs() -> None:
        generator = torch.Generator(bench.device).manual_seed(0)
        for seeds in batches(0, n, bench.batch):
            run(len(seeds), generator=generator, output_type="np")

    sampler = bench.sampler(Cell("ddim", "uniform", steps))
    ours = partial(sample_pixels, sampler, n, batch=bench.batch)
    taken = fastest(repeats, (ours, theirs), bench.device)
    how = f"{'bfloat16' if bf16 else 'float32'}, {'compiled' if compiled else 'eager'}"
    what = f"sampling ddim, uniform, {steps} steps, batch {bench.batch}, {how}: peer diffusers' DDIMPipeline, eager"
    return [speed_row(what, n / taken[0], n / taken[1], "images/s", bench.device)]


def ddim_pipeline(bench: Bench, steps: int, *, bf16: bool) -> Callable[..., Any]:
    """diffusers' DDIMPipeline in eager mode on the bench's own network: called with a number of images and the pipeline's options.

    It samples what ``ddim`` samples on the grid ``uniform``.

    Args:
        bf16: under autocast, as the bench's own predictor on a GPU.

    Raises:
        BadValue: the network is not a diffusers UNet2DModel.
    """
    network = bench.model.network
    if not isinstance(network, UNet2DModel):
        raise BadValue(f"diffusers' DDIMPipeline samples a UNet2DModel, {bench.model.name} is a {type(network).__name__}")
    pipeline: Any = DDIMPipeline(network, DDIMScheduler(num_train_timesteps=bench.model.schedule.levels, clip_sample=False))
    pipeline.set_progress_bar_config(disable=True)

    def run(count: int, **options: Any) -> Any:
        with torch.autocast(bench.device.type, dtype=torch.bfloat16) if bf16 else nullcontext():
            return pipeline(count, num_inference_steps=steps, **options)

    return run


def fastest(repeats: int, jobs: Sequence[Callable[[], Any]], device: torch.device) -> list[float]:
    """The least seconds of several runs of each job, after one that is not timed (compiling, tuning of kernels, caches).

    The jobs take turns, so that a device that slows down while it warms up slows them all.
    """
    if repeats < 1:
        raise BadValue(f"repeats must be at least 1, got {repeats}")
    for job in jobs:
        job()
    turns = [[seconds(job, device) for job in jobs] for _ in range(repeats)]
    return [min(taken) for taken in zip(*turns, strict=True)]
