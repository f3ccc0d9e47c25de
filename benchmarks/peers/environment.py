"""The peers' own virtual environment, made when it is first needed.

It sees our packages behind its own, so that torch is not installed twice, and nothing of it is ever
seen by ours.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
HOME = ROOT / ".venv-peers"
PYTHON = HOME / "bin" / "python"
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
STAMP = HOME / "installed"


def peers_python() -> Path:
    """The interpreter of the peers' environment, which is made if it is missing or out of date.

    Raises:
        CalledProcessError: pip failed; its message is above.
    """
    ours = sysconfig.get_path("purelib")
    expected_stamp = hashlib.sha256(REQUIREMENTS.read_bytes() + ours.encode()).hexdigest()
    if STAMP.exists() and STAMP.read_text() == expected_stamp:
        return PYTHON
    print("· installing the peers into .venv-peers")
    venv.create(HOME, with_pip=True, clear=True)
    major, minor = sys.version_info[:2]
    packages = HOME / "lib" / f"python{major}.{minor}" / "site-packages"
    (packages / "ours.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
    command = [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", REQUIREMENTS]
    subprocess.run(command, check=True)
    STAMP.write_text(expected_stamp)
    return PYTHON
