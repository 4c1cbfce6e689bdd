"""Tries the gradpath that this Python has installed, in an empty folder, as its user would.

``all``: every command, and the loops over time compiled and in Python, to the same bits, which are
left in the file ``readings``. ``compiled``: these two loops. ``pure``: a wheel without the compiled
loop; leaves ``readings`` too.
"""

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

GRADPATH = Path(sys.executable).with_name("gradpath")
SIZE = ["task.length=12", "cell.hidden_size=6", "train.batch_size=5", "train.eval_size=20", "train.steps=8"]
SWEEP = ["run", "-m", "arm=rnn,lstm,gru", "seed=0..1", *SIZE]


def gradpath(*arguments: str, status: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command's output; ends the program where its status is another."""
    completed = subprocess.run(
        [GRADPATH, *arguments], env=clean() | environment, capture_output=True, text=True, timeout=600
    )
    print(f"gradpath {' '.join(arguments)}: status {completed.returncode}")
    if completed.returncode != status:
        sys.exit(f"{completed.stdout}{completed.stderr}")
    return completed


def clean() -> dict[str, str]:
    """The environment without what would tell gradpath where results go or which loop runs."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("GRADPATH_", "MLFLOW_", "PYTHON"))}


def expect(condition: object, what: str) -> None:
    if not condition:
        sys.exit(f"not so: {what}")


def readings(home: Path) -> list[str]:
    """The digest of every ``measurements.npz`` below a folder, without the order of the runs."""
    files = [*(home / "mlruns" / "artifacts").glob("*/artifacts/gradients/measurements.npz")]
    return sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)


def sweep(home: str, loop: str, line: str) -> list[str]:
    """Runs the sweep with a value of ``GRADPATH_REPLAY``; its readings."""
    completed = gradpath(*SWEEP, GRADPATH_HOME=home, GRADPATH_REPLAY=loop)
    announced = [text for text in completed.stderr.splitlines() if "loop over time: " in text]
    expect(len(announced) == 3 and all(text.endswith(line) for text in announced), f"{line} in {announced}")
    digests = readings(Path(home))
    expect(len(set(digests)) == 6, f"six runs in {home}")
    return digests


def every_command() -> None:
    version = gradpath("--version").stdout.split()
    expect(version[0] == "gradpath", version)
    expect("gradpath report" in gradpath("--help").stdout, "the commands in --help")
    expect("cell.hidden_size=" in gradpath("run", "--help").stdout, "keys in run --help")
    for command in ("report", "ui"):
        expect(str(Path.cwd()) in gradpath(command, status=2).stderr, f"{command} says where it looked")
    expect(not [*Path().iterdir()], "what only reads leaves nothing")
    gradpath("check", "cell=gru", "cell.hidden_size=3", "task.length=4")
    gradpath("run", *SIZE)
    gradpath(*SWEEP)
    gradpath("run", "-m", "+experiment=demo", "train.steps=2", "seed=0", "task.length=10", "train.eval_size=20")
    gradpath("report", "study=gradpath")
    gradpath("report", "study=demo", "figures=[norm_by_lag,gates]")
    expect((Path("reports") / "figures" / "gradpath" / "norm_by_lag.svg").is_file(), "a figure in ./reports")
    expect(sorted(path.name for path in Path().iterdir()) == ["mlruns", "reports"], "results in the folder, only")
    serve()


def serve() -> None:
    """``gradpath ui`` until it answers, and Ctrl-C."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([GRADPATH, "ui", "--port", str(port)], env=clean(), stdout=subprocess.PIPE, text=True)
    try:
        for _ in range(600):
            expect(process.poll() is None, "the UI runs")
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as answer:
                    expect(answer.status == 200, "the UI's page")
                break
            except OSError:
                time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    print(f"gradpath ui: status {process.returncode}")
    expect(process.returncode == 0 and f"http://127.0.0.1:{port}/#/experiments/" in output, "links of the UI")


def main() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which the background job of a script ignores
    import numpy

    import gradpath as package

    what = sys.argv[1]
    print(f"{what}: Python {sys.version.split()[0]}, NumPy {numpy.__version__}, {package.__file__}")
    expect(Path(package.__file__).is_relative_to(sys.prefix), "the package is the installed one")
    if what == "all":
        every_command()
    if what == "pure":
        gradpath(*SWEEP, status=2, GRADPATH_REPLAY="require")
        digests = sweep("as_built", "1", "python: not built")
    else:
        digests = sweep("compiled", "require", "compiled")
        expect(digests == sweep("python", "0", "python: switched off by GRADPATH_REPLAY=0"), "the same bits")
    Path("readings").write_text("\n".join(digests))


if __name__ == "__main__":
    main()
