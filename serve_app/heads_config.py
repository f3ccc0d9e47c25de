"""Settings of heads: classes that clients teach. They are part of ``IngressConfig``; see serve_app/config.py."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from serve_app.settings import Bytes, Days, FrozenModel, MiB, Unit

Photos = Annotated[int, Field(ge=1), Unit("photos")]


def _check_folder(folder: str) -> str:
    if "://" in folder:
        raise ValueError("a bucket cannot hold heads; name a folder, such as a volume that all nodes mount")
    return folder


class HeadsConfig(FrozenModel):
    """Classes that clients teach from photos, and where they are stored."""

    folder: Annotated[str, AfterValidator(_check_folder)] = Field(
        ...,
        description="Folder of the heads; all ingress replicas share it. Relative: as for jobs.",
    )
    keep_photos: bool = Field(
        False, description="Keep the taught photos, to fit heads again by themselves when the weights change."
    )
    keep_versions: Annotated[int, Unit("versions")] = Field(
        5, ge=1, le=100, description="Earlier versions of a head to keep; a rollback takes one of them."
    )
    max_heads: Annotated[int, Unit("heads")] = Field(100, ge=1, description="Most heads of one API key.")
    max_classes: Annotated[int, Unit("classes")] = Field(100, ge=1, le=1000, description="Most classes of a head.")
    max_photos_per_class: Photos = Field(500, description="Most photos of one class.")
    max_photos: Photos = Field(2000, description="Most photos of a head.")
    max_photos_per_request: Photos = Field(256, description="Most photos in one request.")
    max_bytes: Bytes = Field(
        1024 * MiB, description="Most bytes of all heads of one API key, old versions and kept photos included."
    )
    max_suggestions: Photos = Field(200, description="Most suggestions that wait for the owner of a head.")
    max_suggestions_per_key: Photos = Field(
        50, description="Most suggestions of one API key that wait for the owner of a head."
    )
    max_suggestion_bytes: Bytes = Field(
        64 * MiB, description="Most bytes of the suggestions that wait for the owner of a head, kept photos included."
    )
    keep_suggestions_days: Days = Field(
        30, ge=1, description="Days after which a suggestion that nobody has decided is deleted."
    )
