"""``tt clock``: what a command costs, as a row."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Annotated

import typer

from tt_lib.cli.shared import place, say


def clock(
    words: Annotated[list[str], typer.Argument(help="The command and its arguments, behind a --.")],
    results: Annotated[
        Path | None, typer.Option(help="File to add the row to [default: data/results/speed.csv].", callback=place)
    ] = None,
) -> None:
    """Run a command and write the seconds that it took as a row of speed.csv; nothing is written if it fails.

    Example: `tt clock -- make test`
    """
    import torch

    from tt_lib.errors import BadValue
    from tt_lib.results import SPEED_COLUMNS, SPEED_KEY, results_folder, write_rows
    from tt_lib.speed import seconds, speed_row

    def job() -> None:
        try:
            ended = subprocess.run(words, check=False)
        except OSError as error:
            raise BadValue(f"cannot start {words[0]!r}: {error.strerror}; give a command and its arguments") from error
        if ended.returncode:
            raise BadValue(f"{' '.join(words)} ended with code {ended.returncode}; a failed run has no row")

    row = speed_row(" ".join(words), seconds(job, torch.device("cpu")), None, "s", torch.device("cpu"))
    path = results or results_folder() / "speed.csv"
    write_rows(path, [row], SPEED_COLUMNS, SPEED_KEY)
    say(f"{row['what']}: {row['ours']} s, written to {path}")
