"""Where results go: the folder chosen, the checkout, or the working folder of an installed
gradpath.
"""

import compileall
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import PATIENCE
from gradpath.commands import cli
from gradpath.schema import locations
from gradpath.schema.settings import ConfigError
from gradpath.tracking import store

SMALL = ["task.length=8", "cell.hidden_size=3", "train.batch_size=4", "train.eval_size=8", "train.steps=4"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for ``sys.path`` that holds the package as a wheel would install it."""
    folder = tmp_path_factory.mktemp("site")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(locations.__file__).parents[1], folder / "gradpath", ignore=ignored)
    shutil.copytree(locations.conf(), folder / "gradpath" / "conf")
    compileall.compile_dir(folder, quiet=2)
    return folder


def gradpath(
    installed: Path, cwd: Path, *arguments: str, home: str | None = None, python: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if key != "GRADPATH_HOME"} | {"PYTHONPATH": str(installed)}
    env |= {} if home is None else {"GRADPATH_HOME": home}
    command = [sys.executable, *(python or ("-m", "gradpath")), *arguments]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False)


@pytest.mark.parametrize("command", ["run", "report", "ui"])
def test_a_home_that_is_no_folder_is_named(
    tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GRADPATH_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(sys, "argv", ["gradpath", command])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert capsys.readouterr().err == f"gradpath: GRADPATH_HOME={tmp_path}/file: is not a folder\n"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="there is no /proc, in which nobody can make a folder")
def test_a_home_that_cannot_be_made_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GRADPATH_HOME", "/proc/nope")
    with pytest.raises(store.StoreError, match=r"^GRADPATH_HOME=/proc/nope: cannot create the database: "):
        store.connect(None)
    with pytest.raises(store.StoreError, match=r"^tracking\.uri=sqlite:////proc/other/x\.db: cannot create "):
        store.connect("sqlite:////proc/other/x.db")


def test_an_installed_gradpath_keeps_its_results_in_the_working_folder(installed: Path, tmp_path: Path) -> None:
    other_folder = tmp_path / "other"
    other_folder.mkdir()
    completed = gradpath(installed, tmp_path, "run", *SMALL, "hydra.job.chdir=true")  # the job's own folder is another
    assert completed.returncode == 0, completed.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlruns", "other"]
    assert len([*(tmp_path / "mlruns" / "artifacts").iterdir()]) == 1
    report = gradpath(installed, tmp_path, "report", "figures=[gates]")
    assert report.returncode == 0, report.stderr
    assert report.stdout.splitlines()[-1] == str(tmp_path / "reports" / "figures" / "gradpath" / "gates.png")
    database = other_folder / "mlruns" / "mlflow.db"
    for command, key in (("report", "uri"), ("ui", "--uri")):
        elsewhere = gradpath(installed, other_folder, command)
        assert (elsewhere.returncode, elsewhere.stdout) == (2, "")
        assert elsewhere.stderr == (
            f"gradpath: {key}=sqlite:///{database}: no such store; gradpath run makes it; "
            "for results in another folder set GRADPATH_HOME to it\n"
        )
    assert [*other_folder.iterdir()] == []
    there = gradpath(installed, other_folder, "report", "figures=[gates]", home="..")
    assert there.stdout == report.stdout


def test_a_process_that_the_command_starts_has_the_same_home(installed: Path, tmp_path: Path) -> None:
    """As those of a launcher, whatever folder they work in."""
    script = (
        "import os, sys; from gradpath.schema import locations; locations.keep_home(); os.chdir('/');"
        "os.execv(sys.executable, [sys.executable, '-c',"
        " 'from gradpath.schema import locations; print(locations.home())'])"
    )
    for home, expected in ((None, tmp_path), ("results", tmp_path / "results"), ("~/x", Path.home() / "x")):
        completed = gradpath(installed, tmp_path, home=home, python=("-c", script))
        assert completed.stdout == f"{expected}\n", completed.stderr


def test_a_home_that_cannot_be_is_one_line(installed: Path, tmp_path: Path) -> None:
    # In a file, as the installed command is: `python -c` looks for modules in the deleted folder
    # too, which Python 3.13.0 ends in a SystemError.
    script = tmp_path / "script.py"
    script.write_text("import os; from gradpath.commands import cli; os.rmdir(os.getcwd()); cli.main()\n", "utf-8")
    folder = tmp_path / "deleted"
    folder.mkdir()
    completed = gradpath(installed, folder, "report", python=(str(script),))
    assert (completed.returncode, completed.stdout) == (2, "")
    assert completed.stderr == "gradpath: the working folder: No such file or directory; go to another\n"
    nobody = gradpath(installed, tmp_path, "report", home="~no-such-user/x")
    assert nobody.returncode == 2
    assert nobody.stderr.startswith("gradpath: GRADPATH_HOME=~no-such-user/x: ")
    assert nobody.stderr.count("\n") == 1


def test_a_checkout_keeps_its_results_wherever_the_command_is_typed(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("GRADPATH_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    assert locations.home() == locations.checkout() == Path(__file__).parents[1]
    monkeypatch.setenv("GRADPATH_HOME", "results")
    assert locations.home() == tmp_path / "results"
    assert "set GRADPATH_HOME" in str(store.missing_store(store.tracking_uri(None)))
    monkeypatch.setenv("GRADPATH_HOME", "~no-such-user")
    with pytest.raises(ConfigError):
        locations.home()
