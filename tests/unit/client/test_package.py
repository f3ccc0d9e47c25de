"""The client as a package of its own: small, typed, and without the service's dependencies."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.support.paths import ROOT

FOLDER = ROOT / "client"
MAX_WHEEL_BYTES = 100_000
ABSENT = ("PIL", "duckdb", "fastapi", "numpy", "pandas", "pydantic", "pyarrow", "ray", "serve_app", "torch", "tqdm")


def test_importing_it_loads_nothing_of_the_service() -> None:
    """Neither the service nor Pillow, numpy or tqdm is imported before a caller uses them."""
    program = f"import sys, serve_client; print(sorted(set({ABSENT}) & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", program], cwd=FOLDER, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the folder ``client``, built in a copy without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(["cp", "--recursive", "--dereference", str(FOLDER), str(folder / "client")], check=True)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(folder / "client")], check=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_is_small_and_complete(wheel: Path) -> None:
    """It holds every module, the marker of typed packages, and the license's text."""
    assert wheel.stat().st_size < MAX_WHEEL_BYTES
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        modules = {f"serve_client/{path.name}" for path in (ROOT / "serve_client").glob("*.py")}
        assert modules | {"serve_client/py.typed"} == {name for name in names if name.startswith("serve_client/")}
        (license_name,) = (name for name in names if name.endswith("/LICENSE"))
        assert archive.read(license_name) == (ROOT / "LICENSE").read_bytes()
        (metadata,) = (name for name in names if name.endswith("/METADATA"))
        required = [line for line in archive.read(metadata).decode().splitlines() if line.startswith("Requires-Dist")]
    assert required == ["Requires-Dist: anyio", "Requires-Dist: httpx2", 'Requires-Dist: tqdm; extra == "progress"']


def test_both_distributions_have_one_version() -> None:
    """The service's wheel contains the client too; its extra `client` names the client's requirements."""
    service, client = (tomllib.loads((folder / "pyproject.toml").read_text()) for folder in (ROOT, FOLDER))
    assert client["project"]["version"] == service["project"]["version"]
    needed = {*client["project"]["dependencies"], *client["project"]["optional-dependencies"]["progress"]}
    assert set(service["project"]["optional-dependencies"]["client"]) == needed
    assert "serve_client*" in service["tool"]["setuptools"]["packages"]["find"]["include"]
