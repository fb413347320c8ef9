"""Keys and credentials of the bus: a NATS operator, an account a role, and user credentials made from scoped keys.

The server has only the operator's and the accounts' JWTs. A credential is a JWT signed with its role's scoped signing
key, whose permission template is in the account's JWT: a new host needs a new file, and no change at the server.
Formats: NATS JWT v2 (ADR-14), nkeys, `.creds` files.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import nkeys
from jwt import InvalidTokenError
from jwt.algorithms import Algorithm
from jwt.api_jws import PyJWS
from pydantic import TypeAdapter, ValidationError

from attestgate.bus.auth.permissions import MANAGER, ROLES, VIEWER, BusRole, exports, imports
from attestgate.bus.layout import COPIED, HEADERS, MIB
from attestgate.bus.subjects import name_tokens
from attestgate.schemas.base import Id, Model, Refusal, read_json

ALGORITHM = "ed25519-nkey"
SYSTEM = "system"
TRUST_FILE = "trust.json"
OPERATOR_FILE = "bus-operator.seed"
ROLE_TAG = "role:"


class Account(Model):
    """An account as the server gets it: the role it is for, its public key, its JWT."""

    role: str
    key: str
    jwt: str


class Trust(Model):
    """All that a server of this bus needs. Nothing in it is secret."""

    operator: str
    accounts: list[Account]

    def account(self, role: str) -> Account:
        """The account of a role (or `SYSTEM`)."""
        return next(account for account in self.accounts if account.role == role)


class Holder(NamedTuple):
    """Whose credential a file claims to be; only the server verifies it."""

    role: str
    name: str

    @property
    def inbox(self) -> str:
        """The inbox prefix that its permissions allow."""
        return f"_INBOX.{self.role}.{self.name}"


class _NkeyAlgorithm(Algorithm):
    """Ed25519 with keys in NATS's encoding, for PyJWT. Only signs: the server verifies."""

    def prepare_key(self, key: bytes) -> Any:
        return nkeys.from_seed(key)

    def sign(self, msg: bytes, key: Any) -> bytes:
        return bytes(key.sign(msg))

    def verify(self, msg: bytes, key: Any, sig: bytes) -> bool:
        try:
            return bool(key.verify(msg, sig))
        except nkeys.ErrInvalidSignature:
            return False

    @staticmethod
    def to_jwk(key_obj: Any, as_dict: bool = False) -> Any:
        raise InvalidTokenError("nkeys have no JWK form")

    @staticmethod
    def from_jwk(jwk: Any) -> Any:
        raise InvalidTokenError("nkeys have no JWK form")


_jws = PyJWS()
_jws.register_algorithm(ALGORITHM, _NkeyAlgorithm())


def create(folder: Path) -> Trust:
    """Generate a bus's operator, accounts and signing keys in `folder`. Raises Refusal if it already has them.

    Leaves `bus-operator.seed` (signs accounts), `<role>.seed` (signs credentials of that role) and `trust.json` (for
    the server). The accounts' own seeds are discarded: they could sign a credential without a template.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    operator = _new_seed(nkeys.PREFIX_BYTE_OPERATOR)
    write_private(folder / OPERATOR_FILE, operator)
    keys = {role: _public(_new_seed(nkeys.PREFIX_BYTE_ACCOUNT)) for role in (SYSTEM, *ROLES)}
    accounts = [Account(role=SYSTEM, key=keys[SYSTEM], jwt=_sign(operator, SYSTEM, keys[SYSTEM], _account_claims()))]
    for role in ROLES.values():
        signer = _new_seed(nkeys.PREFIX_BYTE_ACCOUNT)
        write_private(folder / f"{role.name}.seed", signer)
        claims = _role_claims(role, _public(signer), keys)
        accounts.append(
            Account(role=role.name, key=keys[role.name], jwt=_sign(operator, role.name, keys[role.name], claims))
        )
    claims = {"type": "operator", "system_account": keys[SYSTEM]}
    trust = Trust(operator=_sign(operator, "attestgate", _public(operator), claims), accounts=accounts)
    (folder / TRUST_FILE).write_text(trust.model_dump_json(indent=2), encoding="utf-8")
    return trust


def load(folder: Path) -> Trust:
    """What `create` left for the server. Raises Refusal."""
    return read_json(Trust, folder / TRUST_FILE)


def issue(folder: Path, role: str, name: str, path: Path) -> None:
    """Write a new `.creds` file (0600) for `name` in `role`, replacing one at `path`. Raises Refusal."""
    check_holder(role, name)
    signer = _read_seed(folder / f"{role}.seed")
    user = _new_seed(nkeys.PREFIX_BYTE_USER)
    claims = {"type": "user", "issuer_account": load(folder).account(role).key, "tags": [f"{ROLE_TAG}{role}"]}
    token = _sign(signer, name, _public(user), claims)
    path.unlink(missing_ok=True)
    write_private(
        path,
        f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user.decode()}\n------END USER NKEY SEED------\n".encode(),
    )


def holder(path: Path) -> Holder:
    """Whose credential a `.creds` file is. Raises Refusal (`credentials.file`)."""
    try:
        token = path.read_text(encoding="ascii").split("-----BEGIN NATS USER JWT-----\n", 1)[1].split("\n", 1)[0]
        claims = json.loads(_jws.decode(token, options={"verify_signature": False}))
        role = next(t.removeprefix(ROLE_TAG) for t in claims["nats"]["tags"] if t.startswith(ROLE_TAG))
        name = claims["name"]
        check_holder(role, name)
    except OSError as error:
        raise _bad_file(path, error.strerror or type(error).__name__) from None
    except (ValueError, LookupError, TypeError, AttributeError, StopIteration, InvalidTokenError, Refusal) as error:
        raise _bad_file(path, f"something else ({type(error).__name__})") from None
    return Holder(role, name)


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


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner reads. Raises Refusal if it exists: a key is never overwritten."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise Refusal.because(
            "file.write",
            str(path),
            expected="a new file",
            found=error.strerror or type(error).__name__,
            action="choose another folder, or move the old one away",
        ) from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


NO_LIMITS = {"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": True, "conn": -1}
JETSTREAM = {
    MANAGER: {"mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1},
    VIEWER: {"mem_storage": 16 * MIB, "disk_storage": 2048 * MIB, "streams": len(COPIED), "consumer": 256},
}
"""An account has JetStream only if these limits are in it; -1 is "no limit". What viewers make is bounded."""


def _account_claims(limits: Mapping[str, object] = NO_LIMITS, **more: object) -> dict[str, object]:
    """An account in which a credential without a template is permitted nothing."""
    return {"type": "account", "limits": limits, "default_permissions": {"pub": {"deny": [">"]}}, **more}


def _role_claims(role: BusRole, signer: str, accounts: Mapping[str, str]) -> dict[str, object]:
    """An account with one scoped signing key, JetStream where the role has one, and what it shares with others."""
    template = {
        "pub": {"allow": role.may_publish()},
        "sub": {"allow": role.may_subscribe()},
        "subs": role.max_subscriptions,
        "data": -1,
        "payload": role.max_payload + HEADERS,
    }
    return _account_claims(
        NO_LIMITS | JETSTREAM.get(role.name, {}),
        signing_keys=[{"kind": "user_scope", "key": signer, "role": role.name, "template": template}],
        exports=_exports(role),
        imports=_imports(role, accounts),
    )


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
    """A page of a bucket is many replies to one request: those services have the response type Stream."""
    return [
        {"name": subject, "subject": subject, "type": kind}
        | ({"response_type": "Stream"} if ".DIRECT.GET." in subject else {})
        for subject, kind in exports(role.name).items()
    ]


def _sign(seed: bytes, name: str, subject: str, claims: Mapping[str, object]) -> str:
    payload = {
        "jti": secrets.token_hex(16),
        "iat": int(time.time()),
        "iss": _public(seed),
        "name": name,
        "sub": subject,
        "nats": {**claims, "version": 2},
    }
    return _jws.encode(json.dumps(payload).encode(), seed, algorithm=ALGORITHM, headers={"typ": "JWT"})


def _new_seed(prefix: int) -> bytes:
    return bytes(nkeys.encode_seed(secrets.token_bytes(32), prefix))


def _public(seed: bytes) -> str:
    return bytes(nkeys.from_seed(seed).public_key).decode()


def _read_seed(path: Path) -> bytes:
    try:
        seed = path.read_bytes()
        nkeys.from_seed(seed)
    except (OSError, nkeys.NkeysError, ValueError) as error:
        raise Refusal.because(
            "credentials.seed",
            str(path),
            expected="a signing key that `keys init` created",
            found=getattr(error, "strerror", None) or "not an nkey seed",
            action="give the folder of the bus keys",
        ) from None
    return seed


def check_holder(role: str, name: str) -> None:
    """Raises Refusal (`credentials.*`) for an unknown role, or a name that its subjects cannot have."""
    if role not in ROLES:
        raise Refusal.because(
            "credentials.role", "role", expected=", ".join(ROLES), found=role, action="choose one of these roles"
        )
    tokens = name.split(".")
    try:
        for token in tokens:
            TypeAdapter(Id).validate_python(token)
        good = len(tokens) == name_tokens(role)
    except ValidationError:
        good = False
    if not good:
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
