"""Both images, built and run by a real container engine: `make test-containers`."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx2
import pytest
from packaging.utils import canonicalize_name
from playwright.sync_api import expect, sync_playwright

from serve_app.exposure import PUBLISHED_ON
from serve_app.launcher.environment import free_port
from tests.support.browser import CHROMIUM, upload
from tests.support.configs import changed, local, write
from tests.support.constant_load import ConstantLoad
from tests.support.paths import ROOT
from tests.support.photos import make_photo
from tests.support.polling import wait_for
from tests.support.services import zipped

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
    """URLs of the running services, and the environment that `docker compose` gets."""

    api: str
    page: str
    environment: dict[str, str]

    def compose(self, *arguments: str) -> str:
        return docker("compose", "--project-name", PROJECT, *arguments, environment=self.environment)


def docker(*arguments: str, environment: dict[str, str] | None = None) -> str:
    """Run docker in the repository and return its output.

    Raises:
        AssertionError: docker failed; contains its error output.
    """
    environment = {**os.environ, "DOCKER_BUILDKIT": "1", **(environment or {})}
    done = subprocess.run(["docker", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr or done.stdout}"
    return done.stdout.strip()


def leftovers(command: str) -> str:
    """Return the ids that a listing command of docker prints for this project."""
    return docker(*command.split(), "--quiet", "--filter", f"label=com.docker.compose.project={PROJECT}")


def run_in(image: str, program: str) -> str:
    """Run a shell command in a new container of an image and return its output."""
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
    """Every package in an image has the version that constraints.txt gives it."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    listed = json.loads(run_in(image, "pip list --format json"))
    installed = {canonicalize_name(package["name"]): package["version"] for package in listed}
    base = {"pip", "setuptools", "wheel"}
    assert {name: version for name, version in installed.items() if name not in base} == {
        name: pinned.get(name, "not pinned") for name in installed if name not in base
    }
    run_in(image, "pip check")


@pytest.mark.parametrize(
    ("image", "paths"),
    [
        ("api", ["LICENSE", "configs", "serve_app"]),
        (
            "page",
            [
                *("LICENSE", "frontend", "serve_app/preprocessing"),
                *(
                    f"serve_app/{name}.py"
                    for name in (
                        "__init__",
                        "classification_metrics",
                        "csv_text",
                        "errors",
                        "heads/__init__",
                        "heads/names",
                        "prediction_log_format",
                        "zip_entries",
                    )
                ),
            ],
        ),
    ],
)
def test_images_contain_only_files_that_git_tracks(images: None, image: str, paths: list[str]) -> None:
    """And all of them, below the paths that the Dockerfile copies."""
    tracked = set(subprocess.check_output(["git", "ls-files", *paths], cwd=ROOT, text=True).split())
    files = run_in(image, "find . '(' -type f -o -type l ')' -not -path '*/__pycache__/*'").splitlines()
    assert {name.removeprefix("./") for name in files} == tracked


def test_the_page_has_neither_torch_nor_ray(images: None) -> None:
    """The page's image stays small: it talks to the service over HTTP only."""
    installed = json.loads(run_in("page", "pip list --format json"))
    assert not {"torch", "torchvision", "ray", "onnxruntime", "serve-app"} & {package["name"] for package in installed}


def test_the_node_image_has_the_programs_that_clusters_call(images: None) -> None:
    """`ray up`, its autoscaler and KubeRay's probes find them, also in a login shell, which resets PATH."""
    programs = docker(
        *("run", "--rm", "--entrypoint", "bash", IMAGES["api"]),
        *("--login", "-c", "command -v ray serve rsync ssh wget && python -c 'import boto3, serve_app.app' && id -u"),
    )
    assert [Path(line).name for line in programs.splitlines()] == ["ray", "serve", "rsync", "ssh", "wget", "1000"]


def test_a_photo_is_classified_over_http(stack: Stack) -> None:
    """The published port answers with the ten best classes of the demo model."""
    response = httpx2.post(f"{stack.api}/v1/classify", content=make_photo(), timeout=60)
    assert response.status_code == 200
    assert len(response.json()["results"][0]["predictions"]) == 10


def test_a_photo_is_classified_from_the_pages_container(stack: Stack) -> None:
    """The page's own client reaches the API through the containers' network."""
    program = (
        "import sys; from frontend.api_client import ApiClient, Photo\n"
        "result = ApiClient().classify(Photo('a.jpg', bytes.fromhex(sys.argv[1])))\n"
        "print(result['status'], len(result['predictions']), sorted(result['explanation'])[0])"
    )
    printed = stack.compose("exec", "--no-TTY", "page", "python", "-c", program, make_photo().hex())
    assert printed == "ok 10 bias"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: install it or set CHROMIUM")
def test_a_photo_is_classified_in_a_browser(stack: Stack, tmp_path: Path) -> None:
    """A photo uploaded to the published page shows its top classes."""
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(make_photo())
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(stack.page)
        upload(page, photo)
        expect(page.get_by_text("Top classes")).to_be_visible(timeout=60_000)
        browser.close()


@pytest.mark.parametrize("service", ["api", "page"])
def test_containers_cannot_change_themselves(stack: Stack, service: str) -> None:
    """Each runs as an unprivileged user without capabilities, on a read-only root file system."""
    status = stack.compose("exec", "--no-TTY", service, "cat", "/proc/1/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["Uid"].split() == ["1000"] * 4
    assert int(fields["CapBnd"], 16) == 0
    assert fields["NoNewPrivs"] == "1"
    with pytest.raises(AssertionError, match="Read-only file system"):
        stack.compose("exec", "--no-TTY", service, "touch", "/app/new")


def test_only_two_ports_are_published(stack: Stack) -> None:
    """API and page are on loopback; Ray's and HAProxy's own ports stay in the containers' network."""
    containers = stack.compose("ps", "--quiet").split()
    inspected = json.loads(docker("inspect", *containers))
    bound = [
        binding["HostIp"] + ":" + binding["HostPort"]
        for container in inspected
        for bindings in container["HostConfig"]["PortBindings"].values()
        for binding in bindings
    ]
    assert sorted(bound) == sorted(url.removeprefix("http://") for url in (stack.api, stack.page))


def test_the_service_starts_without_a_network(images: None) -> None:
    """With loopback only and no choice of weights, it becomes healthy with the demo model."""
    name = f"{PROJECT}-offline"
    options = ("--network", "none", "--shm-size", "2g", "--env", f"{PUBLISHED_ON}=127.0.0.1")
    docker("run", "--detach", "--name", name, *options, IMAGES["api"])
    try:
        deadline = time.monotonic() + 180
        while (health := docker("inspect", "--format", "{{.State.Health.Status}}", name)) != "healthy":
            assert time.monotonic() < deadline, f"{health}: {docker('logs', name)}"
            time.sleep(1)
        assert "weights: demo" in docker("logs", name)
    finally:
        docker("rm", "--force", name)


def test_a_second_container_joins_as_a_worker(images: None) -> None:
    """`ray start` forms a cluster of two containers, and `serve deploy` makes configs/local.yaml ready on it."""
    network, head, worker = (f"{PROJECT}-{name}" for name in ("ray", "head", "worker"))
    docker("network", "create", network)
    common = ("run", "--detach", "--network", network, "--shm-size", "1g", "--env-file", "configs/ray.env")
    ray = (IMAGES["api"], "ray", "start", "--block", "--object-store-memory=200000000", "--num-cpus=1")
    try:
        docker(*common, "--name", head, *ray, "--head")
        docker(*common, "--name", worker, *ray, f"--address={head}:6379")
        deadline = time.monotonic() + 120
        while "No cluster status" in (status := ray_status(head)) or status.count(" node_") < 2:
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


def test_log_votes_and_jobs_outlive_the_container(stack: Stack) -> None:
    """The page's container sees rows and vote in the volume; they and a job's results are there in new containers."""

    def find(files: str) -> str:
        return stack.compose("exec", "--no-TTY", "page", "sh", "-c", f"find /data/{files}")

    stored = ("predictions -name '[!.]*.parquet'", "feedback/votes -name '[!.]*.json'")
    photo = make_photo()
    with httpx2.Client(base_url=stack.api, timeout=60) as client:
        image = client.post("/v1/classify", content=photo).json()
        client.post("/v1/feedback", json={"request_id": image["id"], "correct": True}).raise_for_status()
        zip_type = {"Content-Type": "application/zip"}
        submitted = client.post("/v1/jobs", content=zipped({"a.jpg": photo}, copies=2), headers=zip_type)
        assert submitted.status_code == 202, submitted.text
        job = f"/v1/jobs/{submitted.json()['id']}"
        wait_for(lambda: client.get(job).json()["status"] == "succeeded", what="the job's end")
    for files in stored:
        wait_for(partial(find, files), what=files)
    recreate = ("--no-build", "--force-recreate", "--timeout", "60", "--wait", "--wait-timeout", "180")
    stack.compose("up", *recreate)
    assert all(find(files) for files in stored)
    results = httpx2.get(f"{stack.api}{job}/results?format=jsonl", timeout=60)
    assert [json.loads(row)["status"] for row in results.text.splitlines()] == ["ok", "ok"]


def replicas(stack: Stack) -> dict[str, list[str]]:
    """Deployment -> ids of its replicas."""
    program = (
        "import json; from serve_app.release.rollout import ServeApi\n"
        "stages = ServeApi('http://127.0.0.1:8265').state()['applications']['classify']['deployments']\n"
        "print(json.dumps({name: [each['replica_id'] for each in live['replicas']] for name, live in stages.items()}))"
    )
    ids: dict[str, list[str]] = json.loads(stack.compose("exec", "--no-TTY", "api", "python", "-c", program))
    return ids


def test_an_update_and_a_rollback_fail_no_request(stack: Stack, tmp_path: Path) -> None:
    """`serve-app deploy` in the container replaces all replicas under ten requests per second, and once more back."""
    update, stages = local(), ("Ingress", "Preprocessor", "Classifier")
    for name in stages:
        update = changed(update, name, ray_actor_options={"num_cpus": 0, "resources": {}})
    copy = "import sys; open('/tmp/update.yaml', 'w').write(sys.argv[1])"
    stack.compose("exec", "--no-TTY", "api", "python", "-c", copy, write(update, tmp_path).read_text())
    before = replicas(stack)
    with ConstantLoad(f"{stack.api}/v1/classify", make_photo(), rate=10).running() as load:
        for file in ("/tmp/update.yaml", "configs/local.yaml"):
            print(stack.compose("exec", "--no-TTY", "api", "python", "-m", "serve_app", "deploy", file))
            after = replicas(stack)
            assert not [name for name in stages if set(before[name]) & set(after[name])]
            before = after
    print(f"{len(load.outcomes)} requests, the slowest took {max(each.ms for each in load.outcomes):.0f} ms")
    assert not load.failed()


def ray_status(head: str) -> str:
    return subprocess.run(["docker", "exec", head, "ray", "status"], capture_output=True, text=True).stdout


def test_a_stop_lets_requests_finish(stack: Stack) -> None:
    """SIGTERM while a large request is in flight: the response is complete, and the container exits with 0."""
    files = [("images", (f"{i}.jpg", make_photo(i, 2400, 1800))) for i in range(48)]
    (container,) = stack.compose("ps", "--quiet", "api").split()
    with ThreadPoolExecutor(1) as pool:
        response = pool.submit(httpx2.post, f"{stack.api}/v1/classify", files=files, timeout=60)
        while httpx2.get(f"{stack.api}/v1/status").json()["images"]["in_flight"] == 0:
            assert not response.done()
        stack.compose("stop", "api")
        assert response.result().json()["summary"] == {"ok": 48, "failed": 0}
    assert docker("inspect", "--format", "{{.State.ExitCode}}", container) == "0"
    assert "Traceback" not in docker("logs", container)


def test_down_leaves_nothing(stack: Stack) -> None:
    """`docker compose down --volumes` removes containers, volumes and network. Last, because it ends the stack."""
    stack.compose("down", "--volumes")
    assert [leftovers(command) for command in ("ps --all", "volume ls", "network ls")] == ["", "", ""]
