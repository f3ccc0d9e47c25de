"""Create .venv and install the pinned packages that a make target needs.

`python3 setup_venv.py` installs what serves API and page. Names of extras of pyproject.toml, separated by commas, add
to that; what is installed already stays. Runs on any Python 3, to say when that is too old.

torch exists as CUDA builds, which pip's own index has, and as much smaller CPU builds, which PyTorch's index has. The
CPU builds are taken if there is no NVIDIA driver and that index answers. The environment variable WHEEL_INDEX decides
otherwise: the address of an index takes its builds, `none` takes those of pip's own index.
"""

import collections
import glob
import hashlib
import http.client
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request

ROOT = os.path.dirname(os.path.abspath(__file__))
VENV = os.path.join(ROOT, ".venv")
MINIMUM_PYTHON = (3, 11)
NVIDIA_DRIVER = "/proc/driver/nvidia/version"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CPU_INDEX_TIMEOUT_S = 3
# MB to fetch and MB on disk, on Linux x86-64 with Python 3.11; docs/verified.md says how they were measured.
PACKAGES_MB, CPU_TORCH_MB, CUDA_TORCH_MB = (410, 1530), (200, 700), (3010, 5580)
EXTRAS_MB = {"test": (190, 770), "notebook": (30, 160)}
OTHER_EXTRA_MB = (20, 80)
TORCH = ("torch", "torchvision")


def main(extras):
    """Create and install what is missing; return at once when everything is up to date."""
    before = read_stamp()
    new_extras = sorted(set(extras) - set(before["extras"]))
    choice = [os.environ.get("WHEEL_INDEX", ""), has_nvidia_driver()]
    files = fingerprint()
    if (before["files"], before["choice"], new_extras) == (files, choice, []):
        return
    started = time.time()
    check_python()
    is_new_torch = before["choice"] != choice
    index, reason = choose_index(*choice) if is_new_torch else (before["index"], "")
    fetch_mb, disk_mb = announce(before, index, new_extras, reason)
    check_disk(fetch_mb + disk_mb)  # pip keeps the files that it fetched until all are unpacked
    python = os.path.join(VENV, "bin", "python")
    if not os.path.exists(python):
        say("creating the virtual environment .venv")
        run([sys.executable, "-m", "venv", VENV], "cannot create .venv: on Debian, `apt install python3-venv`")
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    constraints = ["--constraint", os.path.join(ROOT, "constraints.txt")]
    run([*pip, "install", "--quiet", *constraints, "pip"], "pip cannot be updated: see its message above")
    if before["choice"] and before["index"] != index:  # pip would keep torch 2.0+cpu where torch 2.0 is wanted
        run([*pip, "uninstall", "--quiet", "--yes", *TORCH], "torch cannot be removed: see pip's message above")
    all_extras = before["extras"] + new_extras
    target = ["--editable", ROOT + ("[{}]".format(",".join(all_extras)) if all_extras else "")]
    install([*pip, "install", "--progress-bar", "raw", *constraints, *target, *torch_arguments(index)], fetch_mb)
    with open(stamp_path(), "w") as stamp:
        json.dump({"files": files, "choice": choice, "index": index, "extras": all_extras}, stamp)
    say("installed in {:.0f} s".format(time.time() - started))


def read_stamp():
    """Return what the last installation that succeeded was asked for."""
    try:
        with open(stamp_path()) as stamp:
            return json.load(stamp)
    except (OSError, ValueError):
        return {"files": None, "choice": None, "index": None, "extras": []}


def stamp_path():
    """Return the file that a successful installation writes."""
    return os.path.join(VENV, "installed.json")


def fingerprint():
    """Return a hash of the files that decide which packages are installed."""
    digest = hashlib.sha256()
    for name in ("constraints.txt", "pyproject.toml"):
        with open(os.path.join(ROOT, name), "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()


def check_python():
    """Exit if this Python is too old."""
    if sys.version_info < MINIMUM_PYTHON:
        sys.exit(
            "error: Python {}.{} or newer is needed, but {} is {}.{}: install a newer one, or name it with "
            "`make PYTHON=python3.12 …`".format(*MINIMUM_PYTHON, sys.executable, *sys.version_info[:2])
        )


def check_disk(needed_mb):
    """Exit if the packages do not fit on the disk."""
    free_mb = shutil.disk_usage(ROOT).free / 1e6
    if free_mb < needed_mb:
        sys.exit(
            "error: {:.1f} GB of disk are free, the packages need {:.1f} GB while they are installed: free some "
            "space".format(free_mb / 1000, needed_mb / 1000)
        )


def has_nvidia_driver():
    """Return whether CUDA builds have a driver to talk to."""
    return os.path.exists(NVIDIA_DRIVER) or shutil.which("nvidia-smi") is not None


def choose_index(named, has_driver):
    """Choose where torch comes from.

    Args:
        named: Value of WHEEL_INDEX.
        has_driver: Whether the machine has an NVIDIA driver.

    Returns:
        The address of an additional index, None for pip's own index only; and the reason.
    """
    if named == "none":
        return None, "WHEEL_INDEX is none"
    if named:
        return named, "WHEEL_INDEX names it"
    if has_driver:
        return None, "this machine has an NVIDIA driver"
    if has_cpu_builds(CPU_INDEX):
        return CPU_INDEX, "this machine has no NVIDIA driver"
    return None, "{} did not offer the CPU builds of torch {} for this Python within {} s".format(
        CPU_INDEX, pinned("torch"), CPU_INDEX_TIMEOUT_S
    )


def has_cpu_builds(index):
    """Return whether an index answers in time and has the CPU build of the pinned torch for this Python and machine."""
    python = "cp{}{}".format(*sys.version_info[:2])
    wheel = r"torch-{}\+cpu-{}-{}-\w*{}\.whl".format(re.escape(pinned("torch")), python, python, platform.machine())
    found = []

    def ask():
        try:
            with urllib.request.urlopen(index + "/torch/", timeout=CPU_INDEX_TIMEOUT_S) as page:
                found.append(re.search(wheel, urllib.parse.unquote(page.read().decode())))
        except (OSError, ValueError, http.client.HTTPException):
            pass

    # In a thread: the timeout of a socket bounds neither the look-up of a name nor an answer that comes byte by byte.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(CPU_INDEX_TIMEOUT_S)
    return any(found)


def pinned(package):
    """Return the version of a package in constraints.txt."""
    with open(os.path.join(ROOT, "constraints.txt")) as constraints:
        return re.search("^{}==(.*)$".format(package), constraints.read(), re.M).group(1)


def torch_arguments(index):
    """Return the arguments that make pip take torch from an index."""
    if index is None:
        return []
    # pip prefers 2.0+cpu to 2.0. torch is named all the same: without it pip would fetch 3 GB of CUDA, and say nothing.
    pin = ["torch=={}+cpu".format(pinned("torch"))] if index == CPU_INDEX else []
    return ["--extra-index-url", index, *pin]


def announce(before, index, new_extras, reason):
    """Print what will be installed, its size, why this torch and how to choose another.

    Returns:
        MB to fetch and MB on disk; 0 if unknown.
    """
    build = {None: "CUDA builds", CPU_INDEX: "CPU builds"}.get(index, "builds of " + str(index))
    parts = [("extra `{}`".format(extra), EXTRAS_MB.get(extra, OTHER_EXTRA_MB)) for extra in new_extras]
    if not before["files"]:
        parts.insert(0, ("API and page", PACKAGES_MB))
    if reason:
        parts.append(("torch ({})".format(build), CPU_TORCH_MB if index == CPU_INDEX else CUDA_TORCH_MB))
    names = ", ".join(name for name, _ in parts) or "the packages whose version changed"
    fetch_mb, disk_mb = (sum(size[column] for _, size in parts) for column in (0, 1))
    size = ": about {} MB to fetch, {:.1f} GB on disk".format(fetch_mb, disk_mb / 1000) if parts else ""
    say("installing into .venv: " + names + size)
    if reason:
        say("torch: {}, because {}".format(build, reason))
        say(
            "to choose otherwise: WHEEL_INDEX=none takes the CUDA builds of pip's index, WHEEL_INDEX=ADDRESS those of "
            "another index, such as {} (CPU builds)".format(CPU_INDEX)
        )
    return fetch_mb, disk_mb


class Progress:
    """What pip does now, from the lines that it prints with ``--progress-bar raw``."""

    def __init__(self, expected_mb):
        self.activity = "asking the index"
        self.file = 0, 0  # bytes fetched, size
        self.fetched = 0  # bytes of the files before
        self.expected = " of about {}".format(expected_mb) if expected_mb else ""
        self.to_install = None  # how many packages, and how many .venv had before

    def read(self, line):
        """Note one line of pip."""
        words = line.split()
        if words[:1] == ["Progress"]:  # Progress 1234 of 5678
            self.file = int(words[1]), int(words[3])
            if self.file[0] == self.file[1]:
                self.fetched, self.file = self.fetched + self.file[1], (0, 0)
        elif words[:1] in (["Collecting"], ["Processing"], ["Downloading"]):
            name = re.split(r"[\[;=<>~!]|-\d", os.path.basename(urllib.parse.unquote(words[1])))[0]
            self.activity, self.file = words[0].lower() + " " + name, (0, 0)
        elif line.startswith("Installing collected packages: "):
            self.to_install = len(words) - 3, count_installed()

    def text(self):
        """Return what happens now."""
        if self.to_install:
            return "unpacking: {} of {} packages".format(count_installed() - self.to_install[1], self.to_install[0])
        read, size = self.file
        file = ", {:.0f} of {:.0f} MB".format(read / 1e6, size / 1e6) if size else ""
        return "{}{}; {:.0f}{} MB in all".format(self.activity, file, (self.fetched + read) / 1e6, self.expected)


def install(command, expected_mb):
    """Run pip and print its progress: a line that moves on a terminal, else a line every 15 s."""
    log_path = os.path.join(VENV, "install.log")
    progress, last = Progress(expected_mb), collections.deque(maxlen=15)
    is_terminal = sys.stdout.isatty()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True) as pip:

        def read():
            with open(log_path, "w") as log:
                for line in pip.stdout:
                    log.write(line)
                    last.append(line)
                    progress.read(line)

        reader = threading.Thread(target=read)
        reader.start()
        while reader.is_alive():
            if is_terminal:
                columns = shutil.get_terminal_size().columns
                print("\r\033[K" + ("· " + progress.text())[: columns - 1], end="", flush=True)
            else:
                say(progress.text())
            reader.join(0.2 if is_terminal else 15)
    if is_terminal:
        print("\r\033[K", end="")
    if pip.returncode != 0:
        print("".join(last), end="")
        sys.exit("error: the packages cannot be installed: pip's last lines are above, all are in " + log_path)


def count_installed():
    """Return how many packages .venv has."""
    return len(glob.glob(os.path.join(VENV, "lib", "python*", "site-packages", "*.dist-info")))


def say(text):
    """Print what happens next."""
    print("· " + text, flush=True)


def run(command, failure):
    """Run a command; if it fails, exit with one sentence."""
    if subprocess.call(command) != 0:
        sys.exit("error: " + failure)


if __name__ == "__main__":
    try:
        main([extra for argument in sys.argv[1:] for extra in argument.split(",")])
    except KeyboardInterrupt:
        sys.exit("\nstopped: the same command continues")
