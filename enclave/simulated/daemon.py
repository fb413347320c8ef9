"""The daemon of a simulated machine: it measures and launches enclaves, quotes for them, and gives them sealing keys.

An agent that reported its own hash would prove nothing, so the daemon launches it: it reads every trusted file, copies
what it read into a folder of its own, starts the copy with nothing else importable, and keeps one end of a socket
pair. The peer on that socket is the enclave that was measured. This is for SGX what swtpm is for TPMs: anything that
runs as the daemon's user controls the machine.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import structlog

from attestgate.enclave.simulated.frames import (
    ENCLAVE_FD,
    MAX_FRAME,
    MEASURED,
    RELOAD,
    Exited,
    KeyRequest,
    Launch,
    LaunchAnswer,
    QuoteRequest,
    Request,
)
from attestgate.enclave.simulated.image import Image, Images
from attestgate.enclave.simulated.launchers import check_peer, listening, receive_launch
from attestgate.enclave.simulated.measure import Contents, read_contents
from attestgate.enclave.simulated.platform import Platform
from attestgate.enclave.simulated.process import EnclaveProcess
from attestgate.enclave.simulated.quoting_enclave import EnclaveIdentity
from attestgate.enclave.simulated.signer import read_mrsigner
from attestgate.enclave.simulated.trusted import BOOT, PYTHON, SETTINGS, interpreter_library
from attestgate.schemas.base import Model, Reason, Refusal, pack, unpack

_LAUNCH_WITHIN_S = 10
_LAUNCHERS = 100
"""Launchers served at once; the others wait: each takes about five of the 1,024 descriptors of a process."""

log = structlog.get_logger(__name__)


async def serve(state_dir: Path, socket_path: Path, signer_key: Path, ready: Callable[[], None] | None = None) -> None:
    """Run a machine (see enclave.simulated.platform.create) until cancelled, which kills every enclave on it.

    Calls `ready` when the socket listens. The event loop's thread must live as long as the machine does.
    Raises Refusal (`file.*`, `daemon.*`).
    """
    with _only_one(state_dir), listening(socket_path) as listener:
        machine = _Machine(Platform(state_dir), read_mrsigner(signer_key), Images(state_dir / "images"))
        slots = asyncio.Semaphore(_LAUNCHERS)
        try:
            async with asyncio.TaskGroup() as launches:
                if ready is not None:
                    ready()
                while await slots.acquire():
                    launcher, _ = await asyncio.get_running_loop().sock_accept(listener)
                    serving = launches.create_task(machine.serve_launcher(launcher))
                    serving.add_done_callback(lambda _: slots.release())
        finally:
            machine.off()


class _Machine:
    """The platform and the enclaves that run on it."""

    def __init__(self, platform: Platform, mrsigner: bytes, images: Images) -> None:
        self._platform = platform
        self._mrsigner = mrsigner
        self._images = images
        self._builder = ThreadPoolExecutor(1)

    def off(self) -> None:
        """Remove every image. No enclave may still be running."""
        self._builder.shutdown(cancel_futures=True)
        self._images.close()

    async def serve_launcher(self, launcher: socket.socket) -> None:
        """Serve one launcher, from its request to its enclave's end. An error ends this one only."""
        with launcher:
            try:
                check_peer(launcher)
                async with asyncio.timeout(_LAUNCH_WITHIN_S):
                    request, outputs = await receive_launch(launcher)
            except (OSError, Refusal) as error:
                log.warning("launch request dropped", reason=str(error))
                return
            try:
                await self._launch(launcher, request, outputs)
            except Refusal as refusal:
                log.warning("launch refused", manifest=request.manifest, reason=str(refusal))
                await _tell(launcher, LaunchAnswer(refused=list(refusal.reasons)))
            finally:
                for output in outputs:
                    os.close(output)

    async def _launch(self, launcher: socket.socket, request: Launch, outputs: tuple[int, int]) -> None:
        contents, image = await asyncio.get_running_loop().run_in_executor(self._builder, self._prepare, request)
        try:
            identity = EnclaveIdentity(**contents.measurement.model_dump(), mrsigner=self._mrsigner)
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with ours:
                with theirs:
                    process = _start(request, contents, image, theirs, outputs)
                try:
                    await self._run(launcher, ours, identity, process)
                finally:
                    await process.kill()
        finally:
            image.remove()

    def _prepare(self, request: Launch) -> tuple[Contents, Image]:
        measured = Path(request.measured) if request.measured is not None else None
        contents = read_contents(Path(request.manifest), Path(request.code_root), measured)
        try:
            return contents, self._images.build(contents)
        except OSError as error:
            raise _no_start(request, error) from None

    async def _run(
        self, launcher: socket.socket, channel: socket.socket, identity: EnclaveIdentity, process: EnclaveProcess
    ) -> None:
        channel.setblocking(False)
        log.info("enclave launched", simulated=True, mrenclave=identity.mrenclave.hex())
        await _tell(launcher, LaunchAnswer(identity=identity))
        async with asyncio.TaskGroup() as group:
            answers = group.create_task(self._answer(channel, identity, process))
            watch = group.create_task(_heed(launcher, process))
            status = await process.wait()
            watch.cancel()
            channel.shutdown(socket.SHUT_RDWR)
        log.info("enclave ended", simulated=True, mrenclave=identity.mrenclave.hex(), status=status)
        await _tell(launcher, Exited(status=status, refused=answers.result()))

    async def _answer(self, channel: socket.socket, identity: EnclaveIdentity, process: EnclaveProcess) -> list[Reason]:
        """Answer an enclave until it closes the socket. A malformed request gets it killed; returns the reasons."""
        loop = asyncio.get_running_loop()
        with suppress(ConnectionError):  # it ended while it was being answered
            while frame := await loop.sock_recv(channel, MAX_FRAME + 1):
                try:
                    request = unpack(Request, frame, limit=MAX_FRAME).root
                except Refusal as refusal:
                    log.warning("enclave killed", mrenclave=identity.mrenclave.hex(), reason=str(refusal))
                    await process.kill()
                    return list(refusal.reasons)
                await loop.sock_sendall(channel, self._reply(identity, request))
        return []

    def _reply(self, identity: EnclaveIdentity, request: QuoteRequest | KeyRequest) -> bytes:
        if isinstance(request, QuoteRequest):
            return self._platform.quote(identity, request.report_data)
        return self._platform.sealing_key(identity, request.policy).reveal()


def _start(
    request: Launch, contents: Contents, image: Image, channel: socket.socket, outputs: tuple[int, int]
) -> EnclaveProcess:
    """Start the copy. Raises Refusal `daemon.start`."""
    manifest = contents.manifest
    environment = manifest.passed(request.environment) | {"LANG": "C.UTF-8", ENCLAVE_FD: str(channel.fileno())}
    if manifest.measured_settings:
        environment[MEASURED] = str(image.code / SETTINGS)
    library = interpreter_library()
    if library is not None:
        environment["LD_PRELOAD"] = str(image.base / "lib" / library.name)  # the copy, whatever the RPATH says
    command = [str(image.base / PYTHON), "-I", "-S", "-B", str(image.code / BOOT), str(os.getpid())]
    command += [str(image.site), str(image.code), manifest.entry, *request.arguments]
    stdout, stderr = outputs
    try:
        return EnclaveProcess(
            command, environment, Path(request.directory), keep_fd=channel.fileno(), stdout=stdout, stderr=stderr
        )
    except (OSError, ValueError) as error:
        raise _no_start(request, error) from None


def _no_start(request: Launch, error: Exception) -> Refusal:
    return Refusal.because(
        "daemon.start",
        request.manifest,
        expected="an enclave that starts",
        found=error,
        action="check the working directory, the arguments and the space in the machine's folder",
    )


async def _heed(launcher: socket.socket, process: EnclaveProcess) -> None:
    """Forward reload requests; stop the enclave when its launcher disconnects or sends anything else."""
    with suppress(ConnectionError):
        while await asyncio.get_running_loop().sock_recv(launcher, MAX_FRAME) == RELOAD:
            process.reload()
    await process.stop()


async def _tell(launcher: socket.socket, message: Model) -> None:
    with suppress(ConnectionError):  # disconnected: its enclave is stopped for that, and there is nobody to notify
        await asyncio.get_running_loop().sock_sendall(launcher, pack(message))


@contextmanager
def _only_one(state_dir: Path) -> Iterator[None]:
    """Lock a machine: two daemons would be two machines with one identity. Raises Refusal `daemon.running`."""
    try:
        lock = os.open(state_dir / "daemon.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise Refusal.because(
            "file.read", str(state_dir), expected="a machine's folder", found=error.strerror, action="create it first"
        ) from None
    try:
        _hold(lock, state_dir)
        yield
    finally:
        os.close(lock)


def _hold(lock: int, state_dir: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Refusal.because(
            "daemon.running",
            str(state_dir),
            expected="a machine without a running daemon",
            found="another daemon that runs it",
            action="stop the other daemon first",
        ) from None
