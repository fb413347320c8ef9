"""Inter-session messages: encrypted, on a stream that only managers may publish to. They carry no secret."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from attestgate.schemas.base import MAX_MESSAGE, Bytes64, Count, Id, Label, Model, Reason, Reasons, Seconds, SessionId
from attestgate.schemas.messages import PublicKey

WORK = "work"
"""Takes the place of the bucket's name when the cipher encrypts a message."""


class SessionMessage(Model):
    """A message in transit: one of the models below, packed. The subject says which."""

    data: Annotated[bytes, Field(max_length=MAX_MESSAGE)]


class Deliver(Model):
    """Application session to host session: deliver my key to this enclave."""

    app: Id
    app_session: SessionId
    enclave_key: PublicKey
    suite: Label
    t2: Bytes64
    volume: Count


class Delivered(Model):
    """Host session to application session: the key was delivered, or why not. From another host session it counts for
    nothing."""

    host_session: SessionId
    problem: Reason | None = None


class Issue(Model):
    """An application session to itself: the proof is valid, issue the certificate."""


class HostLost(Model):
    """Host session to its application sessions: it has ended."""

    state: Label
    reasons: Reasons


class Order(Model):
    """An operator's order, or a newer session's, to one session."""

    reasons: Reasons


class RevokedCertificate(Model):
    """An ended session, for the revocation list: its certificate, and the CA's subject key identifier."""

    issuer: Label
    serial: Label
    at: Seconds
    state: Label


class AppliedAtGateway(Model):
    """A gateway's report to one application session: nginx admits this serial."""

    gateway: Id
    serial: Label
