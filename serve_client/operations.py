"""What the client can do, written once, as coroutines; client.py makes blocking methods of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Sequence, Sized
from contextlib import aclosing
from dataclasses import replace
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from serve_client.batches import Batches, in_order
from serve_client.errors import ProblemError
from serve_client.from_json import from_json
from serve_client.head_operations import HeadOperations
from serve_client.images import ImageInput
from serve_client.job_operations import JobOperations
from serve_client.parse import to_image_result
from serve_client.progress import progress_bar
from serve_client.results import ImageResult, Limits, Models, Usage
from serve_client.session import Request, Session

CLASSIFY_PATH, EMBED_PATH = "/v1/classify", "/v1/embed"


class Operations:
    """The operations of the asynchronous client.

    Every operation raises ``ProblemError`` if the service responds with an error, and ``NoResponseError`` if it does
    not respond; see serve_client/errors.py. ``timeout`` is in seconds and replaces the client's.

    Attributes:
        heads: Heads, the classes that you teach.
        jobs: Batch jobs.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._limits: Limits | None = None
        self.heads = HeadOperations(session)
        self.jobs = JobOperations(session)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._session.transport.aclose()

    async def classify(
        self,
        image: ImageInput,
        *,
        top_k: int | None = None,
        min_score: float | None = None,
        explain: bool = False,
        explain_class: int | None = None,
        embed: bool = False,
        head: str | Sequence[str] | None = None,
        similar: int | None = None,
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
            head: Name of a head, or of several, to ask too; see ``ImageResult.heads``.
            similar: Number of the most similar taught photos of each head to name.
            model: Variant of the model.
            timeout: Time for the call with its repetitions.

        Raises:
            UnreadableImageError: The image cannot be read; nothing was sent.
            ProblemError: The service refused the image, such as ``InvalidImageError``, or the request.
        """
        params = _params(top_k, min_score, explain, explain_class, embed, head, similar)
        return await self._send_one(
            Request("POST", CLASSIFY_PATH, {"params": params, "headers": _model(model)}), image, timeout
        )

    async def classify_many(
        self,
        images: Iterable[ImageInput] | AsyncIterable[ImageInput],
        *,
        ordered: bool = True,
        progress: bool = False,
        top_k: int | None = None,
        min_score: float | None = None,
        explain: bool = False,
        embed: bool = False,
        head: str | Sequence[str] | None = None,
        model: str | None = None,
        timeout: float | None = None,
    ) -> AsyncGenerator[ImageResult, None]:
        """Classify any number of images; yield each one's result, with its ``index``, as it arrives.

        The images go in requests that keep the service's limits, and only those of one request are in memory. An image
        that fails has a result with an ``error``; images that the service refuses for a while are sent again.

        Args:
            images: Inputs as of ``classify``. ``AsyncClient`` takes an asynchronous iterable too.
            ordered: Yield the results in the order of the images. Otherwise each result comes when it is ready.
            progress: Show a progress bar, which needs tqdm.
            top_k: Number of classes; by default the service's.
            min_score: Leave out classes with a lower score.
            explain: Add a class activation map of each image's most likely class.
            embed: Add each image's embedding.
            head: As of ``classify``.
            model: Variant of the model.
            timeout: Time for one request, with its repetitions.

        Raises:
            ProblemError: The service refused a whole request, such as ``UnauthorizedError``.
            NoResponseError: A request got no response in time.
        """
        params = _params(top_k, min_score, explain, None, embed, head, None)
        request = Request("POST", CLASSIFY_PATH, {"params": params, "headers": _model(model)})
        async with aclosing(self._send_many(request, images, ordered, progress, timeout)) as results:
            async for result in results:
                yield result

    async def embed(self, image: ImageInput, *, model: str | None = None, timeout: float | None = None) -> ImageResult:
        """Return one image's ``embedding``, 512 numbers, and no classes; the arguments are those of ``classify``.

        Only embeddings of the same ``version`` of the weights can be compared.
        """
        return await self._send_one(Request("POST", EMBED_PATH, {"headers": _model(model)}), image, timeout)

    async def embed_many(
        self,
        images: Iterable[ImageInput] | AsyncIterable[ImageInput],
        *,
        ordered: bool = True,
        progress: bool = False,
        model: str | None = None,
        timeout: float | None = None,
    ) -> AsyncGenerator[ImageResult, None]:
        """Embed any number of images; yield each one's result as it arrives.

        The arguments and errors are those of ``classify_many``.
        """
        request = Request("POST", EMBED_PATH, {"headers": _model(model)})
        async with aclosing(self._send_many(request, images, ordered, progress, timeout)) as results:
            async for result in results:
                yield result

    async def feedback(
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
        request_id, index = (result, 0) if isinstance(result, str) else (result.request_id, result.request_index)
        if request_id is None:
            raise ValueError("this image was not sent, so there is no result to vote on")
        vote = {"request_id": request_id, "index": index, "correct": correct, "label": label}
        options: dict[str, Any] = {"json": {name: value for name, value in vote.items() if value is not None}}
        if image is not None:
            encoded = await self._session.encode(image, timeout)
            fields = {name: str(value) for name, value in options["json"].items()}
            options = {"data": fields, "files": {"image": (encoded.name or "image", encoded.data)}}
        await self._session.send(Request("POST", "/v1/feedback", options, repeatable=False), timeout)

    async def models(self) -> Models:
        """Return the served models, the limits of a request, and the accepted formats."""
        return from_json(Models, await self._get("/v1/models"))

    async def labels(self, name: str | None = None, *, model: str | None = None) -> list[str]:
        """Return the class names, by class id; ``model`` is the variant, ``name`` by default the model that serves."""
        if name is None:
            name = (await self.models()).models[0].name
        request = Request("GET", f"/v1/models/{quote(name, safe='')}/labels", {"headers": _model(model)})
        return list((await self._session.send(request)).member("labels"))

    async def status(self) -> dict[str, Any]:
        """Return the state of the service, and totals of one ingress replica since its start."""
        return dict(await self._get("/v1/status"))

    async def usage(self) -> Usage:
        """Return what the caller has used, and may use, at one ingress replica."""
        return from_json(Usage, await self._get("/v1/usage"))

    async def ready(self) -> bool:
        """Return whether a model answers now, without repetitions; without a response, NoResponseError is raised."""
        try:
            await self._session.send(Request("GET", "/readyz"), max_retries=0)
        except ProblemError as error:
            if error.status == HTTPStatus.SERVICE_UNAVAILABLE:
                return False
            raise
        return True

    async def _send_one(self, request: Request, image: ImageInput, timeout: float | None) -> ImageResult:
        """Send a request with one image as its body."""
        encoded = await self._session.encode(image, timeout)
        headers = {"Content-Type": "application/octet-stream", **request.options["headers"]}
        options = {**request.options, "headers": headers, "content": encoded.data}
        reply = await self._session.send(replace(request, options=options), timeout)
        (result,) = reply.member("results")
        return replace(to_image_result(result, reply.headers), name=encoded.name)

    async def _send_many(
        self,
        request: Request,
        images: Iterable[ImageInput] | AsyncIterable[ImageInput],
        ordered: bool,
        progress: bool,
        timeout: float | None,
    ) -> AsyncGenerator[ImageResult, None]:
        """Send a request's path, query and headers with as many images at a time as the service takes."""
        if self._limits is None:
            self._limits = (await self.models()).limits
        results = Batches(self._session, self._limits, request, timeout).results(images)
        total = len(images) if isinstance(images, Sized) else None
        failed = 0
        with progress_bar(progress, total) as bar:
            async with aclosing(in_order(results) if ordered else results) as ready:
                done = 0
                async for result in ready:
                    done, failed = done + 1, failed + (not result.ok)
                    bar.show(done, total, f"failed={failed}")
                    yield result

    async def _get(self, path: str) -> Any:
        return (await self._session.send(Request("GET", path))).json()


def _params(
    top_k: int | None,
    min_score: float | None,
    explain: bool,
    explain_class: int | None,
    embed: bool,
    head: str | Sequence[str] | None,
    similar: int | None,
) -> dict[str, Any]:
    params = {
        "top_k": top_k,
        "min_score": min_score,
        "explain": "cam" if explain or explain_class is not None else None,
        "explain_class": explain_class,
        "embed": "true" if embed else None,
        "head": head if head is None or isinstance(head, str) else ",".join(head),
        "similar": similar,
    }
    return {name: value for name, value in params.items() if value is not None}


def _model(variant: str | None) -> dict[str, str]:
    return {} if variant is None else {"X-Model": variant}
