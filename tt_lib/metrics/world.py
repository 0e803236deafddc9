"""The processes of a run: one for each GPU, started by torchrun or ``accelerate launch``, or just this one.

Work is shared in whole batches, and every batch holds the same samples whoever computes it, so any number of processes
gives the same numbers. One process, the main one, decides and writes.
"""

from __future__ import annotations

import atexit
import datetime
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from tt_lib.errors import BadValue
from tt_lib.networks.loop import leave_in_order

T = TypeVar("T")
PATIENCE = datetime.timedelta(hours=6)
"""How long a process waits for another: the main one may tune for a long while."""


@dataclass(frozen=True)
class World:
    """One process among ``size``. All of them must call :meth:`gather`, :meth:`total`, :meth:`decide` and :meth:`wait`.

    Attributes:
        rank: which one, from 0; 0 is the main one, which decides and writes.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's part of the items: every ``size``-th of them."""
        return list(items[self.rank :: self.size])

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank, in every process."""
        if self.size == 1:
            return [value]
        from accelerate.utils import gather_object

        return gather_object([value])

    def total(self, value: Tensor) -> Tensor:
        """The sum of all processes' tensors, in every process. It stays on the device."""
        if self.size == 1:
            return value
        from accelerate.utils import reduce

        return reduce(value, "sum")

    def decide(self, value: T) -> T:
        """The main process's value, in every process."""
        if self.size == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def wait(self) -> None:
        """Wait for all processes: at the end of a command, until the main one has written."""
        self.gather(None)


ALONE = World()


def check_launch() -> None:
    """Raise :class:`BadValue` unless the environment says all that processes need to find each other."""
    names = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    values = {name: os.environ.get(name, "") for name in names}
    numbers = [value.isdecimal() for name, value in values.items() if name != "MASTER_ADDR"]
    if not (all(numbers) and values["MASTER_ADDR"] and int(values["RANK"]) < int(values["WORLD_SIZE"])):
        shown = ", ".join(f"{name}={value!r}" for name, value in values.items())
        raise BadValue(f"no processes can be joined by {shown}; start them with torchrun, or unset WORLD_SIZE")


def join_world(device: str = "auto") -> tuple[World, torch.device] | None:
    """The world that torchrun or ``accelerate launch`` started this process in, and its device; None if it is alone.

    Args:
        device: ``auto``, ``cuda`` (one GPU for each process) or ``cpu``.

    Raises:
        BadValue: one GPU is named for all processes, there are fewer GPUs on this machine than processes, or the
            environment is half that of several processes.
    """
    if (os.environ.get("WORLD_SIZE") or "1") == "1":
        return None
    if device not in ("auto", "cuda", "cpu"):
        raise BadValue(
            f"{device} is one device for {os.environ['WORLD_SIZE']} processes; leave --device out, or give cuda or cpu"
        )
    from accelerate import PartialState

    on_cpu = device == "cpu" or not torch.cuda.is_available()
    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if not on_cpu and here > gpus:
        raise BadValue(f"{here} processes were started on a machine with {gpus} GPUs; start at most one for each")
    check_launch()
    state = PartialState(cpu=on_cpu, timeout=PATIENCE)
    if on_cpu:
        atexit.register(leave_in_order, state)
    return World(state.process_index, state.num_processes), state.device
