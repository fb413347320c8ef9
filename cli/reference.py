"""The pages of docs/ that are generated from the code: `python -m attestgate.cli.reference` writes them."""

from __future__ import annotations

import json
import types
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from prometheus_client import CollectorRegistry
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from attestgate.cli.config import MODELS, Process
from attestgate.manager.audit.log import Status
from attestgate.manager.gateway.metrics import GatewayMetrics
from attestgate.manager.metrics.manager import ManagerMetrics
from attestgate.schemas.prototype import PROTOTYPE

DOCS = Path(__file__).resolve().parent.parent / "docs"
GENERATED = "<!-- Generated from the code by `python -m attestgate.cli.reference`: change it there. -->\n"
TITLES = {
    Process.MANAGER: "Manager worker: `attestgate manager run -s FILE`",
    Process.GATEWAY: "Gateway worker: `attestgate gateway run -s FILE`",
    Process.HOST: "Host agent: `attestgate host run -s FILE`",
    Process.APP: "Application agent: `attestgate app run -s FILE`",
    Process.OPERATOR: "Operator: `--operator FILE`",
    Process.MEASURED: "Measured settings: named by an agent's `measured`",
    Process.NGINX: "nginx: `attestgate gateway config FILE`",
}


SETTINGS = """# Settings

{generated}
One TOML file per process. Unknown keys are errors. A relative path is relative to the file's folder. Environment
variables override the file: `ATTESTGATE_` and the key, tables joined by two underscores
(`ATTESTGATE_TIMING__LEASE_S=20`); nothing overrides the measured settings and nginx's. `attestgate config check FILE`
checks a file. SIGHUP makes a process reload `log.level`; policies, enrolments and storage keys are picked up as they
change; any other key takes a restart.
"""
METRICS = """# Metrics

{generated}
Off by default. `metrics = "127.0.0.1:9464"` in the settings of a manager or gateway worker enables `GET /metrics`
in Prometheus's text format. There is no authentication: keep it on loopback or a network of its own. Agents expose
none: the manager measures what matters about them, and their enclaves stay small. nats-server has its own (`/varz`,
`/jsz`), nginx its access log. Times are Unix seconds: an age is `time() - x`. Sessions are counted for the whole fleet,
the same at every worker: use `max by (role, state)`, not `sum`. Alert rules: compose/prometheus/alerts.yaml.
"""


def settings_page() -> str:
    """docs/settings.md."""
    parts = [SETTINGS.format(generated=GENERATED)]
    for process, title in TITLES.items():
        model = MODELS[process]
        rows = [(f"`{key}`", _shown(field), _default(field), field.description or "") for key, field in keys_of(model)]
        parts += [f"\n## {title}\n\n{_first_line(model)}\n\n", _table_of(("key", "value", "default", "meaning"), rows)]
    old = [(f"`{name}`", new, note) for name, (new, note) in PROTOTYPE.items()]
    parts += ["\n## The prototype's names\n\n", _table_of(("prototype", "attestgate", "difference"), old)]
    return "".join(parts)


def metrics_page() -> str:
    """docs/metrics.md."""
    manager = ManagerMetrics()
    manager.certificates(dict)
    manager.collateral(dict)
    manager.decision_log(lambda: Status(0, 0.0, True))
    parts = [METRICS.format(generated=GENERATED)]
    for process, registry in {"Manager worker": manager.registry, "Gateway worker": GatewayMetrics().registry}.items():
        parts += [f"\n## {process}\n\n", _table_of(("metric", "type", "labels", "meaning"), families(registry))]
    return "".join(parts)


def _table_of(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([_cell(cell) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def keys_of(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key of a model, dotted, including those in tables; tables in a list as `key[].inner`."""
    for name, field in model.model_fields.items():
        inner, many = _table(field.annotation)
        if inner is None:
            yield prefix + name, field
        else:
            yield from keys_of(inner, f"{prefix}{name}{'[]' if many else ''}.")


def _table(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    if get_origin(annotation) is list:
        inner, _ = _table(_bare(get_args(annotation)[0]))
        return inner, True
    if get_origin(annotation) in (Union, types.UnionType):
        found = [inner for choice in get_args(annotation) if (inner := _table(_bare(choice))[0]) is not None]
        return (found[0], False) if found else (None, False)
    return None, False


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _shown(field: FieldInfo) -> str:
    return _kind(field.annotation) + _bounds(field.metadata)


def _kind(annotation: Any) -> str:
    annotation = _bare(annotation)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (list, tuple):
        return f"list of {_kind(arguments[0])}"
    if origin in (Union, types.UnionType):
        return " or ".join(_kind(choice) for choice in arguments if choice is not type(None))
    names = {str: "text", int: "number", bool: "`true` or `false`"}
    if isinstance(annotation, type) and issubclass(annotation, PurePath):
        return "path"
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _bounds(metadata: list[Any]) -> str:
    low, high = (
        next((value for item in metadata if (value := getattr(item, name, None)) is not None), None)
        for name in ("ge", "le")
    )
    return f", {low} to {high}" if low is not None and high is not None else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    if default is None or default is PydanticUndefined or default == "":
        return "none"
    return f"`{default if isinstance(default, PurePath) else json.dumps(default, default=str)}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _first_line(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().split("\n\n")[0]


def families(registry: CollectorRegistry) -> list[tuple[str, str, str, str]]:
    """Name, type, labels and meaning of every metric of a registry, with or without samples."""
    rows = []
    for collector in registry._collector_to_names:  # there is no public API for metrics without samples
        for family in collector.collect():
            labels = getattr(collector, "_labelnames", None) or getattr(family, "_labelnames", None) or ()
            name = f"{family.name}_total" if family.type == "counter" else family.name
            rows.append((f"`{name}`", family.type, ", ".join(labels) or "none", family.documentation))
    return sorted(rows)


PAGES = {"settings.md": settings_page, "metrics.md": metrics_page}


def main() -> None:
    """Write every page."""
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
