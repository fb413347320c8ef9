"""What the kernel lets one machine ask of nats-server: nftables rules that stand in front of its port.

nats-server has no limit of bytes, messages or connections a second, and each of its streams takes in what comes for it
in one queue: without these rules, one credential that sends as fast as it can keeps everybody else waiting. The rules
count by source address, before the server reads a byte: they hold for any credential, for none, and under TLS.

An IPv4 address is one sender; of IPv6, a /64, since whoever has one address there has all of them. What is over a limit
is dropped: TCP sends it again, later and more slowly. Syntax: nft(8).
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network

Network = IPv4Network | IPv6Network

TABLE = "attestgate_bus"
BYTES = "512 kbytes/second burst 1 mbytes"
"""What a machine may send: a list of 8 MiB takes 13 seconds. Its bucket holds a second's worth and the burst."""
CONNECTIONS = 256
"""How many connections a machine may have: an agent has one."""
OPENED = f"8/second burst {CONNECTIONS} packets"
"""How many connections a machine may open (each begins with one packet): after an outage, all it may have at once."""
MACHINES = 65_535
"""How many machines are counted at once; while so many are, another one is refused."""
FORGOTTEN = "1m"
"""After how long without a packet a machine is no longer counted: longer than any limit takes to recover."""

_RULES = """\
# What one machine may ask of nats-server. Load this before nats-server starts: nft -f FILE
table inet {table}
delete table inet {table}
table inet {table} {{
    # Managers, on whose behalf nothing is limited.
    set unlimited4 {{ type ipv4_addr; flags interval; {unlimited4}}}
    set unlimited6 {{ type ipv6_addr; flags interval; {unlimited6}}}
{sets}
    chain input {{
        type filter hook input priority filter; policy accept;
        tcp dport {{ {ports} }} jump bus
    }}
    chain bus {{
        ip saddr @unlimited4 accept
        ip6 saddr @unlimited6 accept
        ct state invalid drop
        meta nfproto ipv4 jump bus4
        meta nfproto ipv6 jump bus6
    }}
{chains}}}
"""
_SETS = """\
    set connected{family} {{ type {type}; flags dynamic; size {machines}; }}
    set opened{family} {{ type {type}; flags dynamic,timeout; timeout {forgotten}; size {machines}; }}
    set sent{family} {{ type {type}; flags dynamic,timeout; timeout {forgotten}; size {machines}; }}
"""
# The limits of a full set match nothing; that a machine is in the set is therefore asked for separately.
_CHAIN = """\
    chain bus{family} {{
        ct state new add @connected{family} {{ {sender} ct count over {connections} }} reject with tcp reset
        ct state new {sender} != @connected{family} drop
        ct state new update @opened{family} {{ {sender} limit rate over {opened} }} drop
        ct state new {sender} != @opened{family} drop
        ct state established update @sent{family} {{ {sender} limit rate over {bytes} }} drop
        ct state established {sender} != @sent{family} drop
    }}
"""
_FAMILIES = (
    {"family": "4", "type": "ipv4_addr", "sender": "ip saddr"},
    {"family": "6", "type": "ipv6_addr", "sender": "ip6 saddr & ffff:ffff:ffff:ffff::"},
)


def rules(ports: Sequence[int], unlimited: Sequence[Network], machines: int = MACHINES) -> str:
    """The rules for nats-server's ports, as `nft -f` reads them: whatever the table held before is replaced.

    `unlimited` are the networks of the managers, and in a cluster of the other servers.
    """
    numbers = {
        "machines": machines,
        "forgotten": FORGOTTEN,
        "connections": CONNECTIONS,
        "opened": OPENED,
        "bytes": BYTES,
    }
    return _RULES.format(
        table=TABLE,
        ports=", ".join(map(str, ports)),
        unlimited4=_elements([network for network in unlimited if network.version == 4]),
        unlimited6=_elements([network for network in unlimited if network.version == 6]),
        sets="".join(_SETS.format(**family, **numbers) for family in _FAMILIES),
        chains="".join(_CHAIN.format(**family, **numbers) for family in _FAMILIES),
    )


def _elements(networks: Sequence[Network]) -> str:
    return f"elements = {{ {', '.join(map(str, networks))} }}; " if networks else ""
