"""Our client and a generated one against the running service, with keys off and on, broken photos included."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.http.auth import create_key
from serve_app.release.rollout import ServeApi, previous_config
from serve_client import AsyncClient, Client, JobRow, errors
from tests.support.configs import tuned
from tests.support.generated_client import GeneratedClient, generate
from tests.support.photos import make_photo, make_picture
from tests.support.running import Running
from tests.support.services import APPLY_TIMEOUT_S, zipped

BROKEN = {"cut.jpg": "invalid_image", "text.jpg": "unsupported_image", "empty.jpg": "invalid_image"}


@pytest.fixture(scope="module", params=["open", "keys"])
def key(request: pytest.FixtureRequest, running: Running) -> Iterator[str | None]:
    """None while the service needs no key; then a key, while it needs one."""
    if request.param == "open":
        yield None
        return
    cluster = ServeApi(running.dashboard)
    before = previous_config(cluster.state())
    key, line = create_key("alice")
    name, hashed = line.split()
    try:
        cluster.apply(tuned(before, "Ingress", keys={"hashes": {name: hashed}}), APPLY_TIMEOUT_S)
        yield key
    finally:
        cluster.apply(tuned(before, "Ingress", open=True), APPLY_TIMEOUT_S)
        cluster.apply(before, APPLY_TIMEOUT_S)


@pytest.fixture
def client(running: Running, key: str | None) -> Iterator[Client]:
    with Client(running.api, api_key=key) as client:
        yield client


@pytest.fixture
def paths(mixed_photos: dict[str, bytes], tmp_path: Path) -> list[Path]:
    """Thirty files, three of them broken, on disk."""
    for name, photo in mixed_photos.items():
        (tmp_path / name).write_bytes(photo)
    return [tmp_path / name for name in mixed_photos]


def code(error: Exception | None) -> str | None:
    return error.code if isinstance(error, errors.ProblemError) else None


def test_one_photo(client: Client, key: str | None, paths: list[Path]) -> None:
    """A file, a Pillow image and a map; a broken photo raises its exception; the model is there."""
    assert client.ready()
    result = client.classify(paths[0], top_k=3)
    assert (len(result.predictions), result.name) == (3, paths[0].name)
    assert client.classify(make_picture(), explain=True).explanation
    with pytest.raises(errors.UnsupportedImageError, match="not a JPEG"):
        client.classify(b"text")
    with pytest.raises(errors.InvalidImageError):
        client.classify(paths[-3])
    assert result.best.label in client.labels()
    assert client.usage().caller == (key and "alice")
    assert client.status()["images"]["failed"] >= 2


@pytest.mark.parametrize("ordered", [True, False])
def test_many_photos(client: Client, paths: list[Path], ordered: bool) -> None:
    """Ninety photos in two requests; each broken one fails alone with its code."""
    results = list(client.classify_many(paths * 3, ordered=ordered, top_k=1))
    assert sorted(result.index for result in results) == list(range(90))
    assert {result.name: code(result.error) for result in results} == {
        path.name: BROKEN.get(path.name) for path in paths
    }
    if ordered:
        assert [result.index for result in results] == list(range(90))
    assert len({result.request_id for result in results}) == 2


async def test_the_async_client(running: Running, key: str | None, paths: list[Path]) -> None:
    async with AsyncClient(running.api, api_key=key) as client:
        assert (await client.classify(paths[0])).ok
        codes = [code(result.error) async for result in client.classify_many(paths)]
        assert codes == [BROKEN.get(path.name) for path in paths]


def test_a_job(client: Client, mixed_photos: dict[str, bytes], tmp_path: Path) -> None:
    """A zip is uploaded, waited for and read; a row has the same classes, or the same error, as the photo alone."""
    archive = tmp_path / "photos.zip"
    archive.write_bytes(zipped(mixed_photos, 1))
    job = client.jobs.wait(client.jobs.submit(archive, top_k=2), timeout=240)
    assert (job.status, job.progress.done, job.progress.failed) == ("succeeded", 30, 3)
    rows = {row.path.removeprefix("0/"): row for row in client.jobs.results(job)}
    assert {name: row.error and row.error.code for name, row in rows.items()} == {
        name: BROKEN.get(name) for name in mixed_photos
    }
    photo: JobRow = rows["p0.png"]
    assert photo.predictions[0].score == pytest.approx(client.classify(mixed_photos["p0.png"]).best.score, abs=1e-3)
    client.jobs.download(job, tmp_path / "rows.csv", format="csv")
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 31
    assert job.id in [each.id for each in client.jobs.list().jobs]


def test_a_wrong_key(running: Running, key: str | None) -> None:
    """Where keys are on, no key and a wrong one are refused; the health route stays open."""
    for wrong in (None, "wrong"):
        with Client(running.api, api_key=wrong) as nobody:
            assert nobody.ready()
            if key is None:
                assert nobody.classify(make_photo()).ok
                continue
            for call in (lambda: nobody.classify(make_photo()), nobody.jobs.list, nobody.models):
                with pytest.raises(errors.UnauthorizedError, match="API key"):
                    call()


@pytest.fixture(scope="module")
def generated(running: Running, tmp_path_factory: pytest.TempPathFactory) -> GeneratedClient:
    return generate(running.api, tmp_path_factory.mktemp("generated"))


# Prints what the generated functions returned.
PROGRAM = """
import base64, io, json, sys
from generated import AuthenticatedClient, Client
from generated.api.images import classify
from generated.api.jobs import cancel_job, list_jobs, submit_job
from generated.api.open_inference_protocol_v_2 import v2_ready
from generated.api.service import healthz, list_models
from generated.models import ClassifyFilesBody, ClassifyJsonJsonBody, Problem, SubmitJobFilesBody
from generated.types import File

url, key, photo, archive = sys.argv[1:]
client = AuthenticatedClient(url, token=key) if key else Client(url)
def file(path, name): return File(io.BytesIO(open(path, "rb").read()), name)
raw = classify.sync(client=client, body=file(photo, "a.jpg"), top_k=2)
broken = classify.sync(client=client, body=File(io.BytesIO(b"text"), "b.jpg"))
form = classify.sync(client=client, body=ClassifyFilesBody(
    [file(photo, "a.jpg"), File(io.BytesIO(b"text"), "b.jpg")], top_k=1))
text = base64.b64encode(open(photo, "rb").read()).decode()
encoded = classify.sync(client=client, body=ClassifyJsonJsonBody.from_dict({"inputs": [{"id": "c", "b64": text}]}))
job = submit_job.sync(client=client, body=SubmitJobFilesBody(file(archive, "photos.zip")))
refused = classify.sync(client=AuthenticatedClient(url, token="wrong"), body=file(photo, "a.jpg"))
print(json.dumps({
    "health": healthz.sync(client=client).to_dict(),
    "ready": v2_ready.sync(client=client).to_dict(),
    "formats": list_models.sync(client=client)["formats"],
    "raw": [len(raw.results), len(raw.results[0].predictions), raw.results[0].predictions[0].label],
    "broken": [type(broken).__name__, broken.status, broken.code],
    "form": [[each.id, each.status.value, each.error.code if each.error else None] for each in form.results],
    "encoded": [encoded.results[0].id, encoded.results[0].predictions[0].label],
    "job": [job.source, job.id in [each.id for each in list_jobs.sync(client=client).jobs]],
    "cancelled": cancel_job.sync(job.id, client=client).status.value,
    "refused": refused.code if isinstance(refused, Problem) else None,
}))
"""


def test_a_generated_client(
    generated: GeneratedClient, running: Running, key: str | None, client: Client, tmp_path: Path
) -> None:
    """openapi-python-client makes a package that classifies each kind of body, reads problems, and starts a job."""
    photo, archive = tmp_path / "photo.jpg", tmp_path / "photos.zip"
    photo.write_bytes(make_photo())
    archive.write_bytes(zipped({"a.jpg": make_photo()}, 1))
    label = client.classify(photo).best.label
    assert json.loads(generated.run(PROGRAM, running.api, key or "", str(photo), str(archive))) == {
        "health": {"status": "ok"},
        "ready": {"ready": True},
        "formats": list(client.models().formats),
        "raw": [1, 2, label],
        "broken": ["Problem", 415, "unsupported_image"],
        "form": [["a.jpg", "ok", None], ["b.jpg", "error", "unsupported_image"]],
        "encoded": ["c", label],
        "job": ["photos.zip", True],
        "cancelled": "cancelled",
        "refused": "unauthorized" if key else None,
    }


def test_the_generator_leaves_out_only_content_types_that_it_lacks(generated: GeneratedClient) -> None:
    """`image/*` and `application/zip` stand beside types that it knows; every response is there."""
    left_out = [line for line in generated.warnings if line.startswith("Unsupported content type")]
    assert {line.rpartition(" ")[2] for line in left_out} <= {"image/*", "application/zip"}
    assert len(left_out) == sum(line.startswith("WARNING") for line in generated.warnings)
