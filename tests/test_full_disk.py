"""A disk that is full at whatever moment of a sweep, on a file system of its own: one line, true
statuses, nothing half-written.
"""

import os
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from conftest import PATIENCE

SWEEP = ["-m", "arm=rnn,lstm", "seed=0,1", "task.length=100", "cell.hidden_size=8", "train.steps=60", "jobs=2"]
# In a mount namespace: nothing is left of it afterwards.
SCRIPT = """
mount -t tmpfs -o size=$1k tmpfs "$2" || exit 99
shift
folder=$1
shift
mkdir "$folder/home" "$folder/tmp"
export GRADPATH_HOME="$folder/home" TMPDIR="$folder/tmp"
"$@"
status=$?
cp "$folder/home/mlruns/mlflow.db" "$folder/../copy.db" 2>/dev/null
exit $status
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare, of util-linux")
@pytest.mark.parametrize(
    "kilobytes",
    [1300, *(pytest.param(size, marks=pytest.mark.slow) for size in (100, 800, 1000, 1100, 1200, 1400, 1600, 1800))],
)
def test_a_full_disk(tmp_path: Path, kilobytes: int) -> None:
    folder = tmp_path / "full"
    folder.mkdir()
    command = [sys.executable, "-m", "gradpath", "run", *SWEEP]
    sandboxed = [
        "unshare",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        SCRIPT,
        "sh",
        str(kilobytes),
        str(folder),
        *command,
    ]
    completed = subprocess.run(
        sandboxed, capture_output=True, text=True, timeout=PATIENCE, check=False, env=os.environ, cwd=tmp_path
    )
    if completed.returncode == 99 or "unshare failed" in completed.stderr:
        pytest.skip(f"no file system can be mounted here: {completed.stderr}")
    assert "Traceback" not in completed.stderr
    assert "o space left on" in completed.stderr.splitlines()[-1]
    statuses = Counter[str]()
    if (tmp_path / "copy.db").exists():
        with closing(sqlite3.connect(tmp_path / "copy.db")) as database:
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            statuses = Counter(status for (status,) in database.execute("SELECT status FROM runs"))
        assert set(statuses) <= {"FINISHED", "FAILED", "KILLED"}, completed.stderr
        assert statuses["FINISHED"] < 4
    assert completed.returncode == (1 if statuses else 2), completed.stderr
