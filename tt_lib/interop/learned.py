"""A learned sampler in diffusers: a scheduler whose steps and times are those of this library.

Pipelines call ``set_timesteps(num_inference_steps)`` themselves. ``DDIMScheduler`` steps to ``n - N // steps`` whatever
the next timestep is, and the schedulers that take timesteps of one's own round them to whole levels, or shift them. So
:func:`to_diffusers` makes a scheduler that runs a solver of this library, request by request: each ``step`` sends it
the network's answer, and what it asks for next is the next state. Its times are floats.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from tt_lib.engine import Request, Solution
from tt_lib.errors import BadValue, TimingMismatch
from tt_lib.grids import Grid
from tt_lib.interop.pipeline import same_timestep
from tt_lib.interop.scheduler import check_network, network_of, same_numbers
from tt_lib.predictors import preconditioning, to_direction
from tt_lib.schedules import VP, Schedule, find_schedule, float64
from tt_lib.solvers.layout import layout
from tt_lib.solvers.registry import SOLVERS, Solver, make_solver
from tt_lib.timing import Timing

_NO_CONFIG = (
    "a scheduler with learned times cannot be {}, as no configuration holds them; save the timing (Timing.save) and "
    "make the scheduler of it (to_diffusers)"
)


class LearnedScheduler(SchedulerMixin, ConfigMixin):
    """A solver of this library at the times of a timing, in the form of a scheduler of diffusers.

    Args:
        timing: whose times it has.
        solver, schedule: what it runs, on which noise levels.
        kind: what the network predicts, see :mod:`tt_lib.predictors`.
        config: the options of the network's own scheduler; pipelines read some of them.
    """

    order = 1

    def __init__(self, timing: Timing, solver: Solver, schedule: Schedule, kind: str, config: dict[str, Any]) -> None:
        self.register_to_config(**config)
        self.timing, self.solver, self.schedule, self.kind = timing, solver, schedule, kind
        self._own_config = dict(self.config)
        self._grid = Grid(timing.grid, timing.grid_times)
        evaluations = layout(solver, self._grid.tensor(), schedule)
        self._timesteps = schedule.network_time(float64([each.t for each in evaluations])).float()
        self.timesteps = self._timesteps
        self.init_noise_sigma = float(schedule.scale(timing.grid_times[0]))
        self._forget()

    def _forget(self) -> None:
        self._solution: Solution | None = None
        self._request: Request | None = None
        self._state: Tensor | None = None
        self._made = 0

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        mu: float | None = None,
    ) -> None:
        """Begin a run over the times of the timing, float32.

        Args:
            num_inference_steps: the number of evaluations of the timing.
            device: of the timesteps.
            mu: the shift that pipelines of flows work out of an image's size. The learned times have a shift of their
                own, so it has no effect.

        Raises:
            TimingMismatch: the timing has another number of evaluations, or an option was changed.
        """
        for key, value in self.config.items():
            if key not in self._own_config or self._own_config[key] != value:
                raise TimingMismatch(
                    f"the learned sampler has {key}={self._own_config.get(key)!r}, and it was changed to {value!r}; "
                    "make the scheduler anew (to_diffusers)"
                )
        timing = self.timing
        if num_inference_steps != timing.nfe:
            raise TimingMismatch(
                f"the scheduler has the {timing.nfe} steps of {timing.name} of {timing.solver}, and was asked for "
                f"num_inference_steps={num_inference_steps}; ask for {timing.nfe}, or learn another timing"
            )
        self._forget()
        self.timesteps = self._timesteps.to(device)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Refuse a run from the middle, as pipelines of image to image ask for it."""
        if begin_index:
            self.add_noise()

    def add_noise(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: a learned sampler begins with noise."""
        raise TimingMismatch(
            "the learned sampler was learned for whole runs, which begin with noise and not with an image; tune the "
            "pipeline's own scheduler: from_scheduler(..., first=...)"
        )

    scale_noise = add_noise

    def scale_model_input(self, sample: Tensor, timestep: Tensor | float | None = None) -> Tensor:
        """What the network is given of a state: itself, or EDM's ``c_in`` times it."""
        if self.kind != "edm":
            return sample
        t = float64(self._grid.times[0]) if self._request is None else self._request.t
        return preconditioning(t, sample, self.schedule)[0] * sample

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
        """One evaluation. No noise is drawn, so ``generator``, which pipelines give to any scheduler, has no effect.

        Args:
            model_output: [B, ...], what the network predicts; a variance beside it is dropped.
            timestep: the next one of :attr:`timesteps`, which half precision may have rounded.
            sample: [B, ...], the state that the step before returned.

        Raises:
            TimingMismatch: for ``eta`` or ``use_clipped_model_output``, which the learned sampler does not have; for a
                timestep that is not the next one; for a state that the pipeline has changed.
        """
        expected = self._timesteps[self._made :][:1].tolist()
        if not (expected and same_timestep(torch.as_tensor(timestep), expected[0])):
            raise TimingMismatch(
                f"step {self._made + 1} of the learned sampler was called at timestep {float(timestep):g}, "
                f"and begins at {', '.join(f'{n:g}' for n in expected) or 'none, as the run is over'}; take the "
                "scheduler's timesteps in their order, and call set_timesteps before each run"
            )
        if eta or use_clipped_model_output:
            raise TimingMismatch(
                f"the learned sampler neither draws noise nor clips, and was called with eta={eta:g} and "
                f"use_clipped_model_output={use_clipped_model_output}; call the pipeline without them"
            )
        if self._solution is None:
            self._solution = self.solver(sample.float(), self._grid, self.schedule)
            self._request = next(self._solution)
        elif self._state is None or not torch.equal(sample, self._state):
            raise TimingMismatch(
                f"the pipeline changed the state before step {self._made + 1}, as for inpainting, and the learned "
                "sampler goes on from its own; use it in a pipeline that leaves states alone"
            )
        assert self._request is not None
        if model_output.shape[1] == 2 * sample.shape[1]:
            model_output = model_output[:, : sample.shape[1]]
        x, t, _ = self._request
        self._made += 1
        try:
            self._request = self._solution.send(to_direction(self.kind, model_output.float(), x, t, self.schedule))
            state = self._request.x
        except StopIteration as end:
            state = end.value
        self._state = state.to(sample.dtype)
        return SchedulerOutput(prev_sample=self._state) if return_dict else (self._state,)

    def __len__(self) -> int:
        return self.schedule.levels

    def save_config(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: no configuration of diffusers holds times, and another scheduler would be loaded."""
        raise BadValue(_NO_CONFIG.format("saved"))

    @classmethod
    def from_config(cls, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused, as :meth:`save_config`."""
        raise BadValue(_NO_CONFIG.format("made from a configuration"))


def to_diffusers(timing: Timing, scheduler: Any) -> LearnedScheduler:
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
        timing: of a solver of this library that draws no noise, on a learned grid or another.
        scheduler: any that was made for the network. What the network predicts at which noise levels counts, and
            nothing else.

    Raises:
        BadValue: a solver that draws noise or needs measured numbers, or one of diffusers' own, or a scheduler that
            does not say what the network predicts at which noise levels.
        TimingMismatch: the timing is for another schedule, or has gains and the network does not predict the direction.
    """
    own, kind, config = (
        (scheduler.schedule, scheduler.kind, dict(scheduler.config))
        if isinstance(scheduler, LearnedScheduler)
        else network_of(scheduler)
    )
    schedule = _schedule_of(timing, own, type(scheduler).__name__)
    check_network(timing, schedule, kind)
    if timing.solver not in SOLVERS:
        raise BadValue(
            f"the timing is for diffusers' own {timing.solver} and its own times; sample with that scheduler"
        )
    solver = make_solver(timing.solver, **timing.options)
    if solver.stochastic or solver.needs_gamma:
        named = solver.spelling + (f" with eta={solver.eta:g}" if solver.eta else "")
        raise BadValue(f"{named} draws noise or needs its measured gamma, and no scheduler can be made of it")
    if schedule.name == "flow" and timing.grid_times[0] != 1:
        raise BadValue(
            f"the timing begins at t = {timing.grid_times[0]:g}, and pipelines of flows begin with noise alone, at "
            "t = 1; learn one that begins there"
        )
    if schedule.name == "flow":
        config["use_flow_sigmas"] = True  # the pipeline of Flux gives no sigmas to a scheduler that says so
    return LearnedScheduler(timing, solver, schedule, kind, config)


def _schedule_of(timing: Timing, own: Schedule, name: str) -> Schedule:
    """The schedule of a timing.

    Raises:
        TimingMismatch: its noise levels are not those of the network, ``own``.
    """
    known = find_schedule(timing.schedule) or own
    levels = torch.arange(1, own.levels + 1, dtype=torch.float64) / own.levels
    same = known.name == timing.schedule and (known.levels, known.direction) == (own.levels, own.direction)
    if isinstance(own, VP):  # cosine betas have another name in diffusers
        same = same and same_numbers(known.alpha(levels) ** 2, own.alpha(levels) ** 2)
    else:
        same = same and known.name == own.name
    if not same:
        raise TimingMismatch(
            f"the timing is for the schedule {timing.schedule!r}, and {name} has {own.name!r}; give a scheduler "
            "that was made for the network of the timing"
        )
    return known
