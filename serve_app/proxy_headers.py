"""Headers between HAProxy and the ingress replicas; HAProxy removes those that a client or a replica sends.

HAProxy says when a request came and from where. A replica says how fast it works, so HAProxy can tell how long a
request would wait. Without HAProxy a client can set the first two: it can shorten its own deadline, and choose in whose
turn it waits.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping

REQUEST_START = "x-request-start"  # `t=` and Unix time in ms; a request waits in HAProxy before a replica sees it
CLIENT_ADDRESS = "x-client-address"  # IPv4 address or /64 network
BUSY_US = "x-busy-us"  # µs per request of this replica while it is busy; absent until it is known
DEADLINE_MS = "x-deadline-ms"  # longest time that a request may take, `limits.deadline_s`


def waited_s(headers: Mapping[str, str]) -> float:
    """Return the seconds since HAProxy has the request; 0 if it does not say so. Clocks of nodes have to agree."""
    start = re.fullmatch(r"t=(\d{1,15})", headers.get(REQUEST_START, ""))
    return max(0.0, time.time() - int(start[1]) / 1000) if start else 0.0
