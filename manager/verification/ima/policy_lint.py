"""What an author should look at again in a runtime policy that loads."""

from __future__ import annotations

import re

from attestgate.manager.verification.ima.runtime_policy import BOOT_AGGREGATE, RuntimePolicy, compiled
from attestgate.schemas.base import Reason, shown

SYSTEM_PATHS = (b"/usr/bin/x", b"/usr/lib/x", b"/usr/sbin/x", b"/etc/x", b"/lib/modules/x", b"/init")
"""Paths that hold what a host runs: an exclude pattern that matches one of them hides programs."""

_OPEN_END = re.compile(r"[\w-]$")
_SHA1_HEX = 40


def lint(policy: RuntimePolicy) -> list[Reason]:
    """Findings, none of which stops the policy from loading; empty if there is nothing to say."""
    found = [finding for pattern in policy.excludes for finding in _lint_pattern(pattern)]
    if BOOT_AGGREGATE.decode() not in policy.digests:
        found.append(
            _finding(
                "policy.boot_aggregate",
                "digests",
                "a digest of boot_aggregate",
                "no such digest",
                "without a TPM quote the first entry of every list will be unknown: learn it from a good host",
            )
        )
    weak = sum(len(digest) == _SHA1_HEX for known in policy.digests.values() for digest in known)
    if weak:
        found.append(
            _finding(
                "policy.sha1",
                "digests",
                "SHA-256 or longer",
                f"{weak} digests of SHA-1's length",
                "boot with ima_hash=sha256 and learn again",
            )
        )
    if policy.ima.ignored_keyrings:
        found.append(
            _finding(
                "policy.ignored_keyrings",
                "ima.ignored_keyrings",
                "keys known by their digests",
                ", ".join(policy.ima.ignored_keyrings),
                "any key may be loaded there: list its keys in `keyrings`",
            )
        )
    return found


def _lint_pattern(pattern: str) -> list[Reason]:
    matches = compiled(pattern).match
    hidden = [path.decode() for path in SYSTEM_PATHS if matches(path)]
    if hidden:
        action = "programs there would be accepted unseen: narrow the pattern"
        return [_finding("policy.wide", f"excludes: {pattern}", "no system folder", ", ".join(hidden), action)]
    if _OPEN_END.search(pattern):
        action = "it matches every path that begins so: end it with / or $"
        return [_finding("policy.open_end", f"excludes: {pattern}", "a pattern with an end", "a prefix", action)]
    return []


def _finding(code: str, field: str, expected: str, found: str, action: str) -> Reason:
    return Reason(code=code, field=shown(field), expected=expected, found=shown(found), action=action)
