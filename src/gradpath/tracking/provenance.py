"""What a run was computed by, besides its configuration."""

import hashlib
import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info

from gradpath.schema import locations, plugins
from gradpath.schema.text import without_passwords

PACKAGE = Path(__file__).parents[1]
SUFFIXES = (".py", ".c")
CODE = ("src", "conf")
"""The folders of a checkout that hold code and configuration."""
LARGEST_PATCH = 1 << 20
"""Characters that are kept of it."""
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
            for file in sorted(file for suffix in SUFFIXES for file in (root / folder).rglob(f"*{suffix}")):
                digest.update(f"{file.relative_to(root).as_posix()}\0".encode(errors="surrogatepass"))
                digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:12]


def provenance() -> dict[str, Any]:
    """What another needs to compute the same bits, for the run's ``provenance.json``."""
    return {
        "command": [without_passwords(argument) for argument in sys.argv],
        "gradpath": code_version(),
        **source_tags(),
        "plugins": [str(plugin) for plugin in plugins.active()],
        **machine(),
    }


@cache
def machine() -> dict[str, Any]:
    """The processor, what of NumPy's BLAS was chosen for it, and the packages."""
    blas = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    keys = ("internal_api", "version", "architecture", "threading_layer")
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "platform": platform.platform(),
        "processor": _processor(),
        "blas": [{key: pool.get(key) for key in keys} for pool in blas],
        "packages": dict(sorted((d.metadata["Name"], d.version) for d in distributions() if d.metadata["Name"])),
    }


def _processor() -> str:
    """The processor's name as the system has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


@cache
def code_version() -> str:
    """The package's version, with the commit where it runs from a checkout: ``0.2.0+1a2b3c4`` or
    ``….dirty``.
    """
    commit = _git("describe", "--always", "--dirty=.dirty", "--exclude=*").strip()
    return f"{version('gradpath')}+{commit}" if commit else version("gradpath")


@cache
def code_difference() -> str:
    """What the code of a checkout has beyond its last commit, as a patch."""
    changed = _git("diff", "HEAD", "--binary", "--", *CODE)
    added = _git("ls-files", "--others", "--exclude-standard", "-z", "--", *CODE).split("\0")
    patches = [_git("diff", "--no-index", "--binary", "--", "/dev/null", file) for file in added if file]
    return "".join([changed, *patches])[:LARGEST_PATCH]


def _git(*arguments: str) -> str:
    """What git says of the checkout that gradpath runs from; nothing where there is none."""
    root = locations.checkout()
    if root is None:
        return ""
    try:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, timeout=10, check=False).stdout.decode(errors="replace")
    except (OSError, subprocess.SubprocessError):
        return ""
