"""What a network may predict, and how each becomes the noise eps: the algebra of ``x = alpha x0 + sigma eps``.

====== ============================================ =========================
kind   what the network predicts                    eps
====== ============================================ =========================
eps    the noise (Ho et al. 2020)                   itself
x0     the clean image                              ``(x - alpha x0) / sigma``
v      ``alpha eps - sigma x0`` (Salimans & Ho 2022) ``alpha v + sigma x``
score  ``grad_x log p_t(x)`` (Song et al. 2021)     ``-sigma score``
====== ============================================ =========================
"""

from __future__ import annotations

from torch import Tensor

from tt_lib.errors import choose
from tt_lib.schedules import Schedule
from tt_lib.solvers.arithmetic import along

KINDS = ("eps", "x0", "v", "score")


def to_eps(kind: str, answer: Tensor, x: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """eps [B, ...] of an ``answer`` [B, ...] about the state ``x`` [B, ...] at noise level ``t`` (scalar or [B]).

    Raises:
        BadValue: ``kind`` is none of :data:`KINDS`.
    """
    choose("kind of prediction", kind, KINDS)
    if kind == "eps":
        return answer
    alpha, sigma = along(schedule.alpha(t), x), along(schedule.sigma(t), x)
    if kind == "x0":
        return (x - alpha * answer) / sigma
    if kind == "v":
        return alpha * answer + sigma * x
    return -sigma * answer


def to_v(eps: Tensor, x0: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """``v = alpha eps - sigma x0`` [B, ...] of an eps and its x0 [B, ...], at the level ``alpha``, ``sigma`` (scalars or [B])."""
    return along(alpha, x0) * eps - along(sigma, x0) * x0


def to_x0(eps: Tensor, x: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """The clean image [B, ...] that an eps stands for."""
    return (x - along(schedule.sigma(t), x) * eps) / along(schedule.alpha(t), x)
