"""cluster/costs.py: the printed price is the sum of its parts."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cluster import costs, launcher
from cluster.settings import ClusterError, Settings


def test_the_cost_table_adds_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings: Settings) -> None:
    """One head at 1 $ and two to four workers at 2 $, each with a disk of 730 GB at 1 $ a GB and month."""
    prices = {"date": "D", "region": "r", "instance_hour": {"h": 1, "w": 2}, "gp3_gb_month": 1}
    (tmp_path / "prices.yaml").write_text(yaml.safe_dump(prices))
    monkeypatch.setattr(costs, "PRICES", tmp_path / "prices.yaml")
    disk = {"BlockDeviceMappings": [{"Ebs": {"VolumeSize": 730}}]}
    groups = {
        "head": {"node_config": {"InstanceType": "h", **disk}},
        "work": {"node_config": {"InstanceType": "w", **disk}, "min_workers": 2, "max_workers": 4},
    }
    table = costs.cost_table({"head_node_type": "head", "available_node_types": groups}, settings)
    assert table.splitlines()[-2].split() == ["per", "hour", "$8.00", "$14.00"]
    assert table.endswith("on-demand prices of r, D; prices in us-east-1 differ")


def test_every_instance_type_has_a_price(settings: Settings) -> None:
    """prices.yaml covers ec2.yaml; a type without a price is named, with the key to add."""
    config = launcher.read_template()
    assert "per hour" in costs.cost_table(config, settings)
    config["available_node_types"]["gpu"]["node_config"]["InstanceType"] = "z9.tiny"
    with pytest.raises(ClusterError, match=r"no price for z9\.tiny .*: add it to instance_hour"):
        costs.cost_table(config, settings)


def test_the_load_balancer_is_priced_where_there_is_one(settings: Settings) -> None:
    """A certificate means a load balancer, and the table has its row."""
    balanced = settings.model_copy(update={"certificate": "arn:aws:acm:x", "client_cidr": "0.0.0.0/0"})
    config = launcher.read_template()
    assert "load balancer" in costs.cost_table(config, balanced)
    assert "load balancer" not in costs.cost_table(config, settings)
