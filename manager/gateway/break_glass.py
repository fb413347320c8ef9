"""Admissions by hand at one gateway: signed files in a folder, each for one certificate, each short and loud.

They are looked for every second, told as an alarm when they begin to work, and end by themselves. A certificate that
the manager has withdrawn stays out, for as long as a file signed before could live: breaking glass is for a manager
that is silent, not for overruling one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import structlog

from attestgate.manager.gateway.ledger import CertificateEntry, Entry, HostEntry
from attestgate.schemas.base import Refusal, unpack
from attestgate.schemas.break_glass import MAX_FILE, BreakGlass, read_break_glass
from attestgate.schemas.settings import BreakGlassSettings
from attestgate.schemas.signing import Signed

MARK = "break-glass"
_MAX_FILES = 100
log = structlog.get_logger(__name__)


class BreakGlassFolder:
    """The folder of one gateway. `tell` hears of every admission that begins to work, and of every file refused."""

    def __init__(
        self,
        settings: BreakGlassSettings,
        gateways: str,
        tell: Callable[[BreakGlass, Signed], None],
        refused: Callable[[str, Refusal], None],
    ) -> None:
        self._settings = settings
        self._operators = {bytes.fromhex(key) for key in settings.operators}
        self._gateways = gateways
        self._tell = tell
        self._refused = refused
        self._said: dict[str, BreakGlass | None] = {}

    def entries(self, at: int) -> dict[str, Entry]:
        """What nginx must hold at Unix second `at` because of these files."""
        found: dict[str, Entry] = {}
        for path in sorted(self._settings.folder.glob("*.glass"))[:_MAX_FILES]:
            try:
                data = path.read_bytes()[: MAX_FILE + 1]
            except OSError as error:
                log.warning("a break-glass file is not read", file=path.name, problem=error.strerror)
                continue
            said = self._read(path.name, data, at)
            if said is not None and said.expires_at > at:
                found |= _entries(said)
        return found

    def _read(self, name: str, data: bytes, at: int) -> BreakGlass | None:
        digest = hashlib.sha256(data).hexdigest()
        if digest not in self._said:
            try:
                said = read_break_glass(data, self._operators, self._gateways, self._settings.longest_s, at)
            except Refusal as refusal:
                self._said[digest] = None
                self._refused(name, refusal)
                return None
            self._said[digest] = said
            self._tell(said, unpack(Signed, data))
        return self._said[digest]


def _entries(said: BreakGlass) -> dict[str, Entry]:
    """A certificate, and a host session of its own that nobody else can have."""
    host_key = f"host.{hashlib.sha256(f'{MARK} {said.serial}'.encode()).hexdigest()[:32]}"
    certificate = CertificateEntry(
        sequence=said.issued_at,
        until=said.expires_at,
        sha256=said.certificate,
        identity=said.identity,
        host_key=host_key,
        integrity="unanchored",
        marks=MARK,
        allow=said.allow,
    )
    host = HostEntry(sequence=said.issued_at, until=said.expires_at, host=said.identity.split("/")[4])
    return {f"cert.{said.serial}": certificate, host_key: host}
