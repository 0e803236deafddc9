"""One variable for the size of a lesson: the same cells run in a test, on a laptop and on a GPU.

``TT_SCALE`` is ``ci`` (seconds, for the tests; what the stored outputs are of), ``laptop`` (minutes on a CPU) or ``full`` (a GPU).
It changes sizes only, never what is computed.
"""

from __future__ import annotations

import os
from typing import TypeVar

from tt_lib.errors import choose

SCALES = ("ci", "laptop", "full")
T = TypeVar("T")


def scale() -> str:
    """The scale of this run, from the environment variable ``TT_SCALE``; ``ci`` where it is not set.

    Raises:
        BadValue: it is none of :data:`SCALES`.
    """
    chosen = os.environ.get("TT_SCALE", "ci")
    choose("TT_SCALE", chosen, SCALES)
    return chosen


def scaled(ci: T, laptop: T, full: T) -> T:
    """The one of three sizes that this run's :func:`scale` asks for."""
    return {"ci": ci, "laptop": laptop, "full": full}[scale()]
