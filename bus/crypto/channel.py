"""The channel after the grant: AES-256-GCM under one key per message, each message chained to those before it.

Key = HKDF-SHA512(channel secret, salt = 32 fresh bytes sent in front, info = [label with step, direction, counter,
chain]). A record that the bus rolled back therefore never encrypts twice under one key. Associated data = [base,
direction, counter, chain, highest counter opened from the peer]. The values are immutable: sealing and opening
return the next state, so that a compare-and-set that loses leaves nothing behind.
"""

from __future__ import annotations

import hashlib
from secrets import token_bytes
from typing import Annotated

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import Field

from attestgate.schemas.base import MAX_MESSAGE, Bytes32, Bytes64, Model, Refusal, Secret, SessionId, pack, unpack
from attestgate.schemas.binding import Direction, canonical, derive, first_chain, next_chain

Counter = Annotated[int, Field(ge=0, lt=2**48)]
_NONCE = bytes(12)
"""A constant nonce: each key seals one message."""
REPEATS = 16
"""Messages of the peer that it may resend without being reported."""


class Frame(Model):
    """A channel message on the wire. `ack` is the highest counter its sender has opened, 0 for none."""

    session: SessionId
    counter: Counter
    ack: Counter
    salt: Bytes32
    ciphertext: Annotated[bytes, Field(max_length=MAX_MESSAGE)]


class Duplicate(Exception):
    """A duplicate: opened before, and resent with the same bytes by a peer that may not have our acknowledgement."""


class Replayed(Duplicate):
    """A replay: an old counter that no honest peer resends, since we acknowledged it or its bytes differ."""


class OutOfOrder(Exception):
    """A message whose predecessor has not arrived yet: out of order, to be retried later."""


class Channel(Model):
    """One end of a channel. `base` is T4; counters count from 1, 0 means none yet."""

    session: SessionId
    secret: Secret
    base: Bytes64
    sends: Direction
    sent: Counter = 0
    sent_chain: Bytes64
    opened: Counter = 0
    opened_chain: Bytes64
    acknowledged: Counter = 0
    """Highest of our counters that the peer says it has opened."""
    acks: list[Counter] = []
    """The `ack` that we sent in each of our messages above `acknowledged`."""
    known: Counter = 0
    """Highest of the peer's counters that it knows we have opened."""
    opened_digests: list[bytes] = []
    """SHA-256 of its messages above `known` that we have opened; of the newest, where there are many."""

    @classmethod
    def start(cls, session: str, secret: Secret, t4: bytes, sends: Direction) -> Channel:
        """The channel at T4."""
        other: Direction = "down" if sends == "up" else "up"
        return cls(
            session=session,
            secret=secret,
            base=t4,
            sends=sends,
            sent_chain=first_chain(t4, sends),
            opened_chain=first_chain(t4, other),
        )

    def seal(self, step: str, plaintext: bytes) -> tuple[Channel, bytes]:
        """The next state and the message's bytes."""
        counter = self.sent + 1
        data = seal_frame(
            self.session,
            self.secret,
            step,
            plaintext,
            base=self.base,
            direction=self.sends,
            counter=counter,
            chain=self.sent_chain,
            ack=self.opened,
        )
        chain, acks = next_chain(self.sent_chain, data), [*self.acks, self.opened]
        return self.model_copy(update={"sent": counter, "sent_chain": chain, "acks": acks}), data

    def check_next(self, frame: Frame, data: bytes) -> None:
        """Whether a frame, packed as `data`, is the peer's next. Raises Duplicate, Replayed, OutOfOrder."""
        # Decided before decryption, on a counter that is not authenticated yet: the exceptions leave the state as it
        # was, so a false counter costs a retry or a log line, and nothing else.
        if frame.counter <= self.opened:
            raise Duplicate if hashlib.sha256(data).digest() in self.opened_digests else Replayed
        if frame.counter > self.opened + 1:
            raise OutOfOrder

    def open(self, step: str, data: bytes) -> tuple[Channel, bytes]:
        """The next state and the plaintext. Raises Duplicate, Replayed, OutOfOrder, Refusal if it does not decrypt."""
        frame = unpack(Frame, data)
        self.check_next(frame, data)
        direction: Direction = "down" if self.sends == "up" else "up"
        plaintext = open_frame(
            frame, self.session, self.secret, step, base=self.base, direction=direction, chain=self.opened_chain
        )
        # `ack` is authenticated; the bound is for a record that the bus rolled back to before the message acknowledged.
        acknowledged = max(self.acknowledged, min(frame.ack, self.sent))
        confirmed = acknowledged - self.acknowledged
        known = max([self.known, *self.acks[:confirmed]])
        digests = [*self.opened_digests, hashlib.sha256(data).digest()][-min(frame.counter - known, REPEATS) :]
        following = self.model_copy(
            update={
                "opened": frame.counter,
                "opened_chain": next_chain(self.opened_chain, data),
                "acknowledged": acknowledged,
                "acks": self.acks[confirmed:],
                "known": known,
                "opened_digests": digests,
            }
        )
        return following, plaintext


def seal_frame(
    session: str,
    secret: Secret,
    step: str,
    plaintext: bytes,
    *,
    base: bytes,
    direction: Direction,
    counter: int,
    chain: bytes,
    ack: int = 0,
) -> bytes:
    """One message's bytes. The key proof uses this with base = chain = T3 and counter 0, before there is a T4."""
    salt = token_bytes(32)
    # The step comes from the subject, which the bus can change: within the key it stops one step's message from being
    # taken for another's.
    key = derive(secret, canonical(f"channel {step}", direction, counter, chain), 32, salt)
    associated = canonical("channel data", base, direction, counter, chain, ack)
    ciphertext = AESGCM(key).encrypt(_NONCE, plaintext, associated)
    return pack(Frame(session=session, counter=counter, ack=ack, salt=salt, ciphertext=ciphertext))


def open_frame(
    frame: Frame, session: str, secret: Secret, step: str, *, base: bytes, direction: Direction, chain: bytes
) -> bytes:
    """The plaintext of a frame. Raises Refusal `channel.open`."""
    try:
        if frame.session != session:
            raise InvalidTag
        key = derive(secret, canonical(f"channel {step}", direction, frame.counter, chain), 32, frame.salt)
        associated = canonical("channel data", base, direction, frame.counter, chain, frame.ack)
        return AESGCM(key).decrypt(_NONCE, frame.ciphertext, associated)
    except (InvalidTag, ValueError):
        raise Refusal.because(
            "channel.open",
            step,
            expected=f"message {frame.counter} of this session's channel",
            found="a message that does not decrypt",
            action="check who may publish there: it was changed, or belongs to another session or step",
        ) from None
