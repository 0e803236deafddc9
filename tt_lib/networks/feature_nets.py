"""What the networks whose features distances are taken in have in common, and the folders that they are shipped in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
    pass  # EMPTIED
    pass  # EMPTIED

    return {each.architecture: each for each in (FeatureNet, PlainNet)}


# FOLDED tt_lib.networks.feature_nets
# A compact residual classifier whose pooled features the Fréchet distances are taken in.
#
# Pre-activation residual blocks (He et al. 2016, arXiv 1603.05027): 3x3 stem, one stage of two blocks for
# each width, stride 2 from the second stage on, then norm, ReLU, global average pooling and a linear layer.
# With the default widths it has 5.2 M parameters.
#


WIDTHS = (64, 128, 256, 256)


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


class FeatureNet(FeatureNetwork):
    """The classifier: ``forward`` gives features, ``logits`` the classes.

    Args:
        widths, in_channels: see :class:`~tt_lib.networks.feature_nets.FeatureNetwork`.
        classes: number of classes.

    Raises:
        BadValue: a width, the channels or the classes below 1.
    """

    architecture = "preact-resnet-2-blocks"
    arguments = (*FeatureNetwork.arguments, "classes")

    def __init__(self, widths: Sequence[int] = WIDTHS, in_channels: int = 3, classes: int = 10) -> None:
        if classes < 1:
            raise BadValue(f"classes must be 1 or more, got {classes}")
        super().__init__(widths, in_channels)
        self.classes = classes
        self.stem = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        blocks: list[Block] = []
        inside = widths[0]
        for stage, width in enumerate(widths):
            blocks += [Block(inside, width, stride=2 if stage else 1), Block(width, width, stride=1)]
            inside = width
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(inside)
        self.head = nn.Linear(inside, classes)

    def embed(self, x: Tensor) -> Tensor:
        """Features float32 [B, widths[-1]] of images [B, in_channels, H, W] in [-1, 1]."""
        x = self.norm(self.blocks(self.stem(self.normalise(x)))).relu()
        # In float32 also under autocast: a mean of 16 values in bfloat16 would lose digits for nothing.
        return x.float().mean((2, 3))

    def logits(self, pixels: Tensor) -> Tensor:
        """Unnormalised log-probabilities [B, classes]."""
        return self.head(self(pixels))


@torch.no_grad()
def accuracy(network: FeatureNet, pixels: Tensor, labels: Tensor, batch: int = 1000) -> float:
    """Share of ``labels`` [N] that the network (in eval mode) gets right, one view of each image."""
    right = sum(
        int((network.logits(pixels[start : start + batch]).argmax(1) == labels[start : start + batch]).sum())
        for start in range(0, len(pixels), batch)
    )
    return right / len(pixels)


# FOLDED tt_lib.networks.feature_nets
# The network of the features that were learnt without labels, by SimCLR (Chen et al. 2020, arXiv 2002.05709).
#
# Nothing is shared with :mod:`tt_lib.networks.feature_nets`: no labels, no residual connections, norms that look at
# one image alone (GroupNorm, Wu & He 2018, arXiv 1803.08494), GELU for ReLU, max pooling for strides.
#


PLAIN_WIDTHS = (64, 128, 256, 384)
CONVOLUTIONS = 2
"""In each stage."""
GROUP = 16
"""Channels that are normalised together."""


class PlainNet(FeatureNetwork):
    """3x3 convolutions one after another, as in VGG (Simonyan & Zisserman 2014, arXiv 1409.1556), each before norm and GELU.

    A stage of two convolutions for each width, with 2x2 max pooling before all but the first; then global average pooling.
    With the default widths it has 3.4 M parameters and gives 384 features.
    """

    architecture = "plain-groupnorm-2-convolutions"

    def __init__(self, widths: Sequence[int] = PLAIN_WIDTHS, in_channels: int = 3) -> None:
        super().__init__(widths, in_channels)
        layers: list[nn.Module] = []
        inside = in_channels
        for stage, width in enumerate(widths):
            layers += [nn.MaxPool2d(2)] if stage else []
            for _ in range(CONVOLUTIONS):
                groups = width // GROUP if width % GROUP == 0 else 1
                layers += [nn.Conv2d(inside, width, 3, padding=1, bias=False), nn.GroupNorm(groups, width), nn.GELU()]
                inside = width
        self.layers = nn.Sequential(*layers)

    def embed(self, x: Tensor) -> Tensor:
        """Features float32 [B, widths[-1]] of images [B, in_channels, H, W] in [-1, 1]."""
        # The mean in float32 also under autocast, as in the classifier.
        return self.layers(self.normalise(x)).float().mean((2, 3))


# FOLDED tt_lib.metrics.features
# The features that distances are taken in, by name, and the statistics of images in them.


@contextmanager
def full_precision() -> Iterator[None]:
    """Convolutions without TF32: a distance should not depend on which GPU it was measured on."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
