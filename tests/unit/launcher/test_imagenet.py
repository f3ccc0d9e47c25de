"""ImageNet's weights: tried with a stand-in of the same names and shapes, served over HTTP."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import resnet18

from serve_app.config import WeightsConfig
from serve_app.errors import WeightsUnavailableError
from serve_app.inference import imagenet_download, weights
from serve_app.inference.card import IMAGENET_CARD, load_card
from serve_app.inference.torch_model import load_model
from serve_app.inference.weights import load_weights, sha256
from serve_app.launcher import local
from serve_app.launcher.environment import free_port
from serve_app.launcher.processes import StartError
from serve_app.paths import torch_checkpoints
from tests.support.paths import ROOT

DEMO_CLASSES = len(load_card(WeightsConfig(source="demo")).labels)
NAME = "resnet18-{}.pth"  # torchvision's; the digits are the first of the file's hash


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with random weights of a ResNet-18 of a thousand classes: under its own hash, and under another."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("download")
    torch.save(resnet18().state_dict(), folder / "weights")
    right = sha256(folder / "weights")[:8]
    (folder / NAME.format("0badc0de")).hardlink_to(folder / "weights")
    (folder / "weights").rename(folder / NAME.format(right))
    return folder


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder; ``/slow/`` sends half a file and then nothing."""

    def do_GET(self) -> None:
        if not self.path.startswith("/slow/"):
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(bytes(500))
        self.wfile.flush()
        self.server.stopped.wait(60)  # type: ignore[attr-defined]

    def log_message(self, *_args: object) -> None:
        """Print nothing."""


@pytest.fixture
def download_from(stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Make torchvision download from a server on this machine, into an empty cache."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(stand_in)))
    server.stopped = threading.Event()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    card = tmp_path / "card.json"
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("serve_app.inference.card.IMAGENET_CARD", card)

    def use(path: str) -> None:
        url = f"http://127.0.0.1:{server.server_port}/{path}"
        monkeypatch.setattr(type(imagenet_download.WEIGHTS), "url", property(lambda _self: url), raising=False)
        digits = path.rpartition("-")[2].removesuffix(".pth")
        card.write_text(json.dumps(json.loads(IMAGENET_CARD.read_text()) | {"sha256": digits}))

    yield use
    signal.alarm(0)  # the program leaves it to the end of its process
    server.stopped.set()  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()
    thread.join()


def cached() -> list[str]:
    folder = torch_checkpoints()
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def right_name(stand_in: Path) -> str:
    (name,) = {path.name for path in stand_in.iterdir()} - {NAME.format("0badc0de")}
    return name


def test_a_file_with_the_right_hash_is_cached_and_served(download_from: Callable[[str], None], stand_in: Path) -> None:
    """It is downloaded and converted once; the model that answers has its weights and ImageNet's thousand classes."""
    name = right_name(stand_in)
    download_from(name)
    imagenet_download.main(60)
    assert cached() == [name.replace(".pth", suffix) for suffix in (".json", ".pth", ".safetensors")]
    download_from(f"gone/{name}")
    imagenet_download.main(60)
    model, card = load_model(WeightsConfig(source="imagenet"))
    assert (len(card.labels), card.sha256) == (1000, name[9:17])
    expected = torch.load(stand_in / name, weights_only=True)["fc.weight"]
    assert torch.equal(model.fc.weight, expected)


def test_a_file_with_a_wrong_hash_is_refused(download_from: Callable[[str], None]) -> None:
    """The launcher gets the reason, nothing stays in the cache, and a deployment that names ImageNet fails."""
    download_from(NAME.format("0badc0de"))
    with pytest.raises(SystemExit, match="invalid hash value"):
        imagenet_download.main(60)
    assert cached() == []
    with pytest.raises(WeightsUnavailableError, match="weights imagenet: cannot download"):
        imagenet_download.convert()


def test_a_download_that_stalls_ends_in_time(download_from: Callable[[str], None]) -> None:
    """Half a file is not kept."""
    download_from(f"slow/{NAME.format('0badc0de')}")
    with pytest.raises(SystemExit, match="the download took more than 1 s"):
        imagenet_download.main(1)
    assert cached() == []


@pytest.mark.parametrize("damage", ["missing", "cut", "changed"])
def test_a_damaged_copy_is_made_again(
    download_from: Callable[[str], None], stand_in: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """A power cut leaves an empty file; torchvision's own file is still there."""
    download_from(name := right_name(stand_in))
    imagenet_download.convert()
    converted = weights.converted_file(name[9:17])
    if damage == "missing":
        converted.unlink()
    else:
        converted.write_bytes(b"" if damage == "cut" else b"x" + converted.read_bytes()[1:])
    assert weights.find_imagenet(name[9:17]) is None
    monkeypatch.setattr(weights, "run_child", lambda _module: imagenet_download.convert())
    assert load_weights(WeightsConfig(source="imagenet"))[1].sha256 == name[9:17]
    assert weights.find_imagenet(name[9:17])


@pytest.mark.parametrize(
    ("status", "reason", "lines"),
    [
        (0, "", ["weights: imagenet, one thousand classes; WEIGHTS=demo "]),
        (
            1,
            "no network\n",
            ["ImageNet's weights are not available (no network)", f"weights: demo, {DEMO_CLASSES} everyday classes; "],
        ),
    ],
)
def test_the_start_says_which_model_answers(
    status: int,
    reason: str,
    lines: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With ``auto``: the weights, and how to choose the others."""
    done: Any = subprocess.CompletedProcess([], status, "", reason)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(local.subprocess, "run", lambda *_args, **_options: done)
    served: list[Any] = []

    def serving(config: dict[str, Any], *_args: object) -> None:
        served.append(config["applications"][0]["args"]["weights"])
        raise StartError("not started")

    monkeypatch.setattr(local, "serving", serving)
    with pytest.raises(SystemExit, match="not started"):
        local.main(ROOT / "configs" / "local.yaml", "auto", "127.0.0.1", free_port(), None)
    assert served == ["demo" if status else "imagenet"]
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == len(lines)
    assert all(line in text for line, text in zip(lines, shown, strict=True)), shown
