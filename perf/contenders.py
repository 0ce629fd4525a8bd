"""What we measure: ways to get a packet from one namespace to the other.

A contender knows its inner addresses, how to start itself at both ends, and what its own counters say afterwards.
To add one (wireguard-go, boringtun), write a class with the four members of `Contender` and name it in `run.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import parse
from rig import ENDS, PREFIX_LENGTH, UNDERLAY, Process, Rig

PORT = 51820
INNER = {("a", 4): "10.77.0.1", ("b", 4): "10.77.0.2", ("a", 6): "fd77::1", ("b", 6): "fd77::2"}
HOST_LENGTH = {4: 32, 6: 128}


class Contender(Protocol):
    """One way across. `start` returns when packets cross; `stop` returns the counters of each end, if it has any."""

    @property
    def label(self) -> str:
        """What the tables call it."""

    def address(self, end: str, family: int) -> str:
        """The address iperf3 uses at `end`."""

    def start(self, rig: Rig) -> list[Process]:
        """Starts both ends and waits until they answer; returns the processes to measure."""

    def stop(self, processes: list[Process]) -> list[dict[str, int]]:
        """Ends them."""


@dataclass(frozen=True)
class Direct:
    """The veth pair itself: the control of every experiment."""

    label: str = "direct"

    def address(self, end: str, family: int) -> str:
        return UNDERLAY[end, family]

    def start(self, rig: Rig) -> list[Process]:
        for family in PREFIX_LENGTH:
            rig.wait_until_reachable(self.address("b", family), [])
        return []

    def stop(self, processes: list[Process]) -> list[dict[str, int]]:
        return []


@dataclass(frozen=True)
class Uringvpn:
    """Our tunnel in plaintext mode, one process at each end."""

    label: str
    binary: Path
    driver: str = "auto"
    queues: int = 2
    mtu: int = 1420
    outer: int = 4
    disable: tuple[str, ...] = field(default=())

    def address(self, end: str, family: int) -> str:
        return INNER[end, family]

    def command(self, end: str) -> list[str]:
        """The whole command line of one end; the only place that knows the options."""
        other = "b" if end == "a" else "a"
        host = UNDERLAY[other, self.outer]
        host = f"[{host}]" if self.outer == 6 else host
        allowed = "+".join(f"{INNER[other, family]}/{length}" for family, length in HOST_LENGTH.items())
        argv = [str(self.binary), "--foreground", "--plaintext", "--tun", f"uvpn{end}", "--queues", str(self.queues)]
        for family, length in PREFIX_LENGTH.items():
            argv += ["--address", f"{INNER[end, family]}/{length}"]
        argv += ["--listen", str(PORT), "--peer", f"{host}:{PORT},allowed-ips={allowed}"]
        argv += ["--mtu", str(self.mtu), "--io", self.driver, "--stats-interval", "1"]
        if self.disable:
            argv += ["--disable", ",".join(self.disable)]
        return argv

    def start(self, rig: Rig) -> list[Process]:
        processes = [rig.start(end, self.command(end)) for end in ENDS]
        for family in PREFIX_LENGTH:
            rig.wait_until_reachable(self.address("b", family), processes)
        return processes

    def stop(self, processes: list[Process]) -> list[dict[str, int]]:
        return [parse.product_totals(process.stop()) for process in processes]
