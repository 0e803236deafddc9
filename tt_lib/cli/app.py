"""What every command shares: the app, errors as one line, the progress bar, common options.

Nothing here imports PyTorch before a command runs, so that ``tt --help`` answers at once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from typer.core import TyperGroup

from tt_lib.errors import BadValue, TTError
from tt_lib.files import check_png, check_writable

if TYPE_CHECKING:
    import torch

    from tt_lib.metrics.reference import Metric
    from tt_lib.metrics.world import World
    from tt_lib.sampling import Progress

console = Console()

DataOption = Annotated[
    Path | None,
    typer.Option("--data", help="The CIFAR-10 folder or archive (else $TT_CIFAR10, else data/cifar10)."),
]
DeviceOption = Annotated[str, typer.Option(help="auto (the GPU if there is one), cpu, cuda or cuda:1.")]
FastFeaturesOption = Annotated[
    bool,
    typer.Option(
        "--fast-features",
        help="Inception in float16, and compiled with --compile: several times faster on a GPU, and its distance is "
        "a little different.",
    ),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace a finished result.")]


def check_seed(seed: int) -> int:
    """The seed, if it fits torch's 64 bits."""
    if not -(2**63) <= seed < 2**63:
        raise BadValue(f"a seed has at most 64 bits, with its sign, got {seed}; give a smaller one")
    return seed


SeedOption = Annotated[int, typer.Option(help="Everything drawn at random follows from it.", callback=check_seed)]


def place(path: Path | None) -> Path | None:
    """The path of an option, if it can be written to: asked before the work, for files that are written after it."""
    if path is not None:
        check_writable(path)
    return path


def png_place(path: Path | None) -> Path | None:
    """:func:`place` for a figure."""
    if path is not None:
        check_png(path)
    return place(path)


def say(text: str) -> None:
    """Print a line as it is: its brackets are no markup, and a path in it is not broken at column 80."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


class OneLineErrors(TyperGroup):
    """Prints the library's own errors as one line and exits with 2; other errors are bugs and keep their traceback."""

    def invoke(self, ctx: Any):
        try:
            return super().invoke(ctx)
        except TTError as error:
            console.print(f"[bold red]error:[/] {type(error).__name__}: ", end="", highlight=False)
            say(" ".join(str(error).split()))
            raise typer.Exit(2) from error


def make_app() -> typer.Typer:
    """The typer application, without commands."""
    return typer.Typer(
        cls=OneLineErrors,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="markdown",
        pretty_exceptions_enable=False,
        help="**TimeTuner**: sample a frozen diffusion network in few steps, tune the times it is conditioned on, "
        "and measure what that does. Start with `tt demo`.",
    )


def pick_device(name: str) -> torch.device:
    """The device that a name means; ``auto`` takes the GPU if there is one.

    Raises:
        BadValue: no such device on this machine.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise BadValue(
            f"device {name!r} cannot be used here ({str(error).splitlines()[0]}); try auto or cpu"
        ) from error
    return device


def faster(metric: Metric, fast: bool, batch: int, compile: bool) -> Metric:
    """A metric as it is, or with the faster form of its features (see :mod:`tt_lib.metrics.features`)."""
    from tt_lib.metrics.features import make_fast

    return replace(metric, features=make_fast(metric.features, batch, compile)) if fast else metric


def pick_devices(name: str) -> tuple[World, torch.device]:
    """The processes that torchrun or ``accelerate launch`` started, and this one's device; else this process alone.

    Raises:
        BadValue: see :func:`pick_device` and :func:`tt_lib.metrics.world.join_world`.
    """
    from tt_lib.metrics.world import ALONE, join_world

    return join_world(name) or (ALONE, pick_device(name))


@contextmanager
def progress_bar(title: str) -> Iterator[Progress]:
    """A progress bar with the time left; yields ``report(done, total, message)``.

    Only the first process of a distributed run shows it, and where the output is no terminal (a log
    file) a plain line is printed about every ten seconds instead.
    """
    if os.environ.get("RANK", "0") != "0":
        yield lambda done, total, message: None
    elif not console.is_terminal:
        yield _plain_lines(title)
    else:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[message]}"),
        )
        with Bars(*columns, console=console) as bars:
            task = bars.add_task(title, total=None, message="")
            yield lambda done, total, message: bars.update(task, completed=done, total=total, message=message)


def _plain_lines(title: str, every: float = 10.0) -> Progress:
    """A report that prints a line about every ``every`` seconds, and the time left since the first report."""
    begun = time.monotonic()
    last, first = begun - every, (0, begun)

    def report(done: int, total: int, message: str) -> None:
        nonlocal last, first
        now = time.monotonic()
        if last < begun:
            first = (done, now)
        if now - last >= every or done == total:
            last = now
            speed = (done - first[0]) / max(now - first[1], 1e-9)
            left = f"{(total - done) / speed:.0f} s left" if speed > 0 else "time left unknown"
            print(f"{title}: {done}/{total}, {now - begun:.0f} s, {left}  {message}", flush=True)

    return report
