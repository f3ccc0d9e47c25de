"""Tell errors that pass, such as a full disk or a source that is away, from those that come again at every try."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from serve_app.errors import ServiceError, SourceUnavailableError

# Wrong names, missing files and missing rights: a later try meets them again.
PERMANENT = {
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.EXDEV, errno.ENOTEMPTY),
}
# pyarrow's errors of buckets have no errno; they hold the name of AWS's or gRPC's error, or the HTTP status.
PASSING_TEXT = re.compile(
    r"AWS Error (NETWORK_CONNECTION|SLOW_DOWN|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|REQUEST_TIMEOUT|THROTTLING)"
    r"|HTTP status (429|5\d\d)|\b(UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED)\b"
)


def is_passing(error: OSError) -> bool:
    """Return whether an error may be gone at a later try."""
    if error.errno is None:
        return isinstance(error, ConnectionError | TimeoutError) or bool(PASSING_TEXT.search(str(error)))
    return error.errno not in PERMANENT


def describe_outage(error: Exception) -> str | None:
    """Return one sentence, without paths, for an error that passes; None for any other error."""
    if isinstance(error, ServiceError):
        return str(error) if error.retryable else None
    if isinstance(error, OSError) and is_passing(error):
        return f"a file cannot be read or written now: {error.strerror or ' '.join(str(error).split())[:300]}"
    return None


@contextmanager
def naming_outages() -> Iterator[None]:
    """Raise SourceUnavailableError in place of an OSError that passes; other errors stay as they are."""
    try:
        yield
    except OSError as error:
        if sentence := describe_outage(error):
            raise SourceUnavailableError(sentence) from error
        raise
