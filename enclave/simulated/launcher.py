"""Ask the simulated platform's daemon to launch an enclave, and stay until it ends: `attestgate host run` and the like.

The launcher's life is the enclave's: when this process ends in whatever way, the daemon ends the enclave.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from enclave.api import EnclaveError
from enclave.manifest import read_manifest
from enclave.simulated.frames import MAX_FRAME, Exited, Launch, LaunchAnswer
from schemas.base import M, Refusal, pack, unpack


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
    what the manifest admits comes through.
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
        return _until_exit(daemon)


def _until_exit(daemon: socket.socket) -> int:
    try:
        exited = _receive(daemon, Exited)
    except KeyboardInterrupt:
        daemon.shutdown(socket.SHUT_WR)  # the daemon ends the enclave, then says so: nothing is left when we are gone
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
