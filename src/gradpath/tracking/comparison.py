"""Whether two runs have the same bits, and what differs in what they were computed by."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradpath.schema.text import printable
from gradpath.tracking import store
from gradpath.tracking.decoding import DamagedError, arrays_of, plain_yaml, refusing
from gradpath.tracking.stored_run import artifact_file

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


@dataclass(frozen=True)
class Comparison:
    """``numbers`` that were compared; ``differences``, a line for each array that differs;
    ``circumstances``, a line for what else does.
    """

    numbers: int
    differences: list[str]
    circumstances: list[str]


def compare(client: "MlflowClient", first: "Run", second: "Run") -> Comparison:
    """Compares the artifacts of two runs byte for byte; raises DamagedError."""
    arrays, arrays_now = _arrays(client, first), _arrays(client, second)
    differences = [
        line
        for name in sorted({*arrays, *arrays_now})
        if (line := _difference(name, arrays.get(name), arrays_now.get(name)))
    ]
    numbers = sum(array.size for array in arrays.values())
    circumstances = _circumstances(_provenance(client, first), _provenance(client, second))
    return Comparison(numbers, differences, circumstances)


def _arrays(client: "MlflowClient", run: "Run") -> dict[str, NDArray]:
    with refusing(store.ARTIFACT), artifact_file(client, run, store.ARTIFACT) as path:
        return arrays_of(path)


def _difference(name: str, first: NDArray | None, second: NDArray | None) -> str:
    """How an array of one run differs from that of another; empty where it does not."""
    name = printable(name, 80)
    if first is None or second is None:
        return f"{name}: only in the {'second' if first is None else 'first'}"
    if (first.shape, first.dtype) != (second.shape, second.dtype):
        return f"{name}: {first.dtype} {first.shape}, and {second.dtype} {second.shape}"
    if first.tobytes() == second.tobytes():
        return ""
    if not np.issubdtype(first.dtype, np.floating):
        return f"{name}: other values"
    finite = np.isfinite(first) & np.isfinite(second)
    largest = float(np.abs(first[finite] - second[finite]).max(initial=0.0))
    bits, other_bits = (array.ravel().view(f"u{first.itemsize}") for array in (first, second))
    count = int((bits != other_bits).sum())
    return f"{name}: {count} of {first.size} numbers, by at most {largest:.2g}"


def _provenance(client: "MlflowClient", run: "Run") -> dict[str, Any]:
    """What a run was computed by; empty where it does not say."""
    try:
        with refusing("provenance.json"), artifact_file(client, run, "provenance.json") as path:
            content = plain_yaml(path)  # JSON is YAML
    except DamagedError:
        return {}
    return content if isinstance(content, dict) else {}


def _circumstances(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """What two provenances differ in, but for the command."""
    if not first:
        return ["what the first was computed by is not known"]
    packages, packages_now = (p.get("packages") for p in (first, second))
    lines = [*_changed(first, second, {"command", "packages"})]
    if isinstance(packages, dict) and isinstance(packages_now, dict):
        lines += _changed(packages, packages_now, set())
    return lines


def _changed(first: Mapping[str, Any], second: Mapping[str, Any], excluded: set[str]) -> Iterator[str]:
    for key in sorted({*first, *second} - excluded, key=str):
        if first.get(key) != second.get(key):
            earlier, later = (printable(values.get(key, "none"), 120) for values in (first, second))
            yield f"{printable(key, 40)}: {earlier} then, {later} now"
