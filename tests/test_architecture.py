"""What a module may import: the contracts in pyproject.toml, and that what computes needs NumPy
alone.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import gradpath

SOURCE = Path(gradpath.__file__).parent
ROOT = SOURCE.parent.parent


def imported(path: Path) -> Iterator[str]:
    """Everything that a module imports, in whatever branch or function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_the_contracts_are_kept() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    completed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stdout


@pytest.mark.parametrize("package", ["core", "engine"])
def test_what_computes_imports_numpy_the_standard_library_and_the_packages_below_it(package: str) -> None:
    allowed = {*sys.stdlib_module_names, "numpy", "gradpath"}
    allowed_packages = {"core": ("core", "engine", "schema"), "engine": ("engine",)}[package]
    for path in (SOURCE / package).glob("*.py"):
        for name in imported(path):
            assert name.split(".")[0] in allowed, (path.name, name)
            assert not name.startswith("gradpath.") or name.split(".")[1] in allowed_packages, (path.name, name)


def test_records_know_no_behaviour() -> None:
    """Tape and trace are read by whoever computes, and import none of it, not even for a type."""
    for name in ("tape", "trace"):
        modules = {module for module in imported(SOURCE / "core" / f"{name}.py") if module.startswith("gradpath.core")}
        assert modules <= {"gradpath.core.scaled", "gradpath.core.tape"}, modules


def test_no_file_is_longer_than_can_be_read_at_once() -> None:
    for package in ("core", "engine"):
        for path in (SOURCE / package).glob("*.py"):
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 250, path.name
