"""Open Inference Protocol v2: reads encoded images from a request's tensors, writes results as tensors.

Follows KServe's "Open Inference Protocol" (REST) and Triton's extensions "binary tensor data" and "classification".
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError
from starlette.responses import Response

from serve_app.config import LimitsConfig
from serve_app.errors import MalformedRequestError
from serve_app.http.base64_images import read_image
from serve_app.http.json_body import check_json, max_values
from serve_app.http.schemas import ImageResult
from serve_app.http.uploads import Upload, check_count, check_size
from serve_app.image_url import ImageUrl
from serve_app.model_card import ModelRef
from serve_app.validation import short_repr

INPUT = "image"
EMBEDDING = "embedding"  # an output that is returned only if the request names it
OUTPUTS = {"label": "BYTES", "score": "FP32", "class_id": "INT64", EMBEDDING: "FP32"}
JSON_LENGTH_HEADER = "Inference-Header-Content-Length"
STRUCT_CODES = {"FP32": "f", "INT64": "q"}
Size = Annotated[int, Field(ge=0, lt=2**63)]


class _Schema(BaseModel):
    """Strict about types; unknown names are ignored, because the protocol is extended by parameters.

    Null means the default: clients write it for optional members.
    """

    model_config = ConfigDict(frozen=True, strict=True)


class InferParameters(_Schema):
    """``parameters`` of a request."""

    top_k: int | None = Field(
        None, ge=1, le=1000, description="Number of classes per image; all classes if it is larger than their number."
    )
    binary_data_output: bool | None = Field(
        False, description="Send outputs as binary data unless an output says otherwise."
    )


class InputParameters(_Schema):
    """``parameters`` of an input."""

    binary_data_size: Size | None = Field(None, description="Bytes of this tensor in the binary data after the JSON.")


class OutputParameters(_Schema):
    """``parameters`` of a requested output."""

    binary_data: bool | None = Field(None, description="Overrides binary_data_output.")
    classification: int | None = Field(
        None, ge=1, le=1000, description="Only for `score`: return this many strings `score:class_id:label` instead."
    )
    shared_memory_region: str | None = Field(None, description="Not supported.")


class InputTensor(_Schema):
    """One input of a request; ``data`` is checked after the datatype."""

    name: str
    shape: Annotated[list[Size], FailFast()]
    datatype: str
    parameters: InputParameters | None = None
    data: Any = None


class RequestedOutput(_Schema):
    """One output that the request asks for."""

    name: str
    parameters: OutputParameters | None = None


class InferRequest(_Schema):
    """The JSON part of an inference request."""

    id: str | None = None
    parameters: InferParameters | None = None
    inputs: Annotated[list[InputTensor], FailFast()]
    outputs: list[RequestedOutput] | None = Field(None, max_length=len(OUTPUTS))

    def classes(self, default: int) -> int:
        """Return the number of classes per image in outputs without ``classification``."""
        return (self.parameters and self.parameters.top_k) or default

    @property
    def embed(self) -> bool:
        """Whether an output is the embeddings."""
        return any(each.name == EMBEDDING for each in self.outputs or ())

    def most_classes(self, default: int) -> int:
        """Return the number of classes per image that the outputs need."""
        classifications = (each.parameters and each.parameters.classification for each in self.outputs or ())
        return max([self.classes(default), *(count or 0 for count in classifications)])


def read_infer(body: bytes, json_length: str | None, limits: LimitsConfig) -> tuple[InferRequest, list[Upload]]:
    """Read an inference request and its images.

    ``body`` is JSON, followed by binary data if there is any; then the header ``json_length`` says where it starts.

    Raises:
        MalformedRequestError: The request does not parse or does not fit the model (400).
        TooLargeError: Too many images, or too many values in the JSON (413).
    """
    end = _json_end(json_length, len(body))
    try:
        request = InferRequest.model_validate_json(check_json(body[:end], max_values(limits)), extra="allow")
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        if first["type"] == "json_invalid":
            raise MalformedRequestError(
                f"the first {end} bytes of the body are not valid JSON: {first['msg']} "
                f"(if binary data follows the JSON, send its length in the header {JSON_LENGTH_HEADER})"
            ) from None
        field = ".".join(map(str, first["loc"])) or "the body"
        raise MalformedRequestError(f"{field}: {first['msg']}") from None
    _check_outputs(request.outputs or ())
    images = _read_images(request.inputs, memoryview(body)[end:], limits)
    return request, [check_size(Upload(None, image), limits.max_image_bytes) for image in images]


def write_infer(request: InferRequest, results: Sequence[ImageResult], top_k: int, model: ModelRef) -> Response:
    """Write the response of an inference request.

    ``results`` have as many predictions, best first, as any output needs; ``top_k`` is the number of classes per image
    in outputs without ``classification``.
    """
    outputs: list[dict[str, Any]] = []
    binary = []
    all_binary = request.parameters and request.parameters.binary_data_output
    for output in request.outputs or [RequestedOutput(name=name) for name in OUTPUTS if name != EMBEDDING]:
        parameters, datatype = output.parameters or OutputParameters(), OUTPUTS[output.name]
        chosen = [p for each in results for p in (each.predictions or ())[: parameters.classification or top_k]]
        values: list[Any]
        if output.name == EMBEDDING:
            values = [value for each in results for value in each.embedding or ()]
        elif parameters.classification:
            datatype, values = "BYTES", [f"{p.score:f}:{p.class_id}:{p.label}" for p in chosen]
        else:
            values = [getattr(p, output.name) for p in chosen]
        tensor = {"name": output.name, "datatype": datatype, "shape": [len(results), len(values) // len(results)]}
        if all_binary if parameters.binary_data is None else parameters.binary_data:
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
    length = {JSON_LENGTH_HEADER: str(len(text))}
    return Response(b"".join([text, *binary]), headers=length, media_type="application/octet-stream")


def _json_end(json_length: str | None, size: int) -> int:
    if json_length is None:
        return size
    if not re.fullmatch("[0-9]{1,18}", json_length):
        raise MalformedRequestError(f"header {JSON_LENGTH_HEADER}: {json_length!r:.40} is not a number of bytes")
    if int(json_length) > size:
        raise MalformedRequestError(f"header {JSON_LENGTH_HEADER} is {json_length}, but the body has only {size} bytes")
    return int(json_length)


def _check_outputs(outputs: Sequence[RequestedOutput]) -> None:
    for output in outputs:
        if output.name not in OUTPUTS:
            raise MalformedRequestError(f"there is no output {output.name!r:.40}; the outputs are {', '.join(OUTPUTS)}")
        parameters = output.parameters or OutputParameters()
        if parameters.classification and output.name != "score":
            raise MalformedRequestError(
                f"output {output.name!r}: only the output 'score' takes the parameter classification"
            )
        if parameters.shared_memory_region is not None:
            raise MalformedRequestError(f"output {output.name!r}: shared memory is not supported")
    if len({output.name for output in outputs}) < len(outputs):
        raise MalformedRequestError("outputs: an output is named twice; name each output at most once")


def _read_images(inputs: Sequence[InputTensor], tail: memoryview, limits: LimitsConfig) -> Sequence[bytes | ImageUrl]:
    """Return the encoded images of the input tensor, or their URLs; ``tail`` is the binary data after the JSON."""
    if [tensor.name for tensor in inputs] != [INPUT]:
        names = ", ".join(f"{tensor.name!r:.40}" for tensor in inputs[:3])
        raise MalformedRequestError(f"inputs: send one tensor named {INPUT!r}, not {names or 'none'}")
    (tensor,) = inputs
    count = tensor.shape[0] if tensor.shape else 0
    size = tensor.parameters and tensor.parameters.binary_data_size
    if tensor.datatype != "BYTES":
        raise MalformedRequestError(
            f"{INPUT}: datatype {tensor.datatype!r:.40} is not supported; send BYTES, one image file per element"
        )
    if tensor.shape[1:] not in ([], [1]) or count < 1:
        raise MalformedRequestError(
            f"{INPUT}: shape {short_repr(tensor.shape)} is not supported; send [N] or [N, 1] for N images"
        )
    check_count(count, limits)
    if len(tail) != (size or 0):
        raise MalformedRequestError(
            f"{INPUT}: binary_data_size is {size or 0}, but {len(tail)} bytes follow the JSON "
            f"(the header {JSON_LENGTH_HEADER} gives the length of the JSON)"
        )
    if (size is None) == (tensor.data is None):
        raise MalformedRequestError(
            f"{INPUT}: send either data in the JSON or binary_data_size and bytes after the JSON; there are "
            + ("none (shared memory is not supported)" if size is None else "both")
        )
    return _from_json(tensor.data, count) if size is None else _from_binary(tail, count)


def _from_json(data: Any, count: int) -> list[bytes | ImageUrl]:
    if not isinstance(data, list):
        raise MalformedRequestError(f"{INPUT}: data is not a list of image files in base64")
    elements = [element for row in data for element in (row if isinstance(row, list) else [row])]
    if len(elements) != count:
        raise MalformedRequestError(f"{INPUT}: its shape declares {count} elements, but data has {len(elements)}")
    images = []
    for index, element in enumerate(elements):
        image = read_image(element) if isinstance(element, str) else TypeError("not a string")
        if isinstance(image, Exception):
            raise MalformedRequestError(
                f"image {index}: an element in JSON is an image file in base64, or its URL ({image})"
            )
        images.append(image)
    return images


def _from_binary(data: memoryview, count: int) -> list[bytes]:
    images, offset = [], 0
    for index in range(count):
        left = len(data) - offset - 4
        if left < 0:
            raise MalformedRequestError(f"image {index}: the binary data ends before its 4-byte length")
        (size,) = struct.unpack_from("<I", data, offset)
        if size > left:
            raise MalformedRequestError(f"image {index}: its length is {size} bytes, but only {left} bytes are left")
        images.append(bytes(data[offset + 4 : offset + 4 + size]))
        offset += 4 + size
    if offset < len(data):
        raise MalformedRequestError(
            f"{INPUT}: {len(data) - offset} bytes are left after the {count} elements of its shape"
        )
    return images


def _pack(datatype: str, values: Sequence[Any]) -> bytes:
    if datatype != "BYTES":
        return struct.pack(f"<{len(values)}{STRUCT_CODES[datatype]}", *values)
    texts = [str(value).encode() for value in values]
    return b"".join(part for text in texts for part in (struct.pack("<I", len(text)), text))
