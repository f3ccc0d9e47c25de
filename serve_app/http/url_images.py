"""Images by URL: which URLs are allowed, and how many are fetched at a time. The Preprocessor fetches them."""

from __future__ import annotations

import asyncio
import logging

from serve_app.errors import ForbiddenSourceError, ServiceError
from serve_app.http.admission import Permit
from serve_app.http.service import Service
from serve_app.image_url import ImageUrl
from serve_app.images_by_url_config import ImagesByUrlConfig
from serve_app.messages import RemoteImage, RequestContext
from serve_app.routing.traffic_split import VariantChoice

MAX_FETCHES = 16  # of one ingress replica; further images wait, which keeps slow web servers from taking all memory
log = logging.getLogger("serve_app")


class UrlImages:
    """Has images fetched before they are classified, so that a slow web server keeps no other image waiting."""

    def __init__(self, service: Service) -> None:
        self._service, self._places = service, asyncio.Semaphore(MAX_FETCHES)

    async def fetch(
        self, url: ImageUrl, context: RequestContext, choice: VariantChoice, permit: Permit
    ) -> bytes | ServiceError:
        """Return the encoded file, or the error; its bytes are counted like those of a body."""
        config = self._service.config
        try:
            image = RemoteImage(url, check_allowed(url, config.images_by_url), config.limits, context)
            with permit.fetch():
                async with asyncio.timeout(context.deadline.left_s()), self._places:
                    encoded = await self._service.router.fetch(image, choice)
            permit.add_fetched(len(encoded), config.limits.max_body_bytes)
            return encoded
        except TimeoutError:
            return context.deadline.exceeded()
        except ServiceError as error:
            return error
        except Exception:
            log.exception("request %s, image %d", context.request_id, context.index)
            return ServiceError("this image could not be fetched; the server's log has the reason")


def check_allowed(url: ImageUrl, config: ImagesByUrlConfig | None) -> ImagesByUrlConfig:
    """Return the settings, or raise ForbiddenSourceError (403) if the operator does not allow the URL's host."""
    place = f"{url.scheme}://{url.authority}"
    if config is None:
        raise ForbiddenSourceError(
            f"url on {place}: images by URL are switched off; send the file, or set "
            f"`images_by_url: {{allowed_hosts: [{url.host}]}}` in the Ingress's user_config"
        )
    if not config.allows(url):
        raise ForbiddenSourceError(
            f"url on {place}: it is not in `images_by_url.allowed_hosts` of the Ingress's user_config; send the file, "
            "or an https URL on an allowed host"
        )
    return config
