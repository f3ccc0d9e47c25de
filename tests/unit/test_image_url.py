"""URLs of images are read strictly, and each spelling that could mean another host is refused."""

from __future__ import annotations

import pytest

from serve_app.config import IngressConfig
from serve_app.image_url import MAX_URL_CHARS, HostRule, ImageUrl
from serve_app.images_by_url_config import ImagesByUrlConfig
from serve_app.validation import parse

GOOD = "photos.example"


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://photos.example", ImageUrl("https", GOOD, 443, "/")),
        ("HTTPS://Photos.EXAMPLE:443/A/b.jpg?w=1&h=2", ImageUrl("https", GOOD, 443, "/A/b.jpg?w=1&h=2")),
        ("https://photos.example:8443/a", ImageUrl("https", GOOD, 8443, "/a")),
        ("http://photos.example?a=b@c", ImageUrl("http", GOOD, 80, "/?a=b@c")),
        ("https://photos.example/a#@evil.example/", ImageUrl("https", GOOD, 443, "/a")),
        ("https://photos.example#@evil.example/", ImageUrl("https", GOOD, 443, "/")),
        ("https://photos.example/@evil.example/%2e%2e/", ImageUrl("https", GOOD, 443, "/@evil.example/%2e%2e/")),
        ("https://xn--bcher-kva.example/", ImageUrl("https", "xn--bcher-kva.example", 443, "/")),
        ("http://192.0.2.7/", ImageUrl("http", "192.0.2.7", 80, "/")),
        ("http://localhost:80/", ImageUrl("http", "localhost", 80, "/")),
        ("https://127.0.0.1.photos.example/", ImageUrl("https", "127.0.0.1.photos.example", 443, "/")),
    ],
)
def test_parts_of_a_url(text: str, url: ImageUrl) -> None:
    assert ImageUrl.parse(text) == url


@pytest.mark.parametrize(
    "text",
    [
        # other schemes
        "file:///etc/passwd", "ftp://photos.example/a", "gopher://photos.example:70/_", "dict://photos.example/",
        "jar:https://photos.example!/", "javascript:alert(1)", "//photos.example/a", "/a", "photos.example/a", "",
        "https:/photos.example/", "https:photos.example", "https:///photos.example/", "url:https://photos.example/",
        # another host than it seems
        "https://photos.example@evil.example/", "https://user:" + "pass@photos.example/", "https://@photos.example/",
        "https://photos.example:" + "443@evil.example/", "https://evil.example\\@photos.example/",
        "https://photos.example\\@evil.example/", "https://photos.example\\.evil.example/",
        "https:\\\\photos.example\\",
        "https://photos.example%00.evil.example/", "https://photos.example%2f@evil.example/",
        "https://photos.example;evil.example/", "https://photos.example,evil.example/", "https://photos.example&evil/",
        # other spellings of a name
        "https://photos.example./", "https://.photos.example/", "https://photos..example/", "https://%70hotos.example/",
        "https://photos。example/", "https://ｐhotos.example/", "https://photoſ.example/", "https://bücher.example/",
        "https://\u212aiel.example/", "https://" + "a" * 64 + ".example/", "https://" + "a." * 127 + "example/",
        # other spellings of an address
        "http://2130706433/", "http://0x7f000001/", "http://017700000001/", "http://0177.0.0.1/", "http://0x7f.0.0.1/",
        "http://127.1/", "http://127.0.1/", "http://127.0.0.01/", "http://127.0.0.1./", "http://127.0.0.256/",
        "http://1.2.3.4.5/", "http://photos.0x7f/", "http://①②⑦.0.0.1/", "http://0/",
        "http://[::1]/", "http://[::ffff:127.0.0.1]/", "http://[fd00::1%25eth0]/", "http://::1/",
        # ports
        "https://photos.example:/", "https://photos.example:0/", "https://photos.example:65536/",
        "https://photos.example:0443/", "https://photos.example:-1/", "https://photos.example:443:80/",
        # what is no URL at all, or ends the line of the request
        " https://photos.example/", "https://photos.example/ ", "https://photos.example/a b", "https://photos.example/\n",
        "https://photos.example/a HTTP/1.1\r\nHost: evil.example\r\n\r\n", "https://photos.example/\0",
        "https://pho\ttos.example/", "https://photos.example/é", "https://photos.example/a\\b", "https://",
        "https://photos.example/" + "a" * MAX_URL_CHARS,
    ],
)  # fmt: skip
def test_other_spellings_are_refused(text: str) -> None:
    """Each of them means another host, or another scheme, to some program that reads URLs."""
    with pytest.raises(ValueError, match="it"):
        ImageUrl.parse(text)


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("b.jpg", ImageUrl("https", GOOD, 8443, "/a/b.jpg")),
        ("/b.jpg", ImageUrl("https", GOOD, 8443, "/b.jpg")),
        ("//other.example/b", ImageUrl("https", "other.example", 443, "/b")),
        ("http://photos.example/", ImageUrl("http", GOOD, 80, "/")),
    ],
)
def test_redirects_are_relative_to_the_url(location: str, url: ImageUrl) -> None:
    assert ImageUrl.parse("https://photos.example:8443/a/c.jpg").join(location) == url


@pytest.mark.parametrize(
    "location",
    ["file:///etc/passwd", "//photos.example@evil.example/", "/\\evil.example", "http://0x7f.1/", "http://[::1]/"],
)
def test_a_redirect_is_read_as_strictly(location: str) -> None:
    with pytest.raises(ValueError, match="it"):
        ImageUrl.parse("https://photos.example/a").join(location)


@pytest.mark.parametrize(
    ("entry", "url", "allowed"),
    [
        (GOOD, "https://PHOTOS.example/a", True),
        ("Photos.Example", "https://photos.example/a", True),
        (GOOD, "https://photos.example:443/a", True),
        (GOOD, "http://photos.example/a", False),
        (GOOD, "https://photos.example:8443/a", False),
        (GOOD, "https://cdn.photos.example/a", False),
        (GOOD, "https://photos.example.evil.example/a", False),
        (GOOD, "https://evilphotos.example/a", False),
        ("photos.example:8443", "https://photos.example:8443/a", True),
        ("photos.example:8443", "https://photos.example/a", False),
        ("http://photos.example", "http://photos.example/a", True),
        ("http://photos.example", "https://photos.example/a", False),
        ("http://photos.example:8080", "http://photos.example:8080/a", True),
        ("*.photos.example", "https://cdn.photos.example/a", True),
        ("*.photos.example", "https://a.b.photos.example/a", True),
        ("*.photos.example", "https://photos.example/a", False),
        ("*.photos.example", "https://evilphotos.example/a", False),
        ("*.photos.example", "https://photos.example.evil.example/a", False),
        ("http://192.0.2.7:8080", "http://192.0.2.7:8080/a", True),
    ],
)
def test_entries_match_scheme_host_and_port(entry: str, url: str, allowed: bool) -> None:
    assert HostRule.parse(entry).matches(ImageUrl.parse(url)) is allowed
    assert ImagesByUrlConfig(allowed_hosts=("x.example", entry)).allows(ImageUrl.parse(url)) is allowed


@pytest.mark.parametrize(
    "entry",
    ["*", "*.", "*.example", "*.0.0.1", "a.*.example", "https://photos.example/", "photos.example/a", "ftp://a.example",
     "u@photos.example", "photos.example:", "photos.example:99999", "2130706433", "127.1", "bücher.example", ""],
)  # fmt: skip
def test_a_wrong_entry_is_named(entry: str) -> None:
    """The settings are refused; nothing is allowed by mistake."""
    with pytest.raises(ValueError, match=r"^images_by_url\.allowed_hosts\.0: "):
        parse(IngressConfig, {"images_by_url": {"allowed_hosts": [entry]}})


def test_images_by_url_are_off_by_default() -> None:
    assert IngressConfig().images_by_url is None
    with pytest.raises(ValueError, match=r"images_by_url\.allowed_networks\.0"):
        parse(IngressConfig, {"images_by_url": {"allowed_hosts": [GOOD], "allowed_networks": ["10.0.0.1/8"]}})
