"""Keeps the measurements of a run that its store did not accept."""

import secrets
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from gradpath.schema import locations


def keep(run_id: str, arrays: Mapping[str, NDArray], config: Mapping[str, Any]) -> Path | str:
    """Saves the measurements that a store did not accept as ``RUN.npz``, with ``RUN.yaml`` beside
    it, where this machine has room. Returns the file, or the reason for which there is none.
    """
    failure = ""
    for folder in (locations.unsent(), Path(tempfile.gettempdir()) / "gradpath-unsent"):
        file = folder / f"{run_id or secrets.token_hex(8)}.npz"
        unfinished = file.with_name(f".{file.name}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            np.savez(unfinished, **arrays)  # type: ignore[arg-type]
            file.with_suffix(".yaml").write_text(yaml.safe_dump(dict(config), allow_unicode=True), encoding="utf-8")
            unfinished.rename(file)
            return file
        except OSError as error:
            failure = failure or f"{error.strerror}: {folder}"
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)
    return failure


def add_note(error: BaseException, saved: Path | str) -> None:
    """Adds to an error the place where the measurements of its run are kept."""
    error.add_note(f"what was measured {'is kept in' if isinstance(saved, Path) else 'could not be kept:'} {saved}")
