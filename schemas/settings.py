"""The settings of every process: one TOML file each, overridden by ATTESTGATE_... variables, unknown keys are errors.

Settings that an agent's security depends on are in `Measured`, a file of its own that is part of the enclave's
measurement; the environment cannot override it. docs/settings.md maps the prototype's names to these.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, StringConstraints, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from attestgate.schemas.base import Hex32, Id
from attestgate.schemas.enrolment import OperatorRole
from attestgate.schemas.settings_file import FilePath, Part, load_part
from attestgate.schemas.settings_file import load_settings as load_settings
from attestgate.schemas.signing import TrustedKeys

Profile = Literal["production", "development"]
SuiteSetting = Literal["mlkem768-x25519", "x25519"]
TrustDomainName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,253}$")]

MetricsAddress = Annotated[str, Field(pattern=r"^[0-9.]{7,15}:[0-9]{1,5}$")] | None
"""An IPv4 address and a port; there is no authentication, so keep it on loopback or a network of its own."""


ManagerIdentity = Annotated[list[Hex32], Field(min_length=1)]


def managers(trust_domain: str, identities: list[str]) -> TrustedKeys:
    """Those whose statements as managers count: public keys in hexadecimal, as a settings file has them."""
    return TrustedKeys(trust_domain, {"manager": {bytes.fromhex(identity) for identity in identities}})


class Timing(Part):
    """Durations in seconds. A lease counts from the challenge, never from the answer."""

    lease_s: Annotated[int, Field(ge=2, le=3600)] = 30
    """Lease time, counted from the challenge that the evidence answers; at least twice `recheck_s`."""
    recheck_s: Annotated[int, Field(ge=1, le=3600)] = 10
    """Time from an answer to the next challenge (with jitter)."""
    evidence_window_s: Annotated[int, Field(ge=1, le=600)] = 10
    """Time within which a challenge must be answered."""
    skew_s: Annotated[int, Field(ge=0, le=60)] = 5
    """Tolerated clock skew."""
    certificate_s: Annotated[int, Field(ge=60, le=86400)] = 3600
    """Lifetime of an application's certificate."""

    @model_validator(mode="after")
    def _lease_covers_recheck(self) -> Self:
        # An application's lease ends with its host's, which may be from one recheck_s ago, and is renewed one later.
        if self.lease_s < 2 * self.recheck_s:
            raise ValueError("lease_s must be at least twice recheck_s, or leases expire before they are renewed")
        return self


def _number(value: object) -> object:
    """A number from the environment, where it is text."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def _together(value: object) -> object:
    """Addresses as the environment has them: comma-separated."""
    several = isinstance(value, list) and value and all(isinstance(address, str) for address in value)
    return ",".join(value) if several else value  # type: ignore[arg-type]  # a list, as was just seen


class BusSettings(Part):
    """The bus's address, and the credentials file for it."""

    url: Annotated[str, BeforeValidator(_together)]
    """`nats://` or `tls://` address; several as a list, or comma-separated."""
    credentials: FilePath
    """The credentials file (`attestgate keys credentials`)."""
    replicas: Annotated[Literal[1, 3], BeforeValidator(_number)] = 1
    """Number of a cluster's servers that keep each stream; only for manager workers, which create the streams."""


class OperatorSettings(Part):
    """An operator or policy author whose signature is accepted: a name, a role, an Ed25519 public key (hexadecimal)."""

    name: Id
    """The name that the operator signs under."""
    role: OperatorRole
    """`operator`, `policy-author` or `viewer`."""
    identity: Hex32
    """Ed25519 public key, hexadecimal (public.json)."""


class IasSettings(Part):
    """Intel's legacy attestation service, for EPID quotes. Intel has shut it down: only a simulated one answers."""

    ias_url: str
    """Base URL of the service."""
    ias_crt: FilePath
    """Root certificate that reports must chain to, PEM or DER."""
    spid: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    """Service provider id, 16 bytes in hexadecimal: what linkable quotes are made for."""
    subscription_key: FilePath
    """File with the subscription key, mode 0600."""


class AttestationSettings(Part):
    """The attestation service, and the root certificate (PEM or DER) that quotes must chain to.

    Intel's root is recognized by its fingerprint. Any other is treated as simulated: it must be allowed explicitly
    (`allow_simulated`), and is refused in production.
    """

    pccs_url: str
    """Base URL of the attestation service: Intel's PCS or a PCCS."""
    root: FilePath
    """Root certificate, PEM or DER."""
    allow_simulated: bool = False
    """Accept a root other than Intel's. Refused in production."""
    when_down: Literal["cache", "refuse"] = "cache"
    """While the service is unreachable: use cached collateral that is still valid, or refuse."""
    service: Literal["dcap", "ias"] = "dcap"
    """`dcap`: ECDSA quotes, verified here; `ias`: EPID quotes, verified by the legacy service in `ias`."""
    ias: IasSettings | None = None
    """The legacy service."""

    @model_validator(mode="after")
    def _ias_where_chosen(self) -> Self:
        if (self.service == "ias") != (self.ias is not None):
            raise ValueError('ias is required with service = "ias", and allowed only there')
        return self


class GatewaySet(Part):
    """The gateways in front of the controller, as announced to applications."""

    name: Id
    """The set's name: leases are for one set."""
    address: str
    """HOST:PORT that applications connect to."""
    reports_before_ready: Annotated[int, Field(ge=1, le=64)] = 1
    """Number of gateways that must report a certificate admitted before the application is told that it is ready."""


class LogSettings(Part):
    """Logging to standard error, one line per event."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest level that is logged."""
    format: Literal["json", "console"] = "json"
    """JSON, or readable text."""


class ProcessSettings(BaseSettings):
    """The base of every settings file."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        env_prefix="ATTESTGATE_",
        env_nested_delimiter="__",
        use_attribute_docstrings=True,
    )
    profile: Profile = "production"
    """`production` refuses anything simulated."""
    bus: BusSettings
    """Where the bus is."""
    log: LogSettings = LogSettings()
    """Logging. SIGHUP reloads the level."""


class ManagerSettings(ProcessSettings):
    """A manager worker."""

    name: Id = "manager"
    """This worker's name, in events and logs."""
    state_dir: FilePath
    """Folder for high-water marks: one per worker, kept over restarts."""
    identity: FilePath
    """The manager's Ed25519 key."""
    former_identities: Annotated[list[Hex32], Field(max_length=16)] = []
    """Former public keys of the managers, hexadecimal: still trusted for what they signed in the decision log."""
    storage_keys: FilePath
    """Keys that seal session records. Reloaded when the file changes."""
    salt: FilePath
    """Salt for the hashes of platform identities."""
    pki: FilePath
    """Folder of the issuing CA."""
    pki_passphrase: FilePath
    """File with the passphrase of the issuing CA's key."""
    trust_domain: TrustDomainName
    """Prefix of every identity: `spiffe://<trust domain>/...`. Part of every signature: one of another is none here."""
    operators: Annotated[list[OperatorSettings], Field(min_length=1)]
    """Operators and policy authors whose signatures are accepted."""
    attestation: AttestationSettings
    """The attestation service."""
    gateways: GatewaySet
    """The gateways in front of the controller."""
    timing: Timing = Timing()
    """Lease, recheck and certificate times."""
    suite: SuiteSetting = "mlkem768-x25519"
    """HPKE suite of a session: hybrid post-quantum, or X25519 alone."""
    runtime_policy_keys: Annotated[list[FilePath], Field(max_length=16)] = []
    """Public keys (PEM). If there are any, a runtime policy must be in a DSSE envelope that one of them signed."""
    metrics: MetricsAddress = None
    """ADDRESS:PORT for `GET /metrics` in Prometheus's format; port 0 picks a free one. Off by default."""

    @model_validator(mode="after")
    def _simulated_only_by_name(self) -> Self:
        if self.attestation.allow_simulated and self.profile == "production":
            raise ValueError('attestation.allow_simulated is refused while profile = "production"')
        return self


class BreakGlassSettings(Part):
    """Signed admissions that a gateway accepts from a folder, without a manager or a bus."""

    folder: FilePath
    """Where `attestgate gateway break-glass` files are put; only its owner may write there."""
    longest_s: Annotated[int, Field(ge=60, le=86400)] = 3600
    """Longest such admission."""


class RelaySettings(Part):
    """WebSockets go through the gateway worker, which closes each one when its admission ends."""

    socket: FilePath
    """Socket to which nginx passes them: `relay` of its settings, in a folder that only the two can enter."""
    controller: Annotated[str, StringConstraints(pattern=r"^127\.0\.0\.1:[0-9]{1,5}$")] | FilePath
    """The SDN controller, as nginx's settings have it."""
    longest_s: Annotated[int, Field(ge=1, le=86400)] = 3600
    """Longest lifetime of a WebSocket."""
    connections_per_application: Annotated[int, Field(ge=1, le=1000)] = 100
    """Most WebSockets of one application at once, of 1,000 in all."""


class GatewaySettings(ProcessSettings):
    """A gateway worker, beside one nginx."""

    id: Id
    """This gateway's id, as enrolled."""
    gateway_set: Id
    """The set whose leases it applies."""
    identity: FilePath
    """The gateway's Ed25519 key, which signs its reports."""
    trust_domain: TrustDomainName
    """The deployment's trust domain, as in the managers' settings."""
    manager_identity: ManagerIdentity
    """Managers' Ed25519 public keys, hexadecimal: their leases are trusted."""
    operators: Annotated[list[OperatorSettings], Field(min_length=1)]
    """Operators, as in the managers' settings. Those of role `operator` may revoke, and break glass."""
    floors: FilePath
    """File of what was taken away (`attestgate gateway floors new` makes it), on a disk of this machine."""
    block_folder: FilePath | None = None
    """Where `attestgate gateway block` files (`*.revoke`) are put; only its owner may write there. Off by default."""
    nginx_socket: FilePath
    """The admin socket of the nginx beside it; `rejections.sock` is next to it."""
    nginx_public: FilePath | None = None
    """Folder from which that nginx serves revocation lists, `public` in its own folder. Off by default."""
    nginx_map: FilePath | None = None
    """For an nginx without njs: its `admitted.map`, which then replaces `nginx_socket`."""
    break_glass: BreakGlassSettings | None = None
    """Whether operators may admit a certificate while the managers or the bus are down. Off by default."""
    relay: RelaySettings | None = None
    """Whether applications may open WebSockets. Off by default."""
    longest_lease_s: Annotated[int, Field(ge=2, le=3600)] = 60
    """Longest admission, whatever a lease says."""
    reconcile_s: Annotated[int, Field(ge=1, le=3600)] = 30
    """How often nginx's whole dictionary is reconciled."""
    metrics: MetricsAddress = None
    """ADDRESS:PORT for `GET /metrics` in Prometheus's format; port 0 picks a free one. Off by default."""

    @property
    def managers(self) -> TrustedKeys:
        """Whose statements are trusted."""
        return managers(self.trust_domain, self.manager_identity)


class OperatorFile(ProcessSettings):
    """Settings of an operator's commands: the bus, a name, and the signing key."""

    name: Id
    """Your name, as the managers' settings have it."""
    identity: FilePath
    """Your Ed25519 key."""
    trust_domain: TrustDomainName
    """The deployment's trust domain, as in the managers' settings: your commands are for no other."""
    manager_identity: ManagerIdentity
    """Managers' Ed25519 public keys, hexadecimal (public.json): their answers are believed."""
    answer_s: Annotated[int, Field(ge=1, le=600)] = 15
    """Time-out for a command's answer."""

    @property
    def managers(self) -> TrustedKeys:
        """Whose answers are believed."""
        return managers(self.trust_domain, self.manager_identity)


class PlatformSettings(Part):
    """The platform that the agent runs on. A simulated one is used only if named explicitly."""

    kind: Literal["gramine", "simulated"] = "gramine"
    """SGX under Gramine, or the simulated platform."""
    socket: FilePath | None = None
    """The simulated machine's socket."""

    @model_validator(mode="after")
    def _socket_when_simulated(self) -> Self:
        if (self.kind == "simulated") != (self.socket is not None):
            raise ValueError('socket is required with kind = "simulated", and allowed only there')
        return self


class AgentSettings(ProcessSettings):
    """Settings common to both agents."""

    id: Id
    """This agent's id, as enrolled."""
    platform: PlatformSettings = PlatformSettings()
    """The platform that the enclave runs on."""
    measured: FilePath
    """The measured settings: a file of its own."""
    retry_s: Annotated[int, Field(ge=1, le=600)] = 2
    """First pause before a new session; later ones are longer (exponential back-off)."""
    health_file: FilePath | None = None
    """File for the end of the lease in Unix seconds, for a container's health check."""


class HostSettings(AgentSettings):
    """A host agent."""

    tpm: Annotated[str, Field(pattern=r"^(127\.0\.0\.1|localhost):[0-9]{1,5}$")] | None = None
    """Address of `attestgate tpm serve` on this host's loopback, if its TPM is enrolled."""
    measurement_list: FilePath = Path("/sys/kernel/security/ima/binary_runtime_measurements")
    """The kernel's binary IMA list."""
    volumes: Annotated[list[FilePath], Field(max_length=1024)]
    """Data volumes of the applications here, by index: an enrolment names the index, never a path."""


class AppSettings(AgentSettings):
    """An application agent."""

    host: Id
    """Id of the host that it runs on."""
    volume: FilePath
    """The data volume that it shares with the host's agent."""
    status_file: FilePath | None = None
    """File in which the program may record what it sees."""
    proxy_socket: FilePath | None = None
    """Unix socket on which the program `attestgate.app_agent.proxy` accepts requests."""
    proxy_port: Annotated[int | None, Field(ge=1, le=65535)] = None
    """Port on loopback for the same: any local process can use it."""


class Measured(Part):
    """Settings that an agent's security depends on; part of its measurement, so nothing overrides them."""

    trust_domain: TrustDomainName
    """The deployment's trust domain, as in the managers' settings."""
    manager_identity: ManagerIdentity
    """Managers' Ed25519 public keys, hexadecimal: their challenges are answered."""
    suites: Annotated[list[SuiteSetting], Field(min_length=1)]
    """HPKE suites that are accepted."""
    sealing: Literal["mrsigner"] = "mrsigner"
    """The enclaves that volume keys are sealed to."""
    gateway_ca: str = ""
    """PEM of the CA that signs the gateway's certificate; required for an application."""
    gateway_name: str = ""
    """Name in the gateway's certificate; required for an application."""
    program: str = ""
    """The module that an application runs, part of the measured code; required for an application."""
    accept_manager_key: bool = False
    """Accept a certificate whose private key the manager generated, as in the prototype."""

    @property
    def managers(self) -> TrustedKeys:
        """Whose challenges are answered."""
        return managers(self.trust_domain, self.manager_identity)


def load_measured(path: Path) -> Measured:
    """The measured settings. Nothing overrides them. Raises Refusal (`settings.*`)."""
    return load_part(Measured, path)
