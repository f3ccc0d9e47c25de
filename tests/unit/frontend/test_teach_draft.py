"""What a user has prepared on the Teach page: names, classes, photos, and the requests that they become."""

from __future__ import annotations

import pytest

from frontend.api_client import Photo
from frontend.components.teach_draft import PHOTOS_PER_REQUEST, Draft, head_name, requests_for
from tests.support.photos import make_photo

LIMITS = {"max_image_bytes": 2**20, "max_pixels": 10**6}
PER_REQUEST = {"max_photos_per_request": 256, "max_body_bytes": 2**26}


def photos(count: int, name: str = "x") -> list[Photo]:
    return [Photo(f"{name}-{number}.jpg", f"{name} {number}".encode()) for number in range(count)]


def draft(**classes: list[Photo]) -> Draft:
    """Return the draft of a new head with these classes."""
    made = Draft(title="Cups")
    for name, group in classes.items():
        made.add_class(name)
        made.classes[-1].photos = group
    return made


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("Cups", "cups"),
        ("My own Cups!", "my-own-cups"),
        ("Meine Täßchen", "meine-tasschen"),
        ("a__b - c", "a__b-c"),
        ("--", ""),
        ("杯子", ""),
    ],
)
def test_names_for_links(title: str, name: str) -> None:
    """A title becomes lower case ASCII with dashes."""
    assert head_name(title) == name


def test_names_that_cannot_be_used() -> None:
    """An empty title, one without Latin letters, one that is too long, and one that is taken each have a sentence."""
    titles = {"": "Give it", "杯子": "Latin", "x" * 64: "1 to 63", "Cups": "taught already"}
    for title, words in titles.items():
        problem = Draft(title=title).title_problem({"cups"})
        assert problem is not None
        assert words in problem
    assert Draft(title="Cups 2").title_problem({"cups"}) is None


def test_problems_of_classes() -> None:
    """Missing names, equal names and missing photos are named by class; a card that nobody has touched is not."""
    made = draft(mine=photos(2), others=[])
    made.add_class()
    assert made.class_problems(None) == {2: "This class has no photos yet. Add some: 10 to 20 are enough for a start."}
    made.classes[1].name = " mine "
    made.classes[2].photos = photos(1)
    problems = made.class_problems(None)
    assert "Another class" in problems[2]
    assert "a name" in problems[3]
    made.classes[2].name = "x" * 81
    assert "80" in made.class_problems(None)[3]
    made.classes[2].name = '12" pizza'
    assert "quotation mark" in made.class_problems(None)[3]
    assert draft().class_problems(None) == {}


def test_a_taught_class_needs_new_photos_only_for_new_weights() -> None:
    """Its photos stay taught, unless the weights that made their embeddings serve no more."""
    made = draft(mine=[])
    made.follow(["mine"])
    assert made.class_problems({"status": "ready"}) == {}
    assert list(made.class_problems({"status": "backbone_changed"})) == [1]


def test_following_the_taught_classes() -> None:
    """Taught classes come first, in the head's order; photos that are not taught yet stay with their class."""
    made = draft(new=photos(1), mine=photos(2))
    made.follow(["other", "mine"])
    assert [(each.name, each.is_taught, len(each.photos)) for each in made.classes] == [
        ("other", True, 0),
        ("mine", True, 2),
        ("new", False, 1),
    ]
    assert len({each.number for each in made.classes}) == 3
    made.follow(["mine"])
    assert [(each.name, each.is_taught) for each in made.classes] == [("mine", True), ("other", False), ("new", False)]


def test_photos_are_checked_when_they_are_added() -> None:
    """Files that the API would refuse are named with the reason, and copies are left out."""
    made = draft(mine=[])
    (mine,) = made.classes
    photo = Photo("a.jpg", make_photo())
    mine.add([photo, Photo("copy.jpg", photo.data), Photo("b.txt", b"text")], LIMITS)
    mine.add([photo], LIMITS | {"max_image_bytes": 10})
    assert [each.name for each in mine.photos] == ["a.jpg"]
    assert [name for name, _ in mine.refused] == ["a.jpg"]
    mine.add([Photo("b.txt", b"text")], LIMITS)
    assert mine.refused[0][0] == "b.txt"
    assert "JPEG" in mine.refused[0][1]


def test_requests_hold_every_class_and_keep_the_limits() -> None:
    """All photos are sent once, in order; the first request has photos of each class."""
    sent = {"mine": photos(100, "mine"), "others": photos(30, "others")}
    requests = requests_for(sent, PER_REQUEST)
    assert [sum(map(len, request.values())) for request in requests] == [PHOTOS_PER_REQUEST, PHOTOS_PER_REQUEST, 2]
    assert set(requests[0]) == {"mine", "others"}
    for name, group in sent.items():
        assert [photo for request in requests for photo in request.get(name, ())] == group
    assert len(requests_for(sent, PER_REQUEST | {"max_photos_per_request": 10})) == 13
    assert len(requests_for({"mine": photos(3)}, PER_REQUEST | {"max_body_bytes": 1})) == 3


def test_taught_photos_leave_the_draft() -> None:
    """Those of a request that failed stay."""
    made = draft(mine=photos(3), others=photos(2, "y"))
    made.forget({"mine": made.classes[0].photos[:2]})
    assert [len(each.photos) for each in made.classes] == [1, 2]
