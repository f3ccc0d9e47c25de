"""Unknown parameters are ignored and named: in ``warnings`` of a response's JSON, and in its header ``X-Warnings``.

The same rule holds for the query, for form fields and for members of JSON, because browsers add fields such as a submit
button, and proxies add query parameters. A wrong value of a known parameter is an error.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator

from pydantic import BaseModel
from starlette.requests import Request

from serve_app.validation import short_repr

MAX_NAMED = 8  # unknown parameters of one place that are named; further ones are counted


def note_unknown(request: Request, place: str, names: Iterable[str], known: Collection[str]) -> None:
    """Add a warning for each name that is not known to the response.

    Args:
        request: Its state collects the warnings.
        place: What the names are, such as "query parameter".
        names: That the client sent.
        known: Names that are no cause for a warning; a similar one is suggested.
    """
    unknown = [name for name in names if name not in known]
    warnings: list[str] = request.state.warnings
    for name in unknown[:MAX_NAMED]:
        similar = difflib.get_close_matches(name[:60].lower(), known, 1)
        suggestion = f"; did you mean {similar[0]!r}?" if similar else ""
        warnings.append(f"{place} {short_repr(name)} is unknown and was ignored{suggestion}")
    if len(unknown) > MAX_NAMED:
        warnings.append(f"{len(unknown) - MAX_NAMED} further names were unknown and were ignored ({place})")


def note_unknown_query(request: Request, known: Collection[str]) -> None:
    """Add a warning for each unknown query parameter."""
    if request.scope["query_string"]:
        note_unknown(request, "query parameter", request.query_params, known)


def note_unknown_members(request: Request, body: BaseModel) -> None:
    """Add a warning for each unknown member of a JSON body that was validated with ``extra="allow"``."""
    for model in _models(body):
        note_unknown(request, "JSON member", model.model_extra or (), type(model).model_fields)


def _models(model: BaseModel) -> Iterator[BaseModel]:
    """Yield a model and its parts; of a list the first, because the others are alike."""
    yield model
    for value in (getattr(model, name) for name in type(model).model_fields):
        first = value[0] if isinstance(value, list) and value else value
        if isinstance(first, BaseModel):
            yield from _models(first)
