"""Ask the simulated platform's daemon to launch an enclave, and stay until it ends: `attestgate host run` and the like.

The enclave lives as long as its launcher: when this process ends for any reason, the daemon stops the enclave. A SIGHUP
to it reaches the enclave.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from attestgate.enclave.api import EnclaveError
from attestgate.enclave.manifest import read_manifest
from attestgate.enclave.simulated.frames import MAX_FRAME, RELOAD, Exited, Launch, LaunchAnswer
from attestgate.schemas.base import M, Refusal, pack, unpack


def launch(
    socket_path: Path,
    manifest: Path,
    code_root: Path,
    measured: Path | None,
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    outputs: tuple[int, int] = (1, 2),
) -> int:
    """Run an enclave to its end; its exit status, negative for a signal.

    `outputs` are the descriptors of its standard output and error. Of the environment (by default this process's) only
    what the manifest admits is passed.
    Raises Refusal (`file.*`, `measure.*`, `message.*`), EnclaveError without a daemon.
    """
    admitted, _ = read_manifest(manifest)
    request = Launch(
        manifest=str(manifest.absolute()),
        code_root=str(code_root.absolute()),
        measured=str(measured.absolute()) if measured else None,
        directory=str(Path.cwd()),
        arguments=list(arguments),
        environment=admitted.passed(os.environ if environment is None else environment),
    )
    sys.stdout.flush()
    sys.stderr.flush()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as daemon:
        try:
            daemon.connect(str(socket_path))
            socket.send_fds(daemon, [pack(request)], outputs)
        except OSError as error:
            raise EnclaveError(f"no simulated platform at {socket_path}: {error.strerror}; start its daemon") from error
        answer = _receive(daemon, LaunchAnswer)
        if answer.identity is None:
            raise Refusal(*answer.refused)
        with _sighup_passed_on(daemon):
            return _until_exit(daemon)


@contextmanager
def _sighup_passed_on(daemon: socket.socket) -> Iterator[None]:
    """Within, a SIGHUP is forwarded to the enclave. Only the main thread handles signals; others change nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def pass_on(*_: object) -> None:
        with suppress(OSError):  # a daemon that is gone is noticed where its answer is read
            daemon.send(RELOAD)

    before = signal.signal(signal.SIGHUP, pass_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def _until_exit(daemon: socket.socket) -> int:
    try:
        exited = _receive(daemon, Exited)
    except KeyboardInterrupt:
        daemon.shutdown(
            socket.SHUT_WR
        )  # the daemon stops the enclave, then confirms: nothing is left running when we exit
        _receive(daemon, Exited)
        raise
    if exited.refused:
        raise Refusal(*exited.refused)
    return exited.status


def _receive(daemon: socket.socket, kind: type[M]) -> M:
    try:
        frame = daemon.recv(MAX_FRAME)
    except OSError as error:
        raise EnclaveError(f"the simulated platform is gone: {error.strerror}") from error
    if not frame:
        raise EnclaveError("the simulated platform stopped")
    return unpack(kind, frame, limit=MAX_FRAME)
