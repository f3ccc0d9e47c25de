"""A stand-in for S3 on loopback, and the environment in which boto3 and pyarrow use it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import httpx2
import pytest
from moto.server import ThreadedMotoServer


@contextmanager
def bucket(name: str) -> Iterator[Any]:
    """Yield boto3's client of an S3 that has one empty bucket."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    httpx2.post(f"http://127.0.0.1:{port}/moto-api/reset").raise_for_status()  # all servers of a process share buckets
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            patch.setenv(variable, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket=name)
        yield client
    server.stop()
