"""docs/plugins.md, followed as it is written: its files are put in an empty folder, its commands
are run, and what it says comes out does.
"""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from conftest import PATIENCE, settle

PAGE = (Path(__file__).parents[1] / "docs" / "plugins.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`([^`\n]+)`(?: of setuptools)?:\n\n```(?:python|yaml)\n(.*?)^```$", PAGE, re.M | re.S))
BUILDS = re.findall(r"^`pyproject.toml`(?: of setuptools)?:\n\n```toml\n(.*?)^```$", PAGE, re.M | re.S)
COMMANDS = [
    line[2:] for block in re.findall(r"^```console\n(.*?)^```$", PAGE, re.M | re.S) for line in block.splitlines()
]


def write(folder: Path) -> None:
    for place, text in FILES.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text(text, encoding="utf-8")


def typed(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command of the page, run in a folder."""
    program, *arguments = command.split()
    words = [sys.executable, "-m", program, *arguments, *(["-p", "no:cacheprovider"] if program == "pytest" else [])]
    return subprocess.run(
        words, cwd=folder, env=os.environ | environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "units"
    folder.mkdir()
    write(folder)
    return folder


def test_the_page_has_its_parts() -> None:
    kinds = ("cells", "tasks", "instruments", "figures")
    assert [next(file for file in FILES if file.startswith(kind)) for kind in kinds]
    assert len([file for file in FILES if file.startswith("tests/")]) == 3
    assert [command.split()[:2] for command in COMMANDS] == [
        ["gradpath", "check"],
        ["pytest", "-q"],
        ["gradpath", "run"],
        ["gradpath", "report"],
        ["pytest", "-q"],
        ["gradpath", "run"],
        ["gradpath", "report"],
    ]


def test_the_cell_of_the_page_passes_the_check_and_the_task_its_contract(folder: Path) -> None:
    checked = typed(COMMANDS[0], folder)
    assert checked.stdout.endswith("all right\n"), checked.stdout + checked.stderr
    tested = typed("pytest -q tests/test_delayed_xor.py", folder)
    assert tested.returncode == 0, tested.stdout


@pytest.mark.slow
def test_the_page_can_be_followed(folder: Path, tmp_path: Path, migrated_database: Path, monkeypatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    settle(home, migrated_database, monkeypatch)
    completed = [typed(command, folder) for command in COMMANDS]
    for command, process in zip(COMMANDS, completed, strict=True):
        assert process.returncode == 0, (command, process.stdout, process.stderr)
    report = completed[3]
    assert "4 runs of sweep" in report.stdout
    assert report.stdout.count("LSTM of Gers · seed ") == 2
    drawn = {path.stem for path in (home / "reports" / "figures" / "gradpath").glob("*.png")}
    assert drawn == {"norm_by_lag", "gradient_atlas", "exploding", "gates", "ratio_over_training"}
    assert "failed" not in report.stderr
    assert "not drawn: " in report.stderr


@pytest.mark.parametrize("build", BUILDS, ids=["hatchling", "setuptools"])
def test_an_installed_package_brings_its_units(build: str, tmp_path: Path) -> None:
    """The wheel holds the YAML files, and its entry point is enough."""
    write(tmp_path / "src" / "gers")
    (tmp_path / "src" / "gers" / "__init__.py").touch()
    (tmp_path / "pyproject.toml").write_text(build, encoding="utf-8")
    backend = re.search(r'build-backend = "(.*)"', build)
    assert backend
    script = f"from {backend[1]} import build_wheel; build_wheel('.')"
    built = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert {"gers/cells/gers_lstm.py", "gers/conf/cell/gers_lstm.yaml"} <= set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    shown = typed("gradpath run --cfg job cell=gers_lstm", tmp_path, PYTHONPATH=str(tmp_path / "installed"))
    assert shown.returncode == 0, shown.stderr
    assert "forget_bias: 1.0" in shown.stdout
