"""What things cost: seconds of tuning, images a second of sampling and of evaluating, as rows of ``speed.csv``.

A row has our time and, where there is one, that of a peer, which runs in the same process, on the same device and
with the same network. Everything runs once before it is timed, so no side pays for compiling.
"""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from PIL import Image
from torch import Tensor
from torch.utils.benchmark import timer

from tt_lib.datasets import to_uint8
from tt_lib.engine import drive
from tt_lib.errors import BadValue, MissingFile
from tt_lib.metrics.evaluate import SETS, check_n, measure, sample_statistics
from tt_lib.metrics.features import INCEPTION, Features, make_fast, statistics_of
from tt_lib.metrics.inception import DIMENSION, FILE, InceptionFeatures, find_inception, plant_random_inception
from tt_lib.metrics.reference import Metric
from tt_lib.metrics.world import ALONE, World
from tt_lib.noise import SampleNoise, StartNoise
from tt_lib.rows import device_name, provenance
from tt_lib.sampling import Sampler, batches, run_batches, sample_images
from tt_lib.study.cells import Cell
from tt_lib.study.run_cells import Row
from tt_lib.study.workbench import Bench
from tt_lib.timing import UNTUNED, Timing
from tt_lib.tuning import OBJECTIVES, STRATEGIES, TuneConfig
from tt_lib.tuning.problems import Problems

T = TypeVar("T")
Tell = Callable[[str], None]
LESS_IS_BETTER = ("s", "loss")
REPEATS = 5
OVERHEAD = ("ddim", "dpmpp-2m", "unipc")
"""Solvers whose own time is measured."""
AUTHORS, OURS = TuneConfig(), TuneConfig(strategy="parallel", optimiser="search")
ROUNDING = 1e-6
"""The largest relative difference of two distances of the same samples that is put down to rounding."""
RESTORED_SQRTM = """
import runpy
from scipy import linalg
plain = linalg.sqrtm
linalg.sqrtm = lambda a, disp=True: plain(a) if disp else (plain(a), 0.0)
runpy.run_module("pytorch_fid", run_name="__main__")
"""
"""pytorch-fid 0.3.0 calls scipy.linalg.sqrtm with disp=False, which SciPy 1.18 no longer knows: this gives it back."""


def timed(job: Callable[[], T]) -> tuple[float, T]:
    """Wall-clock seconds of a job, with all that it left running on the device, and what it returned."""
    begun = timer()
    value = job()
    return timer() - begun, value


def fastest(*jobs: Callable[[], Any]) -> list[float]:
    """The least seconds of :data:`REPEATS` runs of each job, after one that is not timed.

    The jobs take turns, so that a device that slows down while it warms up slows them all.
    """
    for job in jobs:
        job()
    rounds = [[timed(job)[0] for job in jobs] for _ in range(REPEATS)]
    return [min(column) for column in zip(*rounds, strict=True)]


def speed_row(what: str, ours: float, peer: float | None, unit: str, device: torch.device) -> Row:
    """A row of ``speed.csv``, to five digits. The ratio is how many times better ours is: fewer seconds, more images a
    second. Where neither is better (a distance, a share), it is ours over the peer."""
    ratio: float | str = ""
    if peer is not None:
        ratio = round(peer / ours if unit in LESS_IS_BETTER else ours / peer, 3)
    return {
        "what": what,
        "ours": float(f"{ours:.5g}"),
        "peer": "" if peer is None else float(f"{peer:.5g}"),
        "ratio": ratio,
        "unit": unit,
        "device": device_name(device),
        **provenance(),
    }


# Our own speeds


def measure_overhead(bench: Bench, cells: Sequence[Cell], compiled: bool, tell: Tell) -> list[Row]:
    """Seconds of one batch beside those of the same evaluations of the network alone: two rows for each cell.

    - The whole run. Its ratio is the network's share: 0.98 is an overhead of 2 %. The CPU prepares a solver's next step
      while a GPU works on the last, so this is less than the sum of both.
    - Solver and engine alone, with the network's answer there already.
    """
    rows = []
    for cell in cells:
        tell(f"overhead of {cell.label}, batch {bench.batch}")
        sampler, t = bench.sampler(cell), torch.tensor(0.5, dtype=torch.float64)
        noise = SampleNoise(range(bench.batch))
        start = noise.start(sampler.shape).to(bench.device)
        answer = torch.zeros_like(start)

        def run(predictor, sampler: Sampler = sampler, start: Tensor = start, noise: SampleNoise = noise) -> None:
            drive(sampler.solver(start, sampler.grid, sampler.schedule, noise), predictor)

        @torch.no_grad()
        def network(sampler: Sampler = sampler, start: Tensor = start, t: Tensor = t, nfe: int = cell.nfe) -> None:
            for _ in range(nfe):
                sampler.predictor(start, t, t)

        whole, around, alone = fastest(
            partial(run, sampler.predictor), partial(run, lambda x, t, tau, answer=answer: answer), network
        )
        how = f"{cell.solver}, {cell.grid}, NFE {cell.nfe}, batch {bench.batch}{', compiled' if compiled else ''}"
        for what, ours in (("whole run", whole), ("solver and engine", around)):
            rows.append(speed_row(f"{what}, {how}: peer the network", ours, alone, "s", bench.device))
    return rows


def measure_own(
    bench: Bench, features: Features, images: Tensor, source: str, *, cell: Cell, n: int, compiled: bool, tell: Tell
) -> list[Row]:
    """Rows of the overhead beside the network, of tuning (parallel against sequential), sampling (tuned against
    untuned) and evaluating.

    Args:
        images: to tune on, [P, C, H, W] in [-1, 1].
        source: where they come from, ``real`` or ``generated``.
        n: samples that are timed, at least two.
    """
    if n < 2:
        raise BadValue(f"n must be at least 2, got {n}")
    rows = measure_overhead(bench, [replace(cell, solver=solver) for solver in OVERHEAD], compiled, tell)
    where = f"{cell.solver}, {cell.grid}, {cell.nfe} steps"
    tell("first runs, which are not timed (compiling, if asked for, takes a minute)")
    timing = bench.tune(cell, OURS, images, source).timing
    samplers = {UNTUNED: bench.sampler(cell), "tuned": bench.sampler(cell, timing)}
    start = StartNoise(bench.model.shape, bench.device)
    sample_statistics(samplers[UNTUNED], features, range(n), batch=bench.batch, start=start)

    spent, rates = {}, {}
    for strategy in STRATEGIES:
        tell(f"tuning, consistency, {strategy}")
        config = replace(OURS, strategy=strategy)
        spent[strategy], _ = timed(partial(bench.tune, cell, config, images, source))
    for name, sampler in samplers.items():
        tell(f"sampling, {name}")
        runs = run_batches(sampler, list(batches(0, n, bench.batch)), start)
        rates[name] = n / timed(partial(deque, runs, maxlen=0))[0]
    tell("evaluating: sampling, features and statistics in one stream")
    job = partial(sample_statistics, samplers["tuned"], features, range(n), batch=bench.batch, start=start)
    rates["evaluating"] = n / timed(job)[0]
    what = f"tuning {where}, consistency, search, {len(images)} images: parallel, peer sequential"
    return [
        *rows,
        speed_row(what, spent["parallel"], spent["sequential"], "s", bench.device),
        speed_row(f"sampling {where}: tuned, peer untuned", rates["tuned"], rates[UNTUNED], "images/s", bench.device),
        speed_row(f"evaluating {where}, {features.name}", rates["evaluating"], None, "images/s", bench.device),
    ]


# Against diffusers


def measure_against_diffusers(bench: Bench, *, steps: int, n: int, compiled: bool, tell: Tell) -> list[Row]:
    """Images a second of DDIM, from seeds to uint8 on the CPU, beside diffusers' DDIMPipeline on the same network.

    Args:
        steps: of DDIM.
        n: images, in batches of ``bench.batch``.
        compiled: whether our network is; the pipeline runs it in eager mode.

    Raises:
        BadValue: the network is not a diffusers UNet2DModel.
    """
    run, sampler = ddim_pipeline(bench, steps), bench.sampler(Cell("ddim", "uniform", steps))
    tell(f"DDIM in {steps} steps, {n} images, ours against diffusers' DDIMPipeline")

    def theirs() -> None:
        generator = torch.Generator(bench.device).manual_seed(0)
        for seeds in batches(0, n, bench.batch):
            run(len(seeds), generator=generator, output_type="np")

    ours, peer = fastest(lambda: to_uint8(sample_images(sampler, n, batch=bench.batch)), theirs)
    how = f"{'bfloat16' if on_gpu(bench) else 'float32'}, {'compiled' if compiled else 'eager'}"
    what = f"sampling ddim, uniform, {steps} steps, batch {bench.batch}, {how}: peer diffusers' DDIMPipeline, eager"
    return [speed_row(what, n / ours, n / peer, "images/s", bench.device)]


def on_gpu(bench: Bench) -> bool:
    """Whether sampling runs in bfloat16, and Inception in float16."""
    return bench.device.type == "cuda"


def ddim_pipeline(bench: Bench, steps: int) -> Callable[..., Any]:
    """diffusers' DDIMPipeline in eager mode on the bench's own network, in the same precision.

    It samples what ``ddim`` samples on the grid ``uniform``; it is called with a number of images and the pipeline's
    options.

    Raises:
        BadValue: the network is not a diffusers UNet2DModel.
    """
    network = bench.model.network
    if not isinstance(network, UNet2DModel):
        raise BadValue(
            f"diffusers' DDIMPipeline samples a UNet2DModel, {bench.model.name} is a {type(network).__name__}"
        )
    scheduler = DDIMScheduler(num_train_timesteps=bench.model.schedule.levels, clip_sample=False)
    pipeline: Any = DDIMPipeline(network, scheduler)
    pipeline.set_progress_bar_config(disable=True)

    def run(count: int, **options: Any) -> Any:
        with torch.autocast(bench.device.type, dtype=torch.bfloat16) if on_gpu(bench) else nullcontext():
            return pipeline(count, num_inference_steps=steps, **options)

    return run


# Against pytorch-fid


def measure_against_pytorch_fid(
    bench: Bench, images: Tensor, folder: Path, *, cell: Cell, n: int, compiled: bool, tell: Tell
) -> list[Row]:
    """A whole evaluation of ours beside the usual way: sample to PNG files, then run pytorch-fid's command.

    Both sides take Inception-2015 features and compare with one reference whose statistics are there already. They end
    with a distance each, and the two must agree: that too is a row. Where the official weights are not at hand random
    ones serve, since the time does not depend on their values.

    Ours begins with seeds and ends with the distance and its interval, keeping its state on disk as `tt evaluate`
    does. The peer begins with its noise drawn already and samples as ours does. Its PNG files are written one at a
    time (for the second row by eight threads), and pytorch-fid is a process of its own with a batch of 50, its
    default (of 500). A third row has diffusers' DDIMPipeline in eager mode for a peer, as most people sample. On a
    GPU ours takes features in float16, and for further rows in float32, as pytorch-fid does.

    Args:
        images: [P, 3, H, W] in [-1, 1], whose statistics are the reference; more than 2,048 for an ordinary covariance.
        folder: an empty folder for all that is written.
        cell: the sampler, DDIM on the uniform grid.
        n: samples, a multiple of 10.
        compiled: what the bench's network is; ours compiles Inception too.

    Raises:
        BadValue: images that are not in colour, or pytorch-fid ended with an error.
    """
    check_n(n)
    if bench.model.shape[0] != 3:
        raise BadValue(
            f"Inception takes colour images, those of {bench.model.name} have {bench.model.shape[0]} channels; choose "
            "another model"
        )
    device, sampler, half = bench.device, bench.sampler(cell), on_gpu(bench)
    weights, which = inception_weights(folder)
    exact = make_fast(inception_features(weights, device), bench.batch, compiled, torch.float32)
    tell(f"reference: {len(images)} images, {which} of Inception")
    reference = statistics_of(to_uint8(images), exact, bench.batch)
    npz = folder / "reference.npz"
    np.savez(npz, mu=reference.mean.cpu().numpy(), sigma=reference.covariance.cpu().numpy())
    how = ", compiled" if compiled else ""
    ours = {f"float32{how}": Metric(exact, reference)}
    if half:
        fast = make_fast(inception_features(weights, device), bench.batch, compiled)
        ours = {f"float16{how}": Metric(fast, reference), **ours}
    start = StartNoise(bench.model.shape, device, most=n)
    for seeds in batches(0, n, bench.batch):
        start(seeds)

    spent, values = {}, {}
    for precision, metric in ours.items():
        tell(f"ours in {precision}: first runs, which are not timed, and {n} samples")
        warm_up(sampler, metric, bench.batch, n)
        spent[precision], measured = timed(
            partial(measure, sampler, metric, n, batch=bench.batch, work=folder / precision)
        )
        values[precision] = measured.value
    pipeline = ddim_pipeline(bench, cell.nfe)
    pipeline(min(bench.batch, n))
    generator = torch.Generator(device).manual_seed(0)

    def own(seeds: range) -> list[Image.Image]:
        pixels = to_uint8(sampler(seeds, start=start(seeds)).x).permute(0, 2, 3, 1).cpu().numpy()
        return [Image.fromarray(each) for each in pixels]

    def diffusers(seeds: range) -> list[Image.Image]:
        return pipeline(len(seeds), generator=generator).images

    peers: dict[str, float] = {}
    for files, sample, writers, batch in (
        ("PNG files by 1 thread", own, 1, 50),
        ("PNG files by 8 threads", own, 8, 500),
        ("PNG files of diffusers' DDIMPipeline, eager", diffusers, 1, 50),
    ):
        peer = f"{files}, pytorch-fid with batch {batch}"
        tell(f"peer: {peer}")
        pngs = folder / f"png-{len(peers)}"
        writing, _ = timed(partial(write_png, sample, n, bench.batch, pngs, writers))
        comparing, values[peer] = timed(partial(run_pytorch_fid, pngs, npz, device, weights, batch))
        peers[peer] = writing + comparing
    where = f"evaluating {cell.solver}, {cell.grid}, {cell.nfe} steps, {bench.model.name}, n {n}, {INCEPTION}"
    what = {precision: f"{where} ({which}, {precision})" for precision in ours}
    rows = [
        speed_row(f"{what[precision]}: peer {peer}", spent[precision], taken, "s", device)
        for precision in ours
        for peer, taken in peers.items()
    ]
    first, last, peer = next(iter(ours)), list(ours)[-1], next(iter(peers))
    others = {"pytorch-fid's of the same samples": values[peer]} | ({"ours in float32": values[last]} if half else {})
    rows += [
        speed_row(f"distance, {what[first]}: peer {name}", values[first], value, "FD", device)
        for name, value in others.items()
    ]
    return rows


def inception_weights(home: Path) -> tuple[Path, str]:
    """Inception's weights and what they are: the official ones, or random ones that are written below ``home``."""
    try:
        return find_inception(), "official weights"
    except MissingFile:
        return plant_random_inception(home), "random weights"


def inception_features(weights: Path, device: torch.device) -> Features:
    """Inception's features with just these weights, official or not."""
    network = InceptionFeatures(weights).to(device)
    return Features(INCEPTION, network, DIMENSION, network.sha256, device)


def warm_up(sampler: Sampler, metric: Metric, batch: int, first_seed: int, world: World = ALONE) -> None:
    """Run all of an evaluation once, with a whole batch and with few samples, from ``first_seed`` on."""
    sample_statistics(sampler, metric.features, range(first_seed, first_seed + batch), batch=batch)
    measure(sampler, metric, 2 * SETS, first_seed=first_seed + batch, batch=batch, world=world)


def write_png(sample: Callable[[range], Iterable[Image.Image]], n: int, batch: int, folder: Path, writers: int) -> None:
    """Write the images of the seeds 0 .. n - 1 to ``folder``, batch by batch.

    Args:
        writers: threads that write; Pillow compresses without holding the interpreter's lock.
    """
    folder.mkdir(parents=True)
    with ThreadPoolExecutor(writers) as pool:
        for seeds in batches(0, n, batch):
            list(pool.map(Image.Image.save, sample(seeds), [folder / f"{seed:06d}.png" for seed in seeds]))


def run_pytorch_fid(pngs: Path, reference: Path, device: torch.device, weights: Path, batch: int) -> float:
    """The distance that ``python -m pytorch_fid`` prints for a folder and a reference: its statistics (``.npz``), or
    another folder.

    Args:
        weights: given to it in the cache of torch hub, where it looks for what it has downloaded.

    Raises:
        BadValue: it ended with an error.
    """
    from scipy import linalg

    home = pngs.parent / "torch"
    cache = home / "hub" / "checkpoints" / FILE
    cache.parent.mkdir(parents=True, exist_ok=True)
    if not cache.exists():
        cache.symlink_to(weights.resolve())
    start = ["-m", "pytorch_fid"] if "disp" in inspect.signature(linalg.sqrtm).parameters else ["-c", RESTORED_SQRTM]
    words = [*start, str(pngs), str(reference), "--device", str(device), "--batch-size", str(batch)]
    ended = subprocess.run(
        [sys.executable, *words],
        env=os.environ | {"TORCH_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    printed = re.search(r"FID:\s+(\S+)", ended.stdout)
    if ended.returncode or not printed:
        last = (ended.stderr.strip() or "no message").splitlines()[-1]
        raise BadValue(f"pytorch-fid ended with code {ended.returncode} and without a distance: {last}")
    return float(printed[1])


# Against the authors


def measure_against_authors(
    bench: Bench, images: Tensor, source: str, *, cell: Cell, iterations: int, tell: Tell
) -> list[Row]:
    """Tuning in one batch beside the authors' procedure, with what both timings are worth.

    The peer is the paper's own way with the defaults of the authors' code (:class:`tt_lib.tuning.TuneConfig`):
    consistency, one step after another on the states of the tuned sampler, 500 iterations of Adam each. Ours is the
    same objective for all steps in one batch by a search. Being faster says nothing unless the timings are as good,
    so both, and no timing at all, are compared on images that neither was tuned on. (Their Fréchet distances are rows
    of `fd.csv`: the table of ablations has them.)

    Args:
        images: [2 P, C, H, W] in [-1, 1]: the first half is tuned on, the second is held out.
        source: where they come from.
        iterations: of the peer's Adam, fewer for a rehearsal.

    Raises:
        BadValue: fewer than two images.
    """
    if len(images) < 2:
        raise BadValue(f"one half of the images is held out, so at least 2 are needed, got {len(images)}")
    images, held_out = images.chunk(2)
    tell("first runs, which are not timed (compiling, if asked for, takes a minute)")
    bench.tune(cell, OURS, images, source)
    bench.tune(cell, replace(AUTHORS, iterations=2), images, source)

    timings: dict[str, Timing | None] = {UNTUNED: None}
    spent = {}
    for name, config in {"parallel": OURS, "authors": replace(AUTHORS, iterations=iterations)}.items():
        tell(f"tuning, {config.name}, {config.optimiser}")
        spent[name], result = timed(partial(bench.tune, cell, config, images, source))
        timings[name] = result.timing
    peer = f"peer the authors' procedure (sequential, Adam, {iterations} iterations a step)"
    where = f"{cell.solver}, {cell.grid}, {cell.nfe} steps, {bench.model.name}, {len(images)} {source} images"
    what = f"tuning {where}, consistency, parallel, search: {peer}"
    rows = [speed_row(what, spent["parallel"], spent["authors"], "s", bench.device)]
    tell("what the timings are worth")
    for objective in OBJECTIVES:
        losses = {name: held_out_loss(bench, cell, timing, held_out, objective) for name, timing in timings.items()}
        for name in ("parallel", UNTUNED):
            what = f"{objective} of {len(held_out)} held-out images, {where}, {name}: {peer}"
            rows.append(speed_row(what, losses[name], losses["authors"], "loss", bench.device))
    return rows


@torch.no_grad()
def held_out_loss(bench: Bench, cell: Cell, timing: Timing | None, images: Tensor, objective: str) -> float:
    """The mean over the tuned steps of an objective along a sampler's own way from noised images, in float32.

    The loss of each step is taken at the state that the steps before it, with their taus, have reached: what the
    authors minimise. The last step, which neither side tunes, does not count.

    Args:
        timing: None is untuned.
        images: x0 [P, ...] in [-1, 1].
        objective: ``consistency`` or ``truncation``; sums over pixels, means over images.
    """
    sampler = replace(bench.sampler(cell), predictor=bench.tuner_predictor)
    problems = Problems(sampler, images, objective, AUTHORS.substeps, seed=1)
    taus = timing.taus if timing else [each.t for each in sampler.evaluations]
    answers: list[Tensor] = []
    losses = []
    for index, each in enumerate(sampler.evaluations):
        if each.step >= sampler.grid.steps - AUTHORS.freeze_last:
            break
        problem = problems.sequential(index, answers)
        losses.append(problem.losses(torch.tensor([taus[index]], dtype=torch.float64)).item())
        answers.append(problem.answer_at(taus[index]))
    if not losses:
        raise BadValue(f"{cell.label} has no step but the last, which is not tuned; give more evaluations")
    return sum(losses) / len(losses)


# Against one process


def measure_against_one_process(
    bench: Bench, metric: Metric, folder: Path, world: World, *, cell: Cell, n: int, compiled: bool, tell: Tell
) -> list[Row]:
    """Two rows: images a second of all processes together, beside those of the main one while the others wait, and how
    far their distances lie apart.

    Both begin with seeds and end with a distance and its interval. All processes run the same kernels
    (:func:`tt_lib.networks.running.compile_network`), so the distances differ by the order in which statistics are
    added.

    Args:
        folder: an empty folder for the state, the same for all processes or one for each: the main process writes.

    Raises:
        BadValue: there is only one process, or rounding does not explain how far the distances lie apart.
    """
    if world.size == 1:
        raise BadValue(
            "there is one process only; start it with "
            "torchrun --nproc_per_node 2 -m tt_lib speed --against one-process ..."
        )
    sampler = bench.sampler(cell)

    def job(who: World, work: str) -> float:
        return measure(sampler, metric, n, batch=bench.batch, work=folder / work, world=who).value

    tell("first runs, which are not timed (compiling, if asked for, takes minutes)")
    warm_up(sampler, metric, bench.batch, n, world)
    tell(f"{n} samples by one process")
    world.gather(0)
    alone, first = timed(partial(job, ALONE, "one")) if world.main else (0.0, 0.0)
    world.gather(0)
    tell(f"{n} samples by {world.size} processes")
    together, second = timed(partial(job, world, "all"))
    if not world.main:
        return []
    apart = abs(second / first - 1)
    if apart > ROUNDING:
        raise BadValue(
            f"one process measured {first} and {world.size} measured {second}, which should be the same but for "
            f"{ROUNDING:g}; with --compile on a GPU that takes torch 2.10 or newer, and this is {torch.__version__}"
        )
    how = f"sampling in {'bfloat16' if on_gpu(bench) else 'float32'}{', compiled' if compiled else ''}"
    what = f"evaluating {cell.solver}, {cell.grid}, {cell.nfe} steps, {bench.model.name}, n {n}, {metric.features.name}"
    what, device = f"{what} ({how})", bench.device
    difference = f"{what}: distance by {world.size} processes and by one, relative difference"
    rows = [
        speed_row(f"{what}: {world.size} processes, peer one", n / together, n / alone, "images/s", device),
        speed_row(difference, apart, None, "share", device),
    ]
    return [{**row, "device": device_name(device, world.size)} for row in rows]
