"""What the tests find is what a user's environment holds: nothing of the tests' own stands in for a
library.
"""

import importlib.util
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
IMPORT_FOLDERS = [
    ROOT / "tests",
    *(ROOT / "tests").glob("*/"),
    ROOT / "experiments" / "performance",
    ROOT / "experiments" / "verdicts",
]
"""The folders that pytest puts on ``sys.path``: those with tests in them, and ``pythonpath`` of
pyproject.toml.
"""


def distributions() -> set[str]:
    """The libraries that pyproject.toml names, and those that they look
    for without needing them.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    requirements = project["project"]["dependencies"] + project["dependency-groups"]["dev"]
    requirements += [name for extra in project["project"]["optional-dependencies"].values() for name in extra]
    names = {re.split(r"[^\w-]", requirement)[0].lower().replace("-", "_") for requirement in requirements}
    return names | {"scipy", "sklearn", "pandas", "yaml", "hydra", "jaxlib", "tensorflow", "cupy", "dask", "ray"}


@pytest.mark.parametrize("folder", IMPORT_FOLDERS, ids=lambda folder: folder.name)
def test_no_file_or_folder_on_the_path_has_the_name_of_a_library(folder: Path) -> None:
    """A folder ``torch`` there *is* the package torch to ``importorskip`` and to SciPy, installed
    or not.
    """
    names = {path.stem for path in folder.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert not names & (distributions() | sys.stdlib_module_names)


@pytest.mark.parametrize("library", ["torch", "jax"])
def test_an_optional_library_is_installed_or_not_there_at_all(library: str) -> None:
    """A namespace package, which has no file of its own, is neither."""
    spec = importlib.util.find_spec(library)
    assert spec is None or spec.origin is not None
