"""docs/plugins.md, followed as it is written: its files are put in an empty folder, its commands
are run, and what it says comes out does.
"""

import dataclasses
import os
import re
import subprocess
import sys
import zipfile
from numbers import Real
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

import gradpath as gp
from conftest import PATIENCE, settle
from gradpath.core.roles import GateRole, Roles
from gradpath.core.scaled import Scaled
from gradpath.core.tape import Batch, LayerTape, Tape
from gradpath.core.trace import Gradient, Trace
from gradpath.tracking.stored_run import Run

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
    (named,) = re.findall(r"^pip install dist/(\S+)$", PAGE, re.M)
    assert wheel.match(named)
    with zipfile.ZipFile(wheel) as archive:
        assert {"gers/cells/gers_lstm.py", "gers/conf/cell/gers_lstm.yaml"} <= set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    shown = typed("gradpath run --cfg job cell=gers_lstm", tmp_path, PYTHONPATH=str(tmp_path / "installed"))
    assert shown.returncode == 0, shown.stderr
    assert "forget_bias: 1.0" in shown.stdout


def table(heading: str) -> list[list[str]]:
    """The rows of the first table after a heading."""
    lines = PAGE.partition(f"\n### {heading}\n")[2].splitlines()
    start = next(place for place, line in enumerate(lines) if line.startswith("|---"))
    rows = []
    for line in lines[start + 1 :]:
        if not line.startswith("|"):
            break
        rows.append([entry.strip() for entry in line.strip("|").split("|")])
    return rows


WORDS = {
    "number": Real,
    "text": str,
    "dict": dict,
    "tuple": tuple,
    "None": type(None),
    "roles": Roles,
    "gradient": Gradient,
}


def check_table(heading: str, values: dict[str, Any], sizes: dict[str, int]) -> str:
    """Every value in a table is there, and of the shape or the type that it says; the table as
    text.
    """
    rows = table(heading)
    for expression, shape, _ in rows:
        value = eval(expression.strip("`"), values)
        if shape in WORDS:
            assert isinstance(value, WORDS[shape]), expression
            continue
        axes, _, scaled = shape.partition(") ")
        assert isinstance(value, Scaled) == (scaled == "scaled"), expression
        array = value.array if isinstance(value, Scaled) else value
        assert array.shape == eval(axes.rstrip(")") + ")", sizes), expression
    return "\n".join(expression for expression, *_ in rows)


def missing(kind: type, text: str, internal: set[str]) -> set[str]:
    """The fields and properties of a record that a text does not name, without those of gradpath's
    own use.
    """
    names = {name for base in kind.__mro__ for name, value in vars(base).items() if isinstance(value, property)}
    names |= {field.name for field in dataclasses.fields(kind)}
    return {name for name in names if not re.search(rf"\.{name}\b", text)} - internal


def test_what_the_page_says_an_instrument_gets_is_there() -> None:
    network, theta, batch = gp.network(
        "cell.layers=2", "cell.hidden_size=3", "task=adding", "task.length=5", "train.batch_size=4"
    )
    trace = network.backward(theta, network.forward(theta, batch))
    trace = dataclasses.replace(trace, trained=trace.gradient, applied=np.zeros_like(theta))
    sizes = {"T": 5, "B": 4, "I": 2, "H": 3, "O": 1, "n": 4, "P": network.size, "R": 1}
    text = check_table(
        "What an instrument gets", {"trace": trace, "network": network, "layer": 0, "name": "layer1/H"}, sizes
    )
    assert not missing(Trace, text, {"packed"})
    assert not missing(Tape, text, set())
    assert not missing(Batch, text, set())
    assert not missing(LayerTape, text, {"augmented_input"})


def test_what_the_page_says_a_figure_gets_is_there(home: Path) -> None:
    result = gp.run("cell.hidden_size=3", "task.length=5", "train.steps=2", "train.batch_size=4", "train.eval_size=9")
    run = result.stored
    readings = run.series["param_grad_norm"]
    sizes = {"T": 5, "k": len(readings.steps), "names": len(readings.names), "m": 3, "e": 1}
    text = check_table("What a figure gets", {"run": run, "name": "param_grad_norm"}, sizes)
    assert not missing(Run, text, set())


def test_the_roles_of_the_page_are_those_of_a_gate() -> None:
    lines = PAGE.partition("| role | what the gate does |")[2].splitlines()[2:]
    roles = [re.match(r"\| `(\w+)` \|", line) for line in lines[: len(get_args(GateRole)) + 1]]
    assert {role[1] for role in roles if role} == set(get_args(GateRole))


def test_a_default_of_a_subclass_is_that_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the file's value beside it; and another one in the file is a fault that the contract
    finds.
    """
    (text,) = re.findall(r"^```python\n(@dataclass\nclass OpenLSTM.*?)^```$", PAGE, re.M | re.S)
    imports = "from dataclasses import dataclass\nfrom gradpath.cells.lstm import LSTM\n"
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "open_lstm.py").write_text(imports + "from gradpath.schema.settings import setting\n" + text)
    (tmp_path / "conf" / "cell").mkdir(parents=True)
    yaml = tmp_path / "conf" / "cell" / "open_lstm.yaml"
    yaml.write_text("defaults: [_open_lstm, _self_]\n")
    shown = typed("gradpath run --cfg job --plugin . cell=open_lstm", tmp_path)
    assert "forget_bias: 3.0" in shown.stdout, shown.stderr
    yaml.write_text("defaults: [_open_lstm, _self_]\nno_such_field: 1\n")
    refused = typed("gradpath run --cfg job --plugin . cell=open_lstm", tmp_path)
    assert refused.returncode == 2
    assert f"{yaml}: cell.no_such_field: no such key; there are hidden_size" in refused.stderr


def test_a_half_written_unit_stops_every_command_until_its_name_begins_with_an_underscore(
    tmp_path: Path, home: Path
) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "half.py").write_text("x = 1 +")
    for command in ("run cell=rnn", "check cell=rnn", "report"):
        stopped = typed(f"gradpath {command} --plugin .", tmp_path)
        assert (stopped.returncode, stopped.stderr.count("\n")) == (2, 1)
        assert "half.py: SyntaxError" in stopped.stderr
    (tmp_path / "tasks" / "half.py").rename(tmp_path / "tasks" / "_half.py")
    assert typed("gradpath run --cfg job --plugin .", tmp_path).returncode == 0
