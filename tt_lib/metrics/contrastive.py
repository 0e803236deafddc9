"""The network of the features that were learnt without labels, by SimCLR (Chen et al. 2020, arXiv 2002.05709).

Nothing is shared with :mod:`tt_lib.metrics.classifier`: no labels, no residual connections, norms that look at
one image alone (GroupNorm, Wu & He 2018, arXiv 1803.08494), GELU for ReLU, max pooling for strides.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

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
