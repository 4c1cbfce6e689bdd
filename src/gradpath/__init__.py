"""gradpath: the gradient norm of every parameter at every timestep of a recurrent network.

>>> import gradpath as gp

``gp.run`` trains one network and records it, ``gp.sweep`` every combination, ``gp.load`` reads
stored runs, ``gp.draw`` draws them, ``gp.check`` checks a gradient, ``gp.network`` gives the
network itself. ``gp.cells``, ``gp.tasks``, ``gp.inits``, ``gp.optimizers``, ``gp.clippings``,
``gp.instruments`` and ``gp.figures`` hold the classes of the units; ``gp.add_plugin`` adds a folder
of your own.

Nothing is imported until it is used (PEP 562).
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradpath import cells, clippings, figures, inits, instruments, optimizers, tasks
    from gradpath.api.drawing import draw
    from gradpath.api.gradients import check, network
    from gradpath.api.plugins import add_plugin
    from gradpath.api.result import Result, Results
    from gradpath.api.stored import load
    from gradpath.api.training import RunError, run, sweep
    from gradpath.figures import CannotDrawError
    from gradpath.schema.settings import ConfigError
    from gradpath.tracking.store_uri import StoreError

    __version__: str

__all__ = [
    "CannotDrawError",
    "ConfigError",
    "Result",
    "Results",
    "RunError",
    "StoreError",
    "__version__",
    "add_plugin",
    "cells",
    "check",
    "clippings",
    "draw",
    "figures",
    "inits",
    "instruments",
    "load",
    "network",
    "optimizers",
    "run",
    "sweep",
    "tasks",
]

_MODULES = {
    "CannotDrawError": "figures",
    "ConfigError": "schema.settings",
    "Result": "api.result",
    "Results": "api.result",
    "RunError": "api.training",
    "StoreError": "tracking.store_uri",
    "add_plugin": "api.plugins",
    "check": "api.gradients",
    "draw": "api.drawing",
    "load": "api.stored",
    "network": "api.gradients",
    "run": "api.training",
    "sweep": "api.training",
}
"""Where a name is defined; the others are packages."""


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("gradpath")
    if name not in __all__:
        from gradpath.schema.text import did_you_mean

        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{did_you_mean(name, __all__)}")
    from importlib import import_module

    if name not in _MODULES:
        return import_module(f"{__name__}.{name}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
