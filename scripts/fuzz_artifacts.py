"""Coverage-guided fuzzing of what a store holds, with atheris, which is not among the pins:
``pip install atheris``.

    python scripts/fuzz_artifacts.py -max_total_time=300

The options are libFuzzer's; it stops at the first unexpected error.

The three doors: the bytes of ``measurements.npz``, the text of ``config.yaml``, the tags of a
sweep's plan; the first byte chooses. What the doors promise is a DamagedError or whole records,
never another exception, and no memory past the file's own (-rss_limit_mb).
"""

import base64
import io
import sys
import tempfile
import zlib
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["gradpath", "numpy.lib", "yaml", "zipfile", "json"]):
    import numpy as np

    from gradpath.tracking import artifact, plan

FOLDER = Path(tempfile.mkdtemp())
SWEEP = "s"
KEY = plan._prefix(SWEEP)


def seeds() -> list[bytes]:
    """One whole example for each door."""
    file = io.BytesIO()
    arrays = {"loss/steps": np.arange(2), "loss/values": np.ones(2), "evaluation/steps": np.array([])}
    arrays |= {"schema_version": np.array(1), "lag": np.arange(2)[::-1], "chance_loss": np.array(1.0)}
    arrays |= {"longest_lag": np.array(1), "evaluation/values": np.ones((0, 3)), "n/names": np.array(["a"])}
    np.savez(file, **arrays, **{"n/steps": np.arange(1), "n/values": np.ones((1, 2, 1))})
    text = b"cell: {name: lstm, hidden_size: 1, layers: 1}\nclip: {}\ninit: {name: a}\noptimizer: {name: a}\nseed: 0\n"
    jobs = b'{"sweep_id": "s", "jobs": [[["arm=lstm"], "lstm", [[0, "0123456789ab"]]]]}'
    return [b"\0" + file.getvalue(), b"\1" + text + b"task: {name: a, length: 2}\ntrain: {}\n", b"\2" + jobs]


def one_input(data: bytes) -> None:
    """Feeds one door."""
    door, content = data[:1], data[1:]
    path = FOLDER / "file"
    try:
        if door == b"\0":
            path.write_bytes(content)
            artifact.measurements(path)
        elif door == b"\1":
            path.write_bytes(content)
            artifact.configuration(path, "0123456789ab")
        else:
            packed = base64.b64encode(zlib.compress(content)).decode() if door == b"\2" else content.decode("latin-1")
            plan.read({f"{KEY}0a.1of1": packed}, SWEEP)
    except artifact.DamagedError as error:
        if not str(error).isprintable():
            raise ValueError(str(error)) from error


if __name__ == "__main__":
    corpus = FOLDER / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds()):
        (corpus / str(number)).write_bytes(seed)
    atheris.Setup([*sys.argv, str(corpus)], one_input)
    atheris.Fuzz()
