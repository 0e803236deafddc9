"""scikit-learn's digits: 1,797 grey images of 8x8 (Alpaydin & Kaynak 1998, UCI); they need no download."""

from __future__ import annotations

import torch

from tt_lib.datasets.images import Images, by_hash
from tt_lib.errors import choose

TRAIN_COUNT = 1500
"""The digits have no official split: a permutation of seed 0 gives 1,500 for training and 297 for tests."""


def load_digits(split: str = "train") -> Images:
    """The ``train`` or ``test`` digits as uint8 [N, 1, 8, 8]; scikit-learn's levels 0..16 become 0..255.

    Raises:
        BadValue: an unknown split.
    """
    from sklearn.datasets import load_digits as load

    choose("split", split, ("train", "test"))
    levels, labels = (torch.from_numpy(values) for values in load(return_X_y=True))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    rows = order[:TRAIN_COUNT] if split == "train" else order[TRAIN_COUNT:]
    pixels = (levels[rows].reshape(-1, 1, 8, 8) * (255 / 16)).round().to(torch.uint8)
    labels = labels[rows].to(torch.int64)
    return Images(pixels, labels, f"digits-{split}", by_hash(pixels, labels)[1])
