"""Break-glass admissions at one gateway: signed files in a folder, each short-lived and for one certificate.

The folder is read every second. An admission raises an alarm when it takes effect, and expires by itself. A certificate
that the manager has withdrawn stays out for as long as a file signed earlier could be valid: break-glass is for a
manager that cannot be reached, not for overruling one. Nor does it overrule an operator's Revoke of its application or
host.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import structlog

from attestgate.manager.gateway.entries import CertificateEntry, DictionaryEntry, HostEntry
from attestgate.schemas.base import Refusal, unpack
from attestgate.schemas.break_glass import MAX_FILE, BreakGlass, check_time, open_break_glass
from attestgate.schemas.settings import BreakGlassSettings
from attestgate.schemas.signing import Signed, TrustedKeys

MARK = "break-glass"
_MAX_FILES = 100
log = structlog.get_logger(__name__)


class BreakGlassFolder:
    """The folder of one gateway. Calls `admitted` when an admission takes effect, and `refused` for each bad file."""

    def __init__(
        self,
        settings: BreakGlassSettings,
        operators: TrustedKeys,
        gateways: str,
        admitted: Callable[[BreakGlass, Signed], None],
        refused: Callable[[str, Refusal], None],
        revoked: Callable[[str], bool],
    ) -> None:
        """`revoked(subject)` says whether a Revoke of `host.<id>` or `app.<id>` is in force."""
        self._settings = settings
        self._operators = operators
        self._gateways = gateways
        self._admitted = admitted
        self._refused = refused
        self._revoked = revoked
        self._files: dict[str, BreakGlass | None] = {}
        """What was read, by the hash of the file; None for one that is refused whatever the time."""
        self._told: dict[str, str] = {}
        """What was last told of a file, by its hash: a refusal's code, or that it admits."""

    def entries(self, at: int) -> dict[str, DictionaryEntry]:
        """The entries that these files call for at Unix second `at`."""
        found: dict[str, DictionaryEntry] = {}
        for path in sorted(self._settings.folder.glob("*.glass"))[:_MAX_FILES]:
            try:
                data = path.read_bytes()[: MAX_FILE + 1]
            except OSError as error:
                log.warning("break-glass file not readable", file=path.name, problem=error.strerror)
                continue
            digest = hashlib.sha256(data).hexdigest()
            admission = self._read(path.name, digest, data)
            if admission is None or not self._in_time(path.name, digest, admission, at):
                continue
            entries = _entries(admission)
            if self._allowed(path.name, digest, entries):
                found |= entries
                if self._news(digest, MARK):
                    self._admitted(admission, unpack(Signed, data))
        return found

    def _read(self, name: str, digest: str, data: bytes) -> BreakGlass | None:
        # The hash covers the signature, and the operators' keys are read once at the start: only the time changes.
        if digest not in self._files:
            self._files[digest] = None
            try:
                self._files[digest] = open_break_glass(data, self._operators, self._gateways, self._settings.longest_s)
            except Refusal as refusal:
                self._refused(name, refusal)
        return self._files[digest]

    def _in_time(self, name: str, digest: str, admission: BreakGlass, at: int) -> bool:
        """Judged anew each time: a clock that was wrong may be right now."""
        try:
            check_time(admission, at)
        except Refusal as refusal:
            # That an admission which took effect has ended is no news.
            ended = self._told.get(digest) == MARK and admission.expires_at <= at
            if not ended and self._news(digest, refusal.reasons[0].code):
                self._refused(name, refusal)
            return False
        return True

    def _allowed(self, name: str, digest: str, entries: Mapping[str, DictionaryEntry]) -> bool:
        """Judged anew each time: the Revoke may come later, and end with the next enrolment."""
        subjects = {subject for entry in entries.values() for subject in entry.subjects}
        for subject in sorted(filter(self._revoked, subjects)):
            if self._news(digest, "break-glass.revoked"):
                self._refused(name, _overruled(subject))
            return False
        return True

    def _news(self, digest: str, what: str) -> bool:
        before, self._told[digest] = self._told.get(digest), what
        return before != what


def _overruled(subject: str) -> Refusal:
    return Refusal.because(
        "break-glass.revoked",
        subject,
        expected="a subject that no operator has revoked",
        found="a Revoke in force",
        action="enrol it again, if it may come back",
    )


def _entries(admission: BreakGlass) -> dict[str, DictionaryEntry]:
    """A certificate, and a host entry for it alone: its key is a hash under a label that no session's id has."""
    host_key = f"host.{hashlib.sha256(f'{MARK} {admission.serial}'.encode()).hexdigest()[:32]}"
    certificate = CertificateEntry(
        sequence=admission.issued_at,
        since=admission.issued_at,
        until=admission.expires_at,
        sha256=admission.certificate,
        identity=admission.identity,
        host_key=host_key,
        integrity="unanchored",
        marks=MARK,
        allow=admission.allow,
    )
    host = HostEntry(
        sequence=admission.issued_at,
        since=admission.issued_at,
        until=admission.expires_at,
        host=admission.identity.split("/")[4],
    )
    return {f"cert.{admission.serial}": certificate, host_key: host}
