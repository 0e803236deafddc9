"""diffusers both ways: its schedulers as solvers of this library, its pipelines with this library's tuned times.

:func:`from_scheduler` makes a solver of a scheduler, so that its times can be tuned; :class:`TunedUNet` and
:func:`tuned_times` make any pipeline sample with them. :func:`to_diffusers` makes a scheduler of a learned sampler,
whose times no scheduler of diffusers takes. :func:`supported` says what works with which scheduler.
"""

from typing import TYPE_CHECKING, Any

from tt_lib.interop.pipeline import Calls, TunedUNet, tuned_times
from tt_lib.interop.scheduler import Adapted, from_scheduler, support_page, supported

if TYPE_CHECKING:
    from tt_lib.interop.learned import to_diffusers as to_diffusers

__all__ = [
    "Adapted",
    "Calls",
    "TunedUNet",
    "from_scheduler",
    "support_page",
    "supported",
    "to_diffusers",
    "tuned_times",
]


def __getattr__(name: str) -> Any:
    if name != "to_diffusers":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tt_lib.interop.learned import to_diffusers  # the only part that imports diffusers

    return to_diffusers
