"""What pyproject.toml declares, and what a source imports."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions

from tt_lib.files import PACKAGE_ROOT

PROJECT = tomllib.loads((PACKAGE_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def normal(distribution: str) -> str:
    """A distribution's name as pip compares it."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def bounds(requirements) -> dict[str, str]:
    """{"torch>=2.4"} -> {"torch": "2.4"}, names in lower case."""
    found = {}
    for requirement in requirements:
        match = re.fullmatch(r"([A-Za-z0-9_.-]+)>=([0-9.]+)", requirement)
        assert match, f"{requirement!r} is not a name with a lower bound"
        found[normal(match[1])] = match[2]
    return found


DEPENDENCIES = bounds(PROJECT["dependencies"])
EXTRAS = {name: bounds(rows) for name, rows in PROJECT["optional-dependencies"].items()}
INSTALLED = packages_distributions()


def imported(source: str) -> set[tuple[str, bool]]:
    """(top-level package, whether importing the module imports it) of every absolute import in ``source``."""
    found = set()

    def walk(node: ast.AST, always: bool) -> None:
        if isinstance(node, ast.Import):
            found.update((alias.name.split(".")[0], always) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add((node.module.split(".")[0], always))
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            walk(child, always and not inside)

    walk(ast.parse(source), True)
    return {(name, always) for name, always in found if name not in sys.stdlib_module_names and name != "tt_lib"}


def undeclared(package: str, allowed: dict[str, str]) -> bool:
    """Whether an imported package comes with no declared distribution."""
    return not {normal(each) for each in INSTALLED.get(package, [package])} & set(allowed)
