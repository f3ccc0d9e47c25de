"""The client for programs without an event loop: the operations of operations.py, driven by blocking sockets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

import httpx2

from serve_client.async_client import DEFAULT_URL, MAX_RETRIES, TIMEOUT_S, http_options
from serve_client.images import ImageInput
from serve_client.jobs import Jobs
from serve_client.operations import Operations
from serve_client.results import ImageResult, Models, Usage
from serve_client.session import Session
from serve_client.transport import BlockingTransport, iterate, run


class Client:
    """Calls one service; a ``with`` block closes its connections. Threads may share a client.

    Every method raises ``ProblemError`` if the service responds with an error, and ``NoResponseError`` if it does not
    respond; see serve_client/errors.py. ``timeout`` of a method is in seconds and replaces the client's.

    Args:
        url: The service's address.
        api_key: The API key, where the service needs one.
        timeout: Time for one call with all its repetitions, in seconds.
        max_retries: Most repetitions of a call: after 429, 502, 503 and 504, and after a lost connection. The client
            waits as long as ``Retry-After`` says. Votes are repeated only if the service had not begun.
        headers: Further headers of each request.
        transport: Replaces the network; tests use it.

    Attributes:
        jobs: Batch jobs.

    Raises:
        ValueError: ``url`` is not an http or https address.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout: float = TIMEOUT_S,
        max_retries: int = MAX_RETRIES,
        headers: Mapping[str, str] | None = None,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        http = httpx2.Client(transport=transport, **http_options(url, api_key, headers))
        self._operations = Operations(Session(BlockingTransport(http), timeout, max_retries))
        self.jobs = Jobs(self._operations.jobs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        run(self._operations.aclose())

    def classify(
        self,
        image: ImageInput,
        *,
        top_k: int | None = None,
        min_score: float | None = None,
        explain: bool = False,
        explain_class: int | None = None,
        embed: bool = False,
        model: str | None = None,
        timeout: float | None = None,
    ) -> ImageResult:
        """Classify one image.

        Args:
            image: A path, bytes, a binary file object, a Pillow image, a uint8 array of shape (height, width[, 3 or
                4]), or an http(s) address from which the client fetches the image.
            top_k: Number of classes; by default the service's.
            min_score: Leave out classes with a lower score.
            explain: Add a class activation map of the most likely class.
            explain_class: Add the map of this class instead.
            embed: Add the image's embedding.
            model: Variant of the model.
            timeout: Time for the call with its repetitions.

        Raises:
            UnreadableImageError: The image cannot be read; nothing was sent.
            ProblemError: The service refused the image, such as ``InvalidImageError``, or the request.
        """
        return run(
            self._operations.classify(
                image,
                top_k=top_k,
                min_score=min_score,
                explain=explain,
                explain_class=explain_class,
                embed=embed,
                model=model,
                timeout=timeout,
            )
        )

    def classify_many(
        self,
        images: Iterable[ImageInput],
        *,
        ordered: bool = True,
        progress: bool = False,
        top_k: int | None = None,
        min_score: float | None = None,
        explain: bool = False,
        embed: bool = False,
        model: str | None = None,
        timeout: float | None = None,
    ) -> Iterator[ImageResult]:
        """Classify any number of images; yield each one's result, with its ``index``, as it arrives.

        The images go in requests that keep the service's limits, and only those of one request are in memory. An image
        that fails has a result with an ``error``; images that the service refuses for a while are sent again.

        Args:
            images: Inputs as of ``classify``.
            ordered: Yield the results in the order of the images. Otherwise each result comes when it is ready.
            progress: Show a progress bar, which needs tqdm.
            top_k: Number of classes; by default the service's.
            min_score: Leave out classes with a lower score.
            explain: Add a class activation map of each image's most likely class.
            embed: Add each image's embedding.
            model: Variant of the model.
            timeout: Time for one request, with its repetitions.

        Raises:
            ProblemError: The service refused a whole request, such as ``UnauthorizedError``.
            NoResponseError: A request got no response in time.
        """
        return iterate(
            self._operations.classify_many(
                images,
                ordered=ordered,
                progress=progress,
                top_k=top_k,
                min_score=min_score,
                explain=explain,
                embed=embed,
                model=model,
                timeout=timeout,
            )
        )

    def embed(self, image: ImageInput, *, model: str | None = None, timeout: float | None = None) -> ImageResult:
        """Return one image's ``embedding``, 512 numbers, and no classes; the arguments are those of ``classify``.

        Only embeddings of the same ``version`` of the weights can be compared.
        """
        return run(self._operations.embed(image, model=model, timeout=timeout))

    def embed_many(
        self,
        images: Iterable[ImageInput],
        *,
        ordered: bool = True,
        progress: bool = False,
        model: str | None = None,
        timeout: float | None = None,
    ) -> Iterator[ImageResult]:
        """Embed any number of images; yield each one's result as it arrives.

        The arguments and errors are those of ``classify_many``.
        """
        return iterate(
            self._operations.embed_many(images, ordered=ordered, progress=progress, model=model, timeout=timeout)
        )

    def feedback(
        self,
        result: ImageResult | str,
        *,
        correct: bool | None = None,
        label: str | None = None,
        image: ImageInput | None = None,
        timeout: float | None = None,
    ) -> None:
        """Vote on a result.

        The vote is repeated only if the service refused it before it began, so it counts once.

        Args:
            result: The result, or the id of a request with one image.
            correct: Whether the most likely class is right.
            label: The right class.
            image: The image again, for a service that keeps images under their ``label``.
            timeout: Time for the call with its repetitions.

        Raises:
            FeedbackOffError: The service takes no feedback.
            InvalidParameterError: The model has no such class, or the service keeps no images.
        """
        run(self._operations.feedback(result, correct=correct, label=label, image=image, timeout=timeout))

    def models(self) -> Models:
        """Return the served models, the limits of a request, and the accepted formats."""
        return run(self._operations.models())

    def labels(self, name: str | None = None, *, model: str | None = None) -> list[str]:
        """Return the class names, by class id; ``model`` is the variant, ``name`` by default the model that serves."""
        return run(self._operations.labels(name, model=model))

    def status(self) -> dict[str, Any]:
        """Return the state of the service, and totals of one ingress replica since its start."""
        return run(self._operations.status())

    def usage(self) -> Usage:
        """Return what the caller has used, and may use, at one ingress replica."""
        return run(self._operations.usage())

    def ready(self) -> bool:
        """Return whether a model answers now, without repetitions; without a response, NoResponseError is raised."""
        return run(self._operations.ready())
