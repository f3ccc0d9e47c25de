"""Read dashboard and alert rules, and the metrics that they name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

from tests.support.paths import ROOT

FOLDER = ROOT / "cluster" / "monitoring"
WORDS = {"and", "or", "unless", "bool", "offset"}
Rule = dict[str, Any]


def rules() -> list[Rule]:
    (group,) = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"]
    return list(group["rules"])


def panels() -> Iterator[tuple[str, str]]:
    """Yield the title and query of each line that the dashboard draws."""
    for panel in json.loads((FOLDER / "dashboard.json").read_text())["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


def metric_names(expression: str) -> set[str]:
    """Return the metrics that a PromQL expression reads."""
    bare = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^]]*\]', " ", expression)
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", bare)
    return set(re.findall(r"\b[a-zA-Z_:][\w:]*\b(?!\s*\()", bare)) - WORDS


def named_metrics() -> set[str]:
    """Return the metrics that dashboard and alerts read."""
    expressions = [*(query for _, query in panels()), *(rule["expr"] for rule in rules())]
    return {name for expression in expressions for name in metric_names(expression)}
