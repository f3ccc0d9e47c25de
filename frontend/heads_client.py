"""The API's routes for heads: classes that a user teaches with a few photos of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

from frontend.api_client import ApiClient, Json, Photo

PATH = "/v1/heads"
FIT_TIMEOUT_S = 300.0  # a request of 256 photos embeds 512 images, and shares the CPUs with requests to classify
Files = list[tuple[str, tuple[str, bytes]]]


class HeadsClient:
    """HTTP client of the heads of one API.

    Every method raises what ApiClient's methods raise. ``etag`` is that of the head that the user looks at: where
    somebody else has changed the head since, the API refuses the change with the code ``precondition_failed``.
    """

    def __init__(self, api: ApiClient) -> None:
        self._api = api

    def list(self) -> Json:
        """Return this key's heads and public ones, and the limits of a new one."""
        return self._api.json("GET", PATH)

    def get(self, name: str) -> Json:
        """Return a head: its taught photos and its report."""
        return self._api.json("GET", _path(name))

    def create(self, name: str, photos: Mapping[str, Iterable[Photo]]) -> Json:
        """Teach a new head from photos by class; a head of that name is not replaced."""
        return self._send("PUT", _path(name), {"If-None-Match": "*"}, photos)

    def replace(self, name: str, etag: str, photos: Mapping[str, Iterable[Photo]]) -> Json:
        """Teach a head again, from these photos alone."""
        return self._send("PUT", _path(name), {"If-Match": etag}, photos)

    def add(self, name: str, photos: Mapping[str, Iterable[Photo]]) -> Json:
        """Add photos by class to a head, whatever others have done to it meanwhile; a class may be new."""
        return self._send("POST", f"{_path(name)}/examples", {}, photos)

    def move(self, name: str, etag: str, example: str, class_name: str) -> Json:
        """Move a taught photo to another class."""
        return self._change("PATCH", _example(name, example), etag, json={"class": class_name})

    def remove(self, name: str, etag: str, example: str) -> Json:
        """Delete a taught photo."""
        return self._change("DELETE", _example(name, example), etag)

    def suggest(self, name: str, photo: Photo, class_name: str) -> Json:
        """Suggest the right class of a photo to the owner of a head."""
        return self._send("POST", _suggestions(name), {}, {class_name: [photo]})

    def suggestions(self, name: str) -> Json:
        """Return what waits for the approval of this key, which owns the head; the oldest first."""
        return self._api.json("GET", _suggestions(name))

    def approve(self, name: str, etag: str, ids: Iterable[str]) -> Json:
        """Make suggestions examples of a head."""
        return self._change("POST", f"{_suggestions(name)}/approve", etag, json={"ids": list(ids)})

    def reject(self, name: str, suggestion: str) -> None:
        """Delete a suggestion."""
        self._api.json("DELETE", f"{_suggestions(name)}/{quote(suggestion, safe='')}")

    def share(self, name: str, etag: str, public: bool) -> Json:
        """Let other API keys use a head, or no longer."""
        return self._change("PATCH", _path(name), etag, json={"public": public})

    def roll_back(self, name: str, etag: str, version: str) -> Json:
        """Make one of a head's earlier versions the one that serves."""
        return self._change("POST", f"{_path(name)}/rollback", etag, json={"version": version})

    def delete(self, name: str, etag: str) -> None:
        """Delete a head with all its versions."""
        self._change("DELETE", _path(name), etag)

    def thumbnail(self, path: str) -> bytes:
        """Return a kept photo as a small JPEG; ``path`` is the one that the API gave for it."""
        return self._api.content(path, params={"thumbnail": "true"})

    def export(self, name: str, format: str) -> bytes:
        """Return a head with its backbone as a file, ``onnx`` or ``safetensors``."""
        return self._api.content(f"{_path(name)}/export", params={"format": format}, timeout=FIT_TIMEOUT_S)

    def classify(self, photo: Photo, names: Iterable[str], explain_class: int | None = None, similar: int = 3) -> Json:
        """Classify one photo with heads; see ApiClient.classify. ``explain_class`` is a class id of the heads."""
        return self._api.classify(photo, explain_class, head=",".join(names), similar=similar)

    def _send(self, method: str, path: str, headers: Json, photos: Mapping[str, Iterable[Photo]]) -> Json:
        files: Files = [(name, (photo.name, photo.data)) for name, group in photos.items() for photo in group]
        return self._api.json(method, path, headers=headers, files=files, timeout=FIT_TIMEOUT_S)

    def _change(self, method: str, path: str, etag: str, **request: Any) -> Json:
        return self._api.json(method, path, headers={"If-Match": etag}, timeout=FIT_TIMEOUT_S, **request)


def _path(name: str) -> str:
    return f"{PATH}/{quote(name, safe='')}"


def _suggestions(name: str) -> str:
    return f"{_path(name)}/suggestions"


def _example(name: str, example: str) -> str:
    return f"{_path(name)}/examples/{quote(example, safe='')}"
