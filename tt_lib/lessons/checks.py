"""Checks below the exercises: the same cell stands in the exercise and in its solution, and runs in both."""

from __future__ import annotations

from collections.abc import Callable

TODO = "your code here"
"""What an unsolved exercise raises as NotImplementedError (the generator of exercises writes it)."""


def check(name: str, test: Callable[[], None]) -> None:
    """Run a test of the reader's own code and say how it went, without stopping the notebook.

    Args:
        name: what is tested.
        test: raises AssertionError, with words that help, where the code is wrong.
    """
    try:
        test()
    except NotImplementedError:
        print(f"{name}: not written yet")
    except AssertionError as error:
        print(f"{name}: not yet. {error}")
    except Exception as error:  # the reader's code may do anything
        print(f"{name}: stopped with {type(error).__name__}: {error}")
    else:
        print(f"{name}: well done")
