"""Write the tables of docs/configuration.md from serve_app/config.py: `python -m tests.support.settings_table`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from serve_app.config import (
    AdmissionConfig,
    AppConfig,
    ClassifierConfig,
    EngineConfig,
    FeedbackConfig,
    IngressConfig,
    JobsConfig,
    KeysConfig,
    LimitsConfig,
    PredictionLogConfig,
    WeightsConfig,
)
from serve_app.heads_config import HeadsConfig
from serve_app.images_by_url_config import ImagesByUrlConfig
from serve_app.settings import FrozenModel, MiB, Unit
from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "configuration.md"
BEGIN = "<!-- Generated from serve_app/config.py by `python -m tests.support.settings_table`; edits here are lost. -->"
END = "<!-- End of the generated part. -->"
# Heading of each table -> the settings in it
SECTIONS: dict[str, type[FrozenModel]] = {
    "`args`": AppConfig,
    "`args: {weights: …}`": WeightsConfig,
    "`args: {engine: …}`": EngineConfig,
    "`user_config` of the Classifier": ClassifierConfig,
    "`user_config` of the Ingress": IngressConfig,
    "`limits` of the Ingress": LimitsConfig,
    "`admission` of the Ingress": AdmissionConfig,
    "`keys` of the Ingress": KeysConfig,
    "`prediction_log` of the Ingress": PredictionLogConfig,
    "`feedback` of the Ingress": FeedbackConfig,
    "`jobs` of the Ingress": JobsConfig,
    "`heads` of the Ingress": HeadsConfig,
    "`images_by_url` of the Ingress": ImagesByUrlConfig,
}


def is_group(field: FieldInfo) -> bool:
    """Return whether a field holds settings with a table of their own, such as ``limits``."""
    return field.annotation in SECTIONS.values()


def tables() -> str:
    """Return the Markdown of all sections."""
    return "\n".join(line for heading, section in SECTIONS.items() for line in _section(heading, section))


def page_with(generated: str) -> str:
    """Return the page with its generated part replaced."""
    head, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n\n{generated}\n{END}{tail}"


def _section(heading: str, section: type[FrozenModel]) -> Iterator[str]:
    yield from (f"### {heading}", "", (inspect.getdoc(section) or "").replace("``", "`"), "")
    yield from ("| key | unit or values | default | meaning |", "|---|---|---|---|")
    for key, field in section.model_fields.items():
        if not is_group(field):
            default = "required" if field.is_required() else _default(field.default, _unit(field))
            yield f"| `{key}` | {_unit(field)} | {default} | {field.description} |"
    yield ""


def _unit(field: FieldInfo) -> str:
    if get_origin(field.annotation) is Literal:
        return ", ".join(get_args(field.annotation))
    if field.annotation is bool:
        return "true, false"
    return next((entry.name for entry in field.metadata if isinstance(entry, Unit)), "")


def _default(value: Any, unit: str) -> str:
    if value in (None, ()):
        return "none"
    if unit == "bytes":
        return f"{value} ({value / MiB:g} MiB)"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    PAGE.write_text(page_with(tables()))
