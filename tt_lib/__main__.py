"""``python -m tt_lib`` is ``tt`` (what ``accelerate launch -m`` and torchrun need)."""

from tt_lib.cli import app

if __name__ == "__main__":
    app()
