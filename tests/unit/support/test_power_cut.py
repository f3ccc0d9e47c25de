"""The simulated power cut takes what no fsync had put on disk, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT
from tests.support.power_cut import cut, recording

PROGRAM = """
import os, pathlib, sys
from serve_app.files import atomic_write, create_folder, fsync
folder = pathlib.Path(sys.argv[1])
create_folder(folder / "kept")
with atomic_write(folder / "kept" / "whole") as path:
    path.write_text("text")
(folder / "kept" / "written").write_text("text")
(folder / "kept" / "appended").write_text("text")
fsync(folder / "kept" / "appended")
with (folder / "kept" / "appended").open("a") as file:
    file.write("more")
(folder / "kept" / "new name").write_text("text")
fsync(folder / "kept" / "new name")
os.replace(folder / "kept" / "new name", folder / "kept" / "renamed")
(folder / "lost").mkdir()
with atomic_write(folder / "lost" / "whole") as path:
    path.write_text("text")
"""


def test_only_what_was_synced_stays(tmp_path: Path) -> None:
    data, log = tmp_path / "data", tmp_path / "fsyncs"
    data.mkdir()
    environment = {**os.environ, **recording(log)}
    environment["PYTHONPATH"] += f"{os.pathsep}{ROOT}"
    subprocess.run([sys.executable, "-c", PROGRAM, str(data)], env=environment, check=True)
    assert cut(data, log) == ["kept/appended", "kept/renamed", "kept/written", "lost"]
    assert {path.name: path.read_text() for path in (data / "kept").iterdir()} == {
        "whole": "text",
        "appended": "",
        "written": "",
    }
