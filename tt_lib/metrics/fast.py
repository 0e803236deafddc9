"""Inception-2015 features as fast as a GPU gives them: float16, channels last, compiled, batches of one size.

A distance may be taken in them where it is measured to agree with the distance in float32 (`tt speed --against pytorch-fid`
writes both). float16 and not bfloat16: it has eight times its precision at the same speed, and the activations fit its range.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from tt_lib.errors import BadValue
from tt_lib.metrics.features import INCEPTION, NetworkFeatures
from tt_lib.predictors import compile_network


class FastNetwork(nn.Module):
    """A network of uint8 pixels in float16 under autocast, for batches of ``size``, which a last one is filled up to.

    Args:
        network: :class:`tt_lib.metrics.inception.InceptionFeatures`; it is changed in place.
        size: images at a time.
        compile: compile it for that size.
    """

    def __init__(self, network: nn.Module, size: int, compile: bool) -> None:
        super().__init__()
        self.size = size
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.run = compile_network(self.network) if compile else self.network

    def forward(self, pixels: Tensor) -> Tensor:
        found = []
        for part in pixels.split(self.size):
            rows = torch.arange(self.size, device=part.device).clamp(max=len(part) - 1)
            filled = part[rows].contiguous(memory_format=torch.channels_last)
            with torch.autocast(part.device.type, dtype=torch.float16):
                found.append(self.run(filled)[: len(part)].float())
        return torch.cat(found)


def make_fast(features: NetworkFeatures, size: int, compile: bool = False) -> NetworkFeatures:
    """The same features from a faster network; ``features`` itself is used up.

    Raises:
        BadValue: other features than Inception's, which are fast as they are.
    """
    if features.name != INCEPTION:
        raise BadValue(f"only the features {INCEPTION} have a faster form, {features.name} are fast as they are")
    return replace(features, network=FastNetwork(features.network, size, compile))
