"""``python -m benchmarks.gpu`` runs without a GPU, with tiny sizes and a CPU in the GPU's place."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from serve_app.inference.runtimes.gpu import gpu_available
from tests.support.paths import ROOT

pytestmark = pytest.mark.timeout(900)  # the script takes minutes while other programs run


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run every part except ``served``, which starts the whole service; return the JSON file."""
    path = tmp_path_factory.mktemp("gpu") / "gpu.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--cpu-smoke", "--out", str(path)]
    command.append("--parts=checks,speed,pipeline,compiled")
    subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return path


@pytest.fixture(scope="module")
def sections(out: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(out.read_text())["sections"]
    return result


def test_every_section_runs(out: Path, sections: dict[str, Any]) -> None:
    """No section fails, and the report says so."""
    assert len(sections) > 20
    assert {name: section for name, section in sections.items() if "error" in section or "skipped" in section} == {}
    assert all(section.get("ok", True) for section in sections.values())
    assert out.with_suffix(".md").read_text().endswith("Nothing.\n")


def test_the_least_time_follows_from_the_network(sections: dict[str, Any]) -> None:
    """ResNet-18 has 1.814 billion multiply-adds; a batch of two reads its weights once."""
    limits = sections["speed/limits"]
    assert limits["image"]["gmacs_per_image"] == pytest.approx(1.814, abs=0.001)
    single, pair = limits["fp16, batch 1"], limits["fp16, batch 2"]
    assert pair["arithmetic_ms"] == pytest.approx(2 * single["arithmetic_ms"], rel=0.01, abs=0.0002)
    assert single["memory_ms"] < pair["memory_ms"] < 2 * single["memory_ms"]
    for batch in (single, pair):
        assert batch["layer_by_layer_ms"] >= max(batch["arithmetic_ms"], batch["memory_ms"])


@pytest.mark.skipif(gpu_available(), reason="there is an NVIDIA GPU on this machine")
def test_no_gpu_is_one_sentence() -> None:
    """Without a GPU the script ends with an error instead of measuring a CPU."""
    process = subprocess.run([sys.executable, "-m", "benchmarks.gpu"], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 1
    assert process.stderr.startswith("error: PyTorch finds no NVIDIA GPU here")
