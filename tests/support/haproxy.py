"""HAProxy configurations as the installed Ray renders them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions

FALLBACK_PORT = 8500


def render(folder: Path, applications: dict[str, list[int]], api_port: int = 8000, **settings: Any) -> Path:
    """Write the configuration that Ray would write.

    Args:
        folder: For the configuration and HAProxy's sockets.
        applications: Ports of the ingress replicas of each application, by route prefix.
        api_port: Where HAProxy listens.
        settings: Fields of Ray's HAProxyConfig.

    Returns:
        Path of the configuration.
    """
    config = HAProxyConfig(
        socket_path=str(folder / "admin.sock"),
        metrics_socket_path=str(folder / "metrics.sock"),
        server_state_base=str(folder),
        server_state_file=str(folder / "server-state"),
        has_received_routes=True,
        has_received_servers=True,
        is_head=True,
        http_options=HTTPOptions(host="127.0.0.1", port=api_port),
        **settings,
    )
    backends = {
        name: BackendConfig(
            name=f"http-{name}",
            path_prefix=prefix,
            app_name=name,
            servers=[ServerConfig(f"replica-{port}", "127.0.0.1", port) for port in ports],
            fallback_server=ServerConfig("fallback", "127.0.0.1", FALLBACK_PORT),
        )
        for prefix, ports in applications.items()
        for name in (prefix.strip("/") or "main",)
    }
    path = folder / "haproxy.cfg"
    HAProxyApi(config, backends, str(path))._generate_config_file_internal()
    return path
