"""A workbench: one loaded model with all that tuning and measuring it takes, and samplers made from it by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from tt_lib.baselines import CONSTANT, read_correction
from tt_lib.datasets import load_dataset, to_float
from tt_lib.errors import BadValue, TimingMismatch, choose
from tt_lib.grids import make_grid
from tt_lib.metrics.features import Features
from tt_lib.metrics.statistics import FeatureStatistics
from tt_lib.networks.running import make_predictor
from tt_lib.networks.unet import Model, load_model
from tt_lib.noise import SampleNoise
from tt_lib.predictors import Chunked, EpsPredictor
from tt_lib.rows import provenance
from tt_lib.sampling import Sampler, generate_images
from tt_lib.solvers.layout import layout
from tt_lib.solvers.registry import make_solver
from tt_lib.study.cells import IMAGE_SOURCES, Cell
from tt_lib.timing import Timing
from tt_lib.tuning import TuneConfig, TuneResult, tune
from tt_lib.tuning.gamma import Gamma, estimate_gamma, gamma_path, load_gamma, name_gamma
from tt_lib.tuning.joint import JointConfig, tune_joint

GENERATED_FIRST_SEED = 1_000_000_000
"""Images made for tuning use seeds from here on, so that none is also measured."""
HELD_OUT_FIRST_SEED, HELD_OUT = 1_500_000_000, 256
"""The same for images that a gate judges by, and how many it has."""


@dataclass
class Bench:
    """A model ready to be sampled, tuned and measured.

    Attributes:
        model: the loaded network.
        predictor: for sampling, without gradients.
        tuner_predictor: for tuning with gradients: float32, not compiled.
        device: where all of it runs.
        batch: samples at a time.
    """

    model: Model
    predictor: EpsPredictor | Chunked
    tuner_predictor: EpsPredictor
    device: torch.device
    batch: int
    images: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    def sampler(self, cell: Cell, timing: Timing | None = None, gamma: Gamma | None = None) -> Sampler:
        """The sampler of a cell, with the correction that the cell names; a timing, and a gamma, are checked against it.

        A solver that needs gamma takes the stored one, if none is given. Where there is none it says so when it is run.

        Raises:
            TimingMismatch: a timing or a gamma of something else.
            BadValue: a gamma for a solver that takes none.
        """
        sampler, model = self._without_gamma(cell, timing), self.model
        if not sampler.solver.needs_gamma:
            if gamma is not None:
                raise BadValue(
                    f"solver {cell.solver} takes no gamma; leave it out, or choose analytic-ddim or analytic-ddpm"
                )
            return sampler
        path = gamma_path(model.name, cell.grid, cell.nfe, timing)
        gamma = load_gamma(path) if gamma is None and path.exists() else gamma
        if gamma is None:
            return sampler
        gamma.check(
            model=model.name, weights=model.digest, schedule=model.schedule.name, grid=sampler.grid, timing=timing
        )
        options = {**sampler.solver.options, "gamma": gamma.values}
        return replace(sampler, solver=replace(sampler.solver, options=options))

    def measure_gamma(
        self,
        cell: Cell,
        timing: Timing | None,
        images: Tensor,
        source: str,
        *,
        seed: int = 0,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> Gamma:
        """Measure gamma for a cell's sampler, at its taus (see :mod:`tt_lib.tuning.gamma`).

        Raises:
            BadValue: the cell's solver takes none.
        """
        sampler, model = self._without_gamma(cell, timing), self.model
        if not sampler.solver.needs_gamma:
            raise BadValue(f"solver {cell.solver} takes no gamma; choose analytic-ddim or analytic-ddpm")
        gamma = estimate_gamma(
            self.tuner_predictor,
            model.schedule,
            sampler.grid.times[:-1],
            images,
            taus=timing.taus if timing else None,
            seed=seed,
            batch=self.batch,
            progress=progress,
        )
        return name_gamma(
            gamma,
            model=model.name,
            weights=model.digest,
            schedule=model.schedule.name,
            grid=sampler.grid,
            timing=timing,
            source=source,
            provenance=provenance(),
        )

    def ensure_gamma(
        self,
        cell: Cell,
        timing: Timing | None,
        images: Callable[[], Tensor],
        source: str,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> None:
        """Measure and store gamma for a cell's sampler unless it needs none or its own is stored.

        Args:
            images: gives the images, if they are wanted.
        """
        try:
            solver = self.sampler(cell, timing).solver
            if not solver.needs_gamma or solver.options.get("gamma"):
                return
        except TimingMismatch:
            # A stored gamma of other weights goes, as a stored timing does. A timing of something else is an error.
            self._without_gamma(cell, timing)
        gamma = self.measure_gamma(cell, timing, images(), source, progress=progress)
        gamma.save(gamma_path(self.model.name, cell.grid, cell.nfe, timing))

    def _without_gamma(self, cell: Cell, timing: Timing | None) -> Sampler:
        model = self.model
        solver, steps = cell.make_solver().for_nfe(cell.nfe)
        return Sampler(
            self.predictor,
            model.schedule,
            solver,
            make_grid(cell.grid, steps, model.schedule),
            model.shape,
            timing,
            model.name,
            self.device,
            model.digest,
            read_correction(cell.timing),
        )

    def tuning_images(self, source: str, count: int, dataset: str, data: str | None) -> Tensor:
        """``count`` images [count, C, H, W] in [-1, 1] on the device: real training images, or the network's own.

        Real ones are drawn without replacement by a generator with seed 0; the network's own are made in 20
        steps of DPM-Solver++(2M), untuned, from seeds that no measurement uses.
        """
        choose("source of images", source, IMAGE_SOURCES)
        if count < 1:
            raise BadValue(f"tuning needs at least 1 image, got {count}")
        if (source, count) not in self.images:
            if source == "real":
                images = self._real(range(count), dataset, data)
            else:
                images = self._generated(range(GENERATED_FIRST_SEED, GENERATED_FIRST_SEED + count))
            if images.shape[1:] != self.model.shape:
                raise BadValue(
                    f"{self.model.name} takes images of {list(self.model.shape)}, those of {dataset} are "
                    f"{list(images.shape[1:])}; give the data set it was trained on (--dataset), or --source generated"
                )
            self.images[source, count] = images.to(self.device)
        return self.images[source, count]

    def held_out_images(self, source: str, tuned_on: int, dataset: str, data: str | None) -> Tensor:
        """:data:`HELD_OUT` images [.., C, H, W] for a gate, none of them among the ``tuned_on`` that :meth:`tuning_images` gives."""
        choose("source of images", source, IMAGE_SOURCES)
        if source == "real":
            return self._real(range(tuned_on, tuned_on + HELD_OUT), dataset, data).to(self.device)
        return self._generated(range(HELD_OUT_FIRST_SEED, HELD_OUT_FIRST_SEED + HELD_OUT))

    def _real(self, places: range, dataset: str, data: str | None) -> Tensor:
        """The training images at ``places`` of one shuffle."""
        images = load_dataset(dataset, "train", data)
        if places.stop > len(images):
            raise BadValue(f"{places.stop} images were asked for, {images.name} has {len(images)}; ask for fewer")
        rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[places.start : places.stop]
        return to_float(images.pixels[rows])

    def _generated(self, seeds: range) -> Tensor:
        schedule = self.model.schedule
        times = torch.tensor(make_grid("logsnr", 20, schedule).times, dtype=torch.float64)
        noise = SampleNoise(seeds).start(self.model.shape)
        return generate_images(self.predictor, make_solver("dpmpp-2m"), times, schedule, noise.to(self.device))

    def tune(
        self,
        cell: Cell,
        config: TuneConfig,
        images: Tensor,
        source: str,
        state: Path | None = None,
        progress: Callable[[int, int, str], None] | None = None,
        held_out: Tensor | None = None,
    ) -> TuneResult:
        """Tune the timing of a cell's sampler; ``held_out`` are the images of a gate (see :meth:`held_out_images`)."""
        sampler = self.sampler(cell)
        # A search needs no gradient, so it may use the fast predictor.
        predictor = self.predictor if config.optimiser == "search" else self.tuner_predictor
        return tune(
            predictor,
            self.model.schedule,
            sampler.solver,
            sampler.grid,
            images,
            config,
            model=self.model.name,
            weights=self.model.digest,
            source=source,
            held_out=held_out,
            state=state,
            progress=progress,
        )

    def tune_joint(
        self,
        cell: Cell,
        features: Features | None,
        reference: FeatureStatistics | None,
        config: JointConfig | None = None,
        state: Path | None = None,
        progress: Callable[[int, int, str], None] | None = None,
    ) -> TuneResult:
        """Tune all the times of a cell's sampler at once, by what its samples are like."""
        return tune_joint(
            self.sampler(cell), features, reference, config, batch=self.batch, state=state, progress=progress
        )


def make_bench(
    model: str, device: torch.device | str = "cpu", *, batch: int = 64, bf16: bool | None = None, compile: bool = False
) -> Bench:
    """Load a model as a bench.

    Args:
        model: see :func:`tt_lib.networks.unet.load_model`.
        batch: samples at a time; a compiled network is compiled for this size.
        bf16: the sampling network in bfloat16; by default on GPUs only (few CPUs have it in hardware).
        compile: compile the sampling network.
    """
    if batch < 1:
        raise BadValue(f"batch must be at least 1, got {batch}")
    device = torch.device(device)
    if device.type == "cuda":
        # Tuning moves a scalar by parts in a thousand: it needs float32 that is float32.
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        # Convolutions picked by rule: picked by timing them they were 3 % faster, and two processes' distances differed by 2e-5.
        torch.backends.cudnn.benchmark = False
    bf16 = device.type == "cuda" if bf16 is None else bf16
    loaded = load_model(model, device)
    exact = make_predictor(loaded)
    fast: EpsPredictor | Chunked = make_predictor(loaded, bf16=bf16, compile=compile)
    return Bench(loaded, Chunked(fast, batch, fill=compile), exact, device, batch)


# FOLDED tt_lib.study.workbench
# What needs no tuning: the rivals that a tuned timing has to beat.


def constant_timing(sampler: Sampler, ratio: float, freeze_last: int = 1) -> Timing:
    """One ratio tau / t for all steps but the last: nothing is tuned, and it is bounded by the network's range of times.

    Args:
        sampler: untuned.
        ratio: tau / t.
        freeze_last: how many of the last steps keep tau = t.

    Raises:
        BadValue: the ratio is not positive.
    """
    if not ratio > 0:
        raise BadValue(f"a ratio tau / t must be positive, got {ratio}")
    evaluations = layout(sampler.solver, torch.tensor(sampler.grid.times, dtype=torch.float64), sampler.schedule)
    moving = sampler.grid.steps - freeze_last
    times = tuple(each.t for each in evaluations)
    taus = tuple(
        min(1.0, max(sampler.schedule.t_min, ratio * each.t)) if each.step < moving else each.t for each in evaluations
    )
    tuning = {"objective": CONSTANT, "ratio": ratio, "freeze_last": freeze_last}
    return sampler.make_timing(f"{CONSTANT}-{ratio:g}", taus, times, tuning=tuning, provenance=provenance())
