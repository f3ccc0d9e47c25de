"""No key, token or account number stands in any file of the repository."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECRETS = {
    "AWS access key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "AWS secret key": r"(?i)aws_secret_access_key\W{1,4}[0-9a-z/+]{40}\b",
    "AWS account": r"\barn:aws[\w-]*:\w+:[\w-]*:\d{12}:|\b\d{12}\.dkr\.ecr\.",
    "private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "GitHub token": r"\b(?:gh[oprsu]_[0-9A-Za-z]{36}|github_pat_\w{22,})\b",
    "token in an address": r"://[^\s/:@\"'$<{]+:[^\s/:@\"'$<{]+@",
}
EXAMPLES = {
    "AWS access key": "AKIA" + "Q" * 16,
    "AWS secret key": "aws_secret_access_key = " + "q" * 40,
    "AWS account": "arn:aws:iam::" + "1" * 12 + ":role/x",
    "private key": "-----BEGIN RSA " + "PRIVATE KEY-----",
    "GitHub token": "ghp_" + "q" * 36,
    "token in an address": "https://" + "me:word@example.org",
}


def files() -> list[Path]:
    command = ["git", "-C", str(ROOT), "ls-files", "-z"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in names.split("\0") if name and (ROOT / name).is_file()]


@pytest.mark.parametrize("kind", SECRETS)
def test_no_file_holds_a(kind: str) -> None:
    pattern = re.compile(SECRETS[kind])
    found = [path for path in files() if pattern.search(path.read_bytes().decode("latin-1"))]
    assert not found


@pytest.mark.parametrize("kind", SECRETS)
def test_it_would_be_found(kind: str) -> None:
    assert re.search(SECRETS[kind], EXAMPLES[kind])
