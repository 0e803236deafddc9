"""What the notebooks are written with: sizes, facts from rows, and checks of exercises."""

from tt_lib.lessons.checks import check
from tt_lib.lessons.facts import fact, prose
from tt_lib.lessons.scale import SCALES, scale, scaled

__all__ = ["SCALES", "check", "fact", "prose", "scale", "scaled"]
