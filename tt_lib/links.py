"""Addresses of the project, made from one name."""

from __future__ import annotations

REPOSITORY = "timetuner-lessons/timetuner"


def repository_url() -> str:
    """Where the project lives."""
    return f"https://github.com/{REPOSITORY}"


def colab_badge(notebook: str) -> str:
    """Markdown of the badge that opens a notebook (a file name in ``notebooks/``) on Colab."""
    address = f"https://colab.research.google.com/github/{REPOSITORY}/blob/main/notebooks/{notebook}"
    return f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({address})"
