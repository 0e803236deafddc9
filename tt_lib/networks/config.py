"""Settings of training runs and their defaults; nothing here imports torch, so that the command line starts at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tt_lib.errors import BadValue, choose

TARGETS = {"eps": ("eps", "linear"), "flow": ("velocity", "flow")}
"""What a diffusion network can be trained for: what it predicts, and on which schedule."""


@dataclass(frozen=True)
class Config:
    """What the settings of every run have; a checkpoint resumes only under the same values.

    Attributes:
        dataset: ``cifar10``, ``digits``, or for a diffusion network a user's own.
        batch: images a step, shared evenly by the processes.
        lr: peak learning rate.
        warmup: fraction of the run in which the learning rate rises in a straight line.
        ema_half_life: half-life of the weights' average, as a fraction of the images seen so far.
        flip: mirror each image with probability 1/2; a mirrored digit is none.
        seed: of the initial weights and of everything drawn.

    Raises:
        BadValue: a number outside its range.
    """

    dataset: str = "cifar10"
    batch: int = 1024
    lr: float = 1e-3
    warmup: float = 0.02
    ema_half_life: float = 0.05
    flip: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch", "lr", "images", "epochs", "width"):
            if not 0 < getattr(self, name, 1) <= 1e12:
                raise BadValue(f"{name} must be a number above 0 and at most 1e12, got {getattr(self, name)}")


@dataclass(frozen=True)
class TrainConfig(Config):
    """Settings of a diffusion network's run.

    Attributes:
        width: channels of the UNet's first level.
        images: images to see in all (with repetition).
        clip: largest norm of the gradients.
        dropout: probability in the residual blocks. The masks follow from seed, step and process: a resumed run is
            exact, one on another number of processes draws other masks.
        attention: sides, in pixels, of the levels with attention.
        min_snr: weight each level's loss by ``min(SNR, min_snr) / SNR`` (Hang et al. 2023, arXiv 2303.09556);
            0 weights all alike.
        start: name and hash of the network whose weights the run starts from; empty for random weights.
        target: ``eps``, the noise on the linear-beta schedule, or ``flow``, the velocity on the straight path.
    """

    width: int = 64
    images: int = 20_000_000
    clip: float = 1.0
    dropout: float = 0.0
    attention: tuple[int, ...] = (16,)
    min_snr: float = 0.0
    start: str = ""
    target: str = "eps"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.dropout < 1:
            raise BadValue(f"dropout must be at least 0 and below 1, got {self.dropout}")
        if not 0 <= self.min_snr < math.inf:
            raise BadValue(f"min_snr must be 0 (no weighting) or above, got {self.min_snr}")
        choose("target", self.target, TARGETS)
        if self.min_snr and self.target != "eps":
            raise BadValue(f"min_snr weights the loss of eps, and the target is {self.target}; leave min_snr at 0")

    @property
    def predicts(self) -> str:
        """The kind of prediction that is learnt."""
        return TARGETS[self.target][0]

    @property
    def schedule(self) -> str:
        """The name of the schedule that it is learnt on."""
        return TARGETS[self.target][1]

    @property
    def steps(self) -> int:
        """Optimiser steps: the fewest that see ``images`` images."""
        return -(-self.images // self.batch)


@dataclass(frozen=True)
class FeatureConfig(Config):
    """Settings of the feature classifier's run.

    Attributes:
        widths: channels of its stages; the last is the number of features.
        epochs: passes over the training images; the last, incomplete batch of each is left out.
        weight_decay: on kernels and matrices, not on norms and biases.
        smoothing: label smoothing.
    """

    batch: int = 512
    lr: float = 0.4
    warmup: float = 0.15
    ema_half_life: float = 0.02
    widths: tuple[int, ...] = (64, 128, 256, 256)
    epochs: int = 60
    weight_decay: float = 5e-4
    smoothing: float = 0.1


DEFAULTS = {
    "cifar10": TrainConfig(),
    "digits": TrainConfig("digits", width=16, images=80_000, batch=128, lr=4e-3, flip=False, attention=(4,)),
}
"""The run that made the shipped CIFAR-10 network, and one of a minute on two CPU cores."""
FEATURE_DEFAULTS = {
    "cifar10": FeatureConfig(),
    "digits": FeatureConfig("digits", batch=100, flip=False, widths=(16, 32), epochs=20),
}
"""The run that made the shipped classifier, and one of seconds."""
