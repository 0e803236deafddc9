"""What the notebooks are written with: :mod:`tt_lib.lessons.kit` for all, and a module for each notebook."""

from tt_lib.lessons.kit import check, fact, prose, scale, scaled

__all__ = ["check", "fact", "prose", "scale", "scaled"]
