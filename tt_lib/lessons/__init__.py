"""What the notebooks are written with: sizes, facts from rows, and checks of exercises."""

from tt_lib.lessons.kit import SCALES, check, fact, prose, scale, scaled

__all__ = ["SCALES", "check", "fact", "prose", "scale", "scaled"]
