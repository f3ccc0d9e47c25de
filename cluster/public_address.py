"""One classification as a client sends it: through the load balancer, with its certificate, under the public name."""

from __future__ import annotations

import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx2

from cluster.settings import ClusterError
from serve_app.release.serve_config import read
from serve_app.release.smoke import TIMEOUT_S, TOP_K, find_problems, generate_image

ATTEMPTS, PAUSE_S = 12, 10  # the name of a new load balancer takes a minute or two to appear in AWS's DNS


def check(public_url: str, load_balancer: str, api_key: str | None, config: Path, port: int = 443) -> None:
    """Classify an image; does not ask DNS for the public name, which may not be there yet, or lead elsewhere.

    Args:
        public_url: The clients' address; its name must be in the certificate.
        load_balancer: DNS name of the load balancer.
        api_key: Sent if given.
        config: The Serve config that is live.
        port: Of the load balancer.

    Raises:
        ClusterError: No response, or one that is not a classification.
    """
    host = str(urlsplit(public_url).hostname)
    headers = {"Host": host} | ({"Authorization": f"Bearer {api_key}"} if api_key else {})
    url = f"https://{load_balancer}:{port}/v1/classify?top_k={TOP_K}"
    (app, *_) = read(config)["applications"]
    image, options = generate_image(), {"sni_hostname": host}  # the name that the certificate is checked for
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with httpx2.Client(headers=headers, timeout=TIMEOUT_S) as client:
                response = client.post(url, content=image, extensions=options)
        except httpx2.HTTPError as error:
            problem = str(error)
        else:
            if not (problem := "; ".join(find_problems(response, app))):
                return
        if attempt < ATTEMPTS:
            time.sleep(PAUSE_S)
    raise ClusterError(f"{public_url} through {load_balancer}: {problem}")
