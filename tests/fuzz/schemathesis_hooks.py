"""What schemathesis cannot know: which bytes are an image, and how many classes the demo model has."""

from __future__ import annotations

import base64
from typing import Any

import schemathesis
from hypothesis import strategies as st

PIXEL = base64.b64decode("R0lGODdhAQABAIAAAAAAAAAAACwAAAAAAQABAAACAkQBADs=")
CLASSES = 123

for kind in ("image/*", "application/octet-stream"):
    schemathesis.openapi.media_type(kind, st.just(PIXEL))
schemathesis.openapi.format("binary", st.just(PIXEL))
schemathesis.openapi.format("byte", st.just(base64.b64encode(PIXEL).decode()))


@schemathesis.hook
def map_case(context: Any, case: Any) -> Any:
    """Keep valid class ids among those that there are."""
    if case.meta.generation.mode.is_positive:
        for parameters in (case.query, case.body, isinstance(case.body, dict) and case.body.get("parameters")):
            if isinstance(parameters, dict) and isinstance(parameters.get("explain_class"), int | float):
                parameters["explain_class"] %= CLASSES
    return case
