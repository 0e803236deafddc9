"""Training a network whose features distances are taken in: what the classifier's training and SimCLR's share.

The whole data set lies on the device as uint8. All that is random follows from (seed, epoch) through CPU generators: a run that
is killed and started again sees the same images in the same order as one that was not. What is shipped is an average of the
weights over the last steps.
"""

from __future__ import annotations

import copy
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tt_lib.datasets import Images
from tt_lib.errors import BadValue, CorruptFile, NotFinite
from tt_lib.files import atomic_path, read_json
from tt_lib.networks.feature_nets import (
    CONFIG,
    FeatureNetwork,
    count_parameters,
    load_features,
    save_features,
)

CHECKPOINT = "checkpoint.pt"
Log = Callable[[str], Any]


@dataclass(frozen=True)
class Recipe:
    """What defines a run; a checkpoint goes on only under the same values.

    Attributes:
        data: name and size of the training set.
        widths: see :class:`~tt_lib.networks.feature_nets.FeatureNetwork`.
        epochs: passes over the training images (the rest of the last, incomplete batch is left out).
        batch: images a step.
        lr: peak learning rate.
        seed: of the initial weights and of everything drawn.
        flip: mirror each image with probability 1/2 (not for digits).
        ema_half_life: half-life of the weights' average, as a share of the run.
    """

    data: str
    widths: tuple[int, ...]
    epochs: int
    batch: int
    lr: float
    seed: int
    flip: bool
    ema_half_life: float = 0.02


class TrainingRun(ABC):
    """The state of a training run: networks, optimiser, step, seconds used, and rows of the training log.

    Args:
        recipe: what to train.
        train, test: images of one shape; ``test`` is only looked at, never trained or tuned on.
        device: where. On a GPU the network runs in bfloat16 (autocast).
    """

    recipe: Recipe
    optimizer: torch.optim.Optimizer
    measured: ClassVar[str]
    """What :meth:`measure` calls the accuracy that the log ends with."""

    def __init__(self, recipe: Recipe, train: Images, test: Images, device: torch.device) -> None:
        self.recipe, self.train, self.test, self.device = recipe, train, test, device
        self.epoch_steps = len(train) // recipe.batch
        if not self.steps:
            raise BadValue(f"{recipe.epochs} epochs of {len(train)} images in batches of {recipe.batch} make no step")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            network = self.make_network()
        network.set_normalisation(train.pixels)
        self.network: FeatureNetwork = network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.averaged, self.current = float_tensors(self.average), float_tensors(self.network)
        self.pixels, self.labels = train.pixels.to(device), train.labels.to(device)
        self.step, self.seconds = 0, 0.0
        self.rows: list[dict[str, Any]] = []

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.recipe.epochs * self.epoch_steps

    # What a kind of training says

    @abstractmethod
    def make_network(self) -> FeatureNetwork:
        """The network with its initial weights; called with torch's generator seeded."""

    @abstractmethod
    def draw(self, epoch: int) -> tuple[Tensor, ...]:
        """Everything an epoch needs, on the device, the images' order along the first dimension; set by (seed, epoch)."""

    @abstractmethod
    def loss(self, *batch: Tensor) -> Tensor:
        """The loss of a part of what :meth:`draw` gave; under autocast on a GPU."""

    @abstractmethod
    def learning_rate(self) -> float:
        """At the present step."""

    @abstractmethod
    def measure(self, network: FeatureNetwork) -> dict[str, Any]:
        """What is said in the card about the finished network, which is in eval mode."""

    def modules(self) -> dict[str, Any]:
        """What a checkpoint holds, by name: whatever has a ``state_dict``."""
        return {"network": self.network, "average": self.average, "optimizer": self.optimizer}

    def update(self) -> None:
        """Move the weights, when the gradients are there."""
        self.optimizer.step()

    def judge(self) -> str:
        """A few words for a line of the log."""
        return ""

    # What is the same for all

    def advance(self, checkpoint: Path, results: Path | None, every: float, stop_after: int | None, log: Log) -> None:
        """Make steps up to the end, or ``stop_after`` of them; a checkpoint each ``every`` seconds."""
        begun = saved = time.monotonic()
        before, first = self.seconds, self.step
        last = self.steps if stop_after is None else min(self.steps, first + stop_after)
        log_epochs = max(1, self.recipe.epochs // 10)
        drawn: tuple[Tensor, ...] = ()
        while self.step < last:
            epoch, place = divmod(self.step, self.epoch_steps)
            if place == 0 or self.step == first:
                drawn = self.draw(epoch)
            loss = self.make_step(drawn, place)
            self.seconds = before + time.monotonic() - begun
            if place == self.epoch_steps - 1 and ((epoch + 1) % log_epochs == 0 or self.step == self.steps):
                log(
                    self.report(
                        epoch + 1, loss, (self.step - first) / (time.monotonic() - begun), checkpoint.parent.name
                    )
                )
            if time.monotonic() - saved > every:
                self.save(checkpoint, results)
                saved = time.monotonic()

    def make_step(self, drawn: tuple[Tensor, ...], place: int) -> Tensor:
        """One step on the ``place``-th batch of an epoch; returns the loss (on the device, not waited for)."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        rows = slice(place * self.recipe.batch, (place + 1) * self.recipe.batch)
        with self.autocast():
            loss = self.loss(*(part[rows] for part in drawn))
        loss.backward()
        self.update()
        self.optimizer.zero_grad()
        self.step += 1
        half_life = self.recipe.ema_half_life * self.steps
        update_average(self.averaged, self.current, 0.5 ** (1 / half_life))
        return loss.detach()

    def autocast(self) -> AbstractContextManager[Any]:
        """bfloat16 where a GPU computes."""
        return torch.autocast("cuda", dtype=torch.bfloat16) if self.device.type == "cuda" else nullcontext()

    def report(self, epoch: int, loss: Tensor, rate: float, name: str) -> str:
        """A line for the log, after ``epoch`` epochs at ``rate`` steps a second; and a row of the run ``name``."""
        from tt_lib.rows import device_name, provenance

        value = loss.item()
        if not bool(loss.isfinite()):
            raise NotFinite(f"the loss is {value} after {epoch} epochs; lower lr (now {self.recipe.lr})")
        images = self.step * self.recipe.batch
        self.rows.append(
            {
                "run": name,
                "step": self.step,
                "images": images,
                "loss": round(value, 6),
                "images_per_s": round(rate * self.recipe.batch, 1),
                "devices": f"1 x {device_name(self.device)}",
                "elapsed_s": round(self.seconds, 1),
                **provenance(),
            }
        )
        left = (self.steps - self.step) / rate
        return (
            f"epoch {epoch}/{self.recipe.epochs}: loss {value:.3f}, {self.judge()}{rate * self.recipe.batch:,.0f} images/s, "
            f"{self.seconds:.0f} s, about {left:.0f} s left"
        )

    def save(self, path: Path, results: Path | None) -> None:
        """Write the checkpoint, whole or not at all, and the rows of the training log so far."""
        from tt_lib.rows import TRAINING_COLUMNS, write_rows

        place = {"recipe": asdict(self.recipe), "step": self.step, "seconds": self.seconds, "rows": self.rows}
        with atomic_path(path) as temporary:
            torch.save(place | {name: module.state_dict() for name, module in self.modules().items()}, temporary)
        if results and self.rows:
            write_rows(results, self.rows, TRAINING_COLUMNS, ("run", "step"))

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
        theirs = state["recipe"]
        ours = asdict(self.recipe)
        changed = {key: (theirs.get(key), ours[key]) for key in ours if theirs.get(key) != ours[key]}
        if changed:
            raise BadValue(f"{path} has other settings (file, now): {changed}; restore them or delete it")
        for name, module in self.modules().items():
            module.load_state_dict(state[name])
        self.step, self.seconds, self.rows = state["step"], state["seconds"], state["rows"]


def run_training(
    run: TrainingRun,
    out: Path,
    *,
    resume: bool = True,
    checkpoint_seconds: float = 30.0,
    stop_after: int | None = None,
    results: Path | None = None,
    log: Log = print,
) -> dict[str, Any]:
    """Bring a run to its end and write the network as a folder.

    Args:
        out: the folder; its ``checkpoint.pt`` goes away when the run is finished.
        resume: go on from ``out/checkpoint.pt`` if it is there; else it is overwritten.
        checkpoint_seconds: seconds between checkpoints.
        stop_after: stop after this many steps of this call, checkpoint written (for tests).
        results: the training log to write rows to; none without.
        log: called with a line about ten times a run.

    Returns:
        The content of ``config.json``. After ``stop_after``: the step that was reached.

    Raises:
        BadValue: a checkpoint of another run.
        CorruptFile: the checkpoint cannot be read.
        NotFinite: the loss is not a number.
    """
    with _fast_convolutions():
        if resume and (out / CHECKPOINT).exists():
            run.restore(out / CHECKPOINT)
            log(f"going on from step {run.step} of {run.steps}")
        run.advance(out / CHECKPOINT, results, checkpoint_seconds, stop_after, log)
    run.save(out / CHECKPOINT, results)
    if run.step < run.steps:
        return {"step": run.step, "steps": run.steps}
    return _finish(run, out, log)


def _finish(run: TrainingRun, out: Path, log: Log) -> dict[str, Any]:
    """Write the averaged weights, read them back, measure them as shipped, and write that into the card."""
    from tt_lib.rows import device_name, provenance

    settings = {key: value for key, value in asdict(run.recipe).items() if key != "widths"}
    card = settings | {"device": device_name(run.device), "seconds": round(run.seconds, 1), **provenance()}
    save_features(run.average, out, card)
    measured = run.measure(load_features(out, run.device))
    save_features(run.average, out, measured | card)
    (out / CHECKPOINT).unlink(missing_ok=True)
    size = f"{count_parameters(run.average):,} parameters"
    found = f"{run.measured.replace('_', ' ')} {100 * measured[run.measured]:.2f} %"
    log(f"{out}: {size}, {found}, {run.seconds:.0f} s")
    return read_json(out / CONFIG)


def float_tensors(network: nn.Module) -> list[Tensor]:
    """The weights and the norms' statistics of a network: views, in a fixed order."""
    return [value for value in network.state_dict().values() if value.is_floating_point()]


@torch.no_grad()
def update_average(average: list[Tensor], current: list[Tensor], decay: float) -> None:
    """``average <- decay average + (1 - decay) current``, in place."""
    torch._foreach_lerp_(average, current, 1 - decay)


def decayed_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The weights as an optimiser takes them: weight decay on kernels and matrices, none on norms and biases."""
    kernels = [weight for weight in network.parameters() if weight.ndim > 1]
    vectors = [weight for weight in network.parameters() if weight.ndim <= 1]
    return [{"params": kernels, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


@contextmanager
def _fast_convolutions() -> Iterator[None]:
    """Let cuDNN try its algorithms for the one shape that training uses; put the setting back afterwards."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
