"""Tuned times in pipelines of diffusers: a network that is told tau where the pipeline says t."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from tt_lib.errors import BadValue, CorruptFile, MissingFile
from tt_lib.files import file_hash, read_json, write_json
from tt_lib.interop.calls import Calls
from tt_lib.timing import Timing, load_timing

TIMING, WRAPPER = "timing.json", "tuned_unet.json"
FORMAT = "tt-tuned-unet-1"
NETWORKS = ("unet", "transformer")
"""What pipelines call the network that they sample with."""


class TunedUNet(nn.Module):
    """A network of diffusers that is conditioned on the tuned times, in any pipeline and whatever its sampler.

    Example::

        pipeline = DDIMPipeline(TunedUNet(unet, timing), scheduler)
        images = pipeline(batch_size=4, num_inference_steps=10).images
        pipeline.unet.save_pretrained("tuned")
        again = TunedUNet.from_pretrained("tuned")
        # pipeline(num_inference_steps=20) raises TimingMismatch: the timing is for 10

    A call ``(sample, timestep, ...)`` becomes ``(sample, tau, ...)``. Which tau is decided by the number of the call,
    so that evaluations at one time (Heun, PLMS) have a tau each, and the pipeline's timestep is checked against the
    timing's. After the last call of a run the next call begins a new one; after an interrupted run, call
    :meth:`reset`. A last run that is too short shows only in :func:`tuned_times`, which knows where it ends. All
    other attributes (config, dtype, device, add_embedding, ...) are the network's. A pipeline's own
    ``save_pretrained`` leaves this object out: save it by itself.

    Args:
        unet: the network, which is not changed.
        timing, calls_per_evaluation, levels: see :class:`Calls`.

    Raises:
        BadValue: the network is tuned already, or a number is out of range.
    """

    def __init__(self, unet: nn.Module, timing: Timing, calls_per_evaluation: int = 1, levels: int = 1000) -> None:
        super().__init__()
        _check_untuned(unet)
        self.unet: Any = unet
        self.calls = Calls(timing, calls_per_evaluation, levels)

    @property
    def timing(self) -> Timing:
        """The conditioning times."""
        return self.calls.timing

    def reset(self) -> None:
        """Begin a new run, after one that was interrupted."""
        self.calls.reset()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The network's answer to ``(sample, timestep, ...)``, its arguments, at the tuned time.

        Raises:
            TimingMismatch: ``timestep`` is not the timing's nominal time for this call.
        """
        args, kwargs = self.calls.replace(self.unet, args, kwargs)
        return self.unet(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "unet":  # while this object is being made or copied
                raise
            return getattr(self.unet, name)

    def save_pretrained(self, folder: Path | str, **options: Any) -> None:
        """Write the network as diffusers does (plain diffusers can load it) and beside it the timing.

        Each file is written whole or not at all, the timing last: a save that is killed leaves no timing with weights
        that are not its own.

        Args:
            folder: made if it is not there; other files in it stay.
            options: of the network's own ``save_pretrained``.
        """
        folder = Path(folder)
        _make(folder)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent) as temporary:
            self.unet.save_pretrained(temporary, **options)
            for name in (TIMING, WRAPPER):
                (folder / name).unlink(missing_ok=True)
            hashes = {}
            for file in sorted(Path(temporary).iterdir()):
                hashes[file.name] = file_hash(file)
                os.replace(file, folder / file.name)
        wrapper = {
            "format": FORMAT,
            "calls_per_evaluation": self.calls.calls_per_evaluation,
            "levels": self.calls.levels,
        }
        write_json(folder / WRAPPER, {**wrapper, "sha256": hashes})
        self.timing.save(folder / TIMING)

    @classmethod
    def from_pretrained(cls, folder: Path | str, **options: Any) -> TunedUNet:
        """Read what :meth:`save_pretrained` wrote.

        Args:
            folder: the folder; Hub names are not looked up.
            options: of the network's own ``from_pretrained``, such as ``torch_dtype``.

        Raises:
            MissingFile, CorruptFile: naming the file.
        """
        folder = Path(folder)
        wrapper, timing = read_json(folder / WRAPPER), load_timing(folder / TIMING)
        if not isinstance(wrapper, dict) or wrapper.get("format") != FORMAT:
            raise CorruptFile(f"{folder / WRAPPER} is not of format {FORMAT!r}; save the network again")
        _check_files(folder, wrapper.get("sha256", {}))
        unet = _class_of(folder).from_pretrained(str(folder), **options)
        return cls(unet, timing, wrapper["calls_per_evaluation"], wrapper["levels"])


@contextlib.contextmanager
def tuned_times(target: Any, timing: Timing, *, calls_per_evaluation: int = 1, levels: int = 1000) -> Iterator[Calls]:
    """Within the block, a pipeline (or a network, wherever it is used) samples with the tuned times.

    Example::

        with tuned_times(pipeline, timing):
            images = pipeline(prompt, num_inference_steps=10).images
        untuned = pipeline(prompt, num_inference_steps=10).images
        # a run that makes another number of calls than the timing has ends in a TimingMismatch

    Args:
        target: a pipeline with a ``unet`` or a ``transformer``, or such a network.
        timing, calls_per_evaluation, levels: see :class:`Calls`, which the block is given.

    Raises:
        BadValue: there is no network to tune, or it is tuned already.
        TimingMismatch: a call at another time than the timing's, or a run that was not finished when the block ends.
    """
    network = _network_of(target)
    _check_untuned(network)
    calls = Calls(timing, calls_per_evaluation, levels)
    handle = network.register_forward_pre_hook(calls.replace, with_kwargs=True)
    try:
        yield calls
        calls.finish()
    finally:
        handle.remove()


def _network_of(target: Any) -> nn.Module:
    if isinstance(target, nn.Module):
        return target
    for name in NETWORKS:
        network = getattr(target, name, None)
        if isinstance(network, nn.Module):
            return network
    raise BadValue(
        f"{type(target).__name__} has no network called {' or '.join(NETWORKS)} to tune; "
        "give the network itself, an nn.Module"
    )


def _check_untuned(network: nn.Module) -> None:
    if isinstance(network, TunedUNet):
        raise BadValue(
            f"the network is tuned already (timing {network.timing.name!r}); take the one in it, network.unet"
        )


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadValue(f"cannot write {folder}: {error.strerror}; choose another output folder") from error


def _check_files(folder: Path, hashes: dict[str, str]) -> None:
    for name, digest in hashes.items():
        if not (folder / name).is_file():
            raise MissingFile(f"no file at {folder / name}; save the network again")
        if file_hash(folder / name) != digest:
            raise CorruptFile(
                f"{folder / name} is damaged or another network's than the timing is for; save the network again"
            )


def _class_of(folder: Path) -> Any:
    import diffusers

    name = str(read_json(folder / "config.json").get("_class_name"))
    found = getattr(diffusers, name, None)
    if not (isinstance(found, type) and issubclass(found, diffusers.ModelMixin)):
        raise CorruptFile(
            f"{folder / 'config.json'} names {name!r}, which is no network of diffusers; save the network again"
        )
    return found
