"""The price per hour of the nodes that ec2.yaml describes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from cluster.settings import ClusterError, Settings

PRICES = Path(__file__).with_name("prices.yaml")
HOURS_PER_MONTH = 730


def cost_table(config: dict[str, Any], settings: Settings) -> str:
    """Return a table of US dollars per hour: with the nodes at launch, and with every group at its maximum.

    Placeholders of ``config`` need not be filled in. With a certificate the load balancer is included.

    Raises:
        ClusterError: prices.yaml has no price for an instance type.
    """
    prices = yaml.safe_load(PRICES.read_text())
    items: list[tuple[str, float, int, int]] = []
    for name, group in config["available_node_types"].items():
        node = group["node_config"]
        instance_type = node["InstanceType"]
        if instance_type not in prices["instance_hour"]:
            raise ClusterError(
                f"{PRICES.name}: no price for {instance_type} ({name} in ec2.yaml): add it to instance_hour"
            )
        disk_gb = sum(disk["Ebs"]["VolumeSize"] for disk in node["BlockDeviceMappings"])
        price = prices["instance_hour"][instance_type] + disk_gb * prices["gp3_gb_month"] / HOURS_PER_MONTH
        spot = " (spot: less)" if "InstanceMarketOptions" in node else ""
        is_head = name == config["head_node_type"]
        at_start, at_most = (1, 1) if is_head else (group["min_workers"], group["max_workers"])
        items.append((f"{name}: {instance_type}, {disk_gb} GB{spot}", price, at_start, at_most))
    if settings.certificate:
        items.append(("load balancer, without traffic", prices["load_balancer_hour"], 1, 1))
    total_at_start = sum(price * start for _, price, start, _ in items)
    total_at_most = sum(price * most for _, price, _, most in items)
    rows = [("", "each", "at start", "at most")]
    rows += [(label, f"${price:.3f}", f"x {start}", f"x {most}") for label, price, start, most in items]
    rows.append(("per hour", "", f"${total_at_start:.2f}", f"${total_at_most:.2f}"))
    width = max(len(row[0]) for row in rows)
    lines = [f"{row[0]:<{width}}  {row[1]:>8}  {row[2]:>8}  {row[3]:>8}" for row in rows]
    other_region = "" if settings.region == prices["region"] else f"; prices in {settings.region} differ"
    return "\n".join([*lines, f"on-demand prices of {prices['region']}, {prices['date']}{other_region}"])
