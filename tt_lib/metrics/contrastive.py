"""A network that learns features without labels, by SimCLR: the second opinion beside the classifier's.

Chen et al. 2020, arXiv 2002.05709: two random views of an image should have like features and views of different images
unlike ones. Nothing is shared with :mod:`tt_lib.metrics.classifier`: no labels, no residual connections, norms that look at
one image alone (GroupNorm, Wu & He 2018, arXiv 1803.08494), GELU for ReLU, max pooling for strides.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tt_lib.errors import BadValue
from tt_lib.metrics.networks import FeatureNetwork

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


class Projection(nn.Module):
    """What the loss looks at in place of the features, and what is thrown away after training; [B, D] to [B, size]."""

    def __init__(self, dimension: int, size: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(dimension, dimension, bias=False), nn.BatchNorm1d(dimension), nn.ReLU(), nn.Linear(dimension, size)
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features)


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """The normalised, temperature-scaled cross entropy of SimCLR, eq. 1 averaged over all 2 B views.

    ``-log exp(s(z_i, z_j) / T) / sum_{k != i} exp(s(z_i, z_k) / T)`` with s the cosine and j the other view of i's image.

    Args:
        first, second: projections [B, size] of two views of the same images, in the same order.
        temperature: T.

    Raises:
        BadValue: fewer than two images, or a temperature that is not above 0.
    """
    count = len(first)
    if count < 2 or temperature <= 0:
        raise BadValue(f"the loss needs at least 2 images and a temperature above 0, got {count} and {temperature}")
    views = F.normalize(torch.cat([first, second]).float(), dim=1)
    own = torch.eye(2 * count, dtype=torch.bool, device=views.device)
    likeness = (views @ views.T / temperature).masked_fill(own, -torch.inf)
    partner = torch.arange(2 * count, device=views.device).roll(count)
    return F.cross_entropy(likeness, partner)
