"""TimeTuner: tune the conditioning times of a few-step sampler with the network frozen.

One evaluation's time is one scalar. The pieces: what is asked (:mod:`objectives`), on which states
(:mod:`problems`), how the scalar is found (:mod:`optimisers`), in which order (:mod:`tuner`).
"""

from tt_lib.tuning.config import OBJECTIVES, STRATEGIES, TuneConfig
from tt_lib.tuning.tuner import TuneResult, tune

__all__ = ["OBJECTIVES", "STRATEGIES", "TuneConfig", "TuneResult", "tune"]
