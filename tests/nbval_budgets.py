"""A pytest plugin: a notebook's cell that takes far longer than it was measured fails; kernels start one at a time.

``python -m pytest -p tests.nbval_budgets --nbval notebooks/`` (`make test`) reads ``notebooks/budgets.toml``.
"""

from __future__ import annotations

import functools
import os
import sys
import tempfile
import time
from pathlib import Path

import nbval.kernel
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "notebooks" / "tools"))
from books import NOTEBOOKS
from times import allowed, load

from tt_lib.files import hold

BUDGETS = pytest.StashKey[dict]()


class TooSlow(Exception):
    """A cell took longer than it may."""


def one_at_a_time(start, path: Path):
    """``start`` under a lock that all workers of this user share.

    A kernel's ports are looked for, let go and bound again by the kernel. Two workers that start theirs in the same
    moment may be given the same ones, and then one of the kernels dies.
    """

    @functools.wraps(start)
    def locked_start(*arguments, **options):
        with hold(path, wait=True):
            return start(*arguments, **options)

    return locked_start


def pytest_configure(config):
    path = Path(tempfile.gettempdir()) / f"tt-nbval-{os.getuid()}" / "kernel"
    nbval.kernel.start_new_kernel = one_at_a_time(nbval.kernel.start_new_kernel, path)


def pytest_addoption(parser):
    parser.addoption("--nbval-budgets", default=str(NOTEBOOKS), help="folder of the notebooks and their budgets.toml")


def budget(config, path: Path, number: int) -> float | None:
    """Seconds that code cell ``number`` of a notebook may take, if that was ever measured."""
    folder = Path(config.getoption("--nbval-budgets")).resolve()
    if BUDGETS not in config.stash:
        config.stash[BUDGETS] = load(folder)
    if not path.resolve().is_relative_to(folder):
        return None
    seconds = config.stash[BUDGETS].get(path.resolve().relative_to(folder).as_posix(), [])
    return allowed(seconds[number]) if number < len(seconds) else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    start = time.perf_counter()
    result = yield
    taken = time.perf_counter() - start
    if hasattr(item, "cell_num"):  # only nbval's items have one
        limit = budget(item.config, Path(item.path), item.cell_num)
        if limit is not None and taken > limit:
            raise TooSlow(
                f"this cell took {taken:.0f} s and may take {limit:.0f} s; make it faster, "
                "or measure it again with python notebooks/tools/times.py"
            )
    return result
