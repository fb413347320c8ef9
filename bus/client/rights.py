"""What the server permits a credential, tried without side effects and compared with the table of permissions.

Subscriptions are made and dropped. Publishing is tried where only streams listen, with a header by which a stream
rejects the message after the server has let it pass (`Nats-Expected-Stream`, ADR-8): nothing is stored or delivered.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nats.aio.client import Client
from nats.errors import Error

from attestgate.bus import layout, subjects
from attestgate.bus.api import BusError
from attestgate.bus.auth.credentials import Holder, holder
from attestgate.bus.auth.permissions import MANAGER, NAME, ROLES
from attestgate.bus.client.nats import addresses
from attestgate.bus.subjects import app_name

OTHER = "another-name"
UNSTORED = {"Nats-Expected-Stream": "none"}
_REFUSED = {"publish": "permissions violation for publish to", "subscribe": "permissions violation for subscription to"}


@dataclass(frozen=True)
class Rights:
    """Where server and table differ, as `publish SUBJECT` and `subscribe SUBJECT`."""

    tried: int
    missing: list[str]
    """Refused, although the role needs it."""
    excess: list[str]
    """Permitted, although the role does not have it."""


async def try_rights(url: str, credentials: Path) -> Rights:
    """Try one credential, each role's subjects, its own name's and another's. Raises Refusal, BusError."""
    who = holder(credentials)
    refused: set[str] = set()

    async def problem(error: Exception) -> None:
        refused.update(f"{verb} {_quoted(str(error))}" for verb, text in _REFUSED.items() if text in str(error))

    client = Client()
    try:
        await client.connect(
            addresses([url]),
            user_credentials=str(credentials),
            inbox_prefix=who.inbox,
            allow_reconnect=False,
            error_cb=problem,
        )
        for subject in _publishable(who):
            await client.publish(subject, b"", headers=UNSTORED)
        for subject in _audible(who.name):
            await (await client.subscribe(subject)).unsubscribe()
        for _ in range(2):  # a refusal arrives before the answer to the second
            await client.flush()
    except (Error, OSError) as error:
        raise BusError(f"{url}: {str(error) or type(error).__name__}") from error
    finally:
        await client.close()
    return _compared(who, refused)


def _compared(who: Holder, refused: set[str]) -> Rights:
    role = ROLES[who.role]
    own = {
        "publish": [subject.replace(NAME, who.name) for subject in role.may_publish()],
        "subscribe": [subject.replace(NAME, who.name) for subject in role.may_subscribe()],
    }
    tried = [("publish", s) for s in _publishable(who)] + [("subscribe", s) for s in _audible(who.name)]
    missing, excess = [], []
    for verb, subject in tried:
        theirs = any(subject == pattern or subjects.matches(pattern, subject) for pattern in own[verb])
        passed = f"{verb} {subject.lower()}" not in refused
        if theirs and not passed:
            missing.append(f"{verb} {subject}")
        if passed and not theirs:
            excess.append(f"{verb} {subject}")
    return Rights(tried=len(tried), missing=missing, excess=excess)


def _publishable(who: Holder) -> list[str]:
    """One subject of each kind to which only streams subscribe: from each role to the managers, and the managers' own.

    Managers also watch the buckets, so those are tried only for the other roles, which must not be let pass.
    """
    said = [f"{subjects.IN}.{role}.{{}}.{step}" for role, steps in subjects.STEPS.items() for step in steps]
    said += [f"{subjects.OPERATOR}.{{}}.{command}" for command in (*subjects.COMMANDS, *subjects.POLICY_COMMANDS)]
    kept = [bucket.subject("doctor") for bucket in layout.BUCKETS.values()] if who.role != MANAGER else []
    return [
        *(s.format(name) for s in said for name in (who.name, OTHER, app_name(OTHER, OTHER))),
        f"{subjects.WORK}.doctor.doctor.doctor",
        *kept,
    ]


def _audible(name: str) -> list[str]:
    """Everything that any role subscribes to, under its own name and another, and `>`."""
    heard = {
        subject.replace(NAME, who) for r in ROLES.values() for subject in r.may_subscribe() for who in (name, OTHER)
    }
    return [*sorted(heard), ">"]


def _quoted(text: str) -> str:
    return text.split('"')[1]
