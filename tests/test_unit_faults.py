"""What a unit of a user's own does wrong is one line that names the unit, what it gave and what is
expected; before anything runs where that can be known.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

import gradpath as gp
from gradpath.cells.lstm import LSTM
from gradpath.cells.peephole_lstm import PeepholeLSTM
from gradpath.commands import compose
from gradpath.core.cell import Cell
from gradpath.core.network import Network
from gradpath.core.roles import Keeping, Watched
from gradpath.core.step import Elementwise
from gradpath.core.tape import Batch
from gradpath.core.trace import Measurement
from gradpath.instruments.grad_norm import GradNorm
from gradpath.optimizers.sgd import SGD
from gradpath.schema import plugins
from gradpath.schema.settings import ConfigError
from gradpath.tasks.adding import Adding
from gradpath.tasks.copy import Copy
from gradpath.training.loop import start, train
from test_plugins import FILES, write

Command = Callable[..., tuple[int, str, str]]
SMALL = ["train.steps=2", "train.batch_size=4", "train.eval_size=10", "cell.hidden_size=4", "task.length=6"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(plugins.VARIABLE, "")
    monkeypatch.setattr(plugins, "_added", [])
    return tmp_path / "units"


def drawn(task: type, change: Callable[[Batch], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Has ``sample`` of a task return something else."""
    sample = task.sample
    monkeypatch.setattr(task, "sample", lambda self, rng, size: change(sample(self, rng, size)))


ODD_BATCHES = [
    ("copy", lambda b: (b.inputs, b.targets), "tuple; expected: a Batch"),
    ("copy", lambda b: replace(b, mask=b.mask & False), "a mask that is False everywhere; expected: True where"),
    ("copy", lambda b: replace(b, mask=1 * b.mask), "mask of dtype int64; expected: bool"),
    ("copy", lambda b: replace(b, mask=b.mask[:-1]), r"mask of shape \(25, 10\); expected: \(T, B\) = \(26, 10\)"),
    ("copy", lambda b: replace(b, inputs=b.inputs.tolist()), "inputs of type list; expected: a NumPy array of numbers"),
    ("copy", lambda b: replace(b, inputs=b.inputs.astype(object)), "inputs of dtype object; expected: numbers"),
    ("copy", lambda b: replace(b, inputs=b.inputs[..., 0]), r"inputs of shape .*; expected: \(T, B, I\) = "),
    ("copy", lambda b: replace(b, inputs=b.inputs + np.nan), "inputs that are not all finite"),
    (
        "copy",
        lambda b: replace(b, targets=1.0 * b.targets),
        "targets of dtype float64; expected: integers",
    ),
    (
        "copy",
        lambda b: replace(b, targets=b.targets + 9),
        r"targets from \d+ to \d+; expected: 0 to 8, since",
    ),
    (
        "copy",
        lambda b: replace(b, targets=b.targets - 9),
        r"targets from -\d+ to .*; expected: 0 to 8, since",
    ),
    ("copy", lambda b: replace(b, targets=b.targets[..., None]), r"targets of shape .*; expected: \(T, B\) = "),
    ("adding", lambda b: replace(b, targets=b.targets[..., 0]), r"targets of shape .*; expected: \(T, B, O\) = "),
    ("adding", lambda b: replace(b, targets=b.targets + np.inf), "targets that are not all finite"),
]


@pytest.mark.parametrize(("task", "change", "message"), ODD_BATCHES, ids=range(len(ODD_BATCHES)))
def test_a_minibatch_that_is_none_names_the_task(
    task: str, change: Callable[[Batch], object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = compose.experiment([f"task={task}", *SMALL])
    drawn({"copy": Copy, "adding": Adding}[task], change, monkeypatch)
    with pytest.raises(ConfigError) as error:
        start(experiment)
    assert re.match(f"task={task}: sample returned {message}", str(error.value)), error.value


def test_targets_that_are_never_read_may_be_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = compose.experiment(["task=copy", *SMALL])
    plain = [step.loss for step in train(experiment)]

    def ignored(batch: Batch) -> Batch:
        return replace(batch, targets=np.where(batch.mask.any(axis=1)[:, None], batch.targets, -100))

    drawn(Copy, ignored, monkeypatch)
    assert [step.loss for step in train(experiment)] == plain


def test_the_line_is_that_of_every_command(home: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn(Adding, lambda batch: replace(batch, mask=batch.mask & False), monkeypatch)
    line = "task=adding: sample returned a mask that is False everywhere; expected: True where a position is scored\n"
    status, out, err = command("run", *SMALL)
    assert (status, err) == (1, f"failed: lstm · adding T=6 · seed 0: {line}")
    assert "Figures" not in out, "of a run that has failed there are none"
    assert re.fullmatch(r"1 run of sweep .*: 1 failed\. Curves: gradpath ui\n", out)
    assert command("check", *SMALL)[::2] == (2, f"gradpath: {line}")
    with pytest.raises(gp.ConfigError, match=line.strip()):
        gp.network(*SMALL)


ODD_TASKS = [
    ("sizes", property(lambda task: 3), "sizes is 3; expected: two whole numbers ≥ 1"),
    ("sizes", property(lambda task: (1, 0)), r"sizes is \(1, 0\); expected: "),
    ("lags", property(lambda task: 3), "lags is 3; expected: two whole numbers from 0 to timesteps"),
    ("lags", property(lambda task: (3, 700)), r"lags is \(3, 700\); expected: "),
    ("chance_loss", property(lambda task: np.nan), "chance_loss is nan; expected: a finite number"),
    ("loss", "mse", "loss is 'mse'; expected: a Loss, such as Loss.squared_error"),
    ("metric", "a:b", "metric is 'a:b'; expected: a name of at most 100 letters"),
    ("metric", "m" * 200, "metric is 'm+…; expected: a name of at most 100 letters"),
    ("solved_below", None, "solved_below is None; expected: a finite number"),
    ("timesteps", property(lambda task: 2.5), "timesteps is 2.5; expected: a whole number ≥ 1"),
    ("timesteps", property(lambda task: "2"), "timesteps is '2'; expected: a whole number ≥ 1"),
]


@pytest.mark.parametrize(("name", "value", "message"), ODD_TASKS, ids=range(len(ODD_TASKS)))
def test_what_a_task_declares_is_checked_before_anything_runs(
    home: Path, command: Command, name: str, value: object, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Adding, name, value)
    status, out, err = command("run", "-m", *SMALL, "task=copy,adding")
    assert (status, out) == (2, "")
    assert re.fullmatch(f"gradpath: task=adding: {message}.*", err.splitlines()[-1]), err


def test_a_score_that_is_no_number_names_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = compose.experiment(SMALL)
    monkeypatch.setattr(Adding, "score", lambda self, tape: None)
    with pytest.raises(ConfigError, match="task=adding: score returned None; expected: a number"):
        list(train(experiment))


LONG = "x" * 101
LABELS = [
    (Cell, "label", "a\nb", r"cell=gru: 'a\\nb' cannot be stored; names and labels must be printable"),
    (Cell, "label", LONG, "cell=gru: 'x+… cannot be stored; .*at most 100 characters"),
    (Cell, "states", ("H", LONG), "cell=gru: 'x+… cannot be stored"),
    (Adding, "plateaus", {LONG: 0.1}, "task=adding: plateaus: 'x+… cannot be stored"),
]


@pytest.mark.parametrize(("unit", "name", "value", "message"), LABELS, ids=range(len(LABELS)))
def test_a_name_that_cannot_be_stored_is_refused_before_the_first_point_runs(
    home: Path, command: Command, monkeypatch: pytest.MonkeyPatch, unit: type, name: str, value: object, message: str
) -> None:
    monkeypatch.setattr(gp.cells.GRU if unit is Cell else unit, name, value)
    if name == "states":
        monkeypatch.setattr(gp.cells.GRU, "carrier", "H")
    status, out, err = command("run", "-m", *SMALL, "cell=lstm,gru" if unit is Cell else "cell=gru,lstm")
    assert (status, out) == (2, ""), "no point has run"
    assert re.fullmatch(f"gradpath: {message}.*", err.splitlines()[-1]), err


def test_the_label_of_a_clipping_is_checked_too(
    home: Path, folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    halved = {name: text for name, text in FILES.items() if "halved" in name}
    write(folder, halved | {"clippings/halved.py": halved["clippings/halved.py"].replace('"halved"', '"a\\nb"')})
    status, out, err = command("run", "--plugin", str(folder), "-m", *SMALL, "clip=threshold,halved")
    assert (status, out) == (2, "")
    assert r"gradpath: clip=halved: label: 'a\nb' cannot be stored; names and labels must be printable" in err


@dataclass
class Twice(LSTM):
    """A cell in which two gates name the same parameter."""

    name = "W_fx"

    @property
    def blocks(self):
        specs = dict(super().blocks)
        return specs | {"i": specs["i"]._replace(x=self.name)}


@dataclass
class TwiceElementwise(PeepholeLSTM):
    @property
    def blocks(self):
        specs = dict(super().blocks)
        return specs | {"i": specs["i"]._replace(elementwise=(Elementwise("b_f", "C"),))}


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (Twice(3), "gate f names a parameter W_fx, as gate i does"),
        (TwiceElementwise(3), "gate f names a parameter b_f, as gate i does"),
    ],
)
def test_two_parameters_of_one_name_are_refused(cell: Cell, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^cell=test_unit_faults: {message}; each parameter needs a name"):
        _ = Network(cell, 1, 1, Adding.loss).layout
    with pytest.raises(ConfigError, match=message):
        replace(compose.experiment(SMALL), cell=cell)


def test_nor_may_one_be_called_as_the_readout_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Twice, "name", "W_hy")
    with pytest.raises(ConfigError, match="gate i names a parameter W_hy, as the readout does"):
        _ = Network(Twice(3), 1, 1, Adding.loss).layout


GATES = dict(LSTM(3).blocks)


def with_gate(gate: str, **changes: object) -> property:
    """The LSTM's gates, one of which declares something else."""
    return property(lambda cell: GATES | {gate: GATES[gate]._replace(**changes)})


@dataclass
class Odd(LSTM):
    """A cell of which one declaration is another."""


ODD_DECLARATIONS = [
    ("watched", {"Z": Watched("zz")}, "watched Z: 'zz' is no gate; the gates are i, f, o, c"),
    ("keeping", Keeping("Q"), "keeping: 'Q' is not watched; watched are I, F, O"),
    ("carrier", "K", "carrier: 'K' is no state; the states are H, C"),
    ("paths", LSTM.paths | {"q": "queue"}, "paths: 'q' is no gate; the gates are i, f, o, c"),
    ("initial_bias", lambda self, rng: {"z": 1.0}, "initial_bias: 'z' is no gate; the gates are i, f, o, c"),
    (
        "blocks",
        with_gate("i", elementwise=(Elementwise("p_i", "K"),)),
        r"blocks: gate i has Elementwise\('p_i', 'K'\); the states are H, C",
    ),
    ("blocks", with_gate("i", role="keeper"), "blocks: gate i has the role 'keeper'; there are keep, input"),
    (
        "blocks",
        with_gate("f", h=None),
        r"blocks: the gates that read H \(i, o, c\) must stand next to each other in i, f, o, c",
    ),
    (
        "blocks",
        with_gate("o", x=None),
        r"blocks: the gates that read X \(i, f, c\) must stand next to each other in i, f, o, c",
    ),
]


@pytest.mark.parametrize(("name", "value", "message"), ODD_DECLARATIONS, ids=range(len(ODD_DECLARATIONS)))
def test_what_a_cell_declares_is_checked_when_it_is_composed(
    home: Path, command: Command, name: str, value: object, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Odd, name, value, raising=False)
    with pytest.raises(ConfigError, match=f"^cell=test_unit_faults: {message}"):
        replace(compose.experiment(SMALL), cell=Odd(4))
    monkeypatch.setattr(LSTM, name, value)
    for words in ("check", "run"):
        status, out, err = command(words, *SMALL)
        assert (status, out) == (2, "")
        assert re.fullmatch(f"gradpath: cell=lstm: {message}.*\n", err), err


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (Measurement(("a", "b"), np.zeros(2)), r"a reading of shape \(2,\) with the names a, b, where the first was"),
        (Measurement(("c",), np.zeros(1)), "with the names c, where the first was a reading of .* with the names a"),
        (Measurement((), np.zeros(0)), r"names are \(\); there must be one, and each once"),
        (Measurement(("a", "a"), np.zeros(2)), "there must be one, and each once"),
    ],
)
def test_readings_that_do_not_fit_together_end_the_run(
    home: Path, command: Command, second: Measurement, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings: Iterator[Measurement] = iter([Measurement(("a",), np.zeros(1)), second])
    monkeypatch.setattr(GradNorm, "measure", lambda self, network, trace: next(readings))
    monkeypatch.setattr(GradNorm, "metric", lambda self, name: None)
    status, _, err = command("run", *SMALL, "instruments=[grad_norm]", "instruments.grad_norm.schedule.every=1")
    assert status == 1
    assert re.search(f"ValueError: instruments.grad_norm: .*{message}", err), err


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((3, 1)), r"ValueError: .*values of shape \(3, 1\); per_timestep, they are \(T, names\) = \(6, 1\)"),
        (np.zeros(1), r"ValueError: .*values of shape \(1,\); per_timestep"),
        (np.full((6, 1), "a"), "TypeError: .*values must be a NumPy array of real numbers, they are an array of <U1"),
        (np.full((6, 1), None), "TypeError: .*values must be a NumPy array of real numbers"),
        ([[0.0]] * 6, "TypeError: .*values must be a NumPy array of real numbers, they are list"),
    ],
)
def test_a_reading_of_another_length_or_of_no_numbers_ends_the_run(
    values: object, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GradNorm, "per_timestep", True)
    monkeypatch.setattr(GradNorm, "measure", lambda self, network, trace: Measurement(("a",), values))
    with pytest.raises((TypeError, ValueError)) as error:
        list(train(compose.experiment([*SMALL, "instruments=[grad_norm]"])))
    assert re.match(message, f"{type(error.value).__name__}: {error.value}"), error.value
    assert str(error.value).startswith("instruments.grad_norm: ")


@pytest.mark.parametrize("key", ["bad key: ä%$", "", " ", "a//b", "../a", "/a", "k" * 251, 3])
def test_a_key_that_the_store_refuses_names_the_instrument_at_once(
    home: Path, command: Command, key: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    update = SGD.update
    monkeypatch.setattr(SGD, "update", lambda self, *given: steps.append(1) or update(self, *given))
    monkeypatch.setattr(GradNorm, "metric", lambda self, name: key)
    status, _, err = command("run", *SMALL, "instruments=[grad_norm]", "optimizer=sgd")
    assert (status, steps) == (1, [])
    assert re.search(r"ValueError: instruments.grad_norm: metric\('W_ix'\) is .*; MLflow takes", err), err


@pytest.mark.parametrize("seeds", ["0", "0..2"])
def test_a_run_that_fails_says_where_its_readings_are_kept(
    home: Path, command: Command, seeds: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is not the store that did not take them."""

    def fails(*_: object) -> None:
        raise ZeroDivisionError("while it was closed")

    monkeypatch.setattr("gradpath.tracking.conclusion.lag_curves", fails)
    monkeypatch.setattr(Adding, "score", lambda self, tape: None)
    status, _, err = command("run", *SMALL, f"seed={seeds}")
    assert status == 1
    kept = sorted((home / "unsent").glob("*.npz"))
    assert len(kept) == (1 if seeds == "0" else 3)
    (named,) = re.findall(r"expected: a number; what was measured is kept in (\S+\.npz)(.*)\n", err)
    assert Path(named[0]) in kept
    assert named[1] == ("" if seeds == "0" else ", and 2 more")
