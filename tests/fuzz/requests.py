"""Broken and hostile HTTP requests around an image, as bytes for a socket."""

from __future__ import annotations

import base64
import gzip
import json
import random
import struct
import zlib

JSON, BINARY = "application/json", "application/octet-stream"
INFER = "/v2/models/resnet18/infer"
UPLOADS = ("/v1/classify", "/predict", "/", "/predictions/resnet18")
PATHS = (*UPLOADS, INFER)
TYPES = (
    "image/jpeg",
    "image/",
    "image/svg+xml",
    BINARY,
    "text/html",
    "application/zip",
    "",
    ";;;",
    "multipart/form-data",
    JSON,
)


def request(path: str, kind: str, body: bytes, *more: str, length: int | None = None) -> bytes:
    """Return a POST with a body; ``length`` overrides the true Content-Length."""
    size = len(body) if length is None else length
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Connection: close", f"Content-Type: {kind}", *more]
    return "\r\n".join([*lines, f"Content-Length: {size}", "", ""]).encode("latin-1") + body


def chunked(path: str, kind: str, pieces: bytes) -> bytes:
    """Return a chunked POST; ``pieces`` holds the chunk sizes too."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Connection: close", f"Content-Type: {kind}"]
    return "\r\n".join([*lines, "Transfer-Encoding: chunked", "", ""]).encode() + pieces


def infer(data: bytes, **more: object) -> bytes:
    """Return the JSON of an inference request with one image."""
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [base64.b64encode(data).decode()]}
    return json.dumps({"inputs": [tensor | more]}).encode()


def image_as_body(chance: random.Random, data: bytes) -> bytes:
    query = chance.choice(
        ("", "?top_k=3", "?explain=cam", "?top_k=999999999999999999999", "?explain=%00", "?x=" + "y" * 4000)
    )
    return request(chance.choice(UPLOADS) + query, chance.choice(TYPES), data)


def image_in_json(chance: random.Random, data: bytes) -> bytes:
    b64 = base64.b64encode(data).decode()
    spoilt = chance.choice((b64, b64[:-1], b64 + "=", b64.replace("A", "\n"), "\u0660" + b64, "%" * 50, "", b64 + "\0"))
    return request(
        "/v1/classify",
        JSON,
        json.dumps({"inputs": [{"id": chance.choice((None, "\ud800", "x" * 999)), "b64": spoilt}]}).encode(),
    )


def strange_json(chance: random.Random, data: bytes) -> bytes:
    inputs = b'"inputs":[{"b64":"' + base64.b64encode(data) + b'"}]'
    body = chance.choice(
        (
            b"[" * 100_000,
            b'{"a":' * 50_000,
            b'{"inputs":' + b"[" * 5000 + b"]" * 5000 + b"}",
            b"{" + inputs + b',"parameters":{"top_k":1e999}}',
            b"{" + inputs + b',"parameters":{"top_k":NaN}}',
            b"{" + inputs + b',"parameters":{"min_score":-Infinity}}',
            b"{" + inputs + b',"parameters":{"top_k":' + b"9" * 5000 + b"}}",
            b"{" + inputs + b',"inputs":[]}',
            b"{" + inputs + b',"parameters":{"top_k":2,"top_k":3}}',
            b'{"inputs":[' + b"{}," * 5000 + b"{}]}",
            b'{"inputs":[' + b"0," * 500_000 + b"0]}",
            b"{" + inputs + b',"parameters":{' + b'"a":1,' * 100_000 + b'"b":1}}',
            b'{"inputs":[{"name":"image","datatype":"BYTES","shape":[1],"data":[' + b"[]," * 300_000 + b"[]]}]}",
            b"{" + inputs,
            b"\xff\xfe" + data,
            b"null",
            b"\xef\xbb\xbf{}",
            b'"' + b"\\u0000" * 1000 + b'"',
            b"",
        )
    )
    return request(chance.choice(PATHS), JSON, body)


def form(chance: random.Random, data: bytes) -> bytes:
    part = b'--b\r\nContent-Disposition: form-data; name="images"; filename="a.jpg"\r\n\r\n' + data + b"\r\n"
    body, kind = chance.choice(
        (
            (part + b"--b--\r\n", "multipart/form-data; boundary=b"),
            (part, "multipart/form-data; boundary=b"),
            (part + part[:-9], "multipart/form-data; boundary=b"),
            (part + b"\r\n--bx" * 100_000 + b"\r\n--b--", "multipart/form-data; boundary=b"),
            (part + b"--b--\r\n", "multipart/form-data"),
            (part + b"--b--\r\n", "multipart/form-data; boundary="),
            (part + b"--b--\r\n", "multipart/form-data; boundary=" + "c" * 5000),
            (part + b"--b--\r\n", "multipart/form-data; boundary=\xe9"),
            (b"--b\r\n" * 1000 + part + b"--b--", "multipart/form-data; boundary=b"),
            (
                b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n1\r\n' * 3000 + b"--b--",
                "multipart/form-data; boundary=b",
            ),
            (part * 5000 + b"--b--", "multipart/form-data; boundary=b"),
            (part.replace(b"images", b"n" * 60_000) + b"--b--", "multipart/form-data; boundary=b"),
            (part.replace(b"a.jpg", b"../../\0" * 500) + b"--b--", "multipart/form-data; boundary=b"),
            (part.replace(b"\r\n\r\n", b"\r\nX: y" * 2000 + b"\r\n\r\n") + b"--b--", "multipart/form-data; boundary=b"),
            (part.replace(b'name="images"; ', b"") + b"--b--", "multipart/form-data; boundary=b"),
            (
                b"--b\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n--c\r\n" + part + b"--c--\r\n--b--",
                "multipart/form-data; boundary=b",
            ),
            (part.replace(b"filename", b"filename*=utf-8''%ff; x") + b"--b--", "multipart/form-data; boundary=b"),
            (b"", "multipart/form-data; boundary=b"),
        )
    )
    return request(chance.choice(UPLOADS), kind, body)


def tensors(chance: random.Random, data: bytes) -> bytes:
    """Return a request whose binary tensors have wrong sizes."""
    size = chance.choice((len(data), len(data) - 1, len(data) + 1, 0, 2**32 - 1, 2**31))
    tail = struct.pack("<I", size % 2**32) + data
    claimed = chance.choice((len(tail), len(tail) + 1, 0, 2**62, -1, 10**30))
    shape = chance.choice(([1], [1, 1], [2], [-1], [2**62], [], [1] * 1000, [1.5], "x", None))
    tensor = {"name": "image", "shape": shape, "datatype": "BYTES", "parameters": {"binary_data_size": claimed}}
    head = json.dumps({"inputs": [tensor] * chance.choice((1, 1, 1, 2, 500))}).encode()
    length = chance.choice((str(len(head)), str(len(head)), "0", "-1", "9" * 30, "1e3", "\xb2", ""))
    return request(INFER, BINARY, head + tail, f"Inference-Header-Content-Length: {length}")


def compressed(chance: random.Random, data: bytes) -> bytes:
    """Return a request with a valid or broken content coding, or a compression bomb."""
    body = infer(data)
    bomb = gzip.compress(bytes(2**27), 9) if chance.random() < 0.05 else gzip.compress(bytes(2**20))
    packed, coding = chance.choice(
        (
            (gzip.compress(body), "gzip"),
            (gzip.compress(body)[:-5], "gzip"),
            (gzip.compress(body) + gzip.compress(b" "), "gzip"),
            (gzip.compress(b'{"inputs":[' + b"0," * 2**22 + b"0]}"), "gzip"),
            (gzip.compress(gzip.compress(body)), "gzip, gzip"),
            (zlib.compress(body), "deflate"),
            (bomb, "gzip"),
            (data, "gzip"),
            (data, "br"),
            (b"", "gzip"),
        )
    )
    return request(chance.choice(PATHS), chance.choice((JSON, "image/jpeg")), packed, f"Content-Encoding: {coding}")


def strange_headers(chance: random.Random, data: bytes) -> bytes:
    line = chance.choice(
        (
            "X: " + "y" * 7000,
            "X: " + "y" * 100_000,
            "\r\n".join(f"X-{i}: y" for i in range(90)),
            "\r\n".join(f"X-{i}: y" for i in range(2000)),
            "X-Request-ID: " + "z" * 3000,
            "X-Request-ID: \xff\xfe<script>",
            "Accept: " + "*/*," * 1000,
            "Accept: application/jsonl",
            "Content-Length: 5",
            "Expect: 100-continue",
            "Range: bytes=0-1",
            "Host: evil",
            "Upgrade: websocket",
            "Bad Header: x",
            ": empty",
        )
    )
    return request(chance.choice(PATHS), "image/jpeg", data, line)


def cut_short(chance: random.Random, data: bytes) -> bytes:
    """Return a request whose body ends before its declared length, or before the last chunk."""
    complete = chance.choice(
        (
            request("/v1/classify", "image/jpeg", data, length=len(data) + 1000),
            request("/v1/classify", "image/jpeg", b"", length=1000),
            request("/v1/classify", "multipart/form-data; boundary=b", b"--b\r\n", length=1000),
            chunked("/v1/classify", "image/jpeg", b"%x\r\n" % (len(data) + 9) + data),
            chunked("/v1/classify", "image/jpeg", b"%x\r\n" % len(data) + data + b"\r\n"),
        )
    )
    return complete


def cut_anywhere(chance: random.Random, data: bytes) -> bytes:
    complete = request("/v1/classify", "image/jpeg", data)
    return complete[: chance.randrange(1, len(complete))]


def cut_nonsense(chance: random.Random, data: bytes) -> bytes:
    """Return bytes that are not valid HTTP."""
    return chance.choice(
        (
            data + b"\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00" + data,
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"POST /v1/classify\r\n\r\n",
            b"POST /v1/classify HTTP/9.9\r\n\r\n",
            chunked("/v1/classify", "image/jpeg", b"zz\r\n" + data),
            chunked("/v1/classify", "image/jpeg", b"-1\r\n" + data),
            chunked("/v1/classify", "image/jpeg", b"f" * 20 + b"\r\n" + data),
            request("/v1/classify", "image/jpeg", data, length=-1),
            request("/v1/classify", "image/jpeg", data, "Transfer-Encoding: chunked"),
            request("/v1/classify", "image/jpeg", data, "Transfer-Encoding: nonsense"),
        )
    )


def lying_long(_: random.Random, data: bytes) -> bytes:
    """Return a request that declares more bytes than the limit."""
    return request("/v1/classify", "image/jpeg", data, length=2**30)


def chunks(chance: random.Random, data: bytes) -> bytes:
    """Return a valid chunked request in pieces of random sizes."""
    pieces, at = b"", 0
    while at < len(data):
        size = chance.randint(1, 500)
        part = data[at : at + size]
        pieces += b"%x;ext=1\r\n" % len(part) + part + b"\r\n"
        at += size
    return chunked("/v1/classify", "image/jpeg", pieces + b"0\r\nTrailer: x\r\n\r\n")


def half_closed(chance: random.Random, data: bytes) -> bytes:
    """Return a complete request; the sender then closes its half of the connection."""
    return request(chance.choice(PATHS), chance.choice(("image/jpeg", JSON, "")), data)


def slow(chance: random.Random, data: bytes) -> bytes:
    """Return a request that is sent in pieces."""
    return chance.choice((request("/v1/classify", "image/jpeg", data), chunks(chance, data), form(chance, data)))


def feedback(chance: random.Random, data: bytes) -> bytes:
    """Return a vote with an image, in JSON or as a form."""
    b64 = base64.b64encode(data).decode()
    label = chance.choice(("cat", "", None, 0, "l" * 10_000, ["cat"]))
    vote = {"request_id": chance.choice(("r", "r" * 5000, None)), "image": b64, "b64": b64, "label": label}
    fields = b"".join(
        b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name.encode(), str(value).encode())
        for name, value in vote.items()
    )
    part = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n' + data + b"\r\n--b--"
    return chance.choice(
        (
            request("/v1/feedback", JSON, json.dumps(vote).encode()),
            request("/v1/feedback", "multipart/form-data; boundary=b", fields + part),
            request("/v1/feedback", "multipart/form-data; boundary=b", part),
        )
    )


def strange_path(chance: random.Random, data: bytes) -> bytes:
    path = chance.choice(
        (
            "/v1/%2e%2e/",
            "/" + "a" * 3000,
            "/v1/classify/../x",
            "/v2/models/%00/infer",
            "/v2/models/\xe9/infer",
            "//",
            "*",
            "/v1/models/" + "%ff" * 50 + "/labels",
        )
    )
    return request(path, "image/jpeg", data)
