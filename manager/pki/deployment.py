"""Every key of a deployment, made at once, with a page that says what each file is for and who may hold it."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from secrets import token_bytes

from attestgate.bus.auth import credentials
from attestgate.manager.local.keyfiles import create_identity, write_private
from attestgate.manager.pki.authority import check_trust_domain, create_ca
from attestgate.manager.verification.ear import jwks
from attestgate.schemas.base import Refusal, Secret

PAGE = """\
# Keys of this deployment

Everything here was made by `attestgate keys init`. Nothing here is on the bus. Move each file to who may hold it.

| file | what it is for | who may hold it |
| --- | --- | --- |
| manager/identity.pem | signs challenges, grants, leases, verdicts; agents and gateways pin its public half | manager workers |
| manager/storage-keys.json | seals session records; destroy old epochs | manager workers |
| manager/salt | salts what is kept of platform identities; never change it | manager workers, those who enrol hosts |
| manager/pki/, manager/pki-passphrase | issues certificates; take root-ca.key.pem offline | manager workers |
| operators/*.pem | signs commands: enrol, revoke, recheck | that operator |
| policy-authors/*.pem | signs policy manifests; keep it off every server | that author |
| gateways/*.pem | signs a gateway's reports | that gateway |
| bus/*.seed | make credentials for the bus; bus-operator.seed signs the accounts, system.seed tells nats-server of them | the bus's operator |
| bus/trust.json | the accounts with their permissions and revocations, for nats-server: back it up after each change | the bus's operator; it is not secret |
| bus/issued.json | which credentials were issued, by which one is revoked by its name | the bus's operator; it is not secret |
| credentials/*.creds | a role's way onto the bus | that process or person |
| viewer/ | context of the nats CLI, to look at the bus: set XDG_CONFIG_HOME to this folder (docs/observing.md) | viewers |
| public.json | the public halves, for settings files | anybody |
| jwks.json | the manager's public key as a JWK set, to check signed verdicts (EAR) by | anybody |
"""  # noqa: E501


def viewer_context(folder: Path) -> Path:
    """The viewer's context for the nats CLI, in a folder of `init`."""
    return folder / "viewer" / "nats" / "context" / "attestgate.json"


def init(
    folder: Path,
    *,
    trust_domain: str,
    operator: str,
    policy_author: str,
    gateway: str,
    bus: str = "nats://127.0.0.1:4222",
) -> None:
    """Make every key in a new folder, or none; `bus` is where viewers connect.

    Raises Refusal: `keys.exists` where there is something already, `pki.*` or `credentials.*` for a name.
    """
    check_trust_domain(trust_domain)
    for name in (operator, policy_author, gateway):
        credentials.check_holder("operator", name)
    _new_folder(folder)
    try:
        _fill(folder, trust_domain, operator, policy_author, gateway, bus)
    except BaseException:  # half of the keys are of no use to anybody
        shutil.rmtree(folder)
        raise


def _new_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        raise Refusal.because(
            "keys.exists",
            str(folder),
            expected="a folder that does not exist yet",
            found="an existing folder",
            action="choose another folder; keys in use are never overwritten",
        ) from None
    except OSError as error:
        raise Refusal.because(
            "keys.folder",
            str(folder),
            expected="a folder that can be created",
            found=error.strerror or type(error).__name__,
            action="check the path and its permissions",
        ) from None


def _fill(folder: Path, trust_domain: str, operator: str, policy_author: str, gateway: str, bus: str) -> None:
    for name in ("manager", "operators", "policy-authors", "gateways", "credentials"):
        (folder / name).mkdir(mode=0o700)
    passphrase = Secret(token_bytes(32))
    manager = folder / "manager"
    public = {
        "manager_identity": create_identity(manager / "identity.pem").hex(),
        "operators": {operator: create_identity(folder / "operators" / f"{operator}.pem").hex()},
        "policy_authors": {policy_author: create_identity(folder / "policy-authors" / f"{policy_author}.pem").hex()},
        "gateways": {gateway: create_identity(folder / "gateways" / f"{gateway}.pem").hex()},
        "trust_domain": trust_domain,
    }
    write_private(manager / "storage-keys.json", json.dumps({"epochs": {"1": token_bytes(32).hex()}}).encode())
    write_private(manager / "salt", token_bytes(32).hex().encode())
    write_private(manager / "pki-passphrase", passphrase.reveal().hex().encode())
    create_ca(manager / "pki", trust_domain, passphrase, int(time.time()))
    credentials.create(folder / "bus")
    for role, name in (("manager", "manager"), ("operator", operator), ("viewer", "viewer"), ("gateway", gateway)):
        credentials.issue(folder / "bus", role, name, folder / "credentials" / f"{role}-{name}.creds")
    credentials.write_context(viewer_context(folder), bus, folder / "credentials" / "viewer-viewer.creds")
    (folder / "public.json").write_text(json.dumps(public, indent=2) + "\n", encoding="utf-8")
    keys = jwks([bytes.fromhex(str(public["manager_identity"]))])
    (folder / "jwks.json").write_text(json.dumps(keys, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(PAGE, encoding="utf-8")
