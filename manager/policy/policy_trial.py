"""Who would fail under a new runtime policy: lists judged by it before it is put in force."""

from __future__ import annotations

from attestgate.manager.verification.ima.appraisal import appraise_list
from attestgate.manager.verification.ima.ascii import is_ascii, to_binary
from attestgate.manager.verification.ima.runtime_policy import LoadedPolicy
from attestgate.manager.verification.offline.ima import MAX_LISTED
from attestgate.schemas.base import Model, Refusal
from attestgate.schemas.host_policy import HostPolicy, Replay, UnknownEntry


class Trial(Model):
    """What a new policy makes of one list: its entries, and those that it does not know."""

    name: str
    entries: int
    unknown: list[UnknownEntry]
    problem: str = ""
    """Why the list could not be read to its end, in words."""

    @property
    def fails(self) -> bool:
        """Whether a host with this list would be refused."""
        return bool(self.unknown or self.problem)


def try_on(policy: LoadedPolicy, name: str, data: bytes) -> Trial:
    """Judge a list, binary or ASCII, by the entries' digests alone: no quote, no violations."""
    host = HostPolicy(version=1, runtime_policy=policy.sha256, accept_unanchored=True, violations="accept")
    try:
        binary = to_binary(data) if is_ascii(data) else data
    except Refusal as refusal:
        return Trial(name=name, entries=0, unknown=[], problem=refusal.reasons[0].sentence())
    verdict = appraise_list(binary, policy, host, before=Replay.start("sha256"), at=0, room=MAX_LISTED)
    faults = [reason for reason in verdict.reasons if reason.code != "ima.unknown"]
    problem = faults[0].sentence() if faults else ""
    return Trial(name=name, entries=verdict.entries, unknown=verdict.unknown, problem=problem)
