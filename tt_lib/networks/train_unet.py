"""Training a network that predicts the noise or, on the straight path, the velocity; on one or several devices.

The images, flips, levels and noise of global step ``s`` are drawn from a generator seeded with ``(seed, s)``, for the
whole global batch, of which each process takes its share: any number of processes sees the same data.

Loss: ``E || eps - eps_theta(x_t, t) ||^2`` on the linear-beta schedule (Ho et al. 2020, arXiv 2006.11239, eq. 14), or
``E || eps - x_0 - u_theta(x_t, t) ||^2`` on ``x_t = (1 - t) x_0 + t eps`` (Lipman et al. 2023, arXiv 2210.02747, eq. 23
with noise at t = 1); mean over pixels. Times are those of 1000 levels, all equally likely.
"""

from __future__ import annotations

import atexit
import math
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tt_lib.datasets import load_dataset, to_float
from tt_lib.datasets.images import by_hash
from tt_lib.errors import BadValue
from tt_lib.networks.config import TrainConfig
from tt_lib.networks.loop import Training, compile_loss, leave_in_order, refuse_finished, run_name, run_training
from tt_lib.networks.unet import WEIGHTS, load_model, make_unet, save_model
from tt_lib.noise import check_seeds, derive_seed
from tt_lib.rows import provenance, short_hash
from tt_lib.schedules import make_schedule


class PredictionLoss(nn.Module):
    """The loss as a module, so that noising, network and loss compile into one graph.

    Called with ``x0`` uint8 [B, C, H, W], ``noise`` [B, C, H, W], and ``alpha``, ``sigma``, the network's time ``c``
    and ``weight`` [B]; returns the weighted mean squared error of what is predicted, a scalar.

    Args:
        kind: ``eps`` or ``velocity``.
    """

    def __init__(self, network: nn.Module, bf16: bool, kind: str = "eps") -> None:
        super().__init__()
        self.network, self.bf16, self.velocity = network, bf16, kind == "velocity"

    def forward(self, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor, c: Tensor, weight: Tensor) -> Tensor:
        image = to_float(x0)
        x = alpha.view(-1, 1, 1, 1) * image + sigma.view(-1, 1, 1, 1) * noise
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            predicted = self.network(x, c).sample
        target = noise - image if self.velocity else noise
        return ((predicted.float() - target).square().mean((1, 2, 3)) * weight).mean()


class Batches:
    """The training data of every step: ``batches(step)`` gives this process's share of the global batch.

    Args:
        pixels: uint8 [N, C, H, W], the whole data set, on the device.
        rank, world: which process this is, of how many.
    """

    def __init__(self, pixels: Tensor, config: TrainConfig, rank: int = 0, world: int = 1) -> None:
        self.pixels, self.config = pixels, config
        self.share = slice(rank * config.batch // world, (rank + 1) * config.batch // world)
        schedule = make_schedule(config.schedule)
        self.levels = schedule.levels
        times = (torch.arange(self.levels, dtype=torch.float64) + 1) / self.levels
        self.alpha = schedule.alpha(times).float().to(pixels.device)
        self.sigma = schedule.sigma(times).float().to(pixels.device)
        self.c = schedule.network_time(times).float().to(pixels.device)
        snr = (self.alpha / self.sigma).square()
        self.weight = snr.clamp(max=config.min_snr) / snr if config.min_snr else torch.ones_like(snr)
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def __call__(self, step: int) -> tuple[Tensor, ...]:
        device, batch, share = self.pixels.device, self.config.batch, self.share
        generator = torch.Generator(device).manual_seed(derive_seed(self.config.seed, step))
        flip = torch.rand(batch, generator=generator, device=device) < (0.5 if self.config.flip else 0.0)
        index = torch.randint(self.levels, (batch,), generator=generator, device=device)[share]
        noise = torch.randn((batch, *self.pixels.shape[1:]), generator=generator, device=device)
        x0 = self.pixels[self._rows(step)[share]]
        x0 = torch.where(flip[share].view(-1, 1, 1, 1), x0.flip(3), x0)
        return x0, noise[share], self.alpha[index], self.sigma[index], self.c[index], self.weight[index]

    def _rows(self, step: int) -> Tensor:
        """Rows of the data set for the global batch: each epoch is a fresh permutation, crossed without a gap."""
        place, end, parts = step * self.config.batch, (step + 1) * self.config.batch, []
        while place < end:
            epoch, offset = divmod(place, len(self.pixels))
            parts.append(self._permutation(epoch)[offset : offset + end - place])
            place += len(parts[-1])
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


def load_start(network: Any, name: str, config: TrainConfig) -> str:
    """Copy the weights of a trained network into ``network``; returns its name and hash.

    Args:
        network: a ``UNet2DModel``.
        name: see :func:`tt_lib.networks.unet.load_model`.
        config: of this run.

    Raises:
        BadValue: it is another architecture, was trained on another schedule, or predicts something else.
        MissingFile, CorruptFile: see :func:`tt_lib.networks.unet.load_model`.
    """

    def facts(config: dict[str, Any], schedule: str, kind: str) -> dict[str, Any]:
        own = {key: value for key, value in config.items() if key != "dropout" and not key.startswith("_")}
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in own.items()}
        return values | {"schedule": schedule, "predicts": kind}

    model = load_model(name)
    source: Any = model.network
    theirs = facts(source.config, model.schedule.name, model.kind)
    ours = facts(network.config, config.schedule, config.predicts)
    differing = {key: (theirs.get(key), ours[key]) for key in ours if theirs.get(key) != ours[key]}
    if differing:
        remedy = "give this run the same settings, or another --from"
        raise BadValue(f"cannot start from {model.name}, another architecture (it, this run): {differing}; {remedy}")
    network.load_state_dict(source.state_dict())
    return f"{model.name} {model.digest}".strip()


def train(
    config: TrainConfig,
    out: Path | str,
    *,
    data: Path | str | None = None,
    start: str | None = None,
    compile: bool = False,
    force: bool = False,
    **options: Any,
) -> Path:
    """Train a network and write its averaged weights as a model folder; an interrupted run goes on where it was.

    Started under ``accelerate launch`` (or torchrun), all processes share the global batch. On GPUs the network runs in
    bfloat16 (autocast).

    Args:
        config: what to train; ``config.start`` is filled in.
        out: the model folder; the checkpoint lies in it until the run ends.
        data: where the data set is (see :func:`tt_lib.datasets.load_dataset`).
        start: a trained network of the same architecture, whose weights the run starts from with a fresh optimiser.
        compile: compile loss and network (60-140 s the first time), on a GPU as CUDA graphs
            (see :func:`tt_lib.networks.loop.compile_loss`).
        force: start again although ``out`` holds a finished network.
        options: ``checkpoint_seconds``, ``results``, ``stop_after`` and ``progress``, see
            :func:`tt_lib.networks.loop.run_training`.

    Returns:
        The model folder.

    Raises:
        AlreadyDone: ``out`` holds a finished network and ``force`` is false.
        BadValue: the batch cannot be shared evenly, ``start`` does not fit, or the checkpoint has other settings.
        NotFinite: the loss became NaN or infinite.
    """
    from accelerate import Accelerator

    out = Path(out)
    check_seeds(config.seed)
    refuse_finished(out, WEIGHTS, force)
    # Accelerate gives us the processes and the averaging of gradients; autocast and compile are done here
    # so that noising and loss lie inside the compiled graph.
    accelerator = Accelerator(mixed_precision="no", cpu=not torch.cuda.is_available())
    device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    if config.batch % world:
        raise BadValue(f"batch {config.batch} cannot be shared by {world} processes; choose a multiple of {world}")
    if world > 1:
        atexit.register(leave_in_order, accelerator.state)
    images = load_dataset(config.dataset, "train", data)
    pixels = images.pixels[:]
    if not images.digest:  # a user's own: their digest is part of the settings, under which alone a run is resumed
        digest = by_hash(pixels, images.labels)[1]
        config = replace(config, dataset=f"{images.name.rpartition('-')[0]}@{short_hash(digest)}")
    pixels = pixels.to(device)
    torch.manual_seed(config.seed)
    network = make_unet(config.dataset, config.width, config.dropout, config.attention, pixels.shape[1:])
    if start:
        config = replace(config, start=load_start(network, start, config))
    network = network.to(device, memory_format=torch.channels_last)
    on_gpu = device.type == "cuda"
    batches = Batches(pixels, config, rank, world)
    loss: nn.Module = PredictionLoss(network, on_gpu, config.predicts)
    graphs = compile and on_gpu
    if compile:
        loss = compile_loss(loss, batches(0), graphs)

    def write(facts: dict[str, Any]) -> None:
        card = {"dataset": config.dataset, "kind": config.predicts, "training": asdict(config) | facts, **provenance()}
        save_model(network, out, name=run_name(out), schedule=config.schedule, card=card)

    run = Training(
        config,
        config.steps,
        network,
        accelerator.prepare(loss),
        torch.optim.AdamW(network.parameters(), lr=config.lr, fused=on_gpu),
        batches,
        partial(learning_rate, config),
        write,
        clip=config.clip,
        accelerator=accelerator,
        graphs=graphs,
    )
    run_training(run, out, **options)
    return out
