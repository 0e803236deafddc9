"""UNets of diffusers, made, saved and loaded with the schedule that they were trained on.

A model folder is what diffusers itself writes (``config.json`` and
``diffusion_pytorch_model.safetensors``), so anyone can load it with ``UNet2DModel.from_pretrained``,
plus ``tt_model.json``, which adds what diffusers does not say: the schedule, the data set, the
weights' hash and how they were trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tt_lib.errors import BadValue, CorruptFile, MissingFile, choose
from tt_lib.files import atomic_path, check_hash, data_folder, file_hash, read_json, write_json
from tt_lib.predictors import PREDICTION_TYPES
from tt_lib.schedules import DiscreteSchedule, Schedule, make_schedule

WEIGHTS = "diffusion_pytorch_model.safetensors"
CARD = "tt_model.json"
PRETRAINED = {"cifar10": "cifar10-ddpm-w64", "digits": "digits-ddpm"}
"""The folder in ``data/pretrained/`` that a data set's name stands for. Only CIFAR-10's is shipped."""


@dataclass
class Model:
    """A frozen network with all that is needed to sample from it.

    Attributes:
        network: called as ``network(x, c).sample`` with ``x`` [B, C, H, W] and ``c`` [B], the schedule's
            :meth:`~tt_lib.schedules.Schedule.network_time`.
        schedule: the noise schedule it was trained on.
        shape: (C, H, W) of one sample, in [-1, 1].
        name: what results rows and timings call it.
        digest: sha256 of the weights' file (empty for a network made in memory).
        card: the content of ``tt_model.json``.
        kind: what it predicts, ``eps``, ``x0`` or ``v`` (see :mod:`tt_lib.predictors`).
    """

    network: nn.Module
    schedule: Schedule
    shape: tuple[int, int, int]
    name: str
    digest: str = ""
    card: dict[str, Any] = field(default_factory=dict)
    kind: str = "eps"


def make_unet(dataset: str = "cifar10", width: int = 64, dropout: float = 0.0, attention: Sequence[int] = ()) -> Any:
    """A fresh ``UNet2DModel`` with the shape of ``google/ddpm-cifar10-32`` at another base width.

    Args:
        dataset: ``cifar10`` (3x32x32, four levels, attention at 16x16) or ``digits`` (1x8x8, two levels).
        width: channels of the first level; 128 is the network of Ho et al. (2020), 35.7 M parameters.
        dropout: probability in the residual blocks, while training.
        attention: sides, in pixels, of the levels with attention; by default 16 of 32, and 4 of 8.

    The digits network is small on purpose: one layer a block, and group norms of 8 groups, so that 16 channels do. On
    two CPU cores it learns from twice as many images a minute as one with 32.

    Raises:
        BadValue: an unknown data set; a width that is no positive multiple of 32 (of 16 for digits), as the group norms
            need; attention at a side that no level has, or of fewer than 32 channels.
    """
    from diffusers import UNet2DModel

    choose("data set", dataset, ("cifar10", "digits"))
    small = dataset == "digits"
    unit, side, levels, channels = (16, 8, 2, 1) if small else (32, 32, 4, 3)
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
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    weights = {key: value.detach().half().contiguous().cpu() for key, value in network.state_dict().items()}
    with atomic_path(folder / WEIGHTS) as temporary:
        save_file(weights, str(temporary), metadata={"format": "pt"})
    config: Any = network.config
    write_json(folder / "config.json", {"_class_name": type(network).__name__, **dict(config)})
    facts = {
        "name": name,
        "schedule": schedule,
        "shape": [config["in_channels"], config["sample_size"], config["sample_size"]],
        "parameters": sum(weight.numel() for weight in network.parameters()),
        "sha256": file_hash(folder / WEIGHTS),
    }
    write_json(folder / CARD, facts | card)


def find_model(name: str) -> Path | None:
    """The folder of a model given as a path, a name in ``data/pretrained/`` or a data set's name; else None."""
    name = PRETRAINED.get(name, name)
    for folder in (Path(name), data_folder() / "pretrained" / name):
        if folder.is_dir():
            return folder
    return None


def load_model(name: str, device: torch.device | str = "cpu") -> Model:
    """Load a frozen network, in float32 and evaluation mode.

    Args:
        name: a model folder, the name of a folder in ``data/pretrained/`` (or of its data set), or a
            repository on the Hub such as ``google/ddpm-cifar10-32``.

    Raises:
        MissingFile: there is no such folder, and the Hub cannot be reached or has no such repository.
        CorruptFile: the weights' hash is not the one in ``tt_model.json``.
    """
    folder = find_model(name)
    if folder is None and name.count("/") != 1:
        pretrained = data_folder() / "pretrained"
        if name in PRETRAINED:
            remedy = f"train it: tt train --dataset {name} --out {pretrained / PRETRAINED[name]}"
            raise MissingFile(f"no network of {name} at {pretrained / PRETRAINED[name]}; {remedy}")
        models = ", ".join(sorted(card.parent.name for card in pretrained.glob(f"*/{CARD}"))) or "none"
        raise MissingFile(
            f"no model {name!r}: it is no folder, no network in {pretrained} (there: {models}), and no Hub repository "
            "(those read owner/name)"
        )
    source = str(folder or name)
    card = read_json(folder / CARD) if folder and (folder / CARD).exists() else {}
    if folder and "sha256" in card:
        remedy = "restore the file (git checkout, git lfs pull) or train it again with `tt train`"
        check_hash(folder / WEIGHTS, card["sha256"], remedy=remedy)
    network = _from_pretrained(source)
    if "schedule" in card:
        schedule, kind = make_schedule(card["schedule"]), card.get("kind", "eps")
    else:
        schedule, kind = _scheduler_of(source)
    size = network.config["sample_size"]
    shape = (network.config["in_channels"], *((size, size) if isinstance(size, int) else size))
    network.requires_grad_(False).eval().to(device)
    own_name = card.get("name", folder.name if folder else name)
    return Model(network, schedule, shape, own_name, card.get("sha256", ""), card, kind)


def _from_pretrained(source: str) -> Any:
    from diffusers import UNet2DModel

    try:
        # float32 whatever the file holds: the taus are tuned through this network.
        network, report = UNet2DModel.from_pretrained(
            source, torch_dtype=torch.float32, low_cpu_mem_usage=False, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        if Path(source).is_dir():
            remedy = "give one, or restore its files (git checkout, git lfs pull)"
            raise CorruptFile(
                f"{source} is not a model folder of diffusers: {str(error).rstrip('.')}; {remedy}"
            ) from error
        raise MissingFile(
            f"cannot load {source!r} from the Hub ({str(error).splitlines()[0]}); check the name and the network, "
            "or download the repository and give its folder"
        ) from error
    if report["missing_keys"]:
        missing = report["missing_keys"][:3]
        raise CorruptFile(f"the weights of {source} do not fit its config.json: no {missing}; restore the folder")
    return network


def _scheduler_of(source: str) -> tuple[Schedule, str]:
    """The schedule, and what the network predicts, from a repository's ``scheduler_config.json``.

    It lies at the top, as DDPM's do, or in ``scheduler/``.
    """
    from diffusers import DDPMScheduler

    for options in ({}, {"subfolder": "scheduler"}):
        try:
            scheduler = DDPMScheduler.from_pretrained(source, **options)
        except OSError:
            continue
        except NotImplementedError as error:
            raise BadValue(f"the noise schedule of {source} is unknown: {error}; add tt_model.json") from error
        kind = PREDICTION_TYPES.get(scheduler.config["prediction_type"])
        if kind is None:
            raise BadValue(
                f"the network of {source} predicts {scheduler.config['prediction_type']!r}, which is none of "
                f"{', '.join(PREDICTION_TYPES)}; choose another model"
            )
        return DiscreteSchedule(scheduler.betas.double(), scheduler.config["beta_schedule"]), kind
    raise MissingFile(f"{source} has no scheduler_config.json, so its noise schedule is unknown; add tt_model.json")
