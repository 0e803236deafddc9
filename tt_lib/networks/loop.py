"""One training loop, for the UNet and for the feature classifier.

A run can be killed at any moment and goes on from its last checkpoint as if nothing had happened. Everything random in
a step follows from (seed, step), so that nothing random has to be saved. What a run writes is an average of its
weights. Several processes may share each batch. Only steps that write a row of the training log wait for the GPU.
"""

from __future__ import annotations

import datetime
import math
import os
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tt_lib.errors import BadValue, CorruptFile, NotFinite
from tt_lib.files import atomic_path, check_writable, refuse_overwrite
from tt_lib.networks.config import Config
from tt_lib.networks.running import cudnn_flags
from tt_lib.noise import derive_seed
from tt_lib.rows import TRAINING_COLUMNS, TRAINING_KEY, device_name, provenance, results_folder, write_rows

if TYPE_CHECKING:
    from accelerate import Accelerator

LEAVING = datetime.timedelta(seconds=20)
"""How long a process waits for another to leave."""
CHECKPOINT = "checkpoint.pt"
LOG_ROWS = 200
"""About how many rows a run adds to the training log."""


@dataclass
class Training:
    """What is trained, and how.

    Attributes:
        config: the settings.
        steps: of the whole run.
        network: it lies on its device. Its float tensors (weights, statistics of norms) are saved and averaged.
        loss: a module around ``network``, called with a batch; returns a scalar.
        optimizer: of the network's weights.
        batches: this process's batch of a step.
        learning_rate: of a step.
        write: called in the first process at the end, when ``network`` holds the average; writes it as a folder whose
            card has the ``images_seen``, ``devices`` and ``elapsed_s`` that it is given.
        clip: largest norm of the gradients; 0 does not clip.
        accelerator: the processes, if there may be several.
        graphs: whether ``loss`` replays CUDA graphs.
    """

    config: Config
    steps: int
    network: nn.Module
    loss: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Callable[[int], tuple[Tensor, ...]]
    learning_rate: Callable[[int], float]
    write: Callable[[dict[str, Any]], Any]
    clip: float = 0.0
    accelerator: Accelerator | None = None
    graphs: bool = False


def run_name(out: Path) -> str:
    """The name of a run: that of its folder, which ``.`` has too."""
    return Path(os.path.abspath(out)).name


def refuse_finished(out: Path, weights: str, force: bool) -> None:
    """Raise AlreadyDone if ``out`` holds a finished network, unless ``force``, and BadValue if it cannot be written.

    A checkpoint means an unfinished run, which goes on whatever else lies in the folder.
    """
    refuse_overwrite(out / weights, force or (out / CHECKPOINT).exists())
    check_writable(out / CHECKPOINT)


def run_training(
    run: Training,
    out: Path,
    *,
    checkpoint_seconds: float = 60.0,
    results: Path | str | None = None,
    stop_after: int | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> None:
    """Bring a run to its end; if ``out`` has a checkpoint, from there.

    Args:
        out: the folder; its name is the run's name. ``checkpoint.pt`` goes away when the run is finished.
        checkpoint_seconds: seconds between checkpoints.
        results: the training log (default ``data/results/training.csv``).
        stop_after: stop after this many steps of this call, with a checkpoint.
        progress: called with (step, steps, message) about once a second.

    Raises:
        BadValue: the checkpoint belongs to other settings, or a number is out of its range.
        CorruptFile: the checkpoint cannot be read.
        NotFinite: the loss became NaN or infinite.
    """
    if stop_after is not None and stop_after < 1:
        raise BadValue(f"stop_after must be at least 1 step, got {stop_after}")
    if not checkpoint_seconds >= 0:
        raise BadValue(f"checkpoint_seconds must be 0 (after each step) or above, got {checkpoint_seconds}")
    config, optimizer, device = run.config, run.optimizer, next(run.network.parameters()).device
    rank, world = (run.accelerator.process_index, run.accelerator.num_processes) if run.accelerator else (0, 1)
    main = rank == 0
    log = results or results_folder() / "training.csv"
    devices, origin = f"{world} x {device_name(device)}", provenance()
    weights = list(run.network.parameters())
    tensors = list(run.network.state_dict().values())
    current = [value for value in tensors if value.is_floating_point()]
    average = [value.clone() for value in current]

    state = _resume(out / CHECKPOINT, config, device, [*tensors, *average], optimizer)
    first, rows, counted = state["step"], state["rows"], state["counted"]
    running = torch.tensor(state["running"], device=device)
    last = run.steps if stop_after is None else min(run.steps, first + stop_after)
    row_every = max(1, run.steps // LOG_ROWS)
    saved = shown = row_time = time.monotonic()
    begun, row_step = row_time - state["elapsed_s"], first

    def save(done: int, now: float) -> None:
        place = {"step": done, "elapsed_s": now - begun, "rows": rows, "running": running.item(), "counted": counted}
        state = {"config": asdict(config), **place, "weights": tensors, "average": average}
        with atomic_path(out / CHECKPOINT) as temporary:
            torch.save(state | {"optimizer": optimizer.state_dict()}, temporary)
        write_rows(log, rows, TRAINING_COLUMNS, TRAINING_KEY)

    with cudnn_flags(benchmark=True):
        for step in range(first, last):
            for group in optimizer.param_groups:
                group["lr"] = run.learning_rate(step)
            # Dropout draws from torch's own generators: seeded here, a resumed run draws what it would have drawn.
            torch.manual_seed(derive_seed(derive_seed(config.seed, step), rank + 1))
            if run.graphs:  # the memory of the last step's loss and gradients may be written again
                torch.compiler.cudagraph_mark_step_begin()
            loss = run.loss(*run.batches(step))
            loss.backward()
            if run.clip:
                torch.nn.utils.clip_grad_norm_(weights, run.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            done = step + 1
            update_average(average, current, config.ema_half_life, done)
            running, counted = running + loss.detach(), counted + 1

            if done % row_every == 0 or done == run.steps:
                mean = running / counted
                value = (run.accelerator.reduce(mean, "mean") if run.accelerator else mean).item()
                if not math.isfinite(value):
                    remedy = f"delete {out / CHECKPOINT}, lower lr (now {config.lr}) and start again"
                    raise NotFinite(f"the training loss is {value} at step {done}; {remedy}")
                now = time.monotonic()
                rate = (done - row_step) * config.batch / (now - row_time)
                row = {"run": run_name(out), "step": done, "images": done * config.batch, "loss": round(value, 6)}
                row |= {"images_per_s": round(rate, 1), "devices": devices, "elapsed_s": round(now - begun, 1)}
                rows.append(row | origin)
                running, counted, row_step, row_time = torch.zeros_like(running), 0, done, now
            now = time.monotonic()
            if main and progress and (now - shown > 1 or done == run.steps):
                shown = now
                latest = f"loss {rows[-1]['loss']:.4f}, {rows[-1]['images_per_s']:.0f} images/s" if rows else ""
                progress(done, run.steps, latest)
            if main and now - saved > checkpoint_seconds and done < last:
                saved = now
                save(done, now)

    if main:
        save(last, time.monotonic())
        if last == run.steps:
            torch._foreach_copy_(current, average)
            seen = {"images_seen": run.steps * config.batch}
            run.write(seen | {"devices": devices, "elapsed_s": rows[-1]["elapsed_s"]})
            (out / CHECKPOINT).unlink()
    if run.accelerator:
        run.accelerator.wait_for_everyone()


def _resume(path, config, device, tensors, optimizer) -> dict[str, Any]:
    """Load a checkpoint into the tensors and the optimiser, if there is one; returns where the run stands."""
    if not path.exists():
        return {"step": 0, "elapsed_s": 0.0, "rows": [], "running": 0.0, "counted": 0}
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        then, now = state["config"], asdict(config)
    except Exception as error:  # torch names no single type for a damaged file
        raise CorruptFile(f"{path} cannot be read ({error}); delete it to start the run again") from error
    changed = {name: (then.get(name), now.get(name)) for name in then | now if then.get(name) != now.get(name)}
    if changed:
        remedy = "restore them or choose another --out"
        raise BadValue(f"{path} was written with other settings (file, now): {changed}; {remedy}")
    with torch.no_grad():
        for target, source in zip(tensors, [*state["weights"], *state["average"]], strict=True):
            target.copy_(source)
    optimizer.load_state_dict(state["optimizer"])
    return state


@torch.no_grad()
def update_average(average: list[Tensor], current: list[Tensor], half_life: float, done: int) -> None:
    """EMA of the weights after ``done`` steps (1 or more), in place; its half-life is a fixed fraction of them.

    A half-life that grows with the run forgets the first, bad weights (Karras et al. 2024, arXiv 2312.02696,
    section 3.1) and needs no choice of a decay for a run's length.
    """
    torch._foreach_lerp_(average, current, 1 - 0.5 ** (1 / (half_life * done)))


def compile_loss(loss: nn.Module, batch: tuple[Tensor, ...], graphs: bool) -> nn.Module:
    """The loss compiled for batches of one shape; with ``graphs``, forward and backward replay one CUDA graph each.

    Then the CPU starts two graphs a step in place of a thousand kernels. The gradients of a step lie where the next
    step's will: they must be used and set to None in between. Where torch cannot record the graphs for ``batch``, there
    is a warning and the loss is compiled without. To be called before the loss is shared by processes.
    """
    # One graph for the whole network: the all-reduce of 36 MB is not worth splitting it for overlap.
    torch._dynamo.config.optimize_ddp = False
    if not graphs:
        return torch.compile(loss, dynamic=False)  # type: ignore[return-value]
    compiled = torch.compile(loss, dynamic=False, mode="reduce-overhead")
    try:
        with cudnn_flags(benchmark=True):  # what is recorded now is what training replays
            for _ in range(3):  # warm up, record, replay
                torch.compiler.cudagraph_mark_step_begin()
                compiled(*batch).backward()
                loss.zero_grad(set_to_none=True)
    except Exception as error:  # torch names no single type
        warnings.warn(f"no CUDA graphs: {error}", stacklevel=2)
        loss.zero_grad(set_to_none=True)
        torch._dynamo.reset()
        return compile_loss(loss, batch, graphs=False)
    return compiled  # type: ignore[return-value]


def leave_in_order(state: Any) -> None:
    """Leave the processes' group, on a CPU while Python is still whole, one after another and the main process last.

    Gloo's threads that outlive Python can abort a process that has done its work (pytorch pull request 179291), and so
    can connections that both sides close at once. After an error nobody waits longer than :data:`LEAVING`.

    Args:
        state: accelerate's, of the processes. A group that has been left already is no error.
    """
    if not torch.distributed.is_initialized():
        return
    if state.device.type != "cpu":
        state.destroy_process_group()
        return
    store, rank = torch.distributed.distributed_c10d._get_default_store(), state.process_index
    with suppress(RuntimeError):
        if rank == 0:
            store.set("tt/done", "")
        store.wait(["tt/done" if rank == state.num_processes - 1 else f"tt/left/{rank + 1}"], LEAVING)
    state.destroy_process_group()
    with suppress(RuntimeError):
        store.set(f"tt/left/{rank}", "")
