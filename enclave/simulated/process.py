"""One enclave's process and everything it started: a process group that never outlives its leader or the daemon."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_GRACE_S = 2.0


class EnclaveProcess:
    """A running process, started in the event loop's thread (the kernel ties the child's lifetime to that thread)."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        directory: Path,
        *,
        keep_fd: int,
        stdout: int,
        stderr: int,
    ) -> None:
        """Raises OSError if it cannot start."""
        loop = asyncio.get_running_loop()
        self._process = subprocess.Popen(
            command,
            env=environment,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            pass_fds=(keep_fd,),
            start_new_session=True,
        )
        self._ended: asyncio.Future[int] = loop.create_future()
        self._pidfd = os.pidfd_open(self._process.pid)
        loop.add_reader(self._pidfd, self._reap)

    async def wait(self) -> int:
        """The exit status, negative for a signal; by then its whole group is gone."""
        return await asyncio.shield(self._ended)

    def reload(self) -> None:
        """Have it reload its settings; its own children are not signalled."""
        if not self._ended.done():
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGHUP)

    async def stop(self) -> None:
        """Stop it: SIGTERM, then SIGKILL after a grace period."""
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(_GRACE_S):
                await self.wait()
        except TimeoutError:
            await self.kill()

    async def kill(self) -> None:
        """Kill it now. Does nothing if it has ended."""
        self._signal(signal.SIGKILL)
        await self.wait()

    def _signal(self, number: signal.Signals) -> None:
        if not self._ended.done():
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def _reap(self) -> None:
        # Not reaped yet, so the process group id cannot have been reused.
        self._signal(signal.SIGKILL)
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._ended.set_result(self._process.wait())
