"""TimeTuner: tune the conditioning times of a few-step sampler with the network frozen.

One evaluation's time is one scalar. Step by step: its loss (:mod:`objectives`), the states (:mod:`problems`), how it is
tuned (:mod:`optimisers`), in which order (:mod:`tuner`).
"""

from tt_lib.tuning.config import OBJECTIVES, STRATEGIES, TuneConfig
from tt_lib.tuning.tuner import TuneResult, tune

__all__ = ["OBJECTIVES", "STRATEGIES", "TuneConfig", "TuneResult", "tune"]
