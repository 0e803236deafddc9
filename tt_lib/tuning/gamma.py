"""Gamma, the one number for each evaluation that Analytic-DDIM and Analytic-DDPM need, measured on a network.

    ``gamma_k = E || eps(x_{t_k}, tau_k) ||^2 / d``,  ``x_t = alpha_t x_0 + sigma_t eps``

(Bao et al. 2022, arXiv 2201.06503, where it is ``beta_bar_n Gamma_n``, and a plain Monte Carlo mean.) For the exact eps
it lies in [0, 1], and ``1 - gamma`` is the mean variance of eps given x_t.

**With tuned times** the network is conditioned on tau_k and not on t_k, its answers have another size, and gamma is
another: it is measured at (t_k, tau_k), never taken from the untuned one. Two things follow:

- While times are tuned gamma is held at its untuned values, so that the loss of a tau is that of one sampler; it is
  measured again for the tuned times.
- ``1 - gamma`` is the error of eps only if eps(x, tau) is its conditional mean, which a shifted tau gives up. The error
  itself, ``E || eps - eps(x, tau) ||^2 / d``, is kept beside gamma as ``residuals``: where the two differ much, the
  variance is not the best one for that mean. (The solvers follow the paper and use gamma.)

**One file for each grid, NFE and timing.** The paper measures gamma at each of the network's levels, once for all
grids. Here grids have nodes between the levels, and a timing makes gamma a function of two times: a table would be
interpolated in both, and one for a sampler is exact and costs no more than its own K evaluations an image.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from tt_lib.engine import check_finite
from tt_lib.errors import BadValue, check_type, check_types
from tt_lib.files import data_folder, file_name, read_record, write_json
from tt_lib.grids import Grid
from tt_lib.noise import GAMMA_FIRST_SEED, LEARN_FIRST_SEED, SampleNoise, check_seeds
from tt_lib.rows import provenance
from tt_lib.sampling import Progress, Sampler
from tt_lib.schedules import along
from tt_lib.timing import NOT_NAMED, UNTUNED, Timing, check_run, check_same, differing_time

FORMAT = "tt-gamma-1"
TUPLES = ("values", "errors", "residuals", "times", "taus", "grid_times")
LEAST_IMAGES = 3
REMEDY = "`tt sample`, `tt tune` and `tt table` measure it where it is missing"


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

    Raises:
        BadValue: as of a timing, for what no measurement gives.
    """

    values: tuple[float, ...]
    errors: tuple[float, ...]
    residuals: tuple[float, ...]
    times: tuple[float, ...]
    taus: tuple[float, ...]
    images: int
    seed: int
    source: str
    model: str
    weights: str
    schedule: str
    grid: str
    grid_times: tuple[float, ...]
    timing: str
    provenance: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self)
        lengths = {name: len(getattr(self, name)) for name in TUPLES[:-1]}
        if len(set(lengths.values())) != 1:
            raise BadValue(f"gamma needs one entry of each for each evaluation, got {lengths}")
        for name in TUPLES[:-1]:
            for value in getattr(self, name):
                check_type(f"each of {name}", value, float)
        if min(self.errors + self.residuals) < 0 or not all(0 < tau <= 1 for tau in self.taus):
            raise BadValue(f"errors and residuals must not be below 0, and taus must lie in (0, 1], got {self}")
        check_run(self.times, Grid(self.grid, self.grid_times), "ddim")

    def check(self, sampler: Sampler) -> None:
        """Raise unless gamma was measured for just this sampler.

        Raises:
            TimingMismatch: naming what gamma was measured for and what it is used with.
        """
        grid, timing = sampler.grid, sampler.timing
        name, taus = (timing.name, timing.taus) if timing else (UNTUNED, grid.times[:-1])
        check_same(
            "gamma was measured",
            {
                "model": (self.model, sampler.model),
                "weights of the model": (self.weights[:16] or NOT_NAMED, sampler.weights[:16] or NOT_NAMED),
                "schedule": (self.schedule, sampler.schedule.name),
                "grid": (f"{self.grid} with {len(self.grid_times) - 1} steps", f"{grid.name} with {grid.steps} steps"),
                "time of the grid": differing_time(self.grid_times, grid.times),
                "timing": (self.timing, name),
                "tau": differing_time(self.taus, taus),
            },
            f"delete its file {gamma_path(self.model, self.grid, len(self.taus), timing)}, or move it away: {REMEDY}",
        )

    def save(self, path: Path | str) -> None:
        """Write it as JSON, atomically."""
        write_json(path, {"format": FORMAT, **asdict(self)})


def load_gamma(path: Path | str) -> Gamma:
    """Read gamma from a file.

    Raises:
        MissingFile, CorruptFile
    """
    return read_record(path, Gamma, {FORMAT: TUPLES}, "file of gamma", "tt sample")


def gamma_path(model: str, grid: str, nfe: int, timing: Timing | None = None) -> Path:
    """Where gamma lies: ``data/gamma/<model>/<grid>-<nfe>-<timing>.json``.

    A tuned timing adds a hash of its taus, so that each of two timings of one name has its own. The solver is not
    named: Analytic-DDIM and Analytic-DDPM ask the same network the same.
    """
    mark = f"{timing.name}-{hashlib.sha256(repr(timing.taus).encode()).hexdigest()[:8]}" if timing else UNTUNED
    return data_folder() / "gamma" / file_name(model) / file_name(f"{grid}-{nfe}-{mark}.json")


@torch.no_grad()
def estimate_gamma(
    sampler: Sampler,
    images: Tensor,
    *,
    source: str = "",
    seed: int = 0,
    batch: int = 64,
    progress: Progress | None = None,
) -> Gamma:
    """Measure gamma at each of a sampler's steps, on noised images.

    Args:
        sampler: of an analytic solver, with its timing if it is tuned. Its predictor runs in float32, since
            ``1 - gamma`` is small at large t.
        images: x0 [P, ...] on the sampler's device, at least 3, in [-1, 1].
        source: where they come from, ``real`` or ``generated``.
        seed: of the noise. Each image has its own stream, so the batch changes nothing but rounding.
        batch: images at a time.
        progress: called with (images done, of all, message).

    Returns:
        gamma, with standard errors of a mean over images. ``|| eps ||^2 / d`` has the known mean 1: the estimate is
        the plain mean less what the noise happens to be off by, times the slope of the regression of one on the other
        (a control variate). Its expectation is the paper's. At large t, where the answer is nearly the noise and
        ``1 - gamma`` is what counts, its error is many times smaller.

    Raises:
        BadValue: fewer than three images, or a batch below 1.
        NotFinite: the network returned NaN or infinity.
    """
    check_seeds(seed, len(images), LEARN_FIRST_SEED - GAMMA_FIRST_SEED)
    if len(images) < LEAST_IMAGES or batch < 1:
        raise BadValue(
            f"gamma needs at least {LEAST_IMAGES} images (its error is taken over them) and a batch of at least 1, "
            f"got {len(images)} and {batch}"
        )
    t = sampler.grid.tensor()[:-1]
    taus = sampler.timing.taus if sampler.timing else sampler.grid.times[:-1]
    tau = torch.tensor(taus, dtype=torch.float64)
    squares = []
    for begin in range(0, len(images), batch):
        x0 = images[begin : begin + batch]
        first = GAMMA_FIRST_SEED + seed + begin
        noise = SampleNoise(range(first, first + len(x0)))
        squares.append(torch.stack([_squares(sampler, x0, noise, t[k], tau[k], k) for k in range(len(t))], 1))
        if progress:
            progress(begin + len(x0), len(images), "gamma")
    answer, eps, residual = torch.cat(squares).unbind(2)  # each [P, K], float64
    a, e = answer - answer.mean(0), eps - eps.mean(0)
    slope = (a * e).sum(0) / e.square().sum(0)
    values = answer.mean(0) - slope * (eps.mean(0) - 1)
    left = (a.square().sum(0) - slope * (a * e).sum(0)).clamp(min=0)
    errors = (left / (len(images) - 2) / len(images)).sqrt()
    return Gamma(
        values=tuple(values.tolist()),
        errors=tuple(errors.tolist()),
        residuals=tuple(residual.mean(0).tolist()),
        times=tuple(t.tolist()),
        taus=tuple(tau.tolist()),
        images=len(images),
        seed=seed,
        source=source,
        model=sampler.model,
        weights=sampler.weights,
        schedule=sampler.schedule.name,
        grid=sampler.grid.name,
        grid_times=sampler.grid.times,
        timing=sampler.timing.name if sampler.timing else UNTUNED,
        provenance=provenance(),
    )


def _squares(sampler: Sampler, x0: Tensor, noise: SampleNoise, t: Tensor, tau: Tensor, index: int) -> Tensor:
    """The mean squares of the answer, of the noise, and of their difference: [B, 3], float64, on the CPU."""
    eps, schedule = noise(x0), sampler.schedule
    answer = sampler.predictor(along(schedule.alpha(t), x0) * x0 + along(schedule.sigma(t), x0) * eps, t, tau)
    check_finite(answer, index, t, tau)
    eps, answer = eps.double(), answer.double()
    return torch.stack([part.square().flatten(1).mean(1) for part in (answer, eps, eps - answer)], 1).cpu()
