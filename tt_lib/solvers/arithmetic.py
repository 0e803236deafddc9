"""The arithmetic that all solvers share: float64 coefficients on states of any dtype."""

from __future__ import annotations

from torch import Tensor


def along(coefficient: Tensor, x: Tensor) -> Tensor:
    """A coefficient ready to multiply the state ``x`` [B, ...].

    ``coefficient`` is a float64 scalar, or [B] with one value for each sample. It is computed in float64
    and rounded once, here, to the dtype of ``x``; a vector gets the trailing axes of ``x``.
    """
    if not coefficient.ndim:
        # A scalar stays on the CPU: it multiplies a state on any device, and a copy would make the CPU wait for the GPU.
        return coefficient.to(x.dtype)
    return coefficient.to(device=x.device, dtype=x.dtype).reshape(-1, *[1] * (x.ndim - 1))
