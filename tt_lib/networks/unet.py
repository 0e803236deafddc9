"""UNets of diffusers, made, saved and loaded with the schedule that they were trained on.

A model folder is what diffusers itself writes (``config.json`` and
``diffusion_pytorch_model.safetensors``), so anyone can load it with ``UNet2DModel.from_pretrained``,
plus ``tt_model.json``, which adds what diffusers does not say: the schedule, the data set, the
weights' hash and how they were trained. What others save is loaded, too: a network with its
``scheduler_config.json`` beside it, or a pipeline's folder with ``unet/`` and ``scheduler/``.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tt_lib.errors import BadValue, CorruptFile, MissingFile, choose
from tt_lib.files import atomic_path, check_hash, data_folder, file_hash, read_json, write_json
from tt_lib.networks.config import TARGETS
from tt_lib.predictors import KINDS, PREDICTION_TYPES, check_kind, path_of
from tt_lib.schedules import VP, DiscreteSchedule, Schedule, make_schedule

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
"""Of weights in several files; where it is there, diffusers reads them and not :data:`WEIGHTS`."""
CONFIG, CARD = "config.json", "tt_model.json"
PRETRAINED = {"cifar10": "cifar10-ddpm-w96", "digits": "digits-ddpm"}
"""The folder in ``data/pretrained/`` that a data set's name stands for. Only CIFAR-10's is shipped."""

DIFFUSION = (
    *("DDIMScheduler", "DDPMScheduler", "DEISMultistepScheduler", "DPMSolverMultistepScheduler"),
    *("DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler"),
    *("HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "LMSDiscreteScheduler"),
    *("PNDMScheduler", "UniPCMultistepScheduler"),
)
"""The schedulers of diffusers whose betas are a variance-preserving diffusion's, whatever they sample it with."""
FLOW = "it samples a flow, not a variance-preserving diffusion"
OTHER_KINDS = {
    "Flow": FLOW,
    "EDM": "it scales its states and times as EDM does, not as a variance-preserving network expects them",
    "Ve": "its noise is added to images that keep their size: it is variance-exploding",
}
"""Why a scheduler is of no variance-preserving diffusion, by a part of its class's name."""
OTHER_OPTIONS = {
    "use_flow_sigmas": (False, FLOW),
    "rescale_betas_zero_snr": (False, "at its last level eps says nothing of the image"),
    "timestep_type": ("discrete", "the network is conditioned on noise levels and not on timesteps"),
}
"""Options of schedulers with the only value that is supported, and why."""


@dataclass
class Model:
    """A frozen network, with its schedule and the shape of its images.

    Attributes:
        network: called as ``network(x, c).sample`` with ``x`` [B, C, H, W] and ``c`` [B], the schedule's
            :meth:`~tt_lib.schedules.Schedule.network_time`.
        schedule: the noise schedule it is sampled on: the one that it was trained on, or that of another path.
        shape: (C, H, W) of one sample, in [-1, 1].
        name: its name in rows and timings.
        digest: the sha256 of the weights' file, as ``tt_model.json`` gives it; without that file, :func:`weights_hash`.
        card: the content of ``tt_model.json``.
        kind: what it predicts, one of :data:`tt_lib.predictors.KINDS`.
        own: the schedule that it was trained on, if it is sampled on another one.
    """

    network: nn.Module
    schedule: Schedule
    shape: tuple[int, int, int]
    name: str
    digest: str = ""
    card: dict[str, Any] = field(default_factory=dict)
    kind: str = "eps"
    own: Schedule | None = None

    def __post_init__(self) -> None:
        # A card of one's own may change: what was measured on another path is of another model. (Of a diffusion with
        # diffusers' kinds the hash is compared with that of a pipeline's network, which knows no schedule.)
        plain = isinstance(self.schedule, VP) and self.kind in PREDICTION_TYPES.values()
        self.digest = self.digest or weights_hash(
            self.network, self.kind if plain else f"{self.kind} on {self.schedule.name}"
        )


def weights_hash(network: nn.Module, kind: str = "eps") -> str:
    """sha256 of a network's weights as it runs with them: names, types, shapes and bytes, in the order of the names.

    So it does not depend on the files that they came from. The choices in its ``config`` count that are not those of
    its class, and what it predicts: the same weights with another activation are another network.
    """
    digest = hashlib.sha256()
    if kind != "eps":
        digest.update(f"{kind}\n".encode())
    config: Any = getattr(network, "config", None)
    own = inspect.signature(type(network).__init__).parameters
    for key in sorted(own.keys() & config.keys()) if isinstance(config, Mapping) else ():
        value = list(config[key]) if isinstance(config[key], tuple) else config[key]
        default = list(own[key].default) if isinstance(own[key].default, tuple) else own[key].default
        if value != default:
            digest.update(f"{key} {value!r}\n".encode())
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def make_unet(
    dataset: str = "cifar10",
    width: int = 64,
    dropout: float = 0.0,
    attention: Sequence[int] = (),
    shape: Sequence[int] = (),
) -> Any:
    """A fresh ``UNet2DModel`` with the shape of ``google/ddpm-cifar10-32`` at another base width.

    Args:
        dataset: ``cifar10`` (3x32x32, four levels) or ``digits`` (1x8x8, two levels), or a user's own (four levels).
        width: channels of the first level; 128 is the network of Ho et al. (2020), 35.7 M parameters.
        dropout: probability in the residual blocks, while training.
        attention: sides, in pixels, of the levels with attention; by default half the image's side.
        shape: (C, H, W) of the images of a user's own, square.

    The digits network is small on purpose: one layer a block, and group norms of 8 groups, so that 16 channels do. On
    two CPU cores it learns from twice as many images a minute as one with 32.

    Raises:
        BadValue: an unknown data set without a shape; a side that 8 does not divide; a width that is no positive
            multiple of 32 (of 16 for digits), as the group norms need; attention at a side that no level has, or of
            fewer than 32 channels.
    """
    from diffusers import UNet2DModel

    if not shape:
        choose("data set", dataset, ("cifar10", "digits"))
    small = dataset == "digits"
    channels, height, side = (1, 8, 8) if small else tuple(shape or (3, 32, 32))
    unit, levels = (16, 2) if small else (32, 4)
    if side % 8 or height != side:
        raise BadValue(f"a network is made for square images of a side that 8 divides, got {list(shape)}; cut them")
    if width < unit or width % unit:
        raise BadValue(f"width must be a positive multiple of {unit}, got {width}")
    sides = [side >> level for level in range(levels)]
    attention = tuple(attention) or (side // 2,)
    if set(attention) - set(sides):
        raise BadValue(f"attention must be at some of the sides {sides}, got {list(attention)}")
    if width < 32 and side in attention:
        raise BadValue(f"attention at side {side} needs a width of at least 32, got {width}")
    own = {"layers_per_block": 1, "norm_num_groups": 8} if small else {"layers_per_block": 2, "downsample_padding": 0}
    return UNet2DModel(
        sample_size=side,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(width,) + (2 * width,) * (levels - 1),
        down_block_types=tuple("AttnDownBlock2D" if each in attention else "DownBlock2D" for each in sides),
        up_block_types=tuple("AttnUpBlock2D" if each in attention else "UpBlock2D" for each in reversed(sides)),
        attention_head_dim=32,
        norm_eps=1e-6,
        flip_sin_to_cos=False,
        freq_shift=1,
        dropout=dropout,
        **own,
    )


def save_model(network: nn.Module, folder: Path | str, *, name: str, schedule: str, card: dict[str, Any]) -> None:
    """Write ``network`` as a model folder with float16 weights.

    Args:
        network: a diffusers ``UNet2DModel``.
        folder: made if it is not there.
        name: what results rows call it.
        schedule: see :func:`tt_lib.schedules.make_schedule`.
        card: more facts for ``tt_model.json`` (data set, training command, images seen, ...).

    The index of weights that an earlier save split into several files is removed: loaders would read those.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    # Copies: a file of safetensors holds no two tensors that share their memory, as tied weights do.
    weights = {
        key: value.detach().to("cpu", torch.float16, copy=True, memory_format=torch.contiguous_format)
        for key, value in network.state_dict().items()
    }
    (folder / INDEX).unlink(missing_ok=True)
    with atomic_path(folder / WEIGHTS) as temporary:
        save_file(weights, str(temporary), metadata={"format": "pt"})
    config: Any = network.config
    write_json(folder / CONFIG, {"_class_name": type(network).__name__, **dict(config)})
    facts = {
        "name": name,
        "schedule": schedule,
        "shape": [config["in_channels"], config["sample_size"], config["sample_size"]],
        "parameters": sum(weight.numel() for weight in network.parameters()),
        "sha256": file_hash(folder / WEIGHTS),
        "config_sha256": _config_hash(folder),
    }
    write_json(folder / CARD, facts | card)


def _config_hash(folder: Path) -> str:
    """sha256 of the content of ``config.json``: a checkout may change the ends of its lines."""
    return hashlib.sha256(json.dumps(read_json(folder / CONFIG), sort_keys=True).encode()).hexdigest()


def find_model(name: str) -> Path | None:
    """The folder of a model given as a path, a name in ``data/pretrained/`` or a data set's name; else None."""
    name = PRETRAINED.get(name, name)
    shipped = data_folder() / "pretrained" / name
    # A folder called like a shipped network, wherever the command runs, does not take its place.
    folders = (shipped, Path(name)) if name in PRETRAINED.values() else (Path(name), shipped)
    return next((folder for folder in folders if folder.is_dir()), None)


def load_model(name: str, device: torch.device | str = "cpu") -> Model:
    """Load a frozen network, in float32 and evaluation mode.

    Args:
        name: a model folder; the name of a folder in ``data/pretrained/``, for which its data set's name may stand; or
            a repository on the Hub, such as ``google/ddpm-cifar10-32``. With ``,path=flow`` behind its name a network
            is sampled on another path, here the straight one, at the same signal-to-noise ratios: see
            :class:`tt_lib.predictors.OnPath`.

    Raises:
        MissingFile: there is no such folder, and the Hub cannot be reached or has no such repository; or no file
            names the noise schedule.
        CorruptFile: the weights' hash is not the one in ``tt_model.json``, or they do not fit the network.
        BadValue: the network needs more than a noisy image and a time, its kind of diffusion is not supported, or its
            prediction is not defined on its schedule.
    """
    plain, on_path, path = name.partition(",path=")
    if on_path and find_model(name) is None:
        model = load_model(plain, device)
        schedule = path_of(path, model.schedule)  # one path, one spelling: rows and timings are found by it
        return replace(model, name=f"{model.name},path={schedule.name}", schedule=schedule, own=model.schedule)
    folder = find_model(name)
    # Where commands write is no owner on the Hub: a name misspelled there is not looked for on the network.
    if folder is None and (name.count("/") != 1 or name.startswith(("./", "runs/", "data/"))):
        pretrained = data_folder() / "pretrained"
        if name in PRETRAINED:
            remedy = f"train it: tt train --dataset {name} --out {pretrained / PRETRAINED[name]}"
            raise MissingFile(f"no network of {name} at {pretrained / PRETRAINED[name]}; {remedy}")
        models = ", ".join(sorted(card.parent.name for card in pretrained.glob(f"*/{CARD}"))) or "none"
        raise MissingFile(
            f"no model {name!r}: it is neither a folder, nor a network in {pretrained} (there: {models}), nor a Hub "
            "repository (owner/name); check the name"
        )
    source = str(folder or name)
    card = read_json(folder / CARD) if folder and (folder / CARD).exists() else {}
    words = ("name", "schedule", "kind", "sha256", "config_sha256")
    if not isinstance(card, dict) or any(
        not isinstance(card.get(key, "-"), str) or card.get(key) == "" for key in words
    ):
        raise CorruptFile(f"{folder}/{CARD} is damaged: {', '.join(words)} must be text; restore it")
    choose("kind of prediction", card.get("kind", "eps"), KINDS)
    if folder and "sha256" in card:
        if (folder / INDEX).exists():
            raise CorruptFile(f"{folder / INDEX} names other weights than {CARD}, and would be read; remove it")
        remedy = "restore the file (git checkout, git lfs pull) or train it again with `tt train`"
        check_hash(folder / WEIGHTS, card["sha256"], remedy=remedy)
    if folder and "config_sha256" in card and card["config_sha256"] != _config_hash(folder):
        raise CorruptFile(f"{folder / CONFIG} is not the one that {CARD} was written with; restore the file")
    part = _part_of(source)
    # What cannot be sampled is refused before its weights are read.
    if "schedule" in card:
        schedule, kind = make_schedule(card["schedule"]), card.get("kind", "eps")
    else:
        schedule, kind = _schedule_of(source, ("scheduler", None) if part else (None, "scheduler"))
    check_kind(kind, schedule, torch.ones((), dtype=torch.float64))
    training = card.get("training")
    target = training.get("target") if isinstance(training, dict) else None
    if isinstance(target, str) and (kind, schedule.name) != TARGETS.get(target, (kind, schedule.name)):
        raise CorruptFile(
            f"{folder}/{CARD} contradicts itself: the network was trained for the target {target}, which is "
            f"{' on '.join(TARGETS[target])}, and it says {kind} on {schedule.name}; restore it"
        )
    network = _from_pretrained(source, part)
    size = network.config["sample_size"]
    shape = (network.config["in_channels"], *((size, size) if isinstance(size, int) else size))
    network.requires_grad_(False).eval().to(device)
    # abspath: "." and ".." are no names, and a link has its own.
    own_name = card.get("name", os.path.basename(os.path.abspath(folder)) if folder else name)
    return Model(network, schedule, shape, own_name, card.get("sha256", ""), card, kind)


def weights_options(folder: Path) -> dict[str, Any]:
    """Options of ``from_pretrained`` for the weights that a folder of diffusers holds.

    As in diffusers plain weights go before variants such as ``fp16``, and safetensors before ``.bin``.

    Raises:
        BadValue: several variants, and no plain weights.
    """
    layouts = set()
    for file in folder.glob("diffusion_pytorch_model[-.]*"):
        stem, *middle, kind = re.sub(r"-\d+-of-\d+", "", file.name).split(".")
        if stem == "diffusion_pytorch_model" and len(middle) < 2 and kind in ("safetensors", "bin"):
            layouts.add((middle[0] if middle else "", kind))
    variants = sorted({variant for variant, _ in layouts})
    if len(variants) > 1 and "" not in variants:
        raise BadValue(f"{folder} has weights in the variants {', '.join(variants)}; keep one of them")
    if not layouts:
        return {}
    variant, kind = min(layouts, key=lambda layout: (layout[0], layout[1] == "bin"))
    return {"variant": variant or None, "use_safetensors": kind == "safetensors"}


def _part_of(source: str) -> str | None:
    """Where a folder or a repository has its network: ``unet`` in a pipeline's, else None.

    Raises:
        BadValue: it is of another class, or of a pipeline with more parts than a network and a scheduler, or the
            network needs labels, or does not say how large its images are.
        MissingFile, CorruptFile: there is none.
    """
    from diffusers import ConfigMixin, UNet2DModel

    class Index(ConfigMixin):
        config_name: Any = "model_index.json"

    if Path(source, "unet", CONFIG).exists() and Path(source, CONFIG).exists():
        raise BadValue(f"{source} holds two networks, its own and that in unet/; give {source}/unet or remove one")
    config, part = _load_config(UNet2DModel, source, (None, "unet"))
    index: dict[str, Any] = {}
    if not Path(source).is_dir() or Path(source, Index.config_name).exists():
        with contextlib.suppress(MissingFile):
            index, _ = _load_config(Index, source, (None,))
    more = sorted(
        key
        for key, value in index.items()
        if isinstance(value, list) and any(value) and key not in ("unet", "scheduler")
    )
    kind, labels = config.get("_class_name", "UNet2DModel"), ("num_class_embeds", "class_embed_type")
    size, into, out = (config.get(key, 3) for key in ("sample_size", "in_channels", "out_channels"))
    reason = ""
    if more:
        reason = f"its pipeline has {', '.join(more)} beside network and scheduler, so it samples no plain images"
    elif kind != "UNet2DModel":
        reason = f"its network is a {kind} and no UNet2DModel"
    elif given := [key for key in labels if config.get(key) is not None]:
        reason = f"its network is class-conditional ({given[0]}={config[given[0]]!r}), and labels are not supported"
    elif not isinstance(into, int) or out not in (into, 2 * into):
        reason = f"its network makes {out} channels of {into}, so it takes more than a noisy image"
    elif not _is_size(config.get("sample_size")):
        reason = f"its config.json does not say how large images are (sample_size is {size!r})"
    if reason:
        raise BadValue(f"cannot sample {source}: {reason}; choose another model")
    return part


def _is_size(size: Any) -> bool:
    """Whether ``size`` is the side of images, or both."""
    sides = size if isinstance(size, list) and len(size) == 2 else [size]
    return all(isinstance(side, int) and side > 0 for side in sides)


def _load_config(kind: Any, source: str, places: Sequence[str | None]) -> tuple[dict[str, Any], str | None]:
    """The configuration of a class of diffusers, from the first place (a subfolder, or None) that has it."""
    first: Exception | None = None
    for place in places:
        try:
            config = kind.load_config(source, subfolder=place)
            if isinstance(config, dict):
                return config, place
            raise ValueError(f"{kind.config_name} holds no settings")
        except (OSError, ValueError) as error:
            first = first or error
            if Path(source, place or "", kind.config_name).exists():  # damaged: no other takes its place
                break
    assert first is not None
    raise _not_loaded(source, first) from first


def _not_loaded(source: str, error: Exception) -> CorruptFile | MissingFile:
    """The one line for whatever diffusers says where it cannot load something."""
    what = " ".join(str(error).split()).rstrip(".")
    if Path(source).is_dir():
        remedy = "give one, or restore its files (git checkout, git lfs pull)"
        return CorruptFile(f"{source} is not a model folder of diffusers: {what}; {remedy}")
    reason = (str(error).splitlines() or [what])[0].rstrip(".")
    return MissingFile(
        f"cannot load {source!r}: it is not a folder here, and the Hub does not give it ({reason}); check the "
        "name and the internet connection, or download the repository and give its folder"
    )


def _from_pretrained(source: str, part: str | None) -> Any:
    from diffusers import UNet2DModel

    folder = Path(source, part or "")
    options = weights_options(folder) if folder.is_dir() else {}
    try:
        # float32 whatever the file holds: the taus are tuned through this network.
        network, report = UNet2DModel.from_pretrained(
            source,
            subfolder=part,
            torch_dtype=torch.float32,
            low_cpu_mem_usage=False,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise _not_loaded(source, error) from error
    for what, key in (("no", "missing_keys"), ("it has no", "unexpected_keys")):
        if report[key]:
            raise CorruptFile(
                f"the weights of {source} do not fit its config.json: {what} {report[key][:3]}; restore the folder"
            )
    return network


def _schedule_of(source: str, places: Sequence[str | None]) -> tuple[Schedule, str]:
    """The schedule, and what the network predicts, from a ``scheduler_config.json`` in one of the places.

    Raises:
        MissingFile: there is none.
        BadValue: it is of another kind of diffusion, or unknown.
    """
    import diffusers

    try:
        config, _ = _load_config(diffusers.DDPMScheduler, source, places)
    except (MissingFile, CorruptFile) as error:
        if any(Path(source, place or "", "scheduler_config.json").exists() for place in places):
            raise
        raise MissingFile(
            f"{source} has no scheduler_config.json, so its noise schedule is unknown; add tt_model.json"
        ) from error
    name = str(config.get("_class_name"))
    check_diffusion(source, name, config)
    try:
        scheduler = getattr(diffusers, name).from_config(config)
        schedule = DiscreteSchedule(scheduler.betas.double(), schedule_name(scheduler.config))
    except (NotImplementedError, ImportError, RuntimeError, TypeError, ValueError) as error:
        what = " ".join(str(error).split())
        raise BadValue(f"the noise schedule of {source} is unknown: {what}; add tt_model.json") from error
    own = scheduler.config
    kind = PREDICTION_TYPES.get(str(own["prediction_type"]))
    if kind is None:
        raise BadValue(
            f"the network of {source} predicts {own['prediction_type']!r}, which is none of "
            f"{', '.join(PREDICTION_TYPES)}; choose another model"
        )
    return schedule, kind


def check_diffusion(source: str, name: str, config: Mapping[str, Any]) -> None:
    """Raise :class:`BadValue` unless a scheduler's class and options are of a diffusion that is supported.

    Args:
        source: what has the scheduler, for the error.
        name: of its class.
        config: its options.
    """
    if name not in DIFFUSION:
        why = next((why for part, why in OTHER_KINDS.items() if part in name), "its noise schedule is not known here")
        raise BadValue(
            f"cannot sample {source} with its {name}: {why}; choose a model of DDPMScheduler or its like, or give the "
            f"schedule and the kind of prediction in {CARD}, such as flow and velocity, or ve and edm"
        )
    for key, (supported, why) in OTHER_OPTIONS.items():
        if (config.get(key) or supported) != supported:
            raise BadValue(
                f"cannot sample {source} with {key}={config[key]!r} of its {name}: {why}; choose a model with "
                f"{supported!r}"
            )


def schedule_name(config: Mapping[str, Any]) -> str:
    """The name of a scheduler's betas. Names differ where betas do: a timing of one is not used with the other."""
    if config["trained_betas"] is not None:
        numbers = [float(beta) for beta in config["trained_betas"]]
        return "trained-" + hashlib.sha256(repr(numbers).encode()).hexdigest()[:8]
    name, levels = config["beta_schedule"], config["num_train_timesteps"]
    if name == "squaredcos_cap_v2":  # it has no first and last beta
        return name if levels == 1000 else f"{name}-{levels}"
    betas = name, config["beta_start"], config["beta_end"], levels
    return "linear" if betas == ("linear", 1e-4, 0.02, 1000) else "-".join(map(str, betas))
