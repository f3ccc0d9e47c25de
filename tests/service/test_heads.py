"""Heads on a running service: two ingress replicas, API keys, other servers' clients, and changes under load."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import tritonclient.http as triton
from huggingface_hub import InferenceClient

from serve_app.http.auth import create_key
from serve_app.release.rollout import ServeApi, previous_config
from tests.support.configs import changed, local, tuned
from tests.support.head_accesses import accesses
from tests.support.polling import wait_for
from tests.support.running import Running, start
from tests.support.services import APPLY_TIMEOUT_S
from tests.support.taught_photos import as_form, photo_of, photos_of
from tests.support.weights import TINY_LABELS, TINY_PX, publish_random

COLORS = ("blue", "green", "red")
REFITS = 20
(ALICE, ALICE_LINE), (BOB, BOB_LINE) = create_key("alice"), create_key("bob")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Two ingress replicas that require a key and keep the taught photos."""
    keys = {"hashes": dict(line.split() for line in (ALICE_LINE, BOB_LINE))}
    heads = {"folder": str(tmp_path_factory.mktemp("heads")), "keep_photos": True}
    config = tuned(changed(local(), "Ingress", num_replicas=2), "Ingress", keys=keys, heads=heads)
    with start(config, page=False) as running:
        yield running


@pytest.fixture(scope="module")
def http(service: Running) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=service.api, headers={"x-api-key": ALICE}, timeout=60) as client:
        yield client


def classify(api: str, photo: bytes, head: str = "colors") -> dict[str, Any]:
    """Classify over a connection of its own, so that any ingress replica may answer."""
    response = httpx2.post(f"{api}/v1/classify?head={head}", content=photo, headers={"x-api-key": ALICE}, timeout=60)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def said(body: dict[str, Any], head: str = "colors") -> dict[str, Any]:
    """Return what a head said about the only image."""
    answer: dict[str, Any] = body["results"][0]["heads"][head]
    return answer


def test_sixty_photos_teach_every_replica(service: Running, http: httpx2.Client) -> None:
    """3 classes of 20 photos by form; then each of 24 connections, spread over two replicas, gets the right class."""
    begin = time.perf_counter()
    response = http.put("/v1/heads/colors", files=as_form(photos_of(*COLORS, count=20)))
    taught_s = time.perf_counter() - begin
    assert response.status_code == 201, response.text
    classify(service.api, photo_of("red", 100))
    first_s = time.perf_counter() - begin
    for number in range(24):
        color = COLORS[number % 3]
        assert said(classify(service.api, photo_of(color, 101 + number)))["predictions"][0]["label"] == color
    fit_s = response.json()["report"]["fit_s"]
    print(f"taught in {taught_s:.2f} s (fit {fit_s:.2f} s), first answer after {first_s:.2f} s")


def test_no_access_to_heads_of_other_keys(service: Running, http: httpx2.Client) -> None:
    """Of 51 requests with another key none gets through, and no list shows the head."""
    (suggestion,) = http.post("/v1/heads/colors/suggestions", files={"red": photo_of("red", 350)}).json()["ids"]
    head = http.get("/v1/heads/colors").json()
    tried = accesses("colors", head["version"], head["examples"][0]["id"], suggestion, head["etag"])
    refused = []
    with httpx2.Client(base_url=service.api, headers={"x-api-key": BOB}, timeout=60) as bob:
        refused = [bob.request(each.method, each.path, **each.options).status_code for each in tried]
        assert bob.get("/v1/heads").json()["heads"] == []
        assert bob.get("/v1/models").json()["heads"] == []
    assert len(refused) == 51
    assert set(refused) <= {404, 412}
    assert http.get("/v1/heads/colors").json() == head


def test_a_suggestion_of_another_key_is_approved(service: Running, http: httpx2.Client) -> None:
    """Bob suggests a photo for Alice's public head; Alice sees it and approves, and every replica learns it."""
    path, photo = "/v1/heads/shared", photo_of("gray", 1)
    photos = photos_of("green", "red", count=8) | {"other": photos_of("blue", count=8)["blue"]}
    http.put(f"{path}?public=true", files=as_form(photos)).raise_for_status()
    with httpx2.Client(base_url=service.api, headers={"x-api-key": BOB}, timeout=60) as bob:
        answer = bob.post("/v1/classify?head=shared", content=photo).json()
        assert said(answer, "shared")["distance"] > 0.01
        sent = bob.post(f"{path}/suggestions", files=as_form({"other": [photo, photo_of("gray", 2)]}))
        assert sent.status_code == 202, sent.text
        first, second = sent.json()["ids"]
        assert bob.get(f"{path}/suggestions").status_code == 404
        assert bob.post(f"{path}/suggestions/{first}/approve").status_code == 404
        assert bob.delete(f"{path}/suggestions/{second}").status_code == 204
    (listed,) = http.get(f"{path}/suggestions").json()["suggestions"]
    assert (listed["id"], listed["class"], listed["caller"]) == (first, "other", "bob")
    assert http.get(listed["photo"]).content == photo
    head = http.get(path)
    assert head.json()["suggestions"] == 1
    approved = http.post(f"{path}/suggestions/{first}/approve", headers={"if-match": head.headers["etag"]})
    assert approved.status_code == 200, approved.text
    assert (approved.json()["photos"], approved.json()["suggestions"]) == (25, 0)
    wait_for(
        lambda: (
            {said(classify(service.api, photo, "shared"), "shared")["version"] for _ in range(8)}
            == {approved.json()["version"]}
        ),
        30,
        what="the approved photo on every replica",
    )
    assert said(classify(service.api, photo, "shared"), "shared")["distance"] < 0.01
    assert http.delete(path).status_code == 204


def test_of_two_writers_one_is_refused(http: httpx2.Client, service: Running) -> None:
    """Both saw the same state and write at once, through any replica."""
    etag = http.get("/v1/heads/colors").json()["etag"]

    def write(number: int) -> int:
        photos = {"red": photo_of("red", 300 + number)}
        headers = {"x-api-key": ALICE, "if-match": etag}
        url = f"{service.api}/v1/heads/colors/examples"
        return httpx2.post(url, files=photos, headers=headers, timeout=60).status_code

    with ThreadPoolExecutor(2) as threads:
        assert sorted(threads.map(write, range(2))) == [200, 412]


def test_other_clients_use_a_head_unchanged(service: Running, tmp_path: Path) -> None:
    """huggingface_hub, tritonclient and curl name the head where they name a model."""
    photo = photo_of("green", 110)
    path = tmp_path / "photo.jpg"
    path.write_bytes(photo)
    found = InferenceClient(model=f"{service.api}/models/colors", token=ALICE).image_classification(str(path))
    assert found[0].label == "green"
    client, headers = triton.InferenceServerClient(service.api.removeprefix("http://")), {"X-API-Key": ALICE}
    assert client.is_model_ready("colors", headers=headers)
    assert client.get_model_metadata("colors", headers=headers)["name"] == "colors"
    tensor = triton.InferInput("image", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([photo], np.object_))
    assert client.infer("colors", [tensor], headers=headers).as_numpy("label")[0][0] == b"green"
    client.close()
    url = f"{service.api}/v1/classify?head=colors"
    command = ["curl", "-sf", "-H", f"X-API-Key: {ALICE}", "-F", f"images=@{path}", url]
    assert b'"label":"green"' in subprocess.run(command, check=True, capture_output=True).stdout


def test_refits_and_new_weights_under_load(service: Running, http: httpx2.Client, tmp_path: Path) -> None:
    """20 refits and one change of weights: no request fails, and no head answers for features of other weights."""
    cluster, stop = ServeApi(service.dashboard), threading.Event()
    answers: list[tuple[str, str, str]] = []  # SHA-256 of the weights, version of the head, label
    backbones: dict[str, str] = {}  # version of the head -> SHA-256 of its weights
    errors: list[str] = []

    def ask() -> None:
        while not stop.is_set():
            response = httpx2.post(
                f"{service.api}/v1/classify?head=colors",
                content=photo_of("green", 120),
                headers={"x-api-key": ALICE},
                timeout=60,
            )
            if response.status_code != 200:
                errors.append(response.text)
                continue
            answer = said(response.json())
            answers.append((response.json()["model"]["sha256"], answer["version"], answer["predictions"][0]["label"]))

    def watch() -> None:
        while not stop.is_set():
            head = http.get("/v1/heads/colors").json()
            backbones[head["version"]] = head["backbone"]["sha256"]
            time.sleep(0.02)

    other = publish_random(tmp_path, TINY_LABELS, seed=7, version="tiny-2", resize_px=TINY_PX)
    before = previous_config(cluster.state())
    threads = [threading.Thread(target=each) for each in (ask, ask, watch)]
    for thread in threads:
        thread.start()
    try:
        for number in range(REFITS):
            if number == REFITS // 2:
                cluster.apply(tuned(before, "Classifier", weights=other.model_dump()), APPLY_TIMEOUT_S)
                wait_for(lambda: answers[-1][0] == other.sha256, 120, what="the new weights")
            grown = http.post("/v1/heads/colors/examples", files={"red": photo_of("red", 400 + number)})
            assert grown.status_code == 200, grown.text
            backbones[grown.json()["version"]] = grown.json()["backbone"]["sha256"]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        cluster.apply(before, APPLY_TIMEOUT_S)
    print(f"{len(answers)} answers, {len(errors)} errors, versions {len({version for _, version, _ in answers})}")
    assert not errors
    assert {model for model, _, _ in answers} >= {other.sha256}
    assert len({model for model, _, _ in answers}) == 2
    mixed = [each for each in answers if backbones.get(each[1], each[0]) != each[0]]
    assert not mixed
    assert {version for _, version, _ in answers} <= backbones.keys()
    assert {label for _, _, label in answers} == {"green"}
