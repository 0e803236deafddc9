"""Which evaluation a call of a network is: counted, because a sampler may ask for one time more than once."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from tt_lib.errors import BadValue, TimingMismatch
from tt_lib.schedules import index_of_time
from tt_lib.timing import Timing


class Calls:
    """Gives each call of a run its tuned time, and refuses a run that the timing is not for.

    Call number c is evaluation ``c // calls_per_evaluation``. After the last call of a run the next one begins a new
    run.

    Args:
        timing: the conditioning times.
        calls_per_evaluation: how often the pipeline calls the network at each time: 2 where guidance calls it once
            with and once without the condition. (Most of diffusers' pipelines call it once with both in one batch:
            1.)
        levels: N, the levels that the network was trained on: a time t is its timestep ``N t - 1``.

    Raises:
        BadValue: a number below 1, or a timing of a network in continuous time.
    """

    def __init__(self, timing: Timing, calls_per_evaluation: int = 1, levels: int = 1000) -> None:
        for name, value in (("calls_per_evaluation", calls_per_evaluation), ("levels", levels)):
            if value < 1:
                raise BadValue(f"{name} must be at least 1, got {value}")
        if timing.schedule.startswith("continuous"):
            raise BadValue(
                f"the timing is for the schedule {timing.schedule!r}, whose network knows no levels; networks of "
                "diffusers do: tune one with a discrete schedule"
            )
        self.timing, self.calls_per_evaluation, self.levels = timing, calls_per_evaluation, levels
        self.nominal = index_of_time(torch.tensor(timing.times), levels).tolist()
        self.tuned = index_of_time(torch.tensor(timing.taus, dtype=torch.float64), levels).tolist()
        self.made, self.complete_runs = 0, 0

    @property
    def total(self) -> int:
        """Calls of a complete run."""
        return self.timing.nfe * self.calls_per_evaluation

    def reset(self) -> None:
        """Forget an unfinished run: the next call is the first of a new one."""
        self.made = 0

    def finish(self) -> None:
        """Raise :class:`TimingMismatch` if a run is unfinished, and forget it."""
        made = self.made
        self.reset()
        if made:
            raise TimingMismatch(f"the run ended after {made} of {self._numbers()}; {self._remedy()}")

    def next_time(self, timestep: Tensor | float, sample: Tensor) -> Tensor:
        """The timesteps [B] (float32) for a call with ``timestep`` (a number or [B]) about ``sample`` [B, ...].

        Always a tensor of floats: ``UNet2DModel`` truncates a Python float to an integer.

        Raises:
            TimingMismatch: ``timestep`` is not the nominal time of this evaluation.
        """
        evaluation = self.made // self.calls_per_evaluation
        asked = torch.as_tensor(timestep).detach()
        if not self._same(asked, self.nominal[evaluation]):
            message = self._message(evaluation, asked)
            # Whoever catches the error starts anew.
            self.reset()
            raise TimingMismatch(message)
        self.made += 1
        if self.made == self.total:
            self.made, self.complete_runs = 0, self.complete_runs + 1
        return torch.full((len(sample),), self.tuned[evaluation], dtype=torch.float32, device=sample.device)

    def replace(
        self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call of ``network`` with the tuned time in place of its ``timestep``."""
        place = _place_of_timestep(network)
        sample = args[0] if args else next(value for value in kwargs.values() if isinstance(value, Tensor))
        if "timestep" in kwargs:
            return args, kwargs | {"timestep": self.next_time(kwargs["timestep"], sample)}
        if len(args) <= place:
            raise BadValue(
                f"{type(network).__name__} was called without a timestep; call it as network(sample, timestep)"
            )
        return (*args[:place], self.next_time(args[place], sample), *args[place + 1 :]), kwargs

    def _same(self, asked: Tensor, nominal: float) -> bool:
        # Half-precision pipelines round their timesteps.
        rounding = torch.finfo(asked.dtype).eps * abs(nominal) if asked.is_floating_point() else 0.0
        return bool(((asked.double() - nominal).abs() <= max(1e-3, rounding)).all())

    def _message(self, evaluation: int, asked: Tensor) -> str:
        first = float(asked.double().flatten()[0])
        text = (
            f"call {self.made + 1} of {self._numbers()}: the timing's nominal timestep is {self.nominal[evaluation]:g} "
            f"(t = {self.timing.times[evaluation]:g}), "
            f"the pipeline asks for {first:g} (t = {(first + 1) / self.levels:g})"
        )
        if self.made and self._same(asked, self.nominal[0]):
            text += f", where a run begins: the run before ended after {self.made} calls of {self.total}"
        elif not self.made and self.complete_runs:
            text += (
                f"; if that is no new run, it makes at least {self.total + 1} calls, and the timing has {self.total}"
            )
        return f"{text}; {self._remedy()}"

    def _numbers(self) -> str:
        return f"{self.total} calls ({self.timing.nfe} evaluations, {self.calls_per_evaluation} calls each)"

    def _remedy(self) -> str:
        timing = self.timing
        return (
            f"the timing is for {timing.solver} on the grid {timing.grid} with {len(timing.grid_times) - 1} steps: "
            "sample with that scheduler, spacing and number of steps, or tune another timing"
        )


def _place_of_timestep(network: nn.Module) -> int:
    """Where ``timestep`` stands among the positional arguments: not the same in every network of diffusers."""
    names = [name for name in inspect.signature(type(network).forward).parameters if name != "self"]
    return names.index("timestep") if "timestep" in names else 1
