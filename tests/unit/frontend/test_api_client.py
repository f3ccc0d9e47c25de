"""The API client against the real API."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from frontend.api_client import ApiClient, Photo, ProblemError, ServerDownError
from serve_app.config import KeysConfig, LimitsConfig
from serve_app.errors import OverloadedError
from serve_app.http.app import create_app
from serve_app.http.auth import ApiKeys, hash_key
from tests.support.local_service import LocalService
from tests.support.photos import encode, make_photo, make_picture


def photos(n: int) -> list[Photo]:
    return [Photo(f"{i}.jpg", make_photo(i)) for i in range(n)]


def test_classifies_one_photo(client: ApiClient) -> None:
    """A photo gets a result that explains the requested class."""
    result = client.classify(photos(1)[0], explain_class=2)
    assert result["status"] == "ok"
    assert result["explanation"]["class_id"] == 2


def test_a_bad_image_gives_a_result_with_an_error(client: ApiClient) -> None:
    """Text instead of an image gives a result with the problem, not an exception."""
    result = client.classify(Photo("x.txt", b"text"))
    assert (result["id"], result["error"]["status"]) == ("x.txt", 415)


def test_requests_keep_the_limits(client: ApiClient) -> None:
    """Ten photos at four per request each get one result under their own index."""
    given = photos(10)
    given[3] = Photo("broken", b"text")
    results = {result["index"]: result for result in client.classify_many(given, 4, 10**6)}
    assert sorted(results) == list(range(10))
    assert [results[i]["id"] for i in range(10)] == [photo.name for photo in given]
    assert [i for i, result in results.items() if result["status"] == "error"] == [3]
    assert len(list(client.classify_many(given, 64, 50_000))) == 10


def test_names_with_line_separators_of_unicode(client: ApiClient) -> None:
    """JSON does not escape them, and they do not end a line of the stream."""
    given = [Photo(f"a{separator}b.jpg", make_photo()) for separator in "\x85\u2028\u2029"]
    results = list(client.classify_many(given, 4, 10**6))
    assert {result["id"] for result in results} == {photo.name for photo in given}
    assert {result["status"] for result in results} == {"ok"}


def test_a_refused_request_fails_only_its_photos(client: ApiClient, service: LocalService) -> None:
    """A photo over the body limit fails with a reason; photos in other requests are classified."""
    service.configure(limits=LimitsConfig(max_images=4, max_body_bytes=100_000))
    given = [*photos(3), Photo("large.bmp", encode(make_picture(400, 400), "BMP"))]
    results = list(client.classify_many(given, 4, 100_000))
    assert sorted(result["index"] for result in results) == [0, 1, 2, 3]
    (failed,) = [result for result in results if result["status"] == "error"]
    assert failed["error"]["code"] == "too_large"


def test_an_unreachable_api_is_named() -> None:
    """Without a server, calls raise an error with the address, and photos get a retryable error."""
    unreachable = ApiClient("http://127.0.0.1:9")
    with pytest.raises(ServerDownError, match=r"127\.0\.0\.1:9 does not respond"):
        unreachable.models()
    (result,) = unreachable.classify_many(photos(1), 4, 10**6)
    assert result["error"]["code"] == "server_down"
    assert result["error"]["retryable"]


def test_problems_are_raised(client: ApiClient, service: LocalService) -> None:
    """A service that is not ready gives a reason, and a problem+json becomes a ProblemError."""
    service.client.failing = OverloadedError("busy")
    assert client.not_ready_reason() is not None
    with pytest.raises(ProblemError) as raised:
        client.classes("other", "main")
    assert raised.value.problem["status"] == 404


def test_requests_carry_the_key_and_snippets_do_not(service: LocalService, monkeypatch: pytest.MonkeyPatch) -> None:
    """API_KEY authorizes every request; snippets name the variable and never hold its value."""
    service.keys = ApiKeys(KeysConfig(hashes={"page": hash_key("key_of_the_page")}))
    monkeypatch.setenv("API_KEY", "key_of_the_page")
    with TestClient(create_app(service)) as http:
        client = ApiClient("http://testserver", transport=http._transport)
        assert client.classify(photos(1)[0])["status"] == "ok"
        assert [result["status"] for result in client.classify_many(photos(2), 4, 10**7)] == ["ok", "ok"]
    for snippet in (client.curl("a.jpg"), client.python("a.jpg")):
        assert "API_KEY" in snippet
        assert "key_of_the_page" not in snippet
