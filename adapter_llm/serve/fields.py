"""The fields of a JSON object, read one by one. null counts as absent, as in OpenAI's API."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .errors import ApiError, shown

SHORT = 100  # characters of a name that somebody made up


class Fields:
    """An object of a request at the place `where`; "" is the request itself. Every reader raises ApiError."""

    def __init__(self, values: Any, where: str = "") -> None:
        if not isinstance(values, dict):
            raise ApiError(f"{where or 'the body'} must be a JSON object, not {shown(values)}", where or None)
        self.values = {name: value for name, value in values.items() if value is not None}
        self.where = where

    def place(self, name: str) -> str:
        return f"{self.where}.{name}" if self.where else name

    def wrong(self, name: str, wanted: str) -> ApiError:
        return ApiError(f"{self.place(name)} must be {wanted}, not {shown(self.values[name])}", self.place(name))

    def number(self, name: str, low: float, high: float, default: float) -> float:
        value = self.values.get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise self.wrong(name, f"a number from {low:g} to {high:g}")
        return float(value)

    def whole(self, name: str, low: int, high: float, default: int | None) -> int | None:
        value = self.values.get(name, default)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.wrong(name, f"a whole number from {low} {f'to {high}' if math.isfinite(high) else 'up'}")
        return value

    def flag(self, name: str) -> bool:
        value = self.values.get(name, False)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def text(self, name: str) -> str | None:
        value = self.values.get(name)
        if not isinstance(value, str | None):
            raise self.wrong(name, "a text")
        return value

    def choice(self, name: str, allowed: Sequence[str], default: str | None = None) -> str:
        if name not in self.values and default is None:
            raise ApiError(f"{self.place(name)} is missing; give {' or '.join(allowed)}", self.place(name))
        value = self.values.get(name, default)
        if value not in allowed:
            raise self.wrong(name, f"one of {', '.join(allowed)}")
        return value

    def only(self, known: Sequence[str]) -> None:
        """Refuse fields of other names, as OpenAI's server does: most would have changed the answer."""
        if unknown := [name for name in self.values if name not in known]:
            place = self.place(unknown[0])[:SHORT]
            raise ApiError(f"Unrecognized request argument supplied: {place}", place, code="unknown_parameter")

    def neutral(self, allowed: dict[str, Sequence[Any]]) -> None:
        """Refuse what would change the answer and is not done here, but for values that change nothing."""
        for name, values in allowed.items():
            if name in self.values and self.values[name] not in values:
                hint = f"leave it out, or send {' or '.join(map(shown, values))}" if values else "leave it out"
                raise ApiError(
                    f"{self.place(name)} is not supported by this server; {hint}",
                    self.place(name), code="unsupported_parameter",
                )  # fmt: skip
