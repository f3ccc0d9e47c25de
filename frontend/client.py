"""The HTTP client; the only place that knows the API's URLs."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from typing import IO, Any
from urllib.parse import quote

import httpx2

API_URL = "http://127.0.0.1:8000"
TIMEOUT_S = 60.0
Json = dict[str, Any]


@dataclass(frozen=True)
class Photo:
    """One image as the user gave it.

    Attributes:
        name: To show; never a path to open.
        data: The encoded bytes.
        key: Hash of the bytes: what answers are remembered by.
    """

    name: str
    data: bytes = field(repr=False)
    key: str = field(init=False)

    def __post_init__(self) -> None:
        """Derive the key."""
        object.__setattr__(self, "key", sha256(self.data).hexdigest())


class ServerDownError(Exception):
    """The API does not answer, or answers with something that is not the API."""


class ProblemError(Exception):
    """The API answered with a problem.

    Attributes:
        problem: The problem+json: title, detail, status, code.
    """

    def __init__(self, problem: Json) -> None:
        """Keep the problem; the message is its detail."""
        super().__init__(problem.get("detail") or problem.get("title"))
        self.problem = problem


class Client:
    """Talks to one API.

    Args:
        url: Where the API is; by default the environment's API_URL.
        public_url: Where users reach it, for snippets; by default API_PUBLIC_URL, else ``url``.
        key: What the API asks for; by default API_KEY, in the environment or among Streamlit's secrets, which
            become environment variables.
        transport: How requests travel; tests pass the app itself.
    """

    def __init__(
        self,
        url: str | None = None,
        public_url: str | None = None,
        key: str | None = None,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        """Open no connection yet."""
        self.url = (url or os.environ.get("API_URL", API_URL)).rstrip("/")
        self.public_url = (public_url or os.environ.get("API_PUBLIC_URL", self.url)).rstrip("/")
        key = key or os.environ.get("API_KEY")
        self._needs_key = key is not None
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx2.Client(base_url=self.url, headers=headers, timeout=TIMEOUT_S, transport=transport)

    def models(self) -> Json:
        """What is served, and within which limits."""
        return self._json("GET", "/v1/models")

    def labels(self, name: str, variant: str) -> list[str]:
        """The classes of a model."""
        found: list[str] = self._json("GET", f"/v1/models/{name}/labels", headers={"X-Model": variant})["labels"]
        return found

    def status(self) -> Json:
        """What the service has done since it started."""
        return self._json("GET", "/v1/status")

    def ready(self) -> str | None:
        """None when every stage answers, else the reason why not."""
        try:
            self._json("GET", "/readyz")
        except ProblemError as error:
            return str(error)
        return None

    def classify(self, photo: Photo, explain_class: int | None = None) -> Json:
        """Classify one photo, with the heat map of one class (by default the best).

        Returns:
            The image's result, with the answer's id as ``request_id``; ``error`` in it says what is wrong with the
            image.
        """
        query: dict[str, str | int] = {"explain": "cam"}
        if explain_class is not None:
            query["explain_class"] = explain_class
        files = [("images", (photo.name, photo.data))]
        try:
            answer = self._json("POST", "/v1/classify", params=query, files=files)
        except ProblemError as error:
            return {"index": 0, "id": photo.name, "status": "error", "error": error.problem}
        result: Json = answer["results"][0]
        return {**result, "request_id": answer["id"]}

    def feedback(self, request_id: str, correct: bool, label: str | None = None, photo: Photo | None = None) -> None:
        """Say whether the answer to a request's only photo was right.

        Args:
            request_id: Of the answer.
            correct: Whether the best class was.
            label: The right class.
            photo: Where it may be kept; with a label.
        """
        said: Json = {"request_id": request_id, "correct": correct} | ({"label": label} if label else {})
        files = {"image": (photo.name, photo.data)} if photo else None
        with self._answering():
            body: Json = {"data": {**said, "correct": str(correct)}, "files": files} if files else {"json": said}
            _raise_problem(self._http.post("/v1/feedback", **body))

    def classify_many(self, photos: Sequence[Photo], max_images: int, max_bytes: int) -> Iterator[Json]:
        """Classify photos in as few requests as the limits allow; yields results as they finish.

        Every photo gets exactly one result, whatever happens; ``index`` is its place in
        ``photos``.

        Args:
            photos: In any number.
            max_images: Most images per request.
            max_bytes: Most bytes per request.
        """
        for rows in _chunks(photos, max_images, max_bytes):
            open_rows = set(rows)
            reason: Json = {}
            try:
                for line in self._stream([photos[row] for row in rows]):
                    if "index" in line:
                        row = rows[line["index"]]
                        open_rows.discard(row)
                        yield {**line, "index": row}
            except ProblemError as error:
                reason = error.problem
            except ServerDownError as error:
                reason = {"title": "No answer", "detail": str(error), "code": "server_down", "retryable": True}
            for row in sorted(open_rows):
                yield {"index": row, "id": photos[row].name, "status": "error", "error": reason or _LOST}

    def jobs(self) -> Json:
        """Batch jobs, the newest first, and what a new one may be."""
        return self._json("GET", "/v1/jobs")

    def job(self, job: str) -> Json:
        """How far a batch job is."""
        return self._json("GET", f"/v1/jobs/{quote(job, safe='')}")

    def submit_zip(self, name: str, file: IO[bytes]) -> Json:
        """Start a batch job over a zip."""
        return self._json("POST", "/v1/jobs", files={"file": (name, file, "application/zip")})

    def submit_prefix(self, source: str) -> Json:
        """Start a batch job over all below a folder or prefix."""
        return self._json("POST", "/v1/jobs", json={"source": source})

    def cancel(self, job: str) -> Json:
        """End a batch job."""
        return self._json("DELETE", f"/v1/jobs/{quote(job, safe='')}")

    def results(self, job: str, kind: str) -> bytes:
        """All rows of a batch job as a file: json, jsonl, csv or parquet."""
        with self._answering():
            response = self._http.get(f"/v1/jobs/{quote(job, safe='')}/results", params={"format": kind})
            _raise_problem(response)
            return response.content

    def failed_files(self, job: str, most: int) -> list[Json]:
        """The first files of a batch job that have an error."""
        query = {"format": "jsonl", "only": "failed"}
        with (
            self._answering(),
            self._http.stream("GET", f"/v1/jobs/{quote(job, safe='')}/results", params=query) as response,
        ):
            if response.is_error:
                response.read()
            _raise_problem(response)
            return [json.loads(line) for line in islice(response.iter_lines(), most)]

    def curl(self, name: str) -> str:
        """A command line that classifies a file."""
        return self._curl(f"--data-binary @{shlex.quote(name)} -H 'Content-Type: image/*'", "/v1/classify")

    def curl_job(self, name: str) -> str:
        """A command line that starts a batch job."""
        return self._curl(f"-X POST --upload-file {shlex.quote(name)} -H 'Content-Type: application/zip'", "/v1/jobs")

    def python(self, name: str) -> str:
        """A program that classifies a file."""
        key = ', headers={"X-API-Key": os.environ["API_KEY"]}' if self._needs_key else ""
        return (
            f"{'import os; ' if self._needs_key else ''}import requests\n\n"
            f"photo = open({name!r}, 'rb').read()\n"
            f'answer = requests.post("{self.public_url}/v1/classify", data=photo{key}).json()\n'
            'for prediction in answer["results"][0]["predictions"]:\n'
            "    print(f\"{prediction['score']:6.1%}  {prediction['label']}\")\n"
        )

    def _curl(self, what: str, path: str) -> str:
        key = '-H "X-API-Key: $API_KEY" ' if self._needs_key else ""
        return f"curl {what} {key}{self.public_url}{path}"

    def _json(self, method: str, path: str, **request: Any) -> Json:
        with self._answering():
            response = self._http.request(method, path, **request)
            _raise_problem(response)
            answer: Json = response.json()
        return answer

    def _stream(self, photos: Sequence[Photo]) -> Iterator[Json]:
        files = [("images", (photo.name, photo.data)) for photo in photos]
        accept = {"Accept": "application/jsonl"}
        with (
            self._answering(),
            self._http.stream("POST", "/v1/classify", files=files, headers=accept) as response,
        ):
            if response.is_error:
                response.read()
            _raise_problem(response)
            yield from map(json.loads, response.iter_lines())

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Whatever is no answer of the API becomes ServerDownError."""
        try:
            yield
        except (httpx2.HTTPError, json.JSONDecodeError) as error:
            reason = str(error) or type(error).__name__
            raise ServerDownError(f"{self.url} does not answer as the API ({reason})") from error


_LOST: Json = {
    "title": "No result",
    "detail": "the stream ended before this image's result came",
    "code": "lost",
    "retryable": True,
}


def _raise_problem(response: httpx2.Response) -> None:
    if response.headers.get("content-type", "").startswith("application/problem+json"):
        raise ProblemError(response.json())
    response.raise_for_status()


def _chunks(photos: Sequence[Photo], max_images: int, max_bytes: int) -> Iterable[list[int]]:
    """Group photos, in order, so that each group keeps both limits."""
    rows: list[int] = []
    size = 0
    for row, photo in enumerate(photos):
        weight = len(photo.data) + 1024  # the form's own bytes around each file
        if rows and (len(rows) == max_images or size + weight > max_bytes):
            yield rows
            rows, size = [], 0
        rows.append(row)
        size += weight
    if rows:
        yield rows
