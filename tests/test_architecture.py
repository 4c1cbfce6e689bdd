"""What a module may import: the contracts in pyproject.toml, and that what computes needs NumPy
alone.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import gradpath

SOURCE = Path(gradpath.__file__).parent
ROOT = SOURCE.parent.parent
HEX_COLOUR = re.compile(r"#[0-9A-Fa-f]{3,8}\b")


FUNCTION_WORDS = set(
    "about above after again all alone also among any anybody as aside at away back before behind below beside "
    "between beyond both but by comes each either else elsewhere everybody everyone everything few for found "
    "from given gone here how if in inside into it its just known less like made many more most much near neither no "
    "nor not nothing of off on one only onto or other others ours over own rest said same sent several "
    "since so some such than that their theirs them then there these they this those through till to told too toward "
    "two under until up upon very way went were what when where whether which while who whole whose why with within "
    "without yet you".split()
)


def bound(path: Path) -> Iterator[tuple[int, str]]:
    """(line, name) of everything that a module gives a name to."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or (
            isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name
        ):
            yield node.lineno, node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((node.lineno, alias.asname) for alias in node.names if alias.asname)


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
    for path in SOURCE.rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 250, path.relative_to(SOURCE)


def test_names_are_no_function_words() -> None:
    """A name says what the value is, which a pronoun or a preposition does not."""
    places = []
    for path in sorted(SOURCE.rglob("*.py")):
        place = path.relative_to(SOURCE).as_posix()
        places += [
            f"{place}:{line}: {name}"
            for line, name in bound(path)
            if name.strip("_") in FUNCTION_WORDS and not name.startswith("__")
        ]
    assert not places, "\n".join(places)


def test_every_colour_of_a_figure_stands_in_the_palette() -> None:
    """Except those that a cell declares for its own arms, as a plugin's cell must."""
    places = [
        f"{path.relative_to(SOURCE).as_posix()}:{number}: {line.strip()}"
        for path in sorted(SOURCE.rglob("*.py"))
        if path.name != "palette.py" and path.parent.name != "cells"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if HEX_COLOUR.search(line)
    ]
    assert not places, "\n".join(places)
