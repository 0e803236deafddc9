"""Learning a sampler of a pipeline of diffusers: in its latents, with prompts, and with its own guidance.

A text-to-image pipeline encodes a prompt, runs its network from noise to a latent, and decodes that. The sampler in
the middle is what is learned, one for all prompts (see :mod:`tt_lib.tuning.learn`). Nothing here knows one pipeline
from another. What a pipeline gives its network beside state and time is recorded, once for each prompt:
:class:`Latents` replays it. A short run of the pipeline itself shows whether that is all that it does.
"""

from __future__ import annotations

import copy
import functools
import inspect
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tt_lib.errors import BadValue, CorruptFile, MissingFile, check_range, check_type
from tt_lib.files import file_hash
from tt_lib.grids import make_grid
from tt_lib.guidance import ClassifierFree
from tt_lib.interop import Adapted, from_scheduler, to_diffusers
from tt_lib.interop.pipeline import check_untuned, network_in, plain, time_argument_of
from tt_lib.networks.unet import weights_hash
from tt_lib.noise import LEARN_FIRST_SEED, VALIDATION_FIRST_SEED, SampleNoise
from tt_lib.predictors import EpsPredictor, Predictor
from tt_lib.sampling import Progress, Sampler
from tt_lib.schedules import Schedule
from tt_lib.solvers.registry import make_solver
from tt_lib.tuning.learn import CONVERGED_STEPS, PIXELS, SEEDS, Distance, LearnConfig, LearnResult, check_learn, learn

LATENTS = Distance("latents", PIXELS.function)
DEFAULTS = LearnConfig(noises=256, validation=64, batch=16, iterations=150)
"""How a pipeline is learned where nothing is said. Its network is large, so there are fewer noises than elsewhere."""
AT_ONCE = 4
"""Latents that the network sees at a time, by default."""
HELD_OUT = 4
"""Every fourth prompt is held out for validation."""
CHECK_STEPS = 4
"""Steps of the run that shows whether a pipeline is understood."""
SAME = {torch.float32: 1e-3}
"""How far two runs of a few steps may lie apart, as a share of the largest value; in half precision 0.05."""


# ---- prompts


def read_prompts(path: Path | str) -> list[str]:
    """The prompts of a file in UTF-8, one a line; blank lines are left out.

    Raises:
        MissingFile: there is no such file.
        BadValue: it is no text in UTF-8, or see :func:`check_prompts`.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFile(f"no file of prompts at {path}; write one prompt a line into it, in UTF-8")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadValue(f"{path} is not text in UTF-8 (byte {error.start}); save it in UTF-8") from error
    # Some of these end a line for Python and for no editor; the last two are what a damaged text has.
    if bad := re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffd]", text):
        raise BadValue(f"{path} holds {bad[0]!a}, a control character or a mark of damage; save it as plain UTF-8")
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    try:
        check_prompts(prompts)
    except BadValue as error:
        raise BadValue(f"{path}: {error}") from error
    return prompts


def check_prompts(prompts: Sequence[str]) -> None:
    """Raise :class:`BadValue` unless there are four prompts or more, no two of them alike to the eye but for case.

    One that stands twice would be learned from and held out.
    """
    if isinstance(prompts, str):
        raise BadValue(f"prompts must be a list of texts, got the text {prompts[:40]!r}")
    first: dict[str, int] = {}
    for number, prompt in enumerate(prompts, 1):
        check_type(f"prompt {number}", prompt, str)
        text = unicodedata.normalize("NFKC", prompt.casefold())
        key = " ".join("".join(letter for letter in text if unicodedata.category(letter) != "Cf").split())
        if not key:
            raise BadValue(f"prompt {number} is empty; leave it out")
        if key in first:
            raise BadValue(
                f"prompt {number}, {prompt[:60]!r}, is prompt {first[key]} once more, and one of them may be held "
                "out; remove one"
            )
        first[key] = number
    if len(prompts) < HELD_OUT:
        raise BadValue(f"a quarter of the prompts is held out, so at least {HELD_OUT} are needed, got {len(prompts)}")


# ---- pipelines


def load_pipeline(source: Path | str, device: torch.device | str = "cpu") -> tuple[Any, str]:
    """A pipeline of diffusers, and the hash of its network's weights in float32.

    Args:
        source: the folder of a pipeline, or a repository on the Hub.
        device: where it is put: on a CPU in float32, on a GPU in bfloat16.

    Raises:
        MissingFile: there is no such folder, and the Hub cannot be reached or has no such repository.
        CorruptFile: the folder holds no pipeline that can be loaded.
    """
    from diffusers import DiffusionPipeline

    source, device = str(source), torch.device(device)
    if Path(source).is_dir() and not Path(source, "model_index.json").is_file():
        raise MissingFile(
            f"{source} holds no model_index.json, so it is not a pipeline; give a folder that save_pretrained wrote"
        )
    if not Path(source).is_dir() and source.count("/") != 1:
        raise MissingFile(f"no pipeline at {source}: it is neither a folder nor a Hub repository (owner/name)")
    try:
        pipeline = DiffusionPipeline.from_pretrained(source, torch_dtype=torch.float32)
        weights = weights_hash(_network_of(pipeline))
        if device.type != "cpu":
            # Not cast: some parts of a network stay in float32, and the loader knows which.
            del pipeline
            pipeline = DiffusionPipeline.from_pretrained(source, torch_dtype=torch.bfloat16)
    except BadValue:
        raise
    except Exception as error:  # diffusers, transformers and safetensors name no single type
        what = " ".join(str(error).split())[:300]
        if Path(source).is_dir():
            raise CorruptFile(f"{source} cannot be loaded as a pipeline ({what}); restore its files") from error
        raise MissingFile(f"cannot load {source!r} from the Hub ({what}); download it and give its folder") from error
    return pipeline.to(device), weights


def pipeline_name(source: Path | str) -> str:
    """What timings call a pipeline: the name of its folder, or that on the Hub."""
    return os.path.basename(os.path.abspath(source)) if os.path.isdir(source) else str(source)


def _network_of(pipeline: Any) -> nn.Module:
    name, accepts = type(pipeline).__name__, inspect.signature(type(pipeline).__call__).parameters
    if "prompt" not in accepts:
        raise BadValue(
            f"{name} takes no prompt: give a text-to-image pipeline (tt learn --model is for networks of plain images)"
        )
    network = network_in(pipeline)[1]
    check_untuned(network)
    return network


@dataclass(frozen=True)
class Latents:
    """The network of a pipeline with prompts, as a :class:`Sampler` takes it: a seed has a noise and a prompt.

    :meth:`encoded` comes before sampling; the rest is known without.

    Seeds of learning have one of the prompts to learn from, and seeds of validation one of those held out, in turn.
    Any other seed s has prompt ``s % n`` of all n.

    Attributes:
        pipeline, network: they are not changed.
        options: with which the pipeline is called beside the prompts.
        schedule, kind: of the network, see :func:`~tt_lib.interop.from_scheduler`.
        prompts: see :func:`check_prompts`.
        conditions: for each prompt what the network is given beside state and time, with the prompt and, where the
            pipeline has classifier-free guidance, without.
        belongs: a tree as those, True where a tensor has a row for each prompt.
        place: see :class:`_Place`.
        shape: of one latent.
        guidance: the scale, or None if the pipeline has none.
    """

    pipeline: Any
    network: nn.Module
    options: dict[str, Any]
    schedule: Schedule
    kind: str
    prompts: tuple[str, ...]
    conditions: tuple[tuple[Any, ...], ...]
    belongs: Any
    place: _Place
    shape: tuple[int, ...]
    guidance: float | None
    model: str
    weights: str

    def __call__(self, x: Tensor, t: Tensor, tau: Tensor) -> Tensor:
        raise BadValue("latents have a prompt each: take the predictor of some seeds, for_seeds(seeds)")

    def for_seeds(self, seeds: Sequence[int]) -> Predictor:
        """The predictor of the latents with these seeds, guided."""
        return self.for_prompts([self.prompt_of(seed) for seed in seeds])

    def prompt_of(self, seed: int) -> int:
        """Which prompt a seed has."""
        count = len(self.prompts)
        held_out = range(HELD_OUT - 1, count, HELD_OUT)
        if seed >= VALIDATION_FIRST_SEED:
            return held_out[(seed - VALIDATION_FIRST_SEED) % SEEDS % len(held_out)]
        if seed >= LEARN_FIRST_SEED:
            own = [number for number in range(count) if number not in held_out]
            return own[(seed - LEARN_FIRST_SEED) % SEEDS % len(own)]
        return seed % count

    def for_prompts(self, numbers: Sequence[int]) -> Predictor:
        """The predictor of a batch of latents that have these prompts, by their numbers from 0."""
        predictors = [
            EpsPredictor(self._network(_joined(each, self.belongs, self.device)), self.schedule, kind=self.kind)
            for each in zip(*(self.conditions[number] for number in numbers), strict=True)
        ]
        if len(predictors) == 1:
            return predictors[0]
        assert self.guidance is not None
        conditional, unconditional = predictors
        return ClassifierFree(conditional, unconditional, self.guidance)

    def encoded(self, progress: Progress | None = None) -> Latents:
        """With the conditions of the prompts; a short run of the pipeline, which must end as ours, shows that they do.

        Args:
            progress: called with (prompts encoded, of all, message).

        Raises:
            BadValue: embeddings that fit into no batch, or steps that are more than the network with classifier-free
                guidance.
        """
        first: tuple[Any, ...] = ()
        without = b""
        conditions = []
        numbers: dict[bytes, int] = {}
        for number, prompt in enumerate(self.prompts, 1):
            own = tuple(_record(self.pipeline, [prompt], self.options).conditions)
            first, without = first or own, without or _digest(own[1:])
            if shapes := _differing(own[0], first[0]):
                raise BadValue(
                    f"the embeddings of prompt {number}, {prompt[:60]!r}, have the shape {shapes[0]}, and those of "
                    f"the first {shapes[1]}, so they do not fit into one batch; give prompts of one length"
                )
            if (twin := numbers.setdefault(_digest(own[0]), number)) != number:
                raise BadValue(
                    f"prompt {number}, {prompt[:60]!r}, is prompt {twin} once more to the network: the pipeline "
                    "reads no further than where they differ, or does not know the letters; shorten them or leave "
                    "one out"
                )
            # Most often all prompts have one condition without prompt.
            conditions.append(own[:1] + (first[1:] if _digest(own[1:]) == without else own[1:]))
            if progress:
                progress(number, len(self.prompts), "prompts encoded")
        latents, dtype = replace(self, conditions=tuple(conditions)), self.place.dtype
        noise = SampleNoise(range(2)).start(self.shape).to(self.device)
        options = {**self.options, "latents": noise.to(dtype)}
        theirs = _call(self.pipeline, self.prompts[:2], options, CHECK_STEPS)
        teacher = replace(latents.teacher(CHECK_STEPS), predictor=latents.for_prompts([0, 1]))
        gap = float((theirs - teacher(range(2), start=noise).x).abs().max() / theirs.abs().max())
        if not gap <= SAME.get(dtype, 0.05):
            raise BadValue(
                f"{type(self.pipeline).__name__} does more in a step than its network with classifier-free guidance of "
                f"scale {self.guidance} and its scheduler: a run of {CHECK_STEPS} steps ends {gap:.2g} of the largest "
                "value away from such steps; learn from a pipeline without that"
            )
        return latents

    def _network(self, condition: dict[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
        state, time, dtype, factor = self.place
        return lambda x, c: self.network(**condition, **{state: x.to(dtype), time: factor * c})[0]

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    def own(self, steps: int) -> Adapted:
        """The pipeline's own scheduler with ``steps`` steps, set as the pipeline sets it."""
        return _adapted(_record(self.pipeline, self.prompts[:1], self.options, steps).scheduler)

    def teacher(self, steps: int) -> Sampler:
        """The sampler that the pipeline itself is, in ``steps`` steps."""
        adapted = self.own(steps)
        # A Sampler begins with noise as the schedule has it, and a pipeline with what its scheduler makes of it.
        scale = float(self.schedule.scale(adapted.grid.tensor()[0]))

        def run(x: Tensor, *rest: Any, **options: Any) -> Any:
            return adapted.solver.function(adapted.start(x / scale), *rest, **options)

        timing = replace(adapted.timing(), model=self.model, weights=self.weights)
        return self._sampler(solver=replace(adapted.solver, function=run), grid=adapted.grid, timing=timing)

    def sampler(self, solver: str = "unipc,final=lower", start: str = "", nfe: int = 6) -> Sampler:
        """An untuned sampler of the latents.

        Args:
            solver: see :func:`tt_lib.solvers.registry.make_solver`.
            start: a name of :mod:`tt_lib.grids`; by default the pipeline's own scheduler spaces the steps.
            nfe: number of evaluations.
        """
        made, steps = make_solver(solver).for_nfe(nfe)
        grid = make_grid(start, steps, self.schedule) if start else self.own(steps).grid
        if grid.steps != steps:
            raise BadValue(
                f"the pipeline's {type(self.pipeline.scheduler).__name__} makes {grid.steps} steps with {steps} "
                f"evaluations, and {made.spelling} makes {steps}; name another start grid, such as uniform"
            )
        return self._sampler(solver=made, grid=grid)

    def _sampler(self, **own: Any) -> Sampler:
        own |= {"shape": self.shape, "device": self.device, "model": self.model, "weights": self.weights}
        return Sampler(self, self.schedule, **own)


def adapt_pipeline(
    pipeline: Any,
    prompts: Sequence[str],
    *,
    guidance: float | None = None,
    size: tuple[int, int] | None = None,
    weights: str = "",
) -> Latents:
    """The network of a pipeline with its prompts, ready to be encoded, sampled and learned.

    Args:
        pipeline: a text-to-image pipeline of diffusers, in the precision and on the device where it will sample. It is
            run as it is: without negative prompts, and with the defaults of all that is not named here.
        prompts: see :func:`check_prompts`.
        guidance: its ``guidance_scale``; by default the pipeline's own.
        size: height and width of its images; by default the pipeline's own.
        weights: the hash of its network's weights in float32, see :func:`load_pipeline`; by default that of the weights
            in memory.

    Raises:
        BadValue: naming what the pipeline does not take or this library does not know: no prompt, a scheduler that
            cannot be adapted or that draws noise.
    """
    check_prompts(prompts)
    network, kind = _network_of(pipeline), type(pipeline)
    accepts = inspect.signature(kind.__call__).parameters
    options: dict[str, Any] = {}
    if guidance is not None:
        check_type("guidance", guidance, float)  # a finite one
        if guidance < 0:
            raise BadValue(
                f"guidance must be at least 0 (pipelines take a smaller one for no guidance), got {guidance:g}"
            )
        options["guidance_scale"] = guidance
    if size is not None:
        if len(size) != 2 or min(size) < 1:
            raise BadValue(f"size must be a height and a width, both above 0, got {size}")
        options |= dict(zip(("height", "width"), size, strict=True))
    for key, value in options.items():
        if key not in accepts:
            raise BadValue(f"{kind.__name__} takes no {key}, got {value:g}; leave it out")
    if guidance is None and "guidance_scale" in accepts:
        guidance = accepts["guidance_scale"].default
    one, two = (_record(pipeline, prompts[:count], options) for count in (1, 2))
    adapted = _adapted(one.scheduler)
    if guidance is None and len(one.conditions) == 2:
        raise BadValue(
            f"{kind.__name__} guides by a scale that is not its guidance_scale; "
            + ("give guidance" if "guidance_scale" in accepts else "learn from a pipeline that has one")
        )
    return Latents(
        pipeline,
        network,
        options,
        adapted.schedule,
        adapted.kind,
        tuple(prompts),
        (),
        _map(lambda a, b: a.shape != b.shape, one.conditions[0], two.conditions[0]),
        one.place,
        one.shape,
        guidance,
        pipeline_name(getattr(pipeline, "name_or_path", "") or kind.__name__),
        weights or weights_hash(network),
    )


def _adapted(scheduler: Any) -> Adapted:
    """A scheduler with the timesteps that the pipeline has set."""
    adapted = from_scheduler(scheduler)
    if adapted.solver.stochastic:
        raise BadValue(
            f"the pipeline's {adapted.solver.name} draws noise, so no latent has a converged solution; give the "
            "pipeline a deterministic scheduler"
        )
    return adapted


# ---- what a pipeline gives its network


class _Stepped(Exception):
    """The first evaluation is over."""


class _Place(NamedTuple):
    """The names of a network's arguments for state and time, the dtype of the state, and the factor on timesteps."""

    state: str
    time: str
    dtype: torch.dtype
    factor: float


class _Recorded(NamedTuple):
    """What a pipeline gives its network in a first evaluation: with the prompts, and then without if it guides.

    ``shape`` is that of a latent, and ``scheduler`` a copy that has begun no run.
    """

    conditions: list[dict[str, Any]]
    place: _Place
    shape: tuple[int, ...]
    scheduler: Any


def _call(pipeline: Any, prompts: Sequence[str], options: dict[str, Any], steps: int) -> Tensor:
    """The latents that a pipeline makes, without its progress bar."""
    own = {"num_inference_steps": steps, "output_type": "latent", "return_dict": False, **options}
    bar = getattr(pipeline, "_progress_bar_config", {})
    pipeline.set_progress_bar_config(**bar | {"disable": True})
    try:
        return pipeline(prompt=list(prompts), **own)[0]
    except (TypeError, ValueError) as error:
        what = " ".join(str(error).split())
        raise BadValue(
            f"{type(pipeline).__name__} refuses {', '.join(own)} ({what}); change them, or give another pipeline"
        ) from error
    finally:
        pipeline.set_progress_bar_config(**bar)


def _record(pipeline: Any, prompts: Sequence[str], options: dict[str, Any], steps: int = CHECK_STEPS) -> _Recorded:
    calls: list[dict[str, Any]] = []
    network = _network_of(pipeline)
    accepts = inspect.signature(plain(network).forward)
    scheduler, step = pipeline.scheduler, pipeline.scheduler.step

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(dict(accepts.bind(*args, **kwargs).arguments))

    @functools.wraps(step)
    def stop(*args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(step).bind(*args, **kwargs).arguments
        raise _Stepped(given["sample"], float(given["timestep"]))

    handle = network.register_forward_pre_hook(record, with_kwargs=True)
    scheduler.step = stop
    try:
        _call(pipeline, prompts, options, steps)
        raise BadValue(f"{type(pipeline).__name__} made no step of its scheduler; give a text-to-image pipeline")
    except _Stepped as stopped:
        sample, timestep = stopped.args
    finally:
        handle.remove()
        del scheduler.step
    state = next(iter(accepts.parameters))
    time = time_argument_of(network)[0]
    parts = [len(call[state]) / len(sample) if time in call else 0 for call in calls]
    if parts not in ([1], [2], [1, 1]) or len(sample) != len(prompts):
        raise BadValue(
            f"{type(pipeline).__name__} calls its {type(network).__name__} {len(calls)} times in an evaluation, with "
            f"{', '.join(f'{part:g}' for part in parts)} states for a latent and an argument {time!r} or none; what it "
            "makes of the answers is not known here"
        )
    first = calls[0]
    factor = float(first[time].flatten()[0]) / timestep
    conditions = []
    for call in calls:
        rest = {key: value for key, value in call.items() if key not in (state, time)}
        rest |= {"return_dict": False} if "return_dict" in accepts.parameters else {}
        # Where both stand in one batch, that without a prompt comes first; else it comes second.
        for k in reversed(range(int(parts[0]))):
            conditions.append(_map(functools.partial(_part, k, int(parts[0]), len(call[state])), rest))
    place = _Place(state, time, first[state].dtype, factor)
    scheduler = copy.deepcopy(scheduler)
    if hasattr(scheduler, "_step_index"):  # some have begun their run before they are asked for a step
        scheduler._step_index = None
    return _Recorded(conditions, place, tuple(sample.shape[1:]), scheduler)


def _part(k: int, of: int, rows: int, leaf: Tensor) -> Tensor:
    """Part ``k`` of what has a row for each state of a call, as a copy on the CPU."""
    part = leaf.chunk(of)[k] if of > 1 and leaf.ndim and len(leaf) == rows else leaf
    return part.detach().to("cpu", copy=True)


def _joined(conditions: Sequence[Any], belongs: Any, device: torch.device) -> Any:
    """One condition for a batch."""

    def join(*leaves: Any) -> Tensor:
        *rows, each = leaves
        return (torch.cat(rows) if each else rows[0]).to(device)

    return _map(join, *conditions, belongs)


def _map(function: Callable[..., Any], *trees: Any) -> Any:
    """``function`` of the tensors at each place of trees of dictionaries and lists; the rest is the first's."""
    first = trees[0]
    if isinstance(first, dict):
        return {key: _map(function, *(tree[key] for tree in trees)) for key in first}
    if isinstance(first, (list, tuple)):
        return type(first)(_map(function, *each) for each in zip(*trees, strict=True))
    return function(*trees) if isinstance(first, Tensor) else first


def _digest(condition: Any) -> bytes:
    whole = sha256()
    _map(lambda leaf: whole.update(leaf.double().numpy().tobytes()), condition)
    return whole.digest()


def _differing(one: Any, other: Any) -> tuple[list[int], list[int]] | None:
    """The first two shapes that differ."""
    shapes: list[tuple[list[int], list[int]]] = []
    _map(lambda a, b: shapes.append((list(a.shape), list(b.shape))), one, other)
    return next((each for each in shapes if each[0] != each[1]), None)


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Without gradients to the weights."""
    moving = [weight for weight in network.parameters() if weight.requires_grad]
    try:
        for weight in moving:
            weight.requires_grad_(False)
        yield
    finally:
        for weight in moving:
            weight.requires_grad_(True)


# ---- learning


def learn_pipeline(
    pipeline: Any,
    prompts: Sequence[str] | Path,
    nfe: int = 6,
    *,
    solver: str = "unipc,final=lower",
    start: str = "",
    config: LearnConfig = DEFAULTS,
    guidance: float | None = None,
    size: tuple[int, int] | None = None,
    at_once: int = AT_ONCE,
    weights: str = "",
    state: Path | None = None,
    progress: Progress | None = None,
) -> LearnResult:
    """Learn a few-step sampler of a pipeline: one grid and one timing for all prompts, with its network frozen.

    The loss is the mean squared distance of latents from those where the pipeline's own scheduler ends in 60 steps,
    from the same noise with the same prompt and guidance. Three quarters of the prompts are learned from; the others
    decide what is kept.

    Example::

        result = learn_pipeline(pipeline, ["a cat", "two dogs", "a boat at sea", "the moon"], nfe=6)
        scheduler = to_diffusers(result.timing, pipeline.scheduler)
        pipeline.unet, pipeline.scheduler = TunedUNet(pipeline.unet, result.timing), scheduler
        image = pipeline("a cat", num_inference_steps=6).images[0]

    Args:
        pipeline, guidance, size, weights: see :func:`adapt_pipeline`.
        prompts: a list, or a file for :func:`read_prompts`.
        nfe: evaluations of the network in a run, each with and without prompt where there is guidance.
        solver: a deterministic one, see :func:`tt_lib.solvers.registry.make_solver`.
        start: the grid where learning begins, by default that of the pipeline's own scheduler.
        config: as for :func:`tt_lib.tuning.learn.learn`. Gains are for networks that predict eps.
        at_once: latents in one call of the network, to save memory.
        state, progress: see :func:`tt_lib.tuning.learn.learn`.

    Raises:
        BadValue, TimingMismatch: before any work, what cannot be learned or would not run in the pipeline.
        NothingLearned: as :func:`tt_lib.tuning.learn.learn`.
    """
    texts = read_prompts(prompts) if isinstance(prompts, Path) else prompts
    check_type("at_once", at_once, int)
    check_range("at_once", at_once, 1)
    check_learn(make_solver(solver).for_nfe(nfe)[0])

    def encoding(done: int, of: int, message: str) -> None:
        if progress:
            progress(0, config.iterations, f"{message}: {done} of {of}")

    with _frozen(_network_of(pipeline)):
        latents = adapt_pipeline(pipeline, texts, guidance=guidance, size=size, weights=weights)
        sampler = latents.sampler(solver, start, nfe)
        # What it would say of the result, before the work.
        times = [each.t for each in sampler.evaluations]
        gains = (1.0,) * len(times) if "gain" in config.knobs else ()
        to_diffusers(sampler.make_timing(config.name, times, gains=gains), pipeline.scheduler)
        latents = latents.encoded(encoding)
        teacher = latents.teacher(CONVERGED_STEPS)
        digest = file_hash(prompts) if isinstance(prompts, Path) else sha256("\n".join(texts).encode()).hexdigest()
        facts = {
            "guidance": latents.guidance,
            "size": list(size) if size else None,
            "latents": list(latents.shape),
            "prompts": len(texts),
            "prompts_sha256": digest,
            "teacher": {"scheduler": teacher.solver.name, "steps": CONVERGED_STEPS, **teacher.solver.choices_made},
        }
        return learn(
            replace(sampler, predictor=latents),
            LATENTS,
            config,
            converged=teacher,
            at_once=at_once,
            facts=facts,
            state=state,
            progress=progress,
        )
