"""Operators' Revoke commands at a gateway: from the bucket, and as files in a folder, without a manager or a bus.

A Revoke takes away, so it is never refused for its time: neither its expiry nor a clock has a say.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from attestgate.manager.gateway.floors import Revocation, Source
from attestgate.manager.policy.signers import Signers
from attestgate.schemas.admission import revoke_key
from attestgate.schemas.base import Refusal, pack, unpack
from attestgate.schemas.enrolment import Revoke
from attestgate.schemas.signing import Signed

MAX_FILE = 16 * 1024


def open_revocation(value: bytes, operators: Signers) -> Revocation:
    """An operator's signed Revoke. Raises Refusal (`message.*`, `signature.*`, `revoke.action`)."""
    signed = unpack(Signed, value, limit=MAX_FILE)
    command = operators.read_command(signed)
    action = command.action
    if not isinstance(action, Revoke):
        raise Refusal.because(
            "revoke.action",
            "action",
            expected="a Revoke",
            found=action.do,
            action="give other commands to the managers",
        )
    return Revocation(
        subject_kind=action.kind,
        id=action.id,
        signer=signed.signer,
        operator=operators.name_of(signed.signer),
        sequence=command.sequence,
        reason=action.reason,
        source=Source(key=revoke_key(action.kind, action.id, signed.signer), value=pack(signed)),
    )


def open_posted_revocation(key: str, value: bytes, operators: Signers) -> Revocation:
    """The Revoke stored under a key of the bucket. Raises Refusal as `open_revocation` does, and `revoke.key`."""
    revocation = open_revocation(value, operators)
    if revocation.key != key:
        raise Refusal.because(
            "revoke.key", key, expected=revocation.key, found=key, action="find out who may write to the bus"
        )
    return revocation


class BlockFolder:
    """The folder of one gateway: each file counts from when it is first read, and is not needed after that.

    `refused` is called once for each file that is no Revoke of an operator.
    """

    def __init__(self, folder: Path, operators: Signers, refused: Callable[[str, Refusal], None]) -> None:
        self._folder = folder
        self._operators = operators
        self._refused = refused
        self._read: dict[str, tuple[int, int, int]] = {}
        """The files that were read, by name, as they were then (inode, time, size)."""

    def prepare(self) -> None:
        """Make the folder if there is none. Raises Refusal `file.access`."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise _inaccessible(self._folder, error) from None

    def new(self) -> Iterator[tuple[str, Revocation]]:
        """The Revokes in files that are new, or have changed, with the names of these files."""
        present = {path.name: path for path in self._folder.glob("*.revoke")}
        self._read = {name: seen for name, seen in self._read.items() if name in present}
        for name, path in sorted(present.items()):
            try:
                with path.open("rb") as file:
                    stat = os.fstat(file.fileno())
                    seen = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
                    if self._read.get(name) == seen:
                        continue
                    data = file.read(MAX_FILE + 1)
                self._read[name] = seen
                yield name, open_revocation(data, self._operators)
            except FileNotFoundError:
                continue  # taken away meanwhile
            except OSError as error:
                if self._read.get(name) != _UNREADABLE:
                    self._read[name] = _UNREADABLE
                    self._refused(name, _inaccessible(path, error))
            except Refusal as refusal:
                self._refused(name, refusal)


_UNREADABLE = (0, 0, 0)


def _inaccessible(path: Path, error: OSError) -> Refusal:
    return Refusal.because(
        "file.access",
        str(path),
        expected="what the gateway worker can read",
        found=error.strerror,
        action="check block_folder, its owner and permissions",
    )
