"""The README stays true: knobs, commands, links, no left-over marks."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pydantic import BaseModel

from serve_app.config import (
    AdmissionConfig,
    ClassifierConfig,
    EngineConfig,
    FeedbackConfig,
    IngressConfig,
    JobsConfig,
    KeysConfig,
    LimitsConfig,
    PredictionLogConfig,
)
from tests.support.paths import ROOT

README = (ROOT / "README.md").read_text()
HOMES: dict[str, type[BaseModel]] = {
    "`args: {engine: …}`": EngineConfig,
    "`user_config` of Ingress": IngressConfig,
    "`limits` in it": LimitsConfig,
    "`admission` in it": AdmissionConfig,
    "`keys` in it": KeysConfig,
    "`prediction_log` in it": PredictionLogConfig,
    "`feedback` in it": FeedbackConfig,
    "`jobs` in it": JobsConfig,
    "`user_config` of Classifier": ClassifierConfig,
}


def rows() -> Iterator[str]:
    """The table of knobs, from where they are declared."""
    for home, kind in HOMES.items():
        for name, field in kind.model_fields.items():
            if field.description:  # else it holds knobs of its own
                default = "required" if field.is_required() else field.default
                yield f"| {home} | `{name}` | {default} | {field.description} |"


def test_every_knob_is_in_the_table() -> None:
    missing = [row for row in rows() if row not in README]
    assert not missing, "\n".join(missing)


def test_named_files_exist() -> None:
    """Links and pictures lead somewhere."""
    for path in (ROOT / "README.md", ROOT / "docs" / "architecture.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake ([a-z]+)\b", README):
        assert f"\n{target}:" in makefile, target


def test_nothing_is_left_to_fill_in() -> None:
    assert "<!--" not in README
