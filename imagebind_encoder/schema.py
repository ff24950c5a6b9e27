"""Frozen dataclasses from plain data and back, with errors that name the key."""

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any


class ConfigError(ValueError):
    """A config holds a key or a value that no encoder can be built from."""


def is_number(value: Any) -> bool:
    """A finite int or float; true and false are neither."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def require_positive(config: Any, *names: str) -> None:
    """Raises ConfigError unless each named field is a positive integer or a tuple of them."""
    for name in names:
        value = getattr(config, name)
        for number in value if isinstance(value, tuple) and value else (value,):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ConfigError(f"{type(config).__name__}.{name} must be a positive integer, not {value!r}")


def as_plain(value: Any) -> Any:
    """Dataclasses and mappings as dicts, tuples as lists, ready for JSON."""
    if is_dataclass(value):
        return {item.name: as_plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): as_plain(entry) for key, entry in value.items()}
    return list(value) if isinstance(value, tuple) else value


def as_arguments(kind: type, data: Any, where: str) -> dict[str, Any]:
    """The entries of `data` as arguments of the dataclass `kind`, lists as tuples.

    Raises ConfigError, with `where` in it, on an unknown or a missing key.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where} must be a mapping, not {data!r}")
    allowed = {item.name: item for item in fields(kind)}
    for problem, names in (
        ("unknown", [repr(key) for key in data if key not in allowed]),
        ("missing", [repr(name) for name in _required(kind) if name not in data]),
    ):
        if names:
            raise ConfigError(f"{problem} key {', '.join(names)} in {where}; the keys are {', '.join(allowed)}")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}


def _required(kind: type) -> list[str]:
    return [item.name for item in fields(kind) if item.default is MISSING and item.default_factory is MISSING]
