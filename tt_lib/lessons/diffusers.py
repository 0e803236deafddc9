"""Notebook 09: schedulers of diffusers, call by call, and a network with a known answer for its pipelines."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from torch import Generator, Tensor, nn

from tt_lib.datasets.digits import load_digits
from tt_lib.datasets.images import to_float
from tt_lib.errors import BadValue, choose
from tt_lib.figures.style import BLACK, VERMILLION
from tt_lib.interop import from_scheduler
from tt_lib.predictors import to_v, to_x0
from tt_lib.sampling import Sampler
from tt_lib.schedules import DiscreteSchedule, time_of_index
from tt_lib.timing import Timing
from tt_lib.toy import GaussianMixture, MixturePredictor, ring_2d
from tt_lib.tuning import TuneConfig, tune

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "DDIM": ("DDIMScheduler", {"clip_sample": False}),
    "DDIM, trailing": ("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}),
    "DPM-Solver++": ("DPMSolverMultistepScheduler", {}),
    "UniPC": ("UniPCMultistepScheduler", {}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "PLMS": ("PNDMScheduler", {"skip_prk_steps": True}),
}
"""Schedulers of diffusers whose calls are drawn: the class and what is set otherwise than by default."""
LINEAR = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
"""The noise levels of the networks here; not every scheduler of diffusers has them by default."""
SAMPLES, SUBSTEPS = 32, 8
WIDENED = 0.01
"""Added to each pixel's variance: some pixels of the digits never change, and a Gaussian needs a width."""
ALT = {
    "hook": "Two rows of images from the same noise in five calls. DDIMScheduler: blurred and grey shapes. "
    "Learned: sharp, with full contrast, and the first is a white car.",
    "player": "Times of the calls of six schedulers, one after another: circles where the scheduler asks, crosses "
    "where the tuned network is conditioned.",
    "strip": "Five panels of times against calls in five steps. DDIM, DPM-Solver++ and UniPC make five calls at "
    "falling times. Heun makes nine: after the first they come in pairs at one time. Crosses lie above the first "
    "circle of a pair and below the second, but for the last pair, where they lie in the circles. PLMS makes six, two "
    "of them at one time.",
    "threes": "Two rows of eight small grey images from the same noise. Unguided: different digits. Guided: all of "
    "them are threes, and much alike.",
    "carried": "Three rows of eight digits from the same noise. Untuned, and with the ratios of another spacing: "
    "soft grey digits, hardly different. With the times of another spacing: glaring white strokes with black holes.",
}
"""What the figures show, in words."""


def make_scheduler(name: str) -> Any:
    """A scheduler of diffusers by its name in :data:`SCHEDULERS`.

    Raises:
        BadValue: there is none.
    """
    import diffusers

    choose("scheduler", name, SCHEDULERS)
    kind, options = SCHEDULERS[name]
    return getattr(diffusers, kind)(**LINEAR, **options)


@functools.lru_cache
def toy_timing(name: str, steps: int) -> Timing:
    """The times of a scheduler with ``steps`` steps, tuned by truncation on a ring of eight Gaussians.

    Raises:
        BadValue: no such scheduler, or it cannot make so many steps.
    """
    adapted = from_scheduler(make_scheduler(name), steps)
    ring = ring_2d()
    points = ring.sample(SAMPLES, generator=Generator().manual_seed(1)).float()
    config = TuneConfig(objective="truncation", optimiser="search", substeps=SUBSTEPS)
    predictor = MixturePredictor(ring, adapted.schedule)
    sampler = Sampler(predictor, adapted.schedule, adapted.solver, adapted.grid, (2,), model="ring")
    return tune(sampler, points, config).timing


def draw_calls(axes: Axes, name: str, steps: int = 5) -> None:
    """Nominal time t and conditioning time tau of each call of the network, of :func:`toy_timing`, joined call by call.

    Raises:
        BadValue: see :func:`toy_timing`.
    """
    timing = toy_timing(name, steps)
    calls = range(1, timing.nfe + 1)
    axes.vlines(calls, timing.times, timing.taus, color=VERMILLION, linewidth=1.5)
    axes.plot(calls, timing.times, "o", color=BLACK, markersize=9, fillstyle="none", label="nominal: t")
    axes.plot(calls, timing.taus, "x", color=VERMILLION, markeredgewidth=2, label="conditioned on: τ")
    axes.set(title=name, xlabel="call of the network", ylabel="time (1 = noise)", ylim=(-0.03, 1.05))
    axes.set(xlim=(0.5, 2 * steps - 0.5))  # room for two calls in each step but the last
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def digits_mixture(label: int | None = None) -> GaussianMixture:
    """The 1,500 training digits as ten Gaussians in 64 dimensions, one with mean and covariance of each class.

    Args:
        label: the Gaussian of this class alone.

    Raises:
        BadValue: no such class.
    """
    if label is not None and label not in range(10):
        raise BadValue(f"a digit's label lies between 0 and 9, got {label}")
    images = load_digits("train")
    x = to_float(images.pixels[:]).flatten(1).double()
    parts = [x[images.labels == k] for k in (range(10) if label is None else [label])]
    covariances = [torch.cov(part.T) + WIDENED * torch.eye(64, dtype=torch.float64) for part in parts]
    return GaussianMixture(
        [len(part) for part in parts],
        torch.stack([part.mean(0) for part in parts]),
        covariances=torch.stack([(each + each.T) / 2 for each in covariances]),  # rounding is not symmetric
    )


class MixtureNetwork(nn.Module):
    """Has the exact denoiser of a mixture, and behaves as a ``UNet2DModel`` does: ``network(x, timestep).sample``.

    Whatever a pipeline then gets wrong is the pipeline's fault.

    Args:
        everything: the mixture of all data, in D = C H W dimensions.
        schedule: noise levels that it was "trained" on; timestep n is the time (n + 1) / N.
        shape: (C, H, W) of an image.
        classes: the mixture of each class, for calls with ``class_labels``; the label ``len(classes)`` means no class.
        kind: what it predicts, ``eps``, ``x0`` or ``v``.

    Raises:
        BadValue: an unknown ``kind``.
    """

    def __init__(
        self,
        everything: GaussianMixture,
        schedule: DiscreteSchedule,
        shape: tuple[int, int, int],
        classes: Sequence[GaussianMixture] = (),
        kind: str = "eps",
    ) -> None:
        super().__init__()
        choose("kind of prediction", kind, ("eps", "x0", "v"))
        self.mixtures, self.schedule, self.kind = [*classes, everything], schedule, kind
        self.config = SimpleNamespace(in_channels=shape[0], sample_size=shape[1])
        # Pipelines ask for these two.
        self.dtype, self.device = torch.float32, torch.device("cpu")

    def forward(self, sample: Tensor, timestep: Tensor | float, class_labels: Tensor | None = None) -> Any:
        """The prediction [B, C, H, W] as ``.sample``, for images [B, C, H, W] and a timestep (a number or [B])."""
        x = sample.flatten(1).double()
        t = time_of_index(torch.as_tensor(timestep), self.schedule.levels).expand(len(x))
        labels = torch.full((len(x),), len(self.mixtures) - 1) if class_labels is None else class_labels.expand(len(x))
        prediction = torch.empty_like(x)
        for label in labels.unique().tolist():
            own = labels == label
            prediction[own] = self.mixtures[label].eps(x[own], t[own], self.schedule)
        if self.kind != "eps":
            x0 = to_x0(prediction, x, t, self.schedule)
            prediction = (
                x0 if self.kind == "x0" else to_v(prediction, x0, self.schedule.alpha(t), self.schedule.sigma(t))
            )
        return SimpleNamespace(sample=prediction.reshape(sample.shape).to(sample.dtype))
