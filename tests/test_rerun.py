"""What a run keeps of what it was computed by, and the run made again from it."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gradpath.commands import compose
from gradpath.commands.execute import execute
from gradpath.schema import locations
from gradpath.tracking import loader, provenance, store
from gradpath.tracking.comparison import _difference

Command = Callable[..., tuple[int, str, str]]
SMALL = ["task.length=6", "cell.hidden_size=3", "train.batch_size=4", "train.eval_size=8", "train.steps=4"]


def artifact(run_id: str, name: str) -> Path:
    return store.local_path(store.connect(None).get_run(run_id).info.artifact_uri) / name


@pytest.mark.parametrize(
    "overrides",
    [
        ["arm=clipped_rnn", "seed=7"],
        ["arm=chrono_gru", "task=copy", "optimizer=rmsprop", "train.dtype=float64", "train.eval_every=2"],
        ["cell=peephole_lstm", "cell.layers=2", "task=temporal_order", "task.length=10", "init=orthogonal"],
        ["arm=lstm", "instruments=[reach,credit]", "instruments.reach.schedule.every=2", "clip.max_value=0.1"],
        ["arm=rnn", "train.threads=2", "train.batch_size=64", "cell.hidden_size=128", "task.length=80"],
        ["arm=rnn", "optimizer=sgd", "optimizer.lr=1e30", "task.length=30"],
    ],
)
def test_a_run_made_again_has_the_same_bits(home: Path, command: Command, overrides: list[str]) -> None:
    first = execute(compose.experiment([*SMALL, *overrides]), "s")
    status, out, err = command("rerun", first.run_id)
    assert status == 0, out + err
    assert out.startswith("the bits agree: ")
    client = store.connect(None)
    (second,) = client.search_runs([first.experiment_id], f"tags.rerun_of = '{first.run_id}'")
    assert second.data.params == client.get_run(first.run_id).data.params
    assert loader.newest_sweep(None, None)[1] == "s"  # the run that was made again is no sweep


def test_other_bits_are_named_with_what_differs_besides(home: Path, command: Command, monkeypatch) -> None:
    first = execute(compose.experiment(SMALL), "s")
    path = artifact(first.run_id, store.ARTIFACT)
    arrays = dict(np.load(path))
    arrays["loss/values"][2] = np.nextafter(arrays["loss/values"][2], np.inf)
    np.savez(path, **arrays)
    record = artifact(first.run_id, "provenance.json")
    content = json.loads(record.read_text("utf-8"))
    content["packages"]["numpy"], content["processor"] = "1.0", "another"
    record.write_text(json.dumps(content), "utf-8")
    status, out, _ = command("rerun", first.run_id)
    assert status == 1
    assert "  differ: loss/values: 1 of 5 numbers, by at most " in out
    assert "  computed by: numpy: 1.0 then, " in out
    assert "  computed by: processor: another then, " in out
    assert out.count("computed by") == 2


def test_how_arrays_differ_is_said() -> None:
    ones = np.ones((2, 3))
    assert _difference("a", ones, ones.copy()) == ""
    assert _difference("a", np.array([np.nan, 0.0]), np.array([np.nan, -0.0])) == "a: 1 of 2 numbers, by at most 0"
    assert _difference("a", ones, ones[:1]) == "a: float64 (2, 3), and float64 (1, 3)"
    assert _difference("a", ones, None) == "a: only in the first"
    assert _difference("a", np.array(["x"]), np.array(["y"])) == "a: other values"


def test_what_cannot_be_made_again_is_one_line(home: Path, command: Command, capsys) -> None:
    run = execute(compose.experiment(SMALL), "s")
    capsys.readouterr()
    client = store.connect(None)
    other = client.create_run(run.experiment_id)
    for run_id, message in (
        ("abc", "must be a run's id, 32 hexadecimal digits, as MLflow shows it"),
        ("0" * 32, "no such run in "),
        (other.info.run_id, "is not a run of gradpath"),
    ):
        status, out, err = command("rerun", run_id)
        assert (status, out) == (2, "")
        assert err.startswith(f"gradpath: {run_id}: {message}")
        assert err.count("\n") == 1
    config = artifact(run.run_id, "config.yaml")
    original = config.read_text("utf-8")
    for old, new in (
        ("seed: 0", "seed: 1"),  # not the configuration of this run
        ("name: adding", 'name: "adding seed=3"'),
        ("lr: 0.001", "lr: ${oc.env:HOME}"),
    ):
        assert old in original
        config.write_text(original.replace(old, new), "utf-8")
        if old != "seed: 0":  # with an identity that fits, as somebody may write it
            import yaml

            from gradpath.schema.settings import fingerprint

            identity = fingerprint(yaml.safe_load(config.read_text("utf-8")))
            client.set_tag(run.run_id, "config_hash", identity)
        status, out, err = command("rerun", run.run_id)
        assert (status, out, err.count("\n")) == (2, "", 1), err
    client.set_terminated(run.run_id, "KILLED")
    assert "has not finished: KILLED" in command("rerun", run.run_id)[2]


def test_what_a_run_was_computed_by_is_kept(home: Path, command: Command) -> None:
    status, _, err = command("run", *SMALL, "tracking.uri=null")
    assert status == 0, err
    (run,) = store.connect(None).search_runs(["1"])
    content = json.loads(artifact(run.info.run_id, "provenance.json").read_text("utf-8"))
    assert content["command"][1:] == ["run", *SMALL, "tracking.uri=null"]
    assert content["packages"]["numpy"] == content["numpy"] == np.__version__
    assert content["source"] == run.data.tags["source"]
    assert content["python"]
    assert content["processor"]
    assert content["blas"][0]["internal_api"]
    log = artifact(run.info.run_id, "log.txt").read_text("utf-8").splitlines()
    assert [line.partition("Z ")[2] for line in log] == [
        line.replace(", 0 s left", "") for line in ["lstm · adding T=6 · seed 0: 4 steps", *err.splitlines()]
    ]


def test_the_patch_of_a_changed_checkout_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "src").mkdir()
    file = tmp_path / "src" / "a.py"
    file.write_text("one\n", "utf-8")
    settings = ["-c", "user.name=n", "-c", "user.email=e"]
    for arguments in (["init", "-q"], ["add", "."], [*settings, "commit", "-qm", "m"]):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True)
    monkeypatch.setattr(locations, "checkout", lambda: tmp_path)
    for function in (provenance.code_version, provenance.code_difference):
        function.cache_clear()
    try:
        assert provenance.code_difference() == ""
        provenance.code_difference.cache_clear()
        file.write_text("two\n", "utf-8")
        (tmp_path / "src" / "new.py").write_text("three\n", "utf-8")
        (tmp_path / "notes.txt").write_text("four\n", "utf-8")
        patch = provenance.code_difference()
        assert all(line in patch for line in ("-one", "+two", "+three"))
        assert "four" not in patch
        assert provenance.code_version().endswith(".dirty")
    finally:
        for function in (provenance.code_version, provenance.code_difference):
            function.cache_clear()
