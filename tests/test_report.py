"""The report over stores as they are: what is missing, damaged, foreign or hostile is named, the
rest drawn.
"""

import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import PATIENCE, settle
from gradpath.commands import compose, hints, report, signals, ui
from gradpath.commands.execute import execute
from gradpath.figures._shared import common
from gradpath.figures.gates import Gates
from gradpath.schema import locations
from gradpath.tracking import loader, plan, store, stored_run
from gradpath.tracking.recorder import Recorder

SMALL = ["task.length=6", "cell.hidden_size=3", "train.batch_size=4", "train.eval_size=8", "train.steps=2"]
POINTS = [[f"arm={arm}", *SMALL, f"seed={seed}"] for arm in ("lstm", "rnn") for seed in (0, 1)]
HOSTILE_TEXT = "\x1b]0;owned\x07\x1b[2J\u202e<script>alert(1)</script>|`a`\n[x](y)\u200b"


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> Path:
    """A store with a whole sweep ``s`` of four points."""
    with pytest.MonkeyPatch.context() as patch:
        folder = settle(tmp_path_factory.mktemp("swept"), migrated_database, patch)
        plan.record([(point, compose.experiments(point)) for point in POINTS], "s")
        for point in POINTS:
            execute(compose.experiment(point), "s")
    with sqlite3.connect(folder / "mlruns" / "mlflow.db") as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return folder


@pytest.fixture
def swept_store(swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A copy of it, with a client and the runs by name."""
    shutil.copytree(swept / "mlruns", tmp_path / "mlruns")
    shutil.rmtree(tmp_path / "mlruns" / "artifacts")
    monkeypatch.setenv("GRADPATH_HOME", str(tmp_path))
    with sqlite3.connect(tmp_path / "mlruns" / "mlflow.db") as connection:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            query = f"UPDATE {table} SET {column} = replace({column}, ?, ?)"
            connection.execute(query, (str(swept / "mlruns"), str(tmp_path / "mlruns")))
    shutil.copytree(swept / "mlruns" / "artifacts", tmp_path / "mlruns" / "artifacts")
    client = store.connect(None)
    experiment = client.get_experiment_by_name("gradpath")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    return SimpleNamespace(client=client, id=experiment.experiment_id, runs=runs, home=tmp_path)


def artifact_path(swept_store: SimpleNamespace, name: str, artifact: str = store.ARTIFACT) -> Path:
    path = swept_store.home / "mlruns" / "artifacts" / swept_store.runs[name].info.run_id / "artifacts" / artifact
    assert path.is_file()
    return path


def write(*overrides: str) -> int:
    return report.write(compose.report(["figures=[]", *overrides]))


def test_what_is_not_there_is_answered_with_what_is(swept_store) -> None:
    with pytest.raises(store.StoreError, match=r"sweep=no: no finished run; the newest is s, of gradpath$"):
        write("sweep=no")
    with pytest.raises(
        store.StoreError, match=r"there are: gradpath; train one with: gradpath run -m \+experiment=gates$"
    ):
        write("study=gates")
    with pytest.raises(
        store.StoreError,
        match=r"study=nothing: no such MLflow experiment; there are: gradpath; train one with: gradpath run$",
    ):
        write("study=nothing")


def test_the_command_that_draws_what_is_there_can_be_typed(swept_store, capsys) -> None:
    swept_store.client.delete_run(swept_store.runs[RNN0].info.run_id)
    with pytest.raises(store.StoreError) as refused:
        write()
    command = str(refused.value).partition("draw what is there: gradpath report ")[2]
    assert write(*shlex.split(command)) == 0
    assert capsys.readouterr().out.startswith("3 runs of sweep s")


RNN0, RNN1 = (f"rnn · adding T=6 · seed {seed}" for seed in (0, 1))


# Completeness


def test_a_whole_sweep_is_drawn_and_nothing_is_said(swept_store, capsys) -> None:
    assert write() == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("4 runs of sweep s, experiment gradpath\n")
    assert captured.err == ""


def test_a_sweep_that_stopped_between_two_points_is_not_whole(swept_store, capsys) -> None:
    for name in (RNN0, RNN1):
        with sqlite3.connect(swept_store.home / "mlruns" / "mlflow.db") as connection:  # as if it had never begun
            connection.execute("UPDATE runs SET lifecycle_stage = 'deleted' WHERE name = ?", (name,))
    with pytest.raises(store.StoreError) as error:
        write()
    message = str(error.value)
    assert f"2 of 4 planned points did not finish: {RNN0}, {RNN1}" in message
    assert write("partial=true") == 0
    assert "2 of 4 planned points did not finish" in capsys.readouterr().err
    # What the refusal says to type runs the point into its sweep.
    command = shlex.split(re.search(r"gradpath run (.*); draw", message)[1])  # type: ignore[index]
    repeated = compose.experiment(command)
    assert repeated.config_hash == swept_store.runs[RNN0].data.tags["config_hash"]
    execute(repeated, repeated.tracking.sweep_id or "")
    with pytest.raises(store.StoreError, match=f"1 of 4 planned points did not finish: {RNN1}"):
        write()


def test_a_point_that_was_killed_and_has_been_run_again_is_whole(swept_store, capsys) -> None:
    with pytest.raises(KeyboardInterrupt), Recorder(compose.experiment(POINTS[3]), {"sweep_id": "s"}):
        raise KeyboardInterrupt
    assert write() == 0
    assert capsys.readouterr().err == ""


def test_doubles_are_named_and_partial_draws_the_newest(swept_store, capsys) -> None:
    repeated = execute(compose.experiment(POINTS[3]), "s")
    with pytest.raises(store.StoreError, match=f"are there more than once: {RNN1}"):
        write()
    assert write("partial=true") == 0
    assert capsys.readouterr().out.startswith("4 runs")
    newest, _ = report._complete(loader.sweep(None, "gradpath", "s"), "", "s", compose.report(["partial=true"]))
    assert repeated.run_id in [run.run_id for run in newest], "the newest"


def test_a_sweep_without_a_plan_is_judged_by_what_was_begun(swept_store, capsys) -> None:
    execute(compose.experiment(POINTS[0]), "old")
    assert write("sweep=old", "study=gradpath") == 0
    assert "no plan of this sweep is stored" in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt), Recorder(compose.experiment(POINTS[1]), {"sweep_id": "old"}):
        raise KeyboardInterrupt
    with pytest.raises(store.StoreError, match="these points did not finish: lstm · adding T=6 · seed 1"):
        write("sweep=old", "study=gradpath")


def test_points_that_are_named_alike_are_told_apart(swept_store) -> None:
    points = [["arm=rnn", *SMALL, f"optimizer.lr={lr}"] for lr in (0.25, 0.5)]
    plan.record([(point, compose.experiments(point)) for point in points], "t")
    execute(compose.experiment(points[0]), "t")
    with pytest.raises(store.StoreError, match=r"1 of 2 planned .*seed 0 \(arm=rnn .*optimizer.lr=0.5\)"):
        write("sweep=t")


def test_commands_that_share_a_sweep_each_add_their_plan(swept_store) -> None:
    plan.record([(["arm=gru", *SMALL], compose.experiments(["arm=gru", *SMALL]))], "s")
    plan.record([(["arm=gru", *SMALL], compose.experiments(["arm=gru", *SMALL]))], "another")
    with pytest.raises(store.StoreError, match="1 of 5 planned points did not finish: gru"):
        write("sweep=s")


def test_a_plan_of_thousands_of_points_fits_the_tags_of_every_store() -> None:
    class Client:
        tags: dict[str, str] = {}

        def set_experiment_tag(self, experiment_id: str, key: str, value: str) -> None:
            assert len(key) <= 250
            assert len(value) <= 5000
            self.tags[key] = value

    hashes = [f"{i * 7919 % 2**48:012x}" for i in range(5000)]
    plan.write(Client(), "0", "s" * 300, [[["arm=lstm"], "lstm", [[i, h]]] for i, h in enumerate(hashes)])  # type: ignore[arg-type]
    points, problems = plan.read(Client.tags, "s" * 300)
    assert [(p.seed, p.identity) for p in points.values()] == list(enumerate(hashes))
    assert not problems
    assert plan.read(Client.tags, "s") == ({}, [])
    Client.tags.popitem()
    points, (line,) = plan.read(Client.tags, "s" * 300)
    assert not points
    assert "parts are there" in line


def test_a_plan_keeps_no_password_and_no_option_that_runs_code(swept_store) -> None:
    overrides = ["arm=gru", *SMALL, f"tracking.uri=sqlite:///{swept_store.home}/mlruns/mlflow.db", "hydra.verbose=true"]
    plan.record([(overrides, compose.experiments(overrides[:-1]))], "secret")
    tags = swept_store.client.get_experiment_by_name("gradpath").tags
    (point,) = plan.read(tags, "secret")[0].values()
    assert point.overrides == ("arm=gru", *SMALL)
    assert hints.point_command(point, "secret", "postgresql://me:pw@host/db") == hints.point_command(
        point, "secret", None
    )
    for hostile in (
        "+hydra.callbacks.x={_target_: os.system}",
        "hydra/launcher=x",
        "--experimental-rerun",
        "a=\x1b[2J",
    ):
        assert hints.point_command(plan.Point("0", "n", 0, (hostile,)), "s", None) == ""


KEY = plan._prefix("s") + "0a.1of"


@pytest.mark.parametrize(
    "tags",
    [
        {KEY + "1": ""},
        {KEY + "1": "nonsense"},
        {KEY + "1": "e" * 20_000},
        {KEY + "1": "eJwDAAAAAAE="},
        {KEY + "0": "eJw="},
        {KEY + "9999": "eJw="},
        {KEY + "2": "eJw="},
        {KEY + "one": "eJw="},
    ],
)
def test_a_plan_of_nonsense_is_said_and_the_sweep_drawn(swept_store, capsys, tags: dict[str, str]) -> None:
    for key, value in tags.items():
        swept_store.client.set_experiment_tag(swept_store.id, key, value)
    assert write() == 0
    stderr = capsys.readouterr().err
    assert "Traceback" not in stderr
    assert stderr.count("\n") <= 1


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda x: st.lists(x, max_size=3))


@given(st.text(max_size=60) | st.builds(lambda jobs: (jobs,), JSON))
@settings(max_examples=80, deadline=None)
def test_any_plan_is_read_or_refused(content: Any) -> None:
    class Client:
        def set_experiment_tag(self, _id: str, key: str, value: str) -> None:
            tags[key] = value

    tags: dict[str, str] = {KEY + "1": content} if isinstance(content, str) else {}
    if not tags:
        plan.write(Client(), "0", "s", content[0])  # type: ignore[arg-type]
    points, problems = plan.read(tags, "s")
    assert all(isinstance(point, plan.Point) for point in points.values())
    assert all(line.isprintable() for line in problems)


# Runs of other tools, damaged runs


def test_a_damaged_run_is_named_the_rest_is_drawn_and_the_status_is_one(swept_store, capsys) -> None:
    artifact_path(swept_store, RNN1).write_bytes(b"")
    assert write() == 1
    captured = capsys.readouterr()
    assert captured.out.startswith("3 runs of sweep s")
    left_out, again = captured.err.splitlines()
    assert re.fullmatch(rf"left out: run {RNN1} \(\w+\): damaged artifact: measurements.npz .*", left_out)
    assert again.startswith("run the first that is left out again: gradpath run arm=rnn ")
    execute(compose.experiment(POINTS[3]), "s")  # and once it has been run again, all is there
    assert write() == 0
    assert "passed over: run rnn" in capsys.readouterr().err


def test_where_every_run_is_damaged_one_line_says_so(swept_store) -> None:
    for name in swept_store.runs:
        artifact_path(swept_store, name, "config.yaml").unlink()
    with pytest.raises(store.StoreError, match=r"no run can be read: run .*: no artifact config.yaml: "):
        write()


@pytest.mark.parametrize(
    ("table", "key", "value", "status"),
    [
        ("tags", "diverged_at_step", "soon", 1),
        ("tags", "diverged_at_step", "-1", 1),
        ("tags", "verdict", "marvellous", 0),
        ("tags", "verdict", HOSTILE_TEXT, 0),
        ("tags", "verdict_reason", HOSTILE_TEXT * 20, 0),
        ("tags", "config_hash", None, 2),
        ("tags", "config_hash", "' or '1'='1", 2),
        ("tags", "verdict", None, 0),
        ("params", "arm", None, 0),
        ("params", "arm", HOSTILE_TEXT, 0),
        ("params", "arm", "a" * 6000, 0),
        ("runs", "name", HOSTILE_TEXT, 0),
        ("runs", "name", "", 0),
        ("runs", "name", None, 0),
        ("runs", "artifact_uri", "s3://bucket/x", 0),
        ("runs", "artifact_uri", "/nowhere\0", 0),
        ("runs", "artifact_uri", "", 0),
    ],
)
def test_nonsense_in_a_run_of_ours(swept_store, capsys, table: str, key: str, value: str | None, status: int) -> None:
    run_id = swept_store.runs[RNN1].info.run_id
    with sqlite3.connect(swept_store.home / "mlruns" / "mlflow.db") as connection:
        if table == "runs":
            connection.execute(f"UPDATE runs SET {key} = ? WHERE run_uuid = ?", (value, run_id))
        else:
            connection.execute(f"DELETE FROM {table} WHERE run_uuid = ? AND key = ?", (run_id, key))
            if value is not None:
                statement = f"INSERT INTO {table} (key, value, run_uuid) VALUES (?, ?, ?)"
                connection.execute(statement, (key, value, run_id))
    if status == 2:
        with pytest.raises(store.StoreError) as error:
            write("sweep=s", "study=gradpath")
        assert str(error.value).isprintable()
        assert f"did not finish: {RNN1}" in str(error.value)
        return
    assert write("sweep=s", "study=gradpath") == status
    captured = capsys.readouterr()
    page = (locations.figures("gradpath") / "verdicts.md").read_text()
    for text in (captured.out, captured.err, page):
        assert all(line.isprintable() for line in text.split("\n"))
    assert "<script>" not in page
    rows = [line for line in page.split("\n") if line.startswith("| ")][1:]
    assert len(rows) == 4 - status
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 4 for row in rows), "as many cells as the table has"


def test_runs_of_other_tools_are_passed_over(swept_store, capsys) -> None:
    foreign = swept_store.client.create_run(swept_store.id, run_name=HOSTILE_TEXT, tags={"sweep_id": "s"})
    swept_store.client.set_terminated(foreign.info.run_id)
    for tags in ({}, {"sweep_id": "theirs"}, {"sweep_id": "theirs", "config_hash": "mine"}):
        run = swept_store.client.create_run(swept_store.id, tags=tags)  # newer than all of ours
        swept_store.client.set_terminated(run.info.run_id)
    assert loader.newest_sweep(None, None) == ("gradpath", "s")
    assert write() == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("passed over: run \\x1b]0;owned")
    assert line.endswith("not a run of gradpath, it has no config_hash")


@pytest.mark.parametrize("sweep_id", ["a' or '1'='1", 'a"b', "%", "a`b", "\x1b[2J", "s'", "x" * 5000, "", "ä;--"])
def test_a_sweep_of_any_name_is_not_there_or_its_own(swept_store, sweep_id: str) -> None:
    with pytest.raises(store.StoreError) as error:
        report.write(report.Report(sweep=sweep_id))
    assert str(error.value).isprintable()
    assert "no finished run" in str(error.value)
    if not sweep_id:
        return
    run = swept_store.runs[RNN1].info.run_id
    with sqlite3.connect(swept_store.home / "mlruns" / "mlflow.db") as connection:
        connection.execute("UPDATE tags SET value = ? WHERE key = 'sweep_id' AND run_uuid = ?", (sweep_id, run))
    assert [r.run_id for r in loader.sweep(None, "gradpath", sweep_id).runs] == [run]


def test_a_sweep_is_found_in_whichever_experiment_it_lies(swept_store) -> None:
    execute(compose.experiment([*POINTS[0], "tracking.experiment=other"]), "later")
    assert loader.newest_sweep(None, None) == ("other", "later")
    assert loader.newest_sweep(None, None, "s") == ("gradpath", "s")


def test_a_deleted_experiment_says_so(swept_store) -> None:
    swept_store.client.delete_experiment(swept_store.id)
    for overrides in (["study=gradpath"], ["study=gradpath", "sweep=s"]):
        with pytest.raises(store.StoreError, match="study=gradpath: has been deleted in MLflow"):
            write(*overrides)


def test_a_store_that_repeats_its_page_is_not_followed_for_ever() -> None:
    class Page(list):
        token = "again"

    with pytest.raises(store.StoreError, match="repeats a page"):
        list(store.pages(lambda token: Page([1])))


def test_a_download_leaves_nothing_behind_and_shows_no_bar(swept_store, tmp_path_factory, monkeypatch, capfd) -> None:
    import tempfile

    temporary = tmp_path_factory.mktemp("scratch")
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    downloads = tmp_path_factory.mktemp("elsewhere")
    moved = downloads / "artifacts"
    (swept_store.home / "mlruns" / "artifacts").rename(moved)
    # An address that only MLflow can follow.
    with sqlite3.connect(swept_store.home / "mlruns" / "mlflow.db") as connection:
        query = "UPDATE runs SET artifact_uri = 'file://localhost' || ? || '/' || run_uuid || '/artifacts'"
        connection.execute(query, (str(moved),))
    monkeypatch.setattr(stored_run, "_exists", lambda path: False)
    assert len(loader.load(None, "gradpath", "s")) == 4
    assert list(temporary.iterdir()) == []
    assert capfd.readouterr().err == ""


def test_an_artifact_that_is_no_file_is_not_waited_for(swept_store, capsys) -> None:
    file = artifact_path(swept_store, RNN1)
    file.unlink()
    file.symlink_to("/dev/zero")
    other_artifact = artifact_path(swept_store, RNN0)
    other_artifact.unlink()
    os.mkfifo(other_artifact)
    assert write() == 1
    assert capsys.readouterr().err.count("artifact gradients/measurements.npz is not a file\n") == 2


# Figures


def test_a_figure_that_raises_is_named_and_the_others_are_drawn(swept_store, capsys, monkeypatch) -> None:
    def raise_error(self: Any, runs: Any) -> Any:
        raise KeyError("no\nsuch key\x1b[2J")

    monkeypatch.setattr(Gates, "draw", raise_error)
    monkeypatch.setattr(report, "_replace", lambda file, content: None)
    assert report.write(compose.report(["figures=[gates,exploding]"])) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("failed: gates (KeyError: 'no\\nsuch key\\x1b[2J' (test_report.py, line ")
    assert captured.err.count("\n") == 1
    assert "exploding.png" in captured.out


def test_figures_drawn_in_processes_are_those_drawn_in_this_one(swept_store, capsys, tmp_path) -> None:
    for jobs in (1, 2):
        arguments = [f"jobs={jobs}", f"out={tmp_path / str(jobs)}", "figures=[gates,paths,exploding]"]
        assert report.write(compose.report(arguments)) == 0
        assert "not drawn: paths (needs path_grad_norm)" in capsys.readouterr().err
    alone, beside = ({file.name: file.read_bytes() for file in (tmp_path / jobs).iterdir()} for jobs in "12")
    assert {"gates.png", "gates.svg", "exploding.png", "exploding.svg"} <= alone.keys()
    assert beside == alone


def test_a_figure_whose_process_is_killed_is_named_and_the_others_are_drawn(swept_store, capsys, tmp_path) -> None:
    file = tmp_path / "figures" / "deadly.py"
    file.parent.mkdir()
    file.write_text(
        "import os\nimport signal\nfrom dataclasses import dataclass\nfrom gradpath.figures import Figure\n\n\n"
        "@dataclass\nclass Deadly(Figure):\n"
        "    def draw(self, runs):\n        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    (tmp_path / "conf" / "figures").mkdir(parents=True)
    (tmp_path / "conf" / "figures" / "deadly.yaml").write_text(
        "# @package figures.deadly\ndefaults:\n  - _deadly\n  - _self_\n"
    )
    command = [sys.executable, "-m", "gradpath", "--plugin", str(tmp_path), "report", "jobs=2"]
    done = subprocess.run([*command, "figures=[deadly,gates]"], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (1, "failed: deadly (its process was ended by SIGKILL)\n")
    assert "gates.png" in done.stdout


def test_several_figures_are_a_list() -> None:
    with pytest.raises(compose.ConfigError, match=r"figures=gates,paths: several go into brackets, as in figures=\["):
        compose.report(["figures=gates,paths"])


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("exception", [signals.Terminated(signal.SIGTERM), KeyboardInterrupt()])
def test_a_signal_ends_a_report(swept_store, capsys, monkeypatch, exception: BaseException, wrapped: bool) -> None:
    """It is no fault of the figure that it comes in, also where the drawing library makes an error
    of it.
    """

    def raise_exception(self: Any, runs: Any) -> Any:
        try:
            raise exception
        finally:
            if wrapped:
                raise KeyError("Rectangle:kwdoc")

    monkeypatch.setattr(Gates, "draw", raise_exception)
    with pytest.raises(type(exception)):
        report.write(compose.report(["figures=[gates,exploding]"]))
    assert "failed" not in capsys.readouterr().err


def test_a_full_disk_leaves_no_half_file(swept_store, capsys, monkeypatch) -> None:
    folder = locations.figures("gradpath")
    assert report.write(compose.report(["figures=[exploding]"])) == 0
    contents_before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def write_half(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_half)
    capsys.readouterr()
    assert report.write(compose.report(["figures=[exploding]"])) == 1
    stderr = capsys.readouterr().err
    assert stderr == "failed: verdicts.md (No space left on device), exploding (No space left on device)\n"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == contents_before


def test_a_folder_that_cannot_be_written_is_one_line(swept_store) -> None:
    (swept_store.home / "reports").write_text("a file in the way")
    with pytest.raises(store.StoreError, match=r"out=.*/gradpath: cannot be written: Not a directory"):
        write()
    for folder in (f"{swept_store.home}/reports/x", "/proc/none/x", "a" * 300, "/dev/null/x"):
        with pytest.raises(store.StoreError, match="cannot be written"):
            report.write(report.Report(out=folder))
    with pytest.raises(store.StoreError, match="cannot be written"):
        report.write(report.Report(out="a\0b"))


# The folder of a report


@pytest.mark.parametrize("name", ["gradpath", "my study", "größe_実験", "v1.2", "a-b", "CONSOLE"])
def test_a_harmless_experiment_has_its_own_name_as_folder(name: str) -> None:
    assert locations.folder_name(name) == name


HOSTILE_NAMES = [
    "..",
    ".",
    "../../../escaped",
    "/etc/x",
    "a/b",
    "a\\b",
    "C:x",
    "a\0b",
    "a\nb",
    "",
    " ",
    ".git",
    "x.",
    "x ",
    "con",
]
HOSTILE_NAMES += [
    "NUL.txt",
    "COM1",
    "lpt9.a.b",
    "a" * 300,
    "ä" * 150,
    "e\u0301",
    "\u202e",
    "a~0123456789ab",
    "\ud800",
    "$x$",
    "COM¹",
]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_an_odd_experiment_stays_in_the_folder(home: Path, name: str) -> None:
    folder = locations.figures(name)
    folder.mkdir(parents=True)
    assert folder.resolve().parent == locations.figures().resolve()
    assert len(folder.name.encode()) < 255
    assert folder.name != name


@given(st.text(max_size=8), st.text(max_size=8))
@settings(max_examples=300)
def test_no_two_experiments_share_a_folder(first_name: str, second_name: str) -> None:
    folder = locations.folder_name(first_name)
    assert (folder == locations.folder_name(second_name)) == (first_name == second_name)
    assert not {"/", "\\", "\0", ":"} & set(folder)
    assert folder.strip(" .") == folder.rstrip()
    assert folder.isprintable()


def test_the_report_of_an_escaping_experiment_stays_in_the_reports_folder(swept_store, capsys) -> None:
    with sqlite3.connect(swept_store.home / "mlruns" / "mlflow.db") as connection:
        connection.execute("UPDATE experiments SET name = '../../../escaped\x1b[2J' WHERE name = 'gradpath'")
    paths_before = set(swept_store.home.parent.rglob("verdicts.md"))
    assert write() == 0
    (page,) = set(swept_store.home.parent.rglob("verdicts.md")) - paths_before
    assert page.parent.parent == swept_store.home / "reports" / "figures"
    assert capsys.readouterr().out.startswith("4 runs of sweep s, experiment ../../../escaped\\x1b[2J\n")
    assert [name for name, _ in ui.links(None, "http://x")] == ["../../../escaped\\x1b[2J"]


def test_a_link_that_leads_out_is_not_followed(swept_store, tmp_path_factory) -> None:
    outside_folder = tmp_path_factory.mktemp("outside")
    locations.figures().mkdir(parents=True)
    locations.figures("gradpath").symlink_to(outside_folder)
    with pytest.raises(store.StoreError, match="leads out of the reports' folder"):
        write()
    locations.figures("gradpath").unlink()
    locations.figures("gradpath").mkdir()
    (outside_folder / "theirs").write_text("theirs")
    (locations.figures("gradpath") / "verdicts.md").symlink_to(outside_folder / "theirs")
    assert write() == 0
    assert (outside_folder / "theirs").read_text() == "theirs"
    assert [path.name for path in outside_folder.iterdir()] == ["theirs"]


# Any tags at all


@given(
    st.dictionaries(
        st.sampled_from(["config_hash", "sweep_id", "verdict", "verdict_reason", "diverged_at_step", "arm", "x"]),
        st.text(max_size=12) | st.sampled_from(["0", "1e3", "-0", "٣", "solved", "0" * 12, "s", HOSTILE_TEXT]),
    ),
    st.none() | st.text(max_size=12),
    st.sampled_from(["FINISHED", "FAILED", "RUNNING", "SCHEDULED", "KILLED", "NONSENSE"]),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_tags_are_drawn_or_named(
    swept_store, monkeypatch, tags: dict[str, str], name: str | None, status: str
) -> None:
    """A fifth run in the sweep, or one of the four changed."""
    odd = SimpleNamespace(
        info=SimpleNamespace(**dict(swept_store.runs[RNN1].info) | {"run_name": name, "status": status})
    )
    odd.data = SimpleNamespace(tags=swept_store.runs[RNN1].data.tags | tags, params={})
    other_runs = [run for key, run in swept_store.runs.items() if key != RNN1]
    monkeypatch.setattr(loader, "_search", lambda client, experiment, sweep: [*other_runs, odd])
    loaded = loader.sweep(None, "gradpath", "s")
    assert len(loaded.runs) >= 3
    lines = [*loaded.damaged, *loaded.passed_over, *loaded.missing.values(), *report.verdicts(loaded.runs)]
    assert all(line.isprintable() for line in lines)
    assert np.isfinite([run.diverged_at or 0 for run in loaded.runs]).all()
    assert common.groups(loaded.runs)
