"""Errors of jobs: no path of the server, and everything else unchanged."""

from __future__ import annotations

import pytest

from serve_app.http.jobs.errors import hide_paths

LOCATION = "/srv/app/.jobs/0a/upload.zip"


@pytest.mark.parametrize(
    ("error", "visible"),
    [
        (f"{LOCATION} holds no files", "a b.zip holds no files"),
        (f"{LOCATION}: cannot be read", "a b.zip: cannot be read"),
        (f"in {LOCATION}.", "in a b.zip."),
        (f"{LOCATION}2 and {LOCATION}.part", "… and …"),
        ("[Errno 28] No space left on device: '/srv/my data/x y.parquet'", "[Errno 28] No space left on device: '…'"),
        ('cannot open "/srv/my data/x"; stop', 'cannot open "…"; stop'),
        (
            "/a/b has results of source '/c/d': choose another folder",
            "… has results of source '…': choose another folder",
        ),
        ("(/a/b, /c) file=/d/e file:///f/g", "(…, …) file=… …"),
        ("weights s3://models/x.safetensors, http://host:1/a and/or 1/2 of a/b", None),
        ("the zip has 3 / 4 files; use names such as a/b.jpg", None),
    ],
)
def test_paths_are_hidden(error: str, visible: str | None) -> None:
    """The job's source gets the client's name; addresses, fractions and relative names stay."""
    assert hide_paths(error, LOCATION, "a b.zip") == (error if visible is None else visible)


@pytest.mark.parametrize("source", ["/data/photos", "/data/photos/"])
def test_a_source_stands_as_the_client_named_it(source: str) -> None:
    error = "/mnt/disk/photos/a b.jpg: broken; /mnt/disk/photos2/c.jpg too"
    assert hide_paths(error, "/mnt/disk/photos", source) == "/data/photos/a b.jpg: broken; … too"
    assert hide_paths("s3://photos/in holds no files", "s3://photos/in", "s3://photos/in/") == (
        "s3://photos/in holds no files"
    )
