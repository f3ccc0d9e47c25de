"""Embeddings of the running service: torch's numbers over HTTP, for real photos, in every form."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import httpx2
import numpy as np
import pytest
import torch
from torch import nn

from frontend.components.samples import load_samples
from serve_app.inference.torch_model import load_model
from serve_app.preprocessing.transform import preprocess
from serve_client import Client
from tests.support.running import Running
from tests.support.weights import tiny
from tests.support.zips import entry, make_zip

PHOTOS = [sample.photo.data for sample in load_samples()]
FORM = [("images", (f"{i}.jpg", photo)) for i, photo in enumerate(PHOTOS)]
TOLERANCE = 1e-5  # of the float32 runtimes, one of which the service chose; docs/api.md states it


@pytest.fixture(scope="module")
def http(running: Running) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=running.api, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    """Plain torchvision's embeddings of the photos, one by one."""
    model, card = load_model(tiny())
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (card.transform.mean, card.transform.std))
    trunk = nn.Sequential(*list(model.children())[:-1], nn.Flatten())
    crops = [torch.from_numpy(np.array(preprocess(photo, card.transform, 10**7).pixels)) for photo in PHOTOS]
    with torch.inference_mode():
        return np.concatenate([trunk((crop.permute(2, 0, 1)[None] / 255 - mean) / std).numpy() for crop in crops])


def error(found: object, expected: np.ndarray) -> float:
    """Return the largest error of an embedding, relative to its norm."""
    embeddings = np.asarray(found, np.float32)
    assert embeddings.shape == expected.shape
    return float((np.linalg.norm(embeddings - expected, axis=1) / np.linalg.norm(expected, axis=1)).max())


def test_every_form_has_torchs_embeddings(http: httpx2.Client, expected: np.ndarray) -> None:
    """JSON, JSON lines, raw, .npy, beside classes, and /v2: the same numbers for real photos."""
    body = http.post("/v1/embed", files=FORM).json()
    assert error([each["embedding"] for each in body["results"]], expected) < TOLERANCE
    lines = http.post("/v1/embed", files=FORM, headers={"accept": "application/jsonl"}).text.splitlines()
    streamed = sorted(map(json.loads, lines[:-1]), key=lambda line: line["index"])
    assert error([each["embedding"] for each in streamed], expected) < TOLERANCE
    raw = http.post("/v1/embed", files=FORM, headers={"accept": "application/octet-stream"})
    assert error(np.frombuffer(raw.content, "<f4").reshape(-1, 512), expected) < TOLERANCE
    assert raw.headers["x-embedding-shape"] == f"{len(PHOTOS)},512"
    assert raw.headers["x-model-sha256"] == body["model"]["sha256"] == tiny().sha256
    npy = http.post("/v1/embed", files=FORM, headers={"accept": "application/x-npy"})
    assert error(np.load(io.BytesIO(npy.content), allow_pickle=False), expected) < TOLERANCE
    classified = http.post("/v1/classify?embed=true", files=FORM).json()["results"]
    assert error([each["embedding"] for each in classified], expected) < TOLERANCE
    assert all(len(each["predictions"]) == 10 for each in classified)


def test_the_client_embeds(running: Running, expected: np.ndarray) -> None:
    """One photo or all of them."""
    with Client(running.api) as client:
        assert error([client.embed(PHOTOS[0]).embedding], expected[:1]) < TOLERANCE
        assert error([each.embedding for each in client.embed_many(PHOTOS)], expected) < TOLERANCE


def test_a_job_embeds(running: Running, expected: np.ndarray) -> None:
    """The results of a job with `embed` hold the embeddings that /v1/embed returns."""
    with Client(running.api) as client:
        archive = make_zip(*(entry(f"{i}.jpg", data=photo) for i, photo in enumerate(PHOTOS)))
        job = client.jobs.wait(client.jobs.submit(archive, embed=True), timeout=300)
        assert (job.status, job.embed) == ("succeeded", True)
        rows = {row.path: row for row in client.jobs.results(job)}
        assert len(rows) == len(PHOTOS) + 2  # the helper's zips have two more
        assert error([rows[f"{i}.jpg"].embedding for i in range(len(PHOTOS))], expected) < TOLERANCE
