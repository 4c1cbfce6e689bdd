"""gradpath from Python: the same runs as the command's, and a process that is left as it was."""

import doctest
import importlib
import io
import logging
import os
import pkgutil
import re
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_info

import gradpath as gp
from conftest import DIVERGES, PATIENCE
from gradpath import api
from gradpath.api import keywords
from gradpath.commands import execute
from gradpath.commands.grammar import parse
from gradpath.instruments import Instrument
from gradpath.schema.discovery import discover
from gradpath.tracking import loader, store

ROOT = Path(__file__).parents[1]
SMALL = {"task": {"length": 6}, "cell": {"hidden_size": 3}, "train": {"steps": 2, "batch_size": 3, "eval_size": 5}}
SMALL_OVERRIDES = keywords.assignments((), SMALL)
IMPORT = """
import sys, time
began = time.process_time()
import gradpath as gp
print(time.process_time() - began)
print(*(name for name in ("numpy", "hydra", "omegaconf", "mlflow", "pandas", "matplotlib") if name in sys.modules))
assert set(dir(gp)) == set(gp.__all__) and gp.__version__[0].isdigit()
"""


def same_measurements(left: Any, right: Any) -> None:
    """Two stored runs hold the same numbers, to the bit."""
    assert left.config == right.config
    assert left.series.keys() == right.series.keys()
    for name in left.series:
        assert left.series[name].names == right.series[name].names
        for field in ("steps", "values"):
            np.testing.assert_array_equal(getattr(left.series[name], field), getattr(right.series[name], field))
    np.testing.assert_array_equal(left.loss.values, right.loss.values)
    np.testing.assert_array_equal(left.evaluation.values, right.evaluation.values)


def test_the_import_is_quick_and_loads_nothing() -> None:
    completed = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, timeout=PATIENCE)
    seconds, loaded = completed.stdout.splitlines()
    assert float(seconds) < 0.3, "seconds of the processor"
    assert loaded == ""


def test_every_name_is_there() -> None:
    for name in gp.__all__:
        assert getattr(gp, name) is not None, name
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = gp.nothing_of_the_kind
    assert gp.cells.LSTM in discover(gp.cells.LSTM.__base__).values()
    assert {"GRU", "LSTM", "RNN"} <= set(dir(gp.cells))
    assert "Adding" in dir(gp.tasks)
    for name, message in {
        "NoCell": "module 'gradpath.cells' has no attribute 'NoCell'; dir(gradpath.cells) lists the units",
        "Lstm": "module 'gradpath.cells' has no attribute 'Lstm'; .* (did you mean LSTM?)",
        "lstn": "module 'gradpath.cells' has no attribute 'lstn'; dir(gradpath.cells) lists the units",
    }.items():
        with pytest.raises(AttributeError, match=re.escape(message).replace(r"\.\*", ".*")):
            getattr(gp.cells, name)
    for name in ("cells", "tasks", "inits", "optimizers", "clippings", "instruments", "figures"):
        with pytest.raises(AttributeError, match=f"module 'gradpath.{name}' has no attribute 'Nope'"):
            _ = getattr(gp, name).Nope
    with pytest.raises(
        AttributeError, match=r"module 'gradpath' has no attribute 'RunErr' \(did you mean RunError\?\)"
    ):
        _ = gp.RunErr


WRONG_TYPES = [
    (lambda v: gp.run(v), "must be text, KEY=VALUE"),
    (lambda v: gp.sweep(v), "must be text, KEY=VALUE"),
    (lambda v: gp.check(v), "must be text, KEY=VALUE"),
    (lambda v: gp.network(v), "must be text, KEY=VALUE"),
    (lambda v: gp.load(study=v), "study=.*: must be text or None"),
    (lambda v: gp.load(sweep=v), "sweep=.*: must be text or None"),
    (lambda v: gp.load(uri=v), "uri=.*: must be text or None"),
    (lambda v: gp.add_plugin(v), ".*: must be the path of a folder"),
    (lambda v: gp.draw(v), "results=.*: must be a Result, several of them, or None"),
    (lambda v: gp.draw([v]), "results=.*: must be a Result, several of them, or None"),
    (lambda v: gp.draw(gp.Results([]), [v]), "names=.*: must be names of figures, or None"),
    (lambda v: gp.draw(gp.Results([]), gates=v), "gates=.*: must be a dict of this figure's settings, as gates="),
    (lambda v: gp.Results([v]), "runs=.*: must be several of Result"),
    (lambda v: gp.Results([]).figure(v), "name=.*: must be the name of a figure"),
]


@pytest.mark.parametrize("value", [5, b"x", len], ids=["number", "bytes", "function"])
@pytest.mark.parametrize(("call", "message"), WRONG_TYPES, ids=range(len(WRONG_TYPES)))
def test_an_argument_of_another_type_is_refused_in_a_line(
    home: Path, call: Callable[[Any], Any], message: str, value: Any
) -> None:
    with pytest.raises(gp.ConfigError, match=message) as error:
        call(value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gp.Results(5), "runs=5: must be several of Result"),
        (lambda: gp.draw({}), "results={}: must be a Result, several of them, or None"),
        (lambda: gp.draw("x"), "results='x': must be a Result"),
        (lambda: gp.draw(gp.Results([]), 5), "names=5: must be names of figures"),
        (lambda: gp.Results([]).table("loss"), "no runs to read"),
        (lambda: gp.add_plugin("a\0b"), "embedded null"),
        (lambda: gp.add_plugin("~nobody_of_the_kind/x"), "^~nobody_of_the_kind/x: "),
        (lambda: gp.run(train=[3]), r"train=\[3\]: is a section; its keys are set one by one, as train.KEY=VALUE"),
        (lambda: gp.run("instruments.reach=5"), "instruments.reach=5: is a section; its keys are set one by one"),
    ],
    ids=range(9),
)
def test_nor_is_anything_else_that_cannot_be_an_argument_taken(
    home: Path, call: Callable[[], Any], message: str
) -> None:
    with pytest.raises(gp.ConfigError, match=message):
        call()


def test_every_function_is_tried_with_other_types() -> None:
    """One that is added is to be tried too."""
    functions = {name for name in gp.__all__ if type(getattr(gp, name)).__name__ == "function"}
    assert functions == {"add_plugin", "check", "draw", "load", "network", "run", "sweep"}


def test_a_run_is_that_of_the_command(home: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    assert command("run", "arm=lstm", "seed=3", *SMALL_OVERRIDES)[0] == 0
    ((name, status, tags),) = loader.outcomes(None, "gradpath", loader.newest_sweep(None, None)[1])
    assert (name, status) == ("lstm · adding T=6 · seed 3", "FINISHED")
    (by_command,) = loader.load(None, "gradpath", tags["sweep_id"])
    assert gp.run("arm=lstm", **SMALL, seed=3).run_id == by_command.run_id  # which has finished
    result = gp.run("arm=lstm", **SMALL, seed=3, resume=False)
    assert result.run_id != by_command.run_id
    same_measurements(result.stored, by_command)
    (loaded,) = gp.load()
    assert loaded.run_id == result.run_id
    same_measurements(loaded.stored, result.stored)
    assert [row.tolist() for row in result.loss] == [[0, 1, 2], by_command.loss.values.tolist()]
    assert result.evaluations.steps.tolist() == [2]
    assert (result.name, result.arm, result.seed, result.diverged_at) == (name, "lstm", 3, None)
    assert result.verdict.word == "untrained"
    begin = gp.network("arm=lstm", **SMALL, seed=3)
    assert begin.network.forward(begin.theta, begin.batch).loss == result.loss.values[0]


def test_seeds_and_sweeps_give_results(home: Path) -> None:
    seeds = gp.run(arm="rnn", seed="0..1", **SMALL)
    swept = gp.sweep(arm=["rnn"], seed=range(2), optimizer={"lr": [0.1, 0.2]}, **SMALL)
    assert [run.seed for run in seeds] == [0, 1]
    assert [(run.seed, run.config["optimizer"]["lr"]) for run in swept] == [(0, 0.1), (0, 0.2), (1, 0.1), (1, 0.2)]
    assert isinstance(seeds, gp.Results)
    assert isinstance(swept[1:3], gp.Results)
    assert len(gp.load()) == 4
    assert list(swept.verdicts.columns) == ["arm", "seed", "optimizer.lr", "verdict", "reason"]
    assert list(seeds.verdicts.columns) == ["arm", "seed", "verdict", "reason"]
    assert "untrained" in swept._repr_html_()
    assert "optimizer.lr" in swept.table("loss")
    assert swept.table("loss").groupby("optimizer.lr").size().tolist() == [6, 6]


@pytest.mark.parametrize("arm", ["lstm", "gru"])
def test_the_table_holds_the_numbers_of_the_arrays(home: Path, arm: str) -> None:
    result = gp.run(arm=arm, task={"length": 5}, cell={"hidden_size": 2, "layers": 2}, train=SMALL["train"])
    norms, table = result.series["param_grad_norm"], result.table()
    assert norms.axes == ("step", "t", "name")
    assert list(table.columns) == ["arm", "seed", "layer", "parameter", "gate", "lag", "step", "log10_norm"]
    assert len(table) == norms.values.size
    assert np.isneginf(table.log10_norm).sum() == np.isneginf(norms.values).sum() > 0
    expected = {
        (step, 5 - t, name): norms.values[i, t - 1, k]
        for i, step in enumerate(norms.steps.tolist())
        for t in range(1, 6)
        for k, name in enumerate(norms.names)
    }
    seen = {}
    for row in table.itertuples():
        readout = row.parameter in ("W_hy", "b_y")
        name = row.parameter if readout else f"layer{row.layer}/{row.parameter}"
        seen[row.step, row.lag, name] = row.log10_norm
        declared = result.roles.parameters[row.parameter].gate
        assert (row.gate == declared) if declared else (row.gate is None or row.gate != row.gate)
    assert seen == expected
    if arm == "gru":  # the letters of W_nh do not say that its gate is the candidate's recurrent part
        assert set(table[table.parameter == "W_nh"].gate) == {"q"}
    zero = result.table("state_grad_norm").query("derivative == 'direct' and layer == 2 and state == 'H' and lag > 0")
    assert np.isneginf(zero.log10_norm).all(), "the loss is at the last step alone"


def test_every_instrument_has_a_table(home: Path) -> None:
    readable = [name for name in discover(Instrument) if name not in ("loss_surface", "parameter_value")]
    result = gp.run(arm="lstm", **SMALL, instruments=readable)
    assert set(result.series) == set(readable)
    for name, reading in result.series.items():
        table = result.table(name)
        numbers = table.select_dtypes("float64").to_numpy()
        left, right = (np.sort(values[~np.isnan(values)]) for values in (numbers, reading.values))
        assert np.array_equal(left, right), name
        assert ("lag" in table) == ("t" in reading.axes or name == "jacobian_log_singular_values"), name
    paths, series = result.table("path_grad_norm"), result.series["path_grad_norm"]
    forget = paths.query("path == 'forget_gate' and step == 2")
    assert set(forget.gate) == {"f"}
    np.testing.assert_array_equal(forget.log10_norm, series.column("C/forget_gate")[-1])
    np.testing.assert_array_equal(forget.cosine, series.column("C/forget_gate/cosine")[-1])
    np.testing.assert_array_equal(forget.lag, np.arange(6)[::-1])
    credit = result.table("credit").query("loss_t == 6 and step == 0")
    np.testing.assert_array_equal(credit.alignment, result.series["credit"].column("alignment/6")[0])
    gates = result.table("gate_activation").query("statistic == 'mean' and step == 0 and watched == 'F'")
    np.testing.assert_array_equal(gates["value"], result.series["gate_activation"].column("F/mean")[0])
    assert set(gates.gate) == {"f"}
    with pytest.raises(KeyError, match="holds readings of"):
        result.table("nothing")
    plane = gp.run(
        **SMALL | {"cell": {"name": "rnn", "hidden_size": 1}},
        instruments=["loss_surface", "parameter_value"],
    )
    assert {"W_hh", "b_h", "loss"} <= set(plane.table("loss_surface"))
    assert set(plane.table("parameter_value").parameter) == {"W_xh", "W_hh", "b_h", "W_hy", "b_y"}


class Kind(Enum):
    float64 = "float64"


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, False, 3, 0.25, 1e-30, -2, "lstm", "null", "true", "12", "0..3", "a b", "x,y"),
        *(
            'say "so"',
            "it's",
            "back\\slash",
            "tail\\",
            "é",
            "[a]",
            "{a}",
            "k=v",
            "a:b",
            "sqlite:////tmp/a b.db",
        ),
        *(["a", "b c"], [1, None], []),
    ],
)
def test_a_value_is_read_back_as_it_was_given(value: Any) -> None:
    (override,) = keywords.assignments((), {"tracking": {"key": value}})
    read = parse(override).value()
    assert read == value
    assert type(read) is type(value)


def test_keyword_arguments_become_overrides() -> None:
    settings = {"arm": "lstm", "task": {"name": "copy", "length": 5}, "experiment": "demo", "seed": np.arange(2)}
    assert keywords.assignments(["a=1"], settings) == [
        "a=1", "arm=lstm", "task=copy", "task.length=5", "+experiment=demo", "seed=[0,1]"
    ]  # fmt: skip
    swept = {"arm": ("rnn", "a b"), "train": {"dtype": [Kind.float64]}, "instruments": [["a", "b"]], "seed": range(3)}
    assert keywords.assignments((), swept, sweep=True) == [
        'arm=rnn,"a b"', "train.dtype=float64", "instruments=[a,b]", "seed=0,1,2"
    ]  # fmt: skip


@pytest.mark.parametrize("names", [["reach", "theory"], ("reach",), [["reach"], "theory"], np.array(["reach"])])
def test_a_plain_list_of_instruments_is_no_sweep(home: Path, names: Any) -> None:
    with pytest.raises(gp.ConfigError, match=r"instruments=\[.*\]: .*in a sweep .*: instruments=\[\[.*\]\]"):
        gp.sweep(seed=[0, 1], instruments=names, **SMALL)


def test_what_cannot_be_is_the_line_of_the_command(home: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    for overrides, call in (
        (["run", "task.lenght=5"], lambda: gp.run(task={"lenght": 5})),
        (["run", "-m", "arm=rnn,lsm"], lambda: gp.sweep(arm=["rnn", "lsm"])),
        (["check", "cell.truncate=true"], lambda: gp.check(cell={"truncate": True})),
        (["report", "study=nothing"], lambda: gp.load("nothing")),
        (["report", "figures=[nothing]"], lambda: gp.draw([], ["nothing"])),
    ):
        status, _, error = command(*overrides)
        with pytest.raises((gp.ConfigError, gp.StoreError)) as raised:
            call()
        assert (status, error) == (2, f"gradpath: {raised.value}\n")
    for call in (lambda: gp.run("-m"), lambda: gp.run(3), lambda: gp.run(seed=object()), lambda: gp.sweep(seed=[])):
        with pytest.raises(gp.ConfigError):
            call()
    with store.patience(0):
        client = store.connect(None)
    assert not client.search_runs([e.experiment_id for e in client.search_experiments()])


def test_a_run_that_fails_is_named_and_the_others_are_there(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = execute.train_seeds

    def fails(experiments: Any, *arguments: Any) -> Any:
        if experiments[0].seed == 1:
            sys.exit("no such day")
        return train(experiments, *arguments)

    monkeypatch.setattr(execute, "train_seeds", fails)
    with pytest.raises(gp.RunError, match=r"failed: rnn · adding T=6 · seed 1: .*no such day") as raised:
        gp.sweep(arm="rnn", seed=[0, 1], jobs=1, **SMALL)
    assert [run.seed for run in raised.value.results] == [0]
    assert gp.load().missing == ("rnn · adding T=6 · seed 1",)


def test_a_run_that_diverges_is_a_result(home: Path) -> None:
    result = gp.run(*DIVERGES, *SMALL_OVERRIDES, "train.steps=30")
    assert result.diverged_at is not None
    assert result.verdict.word == "diverged"
    assert len(result.evaluations.steps) == 0
    assert len(result.table("evaluation")) == 0


def test_an_interrupted_run_is_killed_and_says_so(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupts(*arguments: Any) -> Any:
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(execute, "train_seeds", interrupts)
    with pytest.raises(KeyboardInterrupt, match="0 of 1 runs finished"):
        gp.run(arm="rnn", **SMALL)
    client = store.connect(None)
    assert [run.info.status for run in client.search_runs(["1"])] == ["KILLED"]


def state() -> list[Any]:
    """What a call must leave as it is."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from matplotlib import get_backend, rcParams

    loggers = [logging.root, logging.getLogger("mlflow"), logging.getLogger("urllib3")]
    return [
        dict(os.environ), Path.cwd(), sys.stdout, sys.stderr, [*warnings.filters],
        [(log.level, log.handlers[:], log.disabled) for log in loggers],
        [signal.getsignal(number) for number in signal.Signals],
        [pool["num_threads"] for pool in threadpool_info()],
        GlobalHydra.instance().hydra, HydraConfig.instance().cfg, get_backend(), dict(rcParams), np.geterr(),
    ]  # fmt: skip


def test_the_process_is_as_before(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where Hydra is the user's own, and standard output the process's."""
    import seaborn  # noqa: F401 - which loads a BLAS of its own
    from hydra import initialize_config_dir
    from matplotlib import pyplot

    for variable in ("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_HTTP_REQUEST_TIMEOUT", "PGCONNECT_TIMEOUT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(sys, "stdout", sys.__stdout__)
    level = logging.getLogger("mlflow").level
    logging.getLogger("mlflow").setLevel(logging.INFO)
    pyplot.rcdefaults()
    pyplot.figure(7)
    with initialize_config_dir(str(tmp_path), version_base=None):
        before = state()
        for _ in range(2):
            result = gp.run(arm="rnn", **SMALL)
            result.figure("norm_by_lag")
            gp.draw(result)
            with pytest.raises(gp.ConfigError):
                gp.run(arm="no")
            assert state() == before
    assert pyplot.get_fignums() == [7]
    logging.getLogger("mlflow").setLevel(level)  # other tests want it silent


def test_calls_from_several_threads_run_one_after_another(home: Path) -> None:
    results: dict[int, gp.Result] = {}

    def train(seed: int) -> None:
        results[seed] = gp.run(arm="rnn", seed=seed, **SMALL)

    threads = [threading.Thread(target=train, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert [results[seed].seed for seed in range(2)] == [0, 1]
    assert results[0].loss.values[0] != results[1].loss.values[0]


def test_a_figure_is_of_these_runs_and_none_of_pyplots(home: Path) -> None:
    from matplotlib import pyplot
    from matplotlib.figure import Figure

    result = gp.run(arm="rnn", **SMALL)
    figure = result.figure("norm_by_lag", dpi=40)
    assert isinstance(figure, Figure)
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert pyplot.get_fignums() == []
    drawings = gp.draw(result)
    assert "norm_by_lag" in drawings
    assert drawings.left_out["credit"] == "needs credit"
    assert "base64" in drawings._repr_html_()
    with pytest.raises(gp.CannotDrawError, match="needs credit"):
        result.figure("credit")
    with pytest.raises(gp.ConfigError, match=r"dpi=3: must be ≥ 20"):
        gp.draw(result, ["norm_by_lag"], norm_by_lag={"dpi": 3})


def test_a_figure_that_is_saved_plainly_keeps_its_caption(home: Path, tmp_path: Path) -> None:
    from matplotlib.image import imread

    figure = gp.run(arm="rnn", **SMALL).figure("norm_by_lag", dpi=40)
    plain, tight, cut = (tmp_path / name for name in ("plain.png", "tight.png", "cut.png"))
    figure.savefig(plain)
    figure.savefig(tight, bbox_inches="tight")
    figure.savefig(cut, bbox_inches=None)
    assert plain.read_bytes() == tight.read_bytes()
    assert len(imread(plain)) > len(imread(cut))


def test_the_check_is_that_of_the_command(home: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    check = gp.check(cell={"name": "rnn", "hidden_size": 2}, task={"length": 3})
    status, out, _ = command("check", "cell=rnn", "cell.hidden_size=2", "task.length=3")
    assert (check.passed, check.wrong, status) == (True, (), 0)
    assert f"{check}\n" == out
    assert len(check.table()) == len(check.rows)


def examples(text: str) -> str:
    """The text without the fences of its code, which would be taken for output."""
    return re.sub(r"^```.*$", "", text, flags=re.MULTILINE)


def test_the_examples_of_the_documentation_hold(home: Path) -> None:
    texts = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}
    for module in pkgutil.iter_modules(api.__path__, "gradpath.api."):
        texts |= {
            f"{module.name}.{test.name}": test.docstring or ""
            for test in doctest.DocTestFinder().find(importlib.import_module(module.name))
        }
    assert ">>>" in texts["api.md"]
    for name, text in texts.items():
        test, report = doctest.DocTestParser().get_doctest(examples(text), {}, name, name, 0), io.StringIO()
        runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
        assert runner.run(test, out=report.write).failed == 0, report.getvalue()


@pytest.mark.peers
def test_a_notebook_shows_the_bar_the_runs_and_the_figure(home: Path) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    sources = [f"import gradpath as gp\nruns = gp.run(arm='rnn', **{SMALL})\nruns", "runs.figure('norm_by_lag')"]
    sources += ["import matplotlib.pyplot as plt\nplt.plot([1, 2]);"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    nbclient.NotebookClient(notebook, timeout=PATIENCE, kernel_name="python3").execute()
    shown = [[output for output in cell.outputs if "data" in output] for cell in notebook.cells]
    assert any("untrained" in output.data.get("text/html", "") for output in shown[0])
    assert [sorted(output.data) for output in shown[1]] == [["image/png", "text/plain"]]
    assert ["image/png" in output.data for output in shown[2]] == [True], "the user's own figures are shown as ever"
