"""Data sets as uint8 images, and the one conversion between uint8 and [-1, 1].

``cifar10`` (Krizhevsky 2009) is read from any of the forms that users have; ``digits`` comes with scikit-learn, so that
everything can be tried without a download. Anything else is a user's own: a folder of images or an npz file.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from tt_lib.datasets.cifar10 import load_cifar10
from tt_lib.datasets.digits import load_digits
from tt_lib.datasets.folder import SPLITS, open_images
from tt_lib.datasets.images import Images, to_float, to_uint8
from tt_lib.errors import BadValue, MissingFile, choose
from tt_lib.files import data_folder

__all__ = ["NAMED", "Images", "find_images", "load_cifar10", "load_dataset", "load_digits", "to_float", "to_uint8"]

NAMED = ("cifar10", "digits")
"""The data sets that are known by their names, and to which the shipped statistics and rows belong."""


def find_images(name: str, root: str | Path | None = None) -> tuple[str, Path]:
    """What a data set of a user's own is called, and its folder or .npz file.

    Args:
        name: a folder or an .npz file, or the name of one in the project's ``data/``.
        root: where it is, if that is elsewhere.

    Raises:
        MissingFile: there is none.
        BadValue: no name that a row can hold, or two places, one of which is meant.
    """
    if not (isinstance(name, str) and name.strip()):
        raise BadValue(f"a data set is one of {', '.join(NAMED)}, a folder or an .npz file, got {name!r}")
    given = Path(os.path.expanduser(root or name))
    if root and (os.sep in name or name.endswith(".npz")) and os.path.lexists(os.path.expanduser(name)):
        raise BadValue(f"{name} exists, and --data names another place, {root}; leave one of them out")
    place = next((path for path in (given, data_folder() / name) if root or os.path.lexists(path)), None)
    if place is None:
        raise MissingFile(
            f"no data set {name!r}: it is none of {', '.join(NAMED)}, and there is no such folder or .npz file; check "
            "the path, or give its place with --data"
        )
    path = Path(os.path.abspath(os.path.expanduser(name)))
    called = path.stem if path.suffix == ".npz" else path.name
    if not (called and called.isprintable()):
        raise BadValue(
            f"the name of the images {str(path)!a} is empty or not printable, and rows need it; rename their folder"
        )
    return called, place


def load_dataset(name: str, split: str, root: str | Path | None = None) -> Images:
    """The ``train`` or ``test`` images of ``cifar10``, ``digits`` or a user's own data set.

    A user's own images are read when they are asked for, in the order of their files, and are known by a digest when
    all have been read (:func:`tt_lib.metrics.reference.collect_statistics`). Those that are not in ``train`` and
    ``test`` are training images.

    Args:
        name: one of :data:`NAMED`, or see :func:`find_images`.
        root: where the images are, see :func:`load_cifar10` and :func:`find_images`; digits need no folder and take
            none.

    Raises:
        BadValue: an unknown split, a root for digits, or test images of a data set in one split.
        MissingFile, CorruptFile: the images are not there, or not what they should be.
    """
    choose("split", split, SPLITS)
    if name == "cifar10":
        return load_cifar10(split, root)
    if name == "digits":
        if root is not None:
            raise BadValue(f"digits come with scikit-learn, not from a folder such as {str(root)!r}; leave it out")
        return load_digits(split)
    called, place = find_images(name, root)
    stored = open_images(called, split, place)
    return Images(stored, torch.zeros(len(stored), dtype=torch.int64), f"{called}-{stored.split}")
