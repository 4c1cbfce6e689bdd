"""``gradpath new`` writes units that pass their contracts as written, all files of one or none."""

import subprocess
import sys
from pathlib import Path

import pytest

from conftest import PATIENCE
from gradpath.commands import compose, new
from gradpath.schema import plugins

ROOT = Path(__file__).parents[1]
UNITS = [kind for kind in new.KINDS if kind != "study"]


@pytest.fixture(autouse=True)
def no_plugin_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(plugins.VARIABLE, "")
    monkeypatch.setattr(plugins, "_added", [])


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plugin with a unit of every kind, each with a name that another line of its file has."""
    folder = tmp_path_factory.mktemp("plugin")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(plugins.VARIABLE, "")
        patch.setattr(plugins, "_added", [])
        for kind in new.KINDS:
            assert new.new([kind, f"my_{kind}", "--plugin", str(folder)]) == 0
    return folder


def pytest_in(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE, check=False)


def test_what_is_written_passes_its_contract(written: Path) -> None:
    """All but the runs and figures of the cell, which are slow."""
    completed = pytest_in(written, "-k", "not every_figure_draws and not run_is_stored and not gradpath_check")
    assert completed.returncode == 0, completed.stdout


@pytest.mark.slow
def test_what_is_written_passes_all_of_its_contract(written: Path) -> None:
    completed = pytest_in(written)
    assert completed.returncode == 0, completed.stdout


def test_the_cell_passes_the_check(written: Path, command) -> None:
    sizes = ["cell.hidden_size=4", "train.batch_size=3", "task.length=8"]
    status, out, err = command("check", "--plugin", str(written), "cell=my_cell", *sizes)
    assert (status, err) == (0, "")
    assert out.endswith("all right\n")


def test_the_instrument_is_read_beside_the_default_ones_as_its_file_says(written: Path) -> None:
    plugins.add_plugin(str(written))
    (file,) = (written / "conf" / "instruments").glob("*.yaml")
    defaults = list(compose.experiment([]).instruments)
    assert f"`+instruments=[{file.stem}]` adds it" in file.read_text()
    assert list(compose.experiment([f"+instruments=[{file.stem}]"]).instruments) == [*defaults, file.stem]
    assert list(compose.experiment([f"instruments=[{file.stem}]"]).instruments) == [file.stem]


def test_the_study_is_a_sweep(written: Path, command) -> None:
    from gradpath.commands import compose

    plugins.add_plugin(str(written))
    points = [compose.experiments(point) for point in compose.points(["+experiment=my_study"])]
    assert [len(seeds) for seeds in points] == [3] * 4
    assert {seeds[0].tracking.experiment for seeds in points} == {"my_study"}


def test_what_is_written_is_formatted_and_without_a_fault(written: Path) -> None:
    rules = ["--isolated", "--no-cache", "--line-length", "120"]
    for arguments in (["check", "--select", "E,F,B,UP,N,SIM", *rules], ["format", "--check", *rules]):
        command = [sys.executable, "-m", "ruff", *arguments, "."]
        completed = subprocess.run(command, cwd=written, capture_output=True, text=True, check=False)
        assert completed.returncode == 0, completed.stdout


def test_it_prints_what_it_wrote_and_what_to_type_next(tmp_path: Path, command) -> None:
    status, out, err = command("new", "cell", "mine", "--plugin", str(tmp_path))
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        f"wrote {tmp_path}/cells/mine.py",
        f"wrote {tmp_path}/conf/cell/mine.yaml",
        f"wrote {tmp_path}/tests/test_cell_mine.py",
        "next:",
        f"  gradpath check --plugin {tmp_path} cell=mine",
        f"  pytest {tmp_path}/tests/test_cell_mine.py",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cell", "lstm"], "cell=lstm: there is a cell of that name already"),
        (["study", "demo"], "experiment=demo: there is a study of that name already"),
        (["cell", "class"], "class: the name of a cell must be of the letters a to z, "),
        (["cell", "null"], "null: the name of a cell must be of the letters a to z, "),
        (["cell", "1st"], "1st: the name of a cell must be of the letters a to z, "),
        (["cell", "../up"], "../up: the name of a cell must be of the letters a to z, "),
        (["cell", "_hidden"], "_hidden: the name of a cell must be of the letters a to z, "),
        (["cell", "größe"], "größe: the name of a cell must be of the letters a to z, "),
        (["task", "CamelCase"], "CamelCase: the name of a task must be of the letters a to z, "),
        (["study", "true"], "true: the name of a study must be of the letters a to z, "),
        (["widget", "mine"], "argument kind: invalid choice: 'widget'"),
        (["cell"], "the following arguments are required: name"),
        (["cell", "mine", "--plugin"], "argument --plugin: expected one argument"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(arguments: list[str], message: str, tmp_path: Path, command) -> None:
    place = [] if "--plugin" in arguments else ["--plugin", str(tmp_path)]
    status, out, err = command("new", *arguments, *place)
    assert (status, out) == (2, "")
    assert err.startswith(f"gradpath: {message}")
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_and_nothing_is_half_written(tmp_path: Path, command) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_task_mine.py").write_text("mine")
    status, _, err = command("new", "task", "mine", "--plugin", str(tmp_path))
    assert status == 2
    assert "test_task_mine.py: is there already; nothing is overwritten" in err
    assert [path.name for path in tmp_path.rglob("*")] == ["tests", "test_task_mine.py"]
    (tmp_path / "conf").write_text("a file where a folder must be")
    status, _, err = command("new", "cell", "other", "--plugin", str(tmp_path))
    assert status == 2
    assert "cannot be written" in err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["conf", "test_task_mine.py", "tests"]


def test_a_name_of_the_plugin_is_taken(written: Path, command) -> None:
    status, _, err = command("new", "cell", "my_cell", "--plugin", str(written))
    assert status == 2
    assert "cell=my_cell: there is a cell of that name already" in err


@pytest.mark.parametrize("kind", UNITS)
def test_a_class_hides_nothing_that_its_file_imports(kind: str) -> None:
    for name in (kind, "step", "setting", "any"):
        (unit, *_) = new.rendered(kind, name).values()
        compile(unit, f"{kind}.py", "exec")
        assert unit.count(f"class {new._class_name(name, kind)}(") == 1
