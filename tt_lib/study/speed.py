"""What things cost: seconds of tuning, images a second of sampling and of evaluating, as rows of ``speed.csv``."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from PIL import Image
from torch import Tensor

from tt_lib.datasets import to_uint8
from tt_lib.engine import drive
from tt_lib.errors import BadValue, MissingFile
from tt_lib.metrics.evaluate import SETS, check_n, measure, sample_statistics
from tt_lib.metrics.features import INCEPTION, Features, NetworkFeatures, empty_statistics, make_fast
from tt_lib.metrics.inception import DIMENSION, FILE, find_inception, load_inception, plant_random_inception
from tt_lib.metrics.statistics import FeatureStatistics
from tt_lib.metrics.world import ALONE, World
from tt_lib.noise import SampleNoise, StartNoise
from tt_lib.rows import device_name, provenance
from tt_lib.sampling import Sampler, batches, sample_pixels
from tt_lib.solvers.layout import layout
from tt_lib.study.cells import Cell
from tt_lib.study.workbench import Bench
from tt_lib.timing import UNTUNED, Timing
from tt_lib.tuning import OBJECTIVES, STRATEGIES, TuneConfig
from tt_lib.tuning.problems import Setting, sequential_problem

Tell = Callable[[str], None]
LESS_IS_BETTER = ("s", "loss")


def seconds(job: Callable[[], Any], device: torch.device) -> float:
    """Wall-clock time of a job, with all that it left running on the device."""
    wait(device)
    begun = time.perf_counter()
    job()
    wait(device)
    return time.perf_counter() - begun


def wait(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def warm_up(
    sampler: Sampler,
    features: Features,
    reference: FeatureStatistics,
    batch: int,
    first_seed: int,
    world: World = ALONE,
) -> None:
    """Run all of an evaluation once, with a whole batch and with few samples, from ``first_seed`` on: compiling, tuning of kernels, caches."""
    sample_statistics(sampler, features, range(first_seed, first_seed + batch), batch=batch)
    measure(sampler, features, reference, 2 * SETS, first_seed=first_seed + batch, batch=batch, world=world)


def measure_speed(
    bench: Bench,
    features: Features,
    images: torch.Tensor,
    source: str,
    *,
    cell: Cell = Cell("ddim", "uniform", 10),
    n: int = 10_000,
    optimiser: str = "search",
    tell: Tell | None = None,
) -> list[dict[str, Any]]:
    """Rows for ``speed.csv``: tuning (parallel against sequential), sampling (tuned against untuned), evaluating.

    Everything runs once before it is timed, so that compiling is not counted.

    Args:
        images: to tune on, [P, C, H, W] in [-1, 1].
        source: where they come from, ``real`` or ``generated``.
        cell: solver, grid and NFE.
        n: samples that are timed.
        optimiser: of the tuning.
        tell: called with what is measured next.

    Raises:
        BadValue: fewer than two samples.
    """
    if n < 2:
        raise BadValue(f"n must be at least 2, got {n}")
    tell = tell or (lambda message: None)
    where = f"{cell.solver}, {cell.grid}, {cell.nfe} steps"
    tell("first runs, which are not timed (compiling, if asked for, takes a minute)")
    tuned_cell = Cell(cell.solver, cell.grid, cell.nfe, "consistency-parallel", cell.eta)
    quick = TuneConfig(strategy="parallel", optimiser="search")
    timing = bench.tune(tuned_cell, quick, images, source).timing
    samplers = {UNTUNED: bench.sampler(cell), "tuned": bench.sampler(cell, timing)}
    start = StartNoise(bench.model.shape, bench.device)
    sample_statistics(samplers[UNTUNED], features, range(n), batch=bench.batch, start=start)

    spent = {}
    for strategy in STRATEGIES:
        tell(f"tuning, consistency, {strategy}, {optimiser}")
        config = TuneConfig(strategy=strategy, optimiser=optimiser)
        spent[strategy] = seconds(partial(bench.tune, tuned_cell, config, images, source), bench.device)
    what = f"tuning {where}, consistency, {optimiser}, {len(images)} images: parallel, peer sequential"
    rows = [speed_row(what, spent["parallel"], spent["sequential"], "s", bench.device)]

    rates = {}
    for name, sampler in samplers.items():
        tell(f"sampling, {name}")

        def job(sampler=sampler) -> None:
            for seeds in batches(0, n, bench.batch):
                sampler(seeds, start=start(seeds))

        rates[name] = n / seconds(job, bench.device)
    rows.append(
        speed_row(f"sampling {where}: tuned, peer untuned", rates["tuned"], rates[UNTUNED], "images/s", bench.device)
    )

    tell("evaluating: sampling, features and statistics in one stream")
    taken = seconds(
        lambda: sample_statistics(samplers["tuned"], features, range(n), batch=bench.batch, start=start), bench.device
    )
    rows.append(speed_row(f"evaluating {where}, {features.name}", n / taken, None, "images/s", bench.device))
    return rows


def speed_row(what: str, ours: float, peer: float | None, unit: str, device: torch.device) -> dict[str, Any]:
    """A row of ``speed.csv``, to five digits; the ratio is how many times better ours is: fewer seconds or more images a second.

    Where neither is better (a distance, a share), it is ours over the peer.
    """
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


# FOLDED tt_lib.study.speed
# What the library itself costs: solver and engine beside the network, and sampling beside diffusers' own pipeline.
#
# Rows of ``speed.csv``, as in :mod:`tt_lib.study.speed`. The two sides of a row run in one process, on one device, with one network.
#


REPEATS = 3


def measure_overhead(
    bench: Bench, cells: Sequence[Cell], *, compiled: bool = False, repeats: int = REPEATS, tell: Tell | None = None
) -> list[dict[str, Any]]:
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
    bench: Bench,
    *,
    steps: int = 10,
    n: int = 256,
    bf16: bool,
    compiled: bool,
    repeats: int = REPEATS,
    tell: Tell | None = None,
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
        raise BadValue(
            f"diffusers' DDIMPipeline samples a UNet2DModel, {bench.model.name} is a {type(network).__name__}"
        )
    pipeline: Any = DDIMPipeline(
        network, DDIMScheduler(num_train_timesteps=bench.model.schedule.levels, clip_sample=False)
    )
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


# FOLDED tt_lib.study.speed
# An evaluation of ours beside the usual way: sample to PNG files, then run pytorch-fid's command on the folder.
#
# Both sides sample the same images with the same network at the same settings, take Inception-2015 features, and compare them
# with one reference whose statistics are there already. They end with a distance each, and the two distances must agree: that
# too is a row. Where the official weights of Inception are not at hand random ones of its architecture serve, since the time does
# not depend on their values; a distance in them means nothing but that both sides have computed the same.
#


# pytorch-fid 0.3.0 asks scipy.linalg.sqrtm for disp=False, which SciPy 1.18 no longer knows: its users then give it back, as here.
RESTORED_SQRTM = """
import runpy
from scipy import linalg
plain = linalg.sqrtm
linalg.sqrtm = lambda a, disp=True: plain(a) if disp else (plain(a), 0.0)
runpy.run_module("pytorch_fid", run_name="__main__")
"""


def inception_weights(home: Path) -> tuple[Path, str]:
    """Inception's weights and what they are: the official ones, or random ones that are written below ``home``."""
    try:
        return find_inception(), "official weights"
    except MissingFile:
        return plant_random_inception(home), "random weights"


def inception_features(weights: Path, device: torch.device) -> NetworkFeatures:
    """Inception's features with just these weights, official or not."""
    network = load_inception(weights, device, verify=False)
    return NetworkFeatures(INCEPTION, network, DIMENSION, network.sha256, "FID", device)


def statistics_of(images: Tensor, features: NetworkFeatures, batch: int) -> FeatureStatistics:
    """Statistics of images [P, C, H, W] in [-1, 1], as a reference."""
    found = empty_statistics(features)
    for part in images.split(batch):
        found.update(features(to_uint8(part)))
    return found


def measure_against_pytorch_fid(
    bench: Bench,
    images: Tensor,
    folder: Path,
    *,
    cell: Cell,
    n: int,
    compiled: bool,
    half: bool | None = None,
    tell: Tell | None = None,
) -> list[dict[str, Any]]:
    """Rows for ``speed.csv``: the whole evaluation of both sides, the parts of both, and the two distances.

    Ours begins with seeds and ends with the distance and its interval, keeping its state on disk as `tt evaluate` does. The peer
    begins with its noise drawn already and samples as ours does; its PNG files are written one at a time (and, for the second row,
    by eight threads), and pytorch-fid is a process of its own with a batch of 50, its default (and of 500), and as many workers as it
    likes. Where the cell is what diffusers' DDIMPipeline samples, a third row has that for a peer, in eager mode, as most people
    sample: its images are its own, of the same network in as many steps. Before the clock starts everything has run once, so no side
    pays for compiling.

    Args:
        images: [P, 3, H, W] in [-1, 1], whose statistics are the reference; more than 2,048 for an ordinary covariance.
        folder: an empty folder for all that is written.
        cell: the sampler.
        n: samples, a multiple of 10.
        compiled: what the bench's network is; ours compiles Inception too.
        half: ours takes features in float16, and for further rows in float32, as pytorch-fid does. By default on a GPU only: on a CPU
            float16 is slower than float32, so there ours stays what `tt evaluate` has.

    Raises:
        BadValue: images that are not in colour, or pytorch-fid ended with an error.
    """
    tell = tell or (lambda message: None)
    check_n(n)
    if bench.model.shape[0] != 3:
        raise BadValue(
            f"Inception takes colour images, those of {bench.model.name} have {bench.model.shape[0]} channels; choose another model"
        )
    device, sampler = bench.device, bench.sampler(cell)
    weights, which = inception_weights(folder)
    half = device.type == "cuda" if half is None else half
    exact = inception_features(weights, device)
    features = make_fast(inception_features(weights, device), bench.batch, compiled) if half else exact
    tell(f"reference: {len(images)} images, {which} of Inception")
    reference = statistics_of(images, exact, bench.batch)
    npz = folder / "reference.npz"
    np.savez(npz, mu=reference.mean.cpu().numpy(), sigma=reference.covariance.cpu().numpy())

    tell("first runs, which are not timed (compiling, if asked for, takes minutes)")
    warm_up(sampler, features, reference, bench.batch, n)
    tell(f"ours: {n} samples")
    found = []
    ours = seconds(
        lambda: found.append(measure(sampler, features, reference, n, batch=bench.batch, work=folder / "ours")), device
    )

    how = f"{'float16' if half else 'float32'}{', compiled' if compiled else ''}"
    where = f"{cell.solver}, {cell.grid}, {cell.nfe} steps, {bench.model.name}, n {n}"
    what, plain = (f"evaluating {where}, {INCEPTION} ({which}, {each})" for each in (how, "float32"))
    rows, distances, wholes = [], [], {}
    start = StartNoise(bench.model.shape, device, most=n)
    for seeds in batches(0, n, bench.batch):
        start(seeds)
    samplers: list[tuple[str, Callable[[Path], tuple[float, float]], int]] = [
        (
            f"PNG files by {writers} thread{'s' * (writers > 1)}",
            partial(sample_to_png, sampler, n, bench.batch, start, writers=writers),
            fid_batch,
        )
        for writers, fid_batch in ((1, 50), (8, 500))
    ]
    if _is_the_pipelines(bench, cell):
        pipeline = ddim_pipeline(bench, cell.nfe, bf16=half)
        samplers.append(
            (
                "PNG files of diffusers' DDIMPipeline, eager",
                partial(pipeline_to_png, pipeline, n, bench.batch, device),
                50,
            )
        )
    for number, (files, sample, fid_batch) in enumerate(samplers):
        peer = f"{files}, pytorch-fid with batch {fid_batch}"
        tell(f"peer: {peer}")
        pngs = folder / f"png-{number}"
        sampling, writing = sample(pngs)
        begun = time.perf_counter()
        distances.append(run_pytorch_fid(pngs, npz, device, weights, fid_batch))
        parts = {"sampling": sampling, "writing PNG files": writing, "pytorch-fid": time.perf_counter() - begun}
        wholes[peer] = sum(parts.values())
        rows.append(speed_row(f"{what}: peer {peer}", ours, wholes[peer], "s", device))
        rows += [
            speed_row(f"{peer}, {where}: {part}, peer the whole", one, wholes[peer], "s of all", device)
            for part, one in parts.items()
        ]
    rows.append(
        speed_row(
            f"distance, {what}: peer pytorch-fid's of the same samples", found[0].value, distances[0], "FD", device
        )
    )
    if half:
        tell("the same with features in float32, which give pytorch-fid's distance")
        taken = seconds(
            lambda: found.append(measure(sampler, exact, reference, n, batch=bench.batch, work=folder / "float32")),
            device,
        )
        rows += [speed_row(f"{plain}: peer {peer}", taken, whole, "s", device) for peer, whole in wholes.items()]
        rows.append(speed_row(f"distance, {what}: peer ours in float32", found[0].value, found[1].value, "FD", device))
    return rows


def sample_to_png(
    sampler: Sampler, n: int, batch: int, start: StartNoise, folder: Path, writers: int
) -> tuple[float, float]:
    """Sample the seeds 0 .. n - 1 and write each image as a PNG file; returns the seconds of both.

    Args:
        start: holds the noise already.
        writers: threads that write; Pillow compresses without holding the interpreter's lock.
    """

    def sample(seeds: range) -> np.ndarray:
        return to_uint8(sampler(seeds, start=start(seeds)).x).permute(0, 2, 3, 1).cpu().numpy()

    return _to_png(sample, _save, n, batch, folder, writers)


def _is_the_pipelines(bench: Bench, cell: Cell) -> bool:
    """Whether diffusers' DDIMPipeline, with its default spacing, samples what a cell names."""
    return isinstance(bench.model.network, UNet2DModel) and cell == Cell("ddim", "uniform", cell.nfe)


def pipeline_to_png(
    pipeline: Callable[..., Any], n: int, batch: int, device: torch.device, folder: Path
) -> tuple[float, float]:
    """Sample n images with a pipeline of diffusers and write each as a PNG file; returns the seconds of both. One batch runs first, untimed."""
    generator = torch.Generator(device).manual_seed(0)

    def sample(seeds: range) -> list[Image.Image]:
        return pipeline(len(seeds), generator=generator).images

    sample(range(min(batch, n)))
    return _to_png(sample, Image.Image.save, n, batch, folder, writers=1)


def _to_png(
    sample: Callable[[range], Iterable[Any]],
    save: Callable[[Any, Path], None],
    n: int,
    batch: int,
    folder: Path,
    writers: int,
) -> tuple[float, float]:
    """Write the images of the seeds 0 .. n - 1 to ``folder``, batch by batch; returns the seconds of sampling and of writing."""
    folder.mkdir(parents=True)
    sampling = writing = 0.0
    with ThreadPoolExecutor(writers) as pool:
        for seeds in batches(0, n, batch):
            begun = time.perf_counter()
            images = sample(seeds)
            sampled = time.perf_counter()
            names = [folder / f"{seed:06d}.png" for seed in seeds]
            list((pool.map if writers > 1 else map)(save, images, names))
            sampling, writing = sampling + sampled - begun, writing + time.perf_counter() - sampled
    return sampling, writing


def _save(pixels: np.ndarray, path: Path) -> None:
    Image.fromarray(pixels).save(path)


def run_pytorch_fid(pngs: Path, reference: Path, device: torch.device, weights: Path, batch: int) -> float:
    """The distance that ``python -m pytorch_fid`` prints for a folder and a reference: its statistics (``.npz``), or another folder.

    Args:
        weights: given to it in the cache of torch hub, where it looks for what it has downloaded.

    Raises:
        BadValue: it ended with an error.
    """
    from scipy import linalg

    home = _cache(weights, pngs.parent / "torch")
    start = ["-m", "pytorch_fid"] if "disp" in inspect.signature(linalg.sqrtm).parameters else ["-c", RESTORED_SQRTM]
    return _distance([*start, str(pngs), str(reference), "--device", str(device), "--batch-size", str(batch)], home)


def _distance(arguments: Sequence[str], home: Path) -> float:
    ended = subprocess.run(
        [sys.executable, *arguments],
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


def _cache(weights: Path, home: Path) -> Path:
    """A torch home whose cache holds the weights, under the name that pytorch-fid looks for."""
    place = home / "hub" / "checkpoints" / FILE
    place.parent.mkdir(parents=True, exist_ok=True)
    if not place.exists():
        place.symlink_to(weights.resolve())
    return home


# FOLDED tt_lib.study.speed
# Tuning in one batch beside the authors' procedure, with what both timings are worth.
#
# The peer is the paper's own way with the defaults of the authors' code (:class:`tt_lib.tuning.TuneConfig`): consistency, one step
# after another on the states of the tuned sampler, 500 iterations of Adam each. Ours is the same objective for all steps in one
# batch by a search without gradients. Being faster says nothing unless the timings are as good, so both, and no timing at
# all, are judged in the same way on images that neither was tuned on.
#


AUTHORS = TuneConfig()
OURS = TuneConfig(strategy="parallel", optimiser="search")


def measure_against_authors(
    bench: Bench,
    images: Tensor,
    source: str,
    *,
    cell: Cell,
    iterations: int = AUTHORS.iterations,
    features: Features | None = None,
    reference: FeatureStatistics | None = None,
    n: int = 0,
    tell: Tell | None = None,
) -> list[dict[str, Any]]:
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
    rows = [
        speed_row(
            f"tuning {where}, consistency, parallel, search: {peer}",
            taken["parallel"],
            taken["authors"],
            "s",
            bench.device,
        )
    ]

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


# FOLDED tt_lib.study.speed
# An evaluation by all processes that torchrun has started beside the same evaluation by one of them, in one run.


ROUNDING = 1e-6
"""The largest relative difference of two distances of the same samples that is put down to rounding."""


def measure_against_one_process(
    bench: Bench,
    features: NetworkFeatures,
    reference: FeatureStatistics,
    folder: Path,
    world: World,
    *,
    cell: Cell,
    n: int,
    how: str,
    tell: Tell | None = None,
) -> list[dict[str, Any]]:
    """Two rows: images a second of all processes together, beside those of the main one while the others wait, and how far
    their distances lie apart.

    Both begin with seeds and end with a distance and its interval, and everything has run once before. All processes run the same
    kernels (:func:`tt_lib.networks.running.compile_options`), so the distances differ by the order in which statistics are added.

    Args:
        folder: an empty folder for the state, the same for all processes or one for each: the main process writes.
        how: precision and compiling, for the row.

    Raises:
        BadValue: there is only one process, or rounding does not explain how far the distances lie apart.
    """
    if world.size == 1:
        raise BadValue(
            "there is one process only; start it with torchrun --nproc_per_node 2 -m tt_lib speed --against one-process ..."
        )
    tell = tell if tell and world.main else (lambda message: None)
    sampler = bench.sampler(cell)

    def job(who: World, work: str) -> float:
        return measure(sampler, features, reference, n, batch=bench.batch, work=folder / work, world=who).value

    tell("first runs, which are not timed (compiling, if asked for, takes minutes)")
    warm_up(sampler, features, reference, bench.batch, n, world)
    values = []
    tell(f"{n} samples by one process")
    world.gather(0)
    alone = seconds(lambda: values.append(job(ALONE, "one")), bench.device) if world.main else 0.0
    world.gather(0)
    tell(f"{n} samples by {world.size} processes")
    together = seconds(lambda: values.append(job(world, "all")), bench.device)
    if not world.main:
        return []
    apart = abs(values[1] / values[0] - 1)
    if apart > ROUNDING:
        raise BadValue(
            f"one process measured {values[0]} and {world.size} measured {values[1]}, which should be the same but for {ROUNDING:g}; "
            f"with --compile on a GPU that takes torch 2.10 or newer, and this is {torch.__version__}"
        )
    what = (
        f"evaluating {cell.solver}, {cell.grid}, {cell.nfe} steps, {bench.model.name}, n {n}, {features.name} ({how})"
    )
    rows = [
        speed_row(f"{what}: {world.size} processes, peer one", n / together, n / alone, "images/s", bench.device),
        speed_row(
            f"{what}: distance by {world.size} processes and by one, relative difference",
            apart,
            None,
            "share",
            bench.device,
        ),
    ]
    return [{**row, "device": device_name(bench.device, world.size)} for row in rows]
