"""Stage 1/3 · Open Inference Protocol v2: a request's tensors -> encoded images; results -> tensors.

After KServe's "Open Inference Protocol" (REST) and Triton's binary tensor data and classification extensions.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError
from starlette.responses import Response

from serve_app.config import LimitsConfig
from serve_app.errors import MalformedRequestError, TooLargeError
from serve_app.http.schemas import Prediction
from serve_app.http.uploads import Upload, check_count, check_size, decode_base64
from serve_app.model_card import ModelRef

INPUT = "image"
OUTPUTS = {"label": "BYTES", "score": "FP32", "class_id": "INT64"}
JSON_LENGTH = "Inference-Header-Content-Length"
WINDOW_BITS = {"gzip": 31, "deflate": 15}  # zlib's names for the containers of these HTTP content codings
STRUCT_CODES = {"FP32": "f", "INT64": "q"}


Size = Annotated[int, Field(ge=0, lt=2**63)]


class _Schema(BaseModel):
    """Strict in types, open to names: parameters are how the protocol is extended, so unknown ones are ignored."""

    model_config = ConfigDict(frozen=True, strict=True)


class InferParameters(_Schema):
    """``parameters`` of a request."""

    top_k: int | None = Field(None, ge=1, le=1000, description="Classes per image; more than there are gives all.")
    binary_data_output: bool = Field(False, description="Outputs come as binary data unless they say otherwise.")


class InputParameters(_Schema):
    """``parameters`` of an input."""

    binary_data_size: Size | None = Field(None, description="Bytes of this tensor after the JSON.")


class OutputParameters(_Schema):
    """``parameters`` of a requested output."""

    binary_data: bool | None = Field(None, description="Overrides binary_data_output.")
    classification: int | None = Field(
        None, ge=1, le=1000, description="Of `score`: that many strings `score:class_id:label` instead."
    )
    shared_memory_region: str | None = Field(None, description="Refused: no memory is shared with clients.")


class InputTensor(_Schema):
    """One input of a request; ``data`` is looked at only after the datatype."""

    name: str
    shape: Annotated[list[Size], FailFast()]
    datatype: str
    parameters: InputParameters = InputParameters()
    data: Any = None


class RequestedOutput(_Schema):
    """One output that a request names."""

    name: str
    parameters: OutputParameters = OutputParameters()


class InferRequest(_Schema):
    """The JSON part of an inference request."""

    id: str | None = None
    parameters: InferParameters = InferParameters()
    inputs: Annotated[list[InputTensor], FailFast()]
    outputs: Annotated[list[RequestedOutput], FailFast()] = []


def inflate(body: bytes, coding: str, limit: int) -> bytes:
    """Undo a request's content coding.

    Args:
        body: As received.
        coding: The Content-Encoding header, empty when there is none.
        limit: Most bytes that may come out.

    Raises:
        MalformedRequestError: An unknown coding, or not a complete stream of it (400).
        TooLargeError: More would come out than the limit (413).
    """
    if coding in ("", "identity"):
        return body
    if coding not in WINDOW_BITS:
        raise MalformedRequestError(f"content encoding {coding!r:.40}: send gzip, deflate or none")
    stream = zlib.decompressobj(WINDOW_BITS[coding])
    try:
        inflated = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise MalformedRequestError(f"the body is not what its content encoding {coding!r} promises: {error}") from None
    if len(inflated) > limit:
        raise TooLargeError(f"the body inflates to more than {limit / 2**20:.1f} MB, the limit")
    if not stream.eof or stream.unused_data:
        what = "goes on after the end of" if stream.eof else "ends before the end of"
        raise MalformedRequestError(f"the body {what} its {coding} stream")
    return inflated


def read_infer(body: bytes, json_length: str | None, limits: LimitsConfig) -> tuple[InferRequest, list[Upload]]:
    """Read an inference request: what is asked for, and the images.

    Args:
        body: The JSON, and after it the binary data if there is any.
        json_length: The header that says where the JSON ends, if sent.
        limits: Of the service.

    Raises:
        MalformedRequestError: Anything in it is not what the model takes, or contradicts itself (400).
        TooLargeError: More images than the limit (413).
    """
    end = _json_end(json_length, len(body))
    try:
        request = InferRequest.model_validate_json(body[:end])
    except ValidationError as error:
        wrong = error.errors()[0]
        if wrong["type"] == "json_invalid":
            raise MalformedRequestError(
                f"{end} bytes of the body should be JSON: {wrong['msg']} "
                f"(if binary data follows the JSON, the header {JSON_LENGTH} gives the JSON's length)"
            ) from None
        where = ".".join(map(str, wrong["loc"])) or "the body"
        raise MalformedRequestError(f"{where}: {wrong['msg']}") from None
    _check_outputs(request.outputs)
    images = _read_images(request.inputs, memoryview(body)[end:], limits)
    return request, [check_size(Upload(None, image), limits.max_image_bytes) for image in images]


def write_infer(request: InferRequest, images: Sequence[Sequence[Prediction]], top_k: int, model: ModelRef) -> Response:
    """Answer an inference request.

    Args:
        request: What was asked for.
        images: Predictions of each image, best first, at least as many as any output needs.
        top_k: Classes per image in outputs without ``classification``.
        model: Which weights answered.
    """
    outputs: list[dict[str, Any]] = []
    binary = []
    for output in request.outputs or [RequestedOutput(name=name) for name in OUTPUTS]:
        asked, datatype = output.parameters, OUTPUTS[output.name]
        values: list[Any]
        if asked.classification:
            datatype = "BYTES"
            values = [f"{p.score:f}:{p.class_id}:{p.label}" for image in images for p in image[: asked.classification]]
        else:
            values = [getattr(p, output.name) for image in images for p in image[:top_k]]
        tensor = {"name": output.name, "datatype": datatype, "shape": [len(images), len(values) // len(images)]}
        if asked.binary_data or (asked.binary_data is None and request.parameters.binary_data_output):
            binary.append(_pack(datatype, values))
            outputs.append(tensor | {"parameters": {"binary_data_size": len(binary[-1])}})
        else:
            outputs.append(tensor | {"data": values})
    head = {"model_name": model.name, "model_version": model.version, "outputs": outputs}
    if request.id is not None:
        head["id"] = request.id
    text = json.dumps(head).encode()
    if not binary:
        return Response(text, media_type="application/json")
    length = {JSON_LENGTH: str(len(text))}
    return Response(b"".join([text, *binary]), headers=length, media_type="application/octet-stream")


def _json_end(json_length: str | None, size: int) -> int:
    if json_length is None:
        return size
    if not re.fullmatch("[0-9]{1,18}", json_length):
        raise MalformedRequestError(f"{JSON_LENGTH}: {json_length!r:.40} is not a number of bytes")
    if int(json_length) > size:
        raise MalformedRequestError(f"{JSON_LENGTH} is {json_length}, but the whole body has {size} bytes")
    return int(json_length)


def _check_outputs(outputs: Sequence[RequestedOutput]) -> None:
    for output in outputs:
        if output.name not in OUTPUTS:
            raise MalformedRequestError(f"no output {output.name!r:.40}; there are {', '.join(OUTPUTS)}")
        if output.parameters.classification and output.name != "score":
            raise MalformedRequestError(f"output {output.name!r}: classification is for the output 'score'")
        if output.parameters.shared_memory_region is not None:
            raise MalformedRequestError(f"output {output.name!r}: shared memory is not supported")
    if len({output.name for output in outputs}) < len(outputs):
        raise MalformedRequestError("outputs: one is named twice; name each at most once")


def _read_images(inputs: Sequence[InputTensor], tail: memoryview, limits: LimitsConfig) -> list[bytes]:
    """Encoded images from the one input tensor; ``tail`` is what follows the JSON."""
    if [tensor.name for tensor in inputs] != [INPUT]:
        names = ", ".join(f"{tensor.name!r:.40}" for tensor in inputs[:3])
        raise MalformedRequestError(f"inputs: one tensor named {INPUT!r} is expected, got {names or 'none'}")
    (tensor,) = inputs
    count, size = tensor.shape[0] if tensor.shape else 0, tensor.parameters.binary_data_size
    if tensor.datatype != "BYTES":
        raise MalformedRequestError(
            f"{INPUT}: datatype {tensor.datatype!r:.40}; BYTES is expected, each element an encoded image file"
        )
    if tensor.shape[1:] not in ([], [1]) or count < 1:
        raise MalformedRequestError(f"{INPUT}: shape {tensor.shape!s:.60}; [N] or [N, 1] is expected, for N images")
    check_count(count, limits)
    if len(tail) != (size or 0):
        raise MalformedRequestError(
            f"{INPUT}: binary_data_size is {size or 0}, but {len(tail)} bytes follow the JSON "
            f"(the header {JSON_LENGTH} says where it ends)"
        )
    if (size is None) == (tensor.data is None):
        raise MalformedRequestError(
            f"{INPUT}: either data in the JSON or binary_data_size and bytes after it; there are "
            + ("none (shared memory is not supported)" if size is None else "both")
        )
    return _from_json(tensor.data, count) if size is None else _from_binary(tail, count)


def _from_json(data: Any, count: int) -> list[bytes]:
    if not isinstance(data, list):
        raise MalformedRequestError(f"{INPUT}: data should be a list of image files in base64")
    elements = [each for row in data for each in (row if isinstance(row, list) else [row])]
    if len(elements) != count:
        raise MalformedRequestError(f"{INPUT}: its shape promises {count} elements, data has {len(elements)}")
    images = []
    for index, element in enumerate(elements):
        image = decode_base64(element) if isinstance(element, str) else TypeError("not a string")
        if not isinstance(image, bytes):
            raise MalformedRequestError(f"image {index}: in JSON, an element is an image file in base64 ({image})")
        images.append(image)
    return images


def _from_binary(data: memoryview, count: int) -> list[bytes]:
    images, at = [], 0
    for index in range(count):
        left = len(data) - at - 4
        if left < 0:
            raise MalformedRequestError(f"image {index}: the binary data ends before its 4-byte length")
        (size,) = struct.unpack_from("<I", data, at)
        if size > left:
            raise MalformedRequestError(f"image {index}: its length says {size} bytes, but {left} are left")
        images.append(bytes(data[at + 4 : at + 4 + size]))
        at += 4 + size
    if at < len(data):
        raise MalformedRequestError(f"{INPUT}: {len(data) - at} bytes are left after the {count} elements of its shape")
    return images


def _pack(datatype: str, values: Sequence[Any]) -> bytes:
    if datatype != "BYTES":
        return struct.pack(f"<{len(values)}{STRUCT_CODES[datatype]}", *values)
    texts = [str(value).encode() for value in values]
    return b"".join(part for text in texts for part in (struct.pack("<I", len(text)), text))
