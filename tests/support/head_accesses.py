"""Every way to reach a head of another API key."""

from __future__ import annotations

import base64
from typing import Any, NamedTuple

from tests.support.taught_photos import as_form, as_zip, photo_of, photos_of


class Access(NamedTuple):
    """A request, as httpx takes it."""

    method: str
    path: str
    options: dict[str, Any]


def accesses(name: str, version: str, example: str, suggestion: str, etag: str) -> list[Access]:
    """Return 51 requests for a head that only its owner may make.

    Args:
        name: The head's.
        version: One of its versions.
        example: The id of a taught photo.
        suggestion: The id of one that waits for the owner.
        etag: That of the head.
    """
    photo, form = photo_of("red", 70), {"files": as_form(photos_of("red", "green", count=2))}
    archive = {"content": as_zip(photos_of("red", count=2)), "headers": {"content-type": "application/zip"}}
    encoded = base64.b64encode(photo).decode()
    tensor = {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [encoded]}]}
    match, any_match = {"headers": {"if-match": etag}}, {"headers": {"if-match": "*"}}
    head, model = f"/v1/heads/{name}", f"/v2/models/{name}"
    image: dict[str, Any] = {"content": photo}
    return [
        Access("GET", head, {}),
        Access("GET", head, {"headers": {"if-none-match": etag}}),
        Access("GET", head, {"headers": {"if-none-match": "*"}}),
        Access("PUT", head, form | match),
        Access("PUT", head, form | any_match),
        Access("PATCH", head, {"json": {"public": True}}),
        Access("PATCH", head, {"json": {"public": False}} | match),
        Access("DELETE", head, {}),
        Access("DELETE", head, match),
        Access("DELETE", head, any_match),
        Access("POST", f"{head}/examples", form),
        Access("POST", f"{head}/examples", form | match),
        Access("POST", f"{head}/examples", archive),
        Access("PATCH", f"{head}/examples/{example}", {"json": {"class": "green"}}),
        Access("PATCH", f"{head}/examples/{example}", {"json": {"class": "green"}} | match),
        Access("DELETE", f"{head}/examples/{example}", {}),
        Access("DELETE", f"{head}/examples/{example}", match),
        Access("GET", f"{head}/examples/{example}/photo", {}),
        Access("GET", f"{head}/examples/{example}/photo?thumbnail=true", {}),
        Access("GET", f"{head}/suggestions", {}),
        Access("GET", f"{head}/suggestions/{suggestion}/photo", {}),
        Access("GET", f"{head}/suggestions/{suggestion}/photo?thumbnail=true", {}),
        Access("POST", f"{head}/suggestions", form),
        Access("POST", f"{head}/suggestions", archive),
        Access("POST", f"{head}/suggestions/{suggestion}/approve", {}),
        Access("POST", f"{head}/suggestions/{suggestion}/approve", match),
        Access("POST", f"{head}/suggestions/approve", {"json": {"ids": [suggestion]}}),
        Access("POST", f"{head}/suggestions/approve", {"json": {"ids": [suggestion]}} | any_match),
        Access("DELETE", f"{head}/suggestions/{suggestion}", {}),
        Access("DELETE", f"{head}/suggestions/{suggestion}", match),
        Access("POST", f"{head}/rollback", {}),
        Access("POST", f"{head}/rollback", {"json": {"version": version}}),
        Access("GET", f"{head}/export?format=safetensors", {}),
        Access("GET", f"{head}/export?format=onnx", {}),
        Access("POST", f"/v1/classify?head={name}", image),
        Access("POST", f"/v1/classify?head={name}&similar=5", image),
        Access("POST", f"/v1/classify?head={name}&explain=cam", image),
        Access("POST", "/v1/classify", {"data": {"head": name}, "files": {"images": photo}}),
        Access("POST", "/v1/classify", {"json": {"inputs": [{"b64": encoded}], "parameters": {"head": name}}}),
        Access("POST", f"/predict?head={name}", image),
        Access("POST", f"/models/{name}", image),
        Access("POST", f"/predictions/{name}", image),
        Access("PUT", f"/predictions/{name}", image),
        Access("GET", f"/models/{name}", {}),
        Access("GET", model, {}),
        Access("GET", f"{model}/ready", {}),
        Access("GET", f"{model}/config", {}),
        Access("GET", f"{model}/versions/{version}", {}),
        Access("POST", f"{model}/infer", {"json": tensor}),
        Access("POST", f"{model}/versions/{version}/infer", {"json": tensor}),
        Access("POST", f"/v1/jobs?head={name}", archive),
    ]
