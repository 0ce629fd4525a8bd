"""The scenario matrix: flows × MTU × direction × inner family × offload, and the datagram sizes of UDP.

The driver and the build are contenders, not scenarios: they are compared within one round.

In the scenarios "rate", small packets come from blast.py, many per system call, at the highest rate that arrives. In the
others they come from iperf3, one system call each: some 400,000 a second on one core, however fast the tunnel is.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import product
from typing import Iterable, Sequence

from measure import Traffic
from parse import AeadCost

# Everything the product can switch off, in the words of --disable.
ALL_OFFLOADS = ("tso", "uso", "gso", "gro")
# What WireGuard over IPv6 adds: 40 + 8 + 32. The same in plain mode, so that both carry equal segments.
OUTER_BYTES = 80
# IP, and TCP with timestamps.
TCP_HEADER_BYTES = {4: 52, 6: 72}


@dataclass(frozen=True)
class Scenario:
    """One line of the matrix."""

    name: str
    traffic: Traffic
    underlay_mtu: int = 1500
    offload: bool = True

    @property
    def tunnel_mtu(self) -> int:
        return self.underlay_mtu - OUTER_BYTES

    @property
    def sealed_payload_bytes(self) -> int:
        """Of a full packet, the bytes that iperf3 counts; 0 where packets are not of the length that seal_open measures."""
        if self.traffic.protocol != "tcp" or self.tunnel_mtu != AeadCost.PACKET_BYTES:
            return 0
        return self.tunnel_mtu - TCP_HEADER_BYTES[self.traffic.family]

    @property
    def disable(self) -> tuple[str, ...]:
        return () if self.offload else ALL_OFFLOADS


def matrix() -> dict[str, Scenario]:
    """Every scenario there is, by name."""
    scenarios = [
        Scenario(f"tcp{family}-{flows}flow-{direction}-mtu{mtu}{'' if offload else '-nooffload'}",
                 Traffic(flows=flows, direction=direction, family=family), mtu, offload)
        for flows, family, direction, mtu, offload in product(
            (1, 4, 16), (4, 6), ("forward", "reverse", "bidir"), (1500, 9000), (True, False))
    ]
    scenarios += [
        Scenario(f"udp{family}-{flows}flow-{size}B{'' if offload else '-nooffload'}",
                 Traffic("udp", flows=flows, family=family, datagram_bytes=size), offload=offload)
        for flows, family, size, offload in product((1, 4), (4, 6), (64, 512, 1372), (True, False))
    ]
    scenarios += [
        Scenario(f"udp4-{'' if flows == 1 else f'{flows}flow-'}64B-rate", Traffic("rate", flows=flows, datagram_bytes=64))
        for flows in (1, 4)
    ]
    # At a rate everybody manages: the same packets for each contender, so only the cost differs.
    scenarios += [
        Scenario("udp4-64B-paced", Traffic("udp", datagram_bytes=64, rate="20M")),
        Scenario("udp4-1372B-paced", Traffic("udp", rate="500M")),
        Scenario("ping-idle", Traffic("udp", datagram_bytes=64, rate="1k", ping=True)),
        Scenario("ping-under-tcp", Traffic(ping=True)),
        Scenario("ping-under-udp", Traffic("udp", rate="500M", ping=True)),
    ]
    return {scenario.name: scenario for scenario in scenarios}


# What one runs without asking for more: the goals of the project, in a few minutes.
DEFAULT = (
    "tcp4-1flow-forward-mtu1500", "tcp4-4flow-forward-mtu1500", "tcp6-1flow-forward-mtu1500",
    "tcp4-1flow-bidir-mtu1500", "tcp4-1flow-forward-mtu1500-nooffload",
    "udp4-1flow-1372B", "udp4-64B-rate", "udp4-64B-paced", "ping-under-tcp",
)


def choose(patterns: Sequence[str], scenarios: Iterable[Scenario]) -> list[Scenario]:
    """Those whose name matches a shell pattern, in the order of the matrix. Raises ValueError if one matches none."""
    scenarios = list(scenarios)
    for pattern in patterns:
        if not any(fnmatch(scenario.name, pattern) for scenario in scenarios):
            raise ValueError(f"no scenario is called {pattern!r}; --list shows them all")
    return [each for each in scenarios if any(fnmatch(each.name, pattern) for pattern in patterns)]
