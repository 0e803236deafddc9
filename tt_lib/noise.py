"""Noise that belongs to the sample: seed ``s`` gives the same image whatever the batch or the number of devices."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tt_lib.errors import BadValue

# Samples that are measured have the seeds from 0 on, below the first of these. What they must not share noise with
# begins there. Each range ends where the next one begins, and all lie below 2**32 (check_seeds, a test):
# torch's CPU generator uses only the low 32 bits of a seed, so that seed and seed + 2**32 give the same image.
GENERATED_FIRST_SEED = 1_000_000_000
"""Images that the network makes for tuning."""
HELD_OUT_FIRST_SEED = 1_500_000_000
"""Images that the network makes for a gate, which decides whether a tuned time is kept."""
GAMMA_FIRST_SEED = 3_000_000_000
"""Noise on the images that gamma is measured on; its ``seed`` and the image's number are added."""
LEARN_FIRST_SEED = 3_500_000_000
"""Start noises that a sampler is learned from; 100,000 for each of its seeds."""
VALIDATION_FIRST_SEED = 3_700_000_000
"""Start noises that decide which learned sampler is kept; 100,000 for each of its seeds."""
HELD_OUT_NOISE = 777_777
"""Counter of :func:`derive_seed` for the noise on a gate's images."""
STEP_NOISE = 555_555
"""Counter of :func:`derive_seed` for what a stochastic solver draws in a tuning, apart from the noise on the images."""


def check_seeds(seed: Any, count: int = 1, room: int = GENERATED_FIRST_SEED) -> None:
    """Raise :class:`BadValue` unless ``seed`` .. ``seed + count - 1`` are whole numbers from 0 to ``room - 1``.

    Args:
        room: how many seeds there are: by default those of users, which end where the project's own begin.
    """
    last = _whole(seed) + count - 1
    if seed < 0 or last >= room:
        which = f"the seeds {seed} to {last} of {count} samples" if count > 1 else f"the seed {seed}"
        raise BadValue(f"seeds lie from 0 to {room - 1:,}, got {which}; give a seed in this range")


def _whole(seed: Any) -> int:
    try:
        if isinstance(seed, bool):
            raise TypeError
        return operator.index(seed)
    except TypeError:
        raise BadValue(f"a seed is a whole number, got {seed!r}") from None


class SampleNoise:
    """One generator for each sample, on the CPU, so that a GPU draws what a CPU draws.

    Called with a state ``x`` [B, ...], it returns float32 standard normal noise [B, ...] on the device of
    ``x``; each call takes the next numbers of every sample's own stream. :meth:`start` is the first call
    and gives x_T.

    Args:
        seeds: one seed for each sample of the batch.

    Raises:
        BadValue: a seed is no whole number from 0 to 2**32 - 1.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        for seed in seeds:
            check_seeds(seed, room=2**32)
        self.generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]

    def start(self, shape: Sequence[int]) -> Tensor:
        """Standard normal noise [B, *shape] on the CPU."""
        return torch.stack([torch.randn(tuple(shape), generator=generator) for generator in self.generators])

    def __call__(self, x: Tensor) -> Tensor:
        return self.start(x.shape[1:]).to(x.device, x.dtype)


class StartNoise:
    """x_T of ranges of seeds, kept on the device: the cells of a table start from the same noise.

    Args:
        shape: of one sample.
        device: where it is kept.
        most: how many samples are kept; beyond that, noise is drawn each time.
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device | str, most: int = 100_000) -> None:
        self.shape, self.device, self.most = shape, device, most
        self.kept: dict[range, Tensor] = {}

    def __call__(self, seeds: range) -> Tensor:
        """x_T [len(seeds), *shape] on the device."""
        if seeds in self.kept:
            return self.kept[seeds]
        noise = SampleNoise(seeds).start(self.shape).to(self.device)
        if sum(map(len, self.kept)) + len(seeds) <= self.most:
            self.kept[seeds] = noise
        return noise


def derive_seed(seed: int, counter: int) -> int:
    """A generator's seed for one step, epoch or iteration of a run with ``seed``: below 2**32.

    No two counters of a run have the same one, nor do two runs with the same counter. Runs whose seeds differ by less
    than 4,000 share none below counter 1,000,000.
    """
    return (seed * 1_000_003 + counter) % 2**32
