"""The socket that launchers connect to: where it is, who may connect, and what a request must hold."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attestgate.enclave.simulated.frames import MAX_FRAME, Launch
from attestgate.schemas.base import Refusal, unpack

_SOCKET_PATH_MAX = 107
"""Bytes, unix(7)."""
_UCRED = struct.Struct("3i")
"""struct ucred: pid, uid, gid."""


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """The launchers' socket, mode 0600, removed at the end. Raises Refusal `daemon.socket`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.setblocking(False)
        try:
            if len(os.fsencode(path)) > _SOCKET_PATH_MAX:
                raise OSError(f"a path of more than {_SOCKET_PATH_MAX} bytes")
            _remove_if_dead(path)
            listener.bind(str(path))
            path.chmod(0o600)  # nobody can connect before listen()
            listener.listen()
        except OSError as error:
            raise Refusal.because(
                "daemon.socket",
                str(path),
                expected="a free path for a socket",
                found=error,
                action="choose another path, or stop the process that listens there",
            ) from None
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


def _remove_if_dead(path: Path) -> None:
    """Remove the socket of a killed daemon. A live one, or another kind of file, stays: then bind() fails."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()


def check_peer(launcher: socket.socket) -> None:
    """Raises Refusal `daemon.peer` for another user's process (SO_PEERCRED, unix(7))."""
    _, uid, _ = _UCRED.unpack(launcher.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    if uid != os.getuid():
        raise Refusal.because(
            "daemon.peer", "uid", expected=os.getuid(), found=uid, action="launch as the user that the daemon runs as"
        )


async def receive_launch(launcher: socket.socket) -> tuple[Launch, tuple[int, int]]:
    """A launch request and the descriptors of its outputs. Raises Refusal (`message.*`, `daemon.launch`)."""
    launcher.setblocking(False)
    await _readable(launcher)
    frame, descriptors, flags, _ = socket.recv_fds(launcher, MAX_FRAME, 2, socket.MSG_CMSG_CLOEXEC)
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or len(descriptors) != 2:
            raise Refusal.because(
                "daemon.launch",
                "request",
                expected=f"at most {MAX_FRAME} bytes and two descriptors",
                found=f"more bytes, or {len(descriptors)} descriptors",
                action="shorten the arguments and environment",
            )
        return unpack(Launch, frame, limit=MAX_FRAME), (descriptors[0], descriptors[1])
    except Refusal:
        for descriptor in descriptors:
            os.close(descriptor)
        raise


async def _readable(connection: socket.socket) -> None:
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(connection, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(connection)
