"""The reason for which something failed, in one line."""

import os
import traceback
from pathlib import Path

from gradpath.schema import plugins
from gradpath.schema.settings import ConfigError
from gradpath.schema.text import one_line

SOURCES = Path(__file__).parents[1]
LOWER_MEMORY = "lower task.length, cell.hidden_size, train.batch_size, jobs, or the number of seeds side by side"


def reason(error: BaseException) -> str:
    """An error in one line, with the place in a unit's code where it was raised, and its first
    note; the whole traceback with HYDRA_FULL_ERROR=1.
    """
    print_whole(error)
    notes: list[str] = getattr(error, "__notes__", [])
    suffix = "".join(f"; {note}" for note in notes[:1]) + f", and {len(notes) - 1} more" * (len(notes) > 1)
    if isinstance(error, ConfigError):  # its message names the cause itself
        return one_line(f"{error}{suffix}")
    text = f"{type(error).__name__}: {error}".rstrip(": ")
    frames = traceback.extract_tb(error.__traceback__)
    if frames and not isinstance(error, MemoryError | OSError):
        place = next((frame for frame in reversed(frames) if _in_unit(Path(frame.filename))), frames[-1])
        text += f" ({Path(place.filename).name}, line {place.lineno})"
    return one_line(text + suffix)


def _in_unit(file: Path) -> bool:
    """Does a file belong to a unit? The base class of the units is in ``__init__.py``."""
    return file.name != "__init__.py" and any(file.is_relative_to(folder) for folder in unit_folders())


def unit_folders() -> list[Path]:
    """The folders with the code of units, gradpath's own and the plugins'."""
    return [SOURCES / name for name in plugins.FOLDERS] + [plugin.folder for plugin in plugins.active()]


def print_whole(error: BaseException | None) -> None:
    """Prints the traceback of an error, where ``HYDRA_FULL_ERROR=1`` asks for it."""
    if error is not None and os.environ.get("HYDRA_FULL_ERROR") == "1":
        traceback.print_exception(error)


def store_answer(error: BaseException) -> str:
    """An error of MLflow or of the libraries with which it accesses its store, in one line; empty
    for any other error.
    """
    if not type(error).__module__.startswith(("mlflow.", "sqlalchemy.", "requests.")):
        return ""
    return f"the MLflow store answered: {one_line(str(error).partition(chr(10))[0])}"
