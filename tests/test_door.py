"""The command's door as strangers use it: odd options, hostile overrides, signals, and how a sweep
says that it ended.

In this process wherever that says the same.
"""

import re
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import open_dict

from conftest import PATIENCE
from gradpath.commands import compose, hints, hydra_config, hydra_options, launch, signals
from gradpath.schema import locations
from gradpath.tasks.adding import Adding
from gradpath.tracking import loader, store

SMALL = ["task.length=12", "cell.hidden_size=6", "train.batch_size=5", "train.eval_size=20", "train.steps=2"]
INTERNAL_NAMES = re.compile(r"Exception|Lexer|Traceback|DictConfig|ListConfig|NoneType|<class|<EOF>|omegaconf|antlr")


def assert_one_line(err: str) -> None:
    assert err.startswith("gradpath: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert err[:-1].isprintable()
    assert len(err) < 900
    assert not INTERNAL_NAMES.search(err), err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--experimental-rerun", "config.pickle"], "--experimental-rerun: not taken: it would unpickle a file"),
        (["--experimental=config.pickle"], "--experimental-rerun: not taken"),
        (["--multirun", "--run"], "--run --multirun: only one of these at a time"),
        (["-m", "-c", "job"], "--multirun --cfg: only one"),
        (["--run", "hydra.mode=MULTIRUN"], "--run hydra.mode=MULTIRUN: only one"),
        (["--resolve"], "--resolve: goes with --cfg only"),
        (["--package", "cell"], "--package: goes with --cfg only"),
        (["--cfg", "job", "--package", "nope"], "--package nope: there is no such section"),
        (["--config-name", "x"], "--config-name: not taken"),
        (["--config-path", "/tmp"], "--config-path: not taken"),
        (["--config-dir", "/no/such/folder"], "--config-dir /no/such/folder: there is no such folder"),
        (["--info", "nope"], "argument --info/-i: invalid choice: 'nope'"),
        (["--shell-completion"], "--shell-completion: goes with install=SHELL"),
        (["-sc", "query=bash"], "--shell-completion: goes with install=SHELL"),
        (["hydra.mode=both"], "hydra.mode=both: must be RUN or MULTIRUN"),
        (["hydra/launcher=nope"], "hydra/launcher=nope: no such name, or its plugin is not installed; there are basic"),
        (["-m", "hydra/sweeper=ax"], "hydra/sweeper=ax: no such name, or its plugin is not installed"),
        (["-m", "hydra.run.dir=a,b"], "hydra.run.dir=a,b: Hydra's own settings are the same for every point"),
        (["-m", "seed=interval(0,1)"], "seed=interval(0,1): an interval has no points"),
        (["-m", "+experiment=demo,vanishing"], "+experiment=demo,vanishing: one study at a time"),
        (["task=[adding,copy]"], "task=[adding,copy]: must be one name; a sweep over several is gradpath run -m task="),
        (["seed=1e3"], "seed=1e3: must be an integer ≥ 0, a range"),
        (["seed=0,1"], "seed=0,1: several values make a sweep, which is gradpath run -m seed=0,1"),
        (["sweep_id=1e5"], "(did you mean tracking.sweep_id?)"),
        (["lr=0.1"], "(did you mean optimizer.lr?)"),
        (["T=50"], "(did you mean task.length?)"),
        (["hidden_size=5"], "(did you mean cell.hidden_size?)"),
        (["+cell.foo=1"], "cell.foo=1: no such key; there are hidden_size"),
        (["+a.b.c=3"], "a={b:{c:3}}: no such key"),
        (["cell=../arm/rnn"], "cell=../arm/rnn: no such name; there are gru, lstm, peephole_lstm, rnn"),
        (["cell=_lstm"], "cell=_lstm: no such name"),
        (["+cell=rnn"], "+cell=rnn: cell is chosen already; choose another by cell=rnn"),
        (["experiment=demo"], "experiment=demo: a study is added: +experiment=demo"),
        (["tracking.experiment=" + "x" * 300], "must be at most 200 bytes long"),
        (["tracking.experiment=" + "験" * 100], "must be at most 200 bytes long"),
        (["tracking.experiment=a/b"], "tracking.experiment=a/b: must be letters, digits, spaces, _ . or -"),
        (["tracking.experiment=it's"], "tracking.experiment=it's: must be letters, digits, spaces, _ . or -"),
        (["tracking.experiment=a}b"], "tracking.experiment=a}b: must be letters, digits, spaces, _ . or -"),
        (["tracking.experiment='a"], "tracking.experiment='a: a bracket or a quote is not closed"),
        (
            ["tracking.ur=x"],
            "tracking.ur=x: no such key; there are uri, experiment, sweep_id, timeout (did you mean track",
        ),
        (["http://me:p@ss@host"], "http://***@host: must be KEY=VALUE"),
        (["uri=postgresql://me:p@ss@host/db"], "uri=postgresql://me:***@host/db: no such key"),
        (["tracking.uri=[http://me:p@ss@host]"], "tracking.uri=[http://***@host]: must be text or null"),
        (["tracking.uri=postgresql://me:p@ss@host/a,b"], "gradpath run -m tracking.uri=postgresql://me:***@host/a,b"),
        (["-m", "tracking.uri=http://me:p@ss@host", "seed=0,0"], "this point is in the sweep twice, with seed 0"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_what_cannot_be_is_refused_in_one_line(home: Path, command, arguments: list[str], message: str) -> None:
    status, out, err = command("run", *arguments)
    assert (status, out) == (2, "")
    assert_one_line(err)
    assert message in err
    assert "p@ss" not in err


def test_a_key_that_another_unit_has_is_not_proposed_again(home: Path, command) -> None:
    _, _, err = command("run", "cell=rnn", "cell.forget_bias=1")
    assert err.endswith("there are hidden_size, layers, initial_state, activation\n")


@pytest.mark.parametrize("path", ["/tmp/a (1)/x.db", "/tmp/it's/x.db", "/tmp/[a]/x.db", "/tmp/a{b}/x.db"])
def test_a_path_is_taken_as_it_is_written(path: str) -> None:
    assert compose.experiment([f"tracking.uri=sqlite:///{path}"]).tracking.uri == f"sqlite:///{path}"
    assert compose.report([f"out={path}"]).out == path


@pytest.mark.parametrize(
    "arguments", [["--cfg", "hydra"], ["--info", "searchpath"], ["--version"], ["--cfg", "job", "--resolve"]]
)
def test_what_hydra_is_asked_it_answers(home: Path, command, arguments: list[str]) -> None:
    status, out, err = command("run", *arguments)
    assert (status, err) == (0, "")
    assert out


HOSTILE = [
    ["+hydra.callbacks.x={_target_:os.getcwd}"],
    ["hydra.launcher._target_=os.getcwd", "-m"],
    ["+hydra.launcher.x={_target_:os.getcwd}", "-m"],
    ["hydra.launcher=${hydra.job}", "-m"],
    ['+hydra.launcher.x="${oc.create:{_target_:os.getcwd}}"', "-m"],
    ["hydra.sweeper._target_=os.getcwd", "-m"],
    ["+hydra.sweeper.params.seed={_target_:os.getcwd}", "-m"],
    ["+hydra.job.env_set.PATH=/tmp"],
    ["hydra.job.env_copy=[HOME]"],
    ["+hydra.job_logging.handlers.x={class:os.getcwd}"],
    ["+hydra.hydra_logging.formatters.x={class:os.getcwd}"],
    ["hydra.searchpath=[pkg://antigravity]"],
    ["--config-dir", "EVIL", "arm=callback"],
    ["--config-dir", "EVIL", "arm=logging"],
    ["--config-dir", "EVIL", "-m", "arm=rnn,logging"],
    ["--config-dir", "EVIL", "hydra/job_logging=evil"],
    ["--config-dir", "EVIL", "hydra/launcher=evil", "-m"],
    ["hydra.searchpath=[EVIL]", "hydra/callbacks=evil"],
    ["--config-dir", "EVIL", "hydra/hydra_logging=none", "+experiment=sweeps", "-m"],
    ["--cfg", "job", "+hydra.callbacks.x={_target_:os.getcwd}"],
    ["--info", "config", "+hydra.callbacks.x={_target_:os.getcwd}"],
]


@pytest.mark.parametrize("arguments", HOSTILE, ids=" ".join)
def test_nothing_that_an_override_or_a_file_holds_is_executed(
    home: Path, tmp_path_factory, command, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    """Neither called nor handed to Hydra: it would be called there."""
    hostile_folder = tmp_path_factory.mktemp("evil")
    files = {
        "arm/callback": "# @package _global_\nhydra: {callbacks: {x: {_target_: os.getcwd}}}\n",
        "arm/logging": "# @package _global_\nhydra: {job_logging: {handlers: {x: {class: os.getcwd}}}}\n",
        "hydra/job_logging/evil": "version: 1\nformatters: {x: {(): os.getcwd}}\n",
        "hydra/launcher/evil": "_target_: os.getcwd\n",
        "hydra/callbacks/evil": "x: {_target_: os.getcwd}\n",
        "experiment/sweeps": "# @package _global_\nhydra: {sweeper: {params: {+hydra.callbacks.x: '{_target_: x}'}}}\n",
    }
    for name, text in files.items():
        (hostile_folder / name).parent.mkdir(parents=True, exist_ok=True)
        (hostile_folder / f"{name}.yaml").write_text(text)
    monkeypatch.setattr(launch, "_run_jobs", lambda *_: pytest.fail("handed over to Hydra"))
    status, out, err = command("run", *[argument.replace("EVIL", str(hostile_folder)) for argument in arguments])
    assert (status, out) == (2, "")
    assert_one_line(err)
    assert "antigravity" not in sys.modules


def test_files_of_the_users_own_are_checked_and_run_as_one(home: Path, tmp_path_factory, command) -> None:
    config_folder = tmp_path_factory.mktemp("own configuration")
    (config_folder / "arm").mkdir()
    (config_folder / "arm" / "tiny.yaml").write_text("# @package _global_\ncell: {hidden_size: 3}\n")
    status, _, err = command("run", "--config-dir", str(config_folder), "-m", "arm=tiny,rnn", *SMALL[:1], *SMALL[2:])
    assert status == 0, err
    assert sorted(run.arm for run in loader.load(None, *loader.newest_sweep(None, None))) == ["lstm", "rnn"]
    status, _, err = command("run", "--config-dir", str(config_folder), "arm=tyny")
    assert status == 2
    assert "tiny, value_clipped_rnn (did you mean tiny?)" in err


def test_a_folder_of_hydras_that_cannot_be_written_is_named(home: Path, command) -> None:
    (home / "file").write_text("")
    status, out, err = command("run", *SMALL, f"hydra.run.dir={home}/file/x")
    assert (status, out) == (2, "")
    assert_one_line(err)
    assert err.startswith(f"gradpath: hydra.run.dir: {home}/file/x: cannot be written: ")


@pytest.mark.parametrize(
    "overrides",
    [
        ["arm=glob(*rnn)"],
        ["arm=glob([rnn,l*],exclude=lstm_1997)", "seed=1,0"],
        ["arm=choice(rnn,lstm)", "seed=sort(3,1,2)"],
        ["seed=range(4)", "optimizer.lr=tag(low,choice(0.1,0.01))"],
        ["optimizer.lr=sort(1e-2,1e-3)", "arm=rnn,lstm", "hydra.verbose=false"],
        ["+experiment=demo", "seed=1,2"],
    ],
    ids=" ".join,
)
def test_points_are_those_of_hydras_own_sweeper(overrides: list[str]) -> None:
    with compose.hydra() as hydra:
        base = hydra.compose_config("config", [o for o in overrides if "experiment" in o], None)
        params = [f"{key}={value}" for key, value in (base.hydra.sweeper.params or {}).items()]
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        parsed = parser.parse_overrides(params + [o for o in overrides if not o.startswith("hydra.")])
        (expected,) = BasicSweeper.split_arguments(parsed, None)
    assert compose.points(overrides) == expected


def test_points_composed_on_a_copy_are_those_composed_whole() -> None:
    composer = compose.Composer()
    points_overrides = [
        ["arm=rnn", "seed=3", "optimizer.lr=0.1"],
        ["arm=rnn", "cell.activation=relu", "clip.max_norm=null", "train={steps:5,batch_size:3}"],
        ["arm=clipped_rnn", "task=copy", "task.length=20", "instruments.reach.schedule.every=7", "seed=[3,1]"],
        ["arm=rnn", "train.steps=${train.batch_size}", "train.batch_size=9"],
        ["arm=rnn", "++train.steps=4", "train.steps=6"],
    ]
    for point in points_overrides:
        composed = compose.composed("config", point)
        with open_dict(composed):
            del composed["hydra"]
        assert dict(composer(point).items()) == dict(composed.items())
        assert compose.experiments(point) == compose.build(composed, point).experiments()


def test_a_sweep_composes_each_choice_of_units_once(monkeypatch: pytest.MonkeyPatch) -> None:
    composed = []
    original = compose.composed
    compose._composers.clear()  # of what other tests have composed
    monkeypatch.setattr(compose, "composed", lambda *a: composed.append(a) or original(*a))
    jobs = launch.planned(hydra_options.read_options(["-m", "arm=rnn,lstm", "seed=range(10)", "optimizer.lr=0.1,0.2"]))
    assert len(jobs) == 40
    assert len(composed) <= 4
    assert jobs[1].name == "arm=rnn seed=0 optimizer.lr=0.2"


def test_only_what_may_have_changed_is_composed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(locations.conf(), tmp_path / "conf")
    monkeypatch.setattr(locations, "conf", lambda: tmp_path / "conf")
    folder = tmp_path / "more"
    (folder / "arm").mkdir(parents=True)
    file, added = tmp_path / "conf" / "optimizer" / "adam.yaml", folder / "arm" / "mine.yaml"
    composed, original = [], compose.composed
    monkeypatch.setattr(compose, "composed", lambda *a: composed.append(a) or original(*a))

    def lr(*overrides: str) -> float:
        compose.forget()
        return compose.experiment(overrides).optimizer.lr

    default = lr()
    assert lr("optimizer.lr=0.5") == 0.5
    assert lr() == default
    assert len(composed) == 1
    file.write_text(re.sub("lr: .*", "lr: 0.25", file.read_text()))
    assert lr() == 0.25
    assert len(composed) == 2
    for value in (0.125, 0.375):
        added.write_text(f"# @package _global_\noptimizer:\n  lr: {value}\n")
        assert lr("arm=mine", f"hydra.searchpath=[{folder}]") == value


def test_checking_many_points_says_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    points = [[f"seed={n}"] for n in range(4)]
    assert list(launch._counted(points, seconds=0.0)) == points
    assert "checking 4 points: 0 %" in capsys.readouterr().err


class Raises(Adding):
    """A task of a user's, with an error in it."""

    raised: BaseException = ValueError("of the\nuser's")

    def sample(self, rng, batch_size):
        raise self.raised


@pytest.mark.parametrize("raised", [SystemExit(0), ValueError("of the\nuser's"), MemoryError()], ids=repr)
def test_whatever_a_unit_raises_the_other_points_run_and_the_point_is_named(
    home: Path, command, monkeypatch: pytest.MonkeyPatch, raised: BaseException
) -> None:
    sample = Adding.sample

    def odd(self, rng, batch_size):
        if batch_size == 3:
            raise raised
        return sample(self, rng, batch_size)

    monkeypatch.setattr(Adding, "sample", odd)
    status, out, err = command("run", "-m", *SMALL, "train.batch_size=2,3,4", "seed=0,1", "jobs=1")
    assert status == 1
    assert "6 runs of sweep" in out
    assert ": 4 finished, 2 failed." in out
    failure_lines = [line for line in err.splitlines() if line.startswith("failed: ")]
    assert [line.partition("[")[2] for line in failure_lines] == [
        "train.batch_size=3 seed=0]",
        "train.batch_size=3 seed=1]",
    ]
    assert not INTERNAL_NAMES.search(err.replace("MemoryError", ""))
    stored_runs = store.connect(None).search_runs([store.experiment_id(store.connect(None), "gradpath")])
    assert sorted(run.info.status for run in stored_runs) == ["FAILED"] * 2 + ["FINISHED"] * 4


def test_one_run_that_fails_is_one_line_and_status_one(home: Path, command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Adding, "sample", Raises.sample)
    monkeypatch.setattr(Adding, "raised", Raises.raised, raising=False)
    status, out, err = command("run", *SMALL)
    assert status == 1
    assert ": 1 failed. Curves" in out, "there is nothing to draw"
    assert re.fullmatch(r"failed: lstm · .*: ValueError: of the\\nuser's \(test_door.py, line \d+\)\n", err)


def test_a_store_that_is_lost_ends_the_sweep_in_one_line(home: Path, command, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def lose_store(experiments, *_):
        started.append(experiments)
        raise store.StoreError("tracking.uri=x: is gone")

    monkeypatch.setattr(launch, "execute_seeds", lose_store)
    status, out, err = command("run", "-m", *SMALL, "seed=0,1,2", "jobs=1")
    assert (status, out, err) == (1, "", "gradpath: tracking.uri=x: is gone\n")
    assert len(started) == 1


@pytest.mark.parametrize(
    ("raised", "status", "outcome"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (signals.Terminated(signal.SIGHUP), 129, "ended by SIGHUP"),
    ],
)
def test_a_sweep_that_is_stopped_says_how_far_it_came(
    home: Path, command, monkeypatch: pytest.MonkeyPatch, raised: BaseException, status: int, outcome: str
) -> None:
    """Between two points, where nothing of gradpath is on the stack but Hydra's launcher."""
    execute = launch.execute_seeds

    def stop_at_second(experiments, *arguments):
        if experiments[0].seed == 1:
            raise raised
        return execute(experiments, *arguments)

    monkeypatch.setattr(launch, "execute_seeds", stop_at_second)
    exit_status, out, err = command("run", "-m", *SMALL, "seed=0,1,2", "jobs=1")
    assert (exit_status, out) == (status, "")
    assert err.splitlines()[-1] == f"gradpath: {outcome}: 1 of 3 runs finished"
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("signal_number", "status", "outcome"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "ended by SIGTERM")],
)
def test_a_library_that_stumbles_when_it_is_interrupted_does_not_hide_it(
    home: Path, command, monkeypatch: pytest.MonkeyPatch, signal_number: signal.Signals, status: int, outcome: str
) -> None:
    """As OmegaConf does, whose half-made lists have no flags to put back."""

    def load(*_, **__):
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which an earlier end has switched off
        try:
            signal.raise_signal(signal_number)
        finally:
            raise AttributeError("'dict' object has no attribute '_invalidate_flags_cache'")

    with monkeypatch.context() as patch:
        patch.setattr(hydra_config, "compose", load)
        compose._composers.clear()  # of what other tests have composed
        assert command("run", "cell.layers=1") == (status, "", f"gradpath: {outcome}\n")
    monkeypatch.setattr(launch, "execute_seeds", load)
    assert command("run", *SMALL)[::2] == (status, f"gradpath: {outcome}: 0 of 1 runs finished\n")


def test_a_locked_store_is_waited_for_as_long_as_is_said(home: Path, command) -> None:
    store.experiment_id(store.connect(None), "gradpath")
    with closing(sqlite3.connect(locations.database(), isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        status, out, err = command("run", *SMALL, "tracking.timeout=0.1")
    assert (status, out) == (2, "")
    assert err.endswith("the database is locked by another process; waited for 0.1 s\n")


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_signals_that_end_a_command(signal_number: signal.Signals) -> None:
    with pytest.raises(signals.Terminated) as exit_info, signals.terminable():
        signal.raise_signal(signal_number)
    assert exit_info.value.code == 128 + signal_number
    previous_handler = signal.signal(signal_number, signal.SIG_IGN)
    try:
        with signals.terminable():  # as under nohup
            signal.raise_signal(signal_number)
    finally:
        signal.signal(signal_number, previous_handler)


@pytest.mark.parametrize("name", ["my study", "größe_実験", "x.y-z", "1e5", "null", "true", "007", "- a"])
def test_what_the_hint_says_works_when_typed(home: Path, name: str) -> None:
    uri = f"sqlite:///{home}/other store.db"
    figures, curves = hints.report_command(name, "1e5", uri), hints.ui_command(uri)
    arguments = shlex.split(figures)
    assert arguments[:2] == ["gradpath", "report"]
    report = compose.report(arguments[2:])
    assert (report.study, report.sweep, report.uri) == (name, "1e5", uri)
    assert shlex.split(curves) == ["gradpath", "ui", "--uri", uri]


def test_no_password_is_printed() -> None:
    uri = "postgresql://me:p@ss@host/db"
    hint_text = f"{hints.report_command('x', 's', uri)} {hints.ui_command(uri)}"
    assert "p@ss" not in hint_text
    assert "postgresql://me:***@host/db" in hint_text


@pytest.mark.parametrize("section", ["job", "all"])
def test_the_configuration_is_shown_without_the_password(command, section: str) -> None:
    status, out, err = command("run", "--cfg", section, "tracking.uri=postgresql://me:p%40ss@host/db")
    assert (status, err) == (0, "")
    assert "uri: postgresql://me:***@host/db" in out
    assert "p%40ss" not in out


@pytest.mark.parametrize(("option", "key"), [(["report", "uri="], "uri="), (["ui", "--uri"], "--uri=")])
def test_a_refused_store_is_named_by_the_key_that_gave_it(home: Path, command, option: list[str], key: str) -> None:
    uri = f"sqlite:///{home}/nowhere.db"
    arguments = [option[0], option[1] + uri] if option[1].endswith("=") else [*option, uri]
    status, _, err = command(*arguments)
    assert status == 2
    assert err.startswith(f"gradpath: {key}{uri}: no such store")


@pytest.mark.parametrize(
    ("key", "text"),
    [("experiment", w) for w in ("größe_実験", "1e5", "007", "true", "my study", "a-b", '"quoted"')]
    + [("sweep_id", "1e5")],
)
def test_a_name_is_taken_as_it_is_written(key: str, text: str) -> None:
    experiment = compose.experiment([f"tracking.{key}={text}"])
    assert getattr(experiment.tracking, key) == text.strip('"')


def test_names_of_a_sweep_may_be_of_any_alphabet() -> None:
    points = compose.points(["tracking.experiment=größe,実験", "seed=1"])
    assert [compose.experiment(point).tracking.experiment for point in points] == ["größe", "実験"]


def test_an_interpolation_that_hydra_documents_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEED", "7")
    assert compose.experiment(['seed="${oc.decode:${oc.env:SEED}}"']).seed == 7
    monkeypatch.setenv("TASK", "copy")
    assert compose.experiment(["task=${oc.env:TASK}"]).title == "lstm · copy T=100"
    assert compose.experiment(["train.steps=${train.batch_size}"]).train.steps == 32


@pytest.mark.parametrize("port", ["0", "70000", "-1", "x", "", "٣", "9" * 30])
def test_a_port_that_is_none_is_refused(home: Path, command, port: str) -> None:
    status, out, err = command("ui", f"--port={port}")
    assert (status, out) == (2, "")
    assert_one_line(err)
    assert "must be a number from 1 to 65535" in err


@pytest.mark.parametrize("host", ["127.0.0.1", "nope.invalid", "a" * 300, "192.0.2.1"])
def test_where_nobody_can_listen_the_ui_says_so(home: Path, command, host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy_socket:
        status, out, err = command("ui", "--host", host, "--port", str(busy_socket.getsockname()[1]))
    assert (status, out) == (2, "")
    assert_one_line(err)
    assert f"--host {host[:50]}" in err


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL, signal.SIGINT])
def test_the_ui_leaves_nothing_running(home: Path, signal_number: signal.Signals) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free_socket:
        port = free_socket.getsockname()[1]
    serving = [sys.executable, "-m", "gradpath", "ui", "--port", str(port)]
    with subprocess.Popen(serving, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + PATIENCE
        while not _accepts_connections(port) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.3)
        assert _accepts_connections(port)
        process.send_signal(signal_number)
        _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGINT: 0}.get(signal_number, 128 + signal_number)
    assert not _accepts_connections(port)
    assert "Traceback" not in stderr


def _accepts_connections(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.peers
@pytest.mark.skipif(
    find_spec("hydra_plugins") is None or find_spec("hydra_plugins.hydra_joblib_launcher") is None,
    reason="hydra-joblib-launcher is not installed: pip install -e '.[joblib]'",
)
def test_a_parallel_launcher_s_failures_count(home: Path) -> None:
    arguments = ["-m", "hydra/launcher=joblib", *SMALL[:1], *SMALL[2:], "cell.hidden_size=1000000,6"]
    completed = subprocess.run(
        [sys.executable, "-m", "gradpath", "run", *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert completed.returncode == 1
    assert ": 1 finished, 1 failed. Figures" in completed.stdout
    assert "[cell.hidden_size=1000000]" in completed.stderr
    assert "Traceback" not in completed.stderr


def test_the_ui_listens_on_this_machine_alone_unless_told(home: Path, command, monkeypatch) -> None:
    hosts = []
    monkeypatch.setattr("gradpath.commands.ui.serve", lambda uri, host, port: hosts.append(host) or 0)
    assert command("ui")[0] == command("ui", "--host", "::1")[0] == 0
    assert hosts == ["127.0.0.1", "::1"]
