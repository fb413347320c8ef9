"""What makes a host trusted, and what was found: host policy, golden PCRs, replay state, verdict on a list."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from attestgate.schemas.base import Count, Hex, Hex32, Instant, Model, Reasons, Text

Bank = Literal["sha1", "sha256", "sha384"]
"""A PCR bank, by its hash algorithm (TCG Algorithm Registry: TPM_ALG_SHA1, _SHA256, _SHA384)."""

BANKS: tuple[Bank, ...] = ("sha1", "sha256", "sha384")
BootState = Literal["golden", "mismatch", "not_judged"]
"""PCR 0-9 of a verified quote against the enrolled values; `not_judged` without a quote or without such values."""

HostIntegrity = Literal["anchored", "unanchored"]
"""`anchored`: a TPM vouches for the list and for its boot. `unanchored`: only the host kernel's own claim."""

Mode = Literal["enforcing", "observe-only"]

IMA_PCR = 10
"""The PCR that IMA extends (CONFIG_IMA_MEASURE_PCR_IDX)."""

BOOT_PCRS = tuple(range(10))
"""The PCRs that boot_aggregate covers and golden values name."""


class HostPolicy(Model):
    """Appraisal policy for a host's integrity. Named by the SHA-256 of its bytes, as the runtime policy it refers to.

    `version` increases with every change. `runtime_policy` is the SHA-256 of the runtime policy's bytes in hexadecimal.
    `accept_unanchored` accepts a list no TPM vouches for; `accept_unjudged_boot` accepts one that a TPM quote vouches
    for on a host without golden PCR values. `bank` is the PCR bank that a quote must be over. `after_drift`: whether an
    unanchored host whose evidence was found bad may attest again, or is held until it is enrolled again.
    `observe-only` appraises and reports alike and admits what only this policy would refuse; inconsistent evidence is
    never admitted.
    """

    version: Annotated[int, Field(ge=1, lt=2**40)]
    runtime_policy: Hex32
    mode: Mode = "enforcing"
    accept_unanchored: bool = False
    accept_unjudged_boot: bool = False
    violations: Literal["refuse", "accept"] = "refuse"
    after_drift: Literal["attest-again", "hold"] = "attest-again"
    bank: Bank = "sha256"


class GoldenPcrs(Model):
    """One known-good boot: the values of PCR 0-9 in one bank, in order, in hexadecimal."""

    bank: Bank
    values: Annotated[list[Hex], Field(max_length=len(BOOT_PCRS))]

    @field_validator("values")
    @classmethod
    def _ten(cls, values: list[str]) -> list[str]:
        if len(values) != len(BOOT_PCRS) or len({len(value) for value in values}) != 1:
            raise ValueError("ten values of one length, PCR 0 to PCR 9")
        return values


class Replay(Model):
    """How far a list has been read: entries so far and PCR 10 of each bank replayed, in hexadecimal.

    A recheck resumes from it, so that a host sends only what is new.
    """

    entries: Annotated[int, Field(ge=0, lt=2**40)]
    pcr10: Annotated[dict[Bank, Hex], Field(max_length=len(BANKS))]

    @classmethod
    def start(cls, *banks: Bank) -> Replay:
        """Nothing read yet: PCR 10 is zero in each bank (all banks if none is named)."""
        return cls(entries=0, pcr10={bank: "00" * hashlib.new(bank).digest_size for bank in banks or BANKS})


MAX_PATH_SHOWN = 4 * 4096
"""Characters of the longest path, each byte escaped."""


class UnknownEntry(Model):
    """An entry that is not in the policy. `index` counts from 0 over the whole list.

    `path` is escaped for reading (`\\xNN` where it is not printable text); `digest` is `algorithm:hexadecimal`;
    `nearest` is a digest that the policy has for the same path, if it has the path.
    """

    index: Count
    path: Annotated[str, Field(max_length=MAX_PATH_SHOWN)]
    digest: Text
    nearest: Text | None


class ListVerdict(Model):
    """The result of one appraisal of a measurement list, or of what was added to it.

    `accepted` is the verdict; `admitted` differs from it only in observe-only mode. `entries` and `pcr10` count the
    whole list as replayed, `anchored_entries` is how many of them the quoted PCR 10 vouches for (0 without a quote);
    the rest is the unanchored tail. `violations`, `excluded` and `unknown_entries` count this appraisal's entries;
    `unknown` lists the first of the unknown ones. `policy` is the SHA-256 of the runtime policy, None if none was
    applied. `replay` is where the next recheck resumes.
    """

    accepted: bool
    admitted: bool
    mode: Mode
    at: Instant
    policy: Hex32 | None
    integrity: HostIntegrity
    boot_state: BootState
    anchored_entries: Count
    violations: Count
    excluded: Count
    unknown_entries: Count
    unknown: Annotated[list[UnknownEntry], Field(max_length=2**20)]
    reasons: Reasons
    replay: Replay

    @property
    def entries(self) -> int:
        """Entries of the whole list read so far."""
        return self.replay.entries

    @property
    def pcr10(self) -> dict[Bank, str]:
        """PCR 10 after those entries, by bank, in hexadecimal."""
        return self.replay.pcr10

    def document(self) -> dict[str, Any]:
        """The verdict as a JSON document for people and programs: `entries` and `pcr10` in place of `replay`."""
        shown = self.model_dump(mode="json", exclude={"replay"})
        return shown | {"entries": self.entries, "pcr10": dict(self.pcr10)}
