"""A workbench: one loaded model with all that tuning and measuring it takes, and samplers made from it by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from tt_lib.baselines import CONSTANT, read_correction
from tt_lib.datasets import NAMED, load_dataset, to_float
from tt_lib.errors import BadValue, TimingMismatch, check_range, choose
from tt_lib.files import check_writable, data_folder, file_name, spell
from tt_lib.metrics.reference import reference_path
from tt_lib.metrics.statistics import FeatureStatistics
from tt_lib.networks.feature_nets import FeatureNet, read_feature_network
from tt_lib.networks.running import cudnn_flags, make_predictor
from tt_lib.networks.unet import Model, load_model
from tt_lib.noise import GENERATED_FIRST_SEED, HELD_OUT_FIRST_SEED, check_seeds
from tt_lib.predictors import Chunked, Predictor
from tt_lib.rows import provenance, short_hash
from tt_lib.sampling import Progress, Sampler, make_sampler
from tt_lib.study.cells import IMAGE_SOURCES, Cell, Origin, Recipe, require_timing, timing_path
from tt_lib.timing import Timing
from tt_lib.tuning import TuneConfig, TuneResult, tune
from tt_lib.tuning.gamma import estimate_gamma, gamma_path, load_gamma
from tt_lib.tuning.gits import learn_gits
from tt_lib.tuning.ld3 import learn_ld3
from tt_lib.tuning.learn import PIXELS, LearnConfig, converged_sampler, feature_distance, learn
from tt_lib.tuning.transfer import transfer

HELD_OUT = 256
"""Images of a gate."""


@dataclass
class Bench:
    """A model ready to be sampled, tuned and measured.

    Attributes:
        model: the loaded network.
        predictor: for sampling, without gradients.
        tuner_predictor: for tuning with gradients: float32, not compiled.
        device: where all of it runs.
        batch: samples at a time.
        compiled: whether networks are compiled.
        images: what was loaded or made to tune on.
        converged: noises and ends of converged solutions, by their first seed.
    """

    model: Model
    predictor: Predictor
    tuner_predictor: Predictor
    device: torch.device
    batch: int
    compiled: bool = False
    images: dict[tuple, Tensor] = field(default_factory=dict, repr=False)
    converged: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    def work_in(self, folder: Path) -> Path:
        """Where in ``folder`` the locks and unfinished work lie: of the model alone, and of its path alone.

        Networks of one name, or paths of one network, do not wait for each other.
        """
        own = folder / short_hash(self.model.digest)
        return own / file_name(self.model.schedule.name) if self.model.own else own

    def sampler(self, cell: Cell, timing: Timing | None = None) -> Sampler:
        """The sampler of a cell, with the correction that it names; a timing is checked against it.

        A solver that needs gamma takes the stored one. Where there is none it says so when it is run.

        Raises:
            TimingMismatch: a timing of something else, or a stored gamma of other weights.
        """
        sampler = self._without_gamma(cell, timing)
        path = gamma_path(self.model.name, cell.grid, cell.nfe, timing)
        if not sampler.solver.needs_gamma or not path.exists():
            return sampler
        gamma = load_gamma(path)
        gamma.check(sampler)
        options = {**sampler.solver.options, "gamma": gamma.values}
        return replace(sampler, solver=replace(sampler.solver, options=options))

    @cudnn_flags(allow_tf32=False)
    def ensure_gamma(
        self,
        cell: Cell,
        timing: Timing | None,
        images: Callable[[], Tensor],
        source: str,
        progress: Progress | None = None,
    ) -> None:
        """Measure and store gamma for a cell's sampler unless it needs none or its own is stored.

        Args:
            images: called for the images, if they are needed.

        Raises:
            TimingMismatch: as in :meth:`sampler`; what is stored is not replaced.
        """
        solver = self.sampler(cell, timing).solver
        if not solver.needs_gamma or solver.options.get("gamma"):
            return
        path = gamma_path(self.model.name, cell.grid, cell.nfe, timing)
        check_writable(path)
        sampler = replace(self._without_gamma(cell, timing), predictor=self.tuner_predictor)
        gamma = estimate_gamma(sampler, images(), source=source, batch=self.batch, progress=progress)
        gamma.save(path)

    def _without_gamma(self, cell: Cell, timing: Timing | None) -> Sampler:
        return make_sampler(
            self.model,
            cell.solver,
            cell.grid if timing else cell.start,
            cell.nfe,
            timing,
            eta=cell.eta,
            predictor=self.predictor,
            device=self.device,
            correction=read_correction(cell.timing),
        )

    def tuning_images(self, source: str, count: int, dataset: str, data: Path | str | None) -> Tensor:
        """``count`` images [count, C, H, W] in [-1, 1] on the device: real training images, or the network's own.

        Real ones are drawn without replacement by a generator with seed 0; the network's own are made in 20
        steps of DPM-Solver++(2M), untuned, from seeds that no measurement uses.
        """
        choose("source of images", source, IMAGE_SOURCES)
        check_range("images", count, 1)
        check_seeds(0, count, HELD_OUT_FIRST_SEED - GENERATED_FIRST_SEED)
        key = source, count, dataset, data
        if key not in self.images:
            if source == "real":
                images = self._real(range(count), dataset, data)
            else:
                images = self._generated(range(GENERATED_FIRST_SEED, GENERATED_FIRST_SEED + count))
            self.images[key] = images.to(self.device)
        return self.images[key]

    def held_out_images(self, source: str, tuned_on: int, dataset: str, data: Path | str | None) -> Tensor:
        """:data:`HELD_OUT` images for a gate, none of them among the ``tuned_on`` that :meth:`tuning_images` gives."""
        choose("source of images", source, IMAGE_SOURCES)
        if source == "real":
            return self._real(range(tuned_on, tuned_on + HELD_OUT), dataset, data).to(self.device)
        return self._generated(range(HELD_OUT_FIRST_SEED, HELD_OUT_FIRST_SEED + HELD_OUT))

    def _real(self, places: range, dataset: str, data: Path | str | None) -> Tensor:
        """The training images at ``places`` of one shuffle."""
        images = load_dataset(dataset, "train", data)
        if places.stop > len(images):
            raise BadValue(f"{places.stop} images were asked for, {images.name} has {len(images)}; ask for fewer")
        if tuple(images.pixels.shape[1:]) != self.model.shape:
            raise BadValue(
                f"{self.model.name} takes images of {list(self.model.shape)}, those of {dataset} are "
                f"{list(images.pixels.shape[1:])}; give the data set it was trained on, or let it generate the images"
            )
        rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[places.start : places.stop]
        return to_float(images.pixels[rows])

    def _generated(self, seeds: range) -> Tensor:
        sampler = make_sampler(self.model, "dpmpp-2m", "logsnr", 20, predictor=self.predictor, device=self.device)
        return sampler(seeds).x.clamp(-1, 1)

    @cudnn_flags(allow_tf32=False)
    def tune(
        self,
        cell: Cell,
        config: TuneConfig,
        images: Tensor,
        source: str,
        state: Path | None = None,
        progress: Progress | None = None,
        held_out: Tensor | None = None,
    ) -> TuneResult:
        """Tune the timing of a cell's sampler step by step.

        A search, which needs no gradient, runs the network as samples are made, on a GPU in bfloat16: its ratios may
        differ from those of float32 in the second decimal. Adam runs it in float32, without TF32.

        Args:
            images, source: of :meth:`tuning_images`.
            state: file for the state of an unfinished tuning.
            held_out: the images of a gate, see :meth:`held_out_images`.
        """
        predictor = self.predictor if config.optimiser == "search" else self.tuner_predictor
        sampler = replace(self.sampler(cell), predictor=predictor)
        return tune(sampler, images, config, source=source, held_out=held_out, state=state, progress=progress)

    @cudnn_flags(allow_tf32=False)
    def tune_by(
        self,
        cell: Cell,
        recipe: Recipe,
        dataset: str,
        data: Path | str | None,
        state: Path,
        progress: Progress | None = None,
    ) -> Timing:
        """The timing of a cell, tuned or learned as its recipe says.

        Args:
            dataset, data: of real images.
            state: file for the state of an unfinished tuning.
        """
        match recipe.config:
            case TuneConfig() as config:
                wanted = recipe.source, recipe.images, dataset, data
                images = self.tuning_images(*wanted)
                held_out = self.held_out_images(*wanted) if config.gate else None
                timing = self.tune(cell, config, images, recipe.source, state, progress, held_out).timing
            case _:
                timing = self.learn(cell, recipe, dataset, state, progress)
        # Two timings that differ in an option have different names.
        return replace(timing, name=cell.timing)

    @cached_property
    def learner(self) -> Predictor:
        """The predictor that a sampler is learned through: on a GPU in bfloat16, as it will be sampled."""
        on_gpu = self.device.type == "cuda"
        return make_predictor(self.model, bf16=on_gpu, compile=self.compiled, gradients=True)

    def learn(self, cell: Cell, recipe: Recipe, dataset: str, state: Path, progress: Progress | None = None) -> Timing:
        """The timing of a cell, learned end to end from its start grid.

        Args:
            dataset: whose classifier's features the loss is taken in.
            state: file for the state of unfinished learning.
        """
        config, fast = recipe.config, self.sampler(cell)
        if recipe.origin:
            return transfer(self._learned_at(recipe.origin, cell), fast)
        if config == "gits":
            # In float32: near t = 1 what bfloat16 rounds off eps, times sigma / alpha = 157, exceeds a step's error.
            return learn_gits(replace(fast, predictor=self.tuner_predictor))
        distance = PIXELS
        if recipe.loss == "features":
            if dataset not in NAMED:
                raise BadValue(
                    f"the loss is taken in features of a classifier: {' and '.join(NAMED)} have one, {dataset} has "
                    "none; choose loss=pixels"
                )
            name = f"{dataset}-resnet"
            network = read_feature_network(data_folder() / "pretrained" / name, self.device)
            self._check_images(network, dataset, name)
            distance = feature_distance(network, name)
        if not isinstance(config, LearnConfig):
            # Batches of two are not worth compiling for.
            own = make_predictor(self.model, bf16=self.device.type == "cuda")
            return learn_ld3(replace(fast, predictor=own), distance, progress=progress)
        slow, ends = replace(fast, predictor=self.learner), converged_sampler(fast)
        known = self.converged
        return learn(slow, distance, config, converged=ends, known=known, state=state, progress=progress).timing

    def _learned_at(self, origin: Origin, cell: Cell) -> Timing:
        """The stored timing that was learned for another sampler than the cell's."""
        other = replace(cell, solver=origin.solver or cell.solver, nfe=origin.nfe or cell.nfe, timing=origin.timing)
        timing = require_timing(origin.model or self.model.name, other)
        assert timing is not None
        if not origin.model and timing.weights != self.model.digest:
            raise TimingMismatch(
                f"{timing_path(self.model.name, other)} was learned for other weights of {self.model.name}; name the "
                "network that it was learned for with of_model=NAME, or learn it again"
            )
        return timing

    def _check_images(self, network: FeatureNet, dataset: str, name: str) -> None:
        """Raise :class:`BadValue` if features are of other images than the model's: their distance says little."""
        shape: tuple[int, ...] = (network.in_channels, *self.model.shape[1:])
        if (path := reference_path(dataset, "train", name)).exists():
            shape = FeatureStatistics.load(path).shape or shape
        if shape != self.model.shape:
            raise BadValue(
                f"{self.model.name} has images of {list(self.model.shape)}, {name} was trained on those of "
                f"{list(shape)}; choose the data set that the network was trained on, or loss=pixels"
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
    check_range("batch", batch, 1, 100_000)
    device = torch.device(device)
    bf16 = device.type == "cuda" if bf16 is None else bf16
    loaded = load_model(model, device)
    exact = make_predictor(loaded)
    fast = make_predictor(loaded, bf16=bf16, compile=compile)
    return Bench(loaded, Chunked(fast, batch, fill=compile), exact, device, batch, compile)


def constant_timing(sampler: Sampler, ratio: float) -> Timing:
    """One ratio tau / t for all steps but the last, within the network's range of times; nothing is tuned."""
    t_min, moving = sampler.schedule.t_min, sampler.grid.steps - 1
    taus = [min(1.0, max(t_min, ratio * each.t)) if each.step < moving else each.t for each in sampler.evaluations]
    tuning = {"objective": CONSTANT, "ratio": ratio, "freeze_last": 1}
    return sampler.make_timing(f"{CONSTANT}-{spell(ratio)}", taus, tuning=tuning, provenance=provenance())
