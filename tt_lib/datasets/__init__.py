"""Data sets as uint8 images, and the one conversion between uint8 and [-1, 1].

``cifar10`` (Krizhevsky 2009) is read from any of the forms that users have; ``digits`` comes with scikit-learn, so that
everything can be tried without a download. Any other name is that of a user's own images.
"""

from __future__ import annotations

import re
from pathlib import Path

from tt_lib.datasets.cifar10 import load_cifar10
from tt_lib.datasets.digits import load_digits
from tt_lib.datasets.folder import load_folder
from tt_lib.datasets.images import Images, to_float, to_uint8
from tt_lib.errors import BadValue, choose

__all__ = ["Images", "check_dataset", "load_cifar10", "load_dataset", "load_digits", "to_float", "to_uint8"]


def check_dataset(name: str) -> None:
    """Raise :class:`BadValue` unless a data set may have this name, which files and rows are named by."""
    if not (isinstance(name, str) and re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)):
        raise BadValue(f"a data set's name has lower-case letters, digits and hyphens, got {name!r}")


def load_dataset(name: str, split: str, root: str | Path | None = None) -> Images:
    """The ``train`` or ``test`` images of ``cifar10``, ``digits`` or a user's own data set.

    Args:
        name: any but these two names images of the user's own.
        root: where the images are, see :func:`load_cifar10` and :func:`~tt_lib.datasets.folder.load_folder`; digits
            need no folder and take none.

    Raises:
        BadValue: a bad name, an unknown split, a root for digits or none for images of one's own.
        MissingFile, CorruptFile: the images are not there, or not what they should be.
    """
    check_dataset(name)
    choose("split", split, ("train", "test"))
    if name == "cifar10":
        return load_cifar10(split, root)
    if name == "digits":
        if root is not None:
            raise BadValue(f"digits come with scikit-learn, not from a folder such as {str(root)!r}; leave it out")
        return load_digits(split)
    if root is None:
        raise BadValue(f"{name!r} is none of cifar10, digits; for images of your own give their folder (--data, root=)")
    return load_folder(name, split, root)
