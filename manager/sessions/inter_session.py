"""What sessions say to each other, sealed, by way of a stream that only managers write. No secret is among it."""

from __future__ import annotations

from attestgate.schemas.base import Bytes64, Id, Model, Reason, Seconds, SessionId
from attestgate.schemas.messages import PublicKey

WORK = "work"
"""In the place of a bucket's name, where the cipher seals what is under way."""


class SessionMessage(Model):
    """A message under way: one of the models below, packed. Which one, its subject says."""

    data: bytes


class Deliver(Model):
    """Application session to host session: hand my key to this enclave."""

    app: Id
    app_session: SessionId
    enclave_key: PublicKey
    suite: str
    t2: Bytes64
    volume: int


class Delivered(Model):
    """Host session to application session: done, or why not."""

    host_session: SessionId
    problem: Reason | None = None


class Issue(Model):
    """An application session to itself: the proof stands, make the certificate."""


class HostLost(Model):
    """Host session to its application sessions."""

    state: str
    reasons: list[Reason]


class Order(Model):
    """An operator's order, or a newer session's, to one session."""

    reasons: list[Reason]


class RevokedCertificate(Model):
    """A session that is over, to the revocation list: its certificate, and under which CA (subject key identifier)."""

    issuer: str
    serial: str
    at: Seconds
    state: str


class AppliedAtGateway(Model):
    """A gateway's report to one application session: nginx admits this serial."""

    gateway: Id
    serial: str
