"""Why something failed, in a line."""

import os
import traceback
from pathlib import Path

from gradpath.schema.text import one_line


def reason(error: BaseException) -> str:
    """An error in one line, with the place in a unit's code where it was raised; whole with
    HYDRA_FULL_ERROR=1.
    """
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        traceback.print_exception(error)
    text = f"{type(error).__name__}: {error}".rstrip(": ")
    frames = traceback.extract_tb(error.__traceback__)
    if frames and not isinstance(error, MemoryError | OSError):
        text += f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})"
    return one_line(text)


def store_answer(error: BaseException) -> str:
    """An error of MLflow's, or of what it speaks to its store with, in one line; empty for any
    other error.
    """
    if not type(error).__module__.startswith(("mlflow.", "sqlalchemy.", "requests.")):
        return ""
    return f"the MLflow store answered: {one_line(str(error).partition(chr(10))[0])}"
