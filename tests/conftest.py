"""Small networks on random minibatches, for every cell, depth, loss and mask that the oracles run
over.
"""

import os
import sys

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Commands start faster where what they import is compiled once, whatever the environment says.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# Whoever runs the tests may have told MLflow where a store is: none of that is meant.
for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
    del os.environ[name]

import gc
import itertools
import logging
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from numpy.typing import NDArray

from gradpath.cells.gru import GRU
from gradpath.cells.lstm import LSTM, Ablation
from gradpath.cells.peephole_lstm import PeepholeLSTM
from gradpath.cells.rnn import RNN
from gradpath.core.activations import Activation
from gradpath.core.cell import Cell
from gradpath.core.losses import Loss
from gradpath.core.network import Network
from gradpath.core.tape import Batch
from gradpath.core.trace import Trace
from gradpath.engine.workspace import Workspace
from gradpath.inits.uniform import Uniform
from gradpath.schema.discovery import discover
from gradpath.training.loop import Step
from independent_rnn import IndependentRNN

INPUTS, OUTPUTS, SEQUENCES = 2, 3, 3
UNREAD: Any = None
"""The network, for instruments that read the trace alone."""
DIVERGES = ["arm=rnn", "cell.activation=relu", "init=orthogonal", "init.gain=3", "optimizer=sgd", "optimizer.lr=1000"]
"""Overrides with which training blows up within 30 updates."""
PATIENCE = 3600
"""Seconds until a process that does not end is given up: no test depends on how fast the machine
is.
"""


# The garbage collector runs once in 300 tests and not by counts of allocations: it takes a tenth of
# the time of the tests, and a quarter of that of their collection. What is left then, modules and
# what collection has made, it need not look at again.
gc.disable()
tests_since = itertools.count(1)


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()


def pytest_runtest_logfinish() -> None:
    if next(tests_since) % 300 == 0:
        gc.collect()
        gc.freeze()


# The same examples every time, however slow the machine; `make test-slow` draws new ones.
hypothesis.settings.register_profile("same", derandomize=True, deadline=None)
hypothesis.settings.register_profile("new", deadline=None)
hypothesis.settings.load_profile("same")

# Under nohup, or as the background job of a script, a process and its children are deaf to some of
# these.
signal.signal(signal.SIGINT, signal.default_int_handler)
for ending in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM):
    if signal.getsignal(ending) is signal.SIG_IGN:
        signal.signal(ending, signal.SIG_DFL)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-combination", action="store_true", help="of tests marked pairwise too")


@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Of a test that is marked ``pairwise`` the combinations are kept in which every value of a
    parameter meets every value of every other one: almost all faults depend on one parameter or two
    (Kuhn, Wallace & Gallo 2004). Marks and fixtures have filled ``_calls`` by now; what is left out
    here never becomes a test, which would double the time of the collection.
    """
    marked = any(mark.name == "pairwise" for mark in metafunc.definition.iter_markers())
    if marked and not metafunc.config.getoption("--every-combination"):
        kept = covering([call.params for call in metafunc._calls])
        metafunc._calls[:] = [metafunc._calls[index] for index in sorted(kept)]


def covering(combinations_of_values: list[dict[str, Any]]) -> set[int]:
    """The places of those combinations of one test that hold every pair, each time the one with the
    most that are left.
    """
    pairs = []
    for values in combinations_of_values:
        words = {name: repr(value) for name, value in values.items()}
        pairs.append(set(combinations(sorted(words.items()), 2)))
    uncovered, kept = set().union(*pairs), set()
    while uncovered:
        best = max(range(len(pairs)), key=lambda index: len(pairs[index] & uncovered))
        kept.add(best)
        uncovered -= pairs[best]
    return kept


@dataclass
class Case:
    """A network, its parameters, a minibatch, and the trace of a forward and a backward pass."""

    network: Network
    theta: NDArray
    batch: Batch
    executor: Executor | None = None

    @cached_property
    def workspace(self) -> Workspace:
        return self.network.workspace(executor=self.executor)

    @property
    def trace(self) -> Trace:
        tape = self.network.forward(self.theta, self.batch, self.workspace)
        return self.network.backward(self.theta, tape, self.workspace)


def make_case(
    cell: Cell,
    loss: Loss,
    steps: int,
    every_step: bool,
    dtype: type = np.float64,
    seed: int = 0,
    sequences: int = SEQUENCES,
) -> Case:
    """A random case; ``every_step`` scores random positions of every step, otherwise the last step
    alone is scored.
    """
    rng = np.random.default_rng(seed)
    network = Network(cell, INPUTS, OUTPUTS, loss, cell.layers, cell.initial_state)
    theta = Uniform(gain=1.5).draw(rng, network, np.float64)
    inputs = rng.normal(size=(steps, sequences, INPUTS))
    mask = np.zeros((steps, sequences), bool)
    mask[-1] = True
    if every_step:
        mask |= rng.random((steps, sequences)) < 0.5
    targets = rng.normal(size=(steps, sequences, OUTPUTS))
    if loss is Loss.cross_entropy:
        targets = targets.argmax(axis=-1)
    return Case(network, theta.astype(dtype), Batch(inputs, targets, mask).astype(dtype))


def random_batch(rng: np.random.Generator, loss: Loss, mask: NDArray, dtype: type) -> Batch:
    """Targets and inputs for a mask (T, B)."""
    targets = rng.normal(size=(*mask.shape, OUTPUTS))
    if loss is Loss.cross_entropy:
        targets = targets.argmax(axis=-1)
    return Batch(rng.normal(size=(*mask.shape, INPUTS)), targets, mask).astype(dtype)


def signature(step: Step) -> tuple:
    """All that happened at a training step, to the bit."""
    measured = {name: (m.names, m.values.tobytes()) for name, m in step.measurements.items()}
    return step.step, step.loss, step.log10_grad_norm, step.evaluation, step.diverged, measured


def cells() -> list[Cell]:
    """Every cell that is discovered, in every nonlinearity it has, with one to three layers."""
    networks: list[Cell] = []
    for name, cls in discover(Cell).items():
        for layers in (1, 2, 3):
            if name == "rnn":
                networks += [cls(hidden_size=3, layers=layers, activation=kind) for kind in Activation]  # type: ignore[call-arg]
            elif name == "lstm":
                kinds = Ablation if layers == 1 else (Ablation.none, Ablation.coupled_gates)
                networks += [cls(hidden_size=3, layers=layers, ablation=kind) for kind in kinds]  # type: ignore[call-arg]
            else:
                networks.append(cls(hidden_size=3, layers=layers))
    networks += [PeepholeLSTM(3, ablation=kind) for kind in (Ablation.coupled_gates, Ablation.no_output_gate)]
    networks += [IndependentRNN(3, layers=layers) for layers in (1, 2)]
    networks += [LSTM(3, freeze_f=0.5, initial_state=0.4), LSTM(3, freeze_i=1.0, freeze_o=1.0), GRU(3, freeze_z=0.5)]
    return networks


def cell_id(cell: Cell) -> str:
    kind = cell.activation.name if isinstance(cell, RNN) else cell.variant
    frozen_gates = [f"{k}{v}" for k, v in vars(cell).items() if k.startswith("freeze") and v is not None]
    return "-".join([type(cell).__name__, *[kind] * bool(kind), *frozen_gates, str(cell.layers)])


@pytest.fixture(params=cells(), ids=cell_id)
def cell(request: pytest.FixtureRequest) -> Cell:
    return request.param


@pytest.fixture(params=list(Loss), ids=lambda loss: loss.name)
def loss(request: pytest.FixtureRequest) -> Loss:
    return request.param


@pytest.fixture(params=[1, 2, 6], ids=lambda t: f"T{t}")
def steps(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture(params=[False, True], ids=["last-step", "every-step"])
def every_step(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture
def case(cell: Cell, loss: Loss, steps: int, every_step: bool) -> Case:
    return make_case(cell, loss, steps, every_step)


@pytest.fixture(autouse=True)
def figures_are_drawn_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless ``jobs=`` asks for others: they take seconds to start, and know nothing of a test's
    patches.
    """
    from gradpath.commands import drawing

    monkeypatch.setattr(drawing, "processes", lambda report: min(report.jobs or 1, len(report.figures)))


@pytest.fixture(autouse=True)
def no_figure_stays_open() -> Iterator[None]:
    """pyplot keeps every figure and warns of the twenty-first."""
    yield
    if (pyplot := sys.modules.get("matplotlib.pyplot")) is not None:
        pyplot.close("all")


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database, migrated once; tests copy it, which takes a fiftieth of the time. What
    MLflow's newest schema is it finds in 60 files for every database that it opens: once will do.
    """
    from gradpath.testing._runs import migrated

    database = migrated(tmp_path_factory.mktemp("template") / "mlflow.db")
    from mlflow.store.db import utils

    utils._get_latest_schema_revision = cache(utils._get_latest_schema_revision)
    return database


def settle(folder: Path, database: Path, patch: pytest.MonkeyPatch) -> Path:
    """Makes a folder the home for results, with a database of its own."""
    patch.setenv("GRADPATH_HOME", str(folder))
    (folder / "mlruns").mkdir()
    shutil.copy(database, folder / "mlruns" / "mlflow.db")
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, migrated_database: Path) -> Path:
    """A home of its own for results, so that no test sees another's."""
    return settle(tmp_path, migrated_database, monkeypatch)


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Runs ``gradpath …`` in this process; returns its status, output and errors."""
    from gradpath.commands import cli, compose

    handlers, root_level = logging.root.handlers[:], logging.root.level

    def called(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["gradpath", *arguments])
        compose.forget()  # a command is a process of its own, which reads the files as they are
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
        out, err = capsys.readouterr()
        return int(exit_info.value.code or 0), out, err

    yield called
    logging.root.handlers[:], logging.root.level = handlers, root_level  # which Hydra's --info sets for good
    signal.signal(signal.SIGINT, signal.default_int_handler)
