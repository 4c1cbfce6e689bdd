"""Units of a user's own folder or package: chosen, trained, stored and drawn as gradpath's, and
refused in one line where they cannot be.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import gradpath as gp
from conftest import PATIENCE
from gradpath.schema import plugins
from gradpath.tracking import loader

Command = Callable[..., tuple[int, str, str]]

FILES = {
    "cells/wide.py": """
from dataclasses import dataclass
from gradpath.cells.lstm import LSTM
from gradpath.schema.settings import setting

@dataclass
class Wide(LSTM):
    extra: float = setting(0.5, "changes nothing", ge=0, le=1)

    def __post_init__(self):
        super().__post_init__()
        if self.extra == 0.75:
            import numpy as np
            np.linalg.inv(np.zeros((2, 2)))
""",
    "conf/cell/wide.yaml": "defaults: [_wide, _self_]\nextra: 0.25\n",
    "conf/arm/wide.yaml": "# @package _global_\ndefaults: [override /cell: wide]\n",
    "tasks/last_bit.py": """
from dataclasses import dataclass
from gradpath.tasks.adding import Adding

@dataclass
class LastBit(Adding):
    pass
""",
    "conf/task/last_bit.yaml": "defaults: [_last_bit, _self_]\nlength: 6\n",
    "instruments/half_loss.py": """
from dataclasses import dataclass
import numpy as np
from gradpath.core.trace import Measurement
from gradpath.instruments import Instrument

@dataclass
class HalfLoss(Instrument):
    per_timestep = False

    def measure(self, network, trace):
        return Measurement(("half",), np.array([trace.tape.loss / 2]))
""",
    "conf/instruments/half_loss.yaml": "# @package instruments.half_loss\ndefaults: [_half_loss, _self_]\n",
    "optimizers/backwards.py": """
from dataclasses import dataclass
from gradpath.optimizers.sgd import SGD

@dataclass
class Backwards(SGD):
    pass
""",
    "conf/optimizer/backwards.yaml": "defaults: [_backwards, _self_]\n",
    "inits/tiny.py": """
from dataclasses import dataclass
from gradpath.inits.uniform import Uniform

@dataclass
class Tiny(Uniform):
    pass
""",
    "conf/init/tiny.yaml": "defaults: [_tiny, _self_]\ngain: 0.01\n",
    "clippings/halved.py": """
from dataclasses import dataclass
from gradpath.clippings import Clipping

@dataclass
class Halved(Clipping):
    label = "halved"

    def apply(self, gradient):
        return gradient.scaled.plain() * gradient.scaled.array.dtype.type(0.5), 0.5
""",
    "conf/clip/halved.yaml": "defaults: [_halved, _self_]\n",
    "figures/losses.py": """
from dataclasses import dataclass
from gradpath.figures import Figure

@dataclass
class Losses(Figure):
    needs = ("half_loss",)

    def draw(self, runs):
        from matplotlib.figure import Figure as Canvas
        canvas = Canvas()
        axes = canvas.subplots()
        for run in runs:
            axes.plot(run.series["half_loss"].values[:, 0])
        return canvas
""",
    "conf/figures/losses.yaml": "# @package figures.losses\ndefaults: [_losses, _self_]\n",
    "conf/experiment/mine.yaml": (
        "# @package _global_\ntask: {length: 6}\ntrain: {steps: 2, batch_size: 4, eval_size: 10}\n"
        "tracking: {experiment: mine}\nhydra: {sweeper: {params: {arm: 'wide,rnn', seed: '0..1'}}}\n"
    ),
}
SMALL = ["train.steps=2", "train.batch_size=4", "train.eval_size=10", "cell.hidden_size=4"]
CHOICES = ["cell=wide", "task=last_bit", "init=tiny", "optimizer=backwards", "clip=halved"]
INSTRUMENTS = "instruments=[grad_norm,clip_scale,param_grad_norm,state_grad_norm,half_loss]"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of units, one of each kind, whose name is no identifier."""
    monkeypatch.setenv(plugins.VARIABLE, "")
    monkeypatch.setattr(plugins, "_added", [])
    write(tmp_path / "my lab", FILES)
    return tmp_path / "my lab"


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def test_a_unit_of_each_kind_is_trained_stored_and_drawn(home: Path, folder: Path, command: Command) -> None:
    status, output, stderr = command("run", "--plugin", str(folder), *CHOICES, INSTRUMENTS, *SMALL)
    assert status == 0, stderr
    assert f"gradpath report --plugin '{folder}'" in output, "the command that is printed needs the folder too"
    (run,) = loader.load(None, "gradpath", output.split()[4])
    assert run.tags["plugins"] == f"my lab ({folder})"
    assert run.arm == "halved_wide"
    assert {key: run.config[key]["name"] for key in ("cell", "task", "init", "optimizer", "clip")} == {
        "cell": "wide", "task": "last_bit", "init": "tiny", "optimizer": "backwards", "clip": "halved"
    }  # fmt: skip
    assert run.config["cell"]["extra"] == 0.25
    assert run.config["task"]["length"] == 6
    assert run.roles.label == "wide", "not that of the cell which it is built on"
    assert (run.series["clip_scale"].values == 0.5).all()
    half = run.series["half_loss"]
    np.testing.assert_allclose(half.values[0, 0], run.loss.values[0] / 2)
    status, _, stderr = command("report", "--plugin", str(folder))
    assert status == 0, stderr
    assert (home / "reports" / "figures" / "gradpath" / "losses.png").is_file(), "drawn without being named"


def test_a_cell_that_a_figure_leaves_out_is_named(home: Path, folder: Path, command: Command) -> None:
    write(folder, {"cells/wide.py": FILES["cells/wide.py"].replace("(LSTM):", "(LSTM):\n    drawing = None")})
    status, _, stderr = command(
        "run",
        "--plugin",
        str(folder),
        "-m",
        "cell=lstm,wide,rnn",
        "instruments=[path_grad_norm,node_grad_norm]",
        *SMALL,
    )
    assert status == 0, stderr
    status, output, stderr = command("report", "--plugin", str(folder), "figures=[flow]")
    assert (status, "flow.png" in output) == (0, True)
    assert stderr == "not drawn in flow: wide has no drawing\n"
    status, _, stderr = command(
        "run", "--plugin", str(folder), "cell=wide", *SMALL, "+instruments=[path_grad_norm,node_grad_norm]"
    )
    status, _, stderr = command("report", "--plugin", str(folder), "figures=[flow]")
    assert (status, stderr) == (1, "not drawn: flow (wide has no drawing)\n")


def test_a_study_of_its_own_is_swept(home: Path, folder: Path, command: Command) -> None:
    status, output, stderr = command("run", "-m", "+experiment=mine", "--plugin", str(folder))
    assert status == 0, stderr
    assert "4 runs" in output
    assert {run.arm for run in loader.load(None, "mine", output.split()[4])} == {"wide", "rnn"}


def test_a_unit_of_each_kind_is_checked(folder: Path, command: Command) -> None:
    status, output, stderr = command("check", f"--plugin={folder}", *CHOICES, "cell.hidden_size=4", "task.length=6")
    assert status == 0, output + stderr
    assert "all right" in output
    assert "halved_wide" in output


def test_help_and_completion_name_them(folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    _, output, _ = command("run", "--plugin", str(folder), "--help")
    for unit in ("wide", "last_bit", "half_loss", "backwards", "tiny", "halved", "mine"):
        assert unit in output, unit
    _, output, _ = command("report", "--help")
    assert "losses" in output, "the folder is a plugin of this process now"
    for line, expected in (
        ("gradpath run --plugin . cell=w", "cell=wide"),
        ("gradpath run cell=p", "cell=peephole_lstm"),
        ("gradpath run -m arm=wid", "arm=wide"),
        ("gradpath report figures=los", "figures=losses"),
        ("gradpath report formats=", "formats=[png,svg]"),
        ("gradpath run train.dtype=", "train.dtype=float32 train.dtype=float64"),
        (
            "gradpath check cell=lstm cell.ablation=no_in",
            "cell.ablation=no_input_gate cell.ablation=no_input_nonlinearity",
        ),
        ("gradpath run train.readout=", "train.readout=true train.readout=false"),
        ("gradpath run train.threads=", "train.threads=null"),
        ("gradpath run cell=wide cell.extra=", "cell.extra=0.25"),
        ("gradpath run cell=wide cell.ext", "cell.extra="),
        ("gradpath re", "report rerun"),
        ("gradpath ui x", ""),
        ("gradpath new t", "task"),
        ("gradpath new in", "instrument init"),
        ("gradpath new --plugin . opt", "optimizer"),
        ("gradpath new cell n", ""),
    ):
        monkeypatch.chdir(folder)
        monkeypatch.setenv("COMP_LINE", line)
        assert command("-sc", "query=bash")[:2] == (0, f"{expected}\n" if expected else ""), line


def test_where_no_folder_is_given_there_is_none(home: Path, folder: Path, command: Command) -> None:
    status, _, stderr = command("run", "cell=wide")
    assert (status, stderr) == (2, "gradpath: cell=wide: no such name; there are gru, lstm, peephole_lstm, rnn\n")


def test_who_forgets_the_option_in_the_folder_is_told(
    home: Path, folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert "; one lies in this folder: add --plugin .\n" in command("run", "cell=wide")[2]


@pytest.mark.parametrize("first", ["--plugin", "--plugin="])
def test_the_option_may_stand_before_the_command(home: Path, folder: Path, command: Command, first: str) -> None:
    option = [first, str(folder)] if first == "--plugin" else [f"{first}{folder}"]
    status, output, stderr = command(*option, "report", "--help")
    assert status == 0, stderr
    assert "losses" in output


NO_UNIT = "from gradpath.tasks import Task\n"
NEEDS = FILES["figures/losses.py"].replace('("half_loss",)', "{0}")
BAD = [
    ({"tasks/bad.py": "x = 1 +"}, "{0}/tasks/bad.py: SyntaxError: invalid syntax (line 1 of bad.py)"),
    ({"tasks/bad.py": "\nimport nothere"}, "{0}/tasks/bad.py: ModuleNotFoundError: No module named 'nothere' (line 2"),
    ({"tasks/bad.py": "def f(): 1 / 0\nf()"}, "{0}/tasks/bad.py: ZeroDivisionError: division by zero (line 1 of"),
    ({"tasks/bad.py": NO_UNIT}, "{0}/tasks/bad.py: must define one Task, it defines none"),
    ({"tasks/bad.py": NO_UNIT + "class A(Task): pass\nclass B(Task): pass"}, "one Task, it defines A and B;"),
    ({"tasks/bad.py": NO_UNIT + "class A(Task): pass"}, "{0}/tasks/bad.py: A does not define chance_loss, lags, "),
    ({"tasks/bad.py": FILES["tasks/last_bit.py"].replace("@dataclass", "")}, "LastBit is not a dataclass; write"),
    ({"tasks/bad.py": FILES["tasks/last_bit.py"]}, "task=bad has no configuration; there is no {0}/conf/task/bad.yaml"),
    (
        {
            "tasks/bad.py": FILES["tasks/last_bit.py"].replace("pass", "a: complex = 1j"),
            "conf/task/bad.yaml": "defaults: [_bad]",
        },
        "{0}/tasks/bad.py: ",
    ),
    ({"cells/lstm.py": FILES["cells/wide.py"]}, "{0}/cells/lstm.py: there is a unit of that name already, "),
    ({"figures/losses.py": NEEDS.format("'half_loss'")}, "{0}/figures/losses.py: needs is 'half_loss'; expected: "),
    ({"figures/losses.py": NEEDS.format("('half_los',)")}, "losses.py: needs half_los: no such instrument; there are "),
    *(
        ({f"cells/{name}.py": FILES["cells/wide.py"]}, f"{{0}}/cells/{name}.py: the name of a unit must ")
        for name in ("null", "true", "123", "a.b", "my cell", "CamelCase", "class", "größe")
    ),
    ({"conf/arm/rnn.yaml": "{}"}, "{0}/conf/arm/rnn.yaml: there is a configuration of that name already, "),
    ({"conf/config.yaml": "{}"}, "{0}/conf/config.yaml: there is a configuration of that name already, "),
    ({"__init__.py": "1 / 0"}, "{0}/__init__.py: ZeroDivisionError: division by zero (line 1 of __init__.py)"),
]  # fmt: skip


@pytest.mark.parametrize(("files", "message"), BAD, ids=range(len(BAD)))
def test_what_is_wrong_with_a_folder_is_one_line(
    home: Path, folder: Path, command: Command, files: dict[str, str], message: str
) -> None:
    write(folder, files)
    status, output, stderr = command("run", "--plugin", str(folder), *SMALL)
    assert (status, output, stderr.count("\n")) == (2, "", 1), stderr
    assert message.format(folder) in stderr


WRONG_YAML = [
    ("a: [", "{0}/conf/arm/bad.yaml, line 1: "),
    ("foo: 1", "{0}/conf/arm/bad.yaml: arm: no such key; there are task, cell"),
    ("# @package _global_\ncell: {nokey: 1}", "{0}/conf/arm/bad.yaml: cell.nokey: no such key; there are hidden_size"),
    ("# @package _global_\ncell: {hidden_size: abc}", "{0}/conf/arm/bad.yaml: cell.hidden_size: must be an integer"),
    ("# @package _global_\ndefaults: [override /cell: nothere]",
        "{0}/conf/arm/bad.yaml: cell=nothere: no such name; there are gru",
    ),
    (
        "# @package _global_\ncell: {hidden_size: '${oc.env:HOME}'}",
        "{0}/conf/arm/bad.yaml: cell.hidden_size=${{oc.env:HOME}}: must be an integer",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), WRONG_YAML, ids=range(len(WRONG_YAML)))
def test_what_is_wrong_in_a_yaml_file_names_the_file_and_the_key(
    home: Path, folder: Path, command: Command, text: str, message: str
) -> None:
    write(folder, {"conf/arm/bad.yaml": text})
    status, _, stderr = command("run", "--plugin", str(folder), "arm=bad")
    assert (status, stderr.count("\n")) == (2, 1)
    assert message.format(folder) in stderr


def test_an_interpolation_in_the_file_of_a_unit_names_the_file_and_the_key(
    home: Path, folder: Path, command: Command
) -> None:
    places = {
        "cell/wide": ("extra: ${oc.env:HOME}", ["arm=wide"], "cell.extra=${oc.env:HOME}: must be a number ≥ 0"),
        "clip/halved": ("nothing: 1", ["clip=halved"], "nothing: no such key"),
        "instruments/half_loss": (
            "schedule: {every: '${oc.env:HOME}'}",
            ["+instruments=[half_loss]"],
            "instruments.half_loss.schedule.every=${oc.env:HOME}: must be an integer ≥ 1 or null",
        ),
    }
    for place, (line, choice, message) in places.items():
        file = folder / "conf" / f"{place}.yaml"
        file.write_text(FILES[f"conf/{place}.yaml"].replace("extra: 0.25\n", "") + line + "\n")
        status, _, stderr = command("run", "--plugin", str(folder), *choice, *SMALL)
        assert (status, stderr.count("\n")) == (2, 1)
        assert stderr.startswith(f"gradpath: {file}: "), stderr
        assert message in stderr


def test_a_plain_list_for_a_setting_that_is_a_list_is_refused_in_a_sweep(home: Path, folder: Path) -> None:
    field = "    lags_: list[int] = field(default_factory=lambda: [1], metadata={'help': 'a list'})\n"
    unit = (
        FILES["tasks/last_bit.py"].replace("    pass\n", field).replace("import dataclass", "import dataclass, field")
    )
    write(folder, {"tasks/last_bit.py": unit})
    gp.add_plugin(folder)
    with pytest.raises(gp.ConfigError, match=r"task.lags_=2: must be a list; in gp.sweep a list .*: \[\[…\]\]"):
        gp.sweep(*SMALL, task={"name": "last_bit", "lags_": [2, 3]})
    assert len(gp.sweep(*SMALL, task={"name": "last_bit", "lags_": [[2, 3]]})) == 1


def test_a_unit_that_exits_is_named_with_its_file(home: Path, folder: Path, command: Command) -> None:
    exiting = FILES["instruments/half_loss.py"].replace(
        "        return", "        import sys; sys.exit(7)\n        return"
    )
    write(folder, {"instruments/half_loss.py": exiting})
    status, _, stderr = command("run", "--plugin", str(folder), "instruments=[half_loss]", *SMALL)
    assert status == 1
    assert "RuntimeError: sys.exit(7) was called (half_loss.py, line 12)" in stderr


def test_what_the_code_of_a_unit_raises_is_no_fault_of_the_key(home: Path, folder: Path, command: Command) -> None:
    for value, message in (
        ("0.75", "LinAlgError: Singular matrix (line 14 of wide.py)"),
        ("2.5", "cell.extra=2.5: must be ≥ 0 and ≤ 1"),
    ):
        status, _, stderr = command("run", "--plugin", str(folder), "cell=wide", f"cell.extra={value}")
        assert (status, stderr) == (2, f"gradpath: {message}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plugin", "nowhere"], "nowhere: there is no such folder"),
        (["--plugin"], "--plugin: takes the path of a folder"),
        (["--plugin", "a:b"], "a : in the name of a folder separates two of them"),
        (["--plugin", "."], "has none of the folders cells, tasks"),
    ],
)
def test_a_path_that_cannot_be_is_refused(
    home: Path, folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    (folder.parent / "empty").mkdir()
    monkeypatch.chdir(folder.parent / "empty")
    status, _, stderr = command("run", *arguments)
    assert (status, stderr.count("\n")) == (2, 1)
    assert message in stderr
    assert os.environ[plugins.VARIABLE] == ""


def test_an_installed_package_needs_no_option(home: Path, folder: Path, tmp_path: Path) -> None:
    """As pip installs it: the package and the entry point of its distribution on the path."""
    site = tmp_path / "site"
    folder.parent.joinpath("my lab").rename(tmp_path / "moved")
    site.mkdir()
    (tmp_path / "moved").rename(site / "mylab")
    information = {
        "METADATA": "Metadata-Version: 2.1\nName: my-lab\nVersion: 1.5\n",
        "entry_points.txt": "[gradpath.plugins]\nlab = mylab\n",
    }
    write(site / "my_lab-1.5.dist-info", information)
    environment = os.environ | {"PYTHONPATH": str(site), "GRADPATH_HOME": str(home)}
    completed = subprocess.run(
        [sys.executable, "-m", "gradpath", "run", *CHOICES, INSTRUMENTS, *SMALL],
        capture_output=True, text=True, timeout=PATIENCE, env=environment, cwd=tmp_path,
    )  # fmt: skip
    assert completed.returncode == 0, completed.stderr
    (run,) = loader.load(None, "gradpath", completed.stdout.split()[4])
    assert run.tags["plugins"] == "lab 1.5"
    assert run.arm == "halved_wide"


def test_another_process_unpickles_a_unit(folder: Path) -> None:
    """As the workers of a parallel launcher do, before anything of gradpath's runs in them."""
    script = """
import pickle, subprocess, sys
from gradpath.core.cell import Cell
from gradpath.schema import plugins
from gradpath.schema.discovery import discover
plugins.add_plugin(sys.argv[1])
pickled = pickle.dumps(discover(Cell)["wide"](extra=0.125))
script = "import pickle, sys; assert pickle.load(sys.stdin.buffer).extra == 0.125"
sys.exit(subprocess.run([sys.executable, "-c", script], input=pickled).returncode)
"""
    assert subprocess.run([sys.executable, "-c", script, str(folder)], timeout=PATIENCE, check=False).returncode == 0


COMMANDS = (["run"], ["run", "-m"], ["check"], ["report"], ["ui"], ["new", "cell", "other"], ["-sc", "query=bash"])


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_an_error_of_a_plugin_is_a_line_and_whole_where_it_is_asked_for(
    home: Path, folder: Path, command: Command, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, {"__init__.py": "def halved():\n    return 1 / 0\n\nhalved()\n"})
    words = [*arguments, "--plugin", str(folder)]
    monkeypatch.setenv("COMP_LINE", "gradpath run cell=")
    line = f"gradpath: {folder}/__init__.py: ZeroDivisionError: division by zero (line 2 of __init__.py)\n"
    status, _, stderr = command(*words)
    assert (status, stderr) == (2, line)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    status, _, stderr = command(*words)
    assert status == 2
    assert stderr.endswith(line)
    assert stderr.startswith("Traceback (most recent call last):\n")
    assert re.search(rf'File "{re.escape(str(folder))}/__init__.py", line 2, in halved\n', stderr)


def test_a_run_that_fails_is_whole_where_it_is_asked_for(
    home: Path, folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = "trace.tape.loss / 2"
    write(folder, {"instruments/half_loss.py": FILES["instruments/half_loss.py"].replace(body, "1 / 0")})
    words = ["run", "--plugin", str(folder), "instruments=[half_loss]", *SMALL]
    status, _, stderr = command(*words)
    assert (status, stderr.count("Traceback")) == (1, 0)
    assert stderr.startswith("failed: ")
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    status, _, stderr = command(*words)
    assert status == 1
    assert stderr.count("Traceback") == 1
    assert "half_loss.py" in stderr.partition("failed: ")[0]


CLASHES = [
    {"cells/lstm.py": FILES["cells/wide.py"]},
    {"conf/arm/rnn.yaml": "{}"},
    {"tasks/bad.py": "x = 1 +"},
    {"tasks/bad.py": "import sys; sys.exit(7)"},
]


@pytest.mark.parametrize("files", CLASHES, ids=lambda files: next(iter(files)))
def test_a_folder_that_clashes_is_not_added_from_python_and_can_be_mended(
    home: Path, folder: Path, files: dict[str, str]
) -> None:
    write(folder, files)
    with pytest.raises(gp.ConfigError) as error:
        gp.add_plugin(folder)
    assert next(iter(files)) in str(error.value)
    assert (os.environ[plugins.VARIABLE], plugins.arguments()) == ("", [])
    gp.network("cell=rnn", "cell.hidden_size=2")
    (folder / next(iter(files))).unlink()
    gp.add_plugin(folder)
    assert gp.network("cell=wide", "cell.hidden_size=2").network.cell.extra == 0.25


@pytest.mark.parametrize("path", ["nowhere", "a:b", ".", 3, None])
def test_from_python_no_option_is_named(
    folder: Path, path: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(gp.ConfigError) as error:
        gp.add_plugin(path)  # type: ignore[arg-type]
    assert "--plugin" not in str(error.value)
