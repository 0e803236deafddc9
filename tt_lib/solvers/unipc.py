"""UniPC (Zhao, Bai, Rao, Zhou & Lu 2023, *UniPC: A Unified Predictor-Corrector Framework*, arXiv 2302.04867)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from tt_lib.engine import Request, Solution
from tt_lib.predictors import to_x0
from tt_lib.schedules import Schedule, along
from tt_lib.solvers.dpmpp import first_order_in_x0
from tt_lib.solvers.orders import orders_of_steps

VARIANTS = ("bh1", "bh2")


def unipc(
    x: Tensor,
    times: Tensor,
    schedule: Schedule,
    noise,
    *,
    order: int = 3,
    variant: str = "bh2",
    final: str | int = "full",
) -> Solution:
    """UniPC-p, the predictor UniP-p and the corrector UniC-p in the data prediction, one evaluation a step.

    From t to s, with ``h = lambda_s - lambda_t``, the data prediction ``m_0`` at t and others ``m_i`` at times of
    ``lambda_t + r_i h``, both UniP and UniC are

    ``x_s = (sigma_s / sigma_t) x_t - alpha_s (e^{-h} - 1) m_0 - alpha_s B(h) sum_i a_i (m_i - m_0) / r_i``.

    ``B(h)`` is ``-h`` (``bh1``) or ``e^{-h} - 1`` (``bh2``), and ``a`` solves the paper's conditions of order,

    ``sum_i r_i^{n-1} a_i = n! h_n / B(h)``,  ``n = 1 .. (how many a)``,
    ``h_1 = (e^{-h} - 1) / (-h) - 1``, ``h_{n+1} = h_n / (-h) - 1 / (n+1)!``;

    a single ``a_1`` is 1/2, whatever h (UniP-2 and UniC-1, as in the authors' code). Only there do the two
    variants differ: a solution of all conditions is proportional to 1 / B(h), which cancels.

    UniP-p has the p - 1 evaluations before t as its ``m_i``. The evaluation at the predicted ``x_s`` is then the
    additional ``m_i`` of UniC-p, with ``r = 1``, and UniC-p's result replaces ``x_s``. The evaluation is not repeated
    at the corrected state; it becomes the history of the next step. So every step but the last is corrected, with one
    evaluation a step, as in the authors' code. Orders grow 1, 2, .. p at the start. UniPC-p is of order p + 1
    where the start is fine enough.

    A step to clean data, ``s = 0``, is UniP-1 and returns ``m_0``. From ``alpha = 0`` lambda is ``-inf``: that
    evaluation has no part in later steps, and its own step is corrected with ``B = e^{-h} - 1 = -1`` in both variants,
    by the mean of the two data predictions. With ``final="lower"`` the orders also fall to
    3, 2, 1 at the end (see ``orders_of_steps``), and UniC has the order of the UniP that it corrects, as in the
    authors' code, which does so by default.
    """
    history: list[tuple[Tensor, Tensor]] = []  # the data prediction and lambda, newest first
    start, t_before = x, times[0]
    for p, (t, s) in zip(orders_of_steps(len(times) - 1, order, final), pairwise(times), strict=True):
        d = yield Request(x, t)
        new = (to_x0(d, x, t, schedule), schedule.lam(t))
        if history:
            x = _step(start, [*history, new], t_before, t, schedule, variant)  # UniC
        history = [new, *history][:p]
        start, t_before = x, t
        x = _step(x, history, t, s, schedule, variant)  # UniP
    return x


def _step(
    x: Tensor, data: Sequence[tuple[Tensor, Tensor]], t: Tensor, s: Tensor, schedule: Schedule, variant: str
) -> Tensor:
    """UniP and UniC are one formula: from t to s with data predictions and their lambdas, t's first."""
    (m_0, lam_t), *others = data
    x = first_order_in_x0(x, m_0, t, s, schedule)
    if not others:
        return x
    # Where s is 0 h is infinite and the differences have no part, and where alpha_t is 0 r is 1: any finite h will do.
    begins = lam_t.isinf()
    base = torch.where(begins, 0.0, lam_t)
    h = torch.where((s > 0) & ~begins, schedule.lam(s) - base, 1.0)
    far = torch.stack([lam.isinf() for _, lam in others], dim=-1)
    # Any r that no other node has will do for the one at infinity, which is left out below.
    places = [torch.where(lam.isinf(), 2 * h, torch.where(begins, h, lam - base)) for _, lam in others]
    r = torch.stack([place / h for place in places], dim=-1)
    B = torch.where(begins, -1.0, -h if variant == "bh1" else torch.expm1(-h))
    weights = _a(r, h, B) / r
    if bool(far.any()):
        near = [i for i in range(r.shape[-1]) if not bool(far[..., i].any())]
        fewer = torch.zeros_like(r)
        if near:
            fewer[..., near] = _a(r[..., near], h, B) / r[..., near]
        weights = torch.where(far.any(-1, keepdim=True), fewer, weights)
    factors = torch.where(s > 0, schedule.alpha(s) * B, 0.0)[..., None] * weights
    for factor, (m, _) in zip(factors.unbind(-1), others, strict=True):
        x = x - along(factor, x) * (m - m_0)
    return x


def _a(r: Tensor, h: Tensor, B: Tensor) -> Tensor:
    """[..., q]: the solution of the q conditions of order, for ``r`` [..., q]."""
    q = r.shape[-1]
    if q == 1:
        return torch.full_like(r, 0.5)
    conditions = []
    factorial = 1
    h_n = torch.expm1(-h) / -h - 1
    for n in range(1, q + 1):
        conditions.append(h_n * factorial / B)
        factorial *= n + 1
        h_n = h_n / -h - 1 / factorial
    powers = torch.stack([r**n for n in range(q)], dim=-2)
    return torch.linalg.solve(powers, torch.stack(conditions, dim=-1))
