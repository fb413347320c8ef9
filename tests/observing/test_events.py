"""Events: every one is in the table, their headers are CloudEvents, the AsyncAPI document says what is published."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestgate.bus import asyncapi
from attestgate.schemas.base import Model
from attestgate.schemas.event_data import BY_NAME, EVENTS, EventKind, GatewayWhat, SessionWhat
from attestgate.schemas.events import Event

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "asyncapi.json"
PRINTABLE = re.compile(r"[!-~]*")
FIELDS: dict[str, Any] = {"id": "1", "kind": "host", "subject": "h1", "what": "trusted", "at": 1_700_000_000}


def test_the_document_is_what_the_models_make() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == asyncapi.text(), "make it again: python -m attestgate.bus.asyncapi"


def test_the_document_names_every_event_and_every_reference_resolves() -> None:
    document = asyncapi.document()
    assert document["asyncapi"].startswith("3.")
    named = {
        (channel.removeprefix("events-"), what)
        for channel, described in document["channels"].items()
        if channel.startswith("events-")
        for what in described["messages"]
    }
    assert named == set(BY_NAME)
    for reference in references(document):
        at: Any = document
        for part in reference.removeprefix("#/").split("/"):
            at = at[part]


def references(value: object) -> Iterator[str]:
    match value:
        case dict():
            if isinstance(value.get("$ref"), str):
                yield value["$ref"]
            for inner in value.values():
                yield from references(inner)
        case list():
            for inner in value:
                yield from references(inner)


def test_no_event_is_listed_twice_and_each_name_is_a_token_of_a_subject() -> None:
    names = [(kind, told.what) for told in EVENTS for kind in told.kinds]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", what) for _, what in names)
    assert {kind for kind, _ in names} == set(get_args(EventKind))


def test_the_types_of_the_publishers_and_the_table_agree() -> None:
    assert {what for kind, what in BY_NAME if kind == "gateway"} - {"dropped", "quarantined"} == set(
        get_args(GatewayWhat)
    )
    session = {what for kind, what in BY_NAME if kind in ("host", "app")} - {"dropped", "quarantined"}
    assert session == set(get_args(SessionWhat))


def literals() -> Iterator[tuple[str, str]]:
    """Every call in the code that publishes an event under a name written out: the file, and the name."""
    for path in sorted((ROOT / "manager").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            place = {"event": 0, "emit": 2, "_emit": 2}.get(node.func.attr)
            if place is None or len(node.args) <= place:
                continue
            name = node.args[place]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", name.value


def test_every_event_that_the_code_names_is_in_the_table_and_the_other_way_round() -> None:
    found = list(literals())
    known = {what for _, what in BY_NAME}
    assert [where for where, what in found if what not in known] == []
    by_variable = {"refused", "untrusted", "expired", "revoked", "superseded", "admitted", "renewed"}
    assert known - {what for _, what in found} <= by_variable


def test_headers_are_cloudevents_in_binary_mode() -> None:
    event = Event(**FIELDS, session="ab" * 16, source="attestgate/manager")
    assert event.headers() == {
        "ce-specversion": "1.0",
        "ce-id": "1",
        "ce-type": "attestgate.v1.host.trusted",
        "ce-source": "attestgate/manager",
        "ce-subject": "h1",
        "ce-time": "2023-11-14T22:13:20Z",
        "ce-datacontenttype": "application/json",
        "ce-correlationid": "ab" * 16,
    }


@given(st.text(max_size=64))
def test_any_text_fits_into_a_header_and_comes_back(text: str) -> None:
    """The binding's example, and everything else: only printable ASCII, space and quotes and percent encoded."""
    event = Event(**{**FIELDS, "subject": text}, source="a")
    value = event.headers()["ce-subject"]
    assert PRINTABLE.fullmatch(value) and '"' not in value
    assert unquote(value, errors="strict") == text
    assert Event(**FIELDS, source="Euro € 😀").headers()["ce-source"] == "Euro%20%E2%82%AC%20%F0%9F%98%80"


@pytest.mark.parametrize("told", EVENTS, ids=[f"{told.kinds[0]}-{told.what}" for told in EVENTS])
def test_the_data_of_every_event_has_a_schema_that_says_what_it_means(told: Any) -> None:
    assert issubclass(told.data, Model) and told.data.__doc__
    assert json.dumps(told.data.model_json_schema())
