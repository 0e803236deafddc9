"""Gamma, the one number for each evaluation that Analytic-DDIM and Analytic-DDPM need: measured on a network, kept in a file.

    ``gamma_k = E || eps(x_{t_k}, tau_k) ||^2 / d``,  ``x_t = alpha_t x_0 + sigma_t eps``

(Bao et al. 2022, arXiv 2201.06503, where it is ``beta_bar_n Gamma_n``, and a plain Monte Carlo mean.) For the exact eps it lies in
[0, 1], and ``1 - gamma`` is the mean variance of eps given x_t.

**With tuned times** the network is conditioned on tau_k and not on t_k, its answers have another size, and gamma is another: it is
measured at (t_k, tau_k), never taken from the untuned one. Two things follow:

- While times are tuned gamma is held at its untuned values, so that the loss of a tau is that of one sampler; it is
  measured again for the taus that were found.
- ``1 - gamma`` is the error of eps only if eps(x, tau) is its conditional mean, which a shifted tau gives up. The error
  itself, ``E || eps - eps(x, tau) ||^2 / d``, is kept beside gamma as ``residuals``: where the two differ much, the variance is not
  the best one for that mean. (The solvers follow the paper and use gamma.)

**One file for each grid, NFE and timing.** The paper measures gamma at each of the network's levels, once for all grids. Here
grids have nodes between the levels, and a timing makes gamma a function of two times: a table would be interpolated in
both, and one for a sampler is exact and costs no more than its own K evaluations an image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from tt_lib.engine import check_finite
from tt_lib.errors import BadValue, TimingMismatch
from tt_lib.files import data_folder, read_record, write_json
from tt_lib.grids import Grid
from tt_lib.noise import SampleNoise
from tt_lib.predictors import Predictor
from tt_lib.schedules import Schedule, along
from tt_lib.timing import UNTUNED, Timing

FORMAT = "tt-gamma-1"
FIRST_SEED = 3_000_000_000
"""The noise of image i has the seed FIRST_SEED + seed + i: none that a sample or a generated image starts from."""
TUPLES = ("values", "errors", "residuals", "times", "taus", "grid_times")


@dataclass(frozen=True)
class Gamma:
    """gamma of one sampler's evaluations, with where it comes from.

    Attributes:
        values: gamma of each evaluation.
        errors: their standard errors.
        residuals: ``E || eps - eps(x_t, tau) ||^2 / d``; ``1 - gamma`` where eps(x_t, tau) is exact.
        times, taus: of each evaluation.
        images: how many there were.
        seed: of their noise.
        source: where they come from, ``real`` or ``generated``.
        model, weights, schedule: the network's name, its weights' sha256 and its schedule's name.
        grid, grid_times: the grid's name and its K + 1 times.
        timing: the timing's name.
        provenance: versions, date, commit and command.
    """

    values: tuple[float, ...]
    errors: tuple[float, ...]
    residuals: tuple[float, ...]
    times: tuple[float, ...]
    taus: tuple[float, ...]
    images: int
    seed: int = 0
    source: str = ""
    model: str = ""
    weights: str = ""
    schedule: str = ""
    grid: str = ""
    grid_times: tuple[float, ...] = ()
    timing: str = UNTUNED
    provenance: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in TUPLES[:-1]}
        if len(set(lengths.values())) != 1:
            raise BadValue(f"gamma needs one entry of each for each evaluation, got {lengths}")

    def check(self, *, model: str, weights: str, schedule: str, grid: Grid, timing: Timing | None) -> None:
        """Raise unless gamma was measured for just this sampler (weights count where both sides name them).

        Raises:
            TimingMismatch: naming what gamma was measured for and what it is used with.
        """
        self._same("model", self.model, model)
        if self.weights and weights:
            self._same("weights of the model", self.weights[:16], weights[:16])
        self._same("schedule", self.schedule, schedule)
        self._same("grid", f"{self.grid} with {len(self.grid_times) - 1} steps", f"{grid.name} with {grid.steps} steps")
        self._same_times(f"a grid {self.grid!r} with t", self.grid_times, grid.times)
        name, taus = (timing.name, timing.taus) if timing else (UNTUNED, self.times)
        self._same("timing", self.timing, name)
        self._same_times(f"a timing {name!r} with tau", self.taus, taus)

    def _same(self, what: str, mine: str, used: str) -> None:
        if mine != used:
            raise self._mismatch(f"{what} {mine!r}", f"{what} {used!r}")

    def _same_times(self, what: str, mine: Sequence[float], used: Sequence[float]) -> None:
        if len(mine) != len(used):
            raise self._mismatch(f"{len(mine)} times", f"{len(used)}")
        for k, (a, b) in enumerate(zip(mine, used, strict=True)):
            if abs(a - b) > 1e-9:
                raise self._mismatch(f"{what}_{k} = {a:.9g}", f"{b:.9g}")

    @staticmethod
    def _mismatch(mine: str, used: str) -> TimingMismatch:
        return TimingMismatch(f"gamma was measured for {mine} and is used with {used}; measure it with `tt analytic`")

    def save(self, path: Path | str) -> None:
        """Write it as JSON, atomically."""
        write_json(path, {"format": FORMAT, **asdict(self)})


def load_gamma(path: Path | str) -> Gamma:
    """Read gamma from a file.

    Raises:
        MissingFile, CorruptFile
    """
    return read_record(path, Gamma, FORMAT, TUPLES, "file of gamma", "tt analytic --force")


def gamma_path(model: str, grid: str, nfe: int, timing: Timing | None = None) -> Path:
    """Where gamma lies: ``data/gamma/<model>/<grid>-<nfe>-<timing>.json``.

    A tuned timing adds a hash of its taus, so that each of two timings of one name has its own. The solver is not named:
    Analytic-DDIM and Analytic-DDPM ask the same network the same.
    """
    mark = f"{timing.name}-{hashlib.sha256(repr(timing.taus).encode()).hexdigest()[:8]}" if timing else UNTUNED
    return data_folder() / "gamma" / model.replace("/", "--") / f"{grid}-{nfe}-{mark}.json"


@torch.no_grad()
def estimate_gamma(
    predictor: Predictor,
    schedule: Schedule,
    times: Sequence[float] | Tensor,
    images: Tensor,
    *,
    taus: Sequence[float] | Tensor | None = None,
    seed: int = 0,
    batch: int = 64,
    progress: Callable[[int, int, str], None] | None = None,
) -> Gamma:
    """Measure gamma at each of a sampler's evaluations, on noised images.

    Args:
        predictor: ``(x, t, tau) -> eps``; in float32, since ``1 - gamma`` is small at large t.
        schedule: its noise schedule.
        times: t of each evaluation, in (0, 1].
        images: x0 [P, ...] on the predictor's device, at least 3, in [-1, 1].
        taus: the conditioning time of each evaluation; None: t.
        seed: of the noise. Each image has its own stream, so the batch changes nothing but rounding.
        batch: images at a time.
        progress: called with (images done, of all, message).

    Returns:
        gamma, not yet named after a model, grid and timing. Sums are kept in float64, and the standard errors are those of a
        mean over images. The estimate is the plain mean less what the noise itself is known to be off by: its expectation is
        the paper's, but at large t, where the answer is nearly the noise and ``1 - gamma`` is what counts, its error is many
        times smaller.

    Raises:
        BadValue: fewer than three images, a batch below 1, or another number of taus than of times.
        NotFinite: the network answered NaN or infinity.
    """
    t = torch.as_tensor(times, dtype=torch.float64)
    tau = t if taus is None else torch.as_tensor(taus, dtype=torch.float64)
    if t.ndim != 1 or tau.shape != t.shape:
        raise BadValue(f"gamma needs one tau for each time, got the shapes {list(tau.shape)} and {list(t.shape)}")
    if len(images) < 3 or batch < 1:
        raise BadValue(
            f"gamma needs at least 3 images (its error is taken over them) and a batch of at least 1, "
            f"got {len(images)} and {batch}"
        )
    moments = _Moments()
    for begin in range(0, len(images), batch):
        x0 = images[begin : begin + batch]
        noise = SampleNoise(range(FIRST_SEED + seed + begin, FIRST_SEED + seed + begin + len(x0)))
        squares = [_squares(predictor, schedule, x0, noise, t[k], tau[k], k) for k in range(len(t))]
        moments.add(torch.stack(squares, 1))
        if progress:
            progress(begin + len(x0), len(images), "gamma")
    values, errors = moments.controlled()
    return Gamma(
        values=tuple(values.tolist()),
        errors=tuple(errors.tolist()),
        residuals=tuple(moments.mean[:, 2].tolist()),
        times=tuple(t.tolist()),
        taus=tuple(tau.tolist()),
        images=len(images),
        seed=seed,
    )


def name_gamma(
    gamma: Gamma,
    *,
    model: str,
    weights: str,
    schedule: str,
    grid: Grid,
    timing: Timing | None,
    source: str,
    provenance: dict[str, str],
) -> Gamma:
    """gamma with the names of the sampler that it was measured for."""
    return replace(
        gamma,
        model=model,
        weights=weights,
        schedule=schedule,
        grid=grid.name,
        grid_times=grid.times,
        timing=timing.name if timing else UNTUNED,
        source=source,
        provenance=provenance,
    )


def _squares(
    predictor: Predictor, schedule: Schedule, x0: Tensor, noise: SampleNoise, t: Tensor, tau: Tensor, index: int
) -> Tensor:
    """The mean squares of the answer, of the noise, and of their difference: [B, 3], float64, on the CPU."""
    eps = noise(x0)
    answer = predictor(along(schedule.alpha(t), x0) * x0 + along(schedule.sigma(t), x0) * eps, t, tau)
    check_finite(answer, index, t, tau)
    eps, answer = eps.double(), answer.double()
    return torch.stack([part.square().flatten(1).mean(1) for part in (answer, eps, eps - answer)], 1).cpu()


class _Moments:
    """Mean and scatter over rows, streamed (Chan, Golub & LeVeque's update, which does not cancel).

    A row [K, 3] holds for each evaluation what :func:`_squares` gives.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.scatter = torch.zeros((), dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """Take in ``rows`` [B, K, 3]."""
        mean, total = rows.mean(0), self.count + len(rows)
        step, centred = mean - self.mean, rows - mean
        between = step[:, :, None] * step[:, None, :] * (self.count * len(rows) / total)
        self.scatter = self.scatter + torch.einsum("bki,bkj->kij", centred, centred) + between
        self.mean = self.mean + step * (len(rows) / total)
        self.count = total

    def controlled(self) -> tuple[Tensor, Tensor]:
        """gamma and its standard error, each [K], with the noise as control variate.

        ``|| eps ||^2 / d`` has the known mean 1, so what it happens to be off by is taken from gamma, times the slope of the
        regression of one on the other: ``gamma = <q> - beta (<r> - 1)``.
        """
        slope = self.scatter[:, 0, 1] / self.scatter[:, 1, 1]
        left = (self.scatter[:, 0, 0] - slope * self.scatter[:, 0, 1]).clamp(min=0)
        value = self.mean[:, 0] - slope * (self.mean[:, 1] - 1)
        return value, (left / (self.count - 2) / self.count).sqrt()
