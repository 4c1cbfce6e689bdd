"""Finds the units of a kind: each module of gradpath's package for it, and of the plugins' packages
of the same name, defines one.
"""

import importlib
import inspect
import pkgutil
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from gradpath.schema import plugins
from gradpath.schema.settings import ConfigError
from gradpath.schema.unit_names import RULE, is_valid

Unit = TypeVar("Unit")


def package_of(base: Any) -> str:
    """The package of gradpath that holds the units of ``base``; a plugin's package has the same
    last name.
    """
    return str(getattr(base, "package", base.__module__))


def unit_name(unit: object) -> str:
    """The name by which a unit is chosen on the command line: that of its module."""
    return type(unit).__module__.rpartition(".")[2]


def discover(base: type[Unit]) -> dict[str, type[Unit]]:
    """Name → class for each unit of ``base``. The name is that of the module, so each file is one
    unit. A module whose name begins with ``_`` is no unit. A unit may be a subclass of another one.

    ``base`` names the package of its units by ``package``, or is defined in that package's
    ``__init__``: ``gradpath.core.cell.Cell`` finds ``gradpath/cells/*.py``. Raises ConfigError
    where a plugin's module cannot be imported, defines no unit, or defines a unit whose name is
    taken.
    """
    kind: Any = base
    package = package_of(base)
    units = dict(_units(kind, package))
    for added in plugins.modules(package.rpartition(".")[2]):
        for name, unit in _units(kind, added).items():
            if name in units:
                first, second = (inspect.getfile(cls) for cls in (units[name], unit))
                raise ConfigError(f"{second}: there is a unit of that name already, {first}; rename one of them")
            units[name] = unit
    return dict(sorted(units.items()))


def forget() -> None:
    """Has the folders of units read again, as after one of them has changed."""
    _units.cache_clear()


@cache
def _units(base: Any, package_name: str) -> dict[str, Any]:
    package = _imported(package_name)
    for file in sorted(file for folder in package.__path__ for file in Path(folder).glob("[!._]*.py")):
        if not is_valid(file.stem):
            raise ConfigError(f"{file}: the name of a unit must {RULE}; or begin the file's name with _")
    names = [name for _, name, _ in pkgutil.iter_modules(package.__path__) if not name.startswith("_")]
    return {name: _unit(base, _imported(f"{package_name}.{name}")) for name in names}


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        plugin = next((p for p in plugins.active() if name.startswith(f"{p.package}.")), None)
        if plugin is None:
            raise
        place = plugin.folder.joinpath(*name.removeprefix(f"{plugin.package}.").split("."))
        file = place.with_suffix(".py") if not place.is_dir() else place / "__init__.py"
        file = file if file.is_file() else plugin.folder / "__init__.py"
        raise ConfigError(f"{file}: {plugins.failure(error, plugin.folder)}") from error


def _unit(base: Any, module: ModuleType) -> Any:
    """The one unit that a module defines: its only subclass of ``base``, or the subclass that
    derives from all others.
    """
    file, kind = inspect.getfile(module), base.__name__
    defined = [
        cls
        for cls in vars(module).values()
        if inspect.isclass(cls) and issubclass(cls, base) and cls.__module__ == module.__name__
    ]
    units = [cls for cls in defined if not any(derived is not cls and issubclass(derived, cls) for derived in defined)]
    if len(units) != 1:
        names = " and ".join(sorted(cls.__name__ for cls in units)) or "none"
        raise ConfigError(f"{file}: must define one {kind}, it defines {names}; others begin their file's name with _")
    (unit,) = units
    if inspect.isabstract(unit):
        undefined = ", ".join(sorted(vars(unit)["__abstractmethods__"]))
        raise ConfigError(f"{file}: {unit.__name__} does not define {undefined}")
    if not is_dataclass(unit) or "__dataclass_fields__" not in vars(unit):
        raise ConfigError(f"{file}: {unit.__name__} is not a dataclass; write @dataclass above it")
    return unit
