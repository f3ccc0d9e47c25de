"""Heads through the client: taught, used, changed, exported."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest

from serve_app.config import JobsConfig
from serve_app.heads_config import HeadsConfig
from serve_client import AsyncClient, Client, Head, errors
from tests.support.local_service import LocalService
from tests.support.taught_photos import as_zip, photos_of
from tests.unit.client.conftest import URL, LosesTheFirstPost

PHOTOS = photos_of("red", "green", count=4)


@pytest.fixture(autouse=True)
def folder(service: LocalService, tmp_path: Path) -> Path:
    """The service keeps heads in this folder."""
    service.keep_heads(HeadsConfig(folder=str(tmp_path)))
    return tmp_path


@pytest.fixture
def head(client: Client) -> Head:
    return client.heads.teach("colors", PHOTOS)


def test_a_taught_head_answers(client: Client, head: Head) -> None:
    """One head, or several in one call, and many images; the report and the most similar photos come along."""
    assert (head.name, head.labels, head.photos, head.mine, head.status) == (
        "colors",
        ("green", "red"),
        8,
        True,
        "ready",
    )
    assert [each["name"] for each in head.report["classes"]] == ["green", "red"]
    client.heads.teach("more", photos_of("red", "green", "blue", count=4))
    result = client.classify(PHOTOS["red"][0], head=["colors", "more"], similar=2)
    assert [result.heads[name].predictions[0].label for name in ("colors", "more")] == ["red", "red"]
    similar = result.heads["colors"].similar
    assert similar is not None
    assert [(each.id in {example.id for example in head.examples}, each.class_name) for each in similar] == [
        (True, "red"),
        (True, "red"),
    ]
    many = client.classify_many([PHOTOS["red"][1], PHOTOS["green"][1]], head="colors")
    assert [each.heads["colors"].predictions[0].label for each in many] == ["red", "green"]
    assert {each.name: each.photos for each in client.heads.list()} == {"colors": 8, "more": 12}


def test_changes(client: Client, head: Head) -> None:
    """Photos are added, moved and removed; the versions before can serve again; the head is shared and deleted."""
    more = client.heads.add(head, {"blue": photos_of("blue", count=3)["blue"]})
    assert (more.labels, more.photos) == (("blue", "green", "red"), 11)
    (moved, *_) = (each.id for each in more.examples if each.class_name == "blue")
    assert [each.class_name for each in client.heads.move(more, moved, "red").examples].count("red") == 5
    assert client.heads.remove("colors", moved).photos == 10
    assert client.heads.roll_back("colors").photos < 11
    assert client.heads.share("colors", True).public
    client.heads.delete("colors")
    with pytest.raises(errors.UnknownHeadError):
        client.heads.get("colors")


def test_a_state_that_is_out_of_date_changes_nothing(client: Client, head: Head) -> None:
    """With the state that a caller has seen, somebody else's change is not overwritten; with the name it is."""
    changed = client.heads.add("colors", photos_of("blue", count=2))
    with pytest.raises(errors.PreconditionFailedError):
        client.heads.teach(head, PHOTOS)
    assert client.heads.get(head) == changed
    assert client.heads.teach("colors", PHOTOS).photos == 8


def test_a_lost_response_rolls_back_once(client: Client, transport: httpx2.BaseTransport, head: Head) -> None:
    """A repetition would go one version further back; one that names its version may be repeated."""
    second = client.heads.add("colors", photos_of("blue", count=2))
    client.heads.add("colors", photos_of("gray", count=2))
    losing = LosesTheFirstPost(transport)
    with Client(URL, transport=losing) as unlucky, pytest.raises(errors.NoResponseError):
        unlucky.heads.roll_back("colors")
    assert losing.posts == 1
    assert client.heads.get("colors").version == second.version
    assert client.heads.roll_back("colors", head.version).version == head.version


def test_suggestions(client: Client, head: Head) -> None:
    """They wait for the owner, who approves some with one fit and rejects the others."""
    sent = client.heads.suggest("colors", photos_of("red", count=3, first=40))
    assert (len(sent.ids), sent.warnings) == (3, None)
    assert {each.id for each in client.heads.suggestions(head)} == set(sent.ids)
    (first, *_) = client.heads.suggestions("colors")
    assert (first.class_name, first.caller, first.photo, first.added < first.expires) == ("red", None, None, True)
    assert first.answer is not None
    assert first.answer.predictions[0].label == "red"
    assert len(first.answer.similar or ()) == 3
    assert client.heads.get("colors").suggestions == 3
    client.heads.reject(head, sent.ids[2])
    approved = client.heads.approve(head, *sent.ids[:2])
    assert (approved.photos, approved.suggestions) == (10, 0)
    with pytest.raises(errors.UnknownHeadError):
        client.heads.approve("colors", first.id)
    assert client.heads.suggest("colors", {"red": PHOTOS["red"][:1]}).warnings
    with pytest.raises(errors.InvalidParameterError, match="similar classes: red"):
        client.heads.suggest("colors", {"rad": PHOTOS["red"]})


def test_a_broken_photo_stores_nothing(client: Client) -> None:
    """The error names the class; a photo that cannot be read is not sent at all."""
    with pytest.raises(errors.UnsupportedImageError, match="class 'red', photo 2"):
        client.heads.teach("colors", {"red": [PHOTOS["red"][0], b"no image"], "green": PHOTOS["green"]})
    with pytest.raises(errors.UnreadableImageError):
        client.heads.teach("colors", {"red": ["missing.jpg"]})
    assert client.heads.list() == ()


def test_an_export_is_written(client: Client, head: Head, tmp_path: Path) -> None:
    client.heads.export(head, tmp_path / "colors.zip")
    assert (tmp_path / "colors.zip").read_bytes().startswith(b"PK")


def test_a_job_uses_a_head(client: Client, service: LocalService, head: Head, tmp_path: Path) -> None:
    service.configure(jobs=JobsConfig(folder=str(tmp_path / "jobs")))
    job = client.jobs.submit(as_zip({"any": PHOTOS["red"]}), head=head.name)
    assert job.head == {"name": "colors", "version": head.version}
    assert client.jobs.submit(as_zip({"any": PHOTOS["red"]})).head is None


async def test_heads_of_the_async_client(async_client: AsyncClient) -> None:
    head = await async_client.heads.teach("colors", PHOTOS)
    assert await async_client.heads.get("colors") == head
    result = await async_client.classify(PHOTOS["green"][0], head="colors")
    assert result.heads["colors"].predictions[0].label == "green"
