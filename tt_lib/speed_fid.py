"""An evaluation of ours beside the usual way: sample to PNG files, then run pytorch-fid's command on the folder.

Both sides sample the same images with the same network at the same settings, take Inception-2015 features, and compare them
with one reference whose statistics are there already. They end with a distance each, and the two distances must agree: that
too is a row. Where the official weights of Inception are not at hand random ones of its architecture serve, since the time does
not depend on their values; a distance in them means nothing but that both sides have computed the same.
"""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DModel
from PIL import Image
from torch import Tensor

from tt_lib.bench import Bench, Cell
from tt_lib.benchmarks import ddim_pipeline
from tt_lib.datasets import to_uint8
from tt_lib.errors import BadValue, MissingFile
from tt_lib.evaluating import check_n, measure
from tt_lib.metrics.fast import make_fast
from tt_lib.metrics.features import INCEPTION, NetworkFeatures, empty_statistics
from tt_lib.metrics.inception import DIMENSION, FILE, find_inception, load_inception, plant_random_inception
from tt_lib.metrics.statistics import FeatureStatistics
from tt_lib.noise import StartNoise
from tt_lib.sampling import Sampler, batches
from tt_lib.speed import Tell, seconds, speed_row, warm_up

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
    bench: Bench, images: Tensor, folder: Path, *, cell: Cell, n: int, compiled: bool, half: bool | None = None, tell: Tell | None = None
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
        raise BadValue(f"Inception takes colour images, those of {bench.model.name} have {bench.model.shape[0]} channels; choose another model")
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
    ours = seconds(lambda: found.append(measure(sampler, features, reference, n, batch=bench.batch, work=folder / "ours")), device)

    how = f"{'float16' if half else 'float32'}{', compiled' if compiled else ''}"
    where = f"{cell.solver}, {cell.grid}, {cell.nfe} steps, {bench.model.name}, n {n}"
    what, plain = (f"evaluating {where}, {INCEPTION} ({which}, {each})" for each in (how, "float32"))
    rows, distances, wholes = [], [], {}
    start = StartNoise(bench.model.shape, device, most=n)
    for seeds in batches(0, n, bench.batch):
        start(seeds)
    samplers: list[tuple[str, Callable[[Path], tuple[float, float]], int]] = [
        (f"PNG files by {writers} thread{'s' * (writers > 1)}", partial(sample_to_png, sampler, n, bench.batch, start, writers=writers), fid_batch)
        for writers, fid_batch in ((1, 50), (8, 500))
    ]
    if _is_the_pipelines(bench, cell):
        pipeline = ddim_pipeline(bench, cell.nfe, bf16=half)
        samplers.append(("PNG files of diffusers' DDIMPipeline, eager", partial(pipeline_to_png, pipeline, n, bench.batch, device), 50))
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
    rows.append(speed_row(f"distance, {what}: peer pytorch-fid's of the same samples", found[0].value, distances[0], "FD", device))
    if half:
        tell("the same with features in float32, which give pytorch-fid's distance")
        taken = seconds(lambda: found.append(measure(sampler, exact, reference, n, batch=bench.batch, work=folder / "float32")), device)
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


def pipeline_to_png(pipeline: Callable[..., Any], n: int, batch: int, device: torch.device, folder: Path) -> tuple[float, float]:
    """Sample n images with a pipeline of diffusers and write each as a PNG file; returns the seconds of both. One batch runs first, untimed."""
    generator = torch.Generator(device).manual_seed(0)

    def sample(seeds: range) -> list[Image.Image]:
        return pipeline(len(seeds), generator=generator).images

    sample(range(min(batch, n)))
    return _to_png(sample, Image.Image.save, n, batch, folder, writers=1)


def _to_png(
    sample: Callable[[range], Iterable[Any]], save: Callable[[Any, Path], None], n: int, batch: int, folder: Path, writers: int
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
        [sys.executable, *arguments], env=os.environ | {"TORCH_HOME": str(home)}, capture_output=True, text=True, check=False
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
