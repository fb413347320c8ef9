"""The accounts' JWTs signed again: with the present table of permissions, or with credentials revoked in them.

Accounts, scoped signing keys and operator stay the same, and with them every credential and every stream. A JWT signed
again is always newer than the one before: nats-server takes the newer one, so that no restart undoes it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nkeys

from attestgate.bus.auth import ledger
from attestgate.bus.auth.account_claims import SYSTEM
from attestgate.bus.auth.credentials import (
    EVERYBODY,
    OPERATOR_FILE,
    TRUST_FILE,
    Account,
    Trust,
    account_claims,
    claims_in,
    load,
    store,
)
from attestgate.bus.auth.keys_folder import locked
from attestgate.bus.auth.ledger import Issued
from attestgate.bus.auth.nats_jwt import new_seed, public, read_seed, sign, write_private
from attestgate.bus.auth.permissions import ROLES
from attestgate.schemas.base import Refusal


class Upgraded(NamedTuple):
    """The roles whose JWTs were signed again, the files that were missing, and whether a running server can be told."""

    roles: list[str]
    made: list[str]
    tellable: bool
    """False if the folder had no key for it: a server that was started from it must be started again, once."""


def upgrade(folder: Path) -> Upgraded:
    """Bring a folder to the present table of permissions. Revocations stay. Raises Refusal, OSError."""
    with locked(folder):
        trust = load(folder)
        operator = _operator(folder, trust)
        known = {account.role: account for account in trust.accounts}
        keys = {role: account.key for role, account in known.items()}
        keys |= {role: public(new_seed(nkeys.PREFIX_BYTE_ACCOUNT)) for role in (SYSTEM, *ROLES) if role not in keys}
        made: list[str] = []
        accounts, changed = [], []
        for role, key in keys.items():
            account = known.get(role)
            if role in (SYSTEM, *ROLES):
                signer = _signer_of(account) or _make_signer(folder, role, made)
                wanted = account_claims(role, signer, keys)
                if account is None or _without_revocations(account) != wanted:
                    account = _signed(operator, role, key, wanted, account)
                    changed.append(role)
            assert account is not None
            accounts.append(account)
        if changed:
            store(folder, Trust(operator=trust.operator, accounts=accounts))
        return Upgraded(changed, made, tellable=_signer_of(known.get(SYSTEM)) is not None)


def revoke(folder: Path, role: str, credentials: Sequence[Issued]) -> int:
    """Revoke these credentials of a role; how many were not revoked before. Raises Refusal, OSError."""
    with locked(folder):
        trust, now = load(folder), int(time.time())
        new = [credential for credential in credentials if not is_revoked(trust.account(role), credential)]
        if new:
            _revoke(folder, trust, role, {credential.key: max(now, credential.at) for credential in new})
        return len(new)


def revoke_all(folder: Path, role: str) -> None:
    """Revoke every credential of a role that was issued until now. Raises Refusal, OSError."""
    with locked(folder):
        issued = [credential.at for credential in ledger.read(folder).of(role)]
        _revoke(folder, load(folder), role, {EVERYBODY: max(int(time.time()), *issued, 0)})


def is_revoked(account: Account, credential: Issued) -> bool:
    """Whether an account's JWT revokes a credential."""
    revoked = account.revocations()
    return any(revoked.get(key, -1) >= credential.at for key in (credential.key, EVERYBODY))


def _revoke(folder: Path, trust: Trust, role: str, until: Mapping[str, int]) -> None:
    operator, account = _operator(folder, trust), trust.account(role)
    claims = _without_revocations(account) | {"revocations": {**account.revocations(), **until}}
    signed = _signed(operator, role, account.key, claims, account)
    accounts = [signed if other.role == role else other for other in trust.accounts]
    store(folder, Trust(operator=trust.operator, accounts=accounts))


def _signed(operator: bytes, role: str, key: str, claims: Mapping[str, object], before: Account | None) -> Account:
    """An account's JWT, newer than the one before, even by a clock that was set back, and with its revocations."""
    at = int(time.time())
    if before is not None:
        at = max(at, before.claims()["iat"] + 1)
        kept = before.revocations()
        claims = {"revocations": kept, **claims} if kept else claims
    return Account(role=role, key=key, jwt=sign(operator, role, key, claims, at=at))


def _without_revocations(account: Account) -> dict[str, Any]:
    nats = account.claims()["nats"]
    return {name: value for name, value in nats.items() if name not in ("version", "revocations")}


def _signer_of(account: Account | None) -> str | None:
    """The public half of the key that signs an account's credentials."""
    if account is None:
        return None
    scopes = account.claims()["nats"].get("signing_keys", [])
    return str(scopes[0]["key"]) if scopes else None


def _make_signer(folder: Path, role: str, made: list[str]) -> str:
    """The public half of a signing key that an older folder lacks; an interrupted upgrade may have left its file."""
    path = folder / f"{role}.seed"
    if not path.exists():
        write_private(path, new_seed(nkeys.PREFIX_BYTE_ACCOUNT))
    made.append(path.name)
    return public(read_seed(path))


def _operator(folder: Path, trust: Trust) -> bytes:
    """The operator's seed, which signed this trust.json. Raises Refusal (`credentials.*`)."""
    seed = read_seed(folder / OPERATOR_FILE)
    signer = str(claims_in(trust.operator, "the operator").get("sub"))
    if signer != public(seed):
        raise Refusal.because(
            "credentials.operator",
            str(folder / OPERATOR_FILE),
            expected=f"the seed of {signer}, the operator in {TRUST_FILE}",
            found=f"that of {public(seed)}",
            action="put both files of one bus in place",
        )
    return seed
