"""scikit-learn's digits: 1,797 grey images of 8x8 (Alpaydin & Kaynak 1998, UCI); they need no download."""

from __future__ import annotations

import torch

from tt_lib.datasets.images import Images
from tt_lib.errors import choose

TRAIN_COUNT = 1500
"""The digits have no official split: a permutation of seed 0 gives 1,500 for training and 297 for tests."""


def load_digits() -> Images:
    """All digits, in scikit-learn's order, as uint8 [1797, 1, 8, 8]; its levels 0..16 become 0..255."""
    from sklearn.datasets import load_digits as load

    pixels, labels = load(return_X_y=True)
    levels = torch.from_numpy(pixels).reshape(-1, 1, 8, 8)
    return Images(
        (levels * (255 / 16)).round().to(torch.uint8),
        torch.from_numpy(labels).to(torch.int64),
        "digits",
        tuple("0123456789"),
    )


def split_digits(split: str) -> Images:
    """The 1,500 ``train`` or 297 ``test`` digits of the fixed split."""
    choose("split", split, ("train", "test"))
    images = load_digits()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    rows = order[:TRAIN_COUNT] if split == "train" else order[TRAIN_COUNT:]
    return images.take(rows, f"digits-{split}")
