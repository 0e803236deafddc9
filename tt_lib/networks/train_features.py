"""Training the classifier whose features distances are taken in.

A plain recipe for residual networks on small images: SGD with Nesterov momentum, a linear warm-up and a linear descent
to 0, label smoothing (Szegedy et al. 2016), random crops, mirror images and cutout (DeVries & Taylor 2017, arXiv
1708.04552). The images are augmented on the device, an epoch at a time.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tt_lib.datasets import Images, load_dataset
from tt_lib.errors import BadValue
from tt_lib.files import read_json, write_json
from tt_lib.networks.config import FeatureConfig
from tt_lib.networks.feature_nets import CONFIG, FeatureNet, read_feature_network, save_features
from tt_lib.networks.loop import Training, refuse_finished, run_training
from tt_lib.noise import check_seeds, derive_seed
from tt_lib.rows import provenance


class Classification(nn.Module):
    """The loss: called with ``pixels`` uint8 [B, C, H, W] and ``labels`` int64 [B], returns their cross-entropy."""

    def __init__(self, network: FeatureNet, smoothing: float, bf16: bool) -> None:
        super().__init__()
        self.network, self.smoothing, self.bf16 = network, smoothing, bf16

    def forward(self, pixels: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(pixels.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            logits = self.network.logits(pixels)
        return F.cross_entropy(logits.float(), labels, label_smoothing=self.smoothing)


class AugmentedBatches:
    """The training data of every step: ``batches(step)`` gives pixels and labels on the device; set by (seed, step)."""

    def __init__(self, images: Images, config: FeatureConfig, device: torch.device) -> None:
        self.pixels, self.labels, self.config = images.pixels[:].to(device), images.labels.to(device), config
        self.epoch_steps = len(images) // config.batch
        self._epoch, self._drawn = -1, (self.pixels, self.labels)

    def __call__(self, step: int) -> tuple[Tensor, ...]:
        epoch, place = divmod(step, self.epoch_steps)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(derive_seed(self.config.seed, epoch))
            order = torch.randperm(len(self.pixels), generator=generator).to(self.pixels.device)
            self._drawn = augment(self.pixels[order], generator, self.config.flip), self.labels[order]
            self._epoch = epoch
        return tuple(part[place * self.config.batch : (place + 1) * self.config.batch] for part in self._drawn)


def augment(pixels: Tensor, generator: torch.Generator, flip: bool = True) -> Tensor:
    """Crop, mirror and cut a hole into each image, independently.

    The image is padded by an eighth of its side (4 pixels of 32) by reflection and cropped back at a random
    place; a square of a quarter of its side (8 of 32), anywhere on it, is painted in the mean colour.

    Args:
        pixels: uint8 [N, C, H, W] with H = W, on any device.
        generator: a CPU generator, so that every device draws the same.
        flip: mirror with probability 1/2.
    """
    count, _, side, _ = pixels.shape
    pad, hole, device = side // 8, side // 4, pixels.device

    def draw(most: int) -> Tensor:
        return torch.randint(most, (count, 1), generator=generator).to(device)

    line = torch.arange(side, device=device)
    rows, columns = line + draw(2 * pad + 1), line + draw(2 * pad + 1)
    columns = torch.where(draw(2).bool() & flip, columns.flip(1), columns)
    # Reflection about the edge pixel, as an index into the unpadded image: no padded copy is made.
    rows, columns = (side - 1 - (side - 1 - (place - pad).abs()).abs() for place in (rows, columns))
    image = torch.arange(count, device=device).view(-1, 1, 1)
    out = pixels.permute(0, 2, 3, 1)[image, rows.unsqueeze(2), columns.unsqueeze(1)]
    top, left = draw(side) - hole // 2, draw(side) - hole // 2
    inside_rows, inside_columns = (((line - start) >= 0) & ((line - start) < hole) for start in (top, left))
    cut = inside_rows.unsqueeze(2) & inside_columns.unsqueeze(1)
    mean = pixels[:1000].float().mean((0, 2, 3)).round().to(torch.uint8)
    return torch.where(cut.unsqueeze(3), mean, out).permute(0, 3, 1, 2)


def learning_rate(config: FeatureConfig, steps: int, step: int) -> float:
    """Rises in a straight line over ``warmup`` of the run to ``lr``, then falls in a straight line to 0."""
    done = (step + 0.5) / steps
    return config.lr * min(done / config.warmup, (1 - done) / (1 - config.warmup))


@torch.no_grad()
def accuracy(network: FeatureNet, images: Images, batch: int = 1000) -> float:
    """Share of the labels that a network in eval mode gets right, one view of each image."""
    device = network.mean.device
    right = sum(
        int((network.logits(pixels.to(device)).argmax(1).cpu() == labels).sum())
        for pixels, labels in zip(images.pixels[:].split(batch), images.labels.split(batch), strict=True)
    )
    return right / len(images)


def make_optimizer(network: nn.Module, config: FeatureConfig) -> torch.optim.SGD:
    """SGD with Nesterov momentum 0.9; weight decay on kernels and matrices only."""
    kernels = [weight for weight in network.parameters() if weight.ndim > 1]
    vectors = [weight for weight in network.parameters() if weight.ndim <= 1]
    groups = [{"params": kernels, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=config.lr, momentum=0.9, nesterov=True)


def train_features(
    config: FeatureConfig,
    out: Path | str,
    *,
    data: Path | str | None = None,
    device: torch.device | str = "cpu",
    force: bool = False,
    **options: Any,
) -> Path:
    """Train a :class:`~tt_lib.networks.feature_nets.FeatureNet` and write it as a folder; an interrupted run goes on.

    The test images are only looked at when the network is finished: ``test_accuracy`` in ``config.json`` is that of the
    written float16 weights. On a GPU the network trains in bfloat16 (autocast).

    Args:
        config: what to train.
        out: the folder; the checkpoint lies in it until the run ends.
        data: where the data set is (see :func:`tt_lib.datasets.load_dataset`).
        device: where to train.
        force: start again although ``out`` holds a finished network.
        options: ``checkpoint_seconds``, ``results``, ``stop_after`` and ``progress``, see
            :func:`tt_lib.networks.loop.run_training`.

    Raises:
        AlreadyDone: ``out`` holds a finished network and ``force`` is false.
        BadValue: fewer images than a batch, or a checkpoint of another run.
        CorruptFile: the checkpoint cannot be read.
        NotFinite: the loss became NaN or infinite.
    """
    out, device = Path(out), torch.device(device)
    check_seeds(config.seed)
    refuse_finished(out, CONFIG, force)
    images, test = (load_dataset(config.dataset, split, data) for split in ("train", "test"))
    if config.batch > len(images):
        raise BadValue(f"a batch of {config.batch} is more than the {len(images)} training images; give a smaller one")
    torch.manual_seed(config.seed)
    network = FeatureNet(config.widths, images.pixels.shape[1])
    network.set_normalisation(images.pixels[:])
    network = network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    batches = AugmentedBatches(images, config, device)
    steps = config.epochs * batches.epoch_steps

    def write(facts: dict[str, Any]) -> None:
        save_features(network, out, asdict(config) | facts | provenance())
        share = accuracy(read_feature_network(out, device), test)
        write_json(out / CONFIG, read_json(out / CONFIG) | {"test_accuracy": round(share, 6)})

    run = Training(
        config,
        steps,
        network,
        Classification(network, config.smoothing, bf16=device.type == "cuda"),
        make_optimizer(network, config),
        batches,
        partial(learning_rate, config, steps),
        write,
    )
    run_training(run, out, **options)
    return out
