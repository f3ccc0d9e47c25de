"""The house stays in order: who imports whom, what runs on import, what the first lines say."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

# Each module of serve_app, from the bottom up: it may import only what stands before it.
ORDER = (
    *("errors", "files", "priority", "config", "deadline", "tracing", "keys", "schemas", "feedback"),
    *("opening", "preprocess", "batcher", "cards", "weights"),
    *("backbones.folding", "backbones.graph", "backbones.cpu", "backbones.head"),
    *("backbones.cuda_kernels", "backbones.cuda"),
    *("backbones.cuda_lanes", "backbones.int8", "backbones.cpu_kernels", "backbones.winograd", "backbones.select"),
    *("classifier", "swap", "health"),
    *(
        "service",
        "prediction_log",
        "traffic",
        "variant",
        "variants",
        "stats",
        "bodies",
        "answers",
        "admission",
        "fanout",
        "tensors",
    ),
    *("oip", "door", "feedback_api"),
    *("jobs.sources", "jobs.output", "jobs.archive", "jobs.upload", "jobs.results", "jobs.store", "jobs.routes", "api"),
    *("jobs.supervisor", "deployments.jobs"),
    *("deployments.calls", "deployments.routing", "deployments.links", "deployments.classifier"),
    *("deployments.preprocessor", "deployments.ingress", "app"),
    *("deploy.serve_config", "deploy.rollout", "deploy.plan", "deploy.compare", "deploy.smoke", "deploy.__main__"),
    *("launch_weights", "haproxy", "launch_environment", "__main__"),
    *("classification_metrics", "training.data", "training.predict", "training.plots"),
    *("training.calibrate", "training.evaluate", "training.augment", "training.recipe", "training.split"),
    *("training.worker_group", "training.trainer", "training.loop", "training.distributed", "training.publish", "training.train"),
    "quantize",
    *("jobs.stages", "jobs.pipeline", "jobs.batch_predict", "jobs.etl"),
)
TRAINING = {name for name in ORDER if name.startswith("training.")}
DEPLOYMENTS = {name for name in ORDER if name.startswith("deployments.")}
BACKBONES = {name for name in ORDER if name.startswith("backbones.")}
RAY_DATA = {"jobs.pipeline", "jobs.batch_predict"}
OWNERS = {
    "ray": {*DEPLOYMENTS, "app", "deploy.serve_config", "deploy.plan", "__main__", "training.distributed", *RAY_DATA},
    "fastapi": {"api", "deployments.ingress", "feedback_api", "jobs.routes", "oip"},
    "torch": {"classifier", "weights", *BACKBONES, *TRAINING},
    "onnx": {"backbones.graph", "backbones.int8"},
    "onnxruntime": {"backbones.cpu", "backbones.int8"},
    "numba": {"backbones.cpu_kernels"},
    "llvmlite": {"backbones.cpu_kernels"},
    "PIL": {"opening", "preprocess", "deploy.smoke"},
}


def modules() -> dict[str, Path]:
    files = (ROOT / "serve_app").rglob("*.py")
    return {
        ".".join(path.relative_to(ROOT / "serve_app").with_suffix("").parts): path
        for path in files
        if path.name != "__init__.py"
    }


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_every_module_has_its_place() -> None:
    assert set(modules()) == set(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_imports_point_one_way(name: str) -> None:
    """A module imports only modules below it; training never the serving half."""
    inner = {n.removeprefix("serve_app.") for n in imports(modules()[name]) if n.startswith("serve_app.")}
    below = set(ORDER[: ORDER.index(name)])
    if name.startswith("training."):
        below -= {"answers", "api", "bodies", *DEPLOYMENTS, "app", "fanout", "feedback_api"}
        below -= {"oip", "service", "stats", "tensors"}
    assert {n for n in inner if n in ORDER} <= below


@pytest.mark.parametrize("library", OWNERS)
def test_libraries_stay_where_they_belong(library: str) -> None:
    """Ray, FastAPI, torch and Pillow each have their files."""
    users = {name for name, path in modules().items() if any(n.split(".")[0] == library for n in imports(path))}
    assert users <= OWNERS[library]


def test_the_page_knows_only_http() -> None:
    for path in (ROOT / "frontend").glob("*.py"):
        names = {name for name in imports(path) if not name.startswith("serve_app.classification_metrics")}
        roots = {name.split(".")[0] for name in names}
        assert not roots & {"serve_app", "torch", "ray", "torchvision"}, path
        assert "httpx2" not in roots or path.name == "client.py"


def test_stages_open_with_their_number() -> None:
    """`head -1 serve_app/*.py` prints the path of a request."""
    for name, stage in (
        ("api", 1),
        ("bodies", 1),
        ("answers", 1),
        ("fanout", 1),
        ("tensors", 1),
        ("oip", 1),
        ("opening", 2),
        ("preprocess", 2),
        ("classifier", 3),
        ("traffic", 1),
        ("variant", 1),
        ("variants", 1),
        ("keys", 1),
        ("admission", 1),
        ("door", 1),
        ("feedback_api", 1),
        ("swap", 3),
        ("deployments.links", 1),
        ("deployments.ingress", 1),
        ("deployments.preprocessor", 2),
        ("deployments.classifier", 3),
    ):
        assert modules()[name].read_text().startswith(f'"""Stage {stage}/3 · ')


def test_nothing_happens_on_import(tmp_path: Path) -> None:
    """Importing the whole graph opens no socket and writes no file."""
    program = (
        "import sys\n"
        "def hook(event, args):\n"
        "    writes = event == 'open' and set(args[1] or '') & set('wax+') and '__pycache__' not in str(args[0])\n"
        "    if writes or event in ('socket.connect', 'os.mkdir'): print(event, args)\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "import ray, torch, torchvision, fastapi_offline, yaml, psutil, httpx2, fsspec\n"
        "sys.addaudithook(hook)\n"
        "import serve_app.app, serve_app.launcher.local, serve_app.release.deploy\n"
        "import serve_app.training.evaluate, serve_app.training.train, serve_app.inference.quantize\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(ROOT)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
