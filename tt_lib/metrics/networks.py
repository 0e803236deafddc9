"""What the networks whose features distances are taken in have in common, and the folders that they are shipped in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tt_lib.datasets import to_float
from tt_lib.errors import BadValue, CorruptFile, MissingFile
from tt_lib.files import atomic_path, check_hash, file_hash, read_json, write_json

WEIGHTS, CONFIG = "model.safetensors", "config.json"
REMEDY = "restore the folder (git checkout or git lfs pull) or train it again with `tt features`"


class FeatureNetwork(nn.Module, ABC):
    """A network from images to ``widths[-1]`` features.

    Args:
        widths: channels of the stages; the last is the number of features.
        in_channels: 3 for colour, 1 for grey.

    Raises:
        BadValue: a width or the channels below 1.
    """

    architecture: ClassVar[str]
    """The name in ``config.json``."""
    arguments: ClassVar[tuple[str, ...]] = ("widths", "in_channels")
    """What a network is made with, and what ``config.json`` holds of it."""
    mean: Tensor
    deviation: Tensor
    """The training images' mean and deviation per channel, on the scale of [-1, 1]; the trainer sets them."""

    def __init__(self, widths: Sequence[int], in_channels: int) -> None:
        super().__init__()
        if not widths or min(*widths, in_channels) < 1:
            raise BadValue(f"widths and channels must be 1 or more, got {widths}, {in_channels}")
        self.widths, self.in_channels = tuple(widths), in_channels
        self.register_buffer("mean", torch.zeros(in_channels))
        self.register_buffer("deviation", torch.ones(in_channels))

    @abstractmethod
    def embed(self, x: Tensor) -> Tensor:
        """Features float32 [B, widths[-1]] of images [B, in_channels, H, W] in [-1, 1]."""

    def forward(self, pixels: Tensor) -> Tensor:
        """Features float32 [B, widths[-1]] of uint8 pixels [B, in_channels, H, W].

        Raises:
            BadValue: other channels, or pixels that are not uint8.
        """
        if pixels.ndim != 4 or pixels.shape[1] != self.in_channels:
            raise BadValue(f"pixels must be [B, {self.in_channels}, H, W], got {list(pixels.shape)}")
        return self.embed(to_float(pixels))

    def normalise(self, x: Tensor) -> Tensor:
        """Images in [-1, 1] with the training images' mean at 0 and their deviation at 1."""
        return (x - self.mean.view(1, -1, 1, 1)) / self.deviation.view(1, -1, 1, 1)

    def set_normalisation(self, pixels: Tensor) -> None:
        """Take mean and deviation per channel from the training images, uint8 [N, C, H, W]."""
        # By counting levels: exact, and no float copy of the whole data set.
        levels = to_float(torch.arange(256, dtype=torch.uint8)).double()
        for channel in range(self.in_channels):
            counts = torch.bincount(pixels[:, channel].flatten().long(), minlength=256).cpu().double()
            share = counts / counts.sum()
            mean = (share * levels).sum()
            self.mean[channel] = mean
            self.deviation[channel] = (share * (levels - mean).square()).sum().sqrt().clamp(min=1e-3)


def count_parameters(network: nn.Module) -> int:
    """The number of trained values."""
    return sum(weight.numel() for weight in network.parameters())


def shipped(network: nn.Module) -> dict[str, Tensor]:
    """The weights as they are shipped, on the CPU: matrices and kernels in float16, vectors in float32.

    The vectors are norms and biases: 0.2 % of the size, and small variances have no place in float16.
    """
    state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    return {key: value.half() if value.ndim > 1 else value for key, value in state.items()}


def save_features(network: FeatureNetwork, folder: Path | str, card: Mapping[str, Any]) -> Path:
    """Write the weights (float16) and, last, ``config.json`` with ``card`` and the weights' hash."""
    from safetensors.torch import save_file

    folder = Path(folder)
    with atomic_path(folder / WEIGHTS) as temporary:
        save_file(shipped(network), temporary)
    config = {
        "architecture": network.architecture,
        **{name: getattr(network, name) for name in network.arguments},
        "n_params": count_parameters(network),
        **card,
        "sha256": file_hash(folder / WEIGHTS),
    }
    write_json(folder / CONFIG, config)
    return folder


def load_features(path: Path | str, device: torch.device | str = "cpu") -> FeatureNetwork:
    """The network of a folder, in eval mode, float32, its gradients off.

    Raises:
        MissingFile: no folder, configuration or weights.
        CorruptFile: the weights are not those that the configuration names.
    """
    from safetensors.torch import load_file

    folder = Path(path)
    config = read_config(folder)
    check_hash(folder / WEIGHTS, config["sha256"], remedy=REMEDY)
    kind = architectures()[config["architecture"]]
    network = kind(**{name: config[name] for name in kind.arguments})
    try:
        # Copied into the float32 tensors of the network, whatever type they are stored in.
        network.load_state_dict(load_file(folder / WEIGHTS))
    except Exception as error:  # safetensors and torch name no single type
        raise CorruptFile(f"{folder / WEIGHTS} does not fit its {CONFIG} ({error}); {REMEDY}") from error
    return network.to(device).eval().requires_grad_(False)


def read_config(folder: Path | str) -> dict[str, Any]:
    """A feature network's ``config.json``, checked for the entries that loading needs.

    Raises:
        MissingFile, CorruptFile
    """
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise MissingFile(f"no feature network at {folder} (it lacks {CONFIG}); {REMEDY}")
    config = read_json(path)
    kind = architectures().get(str(config.get("architecture"))) if isinstance(config, dict) else None
    if kind is None or not {"sha256", *kind.arguments} <= config.keys():
        names = " or ".join(architectures())
        raise CorruptFile(f"{path} does not describe a feature network of architecture {names}; {REMEDY}")
    return config


def architectures() -> dict[str, type[FeatureNetwork]]:
    """The networks that a folder may hold, by the name of their architecture."""
    from tt_lib.metrics.classifier import FeatureNet
    from tt_lib.metrics.contrastive import PlainNet

    return {each.architecture: each for each in (FeatureNet, PlainNet)}
