"""What gradpath stands on and cannot change: Hydra's inner parts, and which Python and NumPy it is
set up with.
"""

import inspect
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.types import HydraContext

from gradpath.commands import compose, hydra_internals
from gradpath.engine.compiled import PROVED_NUMPY

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def of_hydra() -> Any:
    with compose.hydra():
        return type(GlobalHydra.instance().hydra)


@pytest.mark.parametrize(
    ("function", "parameters", "location"),
    [
        (lambda: hydra_internals.Callbacks, "config", "launch"),
        (lambda: hydra_internals.apply_overrides, "overrides cfg", "compose"),
        (lambda: hydra_internals.split_arguments, "overrides max_batch_size", "compose"),
        (lambda: hydra_internals.get_args_parser, "", "hydra_options"),
        (lambda: HydraContext, "config_loader callbacks", "launch"),
        (lambda: Plugins.instantiate_launcher, "self hydra_context task_function config", "launch"),
        (lambda: of_hydra().run, "self config_name task_function overrides with_log_configuration", "launch"),
        (
            lambda: of_hydra().compose_config,
            "self config_name overrides run_mode with_log_configuration from_shell validate_sweep_overrides",
            "launch",
        ),
        (lambda: of_hydra().show_cfg, "self config_name overrides cfg_type package resolve", "hydra_options"),
        (lambda: of_hydra().show_info, "self info config_name overrides run_mode", "hydra_options"),
        (lambda: of_hydra().hydra_help, "self config_name args_parser args", "hydra_options"),
        (lambda: of_hydra().shell_completion, "self config_name overrides", "hydra_options"),
    ],
)
def test_what_is_used_of_hydra_is_as_it_was(function: Callable[[], Any], parameters: str, location: str) -> None:
    actual = " ".join(inspect.signature(function()).parameters)
    assert actual == parameters, (
        f"Hydra {hydra.__version__} has changed what gradpath.commands.{location} uses: it takes {actual!r}. "
        "Change that module, or bound hydra-core in pyproject.toml."
    )


def test_a_job_returns_what_it_did_under_the_name_that_is_read() -> None:
    assert "_return_value" in vars(JobReturn()), (
        f"Hydra {hydra.__version__}: gradpath.commands.launch reads _return_value"
    )


def test_the_inner_parts_of_hydra_are_imported_in_one_place() -> None:
    files = [path.name for path in (ROOT / "src").rglob("*.py") if "hydra._internal" in path.read_text()]
    assert files == ["hydra_internals.py"]


def test_the_parser_of_hydra_knows_the_options_that_are_handled() -> None:
    options = vars(hydra_internals.get_args_parser().parse_args([]))
    assert set(options) == set(
        "overrides help hydra_help cfg resolve package run multirun shell_completion config_path config_name "
        "config_dir experimental_rerun info".split()
    ), f"Hydra {hydra.__version__} has other options: gradpath.commands.hydra_options must honour or refuse each"


def test_what_is_set_up_is_bounded_where_it_is_known_not_to_work() -> None:
    assert PROJECT["requires-python"] == ">=3.11,<3.14"
    assert "hydra-core>=1.3.2,<1.4" in PROJECT["dependencies"]
    lowest = re.search(r"numpy>=(\d+)\.(\d+)", " ".join(PROJECT["dependencies"]))
    assert lowest is not None
    assert tuple(map(int, lowest.groups())) == PROVED_NUMPY[0]
    pinned = re.search(r"^numpy==([\d.]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert pinned is not None
    assert PROVED_NUMPY[0] <= tuple(map(int, pinned[1].split(".")[:2])) < PROVED_NUMPY[1]


@pytest.mark.skipif(os.name != "posix", reason="a script of the POSIX shell")
@pytest.mark.parametrize("version", ["3.10.13", "3.14.0", "4.0.0"])
@pytest.mark.parametrize("explicit", [True, False], ids=["asked for", "found"])
def test_a_python_that_cannot_work_is_refused_by_name(version: str, explicit: bool, tmp_path: Path) -> None:
    """By a stand-in that is asked for its version as the interpreter is."""
    major, minor, _ = version.split(".")
    (tmp_path / "python3").write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo "Python {version}" && exit\n'
        f'exec {sys.executable} -c "import sys; sys.version_info = ({major}, {minor}, 0); exec(sys.argv[2])" "$@"\n'
    )
    (tmp_path / "python3").chmod(0o755)
    environment = {"PATH": f"{tmp_path}", **({"PYTHON": str(tmp_path / "python3")} if explicit else {})}
    completed = subprocess.run(
        ["/bin/sh", str(ROOT / "scripts" / "setup.sh"), str(tmp_path / "venv")],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
    )
    assert completed.returncode == 1
    assert completed.stderr.count("\n") == 1
    assert (
        f"and found {tmp_path / 'python3' if explicit else 'python3'}, which is Python {version}. Install one"
        in completed.stderr
    )
    assert not (tmp_path / "venv").exists()
