"""diffusers both ways: its schedulers as solvers of this library, its pipelines with this library's tuned times.

:func:`from_scheduler` makes a solver of a scheduler, so that its times can be tuned; :class:`TunedUNet` and
:func:`tuned_times` make any pipeline sample with them.
"""

from tt_lib.interop.pipeline import Calls, TunedUNet, tuned_times
from tt_lib.interop.scheduler import Adapted, from_scheduler

__all__ = ["Adapted", "Calls", "TunedUNet", "from_scheduler", "tuned_times"]
