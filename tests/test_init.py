"""The package's own names: each leads to its module, and nothing heavy is imported before it is used."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

import tt_lib
from tt_lib.files import PACKAGE_ROOT

HEAVY = ("torch", "numpy", "pandas", "scipy", "matplotlib", "diffusers")


def test_every_name_leads_to_its_module():
    for name in tt_lib.__all__:
        assert getattr(tt_lib, name).__name__ == name and name in dir(tt_lib)
    assert "tune" in tt_lib.__all__ and "__version__" in dir(tt_lib)
    with pytest.raises(AttributeError, match="has no attribute 'tuned'"):
        _ = tt_lib.tuned


def test_type_checkers_are_given_the_same_names():
    tree = ast.parse((PACKAGE_ROOT / "tt_lib" / "__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    modules = {alias.name: node.module for node in block.body for alias in node.names}
    assert modules == {name: f"tt_lib.{module}" for name, module in tt_lib._MODULES.items()}


@pytest.mark.parametrize(
    "code", ["import tt_lib", "from tt_lib.cli import app; app(['--help'], standalone_mode=False)"]
)
def test_nothing_heavy_is_imported_at_first(code):
    program = f"{code}\nimport sys\nprint(*sorted(set({HEAVY}) & set(sys.modules)), file=sys.stderr)"
    answer = subprocess.run([sys.executable, "-c", program], cwd=PACKAGE_ROOT, capture_output=True, text=True)
    assert (answer.returncode, answer.stderr.strip()) == (0, "")
