"""The gate: a step keeps its tuned tau only if that is better than tau = t beyond noise, on images it was not tuned on.

Whatever the objective was, better means a lower truncation error of the step: the squared distance of its end from a fine
solution's (see :mod:`tt_lib.tuning.objectives`). The images and the noise on them are held out. Each image is tried with
both times, and a one-sided paired t-test over the images asks whether the mean of the differences lies below 0, at the level
:data:`LEVEL` for each evaluation by itself (no correction for their number). A tau that is refused goes back to t.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from scipy.stats import ttest_rel
from torch import Tensor

from tt_lib.tuning.problems import Problem

LEVEL = 0.05
HELD_OUT_NOISE = 777_777
"""Counter of :func:`tt_lib.noise.derive_seed` for the noise on held-out images."""


@torch.no_grad()
def judge(problem: Problem, taus: Sequence[float]) -> list[dict[str, Any]]:
    """A record for each of a problem's S evaluations: whether its tau may stay, and why.

    Args:
        problem: of the truncation objective on held-out images.
        taus: S tuned times.

    Returns:
        ``evaluation`` (its index in the run), ``t``, ``tau``, ``loss_untuned`` and ``loss_tuned`` (means over the images),
        ``p`` of the test (1 where the two times are one) and ``kept``.
    """
    tuned = problem.each(torch.tensor(taus, dtype=torch.float64)).double().cpu()
    untuned = problem.each(problem.t).double().cpu()
    records = []
    for evaluation, t, tau, with_t, with_tau in zip(
        problem.steps, problem.t.tolist(), taus, untuned, tuned, strict=True
    ):
        p = lower(with_tau, with_t)
        records.append({
            "evaluation": evaluation, "t": t, "tau": tau, "loss_untuned": float(with_t.mean()),
            "loss_tuned": float(with_tau.mean()), "p": p, "kept": p < LEVEL,
        })  # fmt: skip
    return records


def lower(a: Tensor, b: Tensor) -> float:
    """p of the one-sided paired t-test that the mean of ``a`` [P] lies below that of ``b`` [P]; 1 where they are equal."""
    if torch.equal(a, b):
        return 1.0
    p = float(ttest_rel(a.numpy(), b.numpy(), alternative="less").pvalue)
    return 1.0 if math.isnan(p) else p
