"""Appraisal of a measurement list: every entry judged, PCR 10 replayed, the list tied to a TPM quote if there is one.

Two kinds of reasons come out. A fault says that the evidence does not hold together (malformed, a template hash that
does not fit, a replay that never meets the quoted PCR 10): no mode admits that. A finding says that the policy does
not accept what the evidence shows; in observe-only mode it is reported and admitted.

The order is quote first, then list: the list grows while it is read, so the quoted PCR 10 is met somewhere before its
end, and the entries after that point (the unanchored tail) are judged like the rest and anchored by the next quote.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attestgate.manager.verification.ima.cache import VerdictCache
from attestgate.manager.verification.ima.measurement_list import ListEntry
from attestgate.manager.verification.ima.replay import MAX_SHOWN, ReplayPass
from attestgate.manager.verification.ima.runtime_policy import Judgement, Known, LoadedPolicy
from attestgate.manager.verification.tpm.quote import QuotedPcrs
from attestgate.schemas.base import Reason, shown
from attestgate.schemas.host_policy import Bank, BootState, GoldenPcrs, HostPolicy, ListVerdict, Replay


class ListAppraisal:
    """The appraisal of a list that comes in pieces: what a worker does in slices, between which others have their turn.

    `quoted` is a verified quote taken before the list was read; `golden` are the enrolled values of PCR 0-9, any of
    which will do. `at` is the time of judging, Unix seconds. `room` bounds the unknown entries that the verdict names.
    """

    def __init__(
        self,
        policy: LoadedPolicy,
        host: HostPolicy,
        *,
        before: Replay,
        quoted: QuotedPcrs | None = None,
        golden: Sequence[GoldenPcrs] = (),
        at: int,
        room: int = MAX_SHOWN,
    ) -> None:
        self._reading = ReplayPass(policy, before, quoted, room)
        self._policy = policy.sha256
        self._host = host
        self._golden = golden
        self._at = at

    def take(self, piece: bytes, *, last: bool = False) -> Iterator[None]:
        """Judge the next piece. Yields wherever it has taken long enough; nothing happens until it is iterated."""
        return self._reading.take(piece, last=last)

    def verdict(self) -> ListVerdict:
        """The verdict, after the last piece. Bad evidence gives one with reasons, never an exception."""
        reading, host, quoted = self._reading, self._host, self._reading.quoted
        reading.finish()
        if host.runtime_policy != self._policy:
            reading.fault("policy.hash", "host policy", host.runtime_policy, self._policy, "load the policy it names")
        if quoted is not None and host.bank not in quoted.banks:
            found = ", ".join(quoted.banks)
            reading.fault("tpm.bank", "TPM quote, bank", host.bank, found, "quote the bank that was asked for")
        return _conclude(reading, host, self._golden, policy=self._policy, at=self._at)


def appraise_list(
    data: bytes,
    policy: LoadedPolicy,
    host: HostPolicy,
    *,
    before: Replay,
    quoted: QuotedPcrs | None = None,
    golden: Sequence[GoldenPcrs] = (),
    at: int,
    room: int = MAX_SHOWN,
) -> ListVerdict:
    """Judge a binary list, or what it grew by since `before` (`Replay.start()` for a whole one), in one go.

    The rest is as for ListAppraisal. Under a new policy the whole list must be judged again, from `Replay.start()`.
    """
    appraisal = ListAppraisal(policy, host, before=before, quoted=quoted, golden=golden, at=at, room=room)
    _exhaust(appraisal.take(data, last=True))
    return appraisal.verdict()


def inspect_list(
    data: bytes, *, before: Replay, quoted: QuotedPcrs | None, golden: Sequence[GoldenPcrs] = (), at: int
) -> ListVerdict:
    """Judge only whether a list holds together and fits its quote; the verdict names no policy.

    For a person looking at a file: no entry is compared with anything, violations are counted, and it is accepted only
    when a quote vouches for it.
    """
    host = HostPolicy(version=1, runtime_policy="00" * 32, accept_unjudged_boot=True, violations="accept")
    reading = ReplayPass(_Anything(), before, quoted)
    _exhaust(reading.take(data, last=True))
    reading.finish()
    return _conclude(reading, host, golden, policy=None, at=at)


def _exhaust(steps: Iterator[None]) -> None:
    for _ in steps:
        pass


class _Anything:
    """The rules of no policy: any entry that holds together will do."""

    digests: Known = {}

    def memory(self, bank: Bank) -> VerdictCache:
        return VerdictCache()

    def judge(self, entry: ListEntry) -> Judgement:
        return "known"

    def nearest(self, path: bytes, size: int) -> str | None:
        return None


def _boot_state(quoted: QuotedPcrs | None, golden: Sequence[GoldenPcrs]) -> BootState:
    """The quoted PCR 0-9 against every enrolled boot; not judged where they are not quoted."""
    if quoted is None or not golden or not any(map(quoted.boot, quoted.banks)):
        return "not_judged"
    return "golden" if any(boot.values == quoted.boot(boot.bank) for boot in golden) else "mismatch"


def _conclude(
    reading: ReplayPass, host: HostPolicy, golden: Sequence[GoldenPcrs], *, policy: str | None, at: int
) -> ListVerdict:
    """The verdict: faults, then what the host policy makes of the rest."""
    boot = _boot_state(reading.quoted, golden)
    faults, findings = list(reading.faults.values()), _findings(reading, host, boot, golden)
    return ListVerdict(
        accepted=not faults and not findings,
        admitted=not faults and (not findings or host.mode == "observe-only"),
        mode=host.mode,
        at=at,
        policy=policy,
        integrity="anchored" if reading.anchored and boot == "golden" and not faults else "unanchored",
        boot_state=boot,
        anchored_entries=reading.anchored,
        violations=reading.violations,
        excluded=reading.excluded,
        unknown_entries=reading.unknown_entries,
        unknown=reading.unknown,
        reasons=faults + findings,
        replay=reading.replay,
    )


def _findings(reading: ReplayPass, host: HostPolicy, boot: BootState, golden: Sequence[GoldenPcrs]) -> list[Reason]:
    """What the policies do not accept in evidence that may well be genuine."""
    found: list[Reason] = []

    def refuse(code: str, field: str, expected: str, what: str, action: str) -> None:
        found.append(Reason(code=code, field=field, expected=expected, found=shown(what), action=action))

    if reading.unknown:
        first = reading.unknown[0]
        refuse(
            "ima.unknown",
            f"measurement list, entry {first.index}",
            "every entry known to the runtime policy",
            f"{reading.unknown_entries} unknown, the first is {first.path} {first.digest}",
            "remove the program, or add it with `attestgate policy learn --add`",
        )
    if reading.violations and host.violations == "refuse":
        refuse(
            "ima.violation",
            f"measurement list, entry {reading.first_violation}",
            "no violations",
            f"{reading.violations}",
            "a file was read while open for writing: reboot the host, or accept violations in the host policy",
        )
    if boot == "mismatch":
        refuse(
            "tpm.boot_state",
            "TPM quote, PCR 0-9",
            "the golden values of an enrolled boot",
            "other values",
            "find out what changed in firmware, boot loader, kernel or command line; approve it by enrolling it",
        )
    if not host.accept_unanchored and reading.quoted is None:
        refuse(
            "ima.unanchored",
            "measurement list",
            "a TPM quote that vouches for it",
            "no valid TPM quote",
            "enrol the host's TPM, or set `accept_unanchored` in the host policy",
        )
    if boot == "not_judged" and reading.quoted and golden:
        refuse(
            "tpm.boot_not_judged",
            "TPM quote, PCR 0-9",
            "values to compare with the enrolled boots",
            "a quote without PCR 0-9",
            "quote PCR 0-10",
        )
    elif boot == "not_judged" and reading.quoted and not (host.accept_unanchored or host.accept_unjudged_boot):
        refuse(
            "tpm.boot_not_judged",
            "TPM quote, PCR 0-9",
            "golden values to compare with",
            "no golden values enrolled",
            "enrol the host with `--golden-from`, or set `accept_unjudged_boot` in the host policy",
        )
    return found
