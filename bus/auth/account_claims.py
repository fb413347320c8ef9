"""What is in the accounts' JWTs: the permissions as scoped signing keys, JetStream limits, exports and imports.

Claims: NATS JWT v2 (ADR-14).
"""

from __future__ import annotations

from collections.abc import Mapping

from attestgate.bus.auth.permissions import MANAGER, VIEWER, BusRole, exports, imports
from attestgate.bus.layout import COPIED, HEADERS, KIB, MIB

SYSTEM = "system"
"""The server's own account (NATS's system account), as a role of `Trust`. It is not one of the table."""
SYSTEM_INBOX = f"_INBOX.{SYSTEM}"
UPDATE, LIST, LOOKUP = "$SYS.REQ.CLAIMS.UPDATE", "$SYS.REQ.CLAIMS.LIST", "$SYS.REQ.ACCOUNT.{}.CLAIMS.LOOKUP"
"""The requests that give a running server an account's JWT, that ask which accounts it has, and for the JWT of one."""
NO_LIMITS = {"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": True, "conn": -1}
JETSTREAM = {
    MANAGER: {"mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1},
    VIEWER: {"mem_storage": 16 * MIB, "disk_storage": 2048 * MIB, "streams": len(COPIED), "consumer": 16},
}
"""An account has JetStream only if these limits are in it; -1 is "no limit". What viewers make is bounded:
the server queues without limit what a consumer delivers, so each may take as much memory as its copy holds (`COPY`)."""


def _account_claims(limits: Mapping[str, object] = NO_LIMITS, **more: object) -> dict[str, object]:
    """An account in which a credential without a template is permitted nothing."""
    return {"type": "account", "limits": limits, "default_permissions": {"pub": {"deny": [">"]}}, **more}


def system_claims(signer: str) -> dict[str, object]:
    """The system account, whose credentials may tell the servers of accounts and ask for them, and nothing else."""
    template = {
        "pub": {"allow": [UPDATE, LIST, LOOKUP.format("*")]},
        "sub": {"allow": [f"{SYSTEM_INBOX}.>"]},
        "subs": 8,
        "data": -1,
        "payload": 1024 * KIB,
    }
    return _account_claims(signing_keys=[_scope(SYSTEM, signer, template)])


def role_claims(role: BusRole, signer: str, accounts: Mapping[str, str]) -> dict[str, object]:
    """An account with one scoped signing key, JetStream where the role has one, and what it shares with others."""
    template = {
        "pub": {"allow": role.may_publish()},
        "sub": {"allow": role.may_subscribe()},
        "subs": role.max_subscriptions,
        "data": -1,
        "payload": role.max_payload + HEADERS,
    }
    return _account_claims(
        NO_LIMITS | JETSTREAM.get(role.name, {}) | {"conn": role.max_connections},
        signing_keys=[_scope(role.name, signer, template)],
        exports=_exports(role),
        imports=_imports(role, accounts),
    )


def _scope(role: str, signer: str, template: Mapping[str, object]) -> dict[str, object]:
    return {"kind": "user_scope", "key": signer, "role": role, "template": template}


def _imports(role: BusRole, accounts: Mapping[str, str]) -> list[dict[str, str]]:
    return [
        {
            "name": item.local,
            "subject": item.subject,
            "local_subject": item.local,
            "account": accounts[item.role],
            "type": item.kind,
        }
        for item in imports(role)
    ]


def _exports(role: BusRole) -> list[dict[str, str]]:
    """A service answers each request with one message: the server's default response type, Singleton."""
    return [{"name": subject, "subject": subject, "type": kind} for subject, kind in exports(role.name).items()]
