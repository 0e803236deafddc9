"""Random crops, mirror images, holes and colours for a whole set of images at once, on any device."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F


def augment(pixels: Tensor, generator: torch.Generator, flip: bool = True) -> Tensor:
    """Crop, mirror and cut a hole into each image, independently.

    The image is padded by an eighth of its side (4 pixels of 32) by reflection and cropped back at a random
    place; a square of a quarter of its side (8 of 32), anywhere on it, is painted in the mean colour.

    Args:
        pixels: uint8 [N, C, H, W] with H = W, on any device.
        generator: a CPU generator, so that every device draws the same.
        flip: mirror with probability 1/2.
    """
    count, _, side, _ = pixels.shape
    pad, hole, device = side // 8, side // 4, pixels.device

    def draw(most: int) -> Tensor:
        return torch.randint(most, (count, 1), generator=generator).to(device)

    line = torch.arange(side, device=device)
    rows, columns = line + draw(2 * pad + 1), line + draw(2 * pad + 1)
    columns = torch.where(draw(2).bool() & flip, columns.flip(1), columns)
    # Reflection about the edge pixel, as an index into the unpadded image: no padded copy is made.
    rows, columns = (side - 1 - (side - 1 - (place - pad).abs()).abs() for place in (rows, columns))
    image = torch.arange(count, device=device).view(-1, 1, 1)
    out = pixels.permute(0, 2, 3, 1)[image, rows.unsqueeze(2), columns.unsqueeze(1)]
    top, left = draw(side) - hole // 2, draw(side) - hole // 2
    inside_rows, inside_columns = (((line - start) >= 0) & ((line - start) < hole) for start in (top, left))
    cut = inside_rows.unsqueeze(2) & inside_columns.unsqueeze(1)
    mean = pixels[:1000].float().mean((0, 2, 3)).round().to(torch.uint8)
    return torch.where(cut.unsqueeze(3), mean, out).permute(0, 3, 1, 2)


DRAWS = ("area", "shape", "row", "column", "mirror", "jitters", "brightness", "contrast", "saturation", "hue", "grey")
"""What the numbers of a draw of :func:`random_views` decide, in this order."""
TO_YIQ = torch.tensor([(0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)])
"""Brightness and two colours of red, green and blue (NTSC): grey has no colour."""


def random_views(
    pixels: Tensor, draws: Tensor, *, flip: bool = True, strength: float = 0.5, least_area: float = 0.2, jitter: float = 0.8,
    grey: float = 0.2,
) -> Tensor:  # fmt: skip
    """A random view of each image as SimCLR (arXiv 2002.05709, appendix A) draws it: crop, mirror, colours, grey.

    A crop of ``least_area`` to all of the image's area and 3/4 to 4/3 of its shape is scaled to the whole (bilinear). The
    colours change in one linear map, clamped once at the end: hue by a turn about the grey axis (in YIQ), saturation, contrast
    about the view's mean grey and brightness. No blur: on 32x32 it helps nothing (appendix B.9).

    Args:
        pixels: uint8 [N, C, H, W], on any device; with one channel there is no hue, saturation or grey.
        draws: uniform in [0, 1), [N, len(DRAWS)], on the same device.
        flip: mirror with probability 1/2.
        strength: of the colours' change; 0.5 on CIFAR-10 means factors of 0.6 to 1.4 and a tenth of a turn of hue either way.
        least_area: smallest share of the image that a view shows.
        jitter, grey: shares of the views whose colours change, and which are grey.

    Returns:
        float32 [N, C, H, W] in [-1, 1].
    """
    draw = dict(zip(DRAWS, draws.float().unbind(1), strict=True))
    views = _crops(pixels.float() / 255, draw, flip, least_area)
    matrix, share = _colours(draw, pixels.shape[1], strength, jitter, grey)
    views = torch.einsum("nij,njhw->nihw", matrix, views)
    middle = views.mean((2, 3))
    middle = middle @ _yiq(views.device)[0][0] if pixels.shape[1] == 3 else middle[:, 0]
    views = torch.lerp(middle.view(-1, 1, 1, 1), views, share.view(-1, 1, 1, 1))
    return views.clamp(0, 1) * 2 - 1


def _crops(images: Tensor, draw: dict[str, Tensor], flip: bool, least_area: float) -> Tensor:
    """Crops of random size, shape and place, mirrored or not, scaled to the images' own size."""
    area = least_area + (1 - least_area) * draw["area"]
    shape = torch.exp((2 * draw["shape"] - 1) * math.log(4 / 3))
    # Half sides in the image's own [-1, 1]; what would stand over is cut to the image.
    width, height = (area * shape).sqrt().clamp(max=1), (area / shape).sqrt().clamp(max=1)
    x, y = (1 - width) * (2 * draw["column"] - 1), (1 - height) * (2 * draw["row"] - 1)
    sign = torch.where((draw["mirror"] < 0.5) & flip, -1.0, 1.0)
    none = torch.zeros_like(x)
    place = torch.stack([torch.stack([sign * width, none, x], 1), torch.stack([none, height, y], 1)], 1)
    grid = F.affine_grid(place, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _colours(draw: dict[str, Tensor], channels: int, strength: float, jitter: float, grey: float) -> tuple[Tensor, Tensor]:
    """The colours' matrix of each view, [N, C, C], brightness included, and its contrast, [N]."""
    changes = draw["jitters"] < jitter

    def factor(name: str) -> Tensor:
        return torch.where(changes, 1 + 0.8 * strength * (2 * draw[name] - 1), 1.0)

    bright = factor("brightness").view(-1, 1, 1)
    if channels == 1:
        return bright, factor("contrast")
    turn = torch.where(changes, 0.2 * strength * (2 * draw["hue"] - 1), 0.0) * 2 * math.pi
    colour = torch.where(draw["grey"] < grey, 0.0, factor("saturation"))
    one, none = torch.ones_like(turn), torch.zeros_like(turn)
    across, along = colour * turn.sin(), colour * turn.cos()
    rows = [[one, none, none], [none, along, -across], [none, across, along]]
    turned = torch.stack([torch.stack(row, 1) for row in rows], 1)
    there, back = _yiq(turn.device)
    return bright * (back @ turned @ there), factor("contrast")


@cache
def _yiq(device: torch.device) -> tuple[Tensor, Tensor]:
    """:data:`TO_YIQ` and its inverse, kept on the device: a copy from the CPU would wait for all that the GPU has to do."""
    return TO_YIQ.to(device), torch.linalg.inv(TO_YIQ).to(device)
