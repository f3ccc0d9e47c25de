"""The operations of both clients against the real API."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import numpy as np
import pytest

from serve_app.config import FeedbackConfig, KeysConfig, LimitsConfig
from serve_app.errors import OverloadedError
from serve_app.files import read_stored
from serve_app.http.auth import ApiKeys, hash_key
from serve_app.observability.feedback_store import IMAGES, VOTES, Feedback, Vote
from serve_client import AsyncClient, Client, ImageResult, UnreadableImageError, errors
from tests.support.local_service import LocalService
from tests.support.photos import encode, make_photo, make_picture
from tests.unit.client.conftest import URL

PHOTO = make_photo()
LABELS = ["ant", "bee", "cow", "dog", "eel", "fox"]  # of the random weights
MIXED = [PHOTO, b"text", make_photo(1), PHOTO[: len(PHOTO) // 2], make_photo(2), b"", make_photo(3)]
CODES = [None, "unsupported_image", None, "invalid_image", None, "invalid_image", None]


def codes(results: list[ImageResult]) -> list[str | None]:
    """Return each result's code, by index."""
    by_index = {result.index: result.error for result in results}
    found = [by_index[index] for index in range(len(results))]
    return [error.code if isinstance(error, errors.ProblemError) else None for error in found]


async def collect(results: AsyncIterator[ImageResult]) -> list[ImageResult]:
    return [result async for result in results]


def test_classifies_one_photo(client: Client, tmp_path: Path) -> None:
    """Every part of the answer is there, typed."""
    path = tmp_path / "cat.jpg"
    path.write_bytes(PHOTO)
    result = client.classify(path, top_k=2)
    assert (result.ok, result.name, result.index, result.version) == (True, "cat.jpg", 0, "random")
    assert [prediction.label in LABELS for prediction in result.predictions] == [True, True]
    assert result.best == result.predictions[0]
    assert result.image is not None
    assert (result.image.format, result.image.width, result.image.height) == ("jpeg", 320, 240)
    assert result.uncertainty is not None
    assert result.uncertainty.abstain is False
    assert set(result.timings_ms) == {"decode", "queue", "model"}
    assert result.request_id


def test_parameters_reach_the_service(client: Client) -> None:
    """The map of a class explains its logit; a high `min_score` leaves no class; a wrong value is an exception."""
    explanation = client.classify(PHOTO, explain_class=2).explanation
    assert explanation is not None
    assert (explanation.class_id, explanation.grid) == (2, (3, 3))
    assert np.mean(explanation.values) + explanation.bias == pytest.approx(explanation.logit, abs=1e-3)
    assert client.classify(PHOTO).explanation is None
    with pytest.raises(LookupError, match="min_score"):
        _ = client.classify(PHOTO, min_score=1).best
    with pytest.raises(errors.InvalidParameterError, match="top_k"):
        client.classify(PHOTO, top_k=0)
    with pytest.raises(errors.UnknownModelError, match="'blue'"):
        client.classify(PHOTO, model="blue")


def test_pillow_images_and_arrays_equal_their_file(client: Client) -> None:
    """A picture gets the same scores as a PNG file, as a Pillow image and as an array."""
    picture = make_picture()
    expected = client.classify(encode(picture, "PNG")).predictions
    assert client.classify(picture).predictions == expected
    assert client.classify(np.asarray(picture)).predictions == expected


@pytest.mark.parametrize(
    ("image", "kind", "status"),
    [
        (b"text", errors.UnsupportedImageError, 415),
        (PHOTO[: len(PHOTO) // 2], errors.InvalidImageError, 422),
        (b"", errors.MalformedRequestError, 400),
    ],
)
def test_broken_photos_raise_their_exception(
    client: Client, image: bytes, kind: type[errors.ProblemError], status: int
) -> None:
    with pytest.raises(kind) as raised:
        client.classify(image)
    assert (raised.value.status, raised.value.retryable) == (status, False)
    assert raised.value.detail
    assert raised.value.request_id


def test_many_images_in_order(client: Client) -> None:
    """Seven images at four per request: each gets one result under its own index; broken ones get an error."""
    results = list(client.classify_many(MIXED, top_k=1))
    assert [result.index for result in results] == list(range(7))
    assert codes(results) == CODES
    assert {len(result.predictions) for result in results if result.ok} == {1}
    assert len({result.request_id for result in results}) == 2
    with pytest.raises(errors.UnsupportedImageError):
        _ = results[1].best


def test_results_equal_those_of_single_requests(client: Client) -> None:
    for result in client.classify_many([MIXED[0], MIXED[2]]):
        single = client.classify(MIXED[2 * result.index])
        assert [p.class_id for p in result.predictions] == [p.class_id for p in single.predictions]


def test_an_unreadable_file_fails_alone(client: Client, tmp_path: Path) -> None:
    """A missing file among others has a result with an error; alone it raises."""
    good = tmp_path / "good.jpg"
    good.write_bytes(PHOTO)
    missing = tmp_path / "missing.jpg"
    first, second, third = client.classify_many([good, missing, good])
    assert (first.ok, second.ok, third.ok) == (True, False, True)
    assert second.name == "missing.jpg"
    assert isinstance(second.error, UnreadableImageError)
    with pytest.raises(UnreadableImageError, match=r"missing\.jpg: No such file"):
        client.classify(missing)


def test_names_with_separators_of_unicode(client: Client, tmp_path: Path) -> None:
    """A file name with a line separator, which JSON does not escape, does not cut a line of the stream."""
    path = tmp_path / "a\u2028b\x85c.jpg"
    path.write_bytes(PHOTO)
    assert [(result.name, result.ok) for result in client.classify_many([path, path])] == [(path.name, True)] * 2


def test_images_are_read_as_they_are_sent(client: Client) -> None:
    """After the first result, only the images of the first request and the next image have been read."""
    read = 0

    def images() -> Iterator[bytes]:
        nonlocal read
        for _ in range(100):
            read += 1
            yield PHOTO

    results = client.classify_many(images())
    next(results)
    assert read == 5
    results.close()  # type: ignore[attr-defined] # a generator, which ends with its caller


def test_a_body_over_the_limit_fails_its_image(client: Client, service: LocalService) -> None:
    """A photo over the limit of a body is sent alone and fails with the reason; the others are classified."""
    service.configure(limits=LimitsConfig(max_images=4, max_body_bytes=100_000))
    large = encode(make_picture(400, 400), "BMP")
    results = list(client.classify_many([PHOTO, large, PHOTO]))
    assert codes(results) == [None, "too_large", None]


def test_progress_shows_images_and_failures(client: Client, capfd: pytest.CaptureFixture[str]) -> None:
    list(client.classify_many([PHOTO, b"text"], progress=True))
    shown = capfd.readouterr().err
    assert "2/2" in shown
    assert "failed=1" in shown


def test_models_labels_usage_and_status(client: Client) -> None:
    models = client.models()
    assert (models.models[0].name, models.models[0].classes) == ("resnet18", 6)
    assert (models.limits.max_images, "jpeg" in models.formats, models.feedback) == (4, True, None)
    assert client.labels() == client.labels("resnet18") == LABELS
    with pytest.raises(errors.UnknownModelError):
        client.labels("vgg")
    client.classify(PHOTO)
    assert client.usage().images.used == 1
    assert client.status()["images"]["ok"] == 1
    assert client.ready()


def test_a_service_without_its_model_is_not_ready(client: Client, service: LocalService) -> None:
    """`ready` returns at once instead of repeating the request."""
    service.client.failing = OverloadedError("not yet")
    service.router.cards().clear()
    service.router._variant("main").state = None
    assert client.ready() is False


def test_keys(transport: httpx2.BaseTransport, service: LocalService) -> None:
    """With keys on, the right key is accepted, and no key and a wrong key raise UnauthorizedError, also for many."""
    service.keys = ApiKeys(KeysConfig(hashes={"alice": hash_key("secret")}))
    with Client(URL, api_key="secret", transport=transport) as alice:
        assert alice.classify(PHOTO).ok
        assert codes(list(alice.classify_many(MIXED))) == CODES
        assert alice.usage().caller == "alice"
    for key in (None, "wrong"):
        with Client(URL, api_key=key, transport=transport) as nobody:
            with pytest.raises(errors.UnauthorizedError, match="API key"):
                nobody.classify(PHOTO)
            with pytest.raises(errors.UnauthorizedError):
                next(nobody.classify_many([PHOTO]))
            assert nobody.ready()


def test_feedback(client: Client, service: LocalService, tmp_path: Path) -> None:
    """Votes name the request and the image's place in it; the image goes along where the service keeps images."""
    with pytest.raises(errors.FeedbackOffError):
        client.feedback("req_1", correct=True)
    service.feedback = Feedback(FeedbackConfig(folder=str(tmp_path), keep_images=True))
    *_, last = client.classify_many([PHOTO, make_photo(1)])
    client.feedback(last, correct=False, label="cow", image=make_photo(1))
    client.feedback(last, correct=True)
    votes = [read_stored(Vote, path) for path in (tmp_path / VOTES).iterdir()]
    assert {(vote.request_id, vote.index) for vote in votes} == {(last.request_id, 1)}
    assert sorted((vote.correct, vote.label) for vote in votes) == [(False, "cow"), (True, None)]
    assert [path.read_bytes() for path in (tmp_path / IMAGES / "cow").iterdir()] == [make_photo(1)]
    with pytest.raises(errors.InvalidParameterError, match="cat"):
        client.feedback(last, label="cat")
    (unsent,) = client.classify_many([tmp_path / "missing.jpg"])
    with pytest.raises(ValueError, match="was not sent"):
        client.feedback(unsent, correct=True)


async def test_the_async_client_does_the_same(async_client: AsyncClient, tmp_path: Path) -> None:
    """Files, many images in any order, an asynchronous source, errors, labels."""
    path = tmp_path / "cat.jpg"
    path.write_bytes(PHOTO)
    result = await async_client.classify(path)
    assert (result.ok, result.name) == (True, "cat.jpg")
    with pytest.raises(errors.UnsupportedImageError):
        await async_client.classify(b"text")

    async def source() -> AsyncIterator[bytes]:
        for image in MIXED:
            yield image

    assert codes(await collect(async_client.classify_many(source(), ordered=False))) == CODES
    assert codes(await collect(async_client.classify_many(MIXED))) == CODES
    assert await async_client.labels() == LABELS
    assert await async_client.ready()


async def test_a_sync_client_inside_an_event_loop(transport: httpx2.BaseTransport) -> None:
    """Notebooks run a loop in the thread that calls; the sync client does not use it."""
    with Client(URL, transport=transport) as client:
        assert codes(list(client.classify_many(MIXED))) == CODES


@pytest.mark.parametrize("url", ["localhost:8000", "", "ftp://localhost"])
def test_an_address_without_http_is_refused(url: str) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(ValueError, match="is not the address of a service"):
            kind(url)


def test_embeds_photos(client: Client) -> None:
    """One photo or many: 512 numbers each, the same as `classify` adds on request; a failed image has its error."""
    one = client.embed(PHOTO)
    assert (one.ok, one.version, one.predictions) == (True, "random", ())
    assert one.embedding is not None
    assert len(one.embedding) == 512
    many = list(client.embed_many(MIXED))
    assert codes(many) == CODES
    assert [each.embedding is not None for each in many] == [code is None for code in CODES]
    for same in (many[0], client.classify(PHOTO, embed=True), *client.classify_many([PHOTO], embed=True)):
        np.testing.assert_allclose(same.embedding, one.embedding, rtol=1e-4, atol=1e-5)
    assert client.classify(PHOTO).embedding is None
    with pytest.raises(LookupError, match="only embedded"):
        _ = one.best


async def test_embeds_photos_asynchronously(async_client: AsyncClient) -> None:
    """The other client has the same operations."""
    one = await async_client.embed(PHOTO)
    many = await collect(async_client.embed_many(MIXED))
    assert codes(many) == CODES
    np.testing.assert_allclose(many[0].embedding, one.embedding, rtol=1e-4, atol=1e-5)
