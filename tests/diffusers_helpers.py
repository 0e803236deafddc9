"""What the tests of diffusers share: its loop, ours, and a network that both sample with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tt_lib.engine import drive
from tt_lib.interop import Adapted
from tt_lib.predictors import EpsPredictor


def gap(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape or (2, 1, 4, 4), generator=torch.Generator().manual_seed(seed), dtype=dtype)


def as_images(x: Tensor) -> Tensor:
    """What pipelines return for a sample."""
    return (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)


def network(x: Tensor, n: Any, scale: float = 300.0) -> Tensor:
    """Not linear, of the size of x, and it depends on the time."""
    return torch.sin(x + torch.as_tensor(n, dtype=x.dtype).reshape(-1, *[1] * (x.ndim - 1)) / scale)


@torch.no_grad()
def loop(
    scheduler: Any,
    net: Any = network,
    steps: int | None = None,
    state: Tensor | None = None,
    first: int = 0,
    draws: bool = False,
    **options: Any,
) -> Tensor:
    """How pipelines sample, with the noise of seeds 1, 2, ..., and the end as a state of the schedule."""
    if steps:
        scheduler.set_timesteps(steps)
    if state is None:
        state = draw() * getattr(scheduler, "init_noise_sigma", 1)
    scaled = getattr(scheduler, "scale_model_input", lambda x, n: x)
    for seed, n in enumerate(scheduler.timesteps[first:], 1):
        extra = options | ({"variance_noise": draw(seed=seed)} if draws else {})
        answer = net(scaled(state, n), n)
        state = scheduler.step(getattr(answer, "sample", answer), n, state, **extra).prev_sample
    # Where the noise does not end at 0, a scheduler that keeps x / alpha returns just that.
    keeps = scaled(torch.ones(()), scheduler.timesteps[-1]) != 1 and not type(scheduler).__name__.startswith("EDM")
    return state / (1 + scheduler.sigmas[-1] ** 2) ** 0.5 if keeps else state


def engine(
    adapted: Adapted, net: Any = network, start: Tensor | None = None, taus: Any = None, predictor: Any = None
) -> Tensor:
    """The same by our engine, by default at the times that diffusers' network is given."""
    seeds = iter(range(1, 100))
    predictor = predictor or EpsPredictor(net, adapted.schedule, kind=adapted.kind)
    start = adapted.start(draw()) if start is None else start
    solution = adapted.solver(start, adapted.grid, adapted.schedule, lambda x: draw(seed=next(seeds)))
    return drive(solution, predictor, adapted.taus if taus is None else taus).x


def moved(adapted: Adapted) -> Any:
    """A timing that no two evaluations share a ratio in."""
    ratios = [0.9 + 0.02 * (k % 7) for k in range(adapted.nfe)]
    taus = [max(0.001, t * ratio) for t, ratio in zip(adapted.times, ratios, strict=True)]
    return adapted.timing(taus, name="moved")
