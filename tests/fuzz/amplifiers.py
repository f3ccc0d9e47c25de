"""Small requests that would cost a server much time or memory: bodies of many tiny values, and long headers."""

from __future__ import annotations

import gzip
import random
import zlib
from collections.abc import Callable

from tests.fuzz.requests import BINARY, INFER, JSON, request

FORM = "multipart/form-data; boundary=b"


def many(element: bytes, size: int) -> bytes:
    """Return a JSON list that repeats an element until it has ``size`` bytes."""
    return b"[" + (element + b",") * (size // (len(element) + 1)) + element + b"]"


def _tensor(field: bytes, value: bytes) -> bytes:
    """Return an inference request whose tensor has this value in one of its fields."""
    fields = {b"name": b'"image"', b"shape": b"[1]", b"datatype": b'"BYTES"', b"data": b'[""]'} | {field: value}
    return b'{"inputs":[{' + b",".join(b'"%s":%s' % each for each in fields.items()) + b"}]}"


# What a JSON body consists of, by the bytes it may have.
CLASSIFY: tuple[Callable[[int], bytes], ...] = (
    lambda size: b'{"inputs":' + many(b"0", size) + b"}",
    lambda size: b'{"inputs":' + many(b"{}", size) + b"}",
    lambda size: b'{"inputs":' + many(b"null", size) + b"}",
    lambda size: b'{"inputs":' + many(b'{"b64":""}', size) + b"}",
    lambda size: b'{"inputs":' + many(b'{"b64":0,"id":0,"x":0}', size) + b"}",
    lambda size: b'{"x":' + many(b"[]", size) + b"}",
    lambda size: b'{"parameters":{' + b",".join(b'"%d":0' % n for n in range(size // 10)) + b"}}",
    lambda size: b'{"inputs":' + b"[" * (size // 2) + b"]" * (size // 2) + b"}",
    lambda size: b'{"parameters":{"top_k":' + b"9" * size + b'},"inputs":[{"b64":""}]}',
    lambda size: b'{"inputs":[{"b64":"","id":"' + b"\\u0000" * (size // 6) + b'"}]}',
    lambda size: many(b'"x"', size),
)
OIP: tuple[Callable[[int], bytes], ...] = (
    CLASSIFY[0],
    CLASSIFY[1],
    lambda size: _tensor(b"data", many(b"0", size)),
    lambda size: _tensor(b"data", many(b"[]", size)),
    lambda size: _tensor(b"data", many(b'""', size)),
    lambda size: _tensor(b"shape", many(b"1", size)),
    lambda size: _tensor(b"shape", many(b'"x"', size)),
    lambda size: _tensor(b"name", b'"' + b"n" * size + b'"'),
    lambda size: b'{"outputs":' + many(b"{}", size) + b',"inputs":[]}',
    lambda size: b'{"outputs":' + many(b'{"name":"x"}', size) + b',"inputs":[]}',
    lambda size: b'{"inputs":[],"parameters":{' + b",".join(b'"%d":0' % n for n in range(size // 10)) + b"}}",
)
FORMS: tuple[Callable[[int], bytes], ...] = (
    lambda size: b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n1\r\n' * (size // 55) + b"--b--\r\n",
    lambda size: (
        b'--b\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n\r\n' * (size // 72) + b"--b--\r\n"
    ),
    lambda size: b'--b\r\nContent-Disposition: form-data; name="top_k"\r\n\r\n' + b"1" * size + b"\r\n--b--\r\n",
    lambda size: b"--b\r\n" + b"X: y\r\n" * (size // 6) + b"\r\n\r\n--b--\r\n",
    lambda size: b"--b\r\nX: " + b"y" * size + b"\r\n\r\n\r\n--b--\r\n",
    lambda size: b"--b\r\n" * (size // 5),
)
HEADERS = (
    "X-Request-ID: " + "z" * 1_000_000,
    "X-Request-ID: " + "z" * 7000,
    "User-Agent: " + "u" * 7000,
    "X-Request-Timeout-Seconds: 0",
    "X-Request-Timeout-Seconds: -1e999",
    "X-Request-Disconnect-Disabled: ?1",
    "serve_multiplexed_model_id: " + "m" * 5000,
    "traceparent: " + "0" * 7000,
    "X-Session-Id: " + "s" * 7000,
)


def amplifier(chance: random.Random, _: bytes, size: int = 2**20) -> bytes:
    """Return a request whose body of ``size`` bytes consists of many tiny values, or of one that is far too long."""
    kind = chance.randrange(3)
    if kind == 0:
        return request(chance.choice(("/v1/classify", "/predict", "/v1/feedback")), JSON, chance.choice(CLASSIFY)(size))
    if kind == 1:
        return request(INFER, JSON, chance.choice(OIP)(size))
    return request(chance.choice(("/v1/classify", "/v1/feedback", "/v1/jobs")), FORM, chance.choice(FORMS)(size))


def packed_amplifier(chance: random.Random, _: bytes, size: int = 2**23) -> bytes:
    """Return such a request compressed: a few KiB that inflate to ``size`` bytes."""
    path, bodies = chance.choice((("/v1/classify", CLASSIFY), (INFER, OIP)))
    body = chance.choice(bodies)(size)
    packed, coding = chance.choice(((gzip.compress(body), "gzip"), (zlib.compress(body), "deflate")))
    return request(path, JSON, packed, f"Content-Encoding: {coding}")


def long_header(chance: random.Random, data: bytes) -> bytes:
    """Return a request with a header that the service or Ray Serve itself obeys, with a hostile value."""
    path = chance.choice(("/v1/classify", "/predict", INFER, "/v1/feedback", "/v1/jobs"))
    return request(path, BINARY, data, chance.choice(HEADERS))


def many_parameters(chance: random.Random, data: bytes) -> bytes:
    """Return a request with thousands of query parameters."""
    query = "&".join(f"{chance.choice(('top_k', 'x', 'explain'))}={n}" for n in range(900))
    return request(f"/v1/classify?{query}", BINARY, data)
