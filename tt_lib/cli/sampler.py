"""``tt tune``, ``tt sample`` and ``tt evaluate``: one sampler at a time."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tt_lib.cli.app import (
    DataOption,
    DeviceOption,
    FastFeaturesOption,
    ForceOption,
    SeedOption,
    console,
    faster,
    pick_device,
    pick_devices,
    place,
    png_place,
    progress_bar,
    say,
)
from tt_lib.files import refuse_overwrite

if TYPE_CHECKING:
    from torch import Tensor

    from tt_lib.sampling import Sampler
    from tt_lib.study.cells import Cell
    from tt_lib.study.workbench import Bench


ModelOption = Annotated[str, typer.Option(help="A model folder, a shipped model, its data set, or a Hub repository.")]
SolverOption = Annotated[
    str, typer.Option(help="ddim, dpmpp-2m, ...: `tt info` lists all; with options as in unipc,order=2,variant=bh1.")
]
GridOption = Annotated[str, typer.Option(help="uniform, uniform-trailing, quadratic, logsnr or karras.")]
NfeOption = Annotated[int, typer.Option(help="Network evaluations for an image.")]
EtaOption = Annotated[float, typer.Option(help="Share of ancestral noise (ddim): 0 is deterministic.")]
BatchOption = Annotated[int, typer.Option(help="Images at a time.")]
# torchrun takes --n for the beginning of an option of its own, wherever it stands: hence the second name.
SamplesOption = Annotated[
    int, typer.Option("--n", "--samples", help="Samples, a multiple of 10: 50000 for a number to compare with.")
]
TimingOption = Annotated[
    str | None,
    typer.Option(
        help="A tuned timing (JSON), or the name of a correction: epsilon-1.005, time-shift; untuned without."
    ),
]
CompileOption = Annotated[bool, typer.Option("--compile", help="torch.compile the network: for many images on a GPU.")]


def tune(
    model: ModelOption = "cifar10",
    solver: SolverOption = "ddim",
    grid: GridOption = "uniform",
    nfe: NfeOption = 10,
    eta: EtaOption = 0.0,
    objective: Annotated[
        str,
        typer.Option(
            help="consistency (the paper's), truncation; with --strategy joint --optimiser search also frechet and end."
        ),
    ] = "consistency",
    strategy: Annotated[
        str, typer.Option(help="sequential (the paper's), parallel, or joint (frechet and end only).")
    ] = "sequential",
    optimiser: Annotated[
        str,
        typer.Option(
            help="adam (the authors') or search (no gradients, much faster); joint: search (COBYQA) or cma-es."
        ),
    ] = "adam",
    tries: Annotated[int, typer.Option(help="Timings judged for each step that may move, at most (joint only).")] = 120,
    iterations: Annotated[int, typer.Option(help="Adam's iterations for each step.")] = 500,
    tune_batch: Annotated[int, typer.Option(help="Images in an iteration.")] = 64,
    lr: Annotated[float, typer.Option(help="Adam's learning rate.")] = 2e-3,
    value: Annotated[str, typer.Option(help="Learn the ratio tau / t or the offset tau - t.")] = "ratio",
    low: Annotated[float | None, typer.Option(help="Smallest tau / t allowed (give both or neither).")] = None,
    high: Annotated[float | None, typer.Option(help="Largest tau / t allowed.")] = None,
    freeze_last: Annotated[
        int | None, typer.Option(help="How many last steps keep tau = t; 0 tunes all. 1 if not given, with frechet 0.")
    ] = None,
    gate: Annotated[
        bool,
        typer.Option(
            "--gate", help="A step keeps its tau only if that is better on 256 other images, too (not joint)."
        ),
    ] = False,
    images: Annotated[int, typer.Option(help="Images to tune on.")] = 256,
    source: Annotated[str, typer.Option(help="real (training images) or generated (by the network itself).")] = "real",
    samples: Annotated[int, typer.Option(help="Samples that judge one timing (joint only).")] = 1000,
    features: Annotated[str, typer.Option(help="Features of the distance (frechet only).")] = "cifar10-resnet",
    dataset: Annotated[str, typer.Option(help="Data set of the real images: cifar10 or digits.")] = "cifar10",
    data: DataOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Timing to write [default: data/timings/<model>/<cell>.json].")
    ] = None,
    history: Annotated[
        Path | None, typer.Option(help="CSV for loss and tau of every iteration.", callback=place)
    ] = None,
    batch: BatchOption = 64,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    force: ForceOption = False,
) -> None:
    """Tune the conditioning times of one sampler, with the network frozen.

    The defaults are the authors'. Killed and started again, it goes on where it was. Objective frechet judges whole
    timings by the Fréchet distance of their samples, and end by their distance from fine runs: many evaluations, so a GPU is
    wanted.

    Example: `tt tune --nfe 10 --objective truncation --strategy parallel --optimiser search --source generated --images 16`
    """
    from tt_lib.errors import BadValue
    from tt_lib.files import atomic_path
    from tt_lib.metrics.features import load_feature_extractor
    from tt_lib.metrics.reference import load_reference
    from tt_lib.study.cells import Cell, timing_path
    from tt_lib.study.workbench import make_bench
    from tt_lib.tuning import TuneConfig
    from tt_lib.tuning.joint import JOINT, JOINT_OBJECTIVES, JOINT_OPTIMISERS, JointConfig

    if (low is None) != (high is None):
        raise BadValue("give both --low and --high, or neither")
    searches = {"search": JointConfig.optimiser, **{name: name for name in JOINT_OPTIMISERS}}
    joint = objective in JOINT_OBJECTIVES and strategy == JOINT and optimiser in searches
    if not joint and (objective in JOINT_OBJECTIVES or strategy == JOINT):
        raise BadValue(
            f"objective {objective}, strategy {strategy}, optimiser {optimiser}: frechet and end go with joint and search (or cma-es), "
            "and they with these; give --objective frechet --strategy joint --optimiser search"
        )
    if joint and gate:
        raise BadValue("a gate judges steps, and a joint tuning has none: leave --gate out")
    bounds = (low, high) if low is not None and high is not None else None
    config: TuneConfig | JointConfig
    if joint:
        frozen = JointConfig.freeze_last if freeze_last is None else freeze_last
        config = JointConfig(
            objective,
            samples=samples,
            bounds=bounds or JointConfig.bounds,
            freeze_last=frozen,
            tries=tries,
            seed=seed,
            optimiser=searches[optimiser],
        )
    else:
        config = TuneConfig(
            objective=objective,
            strategy=strategy,
            optimiser=optimiser,
            iterations=iterations,
            batch=tune_batch,
            lr=lr,
            value=value,
            bounds=bounds,
            freeze_last=TuneConfig.freeze_last if freeze_last is None else freeze_last,
            seed=seed,
            gate=gate,
        )
    bench = make_bench(model, pick_device(device), batch=batch)
    cell = Cell(solver, grid, nfe, config.name, eta)
    path = out or timing_path(bench.model.name, cell)
    refuse_overwrite(path, force)
    state = path.with_suffix(".state")

    def pictures() -> Tensor:
        return bench.tuning_images(source, images, dataset, str(data) if data else None)

    with progress_bar(f"tune {cell.label}") as report:
        # An analytic solver is tuned with its untuned gamma, and has another at the taus that are found.
        bench.ensure_gamma(cell, None, pictures, source, report)
        if isinstance(config, JointConfig):
            extractor = load_feature_extractor(features, None, bench.device) if objective == "frechet" else None
            reference = load_reference(dataset, "train", extractor) if extractor else None
            result = bench.tune_joint(cell, extractor, reference, config, state, report)
        else:
            held_out = bench.held_out_images(source, images, dataset, str(data) if data else None) if gate else None
            result = bench.tune(cell, config, pictures(), source, state, report, held_out)
        bench.ensure_gamma(cell, result.timing, pictures, source, report)
    result.timing.save(path)
    if history:
        with atomic_path(history) as temporary:
            result.history.to_csv(temporary, index=False)
    ratios = " ".join(f"{ratio:.3f}" for ratio in result.timing.ratios)
    say(f"{path}\ntau / t, from noise to data: {ratios}")


def _asked_for(bench: Bench, cell: Cell, timing: str | None, gamma: Path | None) -> tuple[Sampler, str]:
    """The sampler of an untuned ``cell`` with what --timing and --gamma say, and the name of that timing."""
    from tt_lib.baselines import read_correction
    from tt_lib.timing import load_timing
    from tt_lib.tuning.gamma import load_gamma

    correction = read_correction(timing) if timing else None
    tuned = load_timing(timing) if timing and not correction else None
    cell = dataclasses.replace(cell, timing=correction.name) if correction else cell
    return bench.sampler(cell, tuned, load_gamma(gamma) if gamma else None), tuned.name if tuned else cell.timing


def sample(
    out: Annotated[Path, typer.Option(help="PNG to write, with all images in a grid.", callback=png_place)],
    model: ModelOption = "cifar10",
    solver: SolverOption = "ddim",
    grid: GridOption = "uniform",
    nfe: NfeOption = 10,
    eta: EtaOption = 0.0,
    timing: TimingOption = None,
    gamma: Annotated[
        Path | None, typer.Option(help="gamma of an analytic solver [default: what `tt analytic` stored].")
    ] = None,
    n: Annotated[int, typer.Option(help="Number of images.")] = 32,
    batch: BatchOption = 64,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    force: ForceOption = False,
) -> None:
    """Sample images from the seeds SEED, SEED + 1, ...; a seed gives the same image in every run.

    Example: `tt sample --nfe 10 --out samples.png`
    """
    from tt_lib.figures.pictures import image_grid
    from tt_lib.figures.style import save_figure
    from tt_lib.sampling import sample_pixels
    from tt_lib.study.cells import Cell
    from tt_lib.study.workbench import make_bench

    refuse_overwrite(out, force)
    bench = make_bench(model, pick_device(device), batch=batch)
    sampler, name = _asked_for(bench, Cell(solver, grid, nfe, eta=eta), timing, gamma)
    with progress_bar("sample") as report:
        pixels = sample_pixels(sampler, n, first_seed=seed, batch=batch, progress=report)
    caption = f"{n} samples of {bench.model.name}: {solver}, {grid} grid, {nfe} evaluations, {name}"
    save_figure(image_grid(pixels), out, caption, f"A grid of {n} small generated images.")
    say(f"{out}: {caption}")


def evaluate(
    model: ModelOption = "cifar10",
    solver: SolverOption = "ddim",
    grid: GridOption = "uniform",
    nfe: NfeOption = 10,
    eta: EtaOption = 0.0,
    timing: TimingOption = None,
    gamma: Annotated[
        Path | None, typer.Option(help="gamma of an analytic solver [default: what `tt analytic` stored].")
    ] = None,
    dataset: Annotated[str, typer.Option(help="Whose training images are the reference.")] = "cifar10",
    features: Annotated[
        list[str] | None,
        typer.Option(
            help="cifar10-resnet, cifar10-simclr, the same of digits, or inception-2015 (that is FID); may be repeated: all are "
            "taken from the same samples [default: cifar10-resnet]."
        ),
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="The features' weights, if not in their usual place.")] = None,
    n: SamplesOption = 50_000,
    batch: BatchOption = 500,
    seed: SeedOption = 0,
    results: Annotated[
        Path | None, typer.Option(help="File to add the row to [default: data/results/fd.csv].", callback=place)
    ] = None,
    work: Annotated[Path, typer.Option(help="Folder for the state of an unfinished run.")] = Path("runs/evaluate"),
    more: Annotated[
        bool,
        typer.Option("--more", help="Also distance at infinitely many samples, kernel distance, precision, recall."),
    ] = False,
    compile: CompileOption = False,
    fast_features: FastFeaturesOption = False,
    device: DeviceOption = "auto",
) -> None:
    """Measure the Fréchet distance of a sampler, with a 95 % interval, and write it as a row for each of the features.

    The interval comes from 10 disjoint sets of samples (delete-one jackknife). A killed run goes on
    with the next set. Several GPUs share the batches: `torchrun --nproc_per_node 2 -m tt_lib
    evaluate ...` (under torchrun, write --samples for --n).
    """
    from tt_lib.errors import BadValue
    from tt_lib.metrics.evaluate import fd_row, forget_sets, measure_all, more_rows
    from tt_lib.metrics.reference import SIZE, check_names, load_yardstick
    from tt_lib.rows import FD_COLUMNS, FD_KEY, results_folder, write_rows
    from tt_lib.study.cells import Cell
    from tt_lib.study.workbench import make_bench

    names = features or ["cifar10-resnet"]
    check_names(names)
    if weights and len(names) > 1:
        raise BadValue(
            f"--weights {weights} belong to one of the features; give one --features, or put them in their usual place"
        )
    world, where = pick_devices(device)
    yardsticks = [load_yardstick(name, dataset, where, more=more, weights=weights) for name in names]
    bench = make_bench(model, where, batch=batch, compile=compile)
    yardsticks = [
        dataclasses.replace(each, features=faster(each.features, fast_features, batch, compile)) for each in yardsticks
    ]
    sampler, name = _asked_for(bench, Cell(solver, grid, nfe, eta=eta), timing, gamma)
    with progress_bar("evaluate") as report:
        measured = measure_all(
            sampler,
            yardsticks,
            n,
            first_seed=seed,
            batch=batch,
            work=work,
            world=world,
            keep=SIZE if more else 0,
            progress=report,
        )
    if not world.main:
        return
    rows = []
    for by, found in zip(yardsticks, measured, strict=True):
        row = fd_row(
            found, sampler, by.features, dataset=dataset, reference="train", n=n, seed=seed, timing=name, world=world
        )
        rows += [row, *(more_rows(row, found, by.reference, by.bank, by.features) if by.bank else [])]
    write_rows(results or results_folder() / "fd.csv", rows, FD_COLUMNS, FD_KEY)
    for by in yardsticks:
        forget_sets(sampler, by.features, n, seed, work)
    for row in rows:
        shown = {key: row[key] for key in ("solver", "grid", "nfe", "timing", "metric", "n", "value", "low", "high")}
        console.print(shown, highlight=False)


def info(
    path: Annotated[Path | None, typer.Argument(help="A model folder or a timing; without, what is here.")] = None,
) -> None:
    """Show a model's card or a timing, or what this installation has: versions, devices, models, data."""
    from tt_lib.files import data_folder, read_json
    from tt_lib.networks.unet import CARD, SHIPPED, find_model
    from tt_lib.timing import load_timing

    if path is not None and path.suffix == ".json":
        console.print(dataclasses.asdict(load_timing(path)))
        return
    if path is not None:
        console.print(
            read_json((find_model(str(path)) or path) / CARD, "give a model's folder or name, or a timing's .json")
        )
        return
    import platform

    import torch

    from tt_lib import __version__
    from tt_lib.errors import TTError
    from tt_lib.solvers.registry import SOLVERS

    console.print(
        f"tt_lib {__version__}, python {platform.python_version()}, torch {torch.__version__}", highlight=False
    )
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    say(f"devices: cpu ({torch.get_num_threads()} threads) {' '.join(gpus)}")
    for name in SHIPPED.values():
        say(f"model {name}: {'here' if find_model(name) else 'not here'}")
    say(f"solvers: {', '.join(SOLVERS)}")
    for name, solver in SOLVERS.items():
        for option, values in solver.choices.items():
            say(f"  {name},{option}={' or '.join(map(str, values))} (else {solver.defaults[option]})")
    timings = sorted((data_folder() / "timings").glob("*/*.json"))
    say(f"shipped timings: {len(timings)}")
    try:
        from tt_lib.datasets import load_cifar10

        say(f"CIFAR-10: {len(load_cifar10('test'))} test images found")
    except TTError as error:
        console.print(f"CIFAR-10: {error}", highlight=False, markup=False)


# FOLDED tt_lib.cli.sampler
# ``tt analytic``: what Analytic-DDIM and Analytic-DDPM need to know of a network.


def analytic(
    model: ModelOption = "cifar10",
    solver: Annotated[
        str, typer.Option(help="analytic-ddim or analytic-ddpm; without a timing the two have the same gamma.")
    ] = "analytic-ddim",
    grid: GridOption = "uniform",
    nfe: NfeOption = 10,
    timing: Annotated[Path | None, typer.Option(help="A timing tuned for the solver (JSON); untuned without.")] = None,
    images: Annotated[int, typer.Option(help="Images to measure on.")] = 256,
    source: Annotated[str, typer.Option(help="real (training images) or generated (by the network itself).")] = "real",
    dataset: Annotated[str, typer.Option(help="Data set of the real images: cifar10 or digits.")] = "cifar10",
    data: DataOption = None,
    out: Annotated[
        Path | None, typer.Option(help="File to write [default: data/gamma/<model>/..., where samplers look].")
    ] = None,
    batch: BatchOption = 64,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    force: ForceOption = False,
) -> None:
    """Measure gamma, from which the analytic solvers take the noise of their steps.

    gamma is the mean square of the network's eps at each evaluation, on noised images (Bao et al. 2022). It belongs to one
    model, grid, NFE and timing; `tt tune` and `tt table` measure it themselves where it is missing.

    Example: `tt analytic --nfe 10 --source generated --images 64`
    """
    from tt_lib.study.cells import Cell
    from tt_lib.study.workbench import make_bench
    from tt_lib.timing import load_timing
    from tt_lib.tuning.gamma import gamma_path

    bench = make_bench(model, pick_device(device), batch=batch)
    tuned = load_timing(timing) if timing else None
    path = out or gamma_path(bench.model.name, grid, nfe, tuned)
    refuse_overwrite(path, force)
    pictures = bench.tuning_images(source, images, dataset, str(data) if data else None)
    with progress_bar("analytic") as report:
        gamma = bench.measure_gamma(Cell(solver, grid, nfe), tuned, pictures, source, seed=seed, progress=report)
    gamma.save(path)
    say(f"{'t':>8} {'tau':>8} {'gamma':>10} {'error':>8} {'1 - gamma':>10} {'residual':>10}")
    for row in zip(gamma.times, gamma.taus, gamma.values, gamma.errors, gamma.residuals, strict=True):
        t, tau, value, error, residual = row
        say(f"{t:8.4f} {tau:8.4f} {value:10.6f} {error:8.1e} {1 - value:10.6f} {residual:10.6f}")
    say(f"{path}: {len(gamma.values)} evaluations of {gamma.model}, {gamma.images} images, timing {gamma.timing}")
