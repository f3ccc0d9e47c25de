"""Dashboard and alert rules: valid PromQL, and each alert fires when it should and not on a calm day."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.paths import ROOT

FOLDER = ROOT / "cluster" / "monitoring"
PROMTOOL = os.environ.get("PROMTOOL") or shutil.which("promtool")  # Debian has it in the package `prometheus`
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="no promtool in PATH or PROMTOOL")
WORDS = {"and", "or", "unless", "bool", "offset"}
Rule = dict[str, Any]


def rules() -> list[Rule]:
    (group,) = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"]
    found: list[Rule] = group["rules"]
    return found


def panels() -> Iterator[tuple[str, str]]:
    """Title and query of everything that the dashboard draws."""
    for panel in json.loads((FOLDER / "dashboard.json").read_text())["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


def metric_names(expression: str) -> set[str]:
    """The metrics that a PromQL expression reads."""
    bare = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^]]*\]', " ", expression)
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", bare)
    return set(re.findall(r"\b[a-zA-Z_:][\w:]*\b(?!\s*\()", bare)) - WORDS


def named_metrics() -> set[str]:
    """Everything that dashboard and alerts read."""
    return {name for expr in [*(e for _, e in panels()), *(r["expr"] for r in rules())] for name in metric_names(expr)}


def test_metric_names_are_found() -> None:
    expression = 'histogram_quantile(0.9, sum by (le, a) (rate(x_bucket{c=~"d|e"}[5m]))) / on (z) y_total > 1e3 and up'
    assert metric_names(expression) == {"x_bucket", "y_total", "up"}
    assert len(named_metrics()) > 15


def test_every_alert_says_what_it_means() -> None:
    for rule in rules():
        assert set(rule["annotations"]) == {"summary", "description"}, rule["alert"]
        assert rule["labels"]["severity"] in ("critical", "warning", "info")


@needs_promtool
def test_prometheus_takes_rules_queries_and_config(tmp_path: Path) -> None:
    """Its own checker, also over the dashboard's queries with Grafana's variables filled in."""
    filled = [expr.replace("$__rate_interval", "5m").replace("$application", ".*") for _, expr in panels()]
    queries = [{"record": f"panel:{number}", "expr": expr} for number, expr in enumerate(filled)]
    (tmp_path / "panels.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": queries}]}))
    for kind, path in (("rules", tmp_path / "panels.yaml"), ("config", FOLDER / "prometheus.yml")):
        done = subprocess.run([str(PROMTOOL), "check", kind, path], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


CALM = {
    'ray_serve_deployment_replica_healthy{application="a",deployment="d"}': "1x1600",
    'ray_serve_num_http_requests_total{application="a"}': "0+600x1600",
    'ray_serve_num_http_error_requests_total{application="a",error_code="415"}': "0+60x1600",
    'ray_serve_num_http_error_requests_total{application="a",error_code="500"}': "0+1x1600",
    'ray_serve_num_http_error_requests_total{application="a",error_code="503"}': "0+6x1600",
    'ray_image_ms_bucket{le="500",version="v",phase="total"}': "0+600x1600",
    'ray_image_ms_bucket{le="2000",version="v",phase="total"}': "0+600x1600",
    'ray_image_ms_bucket{le="+Inf",version="v",phase="total"}': "0+600x1600",
    'ray_variant_failed_images_total{variant="v",code="internal"}': "0+1x1600",
    'ray_serve_deployment_replica_starts_total{application="a",deployment="d"}': "1x1600",
    'ray_serve_event_loop_scheduling_latency_ms_bucket{component="replica",le="100"}': "0+60x1600",
    'ray_serve_event_loop_scheduling_latency_ms_bucket{component="replica",le="500"}': "0+60x1600",
    'ray_serve_event_loop_scheduling_latency_ms_bucket{component="replica",le="+Inf"}': "0+60x1600",
    'ray_prediction_log_rows{application="a",state="dropped"}': "5x1600",
    'ray_feedback_votes_total{application="a",correct="false"}': "0+1x1600",
    'ray_feedback_votes_total{application="a",correct="true"}': "0+9x1600",
}
TROUBLE = {
    "StageDown": {'ray_serve_deployment_replica_healthy{application="a",deployment="d"}': "0x1600"},
    "ServerErrors": {'ray_serve_num_http_error_requests_total{application="a",error_code="500"}': "0+12x1600"},
    "Refusing": {'ray_serve_num_http_error_requests_total{application="a",error_code="503"}': "0+60x1600"},
    "SlowAnswers": {'ray_image_ms_bucket{le="500",version="v",phase="total"}': "0+500x1600"},
    "ImagesFail": {'ray_variant_failed_images_total{variant="v",code="internal"}': "0+60x1600"},
    "ReplicasRestart": {'ray_serve_deployment_replica_starts_total{application="a",deployment="d"}': "0+1x1600"},
    "BlockedEventLoop": {
        'ray_serve_event_loop_scheduling_latency_ms_bucket{component="replica",le="100"}': "0+50x1600"
    },
    "PredictionLogDropsRows": {'ray_prediction_log_rows{application="a",state="dropped"}': "0+1x1600"},
    "UsersDisagree": {'ray_feedback_votes_total{application="a",correct="false"}': "0+9x1600"},
}


@needs_promtool
def test_each_alert_fires_in_its_own_trouble_only(tmp_path: Path) -> None:
    """Prometheus evaluates the rules on made-up series: a day and a bit, one sample a minute."""
    names = [rule["alert"] for rule in rules()]
    assert {"ClassificationNotMonitored", *TROUBLE} == set(names)
    unseen = {name: each for name, each in CALM.items() if "replica_healthy" not in name}
    days: list[tuple[set[str], dict[str, str]]] = [(set(), CALM), ({"ClassificationNotMonitored"}, unseen)]
    days += [({name}, CALM | change) for name, change in TROUBLE.items()]
    tests = [
        {
            "name": " ".join(firing) or "calm",
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in series.items()],
            "promql_expr_test": [
                {
                    "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                    "eval_time": "26h",
                    "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in firing],
                }
            ],
        }
        for firing, series in days
    ]
    file = {"rule_files": [str(FOLDER / "alerts.yaml")], "evaluation_interval": "10m", "tests": tests}
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(file))
    done = subprocess.run([str(PROMTOOL), "test", "rules", tmp_path / "tests.yaml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
