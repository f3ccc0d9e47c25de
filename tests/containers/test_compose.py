"""Both images built and run by a real engine: `make test-containers`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import expect, sync_playwright

from serve_app.launcher.environment import free_port
from tests.conftest import make_photo
from tests.support.paths import ROOT
from tests.unit.project.test_containers import normal

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
PROJECT = "serve-app-test"
IMAGES = {"api": "serve-app:test", "page": "serve-app-page:test"}
pytestmark = [
    pytest.mark.skipif(
        "CONTAINERS" not in os.environ, reason="builds both images, minutes and 10 GB: make test-containers"
    ),
    pytest.mark.timeout(1800),
]


@dataclass(frozen=True)
class Stack:
    """Where the composed service is."""

    api: str
    page: str
    environment: dict[str, str]

    def compose(self, *arguments: str) -> str:
        return docker("compose", "--project-name", PROJECT, *arguments, environment=self.environment)


def docker(*arguments: str, environment: dict[str, str] | None = None) -> str:
    """Run docker in the repository; gives what it printed.

    Raises:
        AssertionError: It failed; says what it said.
    """
    environment = {**os.environ, "DOCKER_BUILDKIT": "1", **(environment or {})}
    done = subprocess.run(["docker", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr or done.stdout}"
    return done.stdout.strip()


def left_over(kind: str) -> str:
    return docker(*kind.split(), "--quiet", "--filter", f"label=com.docker.compose.project={PROJECT}")


def run_in(image: str, program: str) -> str:
    """Run a shell line in a fresh container of an image."""
    return docker("run", "--rm", "--entrypoint", "sh", IMAGES[image], "-c", program)


@pytest.fixture(scope="module")
def images() -> None:
    """Both images, built from the Dockerfile as compose.yaml builds them."""
    sha = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=ROOT, text=True).strip()
    names = {"SERVE_IMAGE": IMAGES["api"], "PAGE_IMAGE": IMAGES["page"], "GIT_SHA": sha}
    started = time.monotonic()
    docker("compose", "build", environment=names)
    print(f"\nbuilt in {time.monotonic() - started:.0f} s")
    for image in IMAGES.values():
        size = int(docker("image", "inspect", "--format", "{{.Size}}", image))
        print(f"{image}: {size / 1e6:.0f} MB")
        assert docker("image", "inspect", "--format", "{{json .Config.Labels}}", image).count(sha) == 1


@pytest.fixture(scope="module")
def stack(images: None) -> Iterator[Stack]:
    """`docker compose up --wait` with the demo model on free ports."""
    port, page_port = str(free_port()), str(free_port())
    names = {"SERVE_IMAGE": IMAGES["api"], "PAGE_IMAGE": IMAGES["page"]}
    stack = Stack(
        f"http://127.0.0.1:{port}",
        f"http://127.0.0.1:{page_port}",
        {**names, "PORT": port, "PAGE_PORT": page_port, "WEIGHTS": "demo"},
    )
    try:
        started = time.monotonic()
        stack.compose("up", "--no-build", "--wait", "--wait-timeout", "180")
        print(f"\nhealthy in {time.monotonic() - started:.0f} s")
        yield stack
    finally:
        stack.compose("down", "--volumes", "--timeout", "60")


@pytest.mark.parametrize("image", IMAGES)
def test_only_pinned_packages_are_installed(images: None, image: str) -> None:
    """The same constraints give the same packages: whatever pip installed stands there with that version."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {normal(name): version for name, version in (line.split("==") for line in lines)}
    listed = json.loads(run_in(image, "pip list --format json"))
    installed = {normal(one["name"]): one["version"] for one in listed}
    base = {"pip", "setuptools", "wheel"}
    assert {name: version for name, version in installed.items() if name not in base} == {
        name: pinned.get(name, "not pinned") for name in installed if name not in base
    }
    run_in(image, "pip check")


@pytest.mark.parametrize(
    ("image", "folders"), [("api", ["configs", "serve_app"]), ("page", [".streamlit", "frontend"])]
)
def test_images_hold_what_git_tracks_and_nothing_else(images: None, image: str, folders: list[str]) -> None:
    tracked = set(subprocess.check_output(["git", "ls-files", *folders], cwd=ROOT, text=True).split())
    found = run_in(image, "find . -type f -not -path '*/__pycache__/*'").splitlines()
    assert {name.removeprefix("./") for name in found} == tracked


def test_the_page_has_neither_torch_nor_ray(images: None) -> None:
    installed = json.loads(run_in("page", "pip list --format json"))
    assert not {"torch", "torchvision", "ray", "onnxruntime", "serve-app"} & {one["name"] for one in installed}


def test_the_node_image_has_what_clusters_call(images: None) -> None:
    """What `ray up`, its autoscaler and KubeRay's probes need, also in a login shell, where PATH is Debian's."""
    programs = docker(
        *("run", "--rm", "--entrypoint", "bash", IMAGES["api"]),
        *("--login", "-c", "command -v ray serve rsync ssh wget && python -c 'import boto3, serve_app.app' && id -u"),
    )
    assert [Path(line).name for line in programs.splitlines()] == ["ray", "serve", "rsync", "ssh", "wget", "1000"]


def test_a_photo_is_classified_over_http(stack: Stack) -> None:
    answer = httpx2.post(f"{stack.api}/v1/classify", content=make_photo(), timeout=60)
    assert answer.status_code == 200
    assert len(answer.json()["results"][0]["predictions"]) == 10


def test_a_photo_is_classified_from_within_the_pages_container(stack: Stack) -> None:
    """The page's own client, in its container, through the network that the two share."""
    program = (
        "import sys; from frontend.client import Client, Photo\n"
        "result = Client().classify(Photo('a.jpg', bytes.fromhex(sys.argv[1])))\n"
        "print(result['status'], len(result['predictions']), sorted(result['explanation'])[0])"
    )
    printed = stack.compose("exec", "--no-TTY", "page", "python", "-c", program, make_photo().hex())
    assert printed == "ok 10 bias"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: install it or set CHROMIUM")
def test_a_photo_is_classified_in_a_browser(stack: Stack, tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(make_photo())
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(stack.page)
        page.get_by_test_id("stFileUploaderDropzoneInput").first.set_input_files(str(photo))
        expect(page.get_by_text("Top classes")).to_be_visible(timeout=60_000)
        browser.close()


@pytest.mark.parametrize("service", ["api", "page"])
def test_containers_cannot_change_themselves(stack: Stack, service: str) -> None:
    """A user without capabilities on a read-only root."""
    status = stack.compose("exec", "--no-TTY", service, "cat", "/proc/1/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["Uid"].split() == ["1000"] * 4
    assert int(fields["CapBnd"], 16) == 0
    assert fields["NoNewPrivs"] == "1"
    with pytest.raises(AssertionError, match="Read-only file system"):
        stack.compose("exec", "--no-TTY", service, "touch", "/app/new")


def test_only_two_ports_leave_the_containers(stack: Stack) -> None:
    """Ray's and HAProxy's own ports stay in the container's network; ours are on loopback."""
    containers = stack.compose("ps", "--quiet").split()
    inspected = json.loads(docker("inspect", *containers))
    bound = [
        one["HostIp"] + ":" + one["HostPort"]
        for container in inspected
        for ports in container["HostConfig"]["PortBindings"].values()
        for one in ports
    ]
    assert sorted(bound) == sorted(url.removeprefix("http://") for url in (stack.api, stack.page))


def test_the_service_comes_up_without_any_network(images: None) -> None:
    """No interface but loopback, and nothing said about weights: healthy, with the demo model."""
    name = f"{PROJECT}-offline"
    docker("run", "--detach", "--name", name, "--network", "none", "--shm-size", "2g", IMAGES["api"])
    try:
        deadline = time.monotonic() + 180
        while (health := docker("inspect", "--format", "{{.State.Health.Status}}", name)) != "healthy":
            assert time.monotonic() < deadline, f"{health}: {docker('logs', name)}"
            time.sleep(1)
        assert "weights: demo" in docker("logs", name)
    finally:
        docker("rm", "--force", name)


def test_a_second_container_joins_as_a_worker(images: None) -> None:
    """`ray start` in the same image, head and worker, then Serve's own command deploys the same file."""
    network, head, worker = (f"{PROJECT}-{name}" for name in ("ray", "head", "worker"))
    docker("network", "create", network)
    common = ("run", "--detach", "--network", network, "--shm-size", "1g", "--env-file", "configs/ray.env")
    ray = (IMAGES["api"], "ray", "start", "--block", "--object-store-memory=200000000", "--num-cpus=1")
    try:
        docker(*common, "--name", head, *ray, "--head")
        docker(*common, "--name", worker, *ray, f"--address={head}:6379")
        deadline = time.monotonic() + 120
        while "No cluster status" in (status := _status(head)) or status.count(" node_") < 2:
            assert time.monotonic() < deadline, status
            time.sleep(1)
        docker("exec", head, "serve", "deploy", "configs/local.yaml")
        ready = ["wget", "--quiet", "--output-document=-", "http://127.0.0.1:8000/readyz"]
        while subprocess.run(["docker", "exec", head, *ready], capture_output=True).returncode:
            assert time.monotonic() < deadline, docker("exec", head, "serve", "status")
            time.sleep(1)
    finally:
        subprocess.run(["docker", "rm", "--force", head, worker], capture_output=True)
        docker("network", "rm", network)


def _status(head: str) -> str:
    return subprocess.run(["docker", "exec", head, "ray", "status"], capture_output=True, text=True).stdout


def test_a_stop_lets_requests_finish(stack: Stack) -> None:
    """SIGTERM while a large request is under way: it is answered in full, and the container ends well."""
    files = [("images", (f"{i}.jpg", make_photo(i, 2400, 1800))) for i in range(48)]
    (container,) = stack.compose("ps", "--quiet", "api").split()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(httpx2.post, f"{stack.api}/v1/classify", files=files, timeout=60)
        while httpx2.get(f"{stack.api}/v1/status").json()["images"]["in_flight"] == 0:
            assert not answer.done()
        stack.compose("stop", "api")
        assert answer.result().json()["summary"] == {"ok": 48, "failed": 0}
    assert docker("inspect", "--format", "{{.State.ExitCode}}", container) == "0"
    assert "Traceback" not in docker("logs", container)


def test_down_leaves_nothing(stack: Stack) -> None:
    stack.compose("down", "--volumes")
    assert [left_over(kind) for kind in ("ps --all", "volume ls", "network ls")] == ["", "", ""]
