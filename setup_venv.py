"""Make .venv and install the pinned packages into it. Runs on any Python 3, to say when it is too old.

Environment: WHEEL_INDEX names another wheel index to look at as well, for example PyTorch's
CPU-only one, which saves 5 GB of downloads where there is no GPU.
"""

import hashlib
import os
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.abspath(__file__))
VENV = os.path.join(ROOT, ".venv")
STAMP = os.path.join(VENV, "installed")
NEEDED_GB = 9
PYTHON = (3, 11)


def main():
    """Do what is missing; a second run takes no time."""
    wanted = fingerprint()
    if os.path.exists(STAMP):
        with open(STAMP) as stamp:
            if stamp.read() == wanted:
                return
    if sys.version_info < PYTHON:
        sys.exit(
            "error: Python {}.{} or newer is needed, {} is {}.{}: install one, or name it with "
            "`make PYTHON=python3.12 …`".format(*PYTHON, sys.executable, *sys.version_info[:2])
        )
    free = shutil.disk_usage(ROOT).free / 1e9
    if free < NEEDED_GB and not os.environ.get("WHEEL_INDEX"):
        sys.exit(
            "error: {:.1f} GB of disk are free, the packages need {} (with CUDA; 3 with WHEEL_INDEX set to a "
            "CPU-only index): free some space".format(free, NEEDED_GB)
        )
    python = os.path.join(VENV, "bin", "python")
    if not os.path.exists(python):
        say("making the virtual environment .venv")
        failure = "a virtual environment cannot be made (on Debian: apt install python3-venv)"
        run([sys.executable, "-m", "venv", VENV], failure)
    say("installing pinned packages into .venv (a few minutes the first time; torch with CUDA is large)")
    command = [python, "-m", "pip", "install", "--disable-pip-version-check"]
    command += ["--constraint", os.path.join(ROOT, "constraints.txt"), "--editable", ROOT + "[page,train,test]"]
    if os.environ.get("WHEEL_INDEX"):
        command += ["--extra-index-url", os.environ["WHEEL_INDEX"]]
    run(command, "the packages could not be installed; pip's message above says why")
    with open(STAMP, "w") as stamp:
        stamp.write(wanted)


def fingerprint():
    """A hash of everything that decides what is installed."""
    digest = hashlib.sha256(os.environ.get("WHEEL_INDEX", "").encode())
    for name in ("constraints.txt", "pyproject.toml"):
        with open(os.path.join(ROOT, name), "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()


def run(command, failure):
    """Run a command; when it fails, end with one sentence."""
    if subprocess.call(command) != 0:
        sys.exit("error: " + failure)


def say(what):
    """Tell the user what is being done."""
    print("· " + what, flush=True)


if __name__ == "__main__":
    main()
