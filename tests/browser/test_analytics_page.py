"""The Analytics page in Chromium: live, empty, and over a log that the real ETL has summarized."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

import httpx2
from playwright.sync_api import Locator, Page, expect

from serve_app.analytics import etl
from tests.support.browser import NEEDS_CHROMIUM, page_server, save_screenshot
from tests.support.logged import log_day
from tests.support.photos import make_photo
from tests.support.polling import wait_for
from tests.support.running import Running

pytestmark = NEEDS_CHROMIUM
WITHIN_MS = 15_000


def metric(page: Page, label: str) -> Locator:
    """Return the value of a metric."""
    labeled = page.get_by_test_id("stMetric").filter(has=page.get_by_text(label, exact=True))
    return labeled.get_by_test_id("stMetricValue")


def wait_for_no_rows(running: Running) -> None:
    """Wait until the rows of earlier tests are written."""
    with httpx2.Client(base_url=running.api) as http:
        wait_for(lambda: http.get("/v1/status").json()["prediction_log"]["buffered"] == 0, what="the log")


def test_a_photo_and_a_vote_appear_by_themselves(page: Page, running: Running) -> None:
    """Within 15 s, on the page that `make run` starts, without a click."""
    wait_for_no_rows(running)
    page.goto(f"{running.page}/analytics")
    expect(metric(page, "Images").or_(page.get_by_text("No image has been classified yet"))).to_be_visible()
    before = int(metric(page, "Images").inner_text().replace(",", "")) if metric(page, "Images").count() else 0
    answer = httpx2.post(f"{running.api}/v1/classify", content=make_photo(), timeout=60).json()
    expect(metric(page, "Images")).to_have_text(f"{before + 1:,}", timeout=WITHIN_MS)
    votes = int(metric(page, "Votes").inner_text()) if metric(page, "Votes").count() else 0
    vote = {"request_id": answer["id"], "correct": True}
    assert httpx2.post(f"{running.api}/v1/feedback", json=vote, timeout=60).status_code == 204
    expect(metric(page, "Votes")).to_have_text(str(votes + 1), timeout=WITHIN_MS)
    save_screenshot(page, "analytics-live")


def test_an_empty_log_says_what_will_appear(page: Page, running: Running, tmp_path: Path) -> None:
    """And the first row takes its place without a click."""
    with page_server(API_URL=running.api, PREDICTION_LOG=str(tmp_path)) as url:
        page.goto(f"{url}/analytics")
        expect(page.get_by_text("No image has been classified yet")).to_be_visible()
        save_screenshot(page, "analytics-empty")
        log_day(tmp_path, date(2026, 3, 1), 10)
        expect(metric(page, "Images")).to_have_text("10")


def test_analytics(page: Page, running: Running, tmp_path: Path) -> None:
    """Of two weeks, one class doubled in the second, the page shows the second week and its drift by name."""
    days = [date(2026, 3, n) for n in range(1, 15)]
    for day in days:
        log_day(tmp_path, day, 1000, doubled="cat" if day > days[6] else None)
    etl.run(tmp_path)
    with page_server(API_URL=running.api, PREDICTION_LOG=str(tmp_path)) as url:
        page.goto(f"{url}/analytics")
        expect(page.get_by_role("heading", name="Analytics", exact=True)).to_be_visible()
        expect(page.get_by_test_id("stMetric").filter(has_text="Images").first).to_contain_text("7,000")
        for text in ("Time per image, ms", "Confidence", "Least confident", "Drift"):
            expect(page.get_by_text(text).first).to_be_visible()
        expect(page.get_by_text(re.compile("class mix: (small|moderate|large)"))).to_be_visible()
        expect(page.get_by_text("sharpness: none")).to_be_visible()
        save_screenshot(page, "analytics")
