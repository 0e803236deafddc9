"""TimeTuner: tune the conditioning times of a frozen few-step diffusion sampler, and measure what that does.

The names below are those that most readers need. Each is imported when it is first used, so that ``import tt_lib`` and
``tt --help`` answer at once and import no PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers
    from tt_lib.grids import make_grid as make_grid
    from tt_lib.metrics.direction import measure_directions as measure_directions
    from tt_lib.metrics.evaluate import measure as measure
    from tt_lib.metrics.reference import load_metric as load_metric
    from tt_lib.networks.unet import Model as Model
    from tt_lib.networks.unet import load_model as load_model
    from tt_lib.sampling import Sampler as Sampler
    from tt_lib.sampling import fine_sampler as fine_sampler
    from tt_lib.sampling import make_sampler as make_sampler
    from tt_lib.schedules import make_schedule as make_schedule
    from tt_lib.solvers.registry import make_solver as make_solver
    from tt_lib.timing import Timing as Timing
    from tt_lib.timing import load_timing as load_timing
    from tt_lib.tuning import TuneConfig as TuneConfig
    from tt_lib.tuning import tune as tune
    from tt_lib.tuning.latents import learn_pipeline as learn_pipeline
    from tt_lib.tuning.learn import LearnConfig as LearnConfig
    from tt_lib.tuning.learn import learn as learn

__version__ = "0.2.0"

_MODULES = {
    # Networks.
    "load_model": "networks.unet",  # one with its schedule: shipped, a folder of `tt train` or diffusers, from the Hub
    "Model": "networks.unet",  # your own, with its schedule and the shape of its images
    "make_schedule": "schedules",  # alpha and sigma as functions of time, by name
    # Samplers.
    "make_sampler": "sampling",  # of a network: solver and grid by name, a number of evaluations, perhaps a timing
    "fine_sampler": "sampling",  # a converged one from the same noise, to compare with
    "Sampler": "sampling",  # one made of its parts: predictor, schedule, solver, grid
    "make_solver": "solvers.registry",  # an update rule, by name
    "make_grid": "grids",  # the nominal times, by name
    # Conditioning times.
    "tune": "tuning",  # those of a sampler, step by step
    "TuneConfig": "tuning",  # how: objective, strategy, optimiser, ...
    "learn": "tuning.learn",  # those of a sampler with its grid and gains, end to end by gradient
    "learn_pipeline": "tuning.latents",  # the same of a text-to-image pipeline of diffusers, for all prompts
    "LearnConfig": "tuning.learn",  # how: which of them move, noises, iterations, ...
    "Timing": "timing",  # one for each evaluation, with the sampler that they belong to
    "load_timing": "timing",  # from a file
    # Measurements.
    "load_metric": "metrics.reference",  # features of a network, and what the real images are like in them
    "measure": "metrics.evaluate",  # the Fréchet distance of a sampler, with an interval
    "measure_directions": "metrics.direction",  # the direction error of each step
}
__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
