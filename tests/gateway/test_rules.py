"""What an application may do, at the real nginx: which rule allows a request, and every spelling that tries another."""

from functools import partial

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from attestgate.manager.gateway.dictionary import Dictionary
from attestgate.schemas.admission import ALL, READ_ONLY, Rule
from tests.support.gateway.gate import Client, Gate, logged, until
from tests.support.gateway.rules import ALLOWED, ONE_SUBTREE, REFUSED, send
from tests.support.threats import rows, threat

RULE = TypeAdapter(Rule)


@pytest.fixture
async def client(gate: Gate) -> Client:
    client = gate.client()
    await gate.admit(client, allow=ONE_SUBTREE)
    return client


@threat(rows.RULES)
@pytest.mark.stack
async def test_a_rule_allows(gate: Gate, client: Client) -> None:
    for method, target in ALLOWED:
        assert await send(client, gate, method, target) == 200, (method, target)
        request = gate.upstream.requests.pop()
        query = f"?{request.url.query}" if request.url.query else ""
        assert request.scope["raw_path"].decode() + query == target, "upstream gets the target that was judged"


@threat(rows.RULES, rows.KEY_GIVEN_AWAY)
@pytest.mark.stack
async def test_no_rule_allows(gate: Gate, client: Client) -> None:
    passed = [(m, t) for m, t in REFUSED if await send(client, gate, m, t) not in {400, 403, 405}]
    assert passed == []
    assert gate.upstream.requests == []


@threat(rows.RULES)
@pytest.mark.stack
async def test_the_absolute_form_is_judged_by_its_path(gate: Gate, client: Client) -> None:
    """RFC 9112, section 3.2.2: a server has to take it; only the path goes upstream, and the host is the gateway's."""
    assert await send(client, gate, "GET", "http://elsewhere.example/switches") == 200
    assert await send(client, gate, "POST", "http://elsewhere.example/switches") == 403
    (request,) = gate.upstream.requests
    assert request.scope["raw_path"] == b"/switches"
    assert request.headers["host"] == "controller"


@threat(rows.RULES)
@pytest.mark.stack
@pytest.mark.parametrize("name", ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override", "X-Original-URL"])
async def test_no_header_makes_it_another_request(gate: Gate, client: Client, name: str) -> None:
    response = await client.http.get("/switches", headers={name: "DELETE"})
    assert response.status_code == 200
    assert name.lower() not in dict(response.json()["headers"])


@threat(rows.NO_CERTIFICATE)
@pytest.mark.stack
async def test_the_log_says_which_rules_there_are_and_the_stranger_learns_nothing(gate: Gate, client: Client) -> None:
    refused = await client.http.post("/switches")
    assert (refused.status_code, refused.content) == (403, b"refused\n")
    (no_rule,) = await logged(gate, 1)
    assert no_rule["verdict"] == f"no rule allows it: {'; '.join(ONE_SUBTREE)}"
    assert client.issued is not None
    assert no_rule["identity"] == client.issued.identity
    await client.http.get("/switches//s1")
    (_, spelling) = await logged(gate, 2)
    assert spelling["verdict"] == "target not in plain form"
    async with Dictionary(gate.config.admin) as dictionary:
        counted = {(r.verdict, r.identity): r.times for r in await dictionary.refusals()}
        assert counted[no_rule["verdict"], no_rule["identity"]] == 1
        assert await dictionary.refusals() == []


@threat(rows.RULES)
@pytest.mark.stack
async def test_without_a_rule_nothing_passes_and_a_new_lease_brings_new_rules(gate: Gate) -> None:
    client = gate.client()
    await gate.admit(client, allow=())
    assert (await client.http.get("/switches")).status_code == 403
    await gate.admit(client, allow=(READ_ONLY,), sequence=2)
    assert (await client.http.get("/switches")).status_code == 200
    assert (await client.http.post("/switches")).status_code == 403
    await gate.admit(client, allow=(ALL,), sequence=3)
    assert (await client.http.post("/switches")).status_code == 200
    await gate.admit(client, allow=("GET /other",), sequence=4)
    assert (await client.http.get("/switches")).status_code == 403
    assert (await logged(gate, 1))[0]["verdict"] == "no rule allows it: there is none"


@pytest.mark.parametrize("rule", [ALL, READ_ONLY, "GET /", "GET /a/b/", "GET,POST /a-b_c~/**", "GET /a:b@c=d,e/**"])
def test_a_rule(rule: str) -> None:
    assert RULE.validate_python(rule) == rule


@pytest.mark.parametrize(
    "rule",
    [
        "",
        "/switches",
        "GET",
        "GET  /a",
        "get /a",
        "GET a",
        "GET /a/../b",
        "GET /a//b",
        "GET /.a",
        "GET /a;b",
        "GET /a%2e",
        "GET /a*",
        "GET /a/**/b",
        "GET /a?b",
        "GET,*,POST /a",
        "GET /a\n",
        "GET /" + "a" * 300,
        "GET, POST /a",
    ],
)
def test_no_rule(rule: str) -> None:
    with pytest.raises(ValidationError):
        RULE.validate_python(rule)


@given(st.text(max_size=40))
def test_what_is_taken_for_a_rule_can_be_read_only_one_way(text: str) -> None:
    try:
        rule = RULE.validate_python(text)
    except ValidationError:
        return
    methods, path = rule.split(" ")
    assert path.startswith("/") and ".." not in path.split("/") and "%" not in path
    assert methods == "*" or all(method.isupper() for method in methods.split(","))


@threat(rows.CONNECTION_OUTLIVES)
@pytest.mark.stack
async def test_a_connection_remembers_no_longer_than_the_lease(gate: Gate) -> None:
    """What is kept of a connection is worth nothing once the dictionary has another sequence, or none."""
    client = gate.client()
    await gate.admit(client, lease_s=2, host_s=60)
    assert (await client.http.get("/x")).status_code == 200

    async def answer() -> int:
        try:
            return (await client.http.get("/x")).status_code
        except httpx.RemoteProtocolError:
            return 0  # the lease ended while the answer was on its way

    await until(answer, lambda status: status == 403)
    await until(partial(logged, gate, 1), lambda lines: lines[-1]["verdict"] == "not admitted")
