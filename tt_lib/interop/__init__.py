"""diffusers both ways: its schedulers as solvers of this library, its pipelines with this library's tuned times.

:func:`from_scheduler` makes a solver of a scheduler, so that its times can be tuned; :class:`TunedUNet` and
:func:`tuned_times` make any pipeline sample with them.
"""

from tt_lib.interop.calls import Calls
from tt_lib.interop.scheduler import Adapted, from_scheduler
from tt_lib.interop.tuned import TunedUNet, tuned_times

__all__ = ["Adapted", "Calls", "TunedUNet", "from_scheduler", "tuned_times"]
