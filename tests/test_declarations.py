"""The roles of a cell as a store holds them: they come back as they were, nothing else is taken for
them, and runs that were stored without have them from their configuration.
"""

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import cell_id, cells, settle
from gradpath.cells.lstm import LSTM
from gradpath.commands import compose
from gradpath.commands.execute import execute
from gradpath.core.cell import Cell
from gradpath.figures import CannotDrawError, Figure
from gradpath.schema.discovery import discover
from gradpath.tracking import declarations, loader, store
from gradpath.tracking.loader import Run
from gradpath.tracking.recorder import Recorder
from gradpath.training.experiment import Experiment
from test_artifact import arrays, npz, refused

SMALL = ["task.length=6", "cell.hidden_size=2", "train.batch_size=3", "train.eval_size=9", "train.steps=2"]


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return compose.experiment([])


DISCOVERED = [cell for cell in cells() if type(cell) in discover(Cell).values()]


@pytest.mark.parametrize("cell", [*DISCOVERED, LSTM(4, chrono_t_max=9)], ids=cell_id)
def test_they_come_back_from_text_and_from_the_configuration(cell: Cell, experiment: Experiment) -> None:
    assert declarations.from_text(declarations.as_text(cell.roles)) == cell.roles
    resolved = replace(experiment, cell=cell).resolved()["cell"]
    assert declarations.from_configuration(resolved, {}) == cell.roles


def changed(**fields: Any) -> str:
    return json.dumps(json.loads(declarations.as_text(LSTM(2).roles)) | fields)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"),
        ("[]", "roles has not the keys label"),
        ("{}", "roles has not the keys label"),
        (changed(more=1), "roles has not the keys label"),
        (changed(label=3), "roles.label is 3"),
        (changed(layers=True), "roles.layers is True"),
        (changed(layers=0), "layers: 0; there must be one"),
        (changed(states="HC"), "roles.states is HC"),
        (changed(carrier="M"), "carrier: 'M' is no state; the states are H, C"),
        (changed(parameters={"W": {"role": "magic", "gate": None}}), "roles.parameters.W.role is magic"),
        (changed(parameters={"W": {"role": "input", "gate": "z"}}), "parameter W: 'z' is no gate; the gates are i, f"),
        (changed(watched={"F": {"gate": "q", "slope": False}}), "watched F: 'q' is no gate; the gates are i, f"),
        (
            changed(keeping={"gate": "Z", "label": "", "complement": False, "held": None, "bias": None}),
            "keeping: 'Z' is",
        ),
        (changed(keeping="F"), "roles.keeping has not the keys gate"),
        (changed(colors={"": "red"}), "a colour is not #RRGGBB"),
        (changed(drawing={"states": [], "gates": {}, "operations": [], "edges": [{"points": []}]}), "has not the keys"),
        (" " * 200_000, "longer than"),
        ("[" * 50_000, "cannot be read: RecursionError"),
        (changed().replace("5.2", "NaN"), "is nan"),
        (changed().replace("5.2", "1e99"), "far outside the panel"),
        (changed().replace("5.2", "1e999"), "is inf"),
    ],
)
def test_what_is_none_is_refused(text: str, message: str, tmp_path: Path) -> None:
    assert message in refused(tmp_path, npz(arrays(roles=np.array(text))))


def test_names_in_them_cannot_steer_the_terminal() -> None:
    roles = declarations.from_text(changed(label="\x1b[31m", idle=["\u202eabc"]))
    assert (roles.label, roles.idle) == (r"\x1b[31m", (r"\u202eabc",))


def test_declarations_that_cannot_be_stored_are_refused_before_training(experiment: Experiment, home: Path) -> None:
    cell = LSTM(2)
    cell.__dict__["roles"] = replace(cell.roles, label="x" * 101)
    with pytest.raises(ValueError, match="cannot be stored"):
        Recorder(replace(experiment, cell=cell), {"sweep_id": "s"})


def test_roles_of_another_cell_are_refused(home: Path) -> None:
    execute(compose.experiment([*SMALL, "arm=lstm"]), "s")
    rewrite(home, roles=np.array(declarations.as_text(replace(LSTM(2).roles, states=("H", "M"), carrier="M"))))
    with pytest.raises(store.StoreError, match="its roles are those of another cell"):
        loader.load(None, "gradpath", "s")


def rewrite(home: Path, **arrays: np.ndarray) -> None:
    """The artifacts without their roles, and with other arrays."""
    for file in home.rglob(Path(store.ARTIFACT).name):
        with np.load(file) as archive:
            kept = {name: archive[name] for name in archive.files if name != "roles"}
        np.savez(file, **(kept | arrays))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> list[Run]:
    """Runs as version 0.1 stored them."""
    with pytest.MonkeyPatch.context() as patch:
        home = settle(tmp_path_factory.mktemp("old"), migrated_database, patch)
        for arm in ("rnn", "lstm"):
            execute(compose.experiment([*SMALL, f"arm={arm}"]), "s")
        rewrite(home)
        return loader.load(None, "gradpath", "s")


def test_runs_stored_without_have_them_from_their_configuration(old: list[Run]) -> None:
    assert {run.roles.label: run.roles.bottom_carrier for run in old} == {"RNN": "H", "LSTM": "C"}


@pytest.mark.parametrize("name", sorted(discover(Figure)))
def test_a_run_of_a_cell_that_is_not_here_is_drawn_by_its_states_or_refused(old: list[Run], name: str) -> None:
    """Stored without roles, by a cell that nobody knows any more: what is not declared is not
    guessed.
    """
    figure = discover(Figure)[name]()
    foreign_runs = []
    for run in old:
        config = run.config | {"cell": run.config["cell"] | {"name": "gone"}}
        readings = {key: series.names for key, series in run.series.items()}
        roles = declarations.from_configuration(config["cell"], readings)
        assert (roles.label, roles.bottom_carrier, roles.parameters) == ("gone", run.roles.bottom_carrier, {})
        foreign_runs.append(replace(run, config=config, arm="gone", roles=roles))
    if not set(figure.needs) <= set(foreign_runs[0].series):
        return
    with suppress(CannotDrawError):
        figure.draw(foreign_runs).canvas.draw()
