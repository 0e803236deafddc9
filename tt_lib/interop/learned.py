"""A learned sampler in diffusers: a scheduler whose ``set_timesteps`` installs the times of a timing.

Pipelines call ``set_timesteps(num_inference_steps)`` themselves. ``DDIMScheduler`` steps to ``n - N // steps`` whatever
the next timestep is, and the schedulers that take timesteps of one's own round them to whole levels. So
:func:`to_diffusers` makes an object of a class derived from diffusers': the steps are diffusers' own, and the times and
noise levels are this library's, as floats.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler
from torch import Tensor

from tt_lib.errors import BadValue, TimingMismatch
from tt_lib.interop.pipeline import same_timestep
from tt_lib.interop.scheduler import same_numbers
from tt_lib.networks.unet import DIFFUSION, check_diffusion, schedule_name
from tt_lib.predictors import PREDICTION_TYPES
from tt_lib.schedules import SCHEDULES, DiscreteSchedule, Schedule, index_of_time, make_schedule
from tt_lib.solvers.ddim import ddim
from tt_lib.solvers.dpmpp import dpmpp_2m
from tt_lib.solvers.registry import SOLVERS, make_solver
from tt_lib.solvers.unipc import unipc
from tt_lib.timing import Timing

BETAS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
"""The options that say what noise levels a network was trained on."""


class _Learned:
    """What the derived classes share: the times of a timing, and arguments of ``step`` that any pipeline gives.

    Args:
        timing, schedule: of the times, and of their noise levels.
        config: of the class in diffusers.
    """

    def __init__(self, timing: Timing, schedule: Schedule, **config: Any) -> None:
        parent: Any = super()
        parent.__init__(**config)
        self.timing = timing
        self._own_config = dict(parent.config)
        times = torch.tensor(timing.grid_times, dtype=torch.float64)
        self._learned_timesteps = index_of_time(times[:-1], schedule.levels).float()
        self._learned_sigmas = schedule.rho(times).float()

    def set_timesteps(self, num_inference_steps: int | None = None, device: torch.device | str | None = None) -> None:
        """Begin a run over the times of the timing, float32; the noise levels stay on the CPU, as in diffusers.

        Raises:
            TimingMismatch: the timing has another number of steps, or an option was changed.
        """
        parent: Any = super()
        for key, value in self._own_config.items():
            if parent.config.get(key) != value:
                raise TimingMismatch(
                    f"the learned sampler has {key}={value!r}, and it was changed to {parent.config.get(key)!r}; make "
                    "the scheduler anew (to_diffusers)"
                )
        timing = self.timing
        if num_inference_steps != timing.nfe:
            raise TimingMismatch(
                f"the scheduler has the {timing.nfe} steps of {timing.name} of {timing.solver}, and was asked for "
                f"num_inference_steps={num_inference_steps}; ask for {timing.nfe}, or learn another timing"
            )
        parent.set_timesteps(timing.nfe, device=device)
        self.timesteps = self._learned_timesteps.to(device)
        self.sigmas = self._learned_sigmas.clone()

    def index_for_timestep(self, timestep: Tensor | float, schedule_timesteps: Tensor | None = None) -> int:
        """The number of the step that begins at ``timestep``, which half precision may have rounded.

        diffusers compares floats for equality, and takes the last step where none is equal.

        Raises:
            TimingMismatch: none begins there.
        """
        timestep = torch.as_tensor(timestep)
        number = int((self._learned_timesteps.double() - timestep.double().cpu()).abs().argmin())
        if not same_timestep(timestep, float(self._learned_timesteps[number])):
            raise TimingMismatch(
                f"no step of the learned sampler begins at timestep {float(timestep):g}; they begin at "
                f"{', '.join(f'{n:g}' for n in self._learned_timesteps.tolist())}"
            )
        return number

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | float,
        sample: Tensor,
        generator: Any = None,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = None,
        return_dict: bool = True,
    ) -> Any:
        """One step. No noise is drawn, so ``generator``, which pipelines give to any scheduler, has no effect.

        Raises:
            TimingMismatch: for ``eta`` or ``use_clipped_model_output``, which the learned sampler does not have; for a
                timestep that is not the next one, at which diffusers does not look.
        """
        parent: Any = super()
        if parent.step_index is not None:
            expected = self._learned_timesteps[parent.step_index :][:1].tolist()
            if not (expected and same_timestep(torch.as_tensor(timestep), expected[0])):
                raise TimingMismatch(
                    f"step {parent.step_index + 1} of the learned sampler was called at timestep {float(timestep):g}, "
                    f"and begins at {', '.join(f'{n:g}' for n in expected) or 'none, as the run is over'}; take the "
                    "scheduler's timesteps in their order, and call set_timesteps before each run"
                )
        if eta or use_clipped_model_output:
            raise TimingMismatch(
                f"the learned sampler neither draws noise nor clips, and was called with eta={eta:g} and "
                f"use_clipped_model_output={use_clipped_model_output}; call the pipeline without them"
            )
        if model_output.shape[1] == 2 * sample.shape[1]:
            model_output = model_output[:, : sample.shape[1]]  # the other half is a variance
        return parent.step(model_output, timestep, sample, return_dict=return_dict)

    def save_config(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: no configuration of diffusers holds times, and another scheduler would be loaded."""
        raise BadValue(_NO_CONFIG.format("saved"))

    @classmethod
    def from_config(cls, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused, as :meth:`save_config`."""
        raise BadValue(_NO_CONFIG.format("made from a configuration"))


_NO_CONFIG = (
    "a scheduler with learned times cannot be {}, as no configuration holds them; save the timing (Timing.save) and "
    "make the scheduler of it (to_diffusers)"
)


class LearnedDPMSolver(_Learned, DPMSolverMultistepScheduler):
    """DPM-Solver++(2M), or DDIM, which is its first order, at the times of a timing."""


class LearnedUniPC(_Learned, UniPCMultistepScheduler):
    """UniPC at the times of a timing."""

    step_index: int
    model_outputs: list[Tensor]

    def multistep_uni_p_bh_update(self, model_output: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """UniP. A step into clean data returns the data prediction; diffusers' formula is 0 times infinity there."""
        if self.sigmas[self.step_index + 1] == 0:
            return self.model_outputs[-1]
        parent: Any = super()
        return parent.multistep_uni_p_bh_update(model_output, *args, **kwargs)


def to_diffusers(timing: Timing, scheduler: Any) -> LearnedDPMSolver | LearnedUniPC:
    """A scheduler of diffusers with the times of a timing, for use with the network that is conditioned on its taus.

    Example::

        learned = to_diffusers(timing, pipeline.scheduler)
        pipeline = DDPMPipeline(TunedUNet(unet, timing), learned)
        images = pipeline(batch_size=4, num_inference_steps=timing.nfe).images

    It samples as this library does: without clipping, from plain noise at the first time, and with the noise levels
    that the schedule has between the levels of the network. The network stays what it is: without
    :class:`~tt_lib.interop.TunedUNet` or :func:`~tt_lib.interop.tuned_times` it is conditioned on the nominal times.

    ``DDIMPipeline`` makes a plain ``DDIMScheduler`` of whatever it is given: set ``pipeline.scheduler`` afterwards.
    The scheduler cannot be saved, and no other can be made of its configuration: save the timing.

    Args:
        timing: of ``ddim`` (eta 0), ``dpmpp-2m`` or ``unipc`` with any of their options, on a learned grid or another.
        scheduler: any that was made for the network. Its betas and its prediction type count, and nothing else.

    Raises:
        BadValue: a solver whose steps no scheduler of diffusers makes at any times, or a scheduler that does not say
            what the network predicts at which noise levels.
        TimingMismatch: the timing is for another schedule, or has gains and the network does not predict eps.
    """
    schedule, betas = _schedule_of(timing, scheduler)
    prediction = scheduler.config["prediction_type"]
    if timing.gains and PREDICTION_TYPES[prediction] != "eps":
        raise TimingMismatch(
            f"the gains of the timing multiply eps, and the network predicts {prediction!r}, whose multiple is another "
            "one; learn a timing without gain"
        )
    kind, options = _kind_of(timing)
    final = "zero" if timing.grid_times[-1] == 0 else "sigma_min"
    return kind(timing, schedule, **betas, prediction_type=prediction, final_sigmas_type=final, **options)


def _kind_of(timing: Timing) -> tuple[type[LearnedDPMSolver | LearnedUniPC], dict[str, Any]]:
    """The class whose steps are those of a timing's solver, and its options, which lower no order by themselves."""
    if timing.solver not in SOLVERS:
        raise BadValue(
            f"the timing is for diffusers' own {timing.solver} and its own times; sample with that scheduler"
        )
    solver = make_solver(timing.solver, **timing.options)
    if not solver.stochastic:
        options = solver.defaults | solver.options
        lower = options.get("final") == "lower"
        if solver.function is unipc:
            own = {"solver_order": options["order"], "solver_type": options["variant"], "lower_order_final": lower}
            return LearnedUniPC, own
        if solver.function in (ddim, dpmpp_2m):
            order = 1 if solver.function is ddim else 2
            # Their lower_order_final looks at the number of steps; with two orders the other option is the same.
            return LearnedDPMSolver, {"solver_order": order, "lower_order_final": False, "euler_at_final": lower}
    named = solver.spelling + (f" with eta={solver.eta:g}" if solver.eta else "")
    raise BadValue(
        f"no scheduler of diffusers makes the steps of {named} at any times; this works for ddim (eta 0), dpmpp-2m and "
        "unipc"
    )


def _schedule_of(timing: Timing, scheduler: Any) -> tuple[Schedule, dict[str, Any]]:
    """The schedule of a timing, and the options that give diffusers the same betas."""
    names = [kind.__name__ for kind in type(scheduler).__mro__]
    name = next((each for each in names if each in DIFFUSION), names[0])
    config = getattr(scheduler, "config", {})
    check_diffusion("the network", name, config)
    if config["prediction_type"] not in PREDICTION_TYPES:
        raise BadValue(
            f"{name} has prediction_type {config['prediction_type']!r}; it must be one of {', '.join(PREDICTION_TYPES)}"
        )
    betas = {key: config[key] for key in BETAS}
    try:
        made: Any = DPMSolverMultistepScheduler(**betas)
    except NotImplementedError as error:
        raise BadValue(
            f"{name} has betas {config['beta_schedule']!r}, which no scheduler with learned times has; give their "
            "numbers as trained_betas"
        ) from error
    if not same_numbers(made.alphas_cumprod, scheduler.alphas_cumprod):
        raise BadValue(f"{name} has noise levels that are not those of its configuration; make it anew by from_config")
    schedule: Schedule = DiscreteSchedule(made.betas.double(), schedule_name(config))
    known = make_schedule(timing.schedule) if timing.schedule in SCHEDULES else schedule
    levels = torch.arange(1, len(made.betas) + 1, dtype=torch.float64) / len(made.betas)
    if known.name != timing.schedule or not same_numbers(known.alpha(levels) ** 2, made.alphas_cumprod):
        raise TimingMismatch(
            f"the timing is for the schedule {timing.schedule!r}, and {name} has {schedule.name!r}; give a scheduler "
            "that was made for the network of the timing"
        )
    return known, betas
