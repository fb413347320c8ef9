"""Whether two quotes come from one machine.

An FMSPC names a model, not a machine: it is not compared. Equal identities do not see through a relay; the
co-location proof with K does that.
"""

from __future__ import annotations

from attestgate.schemas.base import Reason
from attestgate.schemas.sgx import PlatformIdentity, SgxPolicy


def same_platform(host: PlatformIdentity, app: PlatformIdentity, policy: SgxPolicy) -> tuple[Reason, ...]:
    """Why the application's quote is not from the host's platform; empty if it is.

    The policy's `same_platform` says which parts must match. Both identities are salted with one salt.
    """
    return tuple(
        Reason(
            code=f"colocation.{part}",
            field=f"platform.{part}",
            expected=f"the host's {getattr(host, part)}",
            found=getattr(app, part),
            action="run the application on the platform that its host was attested on",
        )
        for part in policy.same_platform
        if getattr(host, part) != getattr(app, part)
    )
