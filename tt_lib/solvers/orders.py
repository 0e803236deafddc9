"""How a solver spends a budget: network evaluations -> steps of a grid, and the options that go with them.

The engine counts evaluations; these rules only say what to ask it for, and tests compare the two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

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


def orders_of_2(nfe: int) -> tuple[int, dict[str, Any]]:
    """Steps of order 2 with two evaluations, then of order 1 where the budget is even, and 1 into clean data: 10 -> 222211."""
    check_nfe(nfe, 1, "a sampler")
    twos, one = divmod(nfe - 1, 2)
    return _orders("2" * twos + "1" * one)


def orders_of_3(nfe: int) -> tuple[int, dict[str, Any]]:
    """Steps of order 3 with three evaluations, one of the order that is left over, and 1 into clean data: 12 -> 33321.

    DPM-Solver-fast's rule (Lu et al. 2022, arXiv 2206.00927) for steps that end above t = 0 is the same but
    where ``nfe % 3 == 2``: its last step is then of order 2, which one into clean data cannot be.
    """
    check_nfe(nfe, 1, "a sampler")
    threes, rest = divmod(nfe - 1, 3)
    return _orders("3" * threes + (str(rest) if rest else ""))


def only_3(nfe: int) -> tuple[int, dict[str, Any]]:
    """Steps of order 3 alone, and 1 into clean data: 4, 7, 10, ... evaluations."""
    if nfe < 4 or nfe % 3 != 1:
        raise BadValue(
            f"dpm-solver-3 makes 3 evaluations a step and 1 into clean data: 4, 7, 10, ..., not {nfe}; "
            "ask for one of these, or take dpm-solver-fast, which spends any number"
        )
    return orders_of_3(nfe)


def _orders(before_the_last: str) -> tuple[int, dict[str, Any]]:
    orders = before_the_last + "1"
    return len(orders), {"orders": orders}


def read_orders(orders: str, times: Tensor, highest: int) -> list[int]:
    """The order of each step of a grid, from an option such as ``"3321"``.

    Args:
        orders: one digit for each step; empty: the highest order but for a step into clean data.
        times: [K + 1] or [K + 1, B].
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
    return [int(digit) for digit in orders]


# FOLDED tt_lib.solvers.multistep
# What multistep solvers share: the orders of their steps and, in the noise prediction, a loop and its polynomials.
#
# In ``y = x / alpha`` and ``rho = sigma / alpha`` the probability-flow ODE is ``dy = eps d rho``. A linear multistep
# solver puts a mixture of the last answers in place of the integral: with the newest answer ``eps_0``,
#
# ``x_s = alpha_s (x_t / alpha_t + sum_j C_j eps_j)``,  ``sum_j C_j = rho_s - rho_t``.
#
# The solvers differ only in the weights ``C_j``.
#


FINAL = ("full", "lower")
"""The order of a multistep solver's last steps, see :func:`orders_of_steps`."""


def orders_of_steps(steps: int, order: int, final: str = "full", after: int = 0) -> list[int]:
    """The order of each step of a multistep solver, which is the number of answers that it uses.

    Step k = 0, 1, .. of n has ``min(order, k + 1)``, for there are no more answers, and with ``final="lower"``
    ``min(order, k + 1, n - k)``: the last step is of order 1, the last but one of order 2. A step of order 1 errs
    by h^2, so that a solver that ends with one converges with order 2 at most: it is for few steps, where a long
    last step extrapolates badly.

    The authors' code of DPM-Solver and UniPC and diffusers call it ``lower_order_final``, on by default: diffusers'
    DPM-Solver and DEIS heed it where there are fewer than 15 steps, its UniPC always. Here it is asked for by name
    and applies whatever the number of steps.

    Args:
        after: how many steps of the whole grid follow these ``steps``: n is the sum of both.
    """
    left = [steps + after - k if final == "lower" else order for k in range(steps)]
    return [min(order, k + 1, left[k]) for k in range(steps)]
