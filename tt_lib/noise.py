"""Noise that belongs to the sample: seed ``s`` gives the same image whatever the batch or the number of devices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class SampleNoise:
    """One generator for each sample, on the CPU, so that a GPU draws what a CPU draws.

    Called with a state ``x`` [B, ...], it returns float32 standard normal noise [B, ...] on the device of
    ``x``; each call takes the next numbers of every sample's own stream. :meth:`start` is the first call
    and gives x_T.

    Args:
        seeds: one seed for each sample of the batch.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]

    def start(self, shape: Sequence[int]) -> Tensor:
        """Standard normal noise [B, *shape] on the CPU."""
        return torch.stack([torch.randn(tuple(shape), generator=generator) for generator in self.generators])

    def __call__(self, x: Tensor) -> Tensor:
        return self.start(x.shape[1:]).to(x.device, x.dtype)


def derive_seed(seed: int, counter: int) -> int:
    """A generator's seed for one step, epoch or iteration of a run with ``seed``.

    torch's CPU generator uses only the low 32 bits of a seed, so shifting ``seed`` above them would lose it.
    """
    return (seed * 1_000_003 + counter) % 2**32
