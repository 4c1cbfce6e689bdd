"""Finds the units of a kind: every module of a package that defines a subclass of the kind's base
class.
"""

import importlib
import pkgutil
from typing import TypeVar

Unit = TypeVar("Unit")


def discover(base: type[Unit]) -> dict[str, type[Unit]]:
    """Name → class for each unit of ``base``; the name is the module's, so one file is one unit.

    ``base`` lives in its package's ``__init__``: ``gradpath.core.cell.Cell`` finds
    ``gradpath/cells/*.py``.
    """
    package = importlib.import_module(getattr(base, "package", base.__module__))
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return {cls.__module__.rpartition(".")[2]: cls for cls in sorted(base.__subclasses__(), key=lambda c: c.__module__)}
