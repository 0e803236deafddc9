"""How a number of evaluations becomes steps, and which order each step has.

A *plan* says how many steps a solver makes for a number of network evaluations (NFE), and with which options. The
engine counts evaluations; a plan only says what to ask it for, and tests compare the two. Solvers with several
evaluations a step reach any NFE by making some steps of lower order.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from torch import Tensor

from tt_lib.errors import BadValue

Plan = Callable[[int], tuple[int, dict[str, Any]]]
"""NFE -> (K, the steps of the grid; options of the solver)."""

FINAL = ("full", "lower")
"""The order of a multistep solver's last steps, see :func:`orders_of_steps`."""


def check_nfe(nfe: int, smallest: int, solver: str = "a sampler") -> None:
    """Raise :class:`BadValue` unless ``nfe`` is at least ``smallest``."""
    if nfe < smallest:
        many = "network evaluation" if smallest == 1 else "network evaluations"
        raise BadValue(f"{solver} needs at least {smallest} {many}, got {nfe}; ask for {smallest} or more")


def one_each(nfe: int) -> tuple[int, dict[str, Any]]:
    """One evaluation for each step."""
    check_nfe(nfe, 1)
    return nfe, {}


def highest_first(nfe: int, highest: int) -> tuple[int, dict[str, Any]]:
    """Steps of the highest order, one of the order that is left over, and one of order 1 into clean data.

    10 evaluations are ``222211`` or ``3331``, 12 are ``222221`` or ``33321``. DPM-Solver-fast's rule (Lu et al. 2022,
    arXiv 2206.00927) for steps that end above t = 0 is the same but where ``nfe % 3 == 2``: its last step is then of
    order 2, which one into clean data cannot be.
    """
    check_nfe(nfe, 1)
    full, rest = divmod(nfe - 1, highest)
    orders = str(highest) * full + (str(rest) if rest else "") + "1"
    return len(orders), {"orders": orders}


def only_third(nfe: int) -> tuple[int, dict[str, Any]]:
    """Steps of order 3 alone, and one of order 1 into clean data: 4, 7, 10, ... evaluations."""
    if nfe < 4 or nfe % 3 != 1:
        raise BadValue(
            f"dpm-solver-3 makes 3 evaluations in each step and 1 in the last, so 4, 7, 10, ... in all, got {nfe}; "
            "ask for one of these numbers, or take dpm-solver-fast, which makes any number"
        )
    return highest_first(nfe, 3)


def runge_kutta_start(nfe: int) -> tuple[int, dict[str, Any]]:
    """K + 9 evaluations for K steps of PNDM: three steps make four each. K is at least 4."""
    check_nfe(nfe, 13, "pndm")
    return nfe - 9, {}


def single_steps(times: Tensor, orders: str, highest: int) -> list[tuple[Tensor, Tensor, int]]:
    """The steps of a single-step solver: start, end and order of each.

    Args:
        times: [K + 1] or [K + 1, B].
        orders: one digit for each step, such as ``"3321"``; empty: the highest order but for a step into clean data.
        highest: the highest order of the solver.

    Raises:
        BadValue: another number of digits than of steps, an order that the solver has not, or one above 1 into t = 0.
    """
    steps, to_data = len(times) - 1, bool((times[-1] == 0).any())
    orders = orders or str(highest) * (steps - to_data) + "1" * to_data
    if len(orders) != steps:
        raise BadValue(f"orders {orders!r} are {len(orders)}, one for each step, and the grid has {steps} steps")
    if any(digit not in "123"[:highest] for digit in orders):
        raise BadValue(f"orders must be digits from 1 to {highest}, got {orders!r}")
    if to_data and orders[-1] != "1":
        raise BadValue(f"the step into clean data, t = 0, must be of order 1, got orders {orders!r}; end them with 1")
    return [(t, s, int(digit)) for (t, s), digit in zip(pairwise(times), orders, strict=True)]


def orders_of_steps(steps: int, order: int, final: str | int = "full") -> list[int]:
    """The order of each step of a multistep solver: the number of evaluations that it combines.

    Step k = 0, 1, .. has ``min(order, k + 1)``, for there are no more evaluations. With ``final="lower"`` the orders
    also fall to 3, 2, 1 at the end of the grid. A step of order 1 errs by h^2, so that a solver that ends with one
    converges with order 2 at most: it is for few steps, where a long last step extrapolates badly.

    The authors' code of DPM-Solver and UniPC and diffusers call it ``lower_order_final``, on by default: diffusers'
    DPM-Solver and DEIS heed it where there are fewer than 15 steps, its UniPC always. Here it is asked for by name
    and applies whatever the number of steps.

    Args:
        final: ``full``, ``lower``, or a number: as ``lower`` where so many steps of the grid follow these ``steps``.
    """
    if final == "full":
        return [min(order, k + 1) for k in range(steps)]
    end = steps + (0 if final == "lower" else int(final))
    return [min(order, k + 1, end - k) for k in range(steps)]
