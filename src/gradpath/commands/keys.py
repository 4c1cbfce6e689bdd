"""The keys of a configuration: their allowed values in words, and how a value is written."""

import types
import typing
from collections.abc import Iterator
from dataclasses import Field, fields, is_dataclass
from enum import Enum
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from gradpath.schema.settings import allowed


def settable(config: DictConfig, path: str = "") -> Iterator[tuple[str, Any, str, str]]:
    """Every key that can be set in a composed configuration: (key, value, allowed values,
    meaning).
    """
    schema = OmegaConf.get_type(config)
    schema_fields = fields_by_name(schema)
    annotations = typing.get_type_hints(schema) if schema_fields else {}
    for name in map(str, config):
        key = f"{path}{name}"
        if OmegaConf.is_dict(config[name]):
            yield from settable(config[name], key + ".")
        else:
            field = schema_fields[name]
            yield key, as_written(config[name]), describe(field, annotations[name]), field.metadata.get("help", "")


def describe(field: Field[Any], annotation: Any) -> str:
    """The allowed values of a field in words: ``an integer ≥ 1 or null``."""
    if text := field.metadata.get("takes"):
        return str(text)
    words = []
    is_union = isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union
    for option in typing.get_args(annotation) if is_union else (annotation,):
        if option is type(None):
            words.append("null")
        elif isinstance(option, type) and issubclass(option, Enum):
            words.append("one of " + ", ".join(option.__members__))
        else:
            kinds = {int: "an integer", float: "a number", bool: "true or false", str: "text", list: "a list"}
            kind = kinds.get(typing.get_origin(option) or option, "a section")
            bounds = field.metadata.get("bounds", {})
            words.append(f"{kind} {allowed(bounds)}" if bounds else kind)
    return " or ".join(words)


def fields_by_name(schema: Any) -> dict[str, Field[Any]]:
    """The fields of a section's dataclass; none for a section without one."""
    return {f.name: f for f in fields(schema)} if is_dataclass(schema) else {}


def as_written(value: Any) -> Any:
    """A value in the form in which a person writes it on the command line."""
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{as_written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | ListConfig):
        return f"[{','.join(str(as_written(item)) for item in value)}]"
    return {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else value
