"""Builds dataclasses from JSON, leniently: members that a newer service adds are ignored."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from serve_client.errors import UnexpectedResponseError

T = TypeVar("T")
RENAMED = {"class_name": "class"}  # members of the API that are no names in Python


def from_json(kind: type[T], data: Any) -> T:
    """Return ``data``, which the JSON parser returned, as a dataclass.

    Raises:
        UnexpectedResponseError: A required member is missing, or a value has another type.
    """
    try:
        return _object(kind, data)
    except (TypeError, ValueError, AttributeError) as error:
        raise UnexpectedResponseError(f"the response does not fit {kind.__name__} ({error}): {data!r:.200}") from error


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _object(kind: type[T], data: Any) -> T:
    if not isinstance(data, Mapping):
        raise TypeError(f"not a {kind.__name__}")
    hints = _hints(kind)  # type: ignore[arg-type] # every class is hashable
    members = {name: RENAMED.get(name, name) for name in hints}
    return kind(**{name: _value(hints[name], data[member]) for name, member in members.items() if member in data})


def _value(hint: Any, data: Any) -> Any:
    """Convert one value to its type; a type that needs no conversion is checked only roughly."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if data is None:
            return None
        (hint,) = (part for part in parts if part is not type(None))
        return _value(hint, data)
    if dataclasses.is_dataclass(hint):
        return _object(hint, data)  # type: ignore[arg-type] # a hint is a type, not an instance
    if origin is tuple:
        element = parts[0]  # all tuples of the API have elements of one type
        return tuple(_value(element, each) for each in data)
    if origin is dict:
        return {key: _value(parts[1], each) for key, each in data.items()}
    if hint is datetime:
        return datetime.fromisoformat(data)
    if hint in (str, bool) and not isinstance(data, hint):
        raise TypeError(f"{data!r:.40} is not a {hint.__name__}")
    return hint(data) if hint in (int, float) else data
