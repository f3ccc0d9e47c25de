"""Create .venv and install the pinned packages into it. Runs on any Python 3, to say when that is too old.

Environment: WHEEL_INDEX names an additional wheel index, for example PyTorch's CPU-only index,
which avoids a 5 GB download on a machine without a GPU.
"""

import hashlib
import os
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.abspath(__file__))
VENV = os.path.join(ROOT, ".venv")
STAMP = os.path.join(VENV, "installed")  # fingerprint of the last installation that succeeded
REQUIRED_GB = 9
MINIMUM_PYTHON = (3, 11)


def main():
    """Create and install what is missing; return at once when everything is up to date."""
    current = fingerprint()
    if os.path.exists(STAMP):
        with open(STAMP) as stamp:
            if stamp.read() == current:
                return
    if sys.version_info < MINIMUM_PYTHON:
        sys.exit(
            "error: Python {}.{} or newer is needed, but {} is {}.{}: install a newer one, or name it with "
            "`make PYTHON=python3.12 …`".format(*MINIMUM_PYTHON, sys.executable, *sys.version_info[:2])
        )
    free_gb = shutil.disk_usage(ROOT).free / 1e9
    if free_gb < REQUIRED_GB and not os.environ.get("WHEEL_INDEX"):
        sys.exit(
            "error: {:.1f} GB of disk are free, the packages need {} GB (3 GB with WHEEL_INDEX set to a CPU-only "
            "index): free some space".format(free_gb, REQUIRED_GB)
        )
    python = os.path.join(VENV, "bin", "python")
    if not os.path.exists(python):
        print("· creating the virtual environment .venv", flush=True)
        run([sys.executable, "-m", "venv", VENV], "cannot create .venv: on Debian, `apt install python3-venv`")
    print("· installing the pinned packages into .venv (the first time takes a few minutes)", flush=True)
    command = [python, "-m", "pip", "install", "--disable-pip-version-check"]
    command += ["--constraint", os.path.join(ROOT, "constraints.txt"), "--editable", ROOT + "[page,train,test]"]
    if os.environ.get("WHEEL_INDEX"):
        command += ["--extra-index-url", os.environ["WHEEL_INDEX"]]
    run(command, "the packages could not be installed: see pip's message above")
    with open(STAMP, "w") as stamp:
        stamp.write(current)


def fingerprint():
    """Return a hash of everything that decides which packages are installed."""
    digest = hashlib.sha256(os.environ.get("WHEEL_INDEX", "").encode())
    for name in ("constraints.txt", "pyproject.toml"):
        with open(os.path.join(ROOT, name), "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()


def run(command, failure):
    """Run a command; if it fails, exit with one sentence."""
    if subprocess.call(command) != 0:
        sys.exit("error: " + failure)


if __name__ == "__main__":
    main()
