"""Drain the Ray node of a spot instance when EC2 announces that it will reclaim the instance.

``python -m serve_app.launcher.spot_notice HEAD:PORT`` runs beside Ray on every worker of cluster/ec2.yaml. EC2
announces the end two minutes ahead in the instance's metadata; AWS recommends a look every 5 seconds. Serve starts the
replicas of a draining node on other nodes, and stops the old ones once the new ones run. An on-demand instance gets no
notice.

https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
"""

from __future__ import annotations

import os
import sys
import time
from datetime import datetime

import httpx2

from serve_app.console import say

METADATA = "http://169.254.169.254"
METADATA_VARIABLE = "AWS_EC2_METADATA_SERVICE_ENDPOINT"  # as AWS's own programs read it
POLL_S = 5
TIMEOUT_S = 10


def main() -> None:
    """Poll for the notice until the instance ends. After the notice, drain each Ray node of the instance."""
    address, drained = sys.argv[1], set[str]()
    url = os.environ.get(METADATA_VARIABLE, METADATA)
    with httpx2.Client(base_url=url, timeout=TIMEOUT_S, trust_env=False) as metadata:  # never through a proxy
        while True:
            try:
                if end := read_notice(metadata):
                    own_ip = read(metadata, "local-ipv4").raise_for_status().text
                    drained |= drain(address, own_ip, end, drained)
            except Exception as error:  # of the metadata service or of Ray: the next look may succeed
                say(f"{type(error).__name__}: {error}; looking again in {POLL_S} s")
            time.sleep(POLL_S)


def read_notice(metadata: httpx2.Client) -> datetime | None:
    """Return when EC2 will stop or terminate this instance; None without a notice."""
    notice = read(metadata, "spot/instance-action")
    return None if notice.status_code == 404 else datetime.fromisoformat(notice.raise_for_status().json()["time"])


def read(metadata: httpx2.Client, path: str) -> httpx2.Response:
    """Read an item of the instance's metadata with a session token (IMDSv2)."""
    token = metadata.put("/latest/api/token", headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"}).raise_for_status()
    return metadata.get(f"/latest/meta-data/{path}", headers={"X-aws-ec2-metadata-token": token.text})


def drain(address: str, node_ip: str, end: datetime, drained: set[str]) -> set[str]:
    """Drain the Ray nodes with an IP address, except those that were drained before; return the ids of all of them.

    Ray may start a second node on the instance when it has lost the first. Raises RuntimeError if Ray refuses.
    """
    # Heavy, and needed only when the end is near. The modules are compiled or generated and carry no types.
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION  # type: ignore[attr-defined]
    from ray.core.generated.gcs_pb2 import GcsNodeInfo  # type: ignore[attr-defined]

    control_plane = GcsClient(address=address)
    nodes = control_plane.get_all_node_info(timeout=TIMEOUT_S).items()
    own = {id_.hex() for id_, node in nodes if (node.state, node.node_manager_address) == (GcsNodeInfo.ALIVE, node_ip)}
    for node_id in own - drained:
        # `ray drain-node` does the same, but starts a driver to learn the node's id.
        message = f"EC2 reclaims this spot instance at {end:%H:%M:%S} UTC"
        deadline_ms = int(end.timestamp() * 1000)
        accepted, reason = control_plane.drain_node(node_id, DRAIN_NODE_REASON_PREEMPTION, message, deadline_ms)
        if not accepted:
            raise RuntimeError(f"Ray does not drain node {node_id}: {reason}")
        say(f"{message}; draining Ray's node {node_id}")
    return own


if __name__ == "__main__":
    main()
