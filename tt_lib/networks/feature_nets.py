"""The classifier whose features distances are taken in, and the folder that it is shipped in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tt_lib.datasets import to_float
from tt_lib.errors import BadValue, CorruptFile, MissingFile
from tt_lib.files import atomic_path, check_hash, file_hash, read_json, write_json

WEIGHTS, CONFIG = "model.safetensors", "config.json"
ARCHITECTURE = "preact-resnet-2-blocks"
ARGUMENTS = ("widths", "in_channels", "classes")
"""What a network is made with, and what ``config.json`` holds of it."""
REMEDY = "restore the folder (git checkout or git lfs pull) or train it again with `tt features`"


class Block(nn.Module):
    """Two 3x3 convolutions, each after norm and ReLU, added to the (projected) input; [B, C, H, W]."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inside)
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.projects = stride != 1 or inside != outside
        self.project: nn.Module = nn.Conv2d(inside, outside, 1, stride, bias=False) if self.projects else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x).relu()
        shortcut = self.project(h if self.projects else x)
        return self.conv2(self.norm2(self.conv1(h)).relu()) + shortcut


class FeatureNet(nn.Module):
    """A residual classifier: ``forward`` gives features, ``logits`` the classes.

    Pre-activation blocks (He et al. 2016, arXiv 1603.05027): a 3x3 stem, two blocks for each width, stride 2 from the
    second width on, then norm, ReLU, global average pooling and a linear layer. With the default widths of
    :class:`~tt_lib.networks.config.FeatureConfig` it has 5.2 M parameters.

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

    def __init__(self, widths: Sequence[int], in_channels: int = 3, classes: int = 10) -> None:
        if not widths or min(*widths, in_channels, classes) < 1:
            raise BadValue(f"widths, channels and classes must be 1 or more, got {widths}, {in_channels}, {classes}")
        super().__init__()
        self.widths, self.in_channels, self.classes = tuple(widths), in_channels, classes
        self.register_buffer("mean", torch.zeros(in_channels))
        self.register_buffer("deviation", torch.ones(in_channels))
        self.stem = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        blocks: list[Block] = []
        for inside, width in zip((widths[0], *widths), widths, strict=False):
            blocks += [Block(inside, width, stride=2 if blocks else 1), Block(width, width, stride=1)]
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(widths[-1])
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """Features float32 [B, widths[-1]] of uint8 pixels [B, in_channels, H, W].

        Raises:
            BadValue: other channels, or pixels that are not uint8.
        """
        if pixels.ndim != 4 or pixels.shape[1] != self.in_channels:
            raise BadValue(
                f"pixels must be [B, {self.in_channels}, H, W], got {list(pixels.shape)}; choose other features"
            )
        x = self.norm(self.maps(to_float(pixels))[-1]).relu()
        # In float32 also under autocast: a mean of 16 values in bfloat16 would lose digits for nothing.
        return x.float().mean((2, 3))

    def maps(self, x: Tensor) -> list[Tensor]:
        """The feature maps after each stage, one for each width, of images [B, in_channels, H, W] in [-1, 1]."""
        x, maps = self.stem((x - self.mean.view(1, -1, 1, 1)) / self.deviation.view(1, -1, 1, 1)), []
        for first, second in zip(self.blocks[::2], self.blocks[1::2], strict=True):
            x = second(first(x))
            maps.append(x)
        return maps

    def logits(self, pixels: Tensor) -> Tensor:
        """Unnormalised log-probabilities [B, classes]."""
        return self.head(self(pixels))

    def set_normalisation(self, pixels: Tensor) -> None:
        """Take mean and deviation per channel from the training images, uint8 [N, C, H, W]."""
        # By counting levels: exact, and no float copy of the whole data set.
        levels = to_float(torch.arange(256, dtype=torch.uint8)).double()
        for channel in range(self.in_channels):
            share = torch.bincount(pixels[:, channel].flatten().long(), minlength=256).double() / pixels[:, 0].numel()
            self.mean[channel] = mean = (share * levels).sum()
            self.deviation[channel] = (share * (levels - mean).square()).sum().sqrt().clamp(min=1e-3)


def save_features(network: FeatureNet, folder: Path | str, card: Mapping[str, Any]) -> None:
    """Write the weights and, last, ``config.json`` with ``card`` and the weights' hash.

    Matrices and kernels are written in float16. Norms and biases stay in float32: they are 0.2 % of the size, and small
    variances have no place in float16.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    state = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    with atomic_path(folder / WEIGHTS) as temporary:
        save_file({key: value.half() if value.ndim > 1 else value for key, value in state.items()}, temporary)
    config = {
        "architecture": ARCHITECTURE,
        **{name: getattr(network, name) for name in ARGUMENTS},
        "n_params": sum(weight.numel() for weight in network.parameters()),
        **card,
        "sha256": file_hash(folder / WEIGHTS),
    }
    write_json(folder / CONFIG, config)


def read_feature_network(path: Path | str, device: torch.device | str = "cpu") -> FeatureNet:
    """The network of a folder, in eval mode, float32, its gradients off.

    Raises:
        MissingFile: no folder, configuration or weights.
        CorruptFile: the weights are not those that the configuration names.
    """
    from safetensors.torch import load_file

    folder = Path(path)
    config = read_config(folder)
    check_hash(folder / WEIGHTS, config["sha256"], remedy=REMEDY)
    network = FeatureNet(**{name: config[name] for name in ARGUMENTS})
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
    ours = isinstance(config, dict) and config.get("architecture") == ARCHITECTURE
    if not ours or not {"sha256", *ARGUMENTS} <= config.keys():
        raise CorruptFile(f"{path} does not describe a feature network of architecture {ARCHITECTURE}; {REMEDY}")
    return config
