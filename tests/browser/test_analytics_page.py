"""The Analytics page in Chromium, over a log that the real ETL has summarized."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

from playwright.sync_api import Page, expect

from serve_app.analytics import etl
from tests.support.browser import NEEDS_CHROMIUM, page_server, save_screenshot
from tests.support.logged import log_day
from tests.support.running import Running

pytestmark = NEEDS_CHROMIUM


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
