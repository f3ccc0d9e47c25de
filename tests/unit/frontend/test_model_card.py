"""The model's card in the side panel, and the search in its classes."""

from __future__ import annotations

from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from frontend.api_client import ApiClient
from frontend.components import model_card
from frontend.components.model_card import _facts
from tests.support.weights import LABELS

CARD: dict[str, Any] = {
    "name": "resnet18",
    "version": "demo-2",
    "classes": 130,
    "metrics": {
        "web photos": {"top1": 0.81, "top5": 0.94, "images": 1200, "classes": {}},
        "int8": {"agreement": 0.99},
        "own": {"top1": 0.7},
    },
    "training": {"date": "2026-11-30"},
}


def listed(page: AppTest) -> list[str]:
    """Return the lines of the list of classes."""
    (text,) = [each.value for each in page.sidebar.markdown if LABELS[0] in each.value or LABELS[5] in each.value]
    return [line.strip("- *") for line in text.splitlines()]


def test_facts_of_a_card() -> None:
    """Name, each accuracy that was measured, and date stand in the panel; what the card lacks does not."""
    assert _facts(CARD) == [
        r"**resnet18**, version demo\-2, 130 classes",
        "**81.0%** right, 94.0% among the first five on web photos (1,200 photos)",
        "**70.0%** right on own",
        r"trained on 2026\-11\-30",
    ]
    assert len(_facts({**CARD, "metrics": {}, "training": {}})) == 1


def test_terms(page: AppTest, client: ApiClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The terms of photos and weights stand in the panel as text."""
    served = client.models()
    served["models"][0]["licenses"] = {"backbone": "MIT", "photos": "research *only*"}
    monkeypatch.setattr(client, "models", lambda: served)
    page.run()
    assert not page.exception
    assert r"- photos: research \*only\*" in page.sidebar.caption[-1].value


def test_all_classes_are_listed(page: AppTest) -> None:
    """The panel lists the classes in alphabetical order, without a description where the card has none."""
    page.run()
    assert not page.exception
    assert listed(page) == sorted(LABELS)


def test_search_in_names_and_descriptions(page: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list keeps the classes whose name or description contains the text, in any case of letters."""
    described = {**dict.fromkeys(sorted(LABELS), ""), "ant": "A small insect that lives in colonies"}
    monkeypatch.setattr(model_card, "list_classes", lambda *_: described)
    page.run()
    page.sidebar.text_input[0].set_value("INSECT").run()
    assert listed(page) == ["ant**: A small insect that lives in colonies"]
    page.sidebar.text_input[0].set_value("zebra").run()
    assert "No class contains these letters" in str([each.value for each in page.sidebar.caption])


def test_a_long_list_is_cut(page: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand classes are not all sent to the browser; the panel says how many the search still finds."""
    monkeypatch.setattr(model_card, "MAX_LISTED", 4)
    page.run()
    assert len(listed(page)) == 4
    assert "and 2 more" in str([each.value for each in page.sidebar.caption])
