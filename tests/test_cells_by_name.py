"""Nothing but the cells knows a cell: one that gradpath has never seen goes through all of it by
what it declares, and the source asks for no cell, gate or parameter by name.
"""

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib
import numpy as np
import pytest

import gradpath
from conftest import make_case, settle
from gradpath import gradient_check
from gradpath.cells.gru import GRU
from gradpath.cells.lstm import LSTM, Ablation
from gradpath.cells.rnn import RNN
from gradpath.commands import compose, report
from gradpath.commands.execute import execute_seeds
from gradpath.core.cell import Cell
from gradpath.core.losses import Loss
from gradpath.figures import CannotDrawError, Figure, gates, lyapunov
from gradpath.figures._shared import common, palette
from gradpath.figures.paths import predicted
from gradpath.instruments import Instrument
from gradpath.instruments.loss_surface import LossSurface
from gradpath.instruments.parameter_value import ParameterValue
from gradpath.schema.discovery import discover
from gradpath.tracking import loader
from gradpath.tracking.loader import Run
from gradpath.training.experiment import Experiment
from leaky_memory import LeakyMemory

FIGURES = discover(Figure)
SMALL = ["task.length=8", "train.batch_size=3", "train.eval_size=9", "train.steps=2"]
ONE_UNIT = {"loss_surface", "parameter_value"}
EVERYTHING = f"instruments=[{','.join(sorted(set(discover(Instrument)) - ONE_UNIT))}]"
REFUSED = {
    "ablation": "no ablated cell among the runs",
    "spectral_radius": "its cell has no spectral radius",
    "forget_bias": "needs two initial biases of the keeping gate",
}
"""Figures that a plain sweep of this cell cannot be drawn in, and why."""


def experiment_of(cell: Cell, *overrides: str) -> Experiment:
    return replace(compose.experiment([*SMALL, *overrides]), cell=cell)


def train(sweep: str, *experiments: Experiment) -> list[Run]:
    for experiment in experiments:
        execute_seeds([replace(experiment, seed=seed) for seed in (0, 1)], sweep)
    return loader.load(None, "gradpath", sweep)


@pytest.fixture(scope="module")
def results_home(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> Iterator[Path]:
    matplotlib.use("Agg")
    with pytest.MonkeyPatch.context() as patch:
        yield settle(tmp_path_factory.mktemp("home"), migrated_database, patch)


@pytest.fixture(scope="module")
def runs(results_home: Path) -> list[Run]:
    """Of the cell, and of a stack of it."""
    return train("s", *(experiment_of(LeakyMemory(3, layers=layers), EVERYTHING) for layers in (1, 2)))


@pytest.fixture(scope="module")
def one_unit_runs(results_home: Path) -> list[Run]:
    """Of the sizes that the figures need whose instruments follow every element."""
    surface = LossSurface(x="back_alpha", y="off_y", points=4)
    base = experiment_of(LeakyMemory(1), "instruments=[grad_norm]")
    instruments = base.instruments | {"loss_surface": surface, "parameter_value": ParameterValue()}
    return train("u", replace(base, instruments=instruments))


def test_every_instrument_reads_it(runs: list[Run], one_unit_runs: list[Run]) -> None:
    assert {*runs[0].series, *one_unit_runs[0].series} == set(discover(Instrument))
    for run in runs:
        assert run.roles == LeakyMemory(3, layers=run.config["cell"]["layers"]).roles, "as they were stored"
        assert all(np.isfinite(series.values).any() for series in run.series.values())


@pytest.mark.parametrize("name", sorted(set(FIGURES) - {"cliff"}))
def test_every_figure_draws_it_or_says_why_not(name: str, runs: list[Run]) -> None:
    if name not in REFUSED:
        canvas = FIGURES[name]().draw(runs)
        canvas.canvas.draw()
        return
    with pytest.raises(CannotDrawError, match=REFUSED[name]):
        FIGURES[name]().draw([run for run in runs if run.roles.layers == 1])


def test_figures_of_a_study_draw_a_study_of_it(results_home: Path, one_unit_runs: list[Run]) -> None:
    """The bias of what keeps over the length; the surface of one unit."""
    points = [(bias, length) for bias in (-1.0, -3.0) for length in (8, 12)]
    instruments = "instruments=[state_grad_norm]"
    biased = train(
        "b", *(experiment_of(LeakyMemory(3, leak_bias=b), instruments, f"task.length={n}") for b, n in points)
    )
    _, lower = FIGURES["forget_bias"]().draw(biased).axes
    assert [text.get_text() for text in lower.get_xticklabels()] == ["1", "3"], "what keeps starts at −b"
    assert lower.get_xlabel() == "initial leak bias  b"
    canvas = FIGURES["cliff"]().draw(one_unit_runs)
    assert {axes.get_xlabel() for axes in canvas.axes} >= {"back_alpha"}


def test_the_report_and_its_verdicts(runs: list[Run], results_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verdicts = report.verdicts(runs)
    assert len(verdicts) == len(runs)
    assert all("leaky memory" in line for line in verdicts)
    assert {run.tags["verdict"] for run in runs} == {"untrained"}


def test_parameters_are_told_by_their_roles(runs: list[Run]) -> None:
    """The readout is left out and no other parameter is, though ``back_by``
    ends as ``W_hy`` does.
    """
    (first_run, *_) = runs
    names = ["feed_kappa", "feed_alpha", "back_alpha", "back_by", "off_kappa", "off_alpha", "off_y"]
    *_, panel = FIGURES["norm_by_lag"]().draw(runs[:1]).axes
    lines = [line for line in panel.lines if line.get_marker() == "None"]
    assert len(lines) == len(names)
    atlas, *_ = FIGURES["gradient_atlas"]().draw([first_run]).axes
    assert [text.get_text() for text in atlas.get_yticklabels()] == names
    styles = {name: palette.parameter(first_run.roles, name) for name in names}
    assert styles["back_by"].color == styles["off_y"].color == palette.GATES["output"]
    assert styles["off_alpha"].color == styles["feed_alpha"].color == palette.GATES["keep"]
    assert styles["off_kappa"].color == palette.OTHER_GATES[0], "without a role, the first that is free"
    assert [styles[name].dash for name in ("feed_kappa", "back_by", "off_y")] == ["-", "--", ":"]


def test_the_complement_keeps(runs: list[Run]) -> None:
    """The time constant is that of 1 − α, and the carousel's line that of σ(2) a step."""
    (run, *_) = runs
    np.testing.assert_allclose(predicted(run), -run.lag * np.log10(1 + np.exp(-2.0)))
    *_, bottom_axes = FIGURES["gates"]().draw([run]).axes
    alpha = run.series["gate_activation"].column("alpha/q50")[-1]
    curves = [
        line.get_ydata() for line in bottom_axes.lines if line.get_linewidth() == 1.6 and line.get_linestyle() == "-"
    ]
    np.testing.assert_allclose(curves, [-1 / np.log(1 - alpha)])
    assert run.roles.saturates("alpha") == (False, True)
    assert run.roles.saturates("beta") == (True, True)


def test_the_gradient_check_passes() -> None:
    *_, (_, rows) = gradient_check.every_case(experiment_of(LeakyMemory(3)))
    assert {row.quantity for row in rows} >= {"back_by", "∂L/∂M", "keeping", *set(discover(Instrument)) - ONE_UNIT}
    assert not [row for row in rows if not row.passed]


def test_the_gradient_check_passes_in_a_stack() -> None:
    case = make_case(LeakyMemory(3, layers=2), Loss.squared_error, 5, every_step=True)
    rows = gradient_check.check(case.network, case.theta, case.batch, np.random.default_rng(0))
    assert not [row for row in rows if not row.passed]


def test_the_gradient_check_sees_a_wrong_declaration(monkeypatch: pytest.MonkeyPatch) -> None:
    def failed_quantities() -> set[str]:
        case = make_case(LeakyMemory(3), Loss.squared_error, 3, every_step=False)
        rows = gradient_check.check(case.network, case.theta, case.batch, np.random.default_rng(0))
        return {row.quantity for row in rows if not row.passed}

    assert not failed_quantities()
    right = LeakyMemory(3).keeping
    monkeypatch.setattr(LeakyMemory, "keeping", replace(right, complement=False))
    assert failed_quantities() == {"keeping"}
    monkeypatch.setattr(LeakyMemory, "keeping", right)
    monkeypatch.setattr(LeakyMemory, "watched", LeakyMemory.watched | {"gamma": LeakyMemory.watched["alpha"]})
    assert "activations" in failed_quantities()


# ── the source ──────────────────────────────────────────────────────────────


SOURCE = Path(gradpath.__file__).parent
EXEMPT = {
    "instruments/loss_surface.py": {"W_hh", "b_h"},  # the plane that a user is offered first, as they would type it
    "core/roles.py": {"W_hy", "b_y"},  # the readout's, which are the network's
    "core/cell.py": {"H"},  # what a cell's output is called unless it says otherwise
    "core/layer_names.py": {"layer"},  # the place that puts them together
    **{f"api/{name}.py": {"layer"} for name in ("columns", "table")},  # the heading of a column
    "commands/messages.py": {"H"},  # which setting a symbol means that somebody types
    "figures/gates.py": {"activation"},  # the label of an axis
    "tracking/decoding.py": {"F", "C"},  # orders of an array in memory
    # The marker of a point.
    **{f"figures/{name}.py": {"o"} for name in ("cliff", "counterfactual", "forget_bias", "spectral_radius")},
}


WORDS = {"candidate", "recurrence"}
"""Of the cells' names those that are also roles, which any cell may have."""


def _settings() -> set[str]:
    """The fields that only some cells have."""
    base_fields = {field.name for field in fields(Cell)}  # type: ignore[arg-type]
    return {field.name for cls in (RNN, GRU, LSTM) for field in fields(cls)} - base_fields  # type: ignore[arg-type]


def _names() -> set[str]:
    """What is the cells' own: their names, gates, parameters, states, ways, settings,
    counterfactuals.
    """
    names = _settings()
    for cell in (RNN(), GRU(), *(LSTM(ablation=ablation) for ablation in Ablation)):
        unit = type(cell).__module__.rpartition(".")[2]
        names |= {unit, unit.upper(), cell.variant, *cell.states, *cell.blocks, *cell.roles.parameters}
        names |= {*cell.paths.values(), *cell.watched, *cell.counterfactuals()} - {"truncated"}
    return names - WORDS - {""}


def _sources() -> list[Path]:
    return [path for path in sorted(SOURCE.rglob("*.py")) if "cells" not in path.relative_to(SOURCE).parts]


def _docstrings(tree: ast.AST) -> set[int]:
    """Which constants are prose, expressions by themselves, or say how a number is written."""
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    formats = [node.format_spec for node in ast.walk(tree) if isinstance(node, ast.FormattedValue) and node.format_spec]
    return prose | {id(part) for format_string in formats for part in ast.walk(format_string)}


def offences(text: str, allowed: Sequence[str] = ()) -> list[str]:
    """What of a source asks for a cell, a gate or a parameter by name."""
    tree = ast.parse(text)
    prose, names, settings, lines = _docstrings(tree), _names(), _settings(), []
    for node in ast.walk(tree):
        line = f"line {getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.ImportFrom | ast.Import):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            lines += [f"{line}: imports {name}" for name in modules if name.startswith("gradpath.cells")]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            value = node.value
            if value in names and value not in allowed:
                lines.append(f"{line}: {value!r}")
            if re.search(r"(^|/)layer(\d|$)", value) and value not in allowed:
                lines.append(f"{line}: {value!r} puts a layer's name together")
        elif isinstance(node, ast.Attribute) and node.attr in settings:
            lines.append(f"{line}: .{node.attr}")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            lines += [f"{line}: {guess}" for guess in _name_lookups(node)]
    return lines


def _name_lookups(call: ast.Call) -> Iterator[str]:
    """Tests of how a parameter's name begins or ends."""
    assert isinstance(call.func, ast.Attribute)
    if call.func.attr not in ("startswith", "endswith", "removeprefix", "removesuffix"):
        return
    for node in ast.walk(call):
        if isinstance(node, ast.Constant) and node.value in ("y", "W_", "b_", "h", "x", "_h", "_x", "W"):
            yield f"{call.func.attr}({node.value!r})"


@pytest.mark.parametrize("path", _sources(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_source_asks_for_a_cell_by_name(path: Path) -> None:
    module_path = str(path.relative_to(SOURCE))
    assert not offences(path.read_text(encoding="utf-8"), tuple(EXEMPT.get(module_path, ())))


@pytest.mark.parametrize(
    "line",
    [
        "from gradpath.cells.rnn import RNN",
        "import gradpath.cells.lstm",
        'if run.config["cell"]["name"] == "rnn": pass',
        'KEEPS = ("F", "Z")',
        'names = [name for name in every if not name.endswith("y")]',
        'if name.startswith(("W_", "b_")): pass',
        'found = names[prefix + "W_hh"]',
        'prefix = "layer1/" if layers > 1 else ""',
        'prefix = f"layer{k}/"',
        'bias = cell["forget_bias"]',
        'if cell.get("chrono_t_max"): pass',
        "kind = cell.activation",
        "held = cell.freeze_f",
        'COLORS = {"update_gate": "#0072B2"}',
        'for block in ("i", "f", "o", "c"): pass',
        'look = COLORS["F=0.5"]',
    ],
)
def test_each_such_line_is_seen(line: str) -> None:
    assert offences(line)


def test_what_may_be_written_is_passed() -> None:
    allowed_source: Any = '"""The LSTM\'s forget_bias."""\nif run.roles.keeping: label = run.config["cell"]["name"]'
    assert not offences(allowed_source)


def test_a_caption_reads_well_with_any_label() -> None:
    """``my cell`` would not, after an article."""
    roles = replace(LSTM(2).roles, label="my cell")
    other = replace(GRU(2).roles, label="your cell")
    groups: Any = [SimpleNamespace(runs=[SimpleNamespace(roles=each)]) for each in (roles, other)]
    assert common.carriers(groups) == "C of my cell, H of your cell"
    assert gates._keepers(groups) == "F (Z of your cell)"
    assert lyapunov._states(groups) == "[H, C] of my cell, H of your cell"
    rnn: Any = SimpleNamespace(runs=[SimpleNamespace(roles=replace(RNN(2).roles, label="my cell"))])
    (watched,) = rnn.runs[0].roles.watched
    assert gates._label(rnn, watched) == "φ′ of my cell"
