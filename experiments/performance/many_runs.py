"""What a sweep of very many short runs costs beside the training: seconds of a core a point,
memory, bytes in the store; and how long its report and a second start of it take.

    python experiments/performance/many_runs.py [POINTS] [FOLDER]
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gradpath.commands import compose
from gradpath.training import passes
from gradpath.training.loop import train

SMALL = ["task.length=10", "cell.hidden_size=8", "train.steps=10", "train.eval_size=50", "train.batch_size=8"]


def training_seconds(repetitions: int = 20) -> float:
    """Of one point, recording nothing: the mean of the two arms."""
    experiments = [compose.experiment([*SMALL, f"arm={arm}"]) for arm in ("rnn", "lstm")]
    for experiment in experiments:
        list(train(experiment))
    started = time.perf_counter()
    for _ in range(repetitions):
        for experiment in experiments:
            list(train(experiment))
    return (time.perf_counter() - started) / (2 * repetitions)


def memory(home: Path) -> dict[str, int]:
    """Resident memory in kB of every process of the sweep, by its number."""
    used = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"GRADPATH_HOME={home}".encode() in (process / "environ").read_bytes().split(b"\0"):
                status = (process / "status").read_text("utf-8")
                used[process.name] = int(status.partition("VmRSS:")[2].split()[0])
        except (OSError, IndexError):  # it has ended
            continue
    return used


def timed(home: Path, *arguments: str) -> tuple[float, list[dict[str, int]]]:
    """Seconds of a command of gradpath, and the memory of its processes every two seconds."""
    environment = os.environ | {"GRADPATH_HOME": str(home)}
    command = [sys.executable, "-m", "gradpath", *arguments]
    started, samples = time.perf_counter(), []
    with (home / "output").open("wb") as output:
        running = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        while running.poll() is None:
            samples.append(memory(home))
            time.sleep(2 if len(samples) > 1 else 0.1)
    if running.returncode:
        raise SystemExit((home / "output").read_text("utf-8"))
    return time.perf_counter() - started, samples


def measure(points: int, home: Path) -> dict[str, float]:
    """The numbers of one sweep of so many points."""
    seeds = points // 4
    sweep = ["run", "-m", "arm=rnn,lstm", f"seed=range({seeds})", "optimizer.lr=0.01,0.02", *SMALL]
    training = training_seconds()
    seconds, samples = timed(home, *sweep)
    cores = min(passes.cores(), points)
    workers = [process for process in samples[-1] if sum(process in sample for sample in samples) > len(samples) / 2]
    growth = [samples[-1][process] - next(s[process] for s in samples[len(samples) // 4 :]) for process in workers]
    report, _ = timed(home, "report")
    again, _ = timed(home, *sweep)
    files = [file for file in (home / "mlruns").rglob("*") if file.is_file()]
    return {
        "points": points,
        "cores": cores,
        "sweep, s": seconds,
        "training of a point, s": training,
        "overhead a point, s of a core": seconds * cores / points - training,
        "largest growth of a process over the last three quarters, MB": max(growth, default=0) / 1024,
        "largest process, MB": max(max(sample.values(), default=0) for sample in samples) / 1024,
        "report, s": report,
        "the same sweep again, s": again,
        "database, kB a run": (home / "mlruns" / "mlflow.db").stat().st_size / 1024 / points,
        "files, kB a run": sum(file.stat().st_size for file in files if file.suffix != ".db") / 1024 / points,
    }


if __name__ == "__main__":
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(sys.argv[2] if len(sys.argv) > 2 else scratch).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        print(json.dumps(measure(number, folder), indent=2))
