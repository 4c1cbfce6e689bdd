"""The units of a package as its attributes: ``gradpath.cells.LSTM``."""

from collections.abc import Callable
from typing import Any

from gradpath.schema.discovery import discover, package_of
from gradpath.schema.text import did_you_mean


def unit_attributes(base: type) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of the package whose units have the base class ``base``:
    their classes by name, looked up at each access, since plugins may add units.
    """
    package = package_of(base)

    def classes() -> dict[str, type]:
        units: dict[str, type] = discover(base)
        return {unit.__name__: unit for unit in units.values()}

    def get(name: str) -> Any:
        # Only classes are found here: while units are being imported, the import system asks for
        # modules.
        units = classes() if name[:1].isupper() else {}
        if name in units:
            return units[name]
        suggestion = did_you_mean(name, units) if units else ""
        raise AttributeError(
            f"module {package!r} has no attribute {name!r}; dir({package}) lists the units{suggestion}"
        )

    return get, lambda: sorted(classes())
