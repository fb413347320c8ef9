"""The settings of every process: one TOML file each, overridden by ATTESTGATE_... variables, unknown keys are errors.

What an agent must not be lied to about is not here but in `Measured`, a file of its own that is part of the enclave's
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

Profile = Literal["production", "development"]
SuiteSetting = Literal["mlkem768-x25519", "x25519"]

MetricsAddress = Annotated[str, Field(pattern=r"^[0-9.]{7,15}:[0-9]{1,5}$")] | None
"""An IPv4 address and a port; nobody is asked who he is there, so keep it on loopback or a network of its own."""


class Timing(Part):
    """Spans in seconds. A lease counts from the moment the question was asked, never from the answer."""

    lease_s: Annotated[int, Field(ge=2, le=3600)] = 30
    """How long trust lasts, counted from the question that the evidence answers."""
    recheck_s: Annotated[int, Field(ge=1, le=3600)] = 10
    """How long after an answer the next question is asked (with jitter)."""
    evidence_window_s: Annotated[int, Field(ge=1, le=600)] = 10
    """How long a question may be answered."""
    skew_s: Annotated[int, Field(ge=0, le=60)] = 5
    """How far clocks may be apart."""
    certificate_s: Annotated[int, Field(ge=60, le=86400)] = 3600
    """How long an application's certificate is valid."""

    @model_validator(mode="after")
    def _lease_covers_recheck(self) -> Self:
        if self.lease_s <= self.recheck_s:
            raise ValueError("lease_s must be longer than recheck_s, or every lease ends before it can be renewed")
        return self


def _number(value: object) -> object:
    """A number as the environment has it: in digits."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def _together(value: object) -> object:
    """Addresses as the environment has them: with commas between."""
    several = isinstance(value, list) and value and all(isinstance(address, str) for address in value)
    return ",".join(value) if several else value  # type: ignore[arg-type]  # a list, as was just seen


class BusSettings(Part):
    """Where the bus is, and the credentials file for it."""

    url: Annotated[str, BeforeValidator(_together)]
    """`nats://` or `tls://` address; several as a list, or with commas between."""
    credentials: FilePath
    """The credentials file (`attestgate keys credentials`)."""
    replicas: Annotated[Literal[1, 3], BeforeValidator(_number)] = 1
    """On how many servers of a cluster each stream is kept; only manager workers, who make the streams, need it."""


class OperatorSettings(Part):
    """An operator or policy author whose signature is taken: a name, a role, an Ed25519 public key in hexadecimal."""

    name: Id
    """The name that the operator signs under."""
    role: OperatorRole
    """`operator`, `policy-author` or `viewer`."""
    identity: Hex32
    """Ed25519 public key, hexadecimal (public.json)."""


class IasSettings(Part):
    """Intel's legacy attestation service, for EPID quotes. It is closed: only a simulated one answers."""

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

    Intel's root is known by its fingerprint. Any other is a simulated one: it has to be meant (`allow_simulated`), and
    is refused in production.
    """

    pccs_url: str
    """Base URL of the attestation service: Intel's PCS or a PCCS."""
    root: FilePath
    """Root certificate, PEM or DER."""
    allow_simulated: bool = False
    """Take another root than Intel's. Refused in production."""
    when_down: Literal["cache", "refuse"] = "cache"
    """While the service is out of reach: go on with a cached set that is still valid, or refuse."""
    service: Literal["dcap", "ias"] = "dcap"
    """`dcap`: ECDSA quotes, verified here; `ias`: EPID quotes, verified by the legacy service in `ias`."""
    ias: IasSettings | None = None
    """The legacy service."""

    @model_validator(mode="after")
    def _ias_where_chosen(self) -> Self:
        if (self.service == "ias") != (self.ias is not None):
            raise ValueError('ias belongs to service = "ias", and must be given there')
        return self


class GatewaySet(Part):
    """The gateways in front of the controller, as applications are told of them."""

    name: Id
    """The set's name: leases are for one set."""
    address: str
    """HOST:PORT that applications connect to."""
    reports_before_ready: Annotated[int, Field(ge=1, le=64)] = 1
    """How many gateways must report a certificate admitted before the application is told that it is ready."""


class LogSettings(Part):
    """Logs go to standard error, one line each."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """What is logged: this and what is worse."""
    format: Literal["json", "console"] = "json"
    """JSON, or for a person."""


class ProcessSettings(BaseSettings):
    """Ground of every settings file."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        env_prefix="ATTESTGATE_",
        env_nested_delimiter="__",
        use_attribute_docstrings=True,
    )
    profile: Profile = "production"
    """`production` refuses whatever is simulated."""
    bus: BusSettings
    """Where the bus is."""
    log: LogSettings = LogSettings()
    """How the process logs. The level is read again on SIGHUP."""


class ManagerSettings(ProcessSettings):
    """A manager worker."""

    name: Id = "manager"
    """This worker's name, in events and logs."""
    state_dir: FilePath
    """Folder for high-water marks: one a worker, kept over restarts."""
    identity: FilePath
    """The manager's Ed25519 key."""
    former_identities: Annotated[list[Hex32], Field(max_length=16)] = []
    """Public keys that the managers had before, hexadecimal: what they signed in the decision log is still believed."""
    storage_keys: FilePath
    """Keys that seal session records. Read again when the file changes."""
    salt: FilePath
    """Salts what is kept of platform identities."""
    pki: FilePath
    """Folder of the issuing CA."""
    pki_passphrase: FilePath
    """Opens the issuing CA's key."""
    trust_domain: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,253}$")]
    """In front of every identity: `spiffe://<trust domain>/...`"""
    operators: Annotated[list[OperatorSettings], Field(min_length=1)]
    """Whose signed commands and policies are taken."""
    attestation: AttestationSettings
    """The attestation service."""
    gateways: GatewaySet
    """The gateways in front of the controller."""
    timing: Timing = Timing()
    """How long things last."""
    suite: SuiteSetting = "mlkem768-x25519"
    """HPKE suite of a session: hybrid post-quantum, or X25519 alone."""
    runtime_policy_keys: Annotated[list[FilePath], Field(max_length=16)] = []
    """Public keys (PEM). If there are any, a runtime policy must be in a DSSE envelope that one of them signed."""
    metrics: MetricsAddress = None
    """ADDRESS:PORT on which `GET /metrics` answers in Prometheus's format; port 0 takes a free one. Off by default."""

    @model_validator(mode="after")
    def _simulated_only_by_name(self) -> Self:
        if self.attestation.allow_simulated and self.profile == "production":
            raise ValueError('attestation.allow_simulated is refused while profile = "production"')
        return self


class BreakGlassSettings(Part):
    """Whose signed admissions a gateway takes from a folder, without a manager or a bus."""

    operators: Annotated[list[Hex32], Field(min_length=1)]
    """Operators' Ed25519 public keys, hexadecimal."""
    folder: FilePath
    """Where `attestgate gateway break-glass` files are put; only its owner may write there."""
    longest_s: Annotated[int, Field(ge=60, le=86400)] = 3600
    """No such admission is longer."""


class RelaySettings(Part):
    """WebSockets: they go through the gateway worker, which ends each with its admission."""

    socket: FilePath
    """Where nginx hands them over: `relay` of its settings, in a folder that only the two can enter."""
    controller: Annotated[str, StringConstraints(pattern=r"^127\.0\.0\.1:[0-9]{1,5}$")] | FilePath
    """The SDN controller, as nginx's settings have it."""
    longest_s: Annotated[int, Field(ge=1, le=86400)] = 3600
    """No WebSocket lives longer."""


class GatewaySettings(ProcessSettings):
    """A gateway worker, beside one nginx."""

    id: Id
    """This gateway's id, as enrolled."""
    gateway_set: Id
    """The set whose leases it applies."""
    identity: FilePath
    """The gateway's Ed25519 key: signs its reports."""
    manager_identity: Annotated[list[Hex32], Field(min_length=1)]
    """Managers' Ed25519 public keys, hexadecimal: whose leases are believed."""
    nginx_socket: FilePath
    """The admin socket of the nginx beside it."""
    nginx_public: FilePath | None = None
    """Folder of that nginx from which it serves revocation lists, `public` in its own. Off by default."""
    nginx_map: FilePath | None = None
    """For an nginx without njs: its `admitted.map`, which then takes the place of `nginx_socket`."""
    break_glass: BreakGlassSettings | None = None
    """Whether operators may admit a certificate by hand while nobody else can. Off by default."""
    relay: RelaySettings | None = None
    """Whether applications may open WebSockets. Off by default."""
    longest_lease_s: Annotated[int, Field(ge=2, le=3600)] = 60
    """No admission is longer, whatever a lease says."""
    reconcile_s: Annotated[int, Field(ge=1, le=3600)] = 30
    """How often all of nginx's dictionary is compared."""
    metrics: MetricsAddress = None
    """ADDRESS:PORT on which `GET /metrics` answers in Prometheus's format; port 0 takes a free one. Off by default."""


class OperatorFile(ProcessSettings):
    """What an operator's commands need: the bus, a name, and the key that signs."""

    name: Id
    """Your name, as the managers' settings have it."""
    identity: FilePath
    """Your Ed25519 key."""
    answer_s: Annotated[int, Field(ge=1, le=600)] = 15
    """How long a command's answer is waited for."""


class PlatformSettings(Part):
    """The platform that the agent runs on. A simulated one is used only where it is asked for by name."""

    kind: Literal["gramine", "simulated"] = "gramine"
    """SGX by Gramine, or the simulated platform by its name."""
    socket: FilePath | None = None
    """The simulated machine's socket."""

    @model_validator(mode="after")
    def _socket_when_simulated(self) -> Self:
        if (self.kind == "simulated") != (self.socket is not None):
            raise ValueError('socket belongs to kind = "simulated", and must be given there')
        return self


class AgentSettings(ProcessSettings):
    """What both agents have."""

    id: Id
    """This agent's id, as enrolled."""
    platform: PlatformSettings = PlatformSettings()
    """What the enclave runs on."""
    measured: FilePath
    """The measured settings: a file of its own."""
    retry_s: Annotated[int, Field(ge=1, le=600)] = 2
    """First pause before a new session; later ones are longer."""
    health_file: FilePath | None = None
    """Where to write the end of the lease in Unix seconds, for a container's health check."""


class HostSettings(AgentSettings):
    """A host agent."""

    tpm: Annotated[str, Field(pattern=r"^(127\.0\.0\.1|localhost):[0-9]{1,5}$")] | None = None
    """Where `attestgate tpm serve` listens on this host's loopback, if its TPM is enrolled."""
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
    """Where the program may write what it sees."""
    proxy_socket: FilePath | None = None
    """Unix socket on which the program `attestgate.app_agent.proxy` takes requests."""
    proxy_port: Annotated[int | None, Field(ge=1, le=65535)] = None
    """Port on loopback for the same: any local process can use it."""


class Measured(Part):
    """What an agent must not be lied to about; part of its measurement, so nothing overrides it."""

    manager_identity: Annotated[list[Hex32], Field(min_length=1)]
    """Managers' Ed25519 public keys, hexadecimal: whose challenges are answered."""
    suites: Annotated[list[SuiteSetting], Field(min_length=1)]
    """HPKE suites that are accepted."""
    sealing: Literal["mrsigner"] = "mrsigner"
    """To whom volume keys are sealed."""
    gateway_ca: str = ""
    """PEM of the CA that signs the gateway's certificate; an application's has to be given."""
    gateway_name: str = ""
    """Name in the gateway's certificate; an application's has to be given."""
    program: str = ""
    """The module that an application runs, of the measured code; an application's has to be given."""
    accept_manager_key: bool = False
    """Take a certificate whose private key the manager made, as in the prototype."""


def load_measured(path: Path) -> Measured:
    """The measured settings. Nothing overrides them. Raises Refusal (`settings.*`)."""
    return load_part(Measured, path)
