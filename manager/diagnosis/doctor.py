"""`attestgate doctor`: the prerequisites of a deployment, checked one by one, each with a remedy.

Every check is read-only. What could not be checked is a finding, not a pass.
"""

from __future__ import annotations

import asyncio
import ctypes
import email.utils
import os
import resource
import ssl
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
from cryptography import x509

from attestgate.bus.api import BusError
from attestgate.bus.auth import credentials
from attestgate.bus.client.nats import connect
from attestgate.bus.client.rights import Rights, try_rights
from attestgate.manager.diagnosis.listening import listening
from attestgate.manager.gateway.dictionary import Dictionary, NginxError
from attestgate.manager.gateway.floors_file import FloorsFile
from attestgate.manager.local.keyfiles import read_identity, read_secret
from attestgate.manager.pki.authority import load_authority
from attestgate.schemas.base import Model, Refusal
from attestgate.schemas.nginx import REJECTIONS, NginxConfig
from attestgate.schemas.settings import BusSettings, GatewaySettings, HostSettings, ManagerSettings

SKEW_S = 5
SOON_S = 30 * 24 * 3600
OPENFLOW = (6633, 6653)
"""OpenFlow's ports (the old one, and IANA's)."""
TIME_ERROR = 5
"""adjtimex(2): the clock is not synchronized."""
SECURITYFS = Path("/sys/kernel/security/ima")
ROOT_CRL = "/sgx/certification/v4/rootcacrl"


class Finding(Model):
    """The result of one check. `action` says what to do where it is not good."""

    check: str
    good: bool
    found: str
    action: str = ""


def clock() -> Finding:
    """Whether the kernel holds its clock synchronized: leases and evidence are refused beyond a few seconds."""
    buffer = ctypes.create_string_buffer(512)  # struct timex, zero: read only
    state = ctypes.CDLL(None, use_errno=True).adjtimex(buffer)
    return Finding(
        check="clock",
        good=state not in (TIME_ERROR, -1),
        found="synchronized" if state not in (TIME_ERROR, -1) else "not synchronized, says adjtimex(2)",
        action="run chrony or systemd-timesyncd; within a container look at the host",
    )


async def bus(settings: BusSettings, role: str) -> list[Finding]:
    """Whether the bus accepts the credential, and whether its role and its rights are the right ones."""
    try:
        holder = credentials.holder(settings.credentials)
        connection = await connect([settings.url], settings.credentials)
        await connection.close()
        rights = await try_rights(settings.url, settings.credentials)
    except (Refusal, BusError) as error:
        found = error.reasons[0].sentence() if isinstance(error, Refusal) else str(error)
        return [Finding(check="bus", good=False, found=found, action=f"start nats-server at {settings.url}; see: keys")]
    taken = Finding(
        check="bus",
        good=holder.role == role,
        found=f"{settings.url} takes {settings.credentials.name}, of role {holder.role}",
        action=f"use a credential of role {role}: attestgate keys credentials",
    )
    return [taken, _rights(rights)]


def _rights(rights: Rights) -> Finding:
    differ = [f"may not {what}" for what in rights.missing] + [f"may {what}" for what in rights.excess]
    action = "attestgate keys upgrade FOLDER --bus URL; if it still may not then, issue the credential again"
    if rights.excess:
        action = (
            "attestgate keys upgrade FOLDER --bus URL; if it still may then, stop using the bus: somebody has signed "
            "an account or a credential with more rights; create new bus keys"
        )
    found = "; ".join(differ) or f"{rights.tried} subjects tried: allowed and refused as the role's table says"
    return Finding(check="bus rights", good=not differ, found=found, action=action)


async def pccs(url: str) -> list[Finding]:
    """Whether the attestation service answers, and how far its clock is off."""
    try:
        async with httpx.AsyncClient(timeout=5.0, trust_env=False) as http:
            answer = await http.get(url + ROOT_CRL)
    except httpx.HTTPError as error:
        found = f"{url}: {type(error).__name__}"
        return [Finding(check="pccs", good=False, found=found, action="start it, or correct attestation.pccs_url")]
    good = answer.status_code == 200
    findings = [
        Finding(check="pccs", good=good, found=f"{url}: status {answer.status_code}", action="see the service's log")
    ]
    date = answer.headers.get("date")
    if date is not None:
        apart = abs(time.time() - email.utils.parsedate_to_datetime(date).timestamp())
        found = f"{apart:.0f} s from the attestation service's"
        action = "set both clocks right"
        findings.append(Finding(check="clock skew", good=apart <= SKEW_S, found=found, action=action))
    return findings


def pki(settings: ManagerSettings) -> Finding:
    """Whether the issuing CA can be loaded, and when it expires."""
    try:
        authority = load_authority(settings.pki, read_secret(settings.pki_passphrase))
    except Refusal as refusal:
        reason = refusal.reasons[0]
        return Finding(check="issuing CA", good=False, found=reason.sentence(), action=reason.action)
    return _lasts("issuing CA", authority.certificate, "replace it: attestgate keys rotate-ca")


def host(settings: HostSettings) -> Iterator[Finding]:
    """The machine: enclave, TPM, and what the kernel measures."""
    if settings.platform.kind == "gramine":
        there = Path("/dev/attestation/quote").exists()
        found = "present" if there else "no /dev/attestation"
        yield Finding(check="enclave", good=there, found=found, action="run this within gramine-sgx, with DCAP enabled")
    else:
        yield Finding(check="enclave", good=True, found="simulated: nothing it vouches for is proven by hardware")
    tpm = Path("/dev/tpmrm0")
    yield Finding(
        check="tpm",
        good=os.access(tpm, os.R_OK | os.W_OK),
        found=f"{tpm} can be used" if os.access(tpm, os.R_OK | os.W_OK) else f"{tpm} is missing or not for this user",
        action="enable the TPM in the firmware; add the user to group tss; without one the list stays unanchored",
    )
    yield _measurement_list(settings.measurement_list)
    yield _ima_policy()


async def nginx(settings: GatewaySettings) -> list[Finding]:
    """The dictionary of the nginx beside a gateway worker."""
    path = settings.nginx_socket
    try:
        async with Dictionary(path) as dictionary:
            health = await dictionary.health()
    except NginxError as error:
        return [Finding(check="nginx", good=False, found=str(error), action="start nginx; check nginx_socket")]
    mode = stat.S_IMODE(path.stat().st_mode)
    beside = path.with_name(REJECTIONS)
    return [
        Finding(check="nginx", good=True, found=f"{health.entries - 1} admissions, {health.free} bytes free"),
        Finding(
            check="admin socket",
            good=mode & 0o077 == 0,
            found=f"{path}: mode {mode:04o}",
            action="who can open it decides who passes: chmod 0600",
        ),
        Finding(
            check="rejections socket",
            good=beside.is_socket(),
            found=f"{beside}: {'present' if beside.is_socket() else 'missing'}",
            action="render nginx's configuration anew and restart nginx: what it rejects is not reported",
        ),
    ]


async def gateway(config: NginxConfig) -> list[Finding]:
    """The gateway from outside: its certificate, that a stranger is refused, and that there is no way around it."""
    findings = [_lasts("gateway certificate", _leaf(config.certificate), "issue a new one and reload nginx")]
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # only whether it refuses is asked
    url = f"https://{config.address}:{config.port}/"
    try:
        async with httpx.AsyncClient(timeout=5.0, trust_env=False, verify=context) as http:
            status = (await http.get(url)).status_code
        found, good = f"status {status}", status == 403
    except httpx.HTTPError as error:
        found, good = type(error).__name__, False
    findings.append(
        Finding(check="stranger", good=good, found=f"{url} without a certificate: {found}", action="see nginx's log")
    )
    return [*findings, open_files(config), *no_way_around(config)]


def open_files(config: NginxConfig) -> Finding:
    """Whether nginx may open as many files as its configuration asks for: else the worker's sockets have no reserve.

    nginx raises the limit by itself if the hard limit, or CAP_SYS_RESOURCE, lets it, and runs on with less if not. So
    the limit of its processes is read; only where none runs, the hard limit of this one.
    """
    running = _files_of_workers(config.folder / "nginx.pid")
    limit = running if running is not None else resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    of = "a process of nginx" if running is not None else "a process started here (nginx does not run)"
    good = limit == resource.RLIM_INFINITY or limit >= config.open_files
    return Finding(
        check="open files",
        good=good,
        found=f"{of} may open {limit} files, the configuration needs {config.open_files}",
        action=f"set LimitNOFILE={config.open_files} (systemd) or ulimit -Hn for nginx, or lower `connections`",
    )


def _files_of_workers(pid_file: Path) -> int | None:
    """The lowest soft limit of the processes of this nginx; None if none runs."""
    try:
        master = int(pid_file.read_text(encoding="ascii"))
        if Path(f"/proc/{master}/comm").read_text(encoding="ascii") != "nginx\n":
            return None  # left by one that was killed
        workers = Path(f"/proc/{master}/task/{master}/children").read_text(encoding="ascii").split()
        lines = [line for pid in workers for line in Path(f"/proc/{pid}/limits").read_text("ascii").splitlines()]
        return min(int(line.split()[3]) for line in lines if line.startswith("Max open files"))
    except (OSError, ValueError):
        return None


def no_way_around(config: NginxConfig) -> Iterator[Finding]:
    """Whether the controller answers only through nginx: northbound, and OpenFlow."""
    ports = list(OPENFLOW)
    if isinstance(config.controller, Path):
        yield _private_socket(config.controller)
    else:
        ports.insert(0, int(config.controller.rpartition(":")[2]))
    for port in ports:
        open_to = [address for address, at in listening() if at == port and not address.is_loopback]
        yield Finding(
            check=f"port {port}",
            good=not open_to,
            found=f"listens on {', '.join(map(str, open_to))}" if open_to else "not open to the network",
            action="bind it to loopback or a unix socket, or let a firewall pass only the switches' management network",
        )


def _private_socket(path: Path) -> Finding:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        return Finding(check="controller", good=False, found=f"{path}: {error.strerror}", action="start the controller")
    return Finding(
        check="controller",
        good=mode & 0o007 == 0,
        found=f"{path}: mode {mode:04o}",
        action="only nginx may open it: chmod o= it",
    )


def _measurement_list(path: Path) -> Finding:
    try:
        with path.open("rb") as file:
            size = len(file.read(1024 * 1024))
    except OSError as error:
        action = "mount securityfs, and let the agent's user read it"
        return Finding(check="measurement list", good=False, found=f"{path}: {error.strerror}", action=action)
    # One entry, boot_aggregate, is all there is where no policy measures anything; it takes less than 200 bytes.
    action = "boot with ima_policy=tcb (and ima_template=ima-sig)"
    return Finding(check="measurement list", good=size > 200, found=f"{path}: {size} bytes or more", action=action)


def _ima_policy() -> Finding:
    command_line = Path("/proc/cmdline").read_text(encoding="utf-8").split()
    asked = [word for word in command_line if word.startswith("ima_policy=")]
    loaded = SECURITYFS.joinpath("policy").exists()
    return Finding(
        check="ima policy",
        good=bool(asked) or loaded,
        found=", ".join(asked)
        or ("one can be loaded" if loaded else "the kernel has no IMA, or securityfs is not mounted"),
        action="boot with ima_policy=tcb, so that everything is measured from the start",
    )


def _lasts(check: str, certificate: x509.Certificate | None, action: str) -> Finding:
    if certificate is None:
        return Finding(check=check, good=False, found="not readable", action="correct the path in the settings")
    left = certificate.not_valid_after_utc.timestamp() - time.time()
    soon = min(SOON_S, (certificate.not_valid_after_utc - certificate.not_valid_before_utc).total_seconds() / 10)
    return Finding(check=check, good=left > soon, found=f"expires in {left / 86400:.1f} days", action=action)


def _leaf(path: Path) -> x509.Certificate | None:
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())[0]
    except (OSError, ValueError):
        return None


def identity(path: Path) -> Finding:
    """Whether a process's own key can be read, by it alone."""
    try:
        read_identity(path)
    except Refusal as refusal:
        reason = refusal.reasons[0]
        return Finding(check="identity", good=False, found=reason.sentence(), action=reason.action)
    return Finding(check="identity", good=True, found=f"{path}: readable by its owner only")


def floors(path: Path) -> Finding:
    """Whether a gateway worker's memory of what was taken away can be read: without it, it does not start."""
    try:
        file = FloorsFile(path)
        count = len(file.rows())
    except Refusal as refusal:
        reason = refusal.reasons[0]
        return Finding(check="floors", good=False, found=reason.sentence(), action=reason.action)
    return Finding(check="floors", good=True, found=f"{path}: {count} floors after {file.counter} changes")


async def of_manager(settings: ManagerSettings) -> list[Finding]:
    """The checks of a manager worker."""
    service = await pccs(settings.attestation.pccs_url)
    return [*await bus(settings.bus, "manager"), identity(settings.identity), pki(settings), *service]


async def of_gateway(settings: GatewaySettings) -> list[Finding]:
    """The checks of a gateway worker."""
    own = [identity(settings.identity), floors(settings.floors)]
    return [*await bus(settings.bus, "gateway"), *own, *await nginx(settings)]


async def of_host(settings: HostSettings) -> list[Finding]:
    """The checks of a host agent."""
    return [*await bus(settings.bus, "host"), *await asyncio.to_thread(lambda: list(host(settings)))]
