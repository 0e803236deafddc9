"""Random crops, mirror images and holes for a whole set of images at once, on any device."""

from __future__ import annotations

import torch
from torch import Tensor


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
