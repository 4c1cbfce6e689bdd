"""Settings that cannot be changed after construction."""

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from gradpath.schema.settings import Settings


@dataclass
class ImmutableSettings(Settings):
    """Settings that cannot be changed after construction (``dataclasses.replace`` makes a changed
    copy), and that are equal, with equal hashes, if their values are equal.
    """

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        cls.__hash__ = ImmutableSettings.__hash__  # type: ignore[method-assign]  # where a class has none, ``dataclass`` makes it None

    def __setattr__(self, name: str, value: Any) -> None:
        # ``dataclass(frozen=True)`` would not do, because OmegaConf treats the values of a frozen
        # schema as read-only.
        if name in vars(self):
            raise AttributeError(
                f"{name} of a {type(self).__name__} cannot be changed: dataclasses.replace makes another"
            )
        object.__setattr__(self, name, tuple(value) if isinstance(value, list) else value)

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((type(self), *self.__getstate__().values()))

    def __getstate__(self) -> dict[str, Any]:
        """The values of the fields only: cached properties are not pickled, because the hash
        differs from process to process.
        """
        return {value.name: getattr(self, value.name) for value in fields(self)}
