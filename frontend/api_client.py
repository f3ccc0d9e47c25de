"""The HTTP client: the only file of the page that knows the API's URLs and httpx2."""

from __future__ import annotations

import copy
import json
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from itertools import islice
from typing import IO, Any
from urllib.parse import quote

import httpx2

from serve_app.errors import TooLargeError

DEFAULT_API_URL = "http://127.0.0.1:8000"
TIMEOUT_S = 60.0
PART_HEADER_BYTES = 1024  # a multipart form's boundary and headers around each file, at most
Json = dict[str, Any]


@dataclass(frozen=True)
class Photo:
    """One image, still encoded. ``name`` is the file's name, for display; never a path to open."""

    name: str
    data: bytes = field(repr=False)

    @cached_property
    def key(self) -> str:
        """SHA-256 of the bytes; results are cached under it."""
        return sha256(self.data).hexdigest()


class ServerDownError(Exception):
    """The API did not respond, or the response is not from the API."""


class ProblemError(Exception):
    """The API responded with an error; ``problem`` is its problem+json: title, detail, status, code."""

    def __init__(self, problem: Json) -> None:
        super().__init__(problem.get("detail") or problem.get("title"))
        self.problem = problem


class ApiClient:
    """HTTP client of one API; the environment's API_KEY, if set, authorizes every request.

    Every method raises ServerDownError where the API does not respond, and ProblemError where it responds with an
    error, unless the method says otherwise.

    Args:
        url: Base URL of the API; default: the environment's API_URL.
        transport: How requests reach the API; tests pass the application itself.
    """

    def __init__(self, url: str | None = None, transport: httpx2.BaseTransport | None = None) -> None:
        self.url = (url or os.environ.get("API_URL", DEFAULT_API_URL)).rstrip("/")
        self.public_url = os.environ.get("API_PUBLIC_URL", self.url).rstrip("/")  # users reach the API there
        key = os.environ.get("API_KEY")  # Streamlit copies its secrets into the environment
        self.needs_key = bool(key)
        self._key_option = '-H "X-API-Key: $API_KEY" ' if key else ""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx2.Client(base_url=self.url, headers=headers, timeout=TIMEOUT_S, transport=transport)
        self._http.event_hooks = {"response": [_raise_problem]}
        self._owner: dict[str, str] = {}  # header of requests about jobs

    def for_user(self, user: str) -> ApiClient:
        """Return a client that starts jobs for one of the page's users, and sees only that user's jobs."""
        client = copy.copy(self)
        client._owner = {"X-Job-Owner": user}
        return client

    def json(self, method: str, path: str, **request: Any) -> Json:
        """Send a request and return the JSON of its response, {} where that is empty."""
        with self._errors():
            response = self._http.request(method, path, **request)
            body: Json = response.json() if response.content else {}
        return body

    def content(self, path: str, **request: Any) -> bytes:
        """Return what a GET request downloads."""
        with self._errors():
            return self._http.get(path, **request).content

    def models(self) -> Json:
        """Return the served models, the limits of a request, the accepted formats and the feedback settings."""
        return self.json("GET", "/v1/models")

    def classes(self, name: str, variant: str) -> dict[str, str]:
        """Return a model's class names in the order of the class ids, with their descriptions, '' without one."""
        path, headers = f"/v1/models/{quote(name, safe='')}/labels", {"X-Model": variant}
        response = self.json("GET", path, headers=headers)
        descriptions = response.get("descriptions", {})
        return {label: descriptions.get(label, "") for label in response["labels"]}

    def status(self) -> Json:
        """Return the service's counters since its start."""
        return self.json("GET", "/v1/status")

    def not_ready_reason(self) -> str | None:
        """Return why the service is not ready, or None where it is."""
        try:
            self.json("GET", "/readyz")
        except ProblemError as error:
            return str(error)
        return None

    def classify(self, photo: Photo, explain_class: int | None = None, **parameters: Any) -> Json:
        """Classify one photo, with the class activation map of ``explain_class``, by default the most likely class.

        ``parameters`` are further ones of the request, such as ``head``.

        Returns:
            The image's result, with the response's id as ``request_id``. Where the API refused the image, ``status`` is
            ``error`` and ``error`` holds the problem; ProblemError is not raised.
        """
        params = {"explain": "cam", **parameters} | ({} if explain_class is None else {"explain_class": explain_class})
        try:
            response = self.json("POST", "/v1/classify", params=params, files=[("images", (photo.name, photo.data))])
        except ProblemError as error:
            return failed(0, photo, error.problem)
        return {**response["results"][0], "request_id": response["id"]}

    def classify_many(
        self, photos: Sequence[Photo], max_images: int, max_bytes: int, **parameters: Any
    ) -> Iterator[Json]:
        """Classify photos in as few requests as the limits allow; yield each result when it arrives.

        Every photo gets exactly one result; ``index`` is the photo's index in ``photos``. Where a request fails, or its
        stream ends early, the photos without a result get one with an ``error``; no exception is raised.
        ``max_images`` and ``max_bytes`` are the limits of one request, ``parameters`` further ones, such as ``head``.
        """
        for indices in chunks(photos, max_images, max_bytes):
            missing = set(indices)
            problem = _problem("No result", "stream_ended", "the stream ended before this image's result")
            files = [("images", (photos[i].name, photos[i].data)) for i in indices]
            try:
                headers = {"Accept": "application/jsonl"}
                for line in self._lines("POST", "/v1/classify", files=files, headers=headers, params=parameters):
                    if "index" in line:  # the last line is the summary
                        i = indices[line["index"]]
                        missing.discard(i)
                        yield {**line, "index": i}
            except ProblemError as error:
                problem = error.problem
            except ServerDownError as error:
                problem = _problem("No response", "server_down", str(error))
            yield from (failed(i, photos[i], problem) for i in sorted(missing))

    def feedback(self, request_id: str, correct: bool, label: str | None = None, photo: Photo | None = None) -> None:
        """Vote on the most likely class of a request's only photo; the service keeps ``photo`` under ``label``."""
        vote: Json = {"request_id": request_id, "correct": correct} | ({"label": label} if label else {})
        body: Json = {"json": vote}
        if photo:
            body = {"data": {**vote, "correct": str(correct)}, "files": {"image": (photo.name, photo.data)}}
        with self._errors():
            self._http.post("/v1/feedback", **body)

    def jobs(self) -> Json:
        """Return the batch jobs, newest first, and the sources and limits of a new one."""
        return self.json("GET", "/v1/jobs", headers=self._owner)

    def job(self, job: str) -> Json:
        """Return a batch job's state."""
        return self.json("GET", _job_path(job), headers=self._owner)

    def submit_zip(self, name: str, file: IO[bytes]) -> Json:
        """Start a batch job over a zip; return its state."""
        files = {"file": (name, file, "application/zip")}
        return self.json("POST", "/v1/jobs", files=files, headers=self._owner)

    def submit_prefix(self, source: str) -> Json:
        """Start a batch job over the images below a folder or prefix; return its state."""
        return self.json("POST", "/v1/jobs", json={"source": source}, headers=self._owner)

    def cancel(self, job: str) -> Json:
        """Cancel a batch job; return its state."""
        return self.json("DELETE", _job_path(job), headers=self._owner)

    def results(self, job: str, format: str) -> bytes:
        """Return all rows of a batch job as a json, jsonl, csv or parquet file."""
        return self.content(f"{_job_path(job)}/results", params={"format": format}, headers=self._owner)

    def failed_files(self, job: str, max_rows: int) -> list[Json]:
        """Return the first rows of a batch job that have an error."""
        params = {"format": "jsonl", "only": "failed"}
        lines = self._lines("GET", f"{_job_path(job)}/results", params=params, headers=self._owner)
        return list(islice(lines, max_rows))

    def curl(self, name: str) -> str:
        """Return a command that classifies a file."""
        options = f"--data-binary @{shlex.quote(name)} -H 'Content-Type: image/*'"
        return f"curl {options} {self._key_option}{self.public_url}/v1/classify"

    def curl_job(self, name: str) -> str:
        """Return a command that starts a batch job over a zip."""
        options = f"-X POST --upload-file {shlex.quote(name)} -H 'Content-Type: application/zip'"
        return f"curl {options} {self._key_option}{self.public_url}/v1/jobs"

    def python(self, name: str) -> str:
        """Return a program that classifies a file."""
        key = ', headers={"X-API-Key": os.environ["API_KEY"]}' if self._key_option else ""
        return (
            f"{'import os; ' if key else ''}import requests\n\n"
            f"photo = open({name!r}, 'rb').read()\n"
            f'response = requests.post("{self.public_url}/v1/classify", data=photo{key}).json()\n'
            'for prediction in response["results"][0]["predictions"]:\n'
            "    print(f\"{prediction['score']:6.1%}  {prediction['label']}\")\n"
        )

    def _lines(self, method: str, path: str, **request: Any) -> Iterator[Json]:
        """Yield the lines of a JSON lines response as they arrive."""
        with self._errors(), self._http.stream(method, path, **request) as response:
            yield from map(json.loads, _split_lines(response.iter_bytes()))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Raise ServerDownError where the API did not respond, or the response is not from the API."""
        try:
            yield
        except (httpx2.HTTPError, json.JSONDecodeError) as error:
            reason = str(error) or type(error).__name__
            raise ServerDownError(f"{self.url} does not respond as the API ({reason})") from error


def _problem(title: str, code: str, detail: str) -> Json:
    return {"title": title, "detail": detail, "code": code, "retryable": True}


def size_problem(photo: Photo, limits: Mapping[str, Any]) -> Json | None:
    """Return the API's problem with a photo that is too large for it, or None; such a photo need not be sent.

    ``limits`` are those of ``GET /v1/models``.
    """
    if len(photo.data) <= limits["max_image_bytes"]:
        return None
    error = TooLargeError.over("the image", len(photo.data), limits["max_image_bytes"])
    return {"title": error.title, "detail": str(error), "status": error.status, "code": error.code, "retryable": False}


def failed(index: int, photo: Photo, problem: Json) -> Json:
    """Return the result of a photo that was not classified."""
    return {"index": index, "id": photo.name, "status": "error", "error": problem}


def _split_lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines of a response; only a line feed ends one.

    httpx2's ``iter_lines`` also splits at U+0085, U+2028 and U+2029, which file names in JSON may contain.
    """
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines
    if rest:
        yield rest


def _job_path(job: str) -> str:
    return f"/v1/jobs/{quote(job, safe='')}"


def _raise_problem(response: httpx2.Response) -> None:
    if response.headers.get("content-type", "").startswith("application/problem+json"):
        response.read()
        raise ProblemError(response.json())
    response.raise_for_status()


def chunks(photos: Sequence[Photo], max_images: int, max_bytes: int) -> Iterator[list[int]]:
    """Yield groups of consecutive indices; each group keeps both limits, unless a single photo exceeds one."""
    indices: list[int] = []
    size = 0
    for i, photo in enumerate(photos):
        added = len(photo.data) + PART_HEADER_BYTES
        if indices and (len(indices) == max_images or size + added > max_bytes):
            yield indices
            indices, size = [], 0
        indices.append(i)
        size += added
    if indices:
        yield indices
