"""Tuned times in pipelines of diffusers: a network that is conditioned on tau where the pipeline says t.

:class:`Calls` finds which evaluation a call of the network is; it counts, because a sampler may ask for one time more
than once. :class:`TunedUNet` puts it into a network for good, :func:`tuned_times` into a pipeline for a block.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tt_lib.errors import BadValue, CorruptFile, TimingMismatch, TTError, check_range, check_type
from tt_lib.files import check_hash, check_writable, file_hash, read_json, write_json
from tt_lib.interop.scheduler import check_scheduler, eta_of
from tt_lib.networks.unet import weights_hash, weights_options
from tt_lib.predictors import KINDS, PREDICTION_TYPES
from tt_lib.schedules import float64, index_of_time, make_schedule
from tt_lib.solvers.registry import SOLVERS
from tt_lib.timing import Timing, load_timing

TIMING, WRAPPER = "timing.json", "tuned_unet.json"
FORMAT = "tt-tuned-unet-1"
CHOICES = ("calls_per_evaluation", "levels", "time_argument")
NETWORKS = ("unet", "transformer")
"""What pipelines call the network that they sample with."""
TIME_ARGUMENTS = ("timestep", "timesteps", "t")
"""What networks of diffusers call the argument that carries the time."""
_IN_BLOCKS: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""The networks that a block of :func:`tuned_times` tunes now."""


class Calls:
    """Gives each call of a run its tuned time, and refuses a run that the timing is not for.

    Call number c is evaluation ``c // calls_per_evaluation``. After the last call of a run the next one begins a new
    run. ``complete_runs`` counts the runs that were finished. ``gain`` is the factor on the answer to the last call.

    Args:
        timing: the conditioning times.
        calls_per_evaluation: how often the pipeline calls the network at each time: 2 where guidance calls it once
            with and once without the condition. (Most of diffusers' pipelines call it once with both in one batch:
            1.)
        levels: N, the levels that the network was trained on: a time t is its timestep ``N t - 1``, and on a flow
            ``N t``.
        time_argument: what the network calls the argument with its time; by default it is found by its name, one of
            :data:`TIME_ARGUMENTS`.

    Raises:
        BadValue: a number below 1, or a timing of a network in continuous time.
    """

    def __init__(
        self, timing: Timing, calls_per_evaluation: int = 1, levels: int = 1000, time_argument: str | None = None
    ) -> None:
        for name, value in (("calls_per_evaluation", calls_per_evaluation), ("levels", levels)):
            check_type(name, value, int)
            check_range(name, value, 1)
        if timing.schedule.startswith("continuous"):
            raise BadValue(
                f"the timing is for the schedule {timing.schedule!r}, which has no levels; networks of diffusers have: "
                "tune one with a discrete schedule"
            )
        self.timing, self.calls_per_evaluation, self.levels = timing, calls_per_evaluation, levels
        self.time_argument = time_argument
        named = timing.schedule.partition(",")[0]
        self.leveled = named not in ("flow", "ve")
        of_time = partial(index_of_time, levels=levels) if self.leveled else make_schedule(timing.schedule).network_time
        self.nominal, self.tuned = (of_time(float64(times)).tolist() for times in (timing.times, timing.taus))
        # Schedulers of diffusers that have flows beside levels cut the timesteps of a flow to whole numbers.
        cut = named == "flow" and timing.solver not in SOLVERS and not timing.solver.startswith("Flow")
        self.within = 1.001 if cut else 1e-3
        self.divided = False
        self.total = timing.nfe * calls_per_evaluation
        self.made, self.complete_runs = 0, 0
        self.gain = 1.0

    def reset(self) -> None:
        """Forget an unfinished run: the next call is the first of a new one."""
        self.made = 0

    def finish(self) -> None:
        """Raise :class:`TimingMismatch` if a run is unfinished, and forget it, or if there was none."""
        made = self.made
        self.reset()
        if made:
            raise TimingMismatch(f"the run ended after {made} of {self._numbers()}. {self._remedy()}")
        if not self.complete_runs:
            raise TimingMismatch(
                f"no run of {self._numbers()} was made with the tuned times: the network was not called. Run the "
                "pipeline that it belongs to, whose calls are network(...) and not network.forward(...)"
            )

    def next_time(self, timestep: Tensor | float, sample: Tensor) -> Tensor:
        """The timesteps (float32) for a call with ``timestep`` (a number, [B] or one for each token) about ``sample``.

        They have the shape of ``timestep``, or [B] for a number, and its unit: some pipelines, such as Flux's, divide
        timesteps by N. Always a tensor of floats: ``UNet2DModel`` truncates a Python float to an integer.

        Raises:
            TimingMismatch: ``timestep`` is not the nominal time of this evaluation.
        """
        evaluation = self.made // self.calls_per_evaluation
        timestep = torch.as_tensor(timestep).detach()
        nominal = self.nominal[evaluation]
        if not self.made:
            self.divided = timestep.is_floating_point() and not same_timestep(timestep, nominal, self.within)
        if not same_timestep(timestep * self.levels if self.divided else timestep, nominal, self.within):
            message = self._message(evaluation, timestep)
            # Whoever catches the error starts anew.
            self.reset()
            raise TimingMismatch(message)
        self.gain = self.timing.gains[evaluation] if self.timing.gains else 1.0
        self.made += 1
        if self.made == self.total:
            self.made, self.complete_runs = 0, self.complete_runs + 1
        shape = timestep.shape or (len(sample),)
        tuned = torch.full(shape, self.tuned[evaluation], dtype=torch.float32, device=sample.device)
        return tuned / self.levels if self.divided else tuned

    def replace(
        self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call of ``network`` with the tuned time in place of its own."""
        name, place = time_argument_of(network, self.time_argument)
        if name not in kwargs and len(args) <= place:
            raise BadValue(
                f"{type(network).__name__} was called without a timestep; call it as network(sample, timestep)"
            )
        sample = args[0] if args else next(value for value in kwargs.values() if isinstance(value, Tensor))
        tuned = self.next_time(kwargs[name] if name in kwargs else args[place], sample)
        if name in kwargs:
            return args, kwargs | {name: tuned}
        return (*args[:place], tuned, *args[place + 1 :]), kwargs

    def scaled(self, answer: Any) -> Any:
        """The network's answer to the last call, a tensor, a tuple or what has a ``sample``, times its gain."""
        if self.gain == 1:
            return answer
        if isinstance(answer, Tensor):
            return self.gain * answer
        if isinstance(answer, tuple):
            return (self.gain * answer[0], *answer[1:])
        answer.sample = self.gain * answer.sample
        return answer

    def _message(self, evaluation: int, timestep: Tensor) -> str:
        made, each, first = self.made, self.calls_per_evaluation, float(timestep.double().flatten()[0])
        time = f" (t = {(first + 1) / self.levels:g})" if self.leveled else ""
        text = (
            f"call {made + 1} of {self._numbers()} asks for timestep {first:g}{time}. "
            f"The timing's is {self.nominal[evaluation]:g} (t = {self.timing.times[evaluation]:g}). "
        )

        def asked(other: int) -> bool:
            return other < len(self.nominal) and same_timestep(timestep, self.nominal[other], self.within)

        broken = "If a run was broken off, call reset() before the next one. "
        if made == each and asked(0):
            text += f"If each evaluation calls the network {each + 1} times, as guidance may, give "
            return f"{text}calls_per_evaluation={each + 1}. {broken.rstrip()}"
        if made % each and asked(evaluation + 1):
            text += f"If each evaluation calls the network less often, give calls_per_evaluation={made % each}. "
        elif made and asked(0):
            text += f"The run before ended after {made} of {self.total} calls. {broken}"
        elif not made:
            if self.complete_runs:
                text += f"If this is no new run: it makes at least {self.total + 1} calls, the timing {self.total}. "
            return f"{text}{self._remedy()}. The scheduler's num_train_timesteps must be levels={self.levels}"
        return text + self._remedy()

    def _numbers(self) -> str:
        each = f" ({self.calls_per_evaluation} for each evaluation)" if self.calls_per_evaluation > 1 else ""
        return f"{self.total} calls{each}"

    def _remedy(self) -> str:
        timing = self.timing
        return (
            f"The timing is for {timing.solver} on the grid {timing.grid} with {len(timing.grid_times) - 1} steps: "
            "sample with that scheduler, spacing and number of steps, or tune another timing"
        )


def same_timestep(timestep: Tensor, nominal: float, within: float = 1e-3) -> bool:
    """Whether a pipeline's ``timestep`` (a number or [B]) is ``nominal``, to the rounding of its dtype."""
    # Half-precision pipelines round their timesteps.
    rounding = torch.finfo(timestep.dtype).eps * abs(nominal) if timestep.is_floating_point() else 0.0
    return bool(((timestep.double() - nominal).abs() <= max(within, rounding)).all())


def time_argument_of(network: nn.Module, name: str | None = None) -> tuple[str, int]:
    """The argument of a network that carries the time: its name, and its place, which is not the same in every one.

    Args:
        network: of diffusers, or one like them.
        name: by default the first of :data:`TIME_ARGUMENTS` that it has.

    Raises:
        BadValue: it cannot be found.
    """
    parameters = inspect.signature(plain(network).forward).parameters
    wanted = (name,) if name else TIME_ARGUMENTS
    for each in wanted:
        if each in parameters:
            return each, list(parameters).index(each)
    if not name and any(each.kind is each.VAR_POSITIONAL for each in parameters.values()):
        return TIME_ARGUMENTS[0], 1  # a module around a network
    raise BadValue(
        f"{type(plain(network)).__name__} has no argument called {' or '.join(wanted)} (it has "
        f"{', '.join(parameters)}); give the one that carries the time as time_argument"
    )


def network_in(pipeline: Any) -> tuple[str, nn.Module]:
    """The network that a pipeline samples with, and what it calls it.

    Raises:
        BadValue: there is none, or there are two.
    """
    networks = [name for name in NETWORKS if isinstance(getattr(pipeline, name, None), nn.Module)]
    if len(networks) != 1:
        raise BadValue(
            f"{type(pipeline).__name__} has {'two networks' if networks else 'no network'} called "
            f"{' or '.join(NETWORKS)} to tune; give the network itself, an nn.Module"
        )
    return networks[0], getattr(pipeline, networks[0])


class TunedUNet(nn.Module):
    """A network of diffusers that is conditioned on the tuned times, in any pipeline and whatever its sampler.

    Example::

        pipeline = DDIMPipeline(TunedUNet(unet, timing), scheduler)
        images = pipeline(batch_size=4, num_inference_steps=10).images
        pipeline.unet.save_pretrained("tuned")
        again = TunedUNet.from_pretrained("tuned")
        # pipeline(num_inference_steps=20) raises TimingMismatch: the timing is for 10

    A call ``(sample, timestep, ...)`` becomes ``(sample, tau, ...)``, and the answer is multiplied by the gain, where
    the timing has gains. After an interrupted run, call :meth:`reset`. All other attributes (config, dtype, device,
    add_embedding, ...) are the network's. A pipeline's own ``save_pretrained`` leaves this object out: save it by
    itself.

    **What is not checked here**: the scheduler. Another one that asks for the same times (UniPC for DPM-Solver++, DDIM
    with ``eta`` or ``clip_sample`` for DDIM without) samples with times that were tuned for other steps. And no error
    tells that a last run was too short, or that there was none. ``tuned_times(pipeline, timing)`` sees all that.

    Args:
        unet: the network, which is not changed. Its weights are compared as :func:`check_weights` does.
        timing, calls_per_evaluation, levels, time_argument: see :class:`Calls`.

    Raises:
        BadValue: the network is tuned already, a number is out of range, or no argument is known to carry the time.
        TimingMismatch: the timing is for a network with other weights.
    """

    def __init__(
        self,
        unet: nn.Module,
        timing: Timing,
        calls_per_evaluation: int = 1,
        levels: int = 1000,
        time_argument: str | None = None,
    ) -> None:
        super().__init__()
        self.calls = _calls_of(unet, timing, calls_per_evaluation, levels, time_argument)
        self.unet: Any = unet

    @property
    def timing(self) -> Timing:
        """The conditioning times."""
        return self.calls.timing

    def reset(self) -> None:
        """Begin a new run, after one that was interrupted."""
        self.calls.reset()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The network's answer to ``(sample, timestep, ...)``, its arguments, at the tuned time."""
        check_untuned(self.unet)
        args, kwargs = self.calls.replace(self.unet, args, kwargs)
        return self.calls.scaled(self.unet(*args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "unet":  # while this object is being made or copied
                raise
            return getattr(self.unet, name)

    def save_pretrained(self, folder: Path | str, **options: Any) -> None:
        """Write the network as diffusers does (plain diffusers can load it) and beside it the timing.

        The folder is written whole or not at all. An earlier save in it is replaced.

        Args:
            folder: made if it is not there.
            options: of the network's own ``save_pretrained``.

        Raises:
            BadValue: the folder cannot be written, or holds other files, weights perhaps, which loaders might take for
                these; or the network cannot be saved.
        """
        folder = Path(folder).resolve()
        check_writable(folder / TIMING)
        earlier: set[str] = set()
        with contextlib.suppress(TTError):
            earlier = {TIMING, WRAPPER, *_read_wrapper(folder)["sha256"]}
        if others := sorted({file.name for file in folder.glob("*")} - earlier):
            raise BadValue(f"{folder} holds other files ({', '.join(others)}); choose another folder or remove them")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent) as temporary:
            made = Path(temporary, "made")
            try:
                self.unet.save_pretrained(made, **options)
            except RuntimeError as error:  # of safetensors, for tied weights
                what = " ".join(str(error).split())
                raise BadValue(f"cannot save the network ({what}); give safe_serialization=False") from error
            hashes = {file.name: file_hash(file) for file in sorted(made.iterdir())}
            own = {key: getattr(self.calls, key) for key in CHOICES}
            write_json(made / WRAPPER, {"format": FORMAT, **own, "sha256": hashes})
            self.timing.save(made / TIMING)
            if folder.exists():
                shutil.rmtree(folder)
            made.rename(folder)

    @classmethod
    def from_pretrained(cls, folder: Path | str, **options: Any) -> TunedUNet:
        """Read what :meth:`save_pretrained` wrote.

        Args:
            folder: the folder; Hub names are not looked up.
            options: of the network's own ``from_pretrained``, such as ``torch_dtype``.

        Raises:
            MissingFile, CorruptFile: naming the file.
        """
        import diffusers

        folder = Path(folder)
        wrapper, timing = _read_wrapper(folder), load_timing(folder / TIMING)
        for file, digest in wrapper["sha256"].items():
            check_hash(folder / file, digest, remedy="save the network again")
        for path in sorted(folder.glob("diffusion_pytorch_model*")):
            if path.name not in wrapper["sha256"]:
                raise CorruptFile(
                    f"{path} is of another save than {WRAPPER}, and may be read in place of its weights; remove it"
                )
        unet: Any = getattr(diffusers, read_json(folder / "config.json")["_class_name"])
        options = weights_options(folder) | options
        own = {key: wrapper[key] for key in CHOICES if key in wrapper}
        return cls(unet.from_pretrained(str(folder), **options), timing, **own)


def _read_wrapper(folder: Path) -> dict[str, Any]:
    """What a :class:`TunedUNet` was saved with."""
    wrapper = read_json(folder / WRAPPER)
    if not isinstance(wrapper, dict) or wrapper.get("format") != FORMAT or not isinstance(wrapper.get("sha256"), dict):
        raise CorruptFile(f"{folder / WRAPPER} is not of format {FORMAT!r}; save the network again")
    return wrapper


@contextlib.contextmanager
def tuned_times(
    target: Any,
    timing: Timing,
    *,
    calls_per_evaluation: int = 1,
    levels: int = 1000,
    time_argument: str | None = None,
) -> Iterator[Calls]:
    """Within the block, a pipeline (or a network, wherever it is used) samples with the tuned times.

    Example::

        with tuned_times(pipeline, timing):
            images = pipeline(prompt, num_inference_steps=10).images
        untuned = pipeline(prompt, num_inference_steps=10).images
        # a run that makes another number of calls than the timing has ends in a TimingMismatch

    When a run begins, the pipeline's scheduler is compared with the timing's solver (:func:`check_scheduler`), and
    ``eta`` in each of its steps. After each evaluation it must have made its step, so that another pipeline with the
    same network shows. Given the network alone, its weights and the times are all that is checked.

    Args:
        target: a pipeline with a ``unet`` or a ``transformer``, or such a network.
        timing, calls_per_evaluation, levels, time_argument: see :class:`Calls`, which the block is given.

    Raises:
        BadValue: there is no network to tune, or there are two, or it is tuned already.
        TimingMismatch: the timing is for other weights or another scheduler; a call at another time than the timing's;
            a run that was not finished when the block ends, or no run in it; network or scheduler of the pipeline were
            replaced within the block.
    """
    parts: dict[str, Any] = {}
    network: Any = target
    if not isinstance(target, nn.Module):
        name, network = network_in(target)
        parts = {name: network, "scheduler": getattr(target, "scheduler", None)}
    calls = _calls_of(network, timing, calls_per_evaluation, levels, time_argument)
    scheduler = parts.get("scheduler")
    steps: list[Any] = []
    handles: list[Any] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not handles:  # a copy of the network, made within the block, has the hook after it
            return None
        evaluation, call = divmod(calls.made, calls_per_evaluation)
        replaced = calls.replace(module, args, kwargs)
        if scheduler is not None and not call:
            try:
                if evaluation:
                    _check_count(scheduler, evaluation, len(steps))
                else:
                    _check_parts(target, parts)
                    check_scheduler(timing, scheduler)
                    steps.clear()  # those of the comparison
            except TimingMismatch:
                calls.reset()
                raise
        return replaced

    # A network that is compiled in place compiles its hooks, and this one would take most of a minute.
    hook = torch.compiler.disable(before) if getattr(network, "_compiled_call_impl", None) else before
    handles.append(network.register_forward_pre_hook(hook, with_kwargs=True))
    if timing.gains:
        handles.append(
            network.register_forward_hook(lambda module, args, answer: calls.scaled(answer) if handles else None)
        )
    _IN_BLOCKS.add(plain(network))
    try:
        with _steps_checked(scheduler, timing, steps):
            yield calls
        _check_parts(target, parts)
        calls.finish()
        if scheduler is not None:
            _check_count(scheduler, timing.nfe, len(steps))
    finally:
        _IN_BLOCKS.discard(plain(network))
        while handles:
            handles.pop().remove()


def _calls_of(
    network: nn.Module, timing: Timing, calls_per_evaluation: int, levels: int, time_argument: str | None
) -> Calls:
    """The calls of a network that a timing is for and that is not tuned yet."""
    check_untuned(network)
    calls = Calls(timing, calls_per_evaluation, levels, time_argument)
    time_argument_of(network, time_argument)
    check_weights(timing, network)
    return calls


def check_weights(timing: Timing, network: nn.Module) -> None:
    """Raise :class:`TimingMismatch` if a timing is for another network than this one in memory.

    A timing names the hash of the float16 file that :func:`~tt_lib.networks.unet.save_model` writes, or of the weights
    in memory. Both can be made again of a network in float32. **Not compared** are a network in float16 or bfloat16,
    whose weights may have been rounded, and any network with a timing that names no weights.
    """
    weights = plain(network).state_dict()
    rounded = any(value.is_floating_point() and value.dtype != torch.float32 for value in weights.values())
    if rounded or not timing.weights:
        return
    from safetensors.torch import save

    halves = {key: value.detach().half().contiguous().cpu() for key, value in weights.items()}
    of_file = hashlib.sha256(save(halves, {"format": "pt"})).hexdigest()
    # What the network predicts stands in the scheduler. Off VP it is a part of the hash, with the path.
    kinds = (*PREDICTION_TYPES.values(), *(f"{kind} on {timing.schedule}" for kind in KINDS))
    if timing.weights != of_file and all(timing.weights != weights_hash(plain(network), kind) for kind in kinds):
        raise TimingMismatch(
            f"the timing is for the weights {timing.weights[:16]} of {timing.model or 'a network'}, and this network "
            "has others; tune one for it, or load the network that the timing is for. To try it all the same, give "
            "dataclasses.replace(timing, weights='')"
        )


def _check_parts(pipeline: Any, parts: dict[str, Any]) -> None:
    for name, part in parts.items():
        if getattr(pipeline, name, None) is not part:
            raise TimingMismatch(
                f"{name} of the pipeline was replaced within the block; begin the block when the pipeline is complete"
            )


def _check_count(scheduler: Any, evaluations: int, steps: int) -> None:
    if steps != evaluations:
        raise TimingMismatch(
            f"the network made {evaluations} evaluations and the pipeline's {type(scheduler).__name__} {steps} steps; "
            "run nothing but the pipeline in the block, without another that has the same network"
        )


@contextlib.contextmanager
def _steps_checked(scheduler: Any, timing: Timing, steps: list[Any]) -> Iterator[None]:
    """Within the block, ``scheduler.step`` adds to ``steps`` and refuses an ``eta`` that is not the timing's.

    It is an argument of the pipeline's call that stands in no configuration.
    """
    kind, eta = type(scheduler), eta_of(timing)
    if not hasattr(kind, "step"):
        yield
        return
    accepts = inspect.signature(kind.step)

    @functools.wraps(kind.step)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        steps.append(None)
        given = accepts.bind(self, *args, **kwargs).arguments
        used = float(given.get("eta") or 0.0)
        if "eta" in accepts.parameters and used != eta:
            raise TimingMismatch(
                f"the timing is for {timing.solver} with eta={eta:g}, and the pipeline samples with eta={used:g}; "
                f"call it with eta={eta:g}, or tune a timing for the other"
            )
        if given.get("use_clipped_model_output") and self.config.clip_sample:
            raise TimingMismatch("no timing is for use_clipped_model_output=True; call the pipeline without it")
        return kind.step(self, *args, **kwargs)

    # Of another class, not with another attribute: a copy of the scheduler then steps itself.
    scheduler.__class__ = type(kind.__name__, (kind,), {"step": step, "__module__": kind.__module__})
    try:
        yield
    finally:
        scheduler.__class__ = kind


def check_untuned(network: nn.Module) -> None:
    """Raise :class:`BadValue` if a network has tuned times."""
    if any(isinstance(each, TunedUNet) for each in network.modules()):
        raise BadValue("the network is tuned already, it is or holds a TunedUNet; take the one in it, network.unet")
    if plain(network) in _IN_BLOCKS:
        raise BadValue("the network is tuned already, by a block of tuned_times that has not ended; leave that first")


def plain(network: nn.Module) -> nn.Module:
    """The network itself where it is compiled."""
    return getattr(network, "_orig_mod", network)
