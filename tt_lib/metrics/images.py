"""What a few-step sampler does to the images themselves: their contrast and their finest detail."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tt_lib.errors import BadValue


def beside_fine(x: Tensor, fine: Tensor) -> dict[str, float]:
    """Images beside accurate solutions from the same noise, both [N, C, H, W] in [-1, 1]; what lies outside is cut off.

    The detail of an image is the image less the mean of each 3 by 3 neighbourhood: edges, texture and noise.

    Returns:
        Means over the images. ``contrast`` (standard deviation of the values) and ``detail`` (its norm), as shares of
        the solutions' own; ``shared``: how much of the solution's detail an image has (1 if all of it, by least
        squares); ``foreign``: the detail that the solution does not have, as a share of the solution's; ``apart``: the
        root mean square distance.

    Raises:
        BadValue: other shapes.
    """
    if x.shape != fine.shape or x.dim() != 4:
        raise BadValue(
            f"images and solutions must have one shape [N, C, H, W], got {list(x.shape)}, {list(fine.shape)}"
        )
    a, b = (images.clamp(-1, 1).double() for images in (x, fine))
    detail, target = ((i - F.avg_pool2d(F.pad(i, (1, 1, 1, 1), "reflect"), 3, 1)).flatten(1) for i in (a, b))
    size = target.norm(dim=1)
    shared = (detail * target).sum(1) / size.square()
    values = {
        "contrast": a.flatten(1).std(1) / b.flatten(1).std(1),
        "detail": detail.norm(dim=1) / size,
        "shared": shared,
        "foreign": (detail - shared[:, None] * target).norm(dim=1) / size,
        "apart": (x - fine).double().square().flatten(1).mean(1).sqrt(),
    }
    return {name: torch.mean(value).item() for name, value in values.items()}
