"""A compact residual classifier whose pooled features the Fréchet distances are taken in.

Pre-activation residual blocks (He et al. 2016, arXiv 1603.05027): 3x3 stem, one stage of two blocks for
each width, stride 2 from the second stage on, then norm, ReLU, global average pooling and a linear layer.
With the default widths it has 5.2 M parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tt_lib.errors import BadValue
from tt_lib.metrics.networks import FeatureNetwork

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
        widths, in_channels: see :class:`~tt_lib.metrics.networks.FeatureNetwork`.
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
