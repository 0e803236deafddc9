"""What a few-step sampler does to the images themselves: their contrast and their finest detail, beside a fine solution from the same noise."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tt_lib.errors import BadValue


def contrast(x: Tensor) -> Tensor:
    """The standard deviation of each image's values: [N] of [N, C, H, W] in [-1, 1]; what lies outside is cut off."""
    return x.clamp(-1, 1).double().flatten(1).std(1)


def finest_detail(x: Tensor) -> Tensor:
    """Each image less the mean of each 3 by 3 neighbourhood, as vectors [N, C H W]: edges, texture and noise."""
    x = x.clamp(-1, 1).double()
    return (x - F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), 3, 1)).flatten(1)


def beside_fine(x: Tensor, fine: Tensor) -> dict[str, float]:
    """Images beside fine solutions from the same noise, both [N, C, H, W].

    Returns:
        Means over the images. ``contrast`` and ``detail``: of the images, as shares of the fine ones'. ``shared``: how much of the fine detail
        the images have (1 if all of it, by least squares); ``foreign``: the detail that the fine ones do not have, as a share of theirs.
        ``apart``: the root mean square distance.

    Raises:
        BadValue: other shapes.
    """
    if x.shape != fine.shape or x.dim() != 4:
        raise BadValue(
            f"images and fine solutions must have one shape [N, C, H, W], got {list(x.shape)} and {list(fine.shape)}"
        )
    own, there = finest_detail(x), finest_detail(fine)
    size = there.norm(dim=1)
    shared = (own * there).sum(1) / size.square()
    found = {
        "contrast": contrast(x) / contrast(fine),
        "detail": own.norm(dim=1) / size,
        "shared": shared,
        "foreign": (own - shared[:, None] * there).norm(dim=1) / size,
        "apart": (x - fine).double().square().flatten(1).mean(1).sqrt(),
    }
    return {name: torch.mean(values).item() for name, values in found.items()}
