"""The same command again: what has finished is skipped, what has not is run, nothing is doubled."""

import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import PATIENCE
from gradpath.commands import compose, hydra_options, launch
from gradpath.commands.execute import execute, execute_seeds
from gradpath.tracking import earlier, liveness, loader, plan, provenance, store
from gradpath.tracking.recorder import Recorder

Command = Callable[..., tuple[int, str, str]]
SMALL = ["task.length=6", "cell.hidden_size=3", "train.batch_size=4", "train.eval_size=8", "train.steps=2"]
DAMAGES = ["cut", "empty", "deleted", "text", "no config"]
SWEEP = ["-m", "arm=rnn,lstm", "seed=0,1", *SMALL]


def runs(query: str = "") -> list:
    client = store.connect(None)
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(ids, query))


def swept(name: str = "gradpath") -> loader.Sweep:
    """The newest sweep, as a report reads it."""
    return loader.sweep(None, *loader.newest_sweep(None, name))


def sweep_id(output: str) -> str:
    return output.split(" of sweep ")[1].split()[0]


def test_the_same_command_again_runs_nothing(home: Path, command: Command) -> None:
    first_status, first, first_errors = command("run", *SWEEP)
    status, second, errors = command("run", *SWEEP)
    assert (first_status, status) == (0, 0)
    assert len(runs()) == 4
    assert second == first  # the sweep is the same one
    assert "skipped" not in first_errors
    assert errors == ("skipped: 4 of 4 runs, finished before with the same code; resume=false runs all of them again\n")
    assert command("run", *SWEEP, "resume=false")[2].count("loop over time") == 4
    assert len(runs()) == 8


def test_what_was_killed_or_failed_is_run_again_and_the_report_is_the_whole(home: Path, command: Command) -> None:
    _, output, _ = command("run", *SWEEP)
    client = store.connect(None)
    killed, failed, *_ = (run.info.run_id for run in runs())
    client.set_terminated(killed, "KILLED")
    client.set_terminated(failed, "FAILED")
    assert len(swept().missing) == 2
    status, again, errors = command("run", *SWEEP)
    assert status == 0
    assert errors.startswith("skipped: 2 of 4 runs")
    assert again == output
    content = swept()
    assert (len(content.newest), content.missing, content.doubled) == (4, {}, [])
    assert Counter(run.info.status for run in runs()) == {"FINISHED": 4, "KILLED": 1, "FAILED": 1}


@pytest.mark.parametrize("damage", ["cut", *(pytest.param(d, marks=pytest.mark.slow) for d in DAMAGES[1:])])
def test_a_finished_run_whose_files_are_damaged_is_run_again(home: Path, command: Command, damage: str) -> None:
    arguments = ["-m", "arm=rnn,lstm", *SMALL, "jobs=1"]
    _, output, _ = command("run", *arguments)
    victim, *_ = runs()
    folder = store.local_path(victim.info.artifact_uri)
    path = folder / store.ARTIFACT
    content = path.read_bytes()
    if damage == "deleted":
        path.unlink()
    elif damage == "no config":
        (folder / "config.yaml").unlink()
    else:
        path.write_bytes({"cut": content[:-50], "empty": b"", "text": b"other bytes" * 99}[damage])
    status, again, errors = command("run", *arguments)
    assert (status, again) == (0, output)
    assert errors.startswith(f"found a finished run whose artifacts are damaged: {victim.info.run_name} (")
    assert "skipped: 1 of 2 runs" in errors
    content = swept()
    assert (len(content.newest), content.damaged, content.missing, content.doubled) == (2, [], {}, [])
    status, _, errors = command("run", *arguments)
    assert (status, len(runs())) == (0, 3)
    assert errors.startswith("skipped: 2 of 2 runs")


def test_of_a_run_with_other_bytes_the_report_says_how_it_is_run_again(home: Path, command: Command) -> None:
    """Within the archive: not every byte is read to find out what is left to run."""
    _, output, _ = command("run", "-m", "arm=rnn,lstm", *SMALL, "jobs=1")
    victim, *_ = runs()
    path = store.local_path(victim.info.artifact_uri) / store.ARTIFACT
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)
    status, _, errors = command("report", "figures=[gates]")
    assert status == 1
    left_out, hint, *_ = errors.splitlines()
    assert left_out.startswith(f"left out: run {victim.info.run_name} (")
    words = shlex.split(hint.removeprefix("run the first that is left out again: "))
    assert words[-2:] == [f"tracking.sweep_id={sweep_id(output)}", "resume=false"]
    assert command(*words[1:])[0] == 0
    assert (len(swept().newest), swept().damaged) == (2, [])


def test_with_more_points_a_sweep_goes_on(home: Path, command: Command) -> None:
    _, output, _ = command("run", *SWEEP)
    _, more, errors = command("run", "-m", "arm=rnn,lstm,gru", "seed=0,1", *SMALL)
    assert errors.startswith("skipped: 4 of 6 runs")
    assert sweep_id(more) == sweep_id(output)
    assert len(swept().newest) == 6


def test_points_of_several_sweeps_are_reported_with_the_one_that_names_them(home: Path, command: Command) -> None:
    _, first, _ = command("run", *SWEEP)
    _, second, _ = command("run", "-m", "arm=gru", "seed=0..3", *SMALL)
    _, both, errors = command("run", "-m", "arm=rnn,gru", "seed=0,1,2", *SMALL)
    assert errors.startswith("skipped: 5 of 6 runs")
    assert sweep_id(both) not in (sweep_id(first), sweep_id(second))
    content = loader.sweep(None, "gradpath", sweep_id(both))
    assert sorted(run.name for run in content.newest) == [
        f"{arm} · adding T=6 · seed {seed}" for arm in ("gru", "rnn") for seed in (0, 1, 2)
    ]
    assert (content.missing, content.doubled, content.passed_over) == ({}, [], [])
    status, drawn, _ = command("report", "study=gradpath", f"sweep={sweep_id(both)}", "figures=[gates]")
    assert status == 0
    assert drawn.startswith("6 runs")
    # A part of a sweep: nothing to run, and a report of that part.
    _, part, _ = command("run", "-m", "arm=gru", "seed=1,2", *SMALL)
    assert len(loader.sweep(None, "gradpath", sweep_id(part)).newest) == 2
    assert len(runs()) == 4 + 4 + 1
    # A run that has been deleted since is missing, and named.
    store.connect(None).delete_run(content.newest[0].run_id)
    assert list(loader.sweep(None, "gradpath", sweep_id(both)).missing.values()) == [content.newest[0].name]


def test_seeds_side_by_side_are_run_as_far_as_they_are_left(home: Path, command: Command) -> None:
    command("run", "arm=rnn", "seed=[1,3]", *SMALL)
    _, output, errors = command("run", "arm=rnn", "seed=0..3", *SMALL)
    assert "rnn · adding T=6 · 2 seeds: loop over time" in errors
    content = loader.sweep(None, "gradpath", sweep_id(output))
    assert [run.seed for run in content.newest] == [0, 1, 2, 3]
    assert len(runs()) == 4


def test_other_code_or_another_numpy_is_another_point(home: Path, command: Command, monkeypatch) -> None:
    command("run", *SWEEP)
    for changed in ({"source": "0" * 12}, {"numpy": "1.0"}):
        with monkeypatch.context() as patch:
            tags = provenance.source_tags() | changed
            patch.setattr("gradpath.tracking.recorder.source_tags", lambda tags=tags: tags)
            patch.setattr(earlier, "source_tags", lambda tags=tags: tags)
            assert "skipped" not in command("run", *SWEEP, "jobs=1")[2]
    assert len(runs()) == 12
    assert command("run", *SWEEP)[2].startswith("skipped: 4 of 4")


def test_the_code_is_what_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("core/a.py", "1"), ("engine/b.c", "2"), ("figures/c.py", "3"), ("cells/notes.txt", "4")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path)

    def digest() -> str:
        provenance._digest.cache_clear()
        return provenance.source_tags()["source"]

    first = digest()
    (tmp_path / "figures" / "c.py").write_text("other", "utf-8")
    (tmp_path / "cells" / "notes.txt").write_text("other", "utf-8")
    assert digest() == first
    digests = {first}
    for name in ("core/a.py", "engine/b.c"):
        (tmp_path / name).write_text("other", "utf-8")
        digests.add(digest())
    (tmp_path / "core" / "a.py").rename(tmp_path / "core" / "z.py")
    assert len(digests | {digest()}) == 4
    provenance._digest.cache_clear()


def test_one_query_finds_what_has_finished(home: Path, command: Command, monkeypatch) -> None:
    command("run", *SWEEP)
    client, queries = store.connect(None), []
    original = type(client._client).search_runs

    def counted(self: object, *arguments: object, **keywords: object) -> object:
        queries.append(arguments)
        return original(self, *arguments, **keywords)

    monkeypatch.setattr(type(client._client), "search_runs", counted)
    identities = {
        compose.experiment([f"arm={a}", f"seed={s}", *SMALL]).config_hash for a in ("rnn", "gru") for s in (0, 1)
    }
    (experiment_id,) = {run.info.experiment_id for run in runs()}
    queries.clear()
    assert len(earlier.earlier(client, experiment_id, identities)[0]) == 2
    assert len(queries) == 1


def test_what_another_command_is_running_is_left_to_it(home: Path, command: Command, monkeypatch) -> None:
    with Recorder(compose.experiment(["arm=rnn", "seed=0", *SMALL]), {"sweep_id": "other"}) as recorder:
        status, output, errors = command("run", *SWEEP)
        assert status == 0
        assert "skipped: 1 of 4 runs, which another command is running\n" in errors
        assert "3 finished, 1 left to another command." in output
        monkeypatch.setattr(recorder, "_finish", lambda complete: None)
    assert len(runs("attributes.status = 'FINISHED'")) == 4
    # Its process gone, it is found killed, and run.
    client = store.connect(None)
    client.update_run(recorder.run_id, "RUNNING")
    monkeypatch.setattr(liveness, "_started", lambda pid: "")
    _, _, errors = command("run", *SWEEP)
    assert "found a run that was killed, now marked so: rnn · adding T=6 · seed 0\n" in errors
    assert "skipped: 3 of 4 runs, finished before" in errors


def test_of_two_that_begin_at_once_one_goes_on(home: Path) -> None:
    experiment = compose.experiment(["arm=rnn", *SMALL])
    with Recorder(experiment, {"sweep_id": "a"}) as first:
        assert not first.withdrawn()
        assert execute_seeds([experiment], "b") == []
        assert not first.withdrawn()
    assert [run.info.run_id for run in runs()] == [first.run_id]
    assert execute_seeds([experiment], "b") == []  # it has just finished


def test_the_same_command_in_several_processes_doubles_nothing(home: Path) -> None:
    arguments = [sys.executable, "-m", "gradpath", "run", *SWEEP]
    started = [subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    ended = [process.communicate(timeout=PATIENCE) for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], ended
    finished = Counter(run.data.tags["config_hash"] for run in runs("attributes.status = 'FINISHED'"))
    assert sorted(finished.values()) == [1, 1, 1, 1]
    for output, _ in ended:
        content = loader.sweep(None, "gradpath", sweep_id(output))
        assert (len(content.newest), content.missing) == (4, {}), output


def test_of_several_plans_the_run_that_stands_for_a_point_is_kept(home: Path) -> None:
    client = store.connect(None)
    jobs = [(SMALL, compose.experiments(SMALL))]
    identity = jobs[0][1][0].config_hash
    for run_ids in ({}, {identity: "a" * 32}, {}, {}, {}):  # the tags come back in any order
        plan.record(jobs, "s", run_ids)
    points, damaged = plan.read(client.get_experiment_by_name("gradpath").tags, "s")
    assert (points[identity].run_id, damaged) == ("a" * 32, [])


def test_a_forced_sweep_takes_nothing_over(home: Path) -> None:
    execute(compose.experiment(["arm=rnn", *SMALL]), "a")
    options = launch.Options(["arm=rnn", "resume=false", *SMALL], multirun=False)
    assert launch.carry_out(options).earlier == {}
    assert len(runs()) == 2


def test_the_order_of_a_sweep_is_that_of_its_plan_whichever_run_began_first(home: Path) -> None:
    jobs = launch.planned(hydra_options.read_options(["-m", "arm=rnn", "seed=0,1", "optimizer.lr=0.1,0.2,0.3", *SMALL]))
    plan.record(((job.overrides, job.experiments) for job in jobs), "s")
    for job in reversed(jobs):
        execute_seeds(job.experiments, "s")
    loaded = [(run.seed, run.config["optimizer"]["lr"]) for run in loader.sweep(None, "gradpath", "s").runs]
    assert loaded == [(seed, lr) for seed in (0, 1) for lr in (0.1, 0.2, 0.3)]
