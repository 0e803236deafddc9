"""``tt tune``, ``tt learn``, ``tt sample``, ``tt evaluate`` and ``tt direction``: one sampler at a time."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tt_lib.cli.app import (
    DataOption,
    DatasetOption,
    DeviceOption,
    FastFeaturesOption,
    ForceOption,
    SeedOption,
    faster,
    pick_device,
    pick_devices,
    place,
    progress_bar,
    results_file,
    rows_option,
    say,
    work_place,
)
from tt_lib.files import refuse_overwrite

if TYPE_CHECKING:
    from torch import Tensor

    from tt_lib.sampling import Progress, Sampler
    from tt_lib.study.workbench import Bench
    from tt_lib.timing import Timing

GAMMA_IMAGES = 64
"""Images that a network makes for itself to measure gamma on, where an analytic solver has none yet."""

ModelOption = Annotated[
    str, typer.Option(help="A model folder, a Hub repository (owner/name), or cifar10, the shipped model.")
]
SolverOption = Annotated[
    str,
    typer.Option(
        help="Update rule, such as ddim or dpmpp-2m; `tt info` lists all. Options: unipc,order=2,variant=bh1."
    ),
]
GridOption = Annotated[
    str | None,
    typer.Option(
        help="Nominal times: uniform, uniform-trailing, quadratic, logsnr or karras [default: uniform; a timing "
        "that was learned with its grid brings its own]."
    ),
]
NfeOption = Annotated[int, typer.Option(help="Number of network evaluations for each image (NFE).")]
EtaOption = Annotated[float, typer.Option(help="Share of ancestral noise, for ddim: from 0 (deterministic) to 1.")]
BatchOption = Annotated[int, typer.Option(help="Images in one call of the network.")]
# torchrun takes --n for the beginning of an option of its own, wherever it stands: hence the second name.
SamplesOption = Annotated[
    int, typer.Option("--n", "--samples", help="Number of samples, a multiple of 10; published numbers take 50000.")
]
TimingOption = Annotated[
    str,
    typer.Option(
        help="Conditioning times: a timing's JSON file, or a name such as untuned, truncation-parallel, constant-0.95, "
        "epsilon-1.005 or time-shift. A tuned or learned name stands for its file in data/timings/."
    ),
]
TimingPlaceOption = Annotated[
    Path | None,
    typer.Option(help="JSON file to write [default: data/timings/MODEL/CELL.json].", callback=place(".json")),
]
CompileOption = Annotated[
    bool, typer.Option("--compile", help="torch.compile the network; pays for many images on a GPU.")
]


def tune(
    model: ModelOption = "cifar10",
    solver: SolverOption = "ddim",
    grid: GridOption = None,
    nfe: NfeOption = 10,
    eta: EtaOption = 0.0,
    timing: Annotated[
        str, typer.Option(help="Objective, strategy and options of tuning, as described above.")
    ] = "truncation-parallel",
    dataset: DatasetOption = "cifar10",
    data: DataOption = None,
    out: TimingPlaceOption = None,
    batch: BatchOption = 64,
    compile: CompileOption = False,
    device: DeviceOption = "auto",
    force: ForceOption = False,
) -> None:
    """Tune the conditioning times of one sampler, with the network frozen.

    --timing names the objective and the strategy. The objective is `consistency` (the paper's) or `truncation` (the
    distance to a converged solution). The strategy is `-sequential` (the default of the authors' code) or
    `-parallel` (all steps in one batch). `-freeze2` after them leaves the last two steps untuned.

    Options follow after commas: `images=16`, `source=generated` (the network's own images; no data set is needed),
    `optimiser=adam` (as the authors do; the default is a search without gradients), `iterations`, `learning_rate`,
    `batch`, `value=offset`, `substeps`, `seed`, `gate=true`.

    If it is interrupted, start the same command again: it resumes.

    Example: `tt tune --nfe 5 --timing truncation-parallel,images=8,source=generated --out runs/five.json`
    """
    from tt_lib.errors import BadValue
    from tt_lib.study.cells import Cell, check_recipe, is_tuned, parse_timing, timing_path, usual_grid
    from tt_lib.study.workbench import make_bench

    cell = Cell(solver, grid or usual_grid(timing), nfe, timing, eta)
    if not is_tuned(cell.timing):
        raise BadValue(
            f"there is nothing to tune in {timing!r}; name objective and strategy, as in truncation-parallel"
        )
    recipe = parse_timing(cell.timing, {"optimiser": "search"})
    check_recipe(cell, recipe)
    bench = make_bench(model, pick_device(device), batch=batch, compile=compile)
    path = out or timing_path(bench.model.name, cell)
    refuse_overwrite(path, force)
    state = path.with_name(f"{path.name}.state")

    def images() -> Tensor:
        return bench.tuning_images(recipe.source, recipe.images, dataset, data)

    with progress_bar(f"tune {cell.label}") as report:
        # An analytic solver is tuned with its untuned gamma, and has another at the tuned times.
        bench.ensure_gamma(cell, None, images, recipe.source, report)
        tuned = bench.tune_by(cell, recipe, dataset, data, state, report)
        bench.ensure_gamma(cell, tuned, images, recipe.source, report)
    _keep(tuned, path, state)
    if tuned.taus == tuned.times and not recipe.learned:
        say("no conditioning time has changed: none that was tried is better than tau = t, or the gate refused it")


def learn(
    context: typer.Context,
    model: ModelOption = "cifar10",
    solver: SolverOption = "unipc,final=lower",
    nfe: NfeOption = 6,
    knobs: Annotated[
        str, typer.Option(help="What is learned: grid, timing or gain, or several with commas between.")
    ] = "grid,timing",
    start: Annotated[
        str, typer.Option(help="The grid that learning starts from; with --pipeline, by default the pipeline's own.")
    ] = "uniform",
    loss: Annotated[
        str,
        typer.Option(
            help="Distance to the converged solution: in features (of the data set's classifier) or in pixels."
        ),
    ] = "features",
    noises: Annotated[int, typer.Option(help="Start noises to learn from; with --pipeline, by default 256.")] = 4096,
    iterations: Annotated[int, typer.Option(help="Steps of Adam; with --pipeline, by default 150.")] = 300,
    seed: Annotated[int, typer.Option(help="Seed of the noises and of their order, 0 to 999.")] = 0,
    dataset: DatasetOption = "cifar10",
    pipeline: Annotated[
        str,
        typer.Option(
            help="In place of --model: a text-to-image pipeline of diffusers, as a folder or a Hub repository."
        ),
    ] = "",
    prompts: Annotated[
        Path | None,
        typer.Option(help="With --pipeline: a UTF-8 file, one prompt a line. Every fourth prompt is held out."),
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="With --pipeline: its guidance_scale [default: the pipeline's].")
    ] = None,
    size: Annotated[
        str, typer.Option(help="With --pipeline: HEIGHTxWIDTH in pixels, or one side [default: the pipeline's].")
    ] = "",
    out: TimingPlaceOption = None,
    batch: BatchOption = 64,
    compile: CompileOption = False,
    device: DeviceOption = "auto",
    force: ForceOption = False,
) -> None:
    """Learn a whole sampler end to end: its grid, its conditioning times, a gain on each network output.

    Gradients move them until samples end close to a converged solution of 60 evaluations. The result is written only
    if it is better than the start on held-out noises. If it is interrupted, start the same command again: it resumes.

    With --pipeline, one sampler is learned for all prompts. The loss is the mean squared distance between its latents
    and those of the pipeline's own scheduler in 60 steps. --batch is then the number of latents in one call of the
    network, by default 4; it changes nothing but the memory that is needed.

    Example, the recipe of the tables' best: `tt learn --solver unipc --nfe 5 --knobs grid,timing,gain
    --iterations 1000 --compile`

    Example: `tt learn --pipeline FOLDER --prompts prompts.txt --nfe 6 --out runs/six.json`
    """
    from tt_lib.errors import BadValue

    sources = {name: getattr(context.get_parameter_source(name), "name", "") for name in context.params}
    given = {name for name, source in sources.items() if source == "COMMANDLINE"}
    for name in ("model", "dataset", "loss", "compile") if pipeline else ("prompts", "guidance", "size"):
        if name in given:
            why = "cannot be used with --pipeline; leave it out" if pipeline else "needs --pipeline; give both"
            raise BadValue(f"--{name} {why}")
    if pipeline:
        if prompts is None:
            raise BadValue("--pipeline needs --prompts, a file in UTF-8 with a prompt a line")
        choices = {"seed": seed, "iterations": iterations, "noises": noises, "batch": batch}
        choices = {name: value for name, value in choices.items() if name in given}
        return _learn_pipeline(
            pipeline,
            prompts,
            solver,
            nfe,
            tuple(knobs.split(",")),
            start if "start" in given else "",
            guidance,
            size,
            out,
            device,
            force,
            choices,
        )
    from tt_lib.study.cells import Recipe
    from tt_lib.tuning.learn import LearnConfig

    moved = LearnConfig(tuple(knobs.split(","))).knobs
    usual = {**asdict(LearnConfig()), **Recipe(LearnConfig())._asdict()}
    chosen: dict[str, Any] = {"loss": loss, "noises": noises, "iterations": iterations, "seed": seed}
    brings = "grid" in moved
    if brings:
        chosen["start"] = start
    words = [f"{name}={value}" for name, value in chosen.items() if value != usual[name]]
    tune(
        model=model,
        solver=solver,
        grid=None if brings else start,
        nfe=nfe,
        timing=",".join([f"learned-{'-'.join(moved)}", *words]),
        dataset=dataset,
        out=out,
        batch=batch,
        compile=compile,
        device=device,
        force=force,
    )


def _learn_pipeline(
    source: str,
    prompts: Path,
    solver: str,
    nfe: int,
    knobs: tuple[str, ...],
    start: str,
    guidance: float | None,
    size: str,
    out: Path | None,
    device: str,
    force: bool,
    choices: dict[str, int],
) -> None:
    """``tt learn --pipeline``; ``choices`` are the numbers that were given."""
    from tt_lib.errors import BadValue
    from tt_lib.grids import LEARNED
    from tt_lib.study.cells import Cell, timing_path
    from tt_lib.tuning.latents import AT_ONCE, DEFAULTS, learn_pipeline, load_pipeline, pipeline_name, read_prompts

    at_once = choices.pop("batch", AT_ONCE)
    config = replace(DEFAULTS, knobs=knobs, **choices)
    # As of the prompts, a quarter is held out.
    config = replace(config, validation=max(1, config.noises // 4))
    cell = Cell(solver, LEARNED if "grid" in config.knobs else start or "own", nfe, config.name)
    sides = size.split("x") if size else []
    if len(sides) > 2 or not all(side.isdecimal() and 0 < int(side) <= 100_000 for side in sides):
        raise BadValue(f"--size must be HEIGHTxWIDTH in pixels or one side, such as 512x768 or 512, got {size!r}")
    read_prompts(prompts)
    path = out or timing_path(pipeline_name(source), cell)
    refuse_overwrite(path, force)
    state = path.with_name(f"{path.name}.state")
    made, weights = load_pipeline(source, pick_device(device))
    with progress_bar(f"learn {cell.label}") as report:
        result = learn_pipeline(
            made,
            prompts,
            nfe,
            solver=cell.solver,
            start=start,
            config=config,
            guidance=guidance,
            size=(int(sides[0]), int(sides[-1])) if sides else None,
            at_once=at_once,
            weights=weights,
            state=state,
            progress=report,
        )
    _keep(result.timing, path, state)
    tuning = result.timing.tuning
    say(f"loss on held-out prompts: {tuning['validation_learned']:.4g}, before {tuning['validation_start']:.4g}")


def _keep(timing: Timing, path: Path, state: Path) -> None:
    """Store a timing, and only then forget the state that it was made from."""
    timing.save(path)
    state.unlink(missing_ok=True)
    ratios = " ".join(f"{ratio:.3f}" for ratio in timing.ratios)
    say(f"{path}\ntau / t, from noise to data: {ratios}")


def _sampler(
    bench: Bench, solver: str, grid: str | None, nfe: int, eta: float, timing: str, report: Progress
) -> tuple[Sampler, str]:
    """The sampler with what --timing says, and the name of that timing.

    gamma of an analytic solver is measured where it is missing, and stored where samplers look.
    """
    from tt_lib.baselines import read_constant
    from tt_lib.grids import LEARNED
    from tt_lib.study.cells import Cell, require_timing, usual_grid
    from tt_lib.study.workbench import constant_timing
    from tt_lib.timing import load_timing

    tuned: Timing | None
    if Path(timing).suffix == ".json":
        tuned = load_timing(timing)
        name = tuned.name if tuned.grid == LEARNED else "untuned"
        cell = Cell(solver, grid or (LEARNED if tuned.grid == LEARNED else "uniform"), nfe, name, eta)
    else:
        cell = Cell(solver, grid or usual_grid(timing), nfe, timing, eta)
        ratio = read_constant(timing)
        tuned = constant_timing(bench.sampler(cell), ratio) if ratio else require_timing(bench.model.name, cell)
    bench.ensure_gamma(
        cell, tuned, lambda: bench.tuning_images("generated", GAMMA_IMAGES, "", None), "generated", report
    )
    return bench.sampler(cell, tuned), tuned.name if tuned else cell.timing


def sample(
    out: Annotated[Path, typer.Option(help="PNG to write, with all images in a grid.", callback=place(".png"))],
    model: ModelOption = "cifar10",
    solver: SolverOption = "ddim",
    grid: GridOption = None,
    nfe: NfeOption = 10,
    eta: EtaOption = 0.0,
    timing: TimingOption = "untuned",
    n: Annotated[int, typer.Option(help="Number of images.")] = 32,
    batch: BatchOption = 64,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    force: ForceOption = False,
) -> None:
    """Sample images from the seeds SEED, SEED + 1, ...; a seed gives the same image in every run.

    Example: `tt sample --nfe 10 --out samples.png`
    """
    from tt_lib.datasets import to_uint8
    from tt_lib.errors import BadValue, check_range
    from tt_lib.figures.pictures import image_grid
    from tt_lib.figures.style import save_figure
    from tt_lib.noise import check_seeds
    from tt_lib.sampling import sample_images
    from tt_lib.study.workbench import make_bench

    refuse_overwrite(out, force)
    check_range("n", n, 1)
    check_seeds(seed, n)
    if n > 10_000:
        raise BadValue(f"a picture shows at most 10,000 images, got --n {n:,}; sample them in parts, by --seed")
    bench = make_bench(model, pick_device(device), batch=batch)
    with progress_bar("sample") as report:
        sampler, name = _sampler(bench, solver, grid, nfe, eta, timing, report)
        images = sample_images(sampler, n, first_seed=seed, batch=batch, progress=report)
    caption = f"{n} samples of {bench.model.name}: {solver}, {sampler.grid.name} grid, {nfe} evaluations, {name}"
    save_figure(image_grid(to_uint8(images)), out, caption, f"A grid of {n} small generated images.")
    say(f"{out}: {caption}")


def evaluate(
    model: ModelOption = "cifar10",
    solver: SolverOption = "ddim",
    grid: GridOption = None,
    nfe: NfeOption = 10,
    eta: EtaOption = 0.0,
    timing: TimingOption = "untuned",
    dataset: Annotated[
        str,
        typer.Option(
            "--dataset",
            "--reference",
            help="The reference: the training images of cifar10, of digits, or of a folder or .npz file of yours; or "
            "an .npz file with the mu and sigma of pytorch-fid.",
        ),
    ] = "cifar10",
    data: DataOption = None,
    features: Annotated[
        list[str] | None,
        typer.Option(
            help="cifar10-resnet, digits-resnet, imagenet-efficientnet-lite0 or inception-2015 (which gives FID). "
            "Repeat it for more features of the same samples [default: cifar10-resnet]."
        ),
    ] = None,
    n: SamplesOption = 50_000,
    batch: BatchOption = 500,
    seed: SeedOption = 0,
    results: Annotated[Path | None, rows_option("fd.csv")] = None,
    work: Annotated[Path, typer.Option(help="Folder for the state of an unfinished run.", callback=work_place)] = Path(
        "runs/evaluate"
    ),
    compile: CompileOption = False,
    fast_features: FastFeaturesOption = False,
    device: DeviceOption = "auto",
) -> None:
    """Measure the Fréchet distance of a sampler with a 95 % interval, and write a row for each kind of features.

    The interval comes from 10 disjoint sets of samples (delete-one jackknife). If the command is interrupted, start it
    again: it resumes with the next set. Several GPUs share the batches: `torchrun --nproc_per_node 2 -m tt_lib
    evaluate ...` (under torchrun, write --samples for --n).

    Example: `tt evaluate --nfe 10 --n 100 --results runs/fd.csv`
    """
    from tt_lib.errors import all_there
    from tt_lib.metrics.evaluate import fd_row, forget_sets, measure_all
    from tt_lib.metrics.features import load_features
    from tt_lib.metrics.reference import check_names, load_metric, require_reference
    from tt_lib.noise import check_seeds
    from tt_lib.rows import FD_COLUMNS, FD_KEY, write_rows
    from tt_lib.study.workbench import make_bench

    names = features or ["cifar10-resnet"]
    check_names(names)
    check_seeds(seed, n)
    path = results_file(results, "fd.csv", FD_COLUMNS)
    world, where = pick_devices(device)
    bench, *extractors, _ = all_there(
        lambda: make_bench(model, where, batch=batch, compile=compile),
        *(lambda name=name: load_features(name, where) for name in names),
        lambda: require_reference(dataset, names, data),
    )
    with progress_bar("evaluate") as report:
        options: dict[str, Any] = {"data": data, "model": bench.model, "world": world, "progress": report}
        metrics = [load_metric(each, dataset, **options) for each in extractors]
        metrics = [faster(metric, fast_features, batch, compile) for metric in metrics]
        sampler, name = _sampler(bench, solver, grid, nfe, eta, timing, report)
        measured = measure_all(
            sampler, metrics, n, first_seed=seed, batch=batch, work=work, world=world, progress=report
        )
    if not world.main:
        return world.wait()
    rows = [
        fd_row(each, sampler, metric, seed=seed, timing=name, world=world)
        for metric, each in zip(metrics, measured, strict=True)
    ]
    write_rows(path, rows, FD_COLUMNS, FD_KEY)
    for metric in metrics:
        forget_sets(sampler, metric.features, n, seed, work)
    for row in rows:
        value = f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        say(f"{row['solver']} {row['grid']} {row['nfe']} {row['timing']}: {row['metric']} {value}, n {row['n']}")
    say(f"{'1 row' if len(rows) == 1 else f'{len(rows)} rows'} written to {path}")
    world.wait()


def direction(
    model: ModelOption = "cifar10",
    solver: SolverOption = "ddim",
    grid: GridOption = None,
    nfe: NfeOption = 10,
    timing: Annotated[
        list[str] | None,
        typer.Option(help="As in `tt evaluate`; repeat it to measure several samplers [default: untuned]."),
    ] = None,
    n: Annotated[int, typer.Option(help="Number of samples; each follows a trajectory of its own.")] = 64,
    substeps: Annotated[
        int, typer.Option(help="Steps of the converged solution in each interval; an even number.")
    ] = 16,
    batch: BatchOption = 64,
    compile: CompileOption = False,
    results: Annotated[Path | None, rows_option("direction.csv")] = None,
    device: DeviceOption = "auto",
) -> None:
    """Measure the direction error of a sampler, and write a row for each step.

    The direction used is compared with the mean of eps along a converged solution, by its angle and its relative
    distance. The local and the accumulated truncation error stand beside them.

    Example: `tt direction --nfe 5 --timing untuned --timing truncation-parallel --n 4 --results runs/direction.csv`
    """
    from tt_lib.metrics.direction import MEASURES, direction_rows
    from tt_lib.rows import DIRECTION_COLUMNS, DIRECTION_KEY, write_rows
    from tt_lib.study.workbench import make_bench

    path = results_file(results, "direction.csv", DIRECTION_COLUMNS)
    bench = make_bench(model, pick_device(device), batch=batch, bf16=False, compile=compile)
    with progress_bar("direction") as report:
        # All timings are looked at before anything is measured.
        samplers = [_sampler(bench, solver, grid, nfe, 0.0, each, report) for each in timing or ["untuned"]]
        for sampler, name in samplers:
            rows = direction_rows(sampler, timing=name, n=n, substeps=substeps, progress=report)
            write_rows(path, rows, DIRECTION_COLUMNS, DIRECTION_KEY)
            for row in rows:
                errors = (f"{measure} {row[measure]:.3g}" for measure in MEASURES)
                say(f"{name}, step {row['step'] + 1}, t {row['t']:.3f} to {row['s']:.3f}: {', '.join(errors)}")
    say(f"rows written to {path}")
