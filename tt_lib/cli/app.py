"""What every command shares: the app, errors as one line, the progress bar, common options.

Nothing here imports PyTorch before a command runs, so that ``tt --help`` answers at once.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text
from typer.core import TyperGroup

from tt_lib.errors import BadValue, TTError
from tt_lib.files import check_suffix, check_writable

if TYPE_CHECKING:
    import torch

    from tt_lib.metrics.reference import Metric
    from tt_lib.metrics.world import World
    from tt_lib.sampling import Progress

console = Console()
UsageError: Any = typer.BadParameter.__base__
"""What typer raises for unknown and missing options. Versions of typer differ in the module that it is in."""

DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="Where the images of --dataset lie, if it is a name. For cifar10: the official files, pictures by class, "
        "train.npz or train-*.parquet [default: $TT_CIFAR10, else data/cifar10].",
    ),
]
DatasetOption = Annotated[
    str,
    typer.Option(
        help="Real images: cifar10, digits, an .npz file, or a folder of pictures (directly, or in train/ and test/)."
    ),
]
DeviceOption = Annotated[str, typer.Option(help="auto (the GPU if there is one), cpu, cuda or cuda:1.")]
FastFeaturesOption = Annotated[
    bool,
    typer.Option(
        "--fast-features",
        help="On a GPU run the feature networks that enlarge images faster, in float16; --compile compiles them. That "
        "changes a distance in ImageNet features by about a thousandth, and an FID perhaps by more.",
    ),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace a finished result.")]


def check_seed(seed: int) -> int:
    """The seed, if there is one such for users."""
    from tt_lib.noise import check_seeds

    check_seeds(seed)
    return seed


SeedOption = Annotated[int, typer.Option(help="Seed of everything that is drawn at random.", callback=check_seed)]


def place(suffix: str) -> Callable[[Path | None], Path | None]:
    """The callback of an option that names a file to write: before any work, its name and its place are looked at."""

    def check(path: Path | None) -> Path | None:
        if path is not None:
            check_suffix(path, suffix)
            check_writable(path)
        return path

    return check


def rows_option(name: str) -> Any:
    """The option of the file that a command adds its rows to."""
    return typer.Option(help=f"CSV file to add the rows to [default: data/results/{name}].", callback=place(".csv"))


def work_place(folder: Path) -> Path:
    """The callback of an option that names a folder for states and locks."""
    check_writable(folder / "state")
    return folder


def results_file(given: Path | None, name: str, columns: Sequence[str]) -> Path:
    """The file that a command adds rows to, by default ``name`` in ``data/results``.

    Asked before the work: it can be written, and the rows that are there can be read.
    """
    from tt_lib.rows import read_rows, results_folder

    path = given or results_folder() / name
    check_writable(path)
    read_rows(path, columns)
    return path


def say(text: str) -> None:
    """Print a line as it is: its brackets are no markup, and a path in it is not broken at column 80."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


class OneLineErrors(TyperGroup):
    """Prints errors that a user can mend as one line on stderr; other errors are bugs and keep their traceback.

    Those are the library's own, a wrong option, a file or a disk that fails, and memory that does not suffice.
    """

    def main(self, *arguments: Any, **options: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            # A letter that the terminal's encoding lacks is shown as its number, and ends nothing.
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        return super().main(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        stops: list[int] = []

        def stop(number: int, frame: Any) -> None:
            stops.append(number)
            signal.default_int_handler(number, frame)

        before = signal.signal(signal.SIGINT, stop)
        # diffusers passes it to the Hub; a user can mend nothing there.
        warnings.filterwarnings("ignore", message="The `local_dir_use_symlinks` argument")
        try:
            check_words(sys.argv[1:])
            return super().invoke(ctx)
        except (KeyboardInterrupt, Exception) as error:
            # Stopped within an import, NumPy and torch turn Ctrl-C into errors of their own.
            if stops or isinstance(error, KeyboardInterrupt):
                say_error("stopped; start the same command again, and it resumes from what it has stored")
                raise typer.Exit(130) from error
            text = describe(error)
            if text is None:
                raise
            say_error(text)
            raise typer.Exit(2) from error
        finally:
            signal.signal(signal.SIGINT, before)


def check_words(words: Sequence[str]) -> None:
    """Raise BadValue for a word that is no text in this locale: it could be neither shown nor written into a row."""
    for word in words:
        if any("\ud800" <= letter <= "\udfff" for letter in word):
            raise BadValue(f"{word!a} is not valid text in this locale; set PYTHONUTF8=1, or choose a name in UTF-8")


def describe(error: Exception) -> str | None:
    """What to tell the user of an error that is his to mend; None for a bug, and for a reader that has gone away."""
    if isinstance(error, BrokenPipeError):
        return None
    if isinstance(error, TTError):
        return str(error)
    if isinstance(error, UsageError):
        text = error.format_message().rstrip(".")
        given = value_of(getattr(error, "param", None))
        return f"{text}{'' if given is None else f', got {given!r}'}{'' if text[-1] == '?' else ';'} see --help"
    if isinstance(error, OSError):
        return f"{error}; remove the cause and start the same command again"
    # torch has a type of its own for a GPU's memory, and for a CPU's only words.
    words = ("out of memory", "can't allocate memory")
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(each in str(error) for each in words)
    ):
        first = (str(error).splitlines() or [""])[0]
        return f"not enough memory ({first}); give a smaller --batch, or fewer samples or images"
    return None


def value_of(option: Any) -> str | None:
    """The word that was typed behind an option; None if it was not given."""
    names, words = getattr(option, "opts", ()), sys.argv[1:]
    for word, following in zip(words, [*words[1:], None], strict=True):
        name, equals, value = word.partition("=")
        if name in names:
            return value if equals else following
    return None


def say_error(text: str) -> None:
    """Print one line on stderr."""
    line = Text.assemble(("error:", "bold red"), " ", " ".join(text.split()))
    Console(stderr=True).print(line, soft_wrap=True)


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
        if name.partition(":")[0] not in ("cpu", "cuda"):  # others lack float64 or memory of their own
            raise RuntimeError("it is neither cpu nor cuda")
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:
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
            left = "done" if done == total else left
            print(f"{title}: {done}/{total}, {now - begun:.0f} s, {left}  {message}", flush=True)

    return report
