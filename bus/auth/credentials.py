"""Keys and credentials of the bus: a NATS operator, an account a role, and user credentials made from scoped keys.

The server has only the operator's and the accounts' JWTs. A credential is a JWT signed with its role's scoped signing
key, whose permission template is in the account's JWT: a new host needs a new file, and no change at the server.
Formats: NATS JWT v2 (ADR-14), nkeys, `.creds` files.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import nkeys
from jwt import InvalidTokenError
from pydantic import TypeAdapter, ValidationError

from attestgate.bus.auth import ledger
from attestgate.bus.auth.account_claims import SYSTEM, role_claims, system_claims
from attestgate.bus.auth.keys_folder import locked, replace
from attestgate.bus.auth.nats_jwt import new_seed, payload_of, public, read_seed, sign, write_private
from attestgate.bus.auth.permissions import ROLES
from attestgate.bus.subjects import name_tokens
from attestgate.schemas.base import Id, Model, Refusal, read_json

TRUST_FILE = "trust.json"
OPERATOR_FILE = "bus-operator.seed"
ROLE_TAG = "role:"
EVERYBODY = "*"
JWT_BEGINS = "-----BEGIN NATS USER JWT-----\n"


class Account(Model):
    """An account as the server gets it: the role it is for, its public key, its JWT."""

    role: str
    key: str
    jwt: str

    def claims(self) -> dict[str, Any]:
        """What the JWT says. Raises Refusal (`credentials.trust`)."""
        return claims_in(self.jwt, f"the account {self.role}")

    def revocations(self) -> dict[str, int]:
        """Until which second of issue credentials are revoked: by their public keys, or by `EVERYBODY` all."""
        return dict(self.claims()["nats"].get("revocations", {}))


class Trust(Model):
    """All that a server of this bus needs. Nothing in it is secret."""

    operator: str
    accounts: list[Account]

    def account(self, role: str) -> Account:
        """The account of a role (or `SYSTEM`). Raises Refusal (`credentials.account`)."""
        for account in self.accounts:
            if account.role == role:
                return account
        raise Refusal.because(
            "credentials.account",
            TRUST_FILE,
            expected=f"an account of role {role}",
            found=", ".join(account.role for account in self.accounts),
            action="attestgate keys upgrade FOLDER",
        )


def claims_in(token: str, whose: str) -> dict[str, Any]:
    """What a JWT in trust.json says. Raises Refusal (`credentials.trust`)."""
    try:
        claims = payload_of(token)
        if isinstance(claims.get("iat"), int) and isinstance(claims.get("nats"), dict):
            return claims
        found = "a JWT of another kind"
    except (ValueError, InvalidTokenError) as error:
        found = f"something else ({type(error).__name__})"
    raise Refusal.because(
        "credentials.trust",
        f"{whose} in {TRUST_FILE}",
        expected="a JWT that `keys init` or `keys upgrade` signed",
        found=found,
        action="put the folder's backup in place",
    )


class Holder(NamedTuple):
    """Whose credential a file claims to be; only the server verifies it."""

    role: str
    name: str

    @property
    def inbox(self) -> str:
        """The inbox prefix that its permissions allow."""
        return f"_INBOX.{self.role}.{self.name}"


def create(folder: Path) -> Trust:
    """Generate a bus's operator, accounts and signing keys in `folder`. Raises Refusal if it already has them.

    Leaves `bus-operator.seed` (signs accounts), `<role>.seed` (signs credentials of that role; `system.seed` those by
    which the server is told of accounts), `trust.json` (for the server) and `issued.json` (which credentials there
    are). The accounts' own seeds are discarded: they could sign a credential without a template.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    operator = new_seed(nkeys.PREFIX_BYTE_OPERATOR)
    write_private(folder / OPERATOR_FILE, operator)
    keys = {role: public(new_seed(nkeys.PREFIX_BYTE_ACCOUNT)) for role in (SYSTEM, *ROLES)}
    accounts = []
    for role, key in keys.items():
        signer = new_seed(nkeys.PREFIX_BYTE_ACCOUNT)
        write_private(folder / f"{role}.seed", signer)
        claims = account_claims(role, public(signer), keys)
        accounts.append(Account(role=role, key=key, jwt=sign(operator, role, key, claims)))
    claims = {"type": "operator", "system_account": keys[SYSTEM]}
    trust = Trust(operator=sign(operator, "attestgate", public(operator), claims), accounts=accounts)
    store(folder, trust)
    ledger.begin(folder)
    return trust


def account_claims(role: str, signer: str, accounts: Mapping[str, str]) -> dict[str, object]:
    """What the account of a role (or `SYSTEM`) has in its JWT, by the present table; `accounts` are all public keys."""
    return system_claims(signer) if role == SYSTEM else role_claims(ROLES[role], signer, accounts)


def store(folder: Path, trust: Trust) -> None:
    """Replace what the server gets. Raises OSError."""
    replace(folder / TRUST_FILE, trust.model_dump_json(indent=2), mode=0o644)


def load(folder: Path) -> Trust:
    """What `create` left for the server. Raises Refusal."""
    return read_json(Trust, folder / TRUST_FILE)


def issue(folder: Path, role: str, name: str, path: Path) -> None:
    """Write a new `.creds` file (0600) for `name` in `role`, replacing one at `path`. Raises Refusal, OSError.

    The ledger has it before the file is there: a credential that nobody can name could not be revoked by name.
    """
    check_holder(role, name)
    signer = read_seed(folder / f"{role}.seed")
    user = new_seed(nkeys.PREFIX_BYTE_USER)
    with locked(folder):
        account = load(folder).account(role)
        # One issued in the very second of a revocation of all would be revoked with them.
        at = max(int(time.time()), account.revocations().get(EVERYBODY, 0) + 1)
        ledger.add(folder, ledger.Issued(role=role, name=name, key=public(user), at=at))
    claims = {"type": "user", "issuer_account": account.key, "tags": [f"{ROLE_TAG}{role}"]}
    token = sign(signer, name, public(user), claims, at=at)
    path.unlink(missing_ok=True)
    write_private(path, credentials_text(token, user).encode())


def credentials_text(token: str, seed: bytes) -> str:
    """The contents of a `.creds` file: a user's JWT and its seed."""
    return (
        f"{JWT_BEGINS}{token}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed.decode()}\n------END USER NKEY SEED------\n"
    )


def holder(path: Path) -> Holder:
    """Whose credential a `.creds` file is. Raises Refusal (`credentials.file`)."""
    try:
        claims = _payload(path)
        role = next(t.removeprefix(ROLE_TAG) for t in claims["nats"]["tags"] if t.startswith(ROLE_TAG))
        name = claims["name"]
        check_holder(role, name)
    except OSError as error:
        raise _bad_file(path, error.strerror or type(error).__name__) from None
    except (ValueError, LookupError, TypeError, AttributeError, StopIteration, InvalidTokenError, Refusal) as error:
        raise _bad_file(path, f"something else ({type(error).__name__})") from None
    return Holder(role, name)


def issued(path: Path, trust: Trust) -> ledger.Issued:
    """The ledger's entry of a `.creds` file of this bus, whatever its name. Raises Refusal (`credentials.*`)."""
    try:
        claims = _payload(path)
        found = claims["nats"]["issuer_account"]
        role = next((account.role for account in trust.accounts if account.key == found), None)
        entry = ledger.Issued(role=str(role), name=claims["name"], key=claims["sub"], at=claims["iat"])
    except OSError as error:
        raise _bad_file(path, error.strerror or type(error).__name__) from None
    except (ValueError, LookupError, TypeError, InvalidTokenError) as error:
        raise _bad_file(path, f"something else ({type(error).__name__})") from None
    if role is None:
        raise Refusal.because(
            "credentials.bus",
            str(path),
            expected="a credential of an account in this folder's trust.json",
            found=f"one of the account {found}",
            action="give the folder of the keys that issued it",
        )
    return entry


def _payload(path: Path) -> dict[str, Any]:
    return payload_of(path.read_text(encoding="ascii").split(JWT_BEGINS, 1)[1].split("\n", 1)[0])


def require(path: Path, *roles: str) -> None:
    """Raises Refusal (`credentials.*`) unless a `.creds` file is for one of these roles, by its own claim."""
    found = holder(path).role
    if found not in roles:
        raise Refusal.because(
            "credentials.role",
            str(path),
            expected=f"a credential of role {' or '.join(roles)}",
            found=f"a credential of role {found}",
            action="correct the setting bus.credentials",
        )


def write_context(path: Path, url: str, credentials: Path) -> None:
    """Write a context of the `nats` CLI: the server, the credential, and the inbox that the credential allows.

    Raises Refusal for an unusable credential.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    context = {
        "description": "attestgate, read-only",
        "url": url,
        "creds": str(credentials.absolute()),
        "inbox_prefix": holder(credentials).inbox,
    }
    path.write_text(json.dumps(context, indent=2) + "\n", encoding="utf-8")


def check_role(role: str) -> None:
    """Raises Refusal (`credentials.role`) for an unknown role."""
    if role not in ROLES:
        raise Refusal.because(
            "credentials.role", "role", expected=", ".join(ROLES), found=role, action="choose one of these roles"
        )


def fits(role: str, name: str) -> bool:
    """Whether the subjects of a role can have a name."""
    tokens = name.split(".")
    try:
        for token in tokens:
            TypeAdapter(Id).validate_python(token)
    except ValidationError:
        return False
    return len(tokens) == name_tokens(role)


def check_holder(role: str, name: str) -> None:
    """Raises Refusal (`credentials.*`) for an unknown role, or a name that its subjects cannot have."""
    check_role(role)
    if not fits(role, name):
        named = (
            "HOST.ID, each a DNS label: an application has a credential for each host"
            if role == "app"
            else "a DNS label"
        )
        raise Refusal.because("credentials.name", "name", expected=named, found=name, action="choose another name")


def _bad_file(path: Path, found: str) -> Refusal:
    return Refusal.because(
        "credentials.file",
        str(path),
        expected="a credentials file of this bus",
        found=found,
        action="issue one: attestgate keys credentials",
    )
