"""Solvers with several evaluations a step and no memory: DPM-Solver-2 and -3, DPM-Solver++(2S) and Heun's method.

DPM-Solver is of Lu et al. 2022 (arXiv 2206.00927), DPM-Solver++ of arXiv 2211.01095, and Heun's method has the form of
EDM (Karras et al. 2022, arXiv 2206.00364). Each takes the option ``orders``, one digit for each step (see
:func:`tt_lib.solvers.orders.single_steps`). A step of order 1 is DDIM's in all of them; so is the step into clean data,
where lambda is infinite and no network is trained. From alpha = 0 there is no midpoint in lambda: the first three
cannot begin there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tt_lib.engine import Request, Solution
from tt_lib.predictors import to_eps, to_x0
from tt_lib.schedules import Schedule, along
from tt_lib.solvers.ddim import first_order
from tt_lib.solvers.dpmpp import first_order_in_x0
from tt_lib.solvers.orders import single_steps


def dpm_solver_2(x: Tensor, times: Tensor, schedule: Schedule, noise, *, orders: str = "") -> Solution:
    """DPM-Solver-2, algorithm 1, with ``r_1 = 1/2``: m is half way from t to s in lambda,

    ``u = (alpha_m / alpha_t) x - sigma_m (e^{h/2} - 1) eps(x, t)``,
    ``x_s = (alpha_s / alpha_t) x - sigma_s (e^h - 1) eps(u, m)``.
    """
    for t, s, order in single_steps(times, orders, 2):
        d = yield Request(x, t)
        x = first_order(x, d, t, s, schedule) if order == 1 else (yield from _second_order(x, d, t, s, schedule))
    return x


def dpm_solver_3(x: Tensor, times: Tensor, schedule: Schedule, noise, *, orders: str = "") -> Solution:
    """DPM-Solver-3, algorithm 2, with ``r_1 = 1/3, r_2 = 2/3``:

    ``u_1 = (alpha_1 / alpha_t) x - sigma_1 (e^{r_1 h} - 1) e_0``, ``D_1 = e(u_1, t_1) - e_0``,
    ``u_2 = (alpha_2 / alpha_t) x - sigma_2 (e^{r_2 h} - 1) e_0
    - sigma_2 (r_2 / r_1) ((e^{r_2 h} - 1) / (r_2 h) - 1) D_1``, ``D_2 = e(u_2, t_2) - e_0``,
    ``x_s = (alpha_s / alpha_t) x - sigma_s (e^h - 1) e_0 - (sigma_s / r_2) ((e^h - 1) / h - 1) D_2``.

    Steps of order 2 are DPM-Solver-2's.
    """
    r_1, r_2 = 1 / 3, 2 / 3
    for t, s, order in single_steps(times, orders, 3):
        d = yield Request(x, t)
        if order == 1:
            x = first_order(x, d, t, s, schedule)
        elif order == 2:
            x = yield from _second_order(x, d, t, s, schedule)
        else:
            e_0, h = to_eps(schedule.direction, d, x, t, schedule), schedule.lam(s) - schedule.lam(t)
            t_1, t_2 = _between(schedule, t, s, r_1), _between(schedule, t, s, r_2)
            u_1 = first_order(x, d, t, t_1, schedule)
            d_1 = yield Request(u_1, t_1, 1)
            e_1 = to_eps(schedule.direction, d_1, u_1, t_1, schedule)
            b = schedule.sigma(t_2) * r_2 / r_1 * (torch.expm1(r_2 * h) / (r_2 * h) - 1)
            u_2 = first_order(x, d, t, t_2, schedule) - along(b, x) * (e_1 - e_0)
            d_2 = yield Request(u_2, t_2, 2)
            e_2 = to_eps(schedule.direction, d_2, u_2, t_2, schedule)
            b = schedule.sigma(s) / r_2 * (torch.expm1(h) / h - 1)
            x = first_order(x, d, t, s, schedule) - along(b, x) * (e_2 - e_0)
    return x


def dpmpp_2s(x: Tensor, times: Tensor, schedule: Schedule, noise, *, orders: str = "") -> Solution:
    """DPM-Solver++(2S), algorithm 1, with ``r = 1/2``: as DPM-Solver-2, in the data prediction:

    ``u = (sigma_m / sigma_t) x - alpha_m (e^{-h/2} - 1) x0(x, t)``,
    ``x_s = (sigma_s / sigma_t) x - alpha_s (e^{-h} - 1) x0(u, m)``.
    """
    for t, s, order in single_steps(times, orders, 2):
        d = yield Request(x, t)
        if order == 1:
            x = first_order(x, d, t, s, schedule)
            continue
        m = _between(schedule, t, s, 1 / 2)
        u = first_order(x, d, t, m, schedule)
        d_m = yield Request(u, m, 1)
        x = first_order_in_x0(x, to_x0(d_m, u, m, schedule), t, s, schedule)
    return x


def heun(x: Tensor, times: Tensor, schedule: Schedule, noise, *, orders: str = "") -> Solution:
    """Heun's method, EDM's algorithm 1, in y and w, where ``dy / dw`` is the schedule's direction d (eps over rho):

    ``y' = y + (w_s - w_t) d_1``, ``y_s = y + (w_s - w_t) (d_1 + d_2) / 2``, ``d_2 = d(c_s y', s)``.

    As in the paper the step into clean data is Euler's, so K steps cost 2 K - 1 evaluations.
    """
    for t, s, order in single_steps(times, orders, 2):
        d = yield Request(x, t)
        if order == 2:
            end = yield Request(first_order(x, d, t, s, schedule), s, 1)
            d = (d + end) / 2
        x = first_order(x, d, t, s, schedule)
    return x


def _second_order(x: Tensor, d: Tensor, t: Tensor, s: Tensor, schedule: Schedule) -> Solution:
    """DPM-Solver-2's step from its first answer d on: ``x_s = (alpha_s / alpha_t) x - sigma_s (e^h - 1) eps(u, m)``."""
    m = _between(schedule, t, s, 1 / 2)
    u = first_order(x, d, t, m, schedule)
    d_m = yield Request(u, m, 1)
    eps, a = to_eps(schedule.direction, d_m, u, m, schedule), schedule.alpha(s) / schedule.alpha(t)
    return along(a, x) * x + along(schedule.sigma(s) - a * schedule.sigma(t), x) * eps


def _between(schedule: Schedule, t: Tensor, s: Tensor, fraction: float) -> Tensor:
    """The time at a fraction of the way from t to s in lambda."""
    return schedule.time_of_lam(torch.lerp(schedule.lam(t), schedule.lam(s), fraction))
