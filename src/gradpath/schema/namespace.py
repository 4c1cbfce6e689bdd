"""The units of a package as its attributes: ``gradpath.cells.LSTM``."""

from collections.abc import Callable
from typing import Any

from gradpath.schema.discovery import discover


def unit_attributes(base: type) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of the package whose units have the base class ``base``:
    their classes by name, looked for each time, since there may be new ones.
    """

    def classes() -> dict[str, type]:
        units: dict[str, type] = discover(base)
        return {unit.__name__: unit for unit in units.values()}

    def get(name: str) -> Any:
        # Only a class: a module is what the import system asks for, while units are being imported.
        if name[:1].isupper() and name in (units := classes()):
            return units[name]
        raise AttributeError(f"module {base.__module__!r} has no attribute {name!r}")

    return get, lambda: sorted(classes())
