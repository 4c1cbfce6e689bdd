"""What a store holds of runs that go on, are made again or are compared, under damage and malice:
it is used, or refused in one line.
"""

import ast
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent / "fuzz"))
import stored

REPEATABLE = settings(deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
SCALARS = json.loads(str(stored.valid_checkpoint()["state/scalars"]))
JUNK = st.sampled_from([None, True, 0, -1, 2**70, 0.5, float("nan"), float("inf"), "x", "", [], {}, [[1]], {"a": 1}])
DTYPES = st.sampled_from(["i1", "i8", "u8", "f2", "f4", "f8", "c8", "b1", "U3", "S2", "O", "M8[s]"])


def npz(arrays: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


@st.composite
def damaged(draw: st.DrawFn, valid: bytes) -> bytes:
    """Bytes changed, taken away or put in."""
    content = bytearray(valid)
    for _ in range(draw(st.integers(1, 6))):
        position = draw(st.integers(0, len(content) - 1))
        content[position : position + draw(st.integers(0, 40))] = draw(st.binary(max_size=4))
    return bytes(content)


@st.composite
def checkpoints(draw: st.DrawFn) -> bytes:
    """A whole file with other arrays, or another state of the training, in it."""
    valid = stored.valid_checkpoint()
    changed: dict[str, Any] = {}
    if draw(st.booleans()):
        scalars = json.loads(json.dumps(SCALARS))
        for _ in range(draw(st.integers(1, 3))):
            place = draw(st.sampled_from([scalars, scalars["data"], scalars["data"]["state"], scalars["largest_read"]]))
            key = draw(st.sampled_from([*place, "x"]))
            place[key] = draw(JUNK | st.integers() | st.floats() | st.lists(JUNK, max_size=3))
            if draw(st.booleans()):
                del place[key]
            if not all(isinstance(scalars.get(k), dict) for k in ("data", "largest_read")):
                break
            if not isinstance(scalars["data"].get("state"), dict):
                break
        changed["state/scalars"] = np.array(json.dumps(scalars))
    for name in draw(st.lists(st.sampled_from([*valid, "state/optimizer/x", "x/names"]), max_size=2)):
        kind = draw(st.sampled_from(["absent", "other", "shorter", "wider", "values"]))
        array = valid.get(name, np.zeros(3))
        if kind == "absent" or array.dtype.kind == "U" or not array.ndim:
            changed[name] = None
        elif kind == "other":
            changed[name] = np.zeros(draw(st.lists(st.integers(0, 4), max_size=4)), draw(DTYPES))
        elif kind == "shorter":
            changed[name] = array[:-1]
        elif kind == "wider":
            changed[name] = np.repeat(array, 2, -1)
        else:
            changed[name] = np.full_like(array, draw(st.sampled_from([0, -1, 7, 2**31])))
    return npz({name: array for name, array in (valid | changed).items() if array is not None})


def checkpoint_with(**changed: Any) -> bytes:
    """A checkpoint with another state of the training."""
    return npz(stored.valid_checkpoint() | {"state/scalars": np.array(json.dumps(SCALARS | changed))})


@given(checkpoints())
@example(checkpoint_with(step=3))
@example(checkpoint_with(norms=["x"]))
@example(checkpoint_with(largest_read={}))
@example(checkpoint_with(data={"bit_generator": "MT19937"}))
@example(npz(stored.valid_checkpoint() | {"state/theta": np.zeros(3, "f4")}))
@example(npz(stored.valid_checkpoint() | {"state/optimizer/x": np.zeros(3)}))
@example(npz(stored.valid_checkpoint() | {"state/config_hash": np.array("0" * 12)}))
@settings(REPEATABLE, max_examples=30)
def test_a_training_goes_on_from_a_checkpoint_or_passes_it_over(tmp_path: Path, content: bytes) -> None:
    stored.read_checkpoint(tmp_path, content)


CONFIG = stored.experiment().resolved()
PLACES: list[tuple[str, ...]] = [(key,) for key in CONFIG]
PLACES += [(key, inner) for key, value in CONFIG.items() if isinstance(value, dict) for inner in value]
PLACES += [("instruments", name, "schedule") for name in CONFIG["instruments"]]
PLACES += [("x",), ("cell", "_target_"), ("hydra",), ("tracking", "uri"), ("task", "x.y"), ("instruments", "_target_")]
VALUES = JUNK | st.text(max_size=6) | st.integers() | st.floats()
VALUES |= st.sampled_from(["${oc.env:HOME}", "???", "lstm", "adding seed=3", "../x", "_target_", "__import__('os')"])


@st.composite
def configurations(draw: st.DrawFn) -> str:
    """The configuration of a run with other values, or without some."""
    config = json.loads(json.dumps(CONFIG))
    for _ in range(draw(st.integers(1, 2))):
        *path, key = draw(st.sampled_from(PLACES))
        node: Any = config
        for name in path:
            node = node.setdefault(name, {}) if isinstance(node, dict) else {}
        if not isinstance(node, dict):
            continue
        if draw(st.booleans()):
            node[key] = draw(VALUES | st.lists(VALUES, max_size=2) | st.dictionaries(st.text(max_size=3), VALUES))
        else:
            node.pop(key, None)
    return yaml.safe_dump(config)


def configuration_with(**changed: Any) -> str:
    config = CONFIG | changed
    return yaml.safe_dump({key: value for key, value in config.items() if value is not None})


@given(configurations())
@example(configuration_with(instruments=5))
@example(configuration_with(instruments=None))
@example(configuration_with(instruments=["param_grad_norm"]))
@example(configuration_with(clip={}))
@example(configuration_with(train=CONFIG["train"] | {"partitioned": []}))
@example(configuration_with(hydra={"run": {"dir": "/"}}))
@settings(REPEATABLE, max_examples=5)
def test_any_configuration_is_made_again_or_refused(tmp_path: Path, content: str) -> None:
    stored.read_configuration(tmp_path, content.encode())


TAGS = "name param arm verdict verdict_reason diverged diverged_at_step continued sweep_id mlflow.name plugins".split()
TEXTS = st.text(max_size=20) | st.sampled_from(
    [
        "../../x",
        "/etc/passwd",
        "healthy",
        "\x1b[2J",
        "| a |",
        "<b>",
        "[x](http://y)",
        "$x$",
        "-1",
        "9" * 5000,
        "\u0663",
        "",
    ]
)


@given(st.dictionaries(st.sampled_from(TAGS), TEXTS, max_size=5))
@example({"arm": "a", "diverged_at_step": "\u0663"})
@settings(REPEATABLE, max_examples=30)
def test_a_run_under_any_tags_is_reported_or_refused(tmp_path: Path, tags: dict[str, str]) -> None:
    stored.read_run(tmp_path, json.dumps(tags).encode())


PLAIN = st.recursive(
    VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)
PACKAGES = st.dictionaries(st.sampled_from(["numpy", "packages", "blas", "x\x1b[2J"]), PLAIN, max_size=3)


@given(st.builds(lambda first, packages: first | {"packages": packages}, PACKAGES, PACKAGES | PLAIN) | PLAIN)
@settings(REPEATABLE, max_examples=30)
def test_any_provenance_is_compared(tmp_path: Path, content: Any) -> None:
    stored.read_provenance(tmp_path, json.dumps(content).encode())


@given(
    st.sampled_from(sorted(stored.READERS)).flatmap(lambda kind: st.tuples(st.just(kind), damaged(stored.valid(kind))))
)
@settings(REPEATABLE, max_examples=30)
def test_damaged_bytes_are_refused_in_one_line(tmp_path: Path, damage: tuple[str, bytes]) -> None:
    kind, content = damage
    stored.READERS[kind](tmp_path, content)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(stored.READERS))
def test_damaged_bytes_are_refused_in_one_line_at_length(tmp_path: Path, kind: str) -> None:
    @settings(REPEATABLE, max_examples=3000)
    @given(damaged(stored.valid(kind)) | st.binary(max_size=2000))
    def refused(content: bytes) -> None:
        stored.READERS[kind](tmp_path, content)

    refused()


@pytest.mark.slow
def test_whole_files_with_other_contents_at_length(tmp_path: Path) -> None:
    long = settings(REPEATABLE, max_examples=3000)
    long(given(checkpoints())(lambda content: stored.read_checkpoint(tmp_path, content) and None))()
    long(given(configurations())(lambda content: stored.read_configuration(tmp_path, content.encode()) and None))()


ARRAYS = st.builds(
    lambda shape, dtype, seed: (np.random.default_rng(seed).normal(size=shape) * 9).astype(dtype),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from(["f2", "f4", "f8", ">f8", "i4", "u1", "b1", "U3"]),
    st.integers(0, 3),
)


@given(ARRAYS | st.none(), ARRAYS)
@settings(REPEATABLE, max_examples=30)
def test_any_two_arrays_are_compared(first: np.ndarray | None, second: np.ndarray) -> None:
    from gradpath.tracking.comparison import _difference

    line = _difference("a\x1b", first, second)
    same = first is not None and (first.dtype, first.shape) == (second.dtype, second.shape)
    assert line.isprintable()
    assert (line == "") == (same and first.tobytes() == second.tobytes())


UNPICKLING = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "torch"}
CALLS = {"eval", "exec", "compile", "__import__"}
LOADERS = {"load_model", "load_dict", "load_text", "load_table", "load_image", "load_state_dict", "fromfile"}


def test_nothing_that_a_store_holds_can_be_unpickled_or_run() -> None:
    """A walk over the source: no loader that would execute what it reads."""
    # The class of a view of memory; what a command sends to the jobs that it has started itself.
    allowed = {("buffer_pool.py", "pickle"), ("cluster.py", "pickle")}
    seen = []
    for file in sorted((Path(__file__).parents[1] / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name.partition(".")[0] for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [(node.module or "").partition(".")[0]]
            seen += [(file.name, name) for name in names if name in UNPICKLING]
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            owner, _, method = called.rpartition(".")
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if (not owner and method in CALLS) or method in LOADERS:
                seen.append((file.name, called))
            if owner in ("np", "numpy", "np.lib.format") and method in ("load", "read_array"):
                assert keywords.get("allow_pickle") == "False", f"{file.name}: {called}"
            if keywords.get("allow_pickle", "False") != "False" or keywords.get("shell", "False") != "False":
                seen.append((file.name, called))
            if owner == "yaml" and method in ("load", "load_all", "unsafe_load", "full_load"):
                assert (method, ast.unparse(node.args[1])) == ("load", "_Loader"), f"{file.name}: {called}"
            if called.endswith(("hydra.utils.instantiate", "hydra.utils.call", "get_class", "get_object")):
                seen.append((file.name, called))
    assert set(seen) <= allowed, set(seen) - allowed
