"""Read mappings as pydantic models, and say in one line what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from reprlib import Repr
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

Model = TypeVar("Model", bound=BaseModel)
MAX_DESCRIBED = 8  # errors in one message
_REPR = Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 120  # cut at 60 afterwards, as repr() cuts in the middle


def parse(kind: type[Model], values: Any) -> Model:
    """Return a mapping as the given model, or raise ValueError with one line that says what is wrong."""
    try:
        return kind.model_validate(values or {})
    except ValidationError as error:
        raise ValueError(describe(error, kind)) from None


def describe(error: ValidationError, kind: type[BaseModel]) -> str:
    """Return one line that says which fields of a model are wrong, why, and which fields it has."""
    return describe_errors(error.errors(), kind.model_fields)


def describe_errors(errors: Sequence[Mapping[str, Any]], names: Iterable[str]) -> str:
    """Return one line that describes pydantic's first errors and lists the known names."""
    problems = []
    for error in errors[:MAX_DESCRIBED]:
        where = ".".join(map(str, error["loc"]))
        if error["type"] == "extra_forbidden":
            problems.append(f"{where}: unknown name")
        elif error["type"] == "value_error":  # from a validator of ours, whose message names the value
            problems.append(f"{where}: {error['ctx']['error']}".removeprefix(": "))
        else:
            problems.append(f"{where or 'input'}: {error['msg']} (got {short_repr(error['input'])})")
    if len(errors) > MAX_DESCRIBED:
        problems.append(f"and {len(errors) - MAX_DESCRIBED} further errors")
    return f"{'; '.join(problems)}. Known names: {', '.join(names)}"


def short_repr(value: object) -> str:
    """Return the first 60 characters of a value's repr, without making the repr of all of a large value."""
    return f"{_REPR.repr(value):.60}"
