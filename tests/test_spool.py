"""A run whose store may be away: it goes through a journal on this machine's disk. Here an SQLite
file that is taken for a server stands for one.
"""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gradpath.commands import compose
from gradpath.commands.execute import execute_seeds
from gradpath.schema import locations
from gradpath.tracking import journal, sender, spooling, store
from test_checkpoint import all_runs, artifact, curves

Command = Callable[..., tuple[int, str, str]]
SMALL = ["task.length=6", "cell.hidden_size=3", "train.batch_size=4", "train.eval_size=8", "train.steps=20"]
TAGS = ("verdict", "verdict_reason", "diverged", "solved", "arm", "true_zeros", "not_finite", "config_hash")


@pytest.fixture(autouse=True)
def taken_for_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "is_local", lambda uri: False)
    monkeypatch.setattr(sender, "contacts", contacts := {})
    monkeypatch.setattr(spooling, "contacts", contacts)
    monkeypatch.setattr(spooling, "_senders", [])


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """While it is set, the store does not answer."""
    event, original = threading.Event(), store.Client.__getattr__

    def request(client: store.Client, name: str) -> Callable:
        if event.is_set():
            raise store.UnreachableError(f"cannot {name}: away")
        return original(client, name)

    monkeypatch.setattr(store.Client, "__getattr__", request)
    return event


def run(*overrides: str) -> None:
    execute_seeds(compose.experiments([*SMALL, "tracking.timeout=600", *overrides]), "s")


def content(run_id: str) -> tuple:
    """All that a reader of a run sees."""
    data = store.connect(None).get_run(run_id).data
    return curves(run_id), artifact(run_id), data.params, {tag: data.tags.get(tag) for tag in TAGS}


@pytest.fixture
def expected(home: Path, monkeypatch: pytest.MonkeyPatch) -> tuple:
    """What a run without a journal comes to; the run itself is gone."""
    with monkeypatch.context() as patch:
        patch.setattr(store, "is_local", lambda uri: True)
        (recorder,) = execute_seeds(compose.experiments([*SMALL, "resume=false"]), "s")
    came_to = content(recorder.run_id)
    recorder.client.delete_run(recorder.run_id)
    return came_to


def only_run() -> str:
    (info,) = (recorded.info for recorded in all_runs())
    assert info.status == "FINISHED"
    return str(info.run_id)


def left() -> list[str]:
    folder = locations.spool()
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def close_journals(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the end of the process does to those that this one has in hand."""
    for waiting in spooling._senders:
        waiting.journal.close()
    monkeypatch.setattr(spooling, "_senders", [])


def test_a_run_through_a_journal_is_what_it_is_without(home: Path, expected: tuple) -> None:
    run()
    assert content(only_run()) == expected
    assert left() == []


def test_an_outage_during_the_run_costs_nothing(home: Path, expected: tuple, away, monkeypatch, capsys) -> None:
    monkeypatch.setattr("gradpath.tracking.outbox.FLUSH_SECONDS", 0.0)
    original = sender.deliver

    def deliver(client, taken: journal.Journal) -> None:
        original(client, taken)
        if taken.acknowledged == 6:
            away.set()
            threading.Timer(1.0, away.clear).start()

    monkeypatch.setattr(sender, "deliver", deliver)
    run()
    assert content(only_run()) == expected
    assert capsys.readouterr().err.count("is sent later") == 1


class Stopped(BaseException):
    """Ends the process at once, as a kill would."""


def test_a_spooled_run_is_sent_whatever_is_killed(
    home: Path, expected: tuple, away, monkeypatch, command: Command
) -> None:
    """Sending is killed at every one of its requests, when the store has acted upon it already."""
    monkeypatch.setattr(sender.Sender, "start", lambda self: None)
    away.set()
    run("tracking.timeout=0.2")
    away.clear()
    close_journals(monkeypatch)
    (key,) = (name for name in left() if not name.endswith(".lock"))
    requests = len(journal.Journal.peek(locations.spool() / key).requests)
    client = store.connect(None)
    assert all_runs() == []
    original = journal.Journal.note
    noted: list[str] = []

    def note(self: journal.Journal, run_id: str) -> None:
        if len(noted) == allowed:
            raise Stopped
        noted.append(run_id)
        original(self, run_id)

    monkeypatch.setattr(journal.Journal, "note", note)
    for allowed in range(1, requests + 1):  # noqa: B007 - `note` reads it
        with pytest.raises(Stopped):
            spooling.send_left(client)
    monkeypatch.setattr(journal.Journal, "note", original)
    assert len(noted) == requests
    status, output, errors = command("send", "--uri", store.tracking_uri(None))
    assert status == 0, errors
    assert output.endswith("1 run\n")
    assert content(only_run()) == expected
    assert left() == []
    assert command("send")[1].startswith("nothing to send")


def test_what_a_killed_process_has_left_is_sent_and_killed(home: Path, monkeypatch) -> None:
    monkeypatch.setattr(sender.Sender, "start", lambda self: None)
    monkeypatch.setattr("gradpath.tracking.recorder.Recorder.__exit__", lambda *arguments: None)
    run("tracking.timeout=0.01")
    close_journals(monkeypatch)
    (key,) = (name for name in left() if not name.endswith(".lock"))
    with (locations.spool() / key / journal.FILE).open("a") as file:
        file.write('{"batch": {"metr')  # the line that the kill has cut
    assert spooling.send_left(store.connect(None)) == (1, [])
    (recorded,) = all_runs()
    assert recorded.info.status == "KILLED"
    assert recorded.info.end_time >= recorded.info.start_time
    assert left() == []


def test_a_journal_that_a_process_has_in_hand_is_left_to_it(home: Path) -> None:
    header = {"uri": store.shown(store.tracking_uri(None)), "experiment": "e", "run_name": "r", "run_id": ""}
    open_journal = journal.Journal.begin("0" * 16, header | {"tags": {"attempt": "0" * 16}, "start_time": 1})
    assert spooling.send_left(store.connect(None)) == (0, [])
    open_journal.close()
    assert spooling.send_left(store.connect(None)) == (1, [])


def test_a_run_that_another_process_goes_on_with_is_not_ended(home: Path, monkeypatch) -> None:
    client = store.connect(None)
    experiment_id = store.experiment_id(client, "e")
    run_id = client.create_run(experiment_id, tags={"attempt": "f" * 16}).info.run_id
    header = {"uri": store.shown(store.tracking_uri(None)), "experiment": "e", "run_name": "r", "run_id": run_id}
    journal.Journal.begin("0" * 16, header | {"tags": {"attempt": "0" * 16}, "start_time": 1}).close()
    count, (line,) = spooling.send_left(client)
    assert count == 0
    assert "another process goes on with it" in line
    assert client.get_run(run_id).info.status == "RUNNING"
    assert left() == []


HEADER = {"gradpath": 1, "uri": "u", "experiment": "e", "run_name": "r", "tags": {}, "start_time": 1, "run_id": ""}
DAMAGED: dict[str, list] = {
    "no-json": ["{"],
    "empty": [""],
    "number": [3],
    "list": [[]],
    "version": [HEADER | {"gradpath": 2}],
    "no-run": [{"gradpath": 1}],
    "type": [HEADER | {"tags": {"a": 1}}],
    "request": [HEADER, {"open": "/etc/passwd"}],
    "nothing": [HEADER, {}],
    "path": [HEADER, {"artifact": "../../secret"}],
    "absolute": [HEADER, {"artifact": "/etc/passwd"}],
    "hidden": [HEADER, {"artifact": "a/.b"}],
    "absent": [HEADER, {"artifact": "a/b"}],
    "metric": [HEADER, {"batch": {"metrics": [["k", "v", 1, 1]], "params": {}, "tags": {}}}],
    "batch": [HEADER, {"batch": {"metrics": []}}],
    "deep": ["[" * 100_000 + "]" * 100_000],
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_journal_is_one_line_and_stays_as_it_is(home: Path, kind: str, command: Command) -> None:
    folder = locations.spool() / "0123456789abcdef"
    folder.mkdir(parents=True)
    lines = [line if isinstance(line, str) else json.dumps(line) for line in DAMAGED[kind]]
    (folder / journal.FILE).write_text("".join(f"{line}\n" for line in lines))
    before = (folder / journal.FILE).read_bytes()
    status, output, errors = command("send")
    assert (status, errors) == (1, "")
    assert [line for line in output.splitlines() if "damaged journal, left as it is" in line] == [
        output.splitlines()[-1]
    ]
    assert "passwd:" not in output
    run()  # hurts no other run
    assert only_run()
    assert (folder / journal.FILE).read_bytes() == before


def test_foreign_files_are_named_and_left(home: Path, tmp_path: Path, command: Command) -> None:
    spool = locations.spool()
    spool.mkdir()
    (spool / "notes.txt").write_text("mine")
    (spool / ("a" * 16)).write_text("a file")
    (spool / ("b" * 16)).symlink_to(tmp_path)
    os.mkfifo(spool / "pipe")
    status, output, _ = command("send")
    assert status == 1
    assert output.count("is no journal of a run; it is left as it is") == 4
    assert len(left()) == 4
    shutil.rmtree(spool)
    assert command("send")[0] == 0


def test_a_refusal_of_the_store_ends_the_run_and_keeps_everything(home: Path, monkeypatch) -> None:
    original = sender.deliver

    def refuse(client, taken: journal.Journal) -> None:
        if taken.acknowledged == 4:
            raise store.StoreError("it is refused")
        original(client, taken)

    monkeypatch.setattr(sender, "deliver", refuse)
    started = time.monotonic()
    with pytest.raises(store.StoreError, match="it is refused; what was measured is kept in"):
        run("tracking.timeout=1000")
    assert time.monotonic() - started < 500
    assert len(left()) == 2


@pytest.mark.parametrize(
    ("overrides", "variable", "uri"),
    [
        ([], None, None),
        (["tracking=server"], None, "http://127.0.0.1:5000"),
        (["tracking=server"], "http://h:1", "http://h:1"),
        (["tracking=server", "tracking.uri=http://g:2"], "http://h:1", "http://g:2"),
        (["tracking.uri=http://g:2", "tracking.experiment=e"], None, "http://g:2"),
    ],
)
def test_the_store_is_chosen_by_name(overrides: list[str], variable: str | None, uri: str | None, monkeypatch) -> None:
    if variable:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", variable)
    experiment = compose.experiment(overrides)
    assert experiment.tracking.uri == uri
    assert experiment.config_hash == compose.experiment([]).config_hash


def test_no_such_store_by_name(command: Command) -> None:
    status, _, errors = command("run", "tracking=sever")
    assert (status, errors.count("\n")) == (2, 1)
    assert "local, server" in errors
    assert "did you mean server" in errors
