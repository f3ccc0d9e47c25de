"""No file of the repository contains a key, a token or an account number."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.support.paths import ROOT

SECRETS = {
    "AWS access key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "AWS secret key": r"(?i)aws_secret_access_key\W{1,4}[0-9a-z/+]{40}\b",
    # AWS's own examples and moto use the account 123456789012.
    "AWS account": r"\barn:aws[\w-]*:\w+:[\w-]*:(?!123456789012)\d{12}:|\b\d{12}\.dkr\.ecr\.",
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


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    """Contents of every tracked text file by name."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    contents = {name: (ROOT / name).read_bytes() for name in names if (ROOT / name).is_file()}
    return {name: content.decode() for name, content in contents.items() if b"\0" not in content[:8000]}


@pytest.mark.parametrize("kind", SECRETS)
def test_no_file_contains_a_secret(texts: dict[str, str], kind: str) -> None:
    """No tracked text file matches the pattern of that kind."""
    assert len(texts) > 50
    assert not [name for name, text in texts.items() if re.search(SECRETS[kind], text)]


@pytest.mark.parametrize("kind", SECRETS)
def test_the_pattern_matches_its_example(kind: str) -> None:
    """Guards against a pattern that never matches."""
    assert re.search(SECRETS[kind], EXAMPLES[kind])
