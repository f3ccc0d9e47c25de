"""Dashboard and alert rules: valid PromQL, and each alert fires for its own fault only."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.support.monitoring import FOLDER, metric_names, named_metrics, panels, rules
from tests.support.paths import ROOT

PROMTOOL = os.environ.get("PROMTOOL") or shutil.which("promtool")  # Debian has it in the package `prometheus`
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="no promtool in PATH or PROMTOOL")


def test_metric_names_are_parsed_from_promql() -> None:
    """Functions, labels, ranges and keywords are not taken for metrics."""
    expression = 'histogram_quantile(0.9, sum by (le, a) (rate(x_bucket{c=~"d|e"}[5m]))) / on (z) y_total > 1e3 and up'
    assert metric_names(expression) == {"x_bucket", "y_total", "up"}
    assert len(named_metrics()) > 15


def test_every_alert_has_a_summary_a_description_and_a_severity() -> None:
    """A person who is alerted reads what happened and what to check."""
    for rule in rules():
        assert set(rule["annotations"]) == {"summary", "description"}, rule["alert"]
        assert rule["labels"]["severity"] in ("critical", "warning", "info")


@needs_promtool
def test_promtool_accepts_rules_queries_and_config(tmp_path: Path) -> None:
    """Includes the dashboard's queries, with Grafana's variables replaced by values."""
    filled = [expr.replace("$__rate_interval", "5m").replace("$application", ".*") for _, expr in panels()]
    queries = [{"record": f"panel:{number}", "expr": expr} for number, expr in enumerate(filled)]
    (tmp_path / "panels.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": queries}]}))
    for kind, path in (("rules", tmp_path / "panels.yaml"), ("config", FOLDER / "prometheus.yml")):
        done = subprocess.run([str(PROMTOOL), "check", kind, path], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_operators_rules_are_the_alerts() -> None:
    """The command in docs/telemetry.md makes a PrometheusRule with the groups of alerts.yaml."""
    (command,) = re.findall(r"^\$ (sed .*) \| kubectl apply -f -$", (ROOT / "docs" / "telemetry.md").read_text(), re.M)
    printed = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    rule = yaml.safe_load(printed)
    assert rule["kind"] == "PrometheusRule"
    assert rule["spec"] == yaml.safe_load((FOLDER / "alerts.yaml").read_text())


NORMAL = {
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
FAULTS = {
    "NoHealthyReplica": {'ray_serve_deployment_replica_healthy{application="a",deployment="d"}': "0x1600"},
    "ServerErrors": {'ray_serve_num_http_error_requests_total{application="a",error_code="500"}': "0+12x1600"},
    "RequestsRejected": {'ray_serve_num_http_error_requests_total{application="a",error_code="503"}': "0+60x1600"},
    "HighLatency": {'ray_image_ms_bucket{le="500",version="v",phase="total"}': "0+500x1600"},
    "ImageFailures": {'ray_variant_failed_images_total{variant="v",code="internal"}': "0+60x1600"},
    "ReplicasRestarting": {'ray_serve_deployment_replica_starts_total{application="a",deployment="d"}': "0+1x1600"},
    "EventLoopBlocked": {
        'ray_serve_event_loop_scheduling_latency_ms_bucket{component="replica",le="100"}': "0+50x1600"
    },
    "PredictionLogDropsRows": {'ray_prediction_log_rows{application="a",state="dropped"}': "0+1x1600"},
    "NegativeFeedback": {'ray_feedback_votes_total{application="a",correct="false"}': "0+9x1600"},
}


@needs_promtool
def test_each_alert_fires_for_its_own_fault_only(tmp_path: Path) -> None:
    """Prometheus evaluates the rules on 26 hours of synthetic series; without a fault none fires."""
    names = [rule["alert"] for rule in rules()]
    assert {"MetricsMissing", *FAULTS} == set(names)
    without_ray = {name: values for name, values in NORMAL.items() if "replica_healthy" not in name}
    cases: list[tuple[set[str], dict[str, str]]] = [(set(), NORMAL), ({"MetricsMissing"}, without_ray)]
    cases += [({name}, NORMAL | change) for name, change in FAULTS.items()]
    tests = [
        {
            "name": " ".join(firing) or "normal",
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
        for firing, series in cases
    ]
    file = {"rule_files": [str(FOLDER / "alerts.yaml")], "evaluation_interval": "10m", "tests": tests}
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(file))
    done = subprocess.run([str(PROMTOOL), "test", "rules", tmp_path / "tests.yaml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
