"""Read mappings as pydantic models, and say in one line what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

Model = TypeVar("Model", bound=BaseModel)


def parse(kind: type[Model], values: Any) -> Model:
    """Return a mapping as the given model, or raise ValueError with one line that says what is wrong."""
    try:
        return kind.model_validate(values or {})
    except ValidationError as error:
        raise ValueError(describe(error, kind)) from None


def describe(error: ValidationError, kind: type[BaseModel]) -> str:
    """Return one line that says which fields of a model are wrong, why, and which fields it has."""
    return describe_errors(error.errors(), kind.model_fields)


def describe_errors(errors: Iterable[Mapping[str, Any]], names: Iterable[str]) -> str:
    """Return one line that describes pydantic's errors and lists the known names."""
    problems = []
    for error in errors:
        where = ".".join(map(str, error["loc"]))
        if error["type"] == "extra_forbidden":
            problems.append(f"{where}: unknown name")
        elif error["type"] == "value_error":  # from a validator of ours, whose message names the value
            problems.append(f"{where}: {error['ctx']['error']}".removeprefix(": "))
        else:
            problems.append(f"{where or 'input'}: {error['msg']} (got {error['input']!r:.60})")
    return f"{'; '.join(problems)}. Known names: {', '.join(names)}"
