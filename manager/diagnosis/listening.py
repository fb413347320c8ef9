"""Who listens on which TCP port of this machine, as the kernel says (proc(5), /proc/net/tcp and tcp6)."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

_LISTEN = "0A"


def listening(proc: Path = Path("/proc/net")) -> Iterator[tuple[IPv4Address | IPv6Address, int]]:
    """Each address and port that some process listens on; `0.0.0.0` and `::` are all addresses."""
    for name in ("tcp", "tcp6"):
        try:
            lines = (proc / name).read_text(encoding="ascii").splitlines()[1:]
        except FileNotFoundError:
            continue  # a kernel without IPv6
        for line in lines:
            local, _, state = line.split()[1:4]
            if state == _LISTEN:
                address, port = local.split(":")
                yield _address(address), int(port, 16)


def _address(text: str) -> IPv4Address | IPv6Address:
    """Words of 32 bits, each printed as the machine's own integer."""
    words = [int(text[i : i + 8], 16) for i in range(0, len(text), 8)]
    family = socket.AF_INET if len(words) == 1 else socket.AF_INET6
    found = ip_address(socket.inet_ntop(family, struct.pack(f"={len(words)}I", *words)))
    return found.ipv4_mapped or found if isinstance(found, IPv6Address) else found
