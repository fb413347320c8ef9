"""The seam between two trees of the log: a full tree is closed, and the next begins with an entry that names it.

A worker makes the entry from the closed tree's last head alone, so all make the same. The stream has it like any other
entry, under a subject that follows from the new tree's number, hence once. Each head carries it beside its tree, whose
first leaf it is: the seam can be checked where the stream has let the entry go.
"""

from __future__ import annotations

import hashlib

from attestgate.bus import subjects
from attestgate.bus.api import ONCE, Bus, Conflict
from attestgate.bus.layout import LOG
from attestgate.manager.audit.head import ACTION, closable
from attestgate.schemas.audit import MANAGERS, Continued, Decision, Fact, open_decision, sign_decision
from attestgate.schemas.base import Refusal
from attestgate.schemas.checkpoint import Checkpoint, origin_of
from attestgate.schemas.signing import Signer, TrustedKeys


def seam_after(closed: Checkpoint, entries: int, identity: Signer) -> tuple[str, bytes]:
    """The entry that continues a closed tree, and its subject. `entries` are the whole log's up to there."""
    fact = Continued(origin=closed.origin, size=closed.size, root=closed.root.hex(), entries=entries)
    origin = origin_of(identity.deployment, closed.tree + 1)
    decision = Decision(id=_id(origin), kind="manager", subject=MANAGERS, at=closed.at, by=MANAGERS, fact=fact)
    subject = _subject(origin)
    return subject, sign_decision(identity, subject, decision)


async def put_seam(bus: Bus, identity: Signer, managers: TrustedKeys, closed: Checkpoint, entries: int) -> bytes:
    """Store the entry that continues a closed tree, and return it. Raises BusError."""
    subject, entry = seam_after(closed, entries, identity)
    try:
        await bus.publish(subject, entry, headers=ONCE)
    except Conflict:
        # While the managers' identity is replaced, another worker may have signed it with the other one: then that is
        # the entry. One that says something else is a stranger's, or from before the bus was set back: not the log's.
        fact = open_decision(subject, entry, managers).fact
        stored, _ = await bus.page(LOG.name, 0, subject)
        return next((one.data for one in stored if _says(fact, subject, one.data, managers)), entry)
    return entry


def open_seam(entry: bytes, head: Checkpoint, managers: TrustedKeys) -> Continued:
    """What a head carries as its tree's first entry, signed by a manager for this tree. Raises Refusal."""
    before = origin_of(managers.deployment, head.tree - 1)
    if not entry:
        raise wrong_seam(f"an entry that continues {before}", "none beside the head")
    fact = open_decision(_subject(head.origin), entry, managers).fact
    if not isinstance(fact, Continued) or fact.origin != before or not closable(fact.size):
        raise wrong_seam(f"the last head of {before}", str(fact.model_dump(mode="json")))
    others = fact.entries - fact.size
    if others < 0 or (others > 0) != (head.tree > 2):
        raise wrong_seam(f"the {fact.size} entries of {before} and those before", f"{fact.entries} entries")
    return fact


def wrong_seam(expected: str, found: str) -> Refusal:
    """Two trees do not fit together."""
    return Refusal.because("log.seam", "the tree's first entry", expected=expected, found=found, action=ACTION)


def _says(fact: Fact, subject: str, entry: bytes, managers: TrustedKeys) -> bool:
    try:
        return open_decision(subject, entry, managers).fact == fact
    except Refusal:
        return False


def _subject(origin: str) -> str:
    """The subject of the entry that a tree begins with."""
    return subjects.decision("manager", MANAGERS, _id(origin))


def _id(origin: str) -> str:
    return hashlib.sha256(f"continued {origin}".encode()).hexdigest()[:32]
