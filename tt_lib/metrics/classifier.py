"""A compact residual classifier whose pooled features the Fréchet distances are taken in.

Pre-activation residual blocks (He et al. 2016, arXiv 1603.05027): 3x3 stem, one stage of two blocks for
each width, stride 2 from the second stage on, then norm, ReLU, global average pooling and a linear layer.
With the default widths it has 5.2 M parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tt_lib.datasets import to_float
from tt_lib.errors import BadValue, CorruptFile, MissingFile
from tt_lib.files import atomic_path, check_hash, file_hash, read_json, write_json

ARCHITECTURE = "preact-resnet-2-blocks"
WIDTHS = (64, 128, 256, 256)
WEIGHTS, CONFIG = "model.safetensors", "config.json"
REMEDY = "restore the folder (git checkout or git lfs pull) or train it again with `tt features`"


class Block(nn.Module):
    """Two 3x3 convolutions, each after norm and ReLU, added to the (projected) input; [B, C, H, W]."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inside)
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        same = stride == 1 and inside == outside
        self.project: nn.Module = nn.Identity() if same else nn.Conv2d(inside, outside, 1, stride, bias=False)
        self.projects = not same

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x).relu()
        shortcut = self.project(h if self.projects else x)
        h = self.conv2(self.norm2(self.conv1(h)).relu())
        return h + shortcut


class FeatureNet(nn.Module):
    """The classifier: ``forward`` gives features, ``logits`` the classes.

    Args:
        widths: channels of the stages; the last is the number of features.
        in_channels: 3 for colour, 1 for grey.
        classes: number of classes.

    Raises:
        BadValue: a width, the channels or the classes below 1.
    """

    mean: Tensor
    deviation: Tensor
    """The training images' mean and deviation per channel, on the scale of [-1, 1]; the trainer sets them."""

    def __init__(self, widths: Sequence[int] = WIDTHS, in_channels: int = 3, classes: int = 10) -> None:
        super().__init__()
        if not widths or min(*widths, in_channels, classes) < 1:
            raise BadValue(f"widths, channels, classes must be 1 or more, got {widths}, {in_channels}, {classes}")
        self.widths, self.in_channels, self.classes = tuple(widths), in_channels, classes
        self.register_buffer("mean", torch.zeros(in_channels))
        self.register_buffer("deviation", torch.ones(in_channels))
        self.stem = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        blocks: list[Block] = []
        inside = widths[0]
        for stage, width in enumerate(widths):
            blocks += [Block(inside, width, stride=2 if stage else 1), Block(width, width, stride=1)]
            inside = width
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(inside)
        self.head = nn.Linear(inside, classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """Features float32 [B, widths[-1]] of uint8 pixels [B, in_channels, H, W].

        Raises:
            BadValue: other channels, or pixels that are not uint8.
        """
        if pixels.ndim != 4 or pixels.shape[1] != self.in_channels:
            raise BadValue(f"pixels must be [B, {self.in_channels}, H, W], got {list(pixels.shape)}")
        x = (to_float(pixels) - self.mean.view(1, -1, 1, 1)) / self.deviation.view(1, -1, 1, 1)
        x = self.norm(self.blocks(self.stem(x))).relu()
        # In float32 also under autocast: a mean of 16 values in bfloat16 would lose digits for nothing.
        return x.float().mean((2, 3))

    def logits(self, pixels: Tensor) -> Tensor:
        """Unnormalised log-probabilities [B, classes]."""
        return self.head(self(pixels))

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


@torch.no_grad()
def accuracy(network: FeatureNet, pixels: Tensor, labels: Tensor, batch: int = 1000) -> float:
    """Share of ``labels`` [N] that the network (in eval mode) gets right, one view of each image."""
    right = sum(
        int((network.logits(pixels[start : start + batch]).argmax(1) == labels[start : start + batch]).sum())
        for start in range(0, len(pixels), batch)
    )
    return right / len(pixels)


def shipped(network: FeatureNet) -> dict[str, Tensor]:
    """The weights as they are shipped, on the CPU: matrices and kernels in float16, vectors in float32.

    The vectors are norms and biases: 0.2 % of the size, and small variances have no place in float16.
    """
    state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    return {key: value.half() if value.ndim > 1 else value for key, value in state.items()}


def save_features(network: FeatureNet, folder: Path | str, card: Mapping[str, Any]) -> Path:
    """Write the weights (float16) and, last, ``config.json`` with ``card`` and the weights' hash."""
    from safetensors.torch import save_file

    folder = Path(folder)
    with atomic_path(folder / WEIGHTS) as temporary:
        save_file(shipped(network), temporary)
    config = {
        "architecture": ARCHITECTURE,
        "widths": list(network.widths),
        "in_channels": network.in_channels,
        "classes": network.classes,
        "n_params": count_parameters(network),
        **card,
        "sha256": file_hash(folder / WEIGHTS),
    }
    write_json(folder / CONFIG, config)
    return folder


def load_features(path: Path | str, device: torch.device | str = "cpu") -> FeatureNet:
    """The classifier of a folder, in eval mode, float32, its gradients off.

    Raises:
        MissingFile: no folder, configuration or weights.
        CorruptFile: the weights are not those that the configuration names.
    """
    from safetensors.torch import load_file

    folder = Path(path)
    config = read_config(folder)
    check_hash(folder / WEIGHTS, config["sha256"], remedy=REMEDY)
    network = FeatureNet(config["widths"], config["in_channels"], config["classes"])
    try:
        # Copied into the float32 tensors of the network, whatever type they are stored in.
        network.load_state_dict(load_file(folder / WEIGHTS))
    except Exception as error:  # safetensors and torch name no single type
        raise CorruptFile(f"{folder / WEIGHTS} does not fit its {CONFIG} ({error}); {REMEDY}") from error
    return network.to(device).eval().requires_grad_(False)


def read_config(folder: Path | str) -> dict[str, Any]:
    """A classifier folder's ``config.json``, checked for the entries that loading needs.

    Raises:
        MissingFile, CorruptFile
    """
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise MissingFile(f"no classifier at {folder} (it lacks {CONFIG}); {REMEDY}")
    config = read_json(path)
    needed = {"architecture", "widths", "in_channels", "classes", "sha256"}
    if not isinstance(config, dict) or not needed <= config.keys() or config["architecture"] != ARCHITECTURE:
        raise CorruptFile(f"{path} does not describe a classifier of architecture {ARCHITECTURE}; {REMEDY}")
    return config
