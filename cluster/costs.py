"""What the nodes of ec2.yaml cost per hour."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from cluster.settings import ClusterError

PRICES = Path(__file__).with_name("prices.yaml")
HOURS_PER_MONTH = 730


def cost_table(config: dict[str, Any], region: str, load_balancer: bool) -> str:
    """Lay out the price per hour at start and when every group is full.

    Args:
        config: Of `ray up`; placeholders may still be in it.
        region: Where it would run, to be named if the prices are another region's.
        load_balancer: Whether there is one.

    Raises:
        ClusterError: An instance type has no price.
    """
    prices = yaml.safe_load(PRICES.read_text())
    rows = [("", "each", "at start", "at most")]
    totals = [0.0, 0.0]
    for name, group in config["available_node_types"].items():
        head = name == config["head_node_type"]
        node = group["node_config"]
        kind = node["InstanceType"]
        if kind not in prices["instance_hour"]:
            raise ClusterError(f"{PRICES.name}: no price for {kind} ({name} in ec2.yaml): add it to instance_hour")
        disk_gb = sum(disk["Ebs"]["VolumeSize"] for disk in node["BlockDeviceMappings"])
        each = prices["instance_hour"][kind] + disk_gb * prices["gp3_gb_month"] / HOURS_PER_MONTH
        least, most = (1, 1) if head else (group["min_workers"], group["max_workers"])
        spot = " (spot: less)" if "InstanceMarketOptions" in node else ""
        rows.append((f"{name}: {kind}, {disk_gb} GB{spot}", f"${each:.3f}", f"x {least}", f"x {most}"))
        totals = [totals[0] + least * each, totals[1] + most * each]
    if load_balancer:
        each = prices["load_balancer_hour"]
        rows.append(("load balancer, without traffic", f"${each:.3f}", "x 1", "x 1"))
        totals = [total + each for total in totals]
    rows.append(("per hour", "", f"${totals[0]:.2f}", f"${totals[1]:.2f}"))
    width = max(len(row[0]) for row in rows)
    lines = [f"{row[0]:<{width}}  {row[1]:>8}  {row[2]:>8}  {row[3]:>8}" for row in rows]
    elsewhere = "" if region == prices["region"] else f"; {region} differs"
    return "\n".join([*lines, f"on-demand prices of {prices['region']}, {prices['date']}{elsewhere}"])
