"""Training features without labels, by SimCLR (Chen et al. 2020, arXiv 2002.05709).

Two random views of each image of a batch go through the network and a projection; the loss (NT-Xent) asks which of all views
is the other one of the same image. AdamW (Loshchilov & Hutter 2017, arXiv 1711.05101), a linear warm-up and half a cosine down
to 0. Labels are used once, when all is over: a linear probe says how good the features are. See
:mod:`tt_lib.metrics.training_run` for the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tt_lib.datasets import Images
from tt_lib.metrics.augment import DRAWS, random_views
from tt_lib.metrics.contrastive import PLAIN_WIDTHS, PlainNet, Projection, nt_xent
from tt_lib.metrics.networks import FeatureNetwork
from tt_lib.metrics.probe import linear_probe
from tt_lib.metrics.training_run import Recipe, TrainingRun, decayed_groups, run_training
from tt_lib.noise import derive_seed


@dataclass(frozen=True)
class ContrastiveRecipe(Recipe):
    """What defines a run, beside what :class:`tt_lib.metrics.training_run.Recipe` has.

    Attributes:
        weight_decay: AdamW's, on kernels and matrices, not on norms and biases.
        warmup: share of the run in which the learning rate rises.
        temperature: of the loss; low ones learn faster in short runs.
        projection: numbers that the loss looks at.
        strength: of the change of colours, see :func:`tt_lib.metrics.augment.random_views`.
        clip: largest norm of the gradient.
    """

    weight_decay: float = 1e-2
    warmup: float = 0.05
    temperature: float = 0.2
    projection: int = 128
    strength: float = 0.5
    clip: float = 1.0


def train_simclr(
    train: Images,
    test: Images,
    out: Path | str,
    *,
    widths: Sequence[int] = PLAIN_WIDTHS,
    epochs: int = 100,
    batch: int = 512,
    lr: float = 2e-3,
    seed: int = 1,
    flip: bool = True,
    device: torch.device | str | None = None,
    compile: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Train a :class:`~tt_lib.metrics.contrastive.PlainNet` without labels and write it as a folder.

    Args:
        train, test: images of one shape with their labels, which only the linear probe at the end looks at.
        out, widths, epochs, batch, lr, seed, flip, device, compile, options: as in
            :func:`tt_lib.metrics.train_features.train_features`; a batch counts images, each with two views.

    Returns:
        The content of ``config.json``: ``probe_accuracy`` (of a linear probe on the shipped float16 weights), ``n_params``,
        ``seconds`` and all settings. After ``stop_after``: the step that was reached.

    Raises:
        BadValue: fewer images than a batch, or a checkpoint of another run.
        CorruptFile: the checkpoint cannot be read.
        NotFinite: the loss is not a number.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    recipe = ContrastiveRecipe(f"{train.name}, {len(train)}", tuple(widths), epochs, batch, lr, seed, flip)
    return run_training(ContrastiveRun(recipe, train, test, device, compile), Path(out), **options)


class ContrastiveRun(TrainingRun):
    """A run of :class:`~tt_lib.metrics.contrastive.PlainNet`."""

    recipe: ContrastiveRecipe
    measured = "probe_accuracy"

    def __init__(self, recipe: ContrastiveRecipe, train: Images, test: Images, device: torch.device, compile: bool) -> None:
        super().__init__(recipe, train, test, device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(recipe.seed, -1))  # the epochs have the numbers from 0 on
            self.projection = Projection(recipe.widths[-1], recipe.projection).to(device)
        self.learner = nn.Sequential(_Embedding(self.network), self.projection)
        self.project: Any = torch.compile(self.learner, dynamic=False) if compile else self.learner
        groups = decayed_groups(self.learner, recipe.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.lr, fused=device.type == "cuda")

    def make_network(self) -> PlainNet:
        return PlainNet(self.recipe.widths, self.train.pixels.shape[1])

    def modules(self) -> dict[str, Any]:
        return super().modules() | {"projection": self.projection}

    def draw(self, epoch: int) -> tuple[Tensor, Tensor]:
        return epoch_draws(self.pixels, self.recipe, epoch)

    def loss(self, *batch: Tensor) -> Tensor:
        pixels, draws = batch
        views = self.views(pixels, draws)
        first, second = self.project(views).chunk(2)
        with torch.autocast(self.device.type, enabled=False):
            return nt_xent(first, second, self.recipe.temperature)

    @torch.no_grad()
    def views(self, pixels: Tensor, draws: Tensor) -> Tensor:
        """The first views of all images, then the second ones: float32 [2 B, C, H, W], channels last."""
        with torch.autocast(self.device.type, enabled=False):
            views = random_views(
                torch.cat([pixels, pixels]), torch.cat(draws.unbind(1)), flip=self.recipe.flip, strength=self.recipe.strength
            )
        return views.contiguous(memory_format=torch.channels_last)

    def update(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.learner.parameters(), self.recipe.clip)
        super().update()

    def learning_rate(self) -> float:
        return cosine_rate(self.recipe, self.step, self.steps)

    def measure(self, network: FeatureNetwork) -> dict[str, Any]:
        found = linear_probe(network, self.train, self.test)
        what = "logistic regression on the standardised features of the training images"
        return {"probe_accuracy": round(found, 6), "probe": what, "test": f"{self.test.name}, {len(self.test)}"}


class _Embedding(nn.Module):
    """``FeatureNetwork.embed`` as a module's forward, which is what ``torch.compile`` takes."""

    def __init__(self, network: FeatureNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network.embed(x)


def epoch_draws(pixels: Tensor, recipe: Recipe, epoch: int) -> tuple[Tensor, Tensor]:
    """All training images of one epoch, shuffled, and what decides their two views, float32 [N, 2, len(DRAWS)]."""
    generator = torch.Generator().manual_seed(derive_seed(recipe.seed, epoch))
    order = torch.randperm(len(pixels), generator=generator).to(pixels.device)
    draws = torch.rand(len(pixels), 2, len(DRAWS), generator=generator).to(pixels.device)
    return pixels[order], draws


def cosine_rate(recipe: ContrastiveRecipe, step: int, steps: int) -> float:
    """Rises in a straight line over ``warmup`` of the run to ``lr``, then falls by half a cosine to 0."""
    done = (step + 0.5) / steps
    if done < recipe.warmup:
        return recipe.lr * done / recipe.warmup
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * (done - recipe.warmup) / (1 - recipe.warmup)))
