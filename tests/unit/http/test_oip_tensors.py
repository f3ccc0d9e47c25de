"""Tensors of the Open Inference Protocol v2: what a request says, and every way in which it can be wrong."""

from __future__ import annotations

import base64
import json
import re
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.config import LimitsConfig
from serve_app.errors import MalformedRequestError, TooLargeError
from serve_app.http.oip_tensors import read_infer

LENGTH = "Inference-Header-Content-Length"
LIMITS = LimitsConfig(max_image_bytes=200_000, max_images=8, max_body_bytes=500_000)


def b64(photo: bytes) -> str:
    return base64.b64encode(photo).decode()


def tensor(*photos: bytes, **changes: Any) -> dict[str, Any]:
    """The input of a request in JSON; a change to ... leaves a member out."""
    plain = {"name": "image", "shape": [len(photos)], "datatype": "BYTES", "data": [b64(photo) for photo in photos]}
    return {name: value for name, value in (plain | changes).items() if value is not ...}


def binary(*photos: bytes, size: int | None = None, tail: bytes = b"", **changes: Any) -> dict[str, Any]:
    """A request with binary data after the JSON, as arguments for post; told to lie about some of it."""
    data = b"".join(struct.pack("<I", len(photo)) + photo for photo in photos) + tail
    parameters = {"binary_data_size": len(data) if size is None else size}
    head = json.dumps({"inputs": [tensor(*photos, **({"data": ..., "parameters": parameters} | changes))]}).encode()
    return {"content": head + data, "headers": {LENGTH: str(len(head))}}


def with_inputs(*inputs: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"content": json.dumps({"inputs": list(inputs)} | more).encode()}


ONE = tensor(b"x")


@pytest.mark.parametrize(
    ("send", "says"),
    [
        ({"content": b""}, "the first 0 bytes of the body are not valid JSON"),
        ({"content": b"{"}, "of the body are not valid JSON"),
        ({"content": b"\xff\xfe"}, "the JSON body is UTF-16 or UTF-32; send it as UTF-8"),
        ({"content": b"[" * 10_000}, "of the body are not valid JSON"),
        ({"content": b"[]"}, "the body: Input should be an object"),
        ({"content": b"{}"}, "inputs: Field required"),
        (with_inputs(), "send one tensor named 'image', not none"),
        (with_inputs(ONE, ONE), "send one tensor named 'image', not 'image', 'image'"),
        (with_inputs({**ONE, "name": "input"}), "send one tensor named 'image', not 'input'"),
        (with_inputs(*[{**ONE, "name": "n" * 9999}] * 9), "send one tensor named 'image', not 'nnn"),
        (with_inputs({**ONE, "datatype": "FP32", "data": [0.5] * 9}), "datatype 'FP32' is not supported; send BYTES"),
        (with_inputs({**ONE, "shape": []}), "shape [] is not supported; send [N] or [N, 1]"),
        (with_inputs({**ONE, "shape": [0]}), "shape [0] is not supported; send [N] or [N, 1]"),
        (with_inputs({**ONE, "shape": [1, 3]}), "shape [1, 3] is not supported; send [N] or [N, 1]"),
        (with_inputs({**ONE, "shape": [1, 1, 1]}), "shape [1, 1, 1] is not supported; send [N] or [N, 1]"),
        (with_inputs({**ONE, "shape": [-1]}), "inputs.0.shape.0: Input should be greater than or equal to 0"),
        (with_inputs({**ONE, "shape": [10**4000]}), "inputs.0.shape.0: Input should be less"),
        (with_inputs({**ONE, "shape": ["1"]}), "inputs.0.shape.0: Input should be a valid integer"),
        (with_inputs({**ONE, "shape": [2]}), "its shape declares 2 elements, but data has 1"),
        (with_inputs({**ONE, "data": "eA=="}), "data is not a list of image files"),
        (with_inputs({**ONE, "data": ["not base64!"]}), "image 0: an element in JSON is an image file in base64"),
        (with_inputs({**ONE, "data": [7]}), "image 0: an element in JSON is an image file in base64"),
        (with_inputs({**ONE, "data": [[["eA=="]]]}), "image 0: an element in JSON is an image file in base64"),
        (with_inputs({**ONE, "data": None}), "either data in the JSON or binary_data_size"),
        (with_inputs(tensor(b"x", data=..., parameters={"shared_memory_region": "r"})), "shared memory is not"),
        (with_inputs({**ONE, "parameters": {"binary_data_size": 5}}), "binary_data_size is 5, but 0 bytes follow"),
        (with_inputs(ONE, outputs=[{"name": "logits"}]), "no output 'logits'; the outputs are label, score, class_id"),
        (with_inputs(ONE, outputs=[{"name": "label"}] * 2), "name each output at most once"),
        (
            with_inputs(ONE, outputs=[{"name": "label", "parameters": {"classification": 2}}]),
            "only the output 'score' takes",
        ),
        (with_inputs(ONE, outputs=[{"name": "score", "parameters": {"classification": 0}}]), "classification: Input"),
        (with_inputs(ONE, outputs=[{"name": "score", "parameters": {"shared_memory_region": "r"}}]), "shared memory"),
        (with_inputs(ONE, parameters={"top_k": 0}), "parameters.top_k: Input should be greater"),
        (with_inputs(ONE, parameters={"top_k": "3"}), "parameters.top_k: Input should be a valid integer"),
        (with_inputs(ONE, id=3), "id: Input should be a valid string"),
        (binary(b"x", size=4), "binary_data_size is 4, but 5 bytes follow"),
        (binary(b"x", tail=b"\x01\x00"), "2 bytes are left after the 1 elements"),
        (binary(b"x", shape=[2]), "image 1: the binary data ends before its 4-byte length"),
        (binary(tail=struct.pack("<I", 2**32 - 1) + b"x", shape=[1]), "image 0: its length is 4294967295 bytes"),
        (binary(b"x", parameters={}), "binary_data_size is 0, but 5 bytes follow"),
        (binary(b"x", data=["eA=="]), "there are both"),
        ({**binary(b"x"), "headers": {}}, f"send its length in the header {LENGTH}"),
        ({**binary(b"x"), "headers": {LENGTH: "9"}}, "the first 9 bytes of the body are not valid JSON"),
        ({**binary(b"x"), "headers": {LENGTH: "99999"}}, "is 99999, but the body has only"),
        ({**binary(b"x"), "headers": {LENGTH: "-1"}}, "'-1' is not a number of bytes"),
        ({**binary(b"x"), "headers": {LENGTH: "9" * 5000}}, "is not a number of bytes"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_what_a_client_sends_wrong(send: dict[str, Any], says: str) -> None:
    """Each mistake is a 400 that says what was wrong and what is expected."""
    with pytest.raises(MalformedRequestError, match=re.escape(says)) as refused:
        read_infer(send["content"], send.get("headers", {}).get(LENGTH), LIMITS)
    assert len(str(refused.value)) < 250


@given(
    shape=st.lists(st.integers(-1, 3), max_size=3),
    size=st.integers(0, 30) | st.none(),
    data=st.none() | st.recursive(st.text(max_size=3) | st.floats() | st.none(), st.lists, max_leaves=4),
    tail=st.binary(max_size=24),
    length=st.none() | st.integers(0, 150).map(str) | st.text(max_size=3),
)
def test_nothing_that_is_sent_breaks_the_reader(
    shape: list[int], size: int | None, data: object, tail: bytes, length: str | None
) -> None:
    """Whatever lies, the answer is a request as described or an error of the client's."""
    parameters = {} if size is None else {"binary_data_size": size}
    head = json.dumps({"inputs": [tensor(shape=shape, data=data, parameters=parameters)]}).encode()
    for says in {length, str(len(head))}:
        try:
            request, uploads = read_infer(head + tail, says, LIMITS)
        except (MalformedRequestError, TooLargeError):
            continue
        assert len(uploads) == request.inputs[0].shape[0]
