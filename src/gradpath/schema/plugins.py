"""Users' own units beside gradpath's.

A plugin is a folder with the structure of gradpath's: ``cells/NAME.py`` and
``conf/cell/NAME.yaml``, and the same for tasks, instruments, figures, initialisations, optimisers
and clippings, and also ``conf/arm/*.yaml`` and ``conf/experiment/*.yaml``. An installed package
declares its units by an entry point of the group ``gradpath.plugins``, whose value is the package.
Any other folder is given by ``--plugin`` or in ``$GRADPATH_PLUGINS``, which the processes of a
sweep inherit.

The modules of such a folder are imported as ``gradpath.schema.plugins.FOLDER_DIGEST.cells.NAME``.
Nothing is added to ``sys.path``, where a folder could be taken for a package of the same name.
Another process that unpickles a unit imports this module first, and with it the plugins.
"""

import hashlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from types import ModuleType
from typing import Any

from gradpath.schema.settings import ConfigError
from gradpath.schema.text import one_line

ENTRY_POINTS = "gradpath.plugins"
VARIABLE = "GRADPATH_PLUGINS"
"""The variable that holds the folders, separated as in PATH."""
FOLDERS = ("cells", "tasks", "instruments", "figures", "inits", "optimizers", "clippings")
"""The folders of units, named as gradpath's packages."""

_added: list[str] = []


@dataclass(frozen=True)
class Plugin:
    """A package or folder with units."""

    name: str
    package: str
    """The package under which the plugin's modules are imported."""
    folder: Path
    version: str = ""
    """The version of the distribution to which the plugin belongs, if it is installed."""

    @property
    def conf(self) -> Path:
        """The folder of the plugin's YAML files, with the structure of gradpath's ``conf/``."""
        return self.folder / "conf"

    def __str__(self) -> str:
        return f"{self.name} {self.version}" if self.version else f"{self.name} ({self.folder})"


def active() -> tuple[Plugin, ...]:
    """The installed plugins, then those of ``$GRADPATH_PLUGINS``; raises ConfigError where one is
    invalid.
    """
    return _active(os.environ.get(VARIABLE, ""))


def add_plugin(path: "str | os.PathLike[str]", option: str = "--plugin ", check: Callable[[], Any] = active) -> None:
    """Makes the folder ``path`` a plugin of this process and of the processes that it starts;
    raises ConfigError where the folder is no plugin. If ``check`` raises with the folder in place,
    things are left as they were. ``option`` stands before the path in a message.
    """
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(f"{option}{path!r}: must be the path of a folder")
    folder = _resolved(f"{option}{path}", path)
    if os.pathsep in str(folder):
        raise ConfigError(f"{option}{path}: a {os.pathsep} in the name of a folder separates two of them")
    _check(f"{option}{path}", folder)
    previous = os.environ.get(VARIABLE)
    listed = [*filter(None, (previous or "").split(os.pathsep))]
    if str(folder) in listed:
        return
    os.environ[VARIABLE] = os.pathsep.join([*listed, str(folder)])
    try:
        active()
        check()
    except BaseException:
        if previous is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = previous
        _forget(folder)
        raise
    _added.append(str(folder))


def _forget(folder: Path) -> None:
    """The modules of a folder that is no plugin after all: it can be mended and tried again."""
    package = _package_name(folder)
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        del sys.modules[name]
    _active.cache_clear()


def arguments() -> list[str]:
    """The arguments with which a command has the plugins that were added to this process."""
    return [word for folder in _added for word in ("--plugin", folder)]


def owner(file: Path) -> Plugin | None:
    """The plugin to which a file belongs."""
    return next((plugin for plugin in active() if file.resolve().is_relative_to(plugin.folder)), None)


def modules(folder: str) -> list[str]:
    """The packages of the plugins that hold units of a kind, such as ``cells``."""
    return [f"{plugin.package}.{folder}" for plugin in active() if (plugin.folder / folder).is_dir()]


@cache
def _active(paths: str) -> tuple[Plugin, ...]:
    plugins = list(_installed())
    for path in filter(None, paths.split(os.pathsep)):
        folder = _resolved(f"${VARIABLE}: {path}", path)
        if any(folder == plugin.folder for plugin in plugins):
            continue
        _check(f"${VARIABLE}: {folder}", folder)
        plugins.append(_from_folder(folder))
    return tuple(plugins)


@cache
def _installed() -> tuple[Plugin, ...]:
    """The plugins of installed packages, none of which is imported yet."""
    plugins = []
    for entry in sorted(entry_points(group=ENTRY_POINTS)):
        spec = importlib.util.find_spec(entry.value) if "." not in entry.value else None
        if spec is None or not spec.submodule_search_locations:
            raise ConfigError(f"plugin {entry.name}: its entry point must name a package; {entry.value} is none")
        try:
            number = entry.dist.version if entry.dist else version(entry.value)
        except PackageNotFoundError:
            number = ""
        folder = Path(next(iter(spec.submodule_search_locations))).resolve()
        plugins.append(Plugin(entry.name, entry.value, folder, number))
    return tuple(plugins)


def _resolved(origin: str, path: "str | os.PathLike[str]") -> Path:
    try:
        return Path(path).expanduser().resolve()
    except (OSError, RuntimeError, TypeError, ValueError) as error:  # no such user, a NUL, a path of bytes
        raise ConfigError(f"{origin}: {error}") from None


def _check(origin: str, folder: Path) -> None:
    if not folder.is_dir():
        raise ConfigError(f"{origin}: there is no such folder")
    if not any((folder / name).is_dir() for name in (*FOLDERS, "conf")):
        raise ConfigError(f"{origin}: has none of the folders {', '.join(FOLDERS)}, conf")


def _package_name(folder: Path) -> str:
    # Two folders of the same name are two packages, and a folder is the same package in every
    # process.
    digest = hashlib.sha256(str(folder).encode(errors="surrogatepass")).hexdigest()[:8]
    name = re.sub(r"\W", "_", folder.name, flags=re.ASCII)
    return f"{__name__}.{name}_{digest}"


def _from_folder(folder: Path) -> Plugin:
    plugin = Plugin(folder.name or "/", _package_name(folder), folder)
    if plugin.package not in sys.modules:
        sys.modules[plugin.package] = _package(plugin)
    return plugin


def _package(plugin: Plugin) -> ModuleType:
    """The folder as a package; its own ``__init__.py`` is executed if it has one."""
    initial = plugin.folder / "__init__.py"
    if not initial.exists():
        spec = ModuleSpec(plugin.package, None, is_package=True)
        spec.submodule_search_locations = [str(plugin.folder)]
        return importlib.util.module_from_spec(spec)
    spec_of_file = importlib.util.spec_from_file_location(
        plugin.package, initial, submodule_search_locations=[str(plugin.folder)]
    )
    assert spec_of_file is not None
    assert spec_of_file.loader is not None
    package = sys.modules[plugin.package] = importlib.util.module_from_spec(spec_of_file)
    try:
        spec_of_file.loader.exec_module(package)
    except (Exception, SystemExit) as error:
        del sys.modules[plugin.package]
        raise ConfigError(f"{initial}: {failure(error, plugin.folder)}") from error
    return package


def failure(error: BaseException, *folders: Path) -> str:
    """The message for an exception from a plugin's code, with the last line of the traceback in
    these folders.
    """
    line, place = "", error.__traceback__
    while place is not None:
        file = Path(place.tb_frame.f_code.co_filename)
        if any(file.is_relative_to(folder) for folder in folders):
            line = f" (line {place.tb_lineno} of {file.name})"
        place = place.tb_next
    if isinstance(error, SyntaxError) and error.filename:
        line = f" (line {error.lineno} of {Path(error.filename).name})"
        return f"{type(error).__name__}: {one_line(error.msg)}{line}"
    return f"{type(error).__name__}: {one_line(str(error))}{line}"


with suppress(ConfigError):  # raised again for whoever asks for the plugins; here a process may only unpickle a unit
    active()
