"""A pytest plugin of `make test`: the kernels of several workers start one at a time.

A kernel's ports are looked for, let go and bound again by the kernel. Two workers that start theirs in the same moment
may be given the same ones, and then one of the kernels dies.
"""

from __future__ import annotations

import functools
import os
import tempfile
from pathlib import Path

import nbval.kernel

from tt_lib.files import hold


def one_at_a_time(start, path: Path):
    """``start`` under a lock that all workers of this user share."""

    @functools.wraps(start)
    def locked_start(*arguments, **options):
        with hold(path, wait=True):
            return start(*arguments, **options)

    return locked_start


def pytest_configure(config):
    path = Path(tempfile.gettempdir()) / f"tt-nbval-{os.getuid()}" / "kernel"
    nbval.kernel.start_new_kernel = one_at_a_time(nbval.kernel.start_new_kernel, path)
