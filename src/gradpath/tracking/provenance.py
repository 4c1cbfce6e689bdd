"""What a run was computed by, besides its configuration."""

import hashlib
from functools import cache
from pathlib import Path

import numpy as np

from gradpath.schema import plugins

PACKAGE = Path(__file__).parents[1]
COMPUTING = ("core", "engine", "schema", "tracking", "training", *(set(plugins.FOLDERS) - {"figures"}))
"""The packages that decide what a run computes and records; not those that draw or compose."""


def source_tags() -> dict[str, str]:
    """Tags of a run: two runs of one configuration in which these are equal have the same numbers,
    on one kind of processor to the bit.
    """
    return {"source": _digest(plugins.active()), "numpy": np.__version__}


@cache
def _digest(active: tuple[plugins.Plugin, ...]) -> str:
    """Of the source files of what computes, gradpath's and the plugins', whatever git knows of
    them.
    """
    digest = hashlib.sha256()
    for root in (PACKAGE, *(plugin.folder for plugin in active)):
        for folder in sorted(COMPUTING):
            for file in sorted(file for suffix in ("py", "c") for file in (root / folder).rglob(f"*.{suffix}")):
                digest.update(f"{file.relative_to(root).as_posix()}\0".encode(errors="surrogatepass"))
                digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:12]
