"""What is received is bounded before anything is believed: each model's size, each step's, and the work to refuse."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, ValidationError

from attestgate.bus import subjects
from attestgate.bus.agent.link import INBOX, INBOX_BYTES
from attestgate.bus.crypto import envelope
from attestgate.bus.crypto.channel import Frame
from attestgate.bus.crypto.envelope import SUITES
from attestgate.manager.handlers.gateway_reports import MAX_STRANGE
from attestgate.manager.records.record_cipher import SealedRecord
from attestgate.schemas import base, limits, messages
from attestgate.schemas.admission import (
    MAX_APPLIED,
    MAX_GLASS,
    MAX_REFUSED,
    MAX_REPORT,
    MAX_REVOKED,
    GatewayReport,
    Posted,
)
from attestgate.schemas.audit import MAX_ENTRY, Decision
from attestgate.schemas.base import (
    MAX_MESSAGE,
    MAX_TIME,
    Model,
    Reason,
    Refusal,
    Seconds,
    Secret,
    check_size,
    pack,
    parse_json,
    read_json,
    shown,
    unpack,
)
from attestgate.schemas.binding import PROTOCOL
from attestgate.schemas.bounds import Unbounded, bounds_of
from attestgate.schemas.break_glass import MAX_FILE, BreakGlass
from attestgate.schemas.enrolment import Command, Enrol, HostEnrolment, Revoke
from attestgate.schemas.signing import Signed
from tests.support.hostile_messages import costliest, costliest_events, first_read, shapes, size_of
from tests.support.reasons import refusal_code
from tests.support.threats import rows, threat

ROOT = Path(__file__).parents[2]
FOLDERS = ("schemas", "bus", "manager", "enclave", "host_agent", "app_agent", "compose", "cli")
OWN = "written and read by this deployment's managers, encrypted under the storage key"
LOCAL = "a file of this machine's, read at start"
MADE = "made here and shown: never read"
UNBOUNDED = {
    "bus.auth.credentials": LOCAL,
    "bus.crypto.channel.Channel": OWN,
    "enclave.manifest": LOCAL,
    "enclave.simulated.documents": LOCAL,
    "enclave.simulated.ias": LOCAL,
    "manager.diagnosis.doctor": MADE,
    "manager.gateway.entries": MADE,
    "manager.policy.policy_set": LOCAL,
    "manager.policy.policy_trial": MADE,
    "manager.sessions.record": OWN,
    "schemas.events": "JSON of which a part is free: bounded as a whole, by schemas.events.largest",
    "schemas.sgx.Appraisal": MADE,
    "schemas.sgx.IasVerdict": MADE,
    "schemas.sgx.SgxVerdict": MADE,
}
"""The only models without bounds, by module or class, and why they meet no foreign bytes."""
STEPS = sorted([*limits.INBOUND, *limits.OUTBOUND])
SIGNED: list[tuple[type[Model], int]] = [
    (GatewayReport, MAX_REPORT),
    (Command, limits.COMMAND),
    (Decision, MAX_ENTRY),
    (BreakGlass, MAX_FILE),
    (Posted, MAX_FILE),
    (messages.Challenge, limits.OUTBOUND["host", "challenge"]),
    (messages.Refused, limits.OUTBOUND["host", "refused"]),
    (SealedRecord, MAX_MESSAGE),
]
SPARE = 64 * 1024
"""Bytes that any refusal costs: exceptions, a reason."""


def every_model() -> set[type[Model]]:
    for folder in FOLDERS:
        package = importlib.import_module(f"attestgate.{folder}")
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__") and not module.name.startswith("attestgate.compose.sdn"):
                importlib.import_module(module.name)
    return {kind for kind in below(Model) if kind.__module__.startswith("attestgate.")}


def below(kind: type[Model]) -> Iterator[type[Model]]:
    for sub in kind.__subclasses__():
        yield sub
        yield from below(sub)


@threat(rows.MESSAGE_COSTLY)
def test_every_model_that_meets_foreign_bytes_has_bounds() -> None:
    missing, needless = set(), set(UNBOUNDED)
    for kind in every_model():
        module = kind.__module__.removeprefix("attestgate.")
        try:
            bounds_of(kind)
        except Unbounded as error:
            named = {module, f"{module}.{kind.__name__}"} & UNBOUNDED.keys()
            needless -= named
            missing |= set() if named else {str(error)}
    assert missing == set()
    assert needless == set()


@pytest.mark.parametrize("fault", ["str", "bytes", "int", "list[str]", "dict[str, int]", "Any"])
def test_a_field_without_a_maximum_is_found(fault: str) -> None:
    kind = type("Faulty", (Model,), {"__annotations__": {"x": eval(fault)}})
    with pytest.raises(Unbounded, match=r"Faulty\.x"):
        bounds_of(kind)


class Recursive(Model):
    """One that holds itself."""

    more: Annotated[list[Recursive], Field(max_length=2)] = []


def test_a_model_that_holds_itself_has_no_bounds() -> None:
    with pytest.raises(Unbounded, match="may hold itself"):
        bounds_of(Recursive)


def largest_reason() -> Reason:
    return Reason(**dict.fromkeys(Reason.model_fields, "\U0001f600" * base.SHOWN))


LARGEST: list[BaseModel] = [
    messages.HostHello(
        version=PROTOCOL,
        host="a" * 63,
        random=bytes(32),
        boot_id="\U0001f600" * 64,
        agent_version="\U0001f600" * 64,
        can_give=["sgx", "ima", "tpm"],
    ),
    messages.Resume(session="ab" * 16),
    messages.KeyDelivered(app_session="ab" * 16, problem=largest_reason()),
    messages.Refused(session="ab" * 16, hello=bytes(64), step="a" * 64, reasons=[largest_reason()] * base.MAX_REASONS),
    messages.Accepted(lease_end=MAX_TIME, next_recheck=MAX_TIME),
    messages.HostGrant(k=Secret(bytes(Secret.LONGEST)), n1=bytes(32), channel=Secret(bytes(Secret.LONGEST))),
    messages.Sealed(session="ab" * 16, ciphertext=bytes(MAX_MESSAGE - 100)),
    Signed(version=PROTOCOL, payload=bytes(MAX_MESSAGE - 200), signer=bytes(32), signature=bytes(64)),
    Enrol(subject=HostEnrolment(id="a" * 63, mrenclaves=["ab" * 32] * 2, platform="ab" * 32)),
    Revoke(kind="gateway", id="a" * 63, reason="\U0001f600" * 200),
]


@pytest.mark.parametrize("largest", LARGEST, ids=lambda model: type(model).__name__)
def test_the_largest_of_a_kind_is_within_its_bounds(largest: BaseModel) -> None:
    data = pack(largest)
    assert len(data) <= bounds_of(type(largest)).size
    assert pack(unpack(type(largest), data)) == data


@pytest.mark.parametrize("largest", LARGEST, ids=lambda model: type(model).__name__)
def test_one_byte_more_than_its_bounds_is_refused_by_its_size(largest: BaseModel) -> None:
    with pytest.raises(Refusal) as refused:
        unpack(type(largest), bytes(min(bounds_of(type(largest)).size, MAX_MESSAGE) + 1))
    assert refusal_code(refused) == "message.size"


def test_every_step_has_a_maximum_and_only_what_holds_lists_or_policies_the_buses() -> None:
    assert limits.INBOUND.keys() == {(role, step) for role, steps in subjects.STEPS.items() for step in steps}
    large = {key for key in STEPS if size_of(*key) > 256 * 1024}
    assert large == {("host", step) for step in subjects.LISTS}
    assert all(size_of(role, "hello") <= 1024 for role in ("host", "app"))


def test_the_page_has_the_maximum_of_every_step() -> None:
    page = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
    listed = {
        (role, step): int(size)
        for step, *sizes in re.findall(r"^\| `(\w+)` \| (\d*) ?\| (\d*) ?\| (\d*) ?\|$", page, re.MULTILINE)
        for role, size in zip(("host", "app", "gateway"), sizes, strict=True)
        if size
    }
    assert listed == dict(limits.INBOUND)
    assert f"at most {limits.COMMAND} bytes, or {MAX_MESSAGE} with policies" in page
    most = (
        f"at most {MAX_APPLIED} changes and {MAX_GLASS} break-glass admissions, {MAX_REVOKED} Revokes and {MAX_REFUSED}"
    )
    assert most in page.replace("\n", " ")
    assert f"than {MAX_STRANGE} others is refused" in page.replace("\n", " ")
    assert f"at most {base.SHOWN} characters" in page and f"at most {base.MAX_REASONS} reasons" in page
    assert f"at most {INBOX} messages or {INBOX_BYTES // 2**20} MiB" in page.replace("\n  ", "")


def test_what_encryption_and_signatures_add_is_counted() -> None:
    assert bounds_of(Frame).size - MAX_MESSAGE + 16 <= limits.FRAME  # 16: AES-GCM's tag
    assert bounds_of(Signed).size - MAX_MESSAGE <= limits.SIGNED
    around = bounds_of(messages.Sealed).size - MAX_MESSAGE
    for suite in SUITES:
        _, public = envelope.generate(suite)
        assert len(envelope.seal(suite, public, b"", bytes(100))) - 100 + around <= limits.ENVELOPE


def test_what_is_signed_fits_where_it_is_kept() -> None:
    assert bounds_of(Decision).size + limits.SIGNED <= MAX_ENTRY
    assert bounds_of(BreakGlass).size + limits.SIGNED <= MAX_FILE
    assert bounds_of(Enrol).size + limits.SIGNED + 256 <= limits.COMMAND
    item = {"key": "host." + "ab" * 20, "state": "withdrawn", "sequence": 2**63 - 1, "app_session": "ab" * 16}
    assert len(msgpack.packb(item)) * 64 + 4 * MAX_FILE + 1024 <= MAX_REPORT


@threat(rows.MESSAGE_COSTLY)
@pytest.mark.parametrize(("role", "step"), STEPS)
def test_the_costliest_message_of_a_step_costs_no_more_than_its_size(role: str, step: str) -> None:
    for name, data in costliest(role, step):
        assert len(data) <= size_of(role, step), name
        cost(first_read(role, step), data, name)


@pytest.mark.parametrize(("kind", "size"), SIGNED, ids=lambda value: getattr(value, "__name__", ""))
def test_nor_does_the_costliest_payload_of_a_signed_document(kind: type[Model], size: int) -> None:
    for name, data in shapes(kind, size):
        cost(kind, data, name)


def cost(kind: type[Model], data: bytes, name: str) -> None:
    """Read it; hold what it costs against its size and against what the largest `kind` needs."""
    bounds = bounds_of(kind)
    # The decoder makes room for each list when it begins, and has at most 1,024 open.
    open_lists = 1024 * 8 * bounds.elements
    most = min(16 * len(data), 600 * bounds.items + 2 * len(data)) + open_lists + SPARE
    tracemalloc.start()
    try:
        unpack(kind, data)
    except Refusal as refusal:
        assert refusal.reasons[0].code in ("message.size", "message.encoding", "message.fields"), name
        assert len(refusal.reasons[0].sentence()) < 1000
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak <= most, f"{name}: {peak} bytes for {len(data)}"


@threat(rows.MESSAGE_COSTLY)
@pytest.mark.parametrize(("role", "step"), STEPS)
def test_no_stranger_makes_it_build_more_errors_than_the_model_has_fields(
    role: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = errors_built(monkeypatch)
    kind = first_read(role, step)
    for _, data in costliest(role, step):
        try:
            unpack(kind, data)
        except Refusal:
            continue
    assert all(count <= 2 * bounds_of(kind).keys for count in built)


def errors_built(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    built: list[int] = []
    real = base.where

    def where(error: ValidationError) -> str:
        built.append(error.error_count())
        return real(error)

    monkeypatch.setattr(base, "where", where)
    return built


class Lists(Model):
    """Many items."""

    items: Annotated[list[Annotated[int, Field(ge=0, lt=9)]], Field(max_length=100_000)]
    named: Annotated[dict[Annotated[str, Field(max_length=9)], bool], Field(max_length=100_000)] = {}


@pytest.mark.parametrize("field", ["items", "named"])
def test_a_list_is_read_up_to_its_first_wrong_item(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    built = errors_built(monkeypatch)
    value = ["x"] * 100_000 if field == "items" else {f"{n}": "x" for n in range(100_000)}
    with pytest.raises(Refusal, match=rf"Lists\.{field}\.0"):
        unpack(Lists, msgpack.packb({"items": [], field: value}))
    with pytest.raises(Refusal, match=rf"{field}\.0"):
        parse_json(Lists, json.dumps({"items": [], field: value}), source="a file")
    assert built == [1, 1]


class Grid(Model):
    """Lists in a list."""

    rows: Annotated[list[Annotated[list[bool], Field(max_length=3)]], Field(max_length=50)]


@pytest.mark.parametrize("row", [[], [True] * 3])
def test_the_largest_of_a_kind_with_lists_in_lists_is_read(row: list[bool]) -> None:
    assert unpack(Grid, pack(Grid(rows=[row] * 50))).rows == [row] * 50
    assert bounds_of(Grid).items == 1 + 1 + 1 + 50 + 150


def test_lists_in_lists_count_together() -> None:
    """Each within its own maximum, all of them more than the model has."""
    inner = [[0] * 9] * 9
    with pytest.raises(Refusal) as refused:
        unpack(messages.Outcome, msgpack.packb([inner] * 9))
    assert refusal_code(refused) == "message.encoding"


@pytest.mark.parametrize("data", [b"\xc7\x01\x05x", b"\xd6\xff\x00\x00\x00\x00", msgpack.packb({1: 2})])
def test_extension_types_and_keys_that_are_no_text_are_refused(data: bytes) -> None:
    with pytest.raises(Refusal) as refused:
        unpack(messages.Resume, data)
    assert refusal_code(refused) == "message.encoding"


@given(st.text(max_size=2000) | st.binary(max_size=2000) | st.integers())
def test_a_reason_shows_a_value_of_any_size_in_little_room(value: Any) -> None:
    assert len(shown(value)) <= base.SHOWN
    reason = Reason(**dict.fromkeys(Reason.model_fields, str(value)))
    assert all(len(text) <= base.SHOWN for text in reason.model_dump().values())


@pytest.mark.parametrize("value", [10**5000, json.loads("[" * 900 + "]" * 900)], ids=["int", "list"])
def test_a_reason_shows_what_python_cannot_write(value: Any) -> None:
    assert len(shown([value] if isinstance(value, int) else nested(value, 5000))) <= base.SHOWN
    assert shown(10**5000) == "int too large to show"


def nested(value: Any, times: int) -> Any:
    for _ in range(times):
        value = [value]
    return value


def test_a_reason_takes_a_text_that_is_no_utf_8() -> None:
    assert Reason(**dict.fromkeys(Reason.model_fields, "x\udcff" * 200)).found.startswith("x\\udcff")


def test_a_refusal_has_no_more_reasons_than_a_message() -> None:
    reason = Reason(code="x", field="x", expected="x", found="x", action="x")
    assert len(Refusal(*[reason] * 100).reasons) == base.MAX_REASONS
    ended = messages.Ended(state="x", reasons=[reason] * 100)
    assert len(ended.reasons) == base.MAX_REASONS


def test_a_long_unknown_key_is_cut_in_the_reason() -> None:
    with pytest.raises(Refusal) as refused:
        parse_json(messages.Resume, '{"%s": 1}' % ("k" * 200_000), source="a file")
    assert refusal_code(refused) == "file.fields"
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("[" * 200_000, "file.json"),
        ("1" * 5000, "file.json"),
        ('{"a": 1, "a": 1}', "file.json"),
        ("x" * 99, "file.size"),
    ],
)
def test_json_that_is_too_deep_too_long_or_ambiguous_is_refused(text: str, code: str) -> None:
    with pytest.raises(Refusal) as refused:
        parse_json(messages.Resume, text, source="a file", limit=98 if code == "file.size" else len(text))
    assert refusal_code(refused) == code


@pytest.mark.parametrize("kind", ["gateway", "host"])
def test_unknown_keys_of_json_build_one_error(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    built = errors_built(monkeypatch)
    for _, data in costliest_events(kind):
        try:
            parse_json(messages.Outcome, data, source="an event")
        except Refusal:
            continue
    assert all(count == 1 for count in built)


def test_times_are_those_of_the_calendar() -> None:
    class At(Model):
        at: Seconds

    assert At(at=MAX_TIME)
    with pytest.raises(ValidationError):
        At(at=MAX_TIME + 1)


def test_a_secret_is_not_written_as_json() -> None:
    grant = messages.AppGrant(n2=bytes(32), channel=Secret(b"0123456789abcdef"))
    for write in (grant.model_dump_json, lambda: grant.model_dump(mode="json")):
        with pytest.raises(Exception, match="a secret cannot be written as JSON") as error:
            write()
        assert "0123456789abcdef" not in str(error.value)
    assert unpack(messages.AppGrant, pack(grant)) == grant


def test_a_longer_secret_than_any_is_refused() -> None:
    with pytest.raises(Refusal):
        unpack(messages.AppGrant, msgpack.packb({"n2": bytes(32), "channel": bytes(Secret.LONGEST + 1)}))


def test_the_size_is_checked_before_anything_is_read() -> None:
    check_size("x", bytes(9), 9)
    with pytest.raises(Refusal) as refused:
        check_size("x", bytes(10), 9)
    assert refusal_code(refused) == "message.size"


def test_of_a_file_no_more_is_read_than_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "resume.json"
    path.write_text(json.dumps({"session": "ab" * 16}), encoding="utf-8")
    size = path.stat().st_size
    assert read_json(messages.Resume, path, limit=size).session == "ab" * 16
    with pytest.raises(Refusal) as refused:
        read_json(messages.Resume, path, limit=size - 1)
    assert refusal_code(refused) == "file.size"
