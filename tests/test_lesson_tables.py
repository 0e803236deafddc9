"""The explorer of the tables, at the extremes of its controls."""

import pandas as pd
from test_plots_tables import FRAME, TIMINGS, in_other_features

from tt_lib.lessons.tables import ranking_explorer


def test_the_explorer_follows_every_control():
    features, budget, tuned, picture = ranking_explorer(pd.concat([FRAME, in_other_features(FRAME)]), TIMINGS).children
    assert features.options == ("cifar10-resnet", "cifar10-simclr") and budget.options == (5, 10)
    seen = {bytes(picture.value)}
    features.value = "cifar10-simclr"
    seen.add(bytes(picture.value))
    tuned.value = False
    seen.add(bytes(picture.value))
    budget.value = 10
    seen.add(bytes(picture.value))
    assert len(seen) == 4 and all(each.startswith(b"\x89PNG") for each in seen)


def test_every_choice_has_something_to_draw():
    """A budget that was measured in one of the features only, or tuned only, is not offered."""
    other = in_other_features(FRAME[FRAME["nfe"] == 5])
    features, budget, _tuned, _picture = ranking_explorer(pd.concat([FRAME, other]), TIMINGS).children
    assert budget.options == (5,) and len(features.options) == 2
    tuned_only = FRAME[(FRAME["nfe"] == 10) | (FRAME["timing"] != "untuned")]
    assert ranking_explorer(tuned_only, TIMINGS).children[1].options == (10,)


def test_the_best_ones_only():
    whole, best = (bytes(ranking_explorer(FRAME, TIMINGS, most).children[-1].value) for most in (None, 2))
    assert whole != best
