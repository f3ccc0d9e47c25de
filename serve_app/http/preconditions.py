"""The request headers If-Match and If-None-Match (RFC 9110, 13.1)."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from serve_app.errors import PreconditionFailedError

ANY = "*"


@dataclass(frozen=True)
class Preconditions:
    """What a request expects of the resource that it reads or changes."""

    match: tuple[str, ...] = ()  # ETags of which the resource has one; ``*``: any
    none_match: tuple[str, ...] = ()  # ETags of which it has none

    @classmethod
    def of(cls, request: Request) -> Preconditions:
        """Read the headers."""
        return cls(_tags(request, "if-match"), _tags(request, "if-none-match"))

    @property
    def creates(self) -> bool:
        """Whether the request may only make a resource that does not exist."""
        return ANY in self.none_match

    def check(self, etag: str | None) -> None:
        """Raise PreconditionFailedError (412) unless a resource with this ETag, None for a missing one, is expected."""
        if self.match and (etag is None or (ANY not in self.match and etag not in self.match)):
            raise PreconditionFailedError(
                f"If-Match: {', '.join(self.match):.100} is not {etag or 'there'}: somebody else changed it; "
                "read it again"
            )
        if self.creates and etag is not None:
            raise PreconditionFailedError("If-None-Match: *: it exists already; send If-Match to replace it")

    def is_cached(self, etag: str) -> bool:
        """Return whether the client has this state already, so that a GET answers 304."""
        return ANY in self.none_match or etag in (tag.removeprefix("W/") for tag in self.none_match)


def _tags(request: Request, name: str) -> tuple[str, ...]:
    return tuple(tag.strip() for value in request.headers.getlist(name) for tag in value.split(",") if tag.strip())
