"""What multistep solvers share: the orders of their steps and, in the noise prediction, a loop and its polynomials.

In ``y = x / alpha`` and ``rho = sigma / alpha`` the probability-flow ODE is ``dy = eps d rho``. A linear multistep
solver puts a mixture of the last answers in place of the integral: with the newest answer ``eps_0``,

``x_s = alpha_s (x_t / alpha_t + sum_j C_j eps_j)``,  ``sum_j C_j = rho_s - rho_t``.

The solvers differ only in the weights ``C_j``.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import cast

import numpy as np
import torch
from torch import Tensor

from tt_lib.engine import Request, Solution
from tt_lib.schedules import Schedule
from tt_lib.solvers.arithmetic import along

Weights = Callable[[Tensor, Tensor, Schedule], Tensor]
"""(times of the last answers [m] or [m, B], newest first; s, above 0; schedule) -> ``C`` [m] or [m, B]."""


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


def linear_multistep(
    x: Tensor, times: Tensor, schedule: Schedule, order: int, weights: Weights, final: str = "full", after: int = 0
) -> Solution:
    """One evaluation a step and the last answers in each, as many as :func:`orders_of_steps` says.

    A step that ends at clean data, ``s = 0``, takes the newest answer alone and returns its
    ``x0 = (x - sigma eps) / alpha``: no extrapolation may add to the network's last word.
    """
    orders = orders_of_steps(len(times) - 1, order, final, after)
    answers: list[Tensor] = []
    for k, (t, s) in enumerate(pairwise(times)):
        eps = yield Request(x, t)
        answers = [eps, *answers][: orders[k]]
        nodes = times[: k + 1].flip(0)[: len(answers)]
        # A made-up s where the true one is 0 keeps the weights finite until they are replaced.
        C = weights(nodes, torch.where(s > 0, s, t / 2), schedule)
        C = torch.where(s > 0, C, newest_alone(nodes) * -schedule.rho(t))
        x = along(schedule.alpha(s) / schedule.alpha(t), x) * x
        for c, answer in zip(schedule.alpha(s) * C, answers, strict=True):
            x = x + along(c, x) * answer
    return x


def newest_alone(nodes: Tensor) -> Tensor:
    """1 for the first node and 0 for the others, shaped like ``nodes``."""
    first = torch.zeros_like(nodes)
    first[0] = 1
    return first


def lagrange(nodes: Tensor, places: Tensor) -> Tensor:
    """[m, *places]: the Lagrange polynomials of ``nodes`` [m] or [m, B] at ``places`` [...] or [..., B]."""
    polynomials = []
    for j, own in enumerate(nodes):
        value = torch.ones_like(places)
        for k, other in enumerate(nodes):
            if k != j:
                value = value * (places - other) / (own - other)
        polynomials.append(value)
    return torch.stack(polynomials)


def gauss(points: int) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights on [0, 1], exact for polynomials up to degree ``2 points - 1``."""
    nodes, weights = np.polynomial.legendre.leggauss(points)
    return torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)


def scaled(weights: Tensor, factor: Tensor) -> Tensor:
    """Weights [m] times a scalar, or times [B]: then [m, B]."""
    return cast(Tensor, torch.tensordot(weights, factor, dims=0))
