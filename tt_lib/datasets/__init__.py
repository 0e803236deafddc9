"""The two data sets of this project, as uint8 images, and the one conversion between uint8 and [-1, 1].

``cifar10`` (Krizhevsky 2009) is read from any of the three forms that users have; ``digits`` comes with
scikit-learn, so that everything can be tried without a download.
"""

from __future__ import annotations

from pathlib import Path

from tt_lib.datasets.cifar10 import load_cifar10
from tt_lib.datasets.digits import load_digits
from tt_lib.datasets.images import Images, to_float, to_uint8
from tt_lib.errors import BadValue, choose

__all__ = ["Images", "load_cifar10", "load_dataset", "load_digits", "to_float", "to_uint8"]


def load_dataset(name: str, split: str, root: str | Path | None = None) -> Images:
    """The ``train`` or ``test`` images of ``cifar10`` or ``digits``.

    Args:
        root: where CIFAR-10 is, see :func:`load_cifar10`; digits need no folder and take none.

    Raises:
        BadValue: an unknown name or split, or a root for digits.
        MissingFile, CorruptFile: see :func:`load_cifar10`.
    """
    choose("data set", name, ("cifar10", "digits"))
    if name == "cifar10":
        return load_cifar10(split, root)
    if root is not None:
        raise BadValue(f"digits come with scikit-learn, not from a folder such as {str(root)!r}; leave it out")
    return load_digits(split)
