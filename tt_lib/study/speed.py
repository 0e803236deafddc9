"""Images a second of sampling and of evaluating, beside diffusers and pytorch-fid, as rows of ``speed.csv``.

A row has our time and, where there is one, that of a peer, which runs in the same process, on the same device and
with the same network. Everything runs once before it is timed, so no side pays for compiling.
"""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
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
from tt_lib.errors import BadValue, MissingFile
from tt_lib.metrics.evaluate import SETS, check_n, measure, sample_statistics
from tt_lib.metrics.features import INCEPTION, Features, make_fast, statistics_of
from tt_lib.metrics.inception import DIMENSION, FILE, InceptionFeatures, find_inception, plant_random_inception
from tt_lib.metrics.reference import Metric
from tt_lib.noise import StartNoise
from tt_lib.rows import device_name, provenance
from tt_lib.sampling import batches, sample_images
from tt_lib.study.cells import Cell
from tt_lib.study.workbench import Bench

T = TypeVar("T")
Tell = Callable[[str], None]
REPEATS = 5
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


def speed_row(what: str, ours: float, peer: float | None, unit: str, device: torch.device) -> dict[str, Any]:
    """A row of ``speed.csv``, to five digits. The ratio is how many times better ours is: fewer seconds, more images a
    second. Where neither is better (a distance, a share), it is ours over the peer."""
    ratio: float | str = ""
    if peer is not None:
        ratio = round(peer / ours if unit == "s" else ours / peer, 3)
    return {
        "what": what,
        "ours": float(f"{ours:.5g}"),
        "peer": "" if peer is None else float(f"{peer:.5g}"),
        "ratio": ratio,
        "unit": unit,
        "device": device_name(device),
        **provenance(),
    }


# Against diffusers


def measure_against_diffusers(bench: Bench, *, steps: int, n: int, compiled: bool, tell: Tell) -> list[dict[str, Any]]:
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
            f"diffusers' DDIMPipeline samples a UNet2DModel, {bench.model.name} is a {type(network).__name__}; choose "
            "another model"
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
) -> list[dict[str, Any]]:
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
        # All of an evaluation once, with a whole batch and with few samples.
        sample_statistics(sampler, metric.features, range(n, n + bench.batch), batch=bench.batch)
        measure(sampler, metric, 2 * SETS, first_seed=n + bench.batch, batch=bench.batch)
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
