"""The messages on the simulated platform's two kinds of sockets: launcher to daemon, enclave to daemon.

Both are Unix sockets of type SOCK_SEQPACKET: the kernel keeps frame boundaries, so there are no lengths to forge.
A frame is one msgpack value of at most MAX_FRAME bytes; an empty one is the end.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, RootModel

from attestgate.enclave.api import KeyPolicy
from attestgate.enclave.simulated.quoting_enclave import EnclaveIdentity
from attestgate.schemas.base import Bytes64, Model, Reasons

MAX_FRAME = 128 * 1024
"""Bytes; a quote has about 4,100, a launch is as long as its environment."""

ENCLAVE_FD = "ATTESTGATE_ENCLAVE_FD"
"""The environment variable that names the inherited socket: its holder is the enclave that was measured."""
MEASURED = "ATTESTGATE_MEASURED"
"""The environment variable that names the private copy of the measured settings."""
RELOAD = b"reload"
"""Launcher to daemon: have the enclave reload its settings, by SIGHUP."""


FrameText = Annotated[str, Field(max_length=MAX_FRAME)]


class Launch(Model):
    """Launcher to daemon, with the descriptors of standard output and error beside it. Paths are absolute."""

    manifest: FrameText
    code_root: FrameText
    measured: FrameText | None
    directory: FrameText
    arguments: Annotated[list[FrameText], Field(max_length=4096)]
    environment: Annotated[dict[FrameText, FrameText], Field(max_length=4096)]


class LaunchAnswer(Model):
    """Daemon to launcher: running as this identity, or why not."""

    identity: EnclaveIdentity | None = None
    refused: Reasons = []


class Exited(Model):
    """Daemon to launcher: the exit status, as `subprocess` reports it, and why the platform killed it, if it did."""

    status: Annotated[int, Field(ge=-(2**31), lt=2**31)]
    refused: Reasons = []


class QuoteRequest(Model):
    """Enclave to daemon; the answer is the quote itself."""

    ask: Literal["quote"] = "quote"
    report_data: Bytes64


class KeyRequest(Model):
    """Enclave to daemon; the answer is the key itself, 16 bytes."""

    ask: Literal["sealing_key"] = "sealing_key"
    policy: KeyPolicy


class Request(RootModel[Annotated[QuoteRequest | KeyRequest, Field(discriminator="ask")]]):
    """Any request of an enclave."""
