"""The door for artifacts: what gradpath wrote comes through to the bit,
anything else is one line.
"""

import io
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gradpath.cells.rnn import RNN
from gradpath.commands import compose
from gradpath.tracking import artifact
from gradpath.tracking.artifact import DamagedError
from gradpath.tracking.declarations import as_text

T, PROBES, NAMES = 4, 3, ("W_xh", "W_hh")
ROLES = as_text(RNN(2).roles)


def arrays(**changed: Any) -> dict[str, Any]:
    """What a recorder stores of a small run; ``changed`` replaces arrays, with None takes them
    away.
    """
    steps = np.arange(PROBES)
    contents: dict[str, Any] = {
        "schema_version": np.array(1),
        "roles": np.array(ROLES),
        "lag": np.arange(T)[::-1],
        "chance_loss": np.array(1 / 6),
        "longest_lag": np.array(T - 1),
        "loss/steps": np.arange(9),
        "loss/values": np.linspace(1, 0, 9),
        "evaluation/steps": np.array([]),
        "evaluation/values": np.zeros((0, 3)),
        "norm/names": np.array(NAMES),
        "norm/steps": steps,
        "norm/values": np.arange(PROBES * T * 2.0).reshape(PROBES, T, 2),
    }
    return {name: array for name, array in (contents | changed).items() if array is not None}


def npz(content: dict[str, Any], save=np.savez) -> bytes:
    file = io.BytesIO()
    save(file, **content)
    return file.getvalue()


def read(folder: Path, content: bytes) -> artifact.Measurements:
    path = folder / "measurements.npz"
    path.write_bytes(content)
    return artifact.measurements(path)


def refused(folder: Path, content: bytes) -> str:
    with pytest.raises(DamagedError) as error:
        read(folder, content)
    message = str(error.value)
    assert message.isprintable()
    assert len(message) < 500
    return message


def test_what_was_written_comes_back_to_the_bit(tmp_path: Path) -> None:
    readings = np.array([[-np.inf, np.nan], [np.inf, -0.0], [1e308, 5e-324]])
    content = arrays(
        **{"norm/values": readings, "evaluation/steps": np.array([8]), "evaluation/values": np.ones((1, 3))}
    )
    loaded = read(tmp_path, npz(content))
    assert loaded.series["norm"].values.tobytes() == readings.tobytes()
    assert loaded.series["norm"].names == NAMES
    assert loaded.roles == RNN(2).roles
    assert (loaded.chance_loss, loaded.longest_lag, loaded.lag.tolist()) == (1 / 6, 3, [3, 2, 1, 0])
    assert loaded.evaluation.steps.tolist() == [8]
    big_endian = read(tmp_path, npz(arrays(**{"norm/values": np.asfortranarray(readings.astype(">f8"))})))
    assert big_endian.series["norm"].values.tobytes() == readings.tobytes()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"schema_version": None}, "holds no schema_version"),
        ({"schema_version": np.array([1, 1])}, "schema_version with dtype int64 and 1 axes"),
        ({"schema_version": np.array(1.0)}, "schema_version with dtype float64"),
        ({"schema_version": np.array("1")}, "schema_version with dtype <U1"),
        ({"schema_version": np.array(2)}, "has schema version 2; this gradpath reads 1"),
        ({"roles": np.array(1)}, "holds roles with dtype int64"),
        ({"roles": np.array([ROLES])}, "and 1 axes"),
        ({"roles": np.array(ROLES[:-1])}, "JSONDecodeError"),
        ({"lag": np.array(3)}, "holds lag with"),
        ({"lag": np.arange(T)}, "does not count down to 0"),
        ({"lag": np.zeros(0, int)}, "does not count down to 0"),
        ({"longest_lag": np.array(T + 1)}, "longest lag of 5"),
        ({"longest_lag": np.array(-1)}, "longest lag of -1"),
        ({"chance_loss": np.array("low")}, "holds chance_loss with"),
        ({"loss/values": None}, "holds no loss/values"),
        ({"loss/values": np.zeros(3)}, "loss/values of shape"),
        ({"loss/steps": np.arange(9)[::-1]}, "loss/steps that do not count up"),
        ({"loss/steps": np.arange(9) - 1}, "loss/steps that do not count up"),
        ({"loss/steps": np.arange(9.0)}, "loss/steps that do not count up"),
        ({"loss/steps": np.array([0, 1, 2, 3, 4, 5, 6, 7, np.nan])}, "loss/steps that do not count up"),
        ({"evaluation/values": np.zeros((0, 2))}, "evaluation/values of shape"),
        ({"norm/names": np.array([1, 2])}, "norm/names with dtype int64"),
        ({"norm/names": np.array(["a", "a"])}, "one name twice"),
        ({"norm/names": np.zeros(0, "U1")}, "holds no names"),
        ({"norm/names": np.array("W")}, "norm/names with dtype <U1 and 0 axes"),
        ({"norm/steps": None}, "holds no norm/steps"),
        ({"norm/values": None}, "holds no norm/values"),
        ({"norm/values": np.zeros((PROBES, T, 5))}, "norm/values of shape"),
        ({"norm/values": np.zeros((PROBES, T, 2, 1))}, "norm/values with dtype float64 and 4 axes"),
        ({"norm/values": np.zeros((PROBES, 2), complex)}, "of dtype complex128"),
        ({"norm/values": np.zeros((PROBES, 2), "M8[s]")}, "of dtype datetime64"),
        ({"norm/values": np.zeros((PROBES, 2), [("a", float)])}, "of dtype [('a', '<f8')]"),
        ({"norm/values": np.array([[{}, {}]] * PROBES)}, "of dtype object"),
        ({"norm/steps": np.zeros(0, int), "norm/values": np.zeros((0, T, 2))}, "holds no reading of norm"),
    ],
)
def test_arrays_that_a_recorder_does_not_write_are_refused(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    assert message in refused(tmp_path, npz(arrays(**changed)))


def _member(name: str, header: str, content: bytes = b"", compression: int = zipfile.ZIP_STORED) -> bytes:
    """An npz of one array with a header written by hand."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        text = header.encode().ljust(117) + b"\n"
        archive.writestr(name, b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + content)
    return file.getvalue()


def _archive_of_many() -> bytes:
    """A list of 100 000 members, of 46 bytes each."""
    directory = (b"PK\x01\x02" + bytes(24) + struct.pack("<H", 1) + bytes(16) + b"a") * 100_000
    return directory + b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 10_000, 10_000, len(directory), 0, 0)


@pytest.mark.parametrize(
    "content",
    [
        _archive_of_many(),
        _member("lag.npy", "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }"),
        _member("lag.npy", "{'descr': '<U100000000', 'fortran_order': False, 'shape': (1000,), }"),
        _member("lag.npy", "{'descr': '<f8', 'fortran_order': False, 'shape': (-1, -4), }", bytes(32)),
        _member("lag.npy", "{'descr': '<U0', 'fortran_order': False, 'shape': (1000000000000,), }"),
        _member("lag.npy", "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", b"cos\nsystem\n."),
        _member("lag.npy", "(" * 100),
        _member("lag.npy", "{}"),
        _member("lag.npy", "", compression=zipfile.ZIP_DEFLATED),
        lambda: npz(arrays(lag=np.zeros(50_000_000)), np.savez_compressed),
        npz(arrays())[:100],
        npz(arrays())[:-30],
        npz(arrays())[30:],
        b"",
        b"PK\x05\x06" + bytes(18),
        b"\x93NUMPY",
        b"not an archive",
    ],
    ids=str.split(
        "crowd exabyte wide_text negative_shape no_width pickle parentheses no_keys compressed bomb short cut headless "
        "empty empty_zip npy text"
    ),
)
def test_hostile_archives_are_refused_without_their_memory(
    tmp_path: Path, content: bytes | Callable[[], bytes]
) -> None:
    content = content() if callable(content) else content
    tracemalloc.start()
    refused(tmp_path, content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6, f"{peak / 1e6:.0f} MB"


def test_a_name_in_an_artifact_cannot_steer_the_terminal(tmp_path: Path) -> None:
    loaded = read(tmp_path, npz(arrays(**{"norm/names": np.array(["\x1b[2J", "a\u202eb"])})))
    assert loaded.series["norm"].names == ("\\x1b[2J", "a\\u202eb")


RESOLVED = compose.experiment(["arm=lstm", "task.length=12"]).resolved()
IDENTITY = compose.experiment(["arm=lstm", "task.length=12"]).config_hash


def loaded_configuration(folder: Path, content: str | bytes) -> dict[str, Any]:
    path = folder / "config.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return artifact.configuration(path, IDENTITY)


def test_the_configuration_of_the_run_comes_back(tmp_path: Path) -> None:
    assert loaded_configuration(tmp_path, yaml.dump(RESOLVED)) == RESOLVED


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(20)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (BOMB, "YAML alias"),
        ("a: &a\n  b: *a\n", "YAML alias"),
        ("!!python/object/apply:os.system ['true']", "cannot be read: ConstructorError"),
        ("- a\n- b\n", "has no section task"),
        ("", "has no section task"),
        ("[" * 50_000, "cannot be read: RecursionError"),
        ("x" * 300_000, "larger than"),
        (b"\xff\xfe\x00", "cannot be read: UnicodeDecodeError"),
        ("a: \x1b[2J", "cannot be read: ReaderError"),
        ("1: 2", "has the key 1, no text"),
        ("d: 2020-01-01", "holds a date at d"),
        (yaml.dump(RESOLVED | {"seed": "three"}), "holds a seed that is no integer"),
        (yaml.dump(RESOLVED | {"seed": True}), "holds a seed that is no integer"),
        (yaml.dump(RESOLVED | {"cell": {"name": "lstm"}}), "holds a cell.hidden_size that is no integer"),
        (yaml.dump(RESOLVED | {"task": "adding"}), "has no section task"),
        (yaml.dump(RESOLVED | {"init": {"gain": 1.0}}), "holds a init.name that is no text"),
        (yaml.dump(RESOLVED | {"seed": 1}), "is not the configuration of the run"),
        (yaml.dump(RESOLVED).rpartition("train:")[0] + "train: {}\n", "is not the configuration of the run"),
    ],
)
def test_a_configuration_that_is_not_the_runs_is_refused(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(DamagedError, match=message):
        loaded_configuration(tmp_path, content)


def test_a_file_that_is_not_there_or_is_a_folder_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(DamagedError):
            artifact.measurements(path)
        with pytest.raises(DamagedError):
            artifact.configuration(path, IDENTITY)


VALID_ARCHIVE = npz(arrays())
DTYPES = st.sampled_from(["i1", "i8", "u8", ">i4", "f2", "f8", "c8", "b1", "U3", "S2", "O", "M8[s]", "V4"])


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A whole artifact with bytes changed, taken away or put in, or arrays of any dtype and shape
    under its names.
    """
    if draw(st.booleans()):
        content = bytearray(VALID_ARCHIVE)
        for _ in range(draw(st.integers(1, 6))):
            position = draw(st.integers(0, len(content) - 1))
            content[position : position + draw(st.integers(0, 3))] = draw(st.binary(max_size=4))
        return bytes(content)
    changed = {}
    for name in draw(st.lists(st.sampled_from([*arrays(), "x", "a/names", "/names"]), min_size=1, max_size=3)):
        shape = draw(st.lists(st.integers(0, 4), max_size=4))
        changed[name] = draw(st.sampled_from([None, np.zeros(shape, draw(DTYPES))]))
    return npz(arrays(**changed))


def check_bytes(folder: Path, content: bytes) -> None:
    """Either a line, or records that are consistent."""
    try:
        loaded = read(folder, content)
    except DamagedError as error:
        message = str(error)
    else:
        message = ""
    assert message.isprintable()
    if message:
        return
    for series in (loaded.loss, loaded.evaluation, *loaded.series.values()):
        assert len(series.steps) == len(series.values)
        assert (np.diff(series.steps) > 0).all()
        assert series.values.dtype == np.float64
        assert series.values.ndim == 1 or series.values.shape[-1] == len(series.names)


@given(mutated())
@example(VALID_ARCHIVE)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_a_line_or_consistent(tmp_path: Path, content: bytes) -> None:
    check_bytes(tmp_path, content)


@pytest.mark.slow
@given(mutated() | st.binary(max_size=2000))
@settings(max_examples=20_000, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_bytes_are_a_line_or_consistent_at_length(tmp_path: Path, content: bytes) -> None:
    check_bytes(tmp_path, content)


def check_text(folder: Path, content: str) -> None:
    try:
        loaded = loaded_configuration(folder, content.encode(errors="surrogatepass"))
    except DamagedError as error:
        message = str(error)
    else:
        message = ""
        assert loaded == RESOLVED
    assert message.isprintable()


PIECES = st.sampled_from(
    [*"{}[]&*!|>%@`'\"#-:,? \n\t", "cell", "!!int", "<<:", "1e999", "0x", ".nan", "\x85", "\ud800"]
)


@given(st.lists(PIECES | st.text(max_size=3), max_size=40).map("".join), st.integers(0, 3000), st.integers(0, 40))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_a_line_or_the_configuration(tmp_path: Path, piece: str, position: int, removed: int) -> None:
    text = yaml.dump(RESOLVED)
    check_text(tmp_path, text[:position] + piece + text[position + removed :])
    check_text(tmp_path, piece)
