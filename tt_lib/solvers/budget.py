"""How a solver spends a budget: network evaluations -> steps of a grid, and the options that go with them.

The engine counts evaluations; these rules only say what to ask it for, and tests compare the two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tt_lib.errors import BadValue

Plan = Callable[[int], tuple[int, dict[str, Any]]]
"""Evaluations -> (K, the steps of the grid, options of the solver)."""


def check_nfe(nfe: int, smallest: int, solver: str) -> None:
    """Raise :class:`BadValue` unless ``nfe`` is at least ``smallest``."""
    if nfe < smallest:
        raise BadValue(f"{solver} needs at least {smallest} network evaluations, got {nfe}; ask for {smallest} or more")


def one_each(nfe: int) -> tuple[int, dict[str, Any]]:
    """One evaluation for each step."""
    check_nfe(nfe, 1, "a sampler")
    return nfe, {}
