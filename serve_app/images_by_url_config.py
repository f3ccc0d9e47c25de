"""Settings of images by URL. They are part of ``IngressConfig``; see serve_app/config.py."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, IPvAnyNetwork

from serve_app.image_url import HostRule, ImageUrl
from serve_app.settings import FrozenModel, Seconds, Unit


def _check_host_rule(entry: str) -> str:
    HostRule.parse(entry)
    return entry


class ImagesByUrlConfig(FrozenModel):
    """Images that a JSON body names by URL; the Preprocessor fetches them, with the limits of an upload."""

    allowed_hosts: tuple[Annotated[str, AfterValidator(_check_host_rule)], ...] = Field(
        ...,
        description="Hosts that it may fetch from: `photos.example`, `*.photos.example` (the names below it), "
        "`photos.example:8443`, `http://photos.example`; without a scheme https only.",
    )
    allowed_networks: tuple[IPvAnyNetwork, ...] = Field(
        (),
        description="Networks that are not part of the public internet, such as `10.1.0.0/16`, to which the names of "
        "these hosts may lead.",
    )
    timeout_s: Seconds = Field(10.0, description="Longest time to fetch one image, redirects included.")
    max_redirects: Annotated[int, Unit("redirects")] = Field(
        3, ge=0, le=10, description="Most redirects of one image; each has to stay on allowed hosts."
    )

    def allows(self, url: ImageUrl) -> bool:
        """Return whether a URL's scheme, host and port are allowed."""
        return any(HostRule.parse(entry).matches(url) for entry in self.allowed_hosts)
