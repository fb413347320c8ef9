"""TCB levels: the dates of those of a platform and its quoting enclave; the form of a quoting enclave's.

dcap_qvl finds the levels itself and reports their status; their dates, on which grace periods and minimum dates rest,
are found here. Source: Intel PCS API v4, "Get SGX TCB Info" and "Get Quoting Enclave Identity": of the levels in
descending order, the first none of whose SVNs is above the platform's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from operator import itemgetter
from typing import Any

QE_STATUSES = frozenset({"UpToDate", "OutOfDate", "Revoked"})


def qe_levels_fit(qe_identity: Mapping[str, Any]) -> bool:
    """Whether a quoting enclave's levels go down and have its three statuses.

    dcap_qvl takes the first level that is reached, in the document's order, and lets other statuses pass.
    """
    try:
        levels = {level["tcb"]["isvsvn"]: level["tcbStatus"] for level in qe_identity["tcbLevels"]}
        down = list(levels) == sorted(levels, reverse=True) and len(levels) == len(qe_identity["tcbLevels"])
        return down and QE_STATUSES.issuperset(levels.values())
    except (KeyError, TypeError):
        return False


def platform_date(tcb_info: Mapping[str, Any], cpu_svn: bytes, pce_svn: int) -> int | None:
    """The date of a platform's level in a TCB info's body, Unix second; None if it lists no such level.

    `cpu_svn`: the PCK certificate's sixteen component SVNs.
    """

    def wanted(tcb: Mapping[str, Any]) -> list[int]:
        return [*(component["svn"] for component in tcb["sgxtcbcomponents"]), tcb["pcesvn"]]

    return _date(tcb_info, [*cpu_svn, pce_svn], wanted)


def qe_date(qe_identity: Mapping[str, Any], isv_svn: int) -> int | None:
    """The date of a quoting enclave's level in a QE identity's body, Unix second; None if it lists no such level."""
    return _date(qe_identity, [isv_svn], lambda tcb: [tcb["isvsvn"]])


def _date(body: Mapping[str, Any], have: list[int], wanted: Callable[[Mapping[str, Any]], list[int]]) -> int | None:
    try:
        levels = [(wanted(level["tcb"]), level["tcbDate"]) for level in body["tcbLevels"]]
        # As dcap_qvl orders them: by SVNs alone, and of equal ones the first in the document. By the
        # date as well, the status would be one level's and the date another's.
        for svns, date in sorted(levels, key=itemgetter(0), reverse=True):
            if all(mine >= theirs for mine, theirs in zip(have, svns, strict=True)):
                parsed = datetime.fromisoformat(date)
                return None if parsed.tzinfo is None else int(parsed.timestamp())
    except (KeyError, TypeError, ValueError, OverflowError):
        return None  # a signed document of another form: the caller refuses it
    return None
