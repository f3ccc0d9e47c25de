"""Read the photos that teach a head: a form whose fields are classes, or a zip with a folder per class."""

from __future__ import annotations

import hashlib
import io
import stat
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from starlette.requests import Request

from serve_app.config import LimitsConfig
from serve_app.errors import (
    ArchiveError,
    MalformedRequestError,
    ServiceError,
    TooLargeError,
    TooManyPhotosError,
    UnsupportedImageError,
)
from serve_app.heads.names import clean_class_name
from serve_app.heads_config import HeadsConfig
from serve_app.http.form_body import FORM, FormSchema, read_form
from serve_app.http.json_body import off_loop
from serve_app.http.limited_request import LimitedRequest
from serve_app.http.unknown_parameters import note_unknown
from serve_app.http.uploads import content_type
from serve_app.zip_entries import (
    DIRECTORY_BYTES_PER_ENTRY,
    ZipFileEntry,
    ZipNameError,
    directory_bytes,
    list_files,
    open_zip,
    quote,
    read_entry,
    unreadable_reason,
)

ZIP_TYPES = ("application/zip", "application/x-zip-compressed", "application/x-zip")
MAX_ENTRIES_PER_PHOTO = 4  # of a zip: folders and hidden files are entries too


@dataclass(frozen=True)
class Photo:
    """A photo of a class, still encoded."""

    class_name: str  # as ``clean_class_name`` returns it
    name: str  # what an error calls it: the file's name or path, or its number
    encoded: bytes

    @property
    def sha256(self) -> str:
        """SHA-256 of the file, in hex."""
        return hashlib.sha256(self.encoded).hexdigest()

    def failed(self, error: ServiceError) -> ServiceError:
        """Return an error of this photo that names it."""
        return type(error)(f"class {self.class_name!r}, photo {self.name}: {error}; nothing was stored")


async def read_photos(request: Request, limits: LimitsConfig, heads: HeadsConfig) -> list[Photo]:
    """Read the photos of a request, at least one; a form's fields without a file become warnings.

    Raises:
        MalformedRequestError: The body does not parse, or holds no photo (400).
        TooManyPhotosError: There are more than ``heads.max_photos_per_request`` (413).
        TooLargeError: The body or a photo has too many bytes; the error names the photo (413).
        UnsupportedImageError: The body is neither a form nor a zip (415).
        ArchiveError: An entry of the zip is not accepted (422).
        InvalidParameterError: The name of a class is not accepted (422).
    """
    body, kind = LimitedRequest(request.scope, request.receive, limits.max_body_bytes), content_type(request)
    if kind == FORM:
        return await _read_form(request, body, limits, heads.max_photos_per_request)
    if kind in ZIP_TYPES:
        content = await body.body()
        return await off_loop(len(content), _read_zip, content, limits, heads.max_photos_per_request)
    raise UnsupportedImageError(
        f"content type {kind!r:.80}: send multipart/form-data with a field per class, or application/zip with a folder "
        "per class"
    )


async def _read_form(request: Request, body: LimitedRequest, limits: LimitsConfig, max_photos: int) -> list[Photo]:
    schema = FormSchema(None, (), max_photos, limits.max_image_bytes, TooManyPhotosError)
    form = await read_form(body.stream(), request.headers["content-type"], schema)
    note_unknown(request, "form field without a file", form.unknown, ())
    if not form.files:
        raise MalformedRequestError("the form contains no file: send photos as files, in a field named as their class")
    photos = []
    for number, file in enumerate(form.files, 1):
        photo = Photo(clean_class_name(file.field_name), f"{number} ({file.name or 'no name'!r:.100})", b"")
        if isinstance(file.content, ServiceError):
            raise photo.failed(file.content)
        photos.append(Photo(photo.class_name, photo.name, file.content))
    return photos


def _read_zip(content: bytes, limits: LimitsConfig, max_photos: int) -> list[Photo]:
    file = io.BytesIO(content)
    try:
        if directory_bytes(file) > DIRECTORY_BYTES_PER_ENTRY * MAX_ENTRIES_PER_PHOTO * max_photos:
            raise TooManyPhotosError(f"the zip has more than {max_photos} photos, the limit of one request")
        with open_zip(file) as archive:
            return list(_photos(archive, list_files(archive), limits, max_photos))
    except ZipNameError as error:
        raise ArchiveError(str(error)) from None
    except (OSError, zipfile.BadZipFile) as error:
        raise MalformedRequestError(f"not a complete zip file ({error})") from None


def _photos(
    archive: zipfile.ZipFile, files: Sequence[ZipFileEntry], limits: LimitsConfig, max_photos: int
) -> Iterator[Photo]:
    if not files:
        raise MalformedRequestError("the zip holds no files (hidden files do not count); put a folder per class in it")
    if len(files) > max_photos:
        raise TooManyPhotosError(f"the zip has {len(files)} photos; the limit of one request is {max_photos}")
    left = limits.max_body_bytes  # photos hardly shrink in a zip, so more bytes are a zip bomb
    for parts, entry in zip(_class_paths(files), files, strict=True):
        if len(parts) < 2:
            raise ArchiveError(f"{quote(entry.path)} is in no folder; put each photo into the folder of its class")
        if reason := unreadable_reason(entry.info):
            raise ArchiveError(f"{quote(entry.path)} {reason}")
        if stat.S_IFMT(entry.info.external_attr >> 16) not in (0, stat.S_IFREG):
            raise ArchiveError(f"{quote(entry.path)} is a link or a device; zip the files themselves")
        photo = Photo(clean_class_name(parts[0]), quote(entry.path), b"")
        encoded = read_entry(archive, entry.info, limits.max_image_bytes)
        if len(encoded) > limits.max_image_bytes:
            raise photo.failed(TooLargeError.over("the image", entry.info.file_size, limits.max_image_bytes))
        if (left := left - len(encoded)) < 0:
            raise TooLargeError(f"the zip unpacks to more than {limits.max_body_bytes / 2**20:.1f} MB, the limit")
        yield Photo(photo.class_name, photo.name, encoded)


def _class_paths(files: Sequence[ZipFileEntry]) -> list[list[str]]:
    """Return the parts of each path, without folders that hold all the folders of classes."""
    paths = [file.path.split("/") for file in files]
    while all(len(path) > 2 for path in paths) and len({path[0] for path in paths}) == 1:
        paths = [path[1:] for path in paths]
    return paths
