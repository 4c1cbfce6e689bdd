"""A store that the first version 0.1 wrote still loads and is reported: without a plan, the roles
of a cell, the numbers of a task and verdicts.

``old_store`` holds its database as SQL, without the metrics, and its artifacts: an RNN and an LSTM
on the adding problem at T = 8.
"""

import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from conftest import PATIENCE
from gradpath.tasks.adding import Adding
from gradpath.tracking import loader, store

OLD_STORE = Path(__file__).parent / "old_store"


@pytest.fixture
def old_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home for results with that store in it, upgraded where the MLflow installed is newer."""
    monkeypatch.setenv("GRADPATH_HOME", str(tmp_path))
    folder = tmp_path / "mlruns"
    shutil.copytree(OLD_STORE / "artifacts", folder / "artifacts")
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        database.executescript((OLD_STORE / "mlflow.sql").read_text(encoding="utf-8"))
    head, _ = store._revisions()
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        (revision,) = database.execute("SELECT version_num FROM alembic_version").fetchone()
    if revision != head:
        with pytest.raises(store.StoreError, match="is of an older MLflow: back it up, then run: mlflow db upgrade"):
            store.connect(None, create=False)
        upgrade = [sys.executable, "-m", "mlflow", "db", "upgrade", f"sqlite:///{folder / 'mlflow.db'}"]
        subprocess.run(upgrade, check=True, capture_output=True, timeout=PATIENCE)
    return tmp_path


def test_an_old_store_loads(old_home: Path) -> None:
    experiment, sweep_id = loader.newest_sweep(None, None)
    content = loader.sweep(None, experiment, sweep_id)
    assert (content.damaged, content.passed_over, content.planned, content.missing) == ([], [], {}, {})
    assert [run.name for run in content.runs] == ["lstm · adding T=8 · seed 0", "rnn · adding T=8 · seed 0"]
    task = Adding(length=8)
    for run in content.runs:
        assert (run.chance_loss, run.longest_lag) == (task.chance_loss, task.lags[1])
        assert (run.roles.label.lower(), run.roles.layers) == (run.arm, 1)
        assert run.series["param_grad_norm"].values.shape[1:] == (8, len(run.series["param_grad_norm"].names))


def test_an_old_store_is_reported(old_home: Path, command) -> None:
    status, out, err = command("report", "formats=[png]")
    assert status == 0, err
    assert "2 runs of sweep" in out
    assert out.count("recorded without a verdict") == 2
    figures = {path.stem for path in (old_home / "reports" / "figures" / "gradpath").glob("*.png")}
    assert figures == {"norm_by_lag", "gradient_atlas", "exploding", "gates"}


def test_a_new_run_joins_an_old_store(old_home: Path, command) -> None:
    size = ["task.length=8", "cell.hidden_size=3", "train.steps=2", "train.batch_size=4", "train.eval_size=8"]
    status, _, err = command("run", *size)
    assert status == 0, err
    with closing(sqlite3.connect(old_home / "mlruns" / "mlflow.db")) as database:
        assert database.execute("SELECT count(*) FROM runs WHERE status = 'FINISHED'").fetchone() == (3,)
        (location,) = database.execute("SELECT artifact_location FROM experiments WHERE name = 'gradpath'").fetchone()
    assert location == str(old_home / "mlruns" / "artifacts")
