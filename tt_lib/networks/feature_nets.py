"""The networks whose features distances are taken in, and the folders that they are shipped in."""

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
            share = torch.bincount(pixels[:, channel].flatten().long(), minlength=256).double() / pixels[:, 0].numel()
            self.mean[channel] = mean = (share * levels).sum()
            self.deviation[channel] = (share * (levels - mean).square()).sum().sqrt().clamp(min=1e-3)


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


class FeatureNet(FeatureNetwork):
    """A residual classifier: ``forward`` gives features, ``logits`` the classes.

    Pre-activation blocks (He et al. 2016, arXiv 1603.05027): a 3x3 stem, two blocks for each width, stride 2 from the
    second width on, then norm, ReLU, global average pooling and a linear layer. With the default widths of
    :class:`~tt_lib.networks.config.FeatureConfig` it has 5.2 M parameters.

    Args:
        widths, in_channels: see :class:`FeatureNetwork`.
        classes: number of classes.

    Raises:
        BadValue: a width, the channels or the classes below 1.
    """

    architecture = "preact-resnet-2-blocks"
    arguments = (*FeatureNetwork.arguments, "classes")

    def __init__(self, widths: Sequence[int], in_channels: int = 3, classes: int = 10) -> None:
        if classes < 1:
            raise BadValue(f"classes must be 1 or more, got {classes}")
        super().__init__(widths, in_channels)
        self.classes = classes
        self.stem = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        blocks: list[Block] = []
        for inside, width in zip((widths[0], *widths), widths, strict=False):
            blocks += [Block(inside, width, stride=2 if blocks else 1), Block(width, width, stride=1)]
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(widths[-1])
        self.head = nn.Linear(widths[-1], classes)

    def embed(self, x: Tensor) -> Tensor:
        """Features float32 [B, widths[-1]] of images [B, in_channels, H, W] in [-1, 1]."""
        x = self.norm(self.maps(x)[-1]).relu()
        # In float32 also under autocast: a mean of 16 values in bfloat16 would lose digits for nothing.
        return x.float().mean((2, 3))

    def maps(self, x: Tensor) -> list[Tensor]:
        """The feature maps after each stage, one for each width, of images [B, in_channels, H, W] in [-1, 1]."""
        x, maps = self.stem(self.normalise(x)), []
        for first, second in zip(self.blocks[::2], self.blocks[1::2], strict=True):
            x = second(first(x))
            maps.append(x)
        return maps

    def logits(self, pixels: Tensor) -> Tensor:
        """Unnormalised log-probabilities [B, classes]."""
        return self.head(self(pixels))


class PlainNet(FeatureNetwork):
    """The network of the features learnt without labels, by SimCLR (Chen et al. 2020, arXiv 2002.05709).

    3x3 convolutions one after another, as in VGG (Simonyan & Zisserman 2014, arXiv 1409.1556), each before GroupNorm
    (Wu & He 2018, arXiv 1803.08494) and GELU. A stage of two convolutions for each width, with 2x2 max pooling before
    all but the first; then global average pooling.
    """

    architecture = "plain-groupnorm-2-convolutions"

    def __init__(self, widths: Sequence[int] = (64, 128, 256, 384), in_channels: int = 3) -> None:
        super().__init__(widths, in_channels)
        layers: list[nn.Module] = []
        inside = in_channels
        for stage, width in enumerate(widths):
            layers += [nn.MaxPool2d(2)] if stage else []
            for _ in range(2):
                groups = width // 16 if width % 16 == 0 else 1
                layers += [nn.Conv2d(inside, width, 3, padding=1, bias=False), nn.GroupNorm(groups, width), nn.GELU()]
                inside = width
        self.layers = nn.Sequential(*layers)

    def embed(self, x: Tensor) -> Tensor:
        """Features float32 [B, widths[-1]] of images [B, in_channels, H, W] in [-1, 1]."""
        return self.layers(self.normalise(x)).float().mean((2, 3))


ARCHITECTURES: dict[str, type[FeatureNetwork]] = {each.architecture: each for each in (FeatureNet, PlainNet)}
"""The networks that a folder may hold."""


def save_features(network: FeatureNetwork, folder: Path | str, card: Mapping[str, Any]) -> None:
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
        "architecture": network.architecture,
        **{name: getattr(network, name) for name in network.arguments},
        "n_params": sum(weight.numel() for weight in network.parameters()),
        **card,
        "sha256": file_hash(folder / WEIGHTS),
    }
    write_json(folder / CONFIG, config)


def read_feature_network(path: Path | str, device: torch.device | str = "cpu") -> FeatureNetwork:
    """The network of a folder, in eval mode, float32, its gradients off.

    Raises:
        MissingFile: no folder, configuration or weights.
        CorruptFile: the weights are not those that the configuration names.
    """
    from safetensors.torch import load_file

    folder = Path(path)
    config = read_config(folder)
    check_hash(folder / WEIGHTS, config["sha256"], remedy=REMEDY)
    kind = ARCHITECTURES[config["architecture"]]
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
    kind = ARCHITECTURES.get(str(config.get("architecture"))) if isinstance(config, dict) else None
    if kind is None or not {"sha256", *kind.arguments} <= config.keys():
        names = " or ".join(ARCHITECTURES)
        raise CorruptFile(f"{path} does not describe a feature network of architecture {names}; {REMEDY}")
    return config
