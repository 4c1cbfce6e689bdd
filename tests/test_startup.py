"""What a command loads and does before it comes to its own work: the
reason that it starts quickly.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore

from conftest import PATIENCE
from gradpath.commands import compose

HEAVY = ("mlflow", "pandas", "sqlalchemy", "matplotlib", "seaborn", "scipy", "torch")
DRAWING = ("matplotlib", "seaborn", "PIL", "torch", "sklearn")
FIRST_STEP = f"""
import gc, sys
from gradpath.commands import cli, execute

def spied(*arguments, train=execute.train_seeds):
    for step in train(*arguments):
        print("loaded", *(module for module in {DRAWING} if module in sys.modules))
        print("collects", gc.isenabled(), gc.get_freeze_count() > 100_000)
        raise SystemExit(0)
        yield step

execute.train_seeds = spied
sys.argv = ["gradpath", "run", "task.length=12", "cell.hidden_size=6", "train.steps=1", "train.eval_size=5"]
cli.main()
"""
COMMAND = f"""
import sys
from gradpath.commands import cli

sys.argv = ["gradpath", *sys.argv[1:]]
try:
    cli.main()
except SystemExit as ended:
    print("ended", ended.code)
print("loaded", *(module for module in {HEAVY} if module in sys.modules))
"""


def lines(script: str, *arguments: str) -> list[str]:
    completed = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=PATIENCE
    )
    return [line for line in completed.stdout.splitlines() if line.startswith(("loaded", "collects", "ended"))]


def test_the_first_training_step_needs_nothing_that_draws(home: Path) -> None:
    """And what has been imported by then is not gone through for garbage, while what training makes
    is.
    """
    assert lines(FIRST_STEP) == ["loaded", "collects True True"]


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--help"], "0"),
        (["--version"], "0"),
        (["run", "--help"], "0"),
        (["report", "--help"], "0"),
        (["check", "--help"], "0"),
        (["run", "--cfg", "job"], "0"),
        (["run", "-m", "seed=0,x"], "2"),
        (["check", "cell=rnn", "cell.hidden_size=2", "task.length=3"], "0"),
    ],
)
def test_what_trains_nothing_loads_nothing_heavy(home: Path, arguments: list[str], status: str) -> None:
    assert lines(COMMAND, *arguments) == [f"ended {status}", "loaded"]


def test_the_schemas_are_registered_once_however_many_points_there_are(monkeypatch) -> None:
    registrations: list[str] = []
    store = ConfigStore.store

    def counted(self: ConfigStore, name: str, *arguments, **keywords) -> None:
        registrations.append(name)
        store(self, name, *arguments, **keywords)

    monkeypatch.setattr(ConfigStore, "store", counted)
    compose.experiment(["seed=1"])
    count_after_first = len(registrations)
    for seed in range(2, 4):
        compose.experiment([f"seed={seed}"])
    assert len(registrations) == count_after_first
