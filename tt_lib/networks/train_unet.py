"""Training a linear-beta eps-prediction network, on one or several devices, so that it can be interrupted.

Randomness belongs to the step, not to the process: the images, flips, levels and noise of global step
``s`` are drawn from a generator seeded with ``(seed, s)``, for the whole global batch, of which each
process takes its share. So a run that is killed and resumed, or run on another number of devices,
sees the same data; nothing random has to be saved.

Loss: ``E || eps - eps_theta(x_t, t) ||^2`` (Ho et al. 2020, arXiv 2006.11239, eq. 14), mean over pixels.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tt_lib.datasets import Images, load_dataset, to_float
from tt_lib.errors import AlreadyDone, BadValue, CorruptFile, NotFinite
from tt_lib.files import atomic_path
from tt_lib.networks.unet import WEIGHTS, make_unet, save_model
from tt_lib.noise import derive_seed
from tt_lib.rows import TRAINING_COLUMNS, device_name, provenance, results_folder, write_rows
from tt_lib.schedules import Schedule, make_schedule

CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True)
class TrainConfig:
    """What defines a training run; a checkpoint resumes only under the same values.

    Attributes:
        dataset: ``cifar10`` or ``digits``.
        width: channels of the UNet's first level.
        images: images to see in all (with repetition).
        batch: global batch, shared evenly by the processes.
        lr: peak learning rate of AdamW; linear warm-up, then a half cosine to 0.
        warmup: fraction of the run spent in warm-up.
        ema_half_life: half-life of the weights' average, as a fraction of the images seen so far.
        flip: mirror each image with probability 1/2.
        clip: largest gradient norm.
        seed: of the initial weights and of everything drawn.
        dropout: probability in the network's residual blocks. Its masks are drawn from seed, step and process: a run that goes
            on is exact, one on another number of processes draws other masks.
        attention: sides, in pixels, at which the network has attention.
        min_snr: weight each level's loss by ``min(SNR, min_snr) / SNR`` (Hang et al. 2023, arXiv 2303.09556); 0 weights all alike.
    """

    dataset: str = "cifar10"
    width: int = 64
    images: int = 20_000_000
    batch: int = 1024
    lr: float = 1e-3
    warmup: float = 0.02
    ema_half_life: float = 0.05
    flip: bool = True
    clip: float = 1.0
    seed: int = 0
    dropout: float = 0.0
    attention: tuple[int, ...] = (16,)
    min_snr: float = 0.0

    def __post_init__(self) -> None:
        for name in ("images", "batch", "lr"):
            if not getattr(self, name) > 0:
                raise BadValue(f"{name} must be above 0, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise BadValue(f"dropout must be at least 0 and below 1, got {self.dropout}")
        if not 0 <= self.min_snr < math.inf:
            raise BadValue(f"min_snr must be 0 (no weighting) or above, got {self.min_snr}")

    @property
    def steps(self) -> int:
        """Optimiser steps: the fewest that see ``images`` images."""
        return -(-self.images // self.batch)


DEFAULTS = {
    "cifar10": TrainConfig(),
    "digits": TrainConfig("digits", width=16, images=80_000, batch=128, lr=4e-3, flip=False, attention=(4,)),
}
"""The runs that made the shipped networks."""


class NoisePrediction(nn.Module):
    """The loss as a module, so that noising, network and loss compile into one graph.

    Called with ``x0`` uint8 [B, C, H, W], ``noise`` [B, C, H, W], and ``alpha``, ``sigma``, ``index``, ``weight`` [B];
    returns the weighted mean squared error of the predicted noise, a scalar.
    """

    def __init__(self, network: nn.Module, bf16: bool) -> None:
        super().__init__()
        self.network = network
        self.bf16 = bf16

    def forward(self, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor, index: Tensor, weight: Tensor) -> Tensor:
        x0 = to_float(x0)
        x = alpha.view(-1, 1, 1, 1) * x0 + sigma.view(-1, 1, 1, 1) * noise
        context = torch.autocast(x.device.type, dtype=torch.bfloat16) if self.bf16 else nullcontext()
        with context:
            predicted = self.network(x, index).sample
        return ((predicted.float() - noise).square().mean((1, 2, 3)) * weight).mean()


class Batches:
    """The training data of every step: ``batches(step)`` gives this process's share of the global batch.

    Args:
        pixels: uint8 [N, C, H, W], the whole data set, on the device.
    """

    def __init__(self, pixels: Tensor, schedule: Schedule, config: TrainConfig, rank: int, world: int) -> None:
        self.pixels, self.config, self.rank, self.world = pixels, config, rank, world
        self.levels = schedule.levels
        times = (torch.arange(self.levels, dtype=torch.float64) + 1) / self.levels
        self.alpha = schedule.alpha(times).float().to(pixels.device)
        self.sigma = schedule.sigma(times).float().to(pixels.device)
        snr = (self.alpha / self.sigma).square()
        self.weight = snr.clamp(max=config.min_snr) / snr if config.min_snr else torch.ones_like(snr)
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def __call__(self, step: int) -> tuple[Tensor, ...]:
        device, batch = self.pixels.device, self.config.batch
        generator = torch.Generator(device).manual_seed(derive_seed(self.config.seed, step))
        flip = torch.rand(batch, generator=generator, device=device) < (0.5 if self.config.flip else 0.0)
        index = torch.randint(self.levels, (batch,), generator=generator, device=device)
        noise = torch.randn((batch, *self.pixels.shape[1:]), generator=generator, device=device)
        share = slice(self.rank * batch // self.world, (self.rank + 1) * batch // self.world)
        x0 = self.pixels[self._rows(step)[share]]
        x0 = torch.where(flip[share].view(-1, 1, 1, 1), x0.flip(3), x0)
        index = index[share]
        return x0, noise[share], self.alpha[index], self.sigma[index], index.float(), self.weight[index]

    def _rows(self, step: int) -> Tensor:
        """Rows of the data set for the global batch: each epoch is a fresh permutation, crossed without a gap."""
        count, place, missing = len(self.pixels), step * self.config.batch, self.config.batch
        parts = []
        while missing:
            epoch, offset = divmod(place, count)
            part = self._permutation(epoch)[offset : offset + missing]
            parts.append(part)
            place, missing = place + len(part), missing - len(part)
        return torch.cat(parts)

    def _permutation(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(derive_seed(self.config.seed, epoch))
            # Kept on the device: a copy from the host in every step would make the host wait for the GPU.
            self._epoch = epoch
            self._order = torch.randperm(len(self.pixels), generator=generator).to(self.pixels.device)
        return self._order


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up over ``warmup`` of the run, then a half cosine down to 0."""
    done = (step + 1) / config.steps
    if done < config.warmup:
        return config.lr * done / config.warmup
    progress = (done - config.warmup) / (1 - config.warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))


@torch.no_grad()
def update_average(average: list[Tensor], current: list[Tensor], config: TrainConfig, step: int) -> None:
    """EMA of the weights whose half-life is a fixed fraction of the images seen so far.

    A half-life that grows with the run forgets the first, bad weights (Karras et al. 2024, arXiv
    2312.02696, section 3.1) and needs no choice of a decay for a run's length.
    """
    half_life = config.ema_half_life * (step + 1) * config.batch
    torch._foreach_lerp_(average, current, 1 - 0.5 ** (config.batch / half_life))


def train(
    config: TrainConfig,
    out: Path | str,
    *,
    data: str | None = None,
    images: Images | None = None,
    bf16: bool | None = None,
    compile: bool = False,
    checkpoint_seconds: float = 60.0,
    log_rows: int = 200,
    results: Path | str | None = None,
    force: bool = False,
    stop_after: int | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Path:
    """Train a network and write its averaged weights as a model folder; an interrupted run goes on where it was.

    Started under ``accelerate launch`` (or torchrun), all processes share the global batch.

    Args:
        config: what to train.
        out: the model folder; the checkpoint lies in it as ``checkpoint.pt`` until the run ends.
        data: where the data set is (see :func:`tt_lib.datasets.load_dataset`).
        images: the training images themselves, in place of ``data``.
        bf16: run the network in bfloat16 under autocast; by default on GPUs only.
        compile: compile loss and network (60-140 s the first time).
        checkpoint_seconds: seconds between checkpoints.
        log_rows: about how many rows the run writes to the training log.
        results: the log (default ``data/results/training.csv``).
        force: start again although ``out`` holds a finished network.
        stop_after: stop after this many steps of this call, checkpoint written (for tests and time-boxed runs).
        progress: called with (step, steps, message) about once a second.

    Returns:
        The model folder.

    Raises:
        AlreadyDone: ``out`` holds a finished network and ``force`` is false.
        BadValue: the batch cannot be shared evenly, or the checkpoint belongs to another configuration.
        NotFinite: the loss became NaN or infinite.
    """
    from accelerate import Accelerator

    out = Path(out)
    # A checkpoint means an unfinished run, which goes on whatever else lies in the folder.
    if (out / WEIGHTS).exists() and not (out / CHECKPOINT).exists() and not force:
        raise AlreadyDone(f"{out} holds a finished network; give --force to train again or choose another --out")
    # Accelerate gives us the processes and the averaging of gradients; autocast and compile are done here
    # so that noising and loss lie inside the compiled graph.
    accelerator = Accelerator(mixed_precision="no", cpu=not torch.cuda.is_available())
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    if config.batch % world:
        raise BadValue(f"batch {config.batch} cannot be shared by {world} processes; choose a multiple of {world}")
    bf16 = device.type == "cuda" if bf16 is None else bf16

    images = images if images is not None else load_dataset(config.dataset, "train", data)
    schedule = make_schedule("linear")
    torch.manual_seed(config.seed)
    network = make_unet(config.dataset, config.width, config.dropout, config.attention).to(
        device, memory_format=torch.channels_last
    )
    loss_module: Any = NoisePrediction(network, bf16)
    if compile:
        # One graph for the whole network: the all-reduce of 36 MB is not worth splitting it for overlap.
        torch._dynamo.config.optimize_ddp = False
        loss_module = torch.compile(loss_module, dynamic=False)
    loss_module = accelerator.prepare(loss_module)
    weights = list(network.parameters())
    average = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.AdamW(weights, lr=config.lr, fused=device.type == "cuda")

    state = _resume(out / CHECKPOINT, config, device, weights, average, optimizer)
    step, elapsed_before, rows = state["step"], state["elapsed_s"], state["rows"]
    batches = Batches(images.pixels.to(device), schedule, config, rank, world)
    devices = f"{world} x {device_name(device)}"
    log = results or results_folder() / "training.csv"
    row_every = max(1, config.steps // log_rows)

    begun = last_saved = last_shown = last_row_time = time.monotonic()
    first = step
    running, counted, last_row_step = torch.tensor(state["running"], device=device), state["counted"], step

    def save(now: float) -> None:
        if rank == 0:
            place = {"step": step, "elapsed_s": elapsed_before + now - begun, "rows": rows}
            place |= {"running": running.item(), "counted": counted}
            _save(out / CHECKPOINT, config, place, weights, average, optimizer)
            write_rows(log, rows, TRAINING_COLUMNS, ("run", "step"))

    while step < config.steps:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        # Dropout draws from torch's own generators: seeded here, a resumed run draws what it would have drawn.
        torch.manual_seed(derive_seed(derive_seed(config.seed, step), rank + 1))
        loss = loss_module(*batches(step))
        accelerator.backward(loss)
        torch.nn.utils.clip_grad_norm_(weights, config.clip)
        optimizer.step()
        optimizer.zero_grad()
        update_average(average, weights, config, step)
        running, counted, step = running + loss.detach(), counted + 1, step + 1

        if step % row_every == 0 or step == config.steps:
            value = accelerator.reduce(running / counted, "mean").item()
            now = time.monotonic()
            if not math.isfinite(value):
                raise NotFinite(
                    f"the training loss is {value} at step {step}; delete {out / CHECKPOINT}, lower lr (now {config.lr}) "
                    "and start again"
                )
            rate = (step - last_row_step) * config.batch / (now - last_row_time)
            row = {"run": out.name, "step": step, "images": step * config.batch, "loss": round(value, 6)}
            row |= {
                "images_per_s": round(rate, 1),
                "devices": devices,
                "elapsed_s": round(elapsed_before + now - begun, 1),
            }
            rows.append(row | provenance())
            running, counted, last_row_step, last_row_time = torch.zeros((), device=device), 0, step, now

        stopping = stop_after is not None and step - first >= stop_after
        # Every process must leave the loop at the same step, so only things that all know decide it.
        now = time.monotonic()
        if progress and rank == 0 and (now - last_shown > 1 or step == config.steps):
            last_shown = now
            progress(
                step,
                config.steps,
                f"loss {rows[-1]['loss']:.4f}, {rows[-1]['images_per_s']:.0f} images/s" if rows else "",
            )
        if now - last_saved > checkpoint_seconds or stopping or step == config.steps:
            last_saved = now
            save(now)
        if stopping:
            break

    if step == config.steps and rank == 0:
        # Again, for a run that was killed between its last checkpoint and this log.
        write_rows(log, rows, TRAINING_COLUMNS, ("run", "step"))
        _finish(network, average, out, config, schedule, devices, rows)
    accelerator.wait_for_everyone()
    return out


def _save(path, config, place, weights, average, optimizer) -> None:
    state = {"config": asdict(config), **place, "weights": [weight.detach() for weight in weights]}
    state |= {"average": average, "optimizer": optimizer.state_dict()}
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def _resume(path, config, device, weights, average, optimizer) -> dict[str, Any]:
    """Load a checkpoint into the lists and the optimiser, if there is one; say where the run stands."""
    if not path.exists():
        return {"step": 0, "elapsed_s": 0.0, "rows": [], "running": 0.0, "counted": 0}
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch names no single type for a damaged file
        raise CorruptFile(f"{path} cannot be read ({error}); delete it to start the run again") from error
    # A field that is younger than the checkpoint had its default.
    then, now = asdict(replace(TrainConfig(), **state["config"])), asdict(config)
    if then != now:
        changed = {name: (then[name], now[name]) for name in now if then[name] != now[name]}
        raise BadValue(
            f"{path} was written with other settings (file, now): {changed}; restore them or choose another --out"
        )
    with torch.no_grad():
        for target, source in zip([*weights, *average], [*state["weights"], *state["average"]], strict=True):
            target.copy_(source)
    optimizer.load_state_dict(state["optimizer"])
    return state


def _finish(network, average, out, config, schedule, devices, rows) -> None:
    """Write the averaged weights as the model folder; the checkpoint has done its work."""
    with torch.no_grad():
        for weight, mean in zip(network.parameters(), average, strict=True):
            weight.copy_(mean)
    run = {"images_seen": config.steps * config.batch, "devices": devices, "elapsed_s": rows[-1]["elapsed_s"]}
    card = {"dataset": config.dataset, "training": asdict(config) | run, **provenance()}
    save_model(network, out, name=out.name, schedule=schedule.name, card=card)
    (out / CHECKPOINT).unlink(missing_ok=True)
