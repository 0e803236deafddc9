"""What several tests share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "notebooks" / "tools"))


@pytest.fixture(scope="session")
def cifar10_root() -> Path:
    """The folder of real CIFAR-10 images that ``TT_CIFAR10`` names; the test is skipped without it."""
    if not os.environ.get("TT_CIFAR10"):
        pytest.skip("needs real CIFAR-10 images: set TT_CIFAR10 to their folder")
    return Path(os.environ["TT_CIFAR10"])


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tiny tensors on several threads are slower, and many times slower beside another process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
