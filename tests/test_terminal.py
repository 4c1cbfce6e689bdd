"""Output never stops the work: whoever reads it, wherever it goes,
whatever its encoding can say.
"""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import PATIENCE
from gradpath.commands import terminal
from gradpath.schema.text import printable

GRADPATH = [sys.executable, "-m", "gradpath"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lstm · adding T=12 · größe 実験 ∂L/∂C", "lstm · adding T=12 · größe 実験 ∂L/∂C"),
        ("\x1b[2J\x1b]0;x\x07", "\\x1b[2J\\x1b]0;x\\x07"),
        ("a\r\nb\tc\x00", "a\\r\\nb\\tc\\x00"),
        ("\x9b31m\x85", "\\x9b31m\\x85"),
        ("\u202eabc\u2066\u2069", "\\u202eabc\\u2066\\u2069"),
        ("a\u200bb\ufeff\u00ad\u2028", "a\\u200bb\\ufeff\\xad\\u2028"),
        ("\udc80", "\\udc80"),
        (None, "None"),
        ("x" * 1000, "x" * 399 + "…"),
    ],
)
def test_a_stores_text_is_shown_and_does_nothing(text: object, expected: str) -> None:
    assert printable(text) == expected


@given(st.text())
def test_any_text_is_one_line_that_is_seen(text: str) -> None:
    line = printable(text)
    assert line.isprintable()
    assert printable(line, 10_000) == line
    assert line == text or not text.isprintable()


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("utf-8", "a · b … größe ∇".encode()),
        ("latin-1", b"a \xb7 b ... gr\xf6\xdfe \\u2207"),
        ("ascii", b"a - b ... gr\\xf6\\xdfe \\u2207"),
    ],
)
def test_what_an_encoding_lacks_is_spelt_plainly(encoding: str, expected: bytes) -> None:
    reads, writes = os.pipe()
    stream = terminal.tolerant(writes, io.TextIOWrapper(io.BytesIO(), encoding))
    stream.write("a · b … größe ∇")
    stream.flush()
    assert os.read(reads, 1000) == expected
    stream.write("\udc80\n")
    stream.flush()
    assert os.read(reads, 1000) == b"\\udc80\n"
    os.close(writes)
    os.close(reads)


def test_a_reader_that_has_gone_and_a_full_device_take_everything(tmp_path: Path) -> None:
    read_end, closed_pipe = os.pipe()
    os.close(read_end)
    full_device = os.open("/dev/full", os.O_WRONLY) if os.path.exists("/dev/full") else closed_pipe
    for descriptor in {closed_pipe, full_device}:
        with terminal.tolerant(descriptor) as stream:
            for _ in range(3):
                print("line\n" * 5000, file=stream, flush=True)
        os.close(descriptor)


def test_a_reader_that_is_slow_gets_everything() -> None:
    """A terminal that some other program has set to non-blocking, as Node.js does."""
    import threading

    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    received: list[bytes] = []

    def read_slowly() -> None:
        while part := os.read(reads, 65536):
            received.append(part)

    reader = threading.Timer(0.2, read_slowly)
    reader.start()
    with terminal.tolerant(writes) as stream:
        stream.write("line\n" * 100_000)
    os.close(writes)
    reader.join()
    os.close(reads)
    assert len(b"".join(received)) == 500_000


def test_streams_that_a_test_or_a_notebook_has_put_in_place_are_left(capsys: pytest.CaptureFixture[str]) -> None:
    streams_before = sys.stdout, sys.stderr
    terminal.settle()
    assert (sys.stdout, sys.stderr) == streams_before


SHELL = {
    "gone": "{} | head -1",
    "gone at once": "{} | true",
    "errors gone": "{} 2>&1 >/dev/null | true",
    "full": "{} >/dev/full",
    "errors full": "{} 2>/dev/full",
    "closed": "{} >&-",
    "all closed": "{} <&- >&- 2>&-",
    "ascii": "PYTHONIOENCODING=ascii {}",
    "latin-1": "PYTHONIOENCODING=latin-1:strict {}",
}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("redirection", SHELL)
def test_a_command_ends_as_it_would_wherever_its_output_goes(redirection: str) -> None:
    line = SHELL[redirection].format(" ".join([*GRADPATH, "--help"]))
    completed = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"], capture_output=True, timeout=PATIENCE, check=False, env=os.environ
    )
    assert completed.returncode == 0, completed.stderr
    assert b"Error" not in completed.stderr
    assert b"Exception" not in completed.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_run_and_report_keep_what_they_made_when_nobody_reads(home: Path) -> None:
    """The database does not land in a closed descriptor; all figures are drawn though nobody reads
    a line.
    """
    overrides = "task.length=6 cell.hidden_size=3 train.batch_size=4 train.eval_size=8 train.steps=2 seed=0"
    line = f"{' '.join(GRADPATH)} run -m arm=rnn {overrides} >&- 2>&-"
    assert subprocess.run(["bash", "-c", line], timeout=PATIENCE, check=False).returncode == 0
    line = f"set -o pipefail; {' '.join(GRADPATH)} report figures=[exploding,gates] formats=[svg] 2>/dev/full | true"
    assert subprocess.run(["bash", "-c", line], timeout=PATIENCE, check=False).returncode == 0
    files = {path.name for path in (home / "reports" / "figures" / "gradpath").iterdir()}
    assert files == {"verdicts.md", "exploding.svg", "gates.svg"}
