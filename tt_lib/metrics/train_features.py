"""Training the classifier whose features the Fréchet distances are taken in.

A plain recipe for residual networks on small images: SGD with Nesterov momentum, a linear warm-up and a
linear descent to 0, label smoothing (Szegedy et al. 2016), random crops, mirror images and cutout
(DeVries & Taylor 2017, arXiv 1708.04552), and an average of the weights over the last steps. The whole
data set lies on the device as uint8 and is augmented there, an epoch at a time.

All that is random follows from (seed, epoch) through CPU generators: a run that is killed and started
again sees the same images in the same order as one that was not.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tt_lib.datasets import Images
from tt_lib.errors import BadValue, CorruptFile, NotFinite
from tt_lib.files import atomic_path, read_json
from tt_lib.metrics.augment import augment
from tt_lib.metrics.classifier import (
    CONFIG,
    WIDTHS,
    FeatureNet,
    accuracy,
    count_parameters,
    load_features,
    save_features,
)
from tt_lib.noise import derive_seed

CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True)
class Recipe:
    """What defines a run; a checkpoint goes on only under the same values.

    Attributes:
        data: name and size of the training set.
        widths: see :class:`~tt_lib.metrics.classifier.FeatureNet`.
        epochs: passes over the training images (the rest of the last, incomplete batch is left out).
        batch: images a step.
        lr: peak learning rate.
        seed: of the initial weights and of everything drawn.
        flip: mirror each image with probability 1/2 (not for digits).
        weight_decay: on kernels and matrices, not on norms and biases.
        smoothing: label smoothing.
        warmup: share of the run in which the learning rate rises.
        ema_half_life: half-life of the weights' average, as a share of the run.
    """

    data: str
    widths: tuple[int, ...]
    epochs: int
    batch: int
    lr: float
    seed: int
    flip: bool
    weight_decay: float = 5e-4
    smoothing: float = 0.1
    warmup: float = 0.15
    ema_half_life: float = 0.02


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
    resume: bool = True,
    checkpoint_seconds: float = 30.0,
    stop_after: int | None = None,
    log: Callable[[str], Any] = print,
) -> dict[str, Any]:
    """Train a :class:`~tt_lib.metrics.classifier.FeatureNet` and write it as a folder.

    Args:
        train, test: images of one shape; ``test`` is only looked at, never trained or tuned on.
        out: the folder; its ``checkpoint.pt`` goes away when the run is finished.
        widths, epochs, batch, lr, seed, flip: see :class:`Recipe`.
        device: default: the GPU if there is one. On a GPU the network runs in bfloat16 (autocast).
        compile: ``torch.compile`` the network.
        resume: go on from ``out/checkpoint.pt`` if it is there; else it is overwritten.
        checkpoint_seconds: seconds between checkpoints.
        stop_after: stop after this many steps of this call, checkpoint written (for tests).
        log: called with a line about ten times a run.

    Returns:
        The content of ``config.json``: ``test_accuracy`` (of the shipped float16 weights, one view of each
        image), ``n_params``, ``seconds`` and all settings. After ``stop_after``: the step that was reached.

    Raises:
        BadValue: fewer images than a batch, or a checkpoint of another run.
        CorruptFile: the checkpoint cannot be read.
        NotFinite: the loss is not a number.
    """
    out = Path(out)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    recipe = Recipe(f"{train.name}, {len(train)}", tuple(widths), epochs, batch, lr, seed, flip)
    run = _Run(recipe, train, test, device, compile)
    if resume and (out / CHECKPOINT).exists():
        run.restore(out / CHECKPOINT)
        log(f"going on from step {run.step} of {run.steps}")
    with _fast_convolutions():
        run.advance(out / CHECKPOINT, checkpoint_seconds, stop_after, log)
    run.save(out / CHECKPOINT)
    if run.step < run.steps:
        return {"step": run.step, "steps": run.steps}
    return _finish(run, out, log)


class _Run:
    """The state of a training run: networks, optimiser, step and seconds used."""

    def __init__(self, recipe: Recipe, train: Images, test: Images, device: torch.device, compile: bool) -> None:
        self.recipe, self.train, self.test, self.device = recipe, train, test, device
        self.epoch_steps = len(train) // recipe.batch
        self.steps = recipe.epochs * self.epoch_steps
        if not self.steps:
            raise BadValue(f"{recipe.epochs} epochs of {len(train)} images in batches of {recipe.batch} make no step")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            network = FeatureNet(recipe.widths, train.pixels.shape[1], len(train.classes))
        network.set_normalisation(train.pixels)
        self.network = network.to(device).to(memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.averaged, self.current = float_tensors(self.average), float_tensors(self.network)
        logits: Any = _Logits(self.network)
        self.logits = torch.compile(logits, dynamic=False) if compile else logits
        self.optimizer = make_optimizer(self.network, recipe)
        self.pixels, self.labels = train.pixels.to(device), train.labels.to(device)
        self.step, self.seconds = 0, 0.0

    def advance(self, checkpoint: Path, every: float, stop_after: int | None, log: Callable[[str], Any]) -> None:
        """Make steps up to the end, or ``stop_after`` of them; a checkpoint each ``every`` seconds."""
        begun = saved = time.monotonic()
        before, first = self.seconds, self.step
        last = self.steps if stop_after is None else min(self.steps, first + stop_after)
        log_epochs = max(1, self.recipe.epochs // 10)
        pixels = labels = torch.empty(0)
        loss = torch.zeros(())
        while self.step < last:
            epoch, place = divmod(self.step, self.epoch_steps)
            if place == 0 or self.step == first:
                pixels, labels = epoch_images(self.pixels, self.labels, self.recipe, epoch)
            rows = slice(place * self.recipe.batch, (place + 1) * self.recipe.batch)
            loss = self.make_step(pixels[rows], labels[rows])
            now = time.monotonic()
            self.seconds = before + now - begun
            if place == self.epoch_steps - 1 and ((epoch + 1) % log_epochs == 0 or self.step == self.steps):
                log(self.report(epoch + 1, loss, (self.step - first) / (now - begun)))
            if now - saved > every:
                self.save(checkpoint)
                saved = time.monotonic()

    def make_step(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """One step of SGD on a batch; returns the loss (on the device, not waited for)."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe, self.step, self.steps)
        cuda = self.device.type == "cuda"
        with torch.autocast("cuda", dtype=torch.bfloat16) if cuda else nullcontext():
            logits = self.logits(pixels)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.recipe.smoothing)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        half_life = self.recipe.ema_half_life * self.steps
        update_average(self.averaged, self.current, 0.5 ** (1 / half_life))
        return loss.detach()

    def test_accuracy(self, network: FeatureNet) -> float:
        """Accuracy of a network in eval mode on the test images."""
        return accuracy(network, self.test.pixels.to(self.device), self.test.labels.to(self.device))

    def report(self, epoch: int, loss: Tensor, rate: float) -> str:
        """A line for the log, after ``epoch`` epochs at ``rate`` steps a second."""
        if not bool(loss.isfinite()):
            raise NotFinite(f"the loss is {loss.item()} after {epoch} epochs; lower lr (now {self.recipe.lr})")
        found = self.test_accuracy(self.average)
        left = (self.steps - self.step) / rate
        return (
            f"epoch {epoch}/{self.recipe.epochs}: loss {loss.item():.3f}, test accuracy {100 * found:.2f} %, "
            f"{self.seconds:.0f} s, about {left:.0f} s left"
        )

    def save(self, path: Path) -> None:
        """Write the checkpoint, whole or not at all."""
        state = {"recipe": asdict(self.recipe), "step": self.step, "seconds": self.seconds}
        state |= {"network": self.network.state_dict(), "average": self.average.state_dict()}
        with atomic_path(path) as temporary:
            torch.save(state | {"optimizer": self.optimizer.state_dict()}, temporary)

    def restore(self, path: Path) -> None:
        """Read the checkpoint.

        Raises:
            CorruptFile: it cannot be read.
            BadValue: it belongs to another recipe.
        """
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
        except Exception as error:  # torch names no single type for a damaged file
            raise CorruptFile(f"{path} cannot be read ({error}); delete it or use resume=False") from error
        ours = asdict(self.recipe)
        theirs = state["recipe"]
        changed = {key: (theirs.get(key), ours[key]) for key in ours if theirs.get(key) != ours[key]}
        if changed:
            raise BadValue(f"{path} has other settings (file, now): {changed}; restore them or delete it")
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]


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
    kernels = [weight for weight in network.parameters() if weight.ndim > 1]
    vectors = [weight for weight in network.parameters() if weight.ndim <= 1]
    groups = [
        {"params": kernels, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=0.9, nesterov=True)


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Rises in a straight line over ``warmup`` of the run to ``lr``, then falls in a straight line to 0."""
    done = (step + 0.5) / steps
    return recipe.lr * min(done / recipe.warmup, (1 - done) / (1 - recipe.warmup))


def float_tensors(network: nn.Module) -> list[Tensor]:
    """The weights and the norms' statistics of a network: views, in a fixed order."""
    return [value for value in network.state_dict().values() if value.is_floating_point()]


@torch.no_grad()
def update_average(average: list[Tensor], current: list[Tensor], decay: float) -> None:
    """``average <- decay average + (1 - decay) current``, in place."""
    torch._foreach_lerp_(average, current, 1 - decay)


class _fast_convolutions:
    """Let cuDNN try its algorithms for the one shape that training uses; put the setting back afterwards."""

    def __enter__(self) -> None:
        self.before = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = True

    def __exit__(self, *_: object) -> None:
        torch.backends.cudnn.benchmark = self.before


def _finish(run: _Run, out: Path, log: Callable[[str], Any]) -> dict[str, Any]:
    """Write the averaged weights, read them back, measure them as shipped, and write that into the card."""
    from tt_lib.results import device_name, provenance

    settings = {key: value for key, value in asdict(run.recipe).items() if key != "widths"}
    card = settings | {"device": device_name(run.device), "seconds": round(run.seconds, 1), **provenance()}
    save_features(run.average, out, card)
    found = run.test_accuracy(load_features(out, run.device))
    measured = {"test_accuracy": round(found, 6), "test": f"{run.test.name}, {len(run.test)}"}
    save_features(run.average, out, measured | card)
    (out / CHECKPOINT).unlink(missing_ok=True)
    size = f"{count_parameters(run.average):,} parameters"
    log(f"{out}: {size}, test accuracy {100 * found:.2f} %, {run.seconds:.0f} s")
    return read_json(out / CONFIG)
