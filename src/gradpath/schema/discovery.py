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
    modules = [f"{package.__name__}.{module.name}" for module in pkgutil.iter_modules(package.__path__)]
    for module in modules:
        importlib.import_module(module)
    units = [cls for cls in _subclasses(base) if cls.__module__ in modules or base in cls.__bases__]
    return {cls.__module__.rpartition(".")[2]: cls for cls in sorted(units, key=lambda cls: cls.__module__)}


def _subclasses(base: type[Unit]) -> set[type[Unit]]:
    """Those of any depth: a unit may be a unit of ours with something changed."""
    direct = set(base.__subclasses__())
    return direct.union(*(_subclasses(cls) for cls in direct))
