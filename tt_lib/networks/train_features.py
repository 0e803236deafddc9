"""Training the classifier whose features the Fréchet distances are taken in.

A plain recipe for residual networks on small images: SGD with Nesterov momentum, a linear warm-up and a
linear descent to 0, label smoothing (Szegedy et al. 2016), random crops, mirror images and cutout
(DeVries & Taylor 2017, arXiv 1708.04552). The images are augmented on the device, an epoch at a time. See
:mod:`tt_lib.networks.loop` for the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tt_lib.datasets import Images
from tt_lib.networks.augment import augment
from tt_lib.networks.feature_nets import WIDTHS, FeatureNet, FeatureNetwork, accuracy
from tt_lib.networks.loop import Recipe as CommonRecipe
from tt_lib.networks.loop import TrainingRun, decayed_groups, run_training
from tt_lib.noise import derive_seed


@dataclass(frozen=True)
class Recipe(CommonRecipe):
    """What defines a run, beside what :class:`tt_lib.networks.loop.Recipe` has.

    Attributes:
        weight_decay: on kernels and matrices, not on norms and biases.
        smoothing: label smoothing.
        warmup: share of the run in which the learning rate rises.
    """

    weight_decay: float = 5e-4
    smoothing: float = 0.1
    warmup: float = 0.15


def train_features(
    train: Images,
    test: Images,
    out: Path | str,
    *,
    widths: Sequence[int] = WIDTHS,
    epochs: int = 60,
    batch: int = 512,
    lr: float = 0.4,
    seed: int = 0,
    flip: bool = True,
    device: torch.device | str | None = None,
    compile: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Train a :class:`~tt_lib.networks.feature_nets.FeatureNet` and write it as a folder.

    Args:
        train, test: images of one shape; ``test`` is only looked at, never trained or tuned on.
        out: the folder.
        widths, epochs, batch, lr, seed, flip: see :class:`tt_lib.networks.loop.Recipe`.
        device: default: the GPU if there is one. On a GPU the network runs in bfloat16 (autocast).
        compile: ``torch.compile`` the network.
        options: ``seconds``, ``resume``, ``checkpoint_seconds``, ``stop_after``, ``results`` and ``log``, see
            :func:`tt_lib.networks.loop.run_training`.

    Returns:
        The content of ``config.json``: ``test_accuracy`` (of the shipped float16 weights, one view of each
        image), ``n_params``, ``seconds`` and all settings. After ``stop_after``: the step that was reached.

    Raises:
        BadValue: fewer images than a batch, or a checkpoint of another run.
        CorruptFile: the checkpoint cannot be read.
        NotFinite: the loss is not a number.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    recipe = Recipe(f"{train.name}, {len(train)}", tuple(widths), epochs, batch, lr, seed, flip)
    return run_training(ClassifierRun(recipe, train, test, device, compile), Path(out), **options)


class ClassifierRun(TrainingRun):
    """A run of :class:`~tt_lib.networks.feature_nets.FeatureNet`."""

    recipe: Recipe
    network: FeatureNet
    average: FeatureNet
    measured = "test_accuracy"

    def __init__(self, recipe: Recipe, train: Images, test: Images, device: torch.device, compile: bool) -> None:
        super().__init__(recipe, train, test, device)
        logits: Any = _Logits(self.network)
        self.logits = torch.compile(logits, dynamic=False) if compile else logits
        self.optimizer = make_optimizer(self.network, recipe)

    def make_network(self) -> FeatureNet:
        return FeatureNet(self.recipe.widths, self.train.pixels.shape[1], len(self.train.classes))

    def draw(self, epoch: int) -> tuple[Tensor, Tensor]:
        return epoch_images(self.pixels, self.labels, self.recipe, epoch)

    def loss(self, *batch: Tensor) -> Tensor:
        pixels, labels = batch
        return F.cross_entropy(self.logits(pixels).float(), labels, label_smoothing=self.recipe.smoothing)

    def learning_rate(self) -> float:
        return learning_rate(self.recipe, self.step, self.steps)

    def judge(self) -> str:
        return f"test accuracy {100 * self.test_accuracy(self.average):.2f} %, "

    def measure(self, network: FeatureNetwork) -> dict[str, Any]:
        assert isinstance(network, FeatureNet)
        found = self.test_accuracy(network)
        return {"test_accuracy": round(found, 6), "test": f"{self.test.name}, {len(self.test)}"}

    def test_accuracy(self, network: FeatureNet) -> float:
        """Accuracy of a network in eval mode on the test images."""
        return accuracy(network, self.test.pixels.to(self.device), self.test.labels.to(self.device))


class _Logits(nn.Module):
    """``FeatureNet.logits`` as a module's forward, which is what ``torch.compile`` takes."""

    def __init__(self, network: FeatureNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network.logits(pixels)


def epoch_images(pixels: Tensor, labels: Tensor, recipe: Recipe, epoch: int) -> tuple[Tensor, Tensor]:
    """All training images of one epoch, shuffled and augmented, and their labels; set by (seed, epoch)."""
    generator = torch.Generator().manual_seed(derive_seed(recipe.seed, epoch))
    order = torch.randperm(len(pixels), generator=generator).to(pixels.device)
    return augment(pixels[order], generator, recipe.flip), labels[order]


def make_optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    """SGD with Nesterov momentum 0.9; weight decay on kernels and matrices only."""
    groups = decayed_groups(network, recipe.weight_decay)
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=0.9, nesterov=True)


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Rises in a straight line over ``warmup`` of the run to ``lr``, then falls in a straight line to 0."""
    done = (step + 0.5) / steps
    return recipe.lr * min(done / recipe.warmup, (1 - done) / (1 - recipe.warmup))
