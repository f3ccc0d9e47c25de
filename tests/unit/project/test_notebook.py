"""The notebook runs from top to bottom, and what is committed of it is small and of the code that is here."""

from __future__ import annotations

import nbformat
from nbclient import NotebookClient

from tests.support.paths import ROOT

NOTEBOOK = ROOT / "notebooks" / "pipeline.ipynb"
MAX_BYTES = 300_000


def test_it_runs_and_shows_a_picture_of_each_step() -> None:
    """Every cell ends without an error; photos, crops, channels, scores, heat maps and metrics are drawn."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": NOTEBOOK.parent}}
    ).execute()
    drawn = [out for cell in notebook.cells for out in cell.get("outputs", []) if "image/jpeg" in out.get("data", {})]
    assert len(drawn) == 6
    assert all(out["output_type"] != "error" for cell in notebook.cells for out in cell.get("outputs", []))


def test_outputs_are_committed_and_small() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert NOTEBOOK.stat().st_size < MAX_BYTES
    assert any("image/jpeg" in out.get("data", {}) for cell in notebook.cells for out in cell.get("outputs", []))
