"""Who writes a run and whether it lives: only what is proven to be dead is marked so, and nothing
makes it raise.
"""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from conftest import PATIENCE
from gradpath.tracking import liveness, store
from gradpath.tracking.liveness import pulse

OLD_HEARTBEAT = f"{time.time() - 3600:.0f}"


@pytest.fixture
def client(home: Path) -> Any:
    return store.connect(None)


def running(client: Any, **tags: str) -> str:
    """A run of ours that is RUNNING, whose tags are changed; an empty one is not there."""
    own_tags = liveness.process_tags() | {"config_hash": "0123456789ab", "sweep_id": "s"} | tags
    experiment = store.experiment_id(client, "gradpath")
    return client.create_run(experiment, tags={k: v for k, v in own_tags.items() if v}, run_name="a run").info.run_id


def reaped(client: Any) -> list[str]:
    return store.reap(client)


def ended_process() -> dict[str, str]:
    """The tags of a process of this machine that is no more."""
    script = "import json; from gradpath.tracking import liveness; print(json.dumps(liveness.process_tags()))"
    output = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE, check=True
    ).stdout
    return json.loads(output)


def test_a_process_of_this_machine_that_is_no_more_proves_its_run_dead(client: Any) -> None:
    dead_run, live_run = running(client, **ended_process()), running(client, heartbeat=OLD_HEARTBEAT)
    assert reaped(client) == ["found a run that was killed, now marked so: a run"]
    assert client.get_run(dead_run).info.status == "KILLED"
    assert client.get_run(live_run).info.status == "RUNNING", "this very process, however late its heartbeat"
    assert reaped(client) == []


def test_a_process_id_that_another_program_has_by_now_is_not_its_run(client: Any) -> None:
    process = liveness.process_tags()["process"].rpartition(" ")[0]
    dead_run = running(client, process=f"{process} 1")
    assert len(reaped(client)) == 1
    assert client.get_run(dead_run).info.status == "KILLED"


@pytest.mark.parametrize("process", ["a-boot pid:[1] 7", ""], ids=["another container", "a system that does not say"])
@pytest.mark.parametrize("host", [socket.gethostname(), 'it\'s "another" host; --', "x' or '1'='1"])
def test_elsewhere_the_heartbeat_tells(client: Any, process: str, host: str) -> None:
    runs = {}
    for age in (0, 200, 400):
        tags = {"host": host, "process": process, "pid": "99999999", "heartbeat": f"{time.time() - age:.0f}"}
        runs[age] = running(client, **tags)
    assert len(reaped(client)) == 1
    assert {age: client.get_run(run).info.status for age, run in runs.items()} == {
        0: "RUNNING",
        200: "RUNNING",
        400: "KILLED",
    }


def test_a_run_of_version_0_1_is_left_alone_and_told_of(client: Any) -> None:
    run = running(client, process="", heartbeat="", pid="99999999")
    (line,) = reaped(client)
    assert line.startswith(f"left alone, since nothing proves it dead: a run ({run}), RUNNING without a heartbeat")
    assert client.get_run(run).info.status == "RUNNING"


def test_a_dead_run_is_found_in_any_experiment(client: Any) -> None:
    other = client.create_experiment("another")
    run = client.create_run(other, tags=liveness.process_tags() | {"config_hash": "0" * 12, "process": "gone 1"})
    client.set_tag(run.info.run_id, "heartbeat", f"{time.time() - liveness.STALE - 1:.0f}")
    assert len(store.reap(client)) == 1
    assert client.get_run(run.info.run_id).info.status == "KILLED"


def test_runs_of_other_tools_are_not_touched(client: Any) -> None:
    stale = {"process": "a-boot pid:[1] 7", "heartbeat": OLD_HEARTBEAT, "pid": "99999999"}
    runs = [
        running(client, **stale | foreign) for foreign in ({"config_hash": ""}, {"config_hash": "theirs"}, {"host": ""})
    ]
    assert reaped(client) == []
    assert {client.get_run(run).info.status for run in runs} == {"RUNNING"}


NONSENSE = ["", "abc", "-1", "0", "99999999999", "1.5", "nan", "inf", "1e400", "soon", "１２", "9" * 400, "' or ''='"]


def test_nonsense_in_a_tag_neither_raises_nor_kills() -> None:
    """Not through a store, whose tags are the same text: 2 000 combinations."""
    own_tags = liveness.process_tags()
    assert liveness.dead(own_tags) is False
    for pid in NONSENSE:
        for beat in NONSENSE[:1] + NONSENSE[1:2] + ["nan", "inf", "-inf", "1e400", "soon", f"{time.time() + 1e9}"]:
            for process in ["", "x", own_tags["process"].rpartition(" ")[0] + " ", own_tags["process"][:-1]]:
                tags = own_tags | {"pid": pid, "heartbeat": beat, "process": process}
                assert liveness.dead(tags) in (False, None), tags


def test_a_run_without_the_tags_of_a_process_does_not_stop_the_next(client: Any) -> None:
    running(client, pid="")
    running(client, pid="", process="", heartbeat="")
    assert reaped(client) == []


def test_more_than_a_page_of_runs(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [running(client, process="a-boot pid:[1] 7", heartbeat=OLD_HEARTBEAT) for _ in range(5)]
    search = client.search_runs
    monkeypatch.setattr(client, "search_runs", lambda *a, **k: search(*a, **k | {"max_results": 2}))
    assert len(reaped(client)) == 5
    assert {client.get_run(run).info.status for run in runs} == {"KILLED"}


def test_a_run_that_ends_while_it_is_looked_at_keeps_its_end(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = running(client, process="a-boot pid:[1] 7", heartbeat=OLD_HEARTBEAT)
    original_search = client.search_runs

    def search_then_end(*arguments: Any, **keywords: Any) -> Any:
        runs = original_search(*arguments, **keywords)
        client.set_terminated(run, "FINISHED")
        return runs

    monkeypatch.setattr(client, "search_runs", search_then_end)
    assert reaped(client) == []
    assert client.get_run(run).info.status == "FINISHED"


class Silent:
    """A store that is away once and counts what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, float]] = []

    def set_tag(self, run_id: str, key: str, value: str) -> None:
        self.told.append((run_id, key, float(value)))
        if len(self.told) == 1:
            raise store.StoreError("away")


def test_heartbeats_go_on_by_themselves_until_the_run_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "INTERVAL", 0.01)
    client = Silent()
    for run in ("a", "b"):
        pulse.start(client, run)  # type: ignore[arg-type]
    thread = pulse._thread
    assert thread is not None
    while len(client.told) < 6:
        time.sleep(0.01)
    pulse.stop("a")
    pulse.stop("b")
    pulse.stop("was never there")
    thread.join(60)
    assert not thread.is_alive()
    assert thread.daemon, "a beat that hangs does not keep the program"
    assert {run for run, _, _ in client.told} == {"a", "b"}
    assert all(key == "heartbeat" and abs(value - time.time()) < 3600 for _, key, value in client.told)


def test_a_run_has_a_heartbeat_while_a_step_takes_long(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gradpath.commands import compose
    from gradpath.tracking.recorder import Recorder

    monkeypatch.setattr(liveness, "INTERVAL", 0.05)
    with Recorder(compose.experiment(["task.length=12"]), {"sweep_id": "s"}) as recorder:
        recorder.client.set_tag(recorder.run_id, "heartbeat", "1")
        while recorder.client.get_run(recorder.run_id).data.tags["heartbeat"] == "1":
            time.sleep(0.05)
    assert pulse._runs == {}
