"""Chooses the loop over time that runs, the compiled one or Python's; both give the same bits.

``GRADPATH_REPLAY=0`` runs Python's loops. ``1``, the default, runs the compiled loop where it is
built and was proved on this version of NumPy. ``require`` refuses to run without the compiled loop.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

VARIABLE = "GRADPATH_REPLAY"
PROVED_NUMPY = ((2, 0), (2, 6))
"""Versions of NumPy, from the first up to but not including the second, on which ``make
test-matrix`` has proved that the compiled loop gives the same bits as Python's.
"""


class ReplayError(RuntimeError):
    """The loop over time cannot run as ``GRADPATH_REPLAY`` asks."""


@dataclass(frozen=True)
class Choice:
    module: Any = None
    """The module of the compiled loop, if the compiled loop runs."""
    reason: str = ""
    """The reason for which the compiled loop does not run."""
    required: bool = False
    refusal: str = ""
    """The reason for which no loop may run at all."""


def choose(setting: str, numpy: str) -> Choice:
    """The choice for a value of ``GRADPATH_REPLAY`` and a version of NumPy."""
    if setting not in ("0", "1", "require"):
        return Choice(refusal=f"{VARIABLE}={setting}: must be 0, 1 or require")
    module, reason = (None, f"switched off by {VARIABLE}=0") if setting == "0" else _load(numpy)
    required = setting == "require"
    return Choice(
        module, reason, required, f"{VARIABLE}=require: the compiled loop is {reason}" if required and reason else ""
    )


def _load(numpy: str) -> tuple[Any, str]:
    low, high = (".".join(map(str, version)) for version in PROVED_NUMPY)
    if not PROVED_NUMPY[0] <= tuple(int(part) for part in numpy.split(".")[:2]) < PROVED_NUMPY[1]:
        return None, f"not proved on NumPy {numpy}, but from {low} to before {high}"
    try:
        from gradpath.engine import _replay  # type: ignore[attr-defined]
    except ImportError as error:
        missing = getattr(error, "name_from", None) == "_replay" or "cannot import name" in str(error)
        return None, "not built" if missing else f"not to be loaded: {error}"
    return _replay, ""


CHOICE = choose(os.environ.get(VARIABLE) or "1", np.__version__)


def check() -> None:
    """Raises ReplayError where the loop cannot run as ``GRADPATH_REPLAY`` asks."""
    if CHOICE.refusal:
        raise ReplayError(CHOICE.refusal)


def refuse(reason: str) -> None:
    """Raises ReplayError if the compiled loop is required; a body would run in Python, for
    ``reason``.
    """
    if CHOICE.required:
        raise ReplayError(f"{VARIABLE}=require: {reason}")


_noted: list[dict[str, None]] = []


@contextmanager
def watched() -> Iterator[dict[str, None]]:
    """Collects the reasons for which loops run in Python within the context, in any thread."""
    reasons: dict[str, None] = {}
    _noted.append(reasons)
    try:
        yield reasons
    finally:
        _noted[:] = [entry for entry in _noted if entry is not reasons]


def note(reason: str) -> None:
    """Records that a loop runs in Python, for ``reason``."""
    for reasons in _noted:
        reasons[reason] = None


def loop_used(reasons: Sequence[str]) -> str:
    """The loop that a run used: ``compiled``, or ``python: `` and the reasons."""
    return f"python: {'; '.join(reasons)}" if reasons else "compiled"


def name(body: Callable[..., None], error: Exception | None = None) -> str:
    """The name of the function in which recording the body failed, if ``error`` is given, or else
    of the function that defines the body.
    """
    qualified_name = getattr(body, "__qualname__", type(body).__qualname__)
    trace = error.__traceback__ if error else None
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__", "")
        if not module.startswith(("gradpath.engine.", "numpy.")):
            qualified_name = trace.tb_frame.f_code.co_qualname
        trace = trace.tb_next
    return str(qualified_name).partition(".<locals>")[0]
