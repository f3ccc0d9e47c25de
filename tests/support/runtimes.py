"""The CPU runtimes, as parameters of tests. One that this machine cannot run is skipped."""

from __future__ import annotations

import pytest

from serve_app.inference.runtimes.amx.tiles import permit


def amx_permitted() -> bool:
    """Whether this CPU has the matrix unit and the system lets this process use it."""
    try:
        permit()
    except ImportError:
        return False
    return True


needs_amx = pytest.mark.skipif(not amx_permitted(), reason="this machine has no AMX")
AMX = pytest.param("amx", marks=needs_amx)
CPU_RUNTIMES = ["torch", "onnxruntime", "winograd", AMX]
