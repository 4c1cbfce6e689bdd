"""Fuzzing of the readers of what a store holds, by coverage, with atheris (``pip install
atheris``), for as long as one likes:

python tests/fuzz/stored.py KIND FOLDER -max_total_time=300

KIND is one of ``READERS``; FOLDER keeps the inputs that were found, and begins with valid ones.
Whatever the bytes say, the answer is what gradpath can use, or one line. Hypothesis tries the same
in ``tests/test_stored_fuzz.py``.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import yaml

SMALL = ["task.length=6", "cell.hidden_size=2", "train.batch_size=2", "train.eval_size=4", "train.steps=12"]
SETTINGS = [*SMALL, "train.checkpoint_every=5", "train.eval_every=4", "optimizer=adam"]
Reader = Callable[[Path, bytes], str]


def line_of(error: Exception) -> str:
    """The message of a refusal, which must be one line."""
    line = str(error)
    assert line.isprintable(), ascii(line)
    assert len(line) <= 2000, line
    return line


@cache
def experiment() -> Any:
    from gradpath.commands import compose

    return compose.experiment(SETTINGS)


@cache
def valid_checkpoint() -> dict[str, Any]:
    """The arrays of a checkpoint, at step 10."""
    from gradpath.tracking import checkpoint
    from gradpath.tracking.readings import Readings
    from gradpath.training.loop import train

    readings = Readings(experiment())
    for step in train(experiment()):
        readings.add(step)
        if step.step == 9:
            assert step.state is not None
            return checkpoint.arrays(experiment(), readings, step.state)
    raise AssertionError


def read_checkpoint(folder: Path, content: bytes) -> str:
    """A checkpoint that is taken goes on to the end of its training, and its record can be made.
    Text is JSON, which holds arrays instead of those of a valid one; null takes one away.
    """
    from gradpath.tracking import checkpoint
    from gradpath.tracking.conclusion import conclude
    from gradpath.tracking.decoding import DamagedError
    from gradpath.tracking.outbox import Outbox
    from gradpath.tracking.readings import Readings
    from gradpath.training.loop import train_seeds
    from gradpath.training.state import TrainingState

    if content.startswith(b"{"):
        try:
            changed = valid_checkpoint() | {k: v and np.array(v) for k, v in json.loads(content).items()}
            np.savez(folder / "0.npz", **{k: v for k, v in changed.items() if v is not None})
        except (ValueError, RecursionError, OverflowError, OSError):
            return "no arrays"
    else:
        (folder / "0.npz").write_bytes(content)
    try:
        step, arrays = checkpoint.read(folder / "0.npz", experiment())
    except DamagedError as error:
        return line_of(error)
    assert 1 <= step <= experiment().train.steps
    readings = Readings(experiment())
    for past in checkpoint.steps(arrays):
        readings.add(past)
    try:
        for steps in train_seeds([experiment()], states=[TrainingState.from_arrays(arrays)]):
            readings.add(steps[0])
    except ValueError as error:  # names of columns that the instrument does not have, as anybody may write them
        return line_of(error)  # that says so
    conclude(experiment(), readings, Outbox(SimpleNamespace()))  # type: ignore[arg-type]
    return "goes on"


def read_measurements(folder: Path, content: bytes) -> str:
    from gradpath.tracking import artifact, decoding

    (folder / "measurements.npz").write_bytes(content)
    is_archive = decoding.is_archive(folder / "measurements.npz")
    try:
        artifact.measurements(folder / "measurements.npz")
    except artifact.DamagedError as error:
        return line_of(error)
    assert is_archive
    return "read"


def _run(folder: Path, identity: str) -> Any:
    info = SimpleNamespace(
        artifact_uri=str(folder), run_id="0" * 32, experiment_id="1", status="FINISHED", run_name="n"
    )
    return SimpleNamespace(info=info, data=SimpleNamespace(tags={"config_hash": identity}, params={}))


CLIENT = SimpleNamespace(
    tracking_uri="http://127.0.0.1:9", get_experiment=lambda experiment_id: SimpleNamespace(name="gradpath")
)


def read_configuration(folder: Path, content: bytes) -> str:
    """The configuration of a run that is to be made again, under an identity that fits, as somebody
    may write it.
    """
    from gradpath.commands import rerun
    from gradpath.schema.settings import ConfigError, fingerprint
    from gradpath.tracking import decoding

    (folder / "config.yaml").write_bytes(content)
    try:
        identity = fingerprint(decoding.plain_yaml(folder / "config.yaml"))
    except Exception:
        identity = "0" * 12
    try:
        made = rerun._experiment(CLIENT, _run(folder, identity), None)
    except ConfigError as error:
        return line_of(error)
    assert made.config_hash == identity
    assert made.tracking.uri is None
    return "made again"


def read_provenance(folder: Path, content: bytes) -> str:
    """What a run was computed by is compared with what another was."""
    from gradpath.tracking import comparison

    (folder / "provenance.json").write_bytes(content)
    first = comparison._provenance(CLIENT, _run(folder, "0" * 12))  # type: ignore[arg-type]
    second = {"numpy": "2.0", "packages": {"numpy": "2.0"}}
    lines = comparison._circumstances(first, second) + comparison._circumstances(second, first)
    assert all(line.isprintable() and len(line) < 1000 for line in lines), lines
    return f"{len(lines)} lines"


def read_plan(folder: Path, content: bytes) -> str:
    """The tags of an experiment: a plan in plain text, or its tags as they are, one a line."""
    from gradpath.commands.hints import point_command
    from gradpath.tracking import plan

    text, tags = content.decode(errors="replace"), {}
    if text.startswith("["):
        client = SimpleNamespace(set_experiment_tag=lambda _id, key, value: tags.update({key: value}))
        try:
            plan.write(client, "1", "s", json.loads(text))  # type: ignore[arg-type]
        except (ValueError, RecursionError):
            return "no JSON"
    for line in text.split("\n"):
        key, _, value = line.partition(" ")
        tags[plan._prefix("s") + key] = value
    points, damaged = plan.read(tags, "s")
    assert all(line.isprintable() for line in damaged)
    for point in points.values():
        assert point.name.isprintable()
        command = point_command(point, "s", None)
        assert command.isprintable()
        assert "tracking.uri" not in command
    return f"{len(points)} points"


def read_run(folder: Path, content: bytes) -> str:
    """A whole run under tags, a parameter and a name that are anybody's: a JSON object. What the
    report then prints and writes is text of its own form.
    """
    from gradpath.commands import report
    from gradpath.tracking import outcomes
    from gradpath.tracking.decoding import DamagedError
    from gradpath.tracking.stored_run import read_run as read

    try:
        given = json.loads(content)
        tags = {str(key): str(value) for key, value in given.items()}
    except (ValueError, RecursionError, AttributeError):
        return "no object"
    if not (folder / "config.yaml").exists():
        (folder / "gradients").mkdir()
        np.savez(folder / "gradients" / "measurements.npz", **valid_checkpoint())
        (folder / "config.yaml").write_text(yaml.safe_dump(experiment().resolved()))
    stored_run = _run(folder, experiment().config_hash)
    stored_run.info.run_name, stored_run.data.params = tags.pop("name", None), {"arm": tags.pop("param", "")}
    stored_run.data.tags |= {key: value for key, value in tags.items() if key != "config_hash"}
    outcomes.milliseconds(tags.get("continued"))
    try:
        run = read(CLIENT, stored_run, experiment().config_hash)  # type: ignore[arg-type]
    except DamagedError as error:
        return line_of(error)
    lines = report.verdicts([run])
    assert all(line.isprintable() for line in lines), lines
    table = report._table([run], report._title(tags.get("mlflow.name", "x"), tags.get("sweep_id", "s")))
    assert table.count("\n") == 5, table
    assert "<" not in table, table
    assert run.diverged_at is None or run.diverged_at >= 0
    return run.verdict.word


READERS: dict[str, Reader] = {
    name.removeprefix("read_"): reader for name, reader in list(globals().items()) if name.startswith("read_")
}


def valid(kind: str) -> bytes:
    """An input that is what it should be."""
    from gradpath.tracking.provenance import provenance

    identity, run_id = experiment().config_hash, "a" * 32
    tags = {"name": "n", "param": "lstm", "verdict": "healthy", "verdict_reason": "x", "diverged_at_step": "3"}
    contents = {
        "run": lambda: json.dumps(tags | {"continued": "1", "sweep_id": "s"}),
        "configuration": lambda: yaml.safe_dump(experiment().resolved()),
        "provenance": lambda: json.dumps(provenance()),
        "plan": lambda: json.dumps([[["arm=lstm", "seed=1"], "lstm", [[1, identity], [2, identity[::-1], run_id]]]]),
    }
    if kind in contents:
        return contents[kind]().encode()
    with tempfile.NamedTemporaryFile(suffix=".npz") as file:
        np.savez(file, **valid_checkpoint())
        return Path(file.name).read_bytes()


def main(kind: str, folder: str) -> None:
    import atheris

    with atheris.instrument_imports(include=["gradpath.tracking", "gradpath.commands.rerun", "zipfile", "yaml"]):
        import gradpath.commands.rerun
        import gradpath.tracking.comparison  # noqa: F401

    reader = READERS[kind]
    Path(folder).mkdir(exist_ok=True)
    (Path(folder) / "valid").write_bytes(valid(kind))
    if kind == "checkpoint":
        texts = {name: array.tolist() for name, array in valid_checkpoint().items() if array.size < 100}
        (Path(folder) / "arrays").write_text(json.dumps(texts))
        for name, array in texts.items():
            (Path(folder) / name.replace("/", "-")).write_text(json.dumps({name: array}))
    with tempfile.TemporaryDirectory() as scratch:

        def one_input(data: bytes) -> None:
            reader(Path(scratch), data)

        atheris.Setup([sys.argv[0], folder, *sys.argv[3:]], one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:3])
