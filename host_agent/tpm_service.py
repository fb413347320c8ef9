"""`attestgate tpm serve`: quotes of the host's TPM for the agent in the enclave, one connection per quote, on loopback.

The request is a nonce of 32 bytes, the answer a packed TpmQuote. There is nothing to protect: a quote states only what
this TPM holds, under a nonce that another process could request a quote for but not use.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

import structlog

from attestgate.host_agent.tpm import Tpm
from attestgate.host_agent.tpm_client import NONCE_BYTES
from attestgate.schemas.base import Refusal, pack
from attestgate.schemas.host_policy import Bank
from attestgate.schemas.tpm import TpmQuote

log = structlog.get_logger("tpm")
HOST = "127.0.0.1"
PATIENCE_S = 5.0
"""How long a client may take to send its nonce."""
WAITING = 16
"""Connections served at once; a TPM runs one command at a time."""


class Quoter(Protocol):
    """What makes quotes: a TPM."""

    def quote(self, nonce: bytes, bank: Bank) -> TpmQuote:
        """A quote over PCR 0-10 of a bank that answers `nonce`. Raises Refusal."""
        ...


class TpmService:
    """Serves one TPM. `port` 0 picks a free one."""

    def __init__(self, tpm: Quoter, bank: Bank, port: int = 0) -> None:
        self._tpm = tpm
        self._bank: Bank = bank
        self._port = port
        self._one = asyncio.Lock()
        self._slots = asyncio.Semaphore(WAITING)

    async def start(self) -> asyncio.Server:
        """Start listening."""
        return await asyncio.start_server(self._serve, HOST, self._port, backlog=WAITING, limit=1024)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with self._slots:
                async with asyncio.timeout(PATIENCE_S):
                    nonce = await reader.readexactly(NONCE_BYTES)
                async with self._one:
                    quote = await asyncio.to_thread(self._tpm.quote, nonce, self._bank)
                writer.write(pack(quote))
                await writer.drain()
        except Refusal as refusal:
            log.warning("no quote", reasons=[reason.sentence() for reason in refusal.reasons])
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            log.info("client disconnected", error=type(error).__name__)
        finally:
            writer.close()


async def run(tcti: str, bank: Bank, port: int) -> None:
    """Serve until cancelled. Raises Refusal (`tpm.*`), OSError for a port that is taken."""
    with Tpm(tcti) as tpm:
        async with await TpmService(tpm, bank, port).start() as server:
            log.info("ready", address=address(server), tcti=tcti, bank=bank)
            await server.serve_forever()


def address(server: asyncio.Server) -> str:
    """Where a started service listens, in the form of the agent's setting `tpm`."""
    return f"{HOST}:{server.sockets[0].getsockname()[1]}"
