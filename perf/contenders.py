"""What we measure: ways to get a packet from one namespace to the other.

A contender knows its inner addresses, how to start itself at both ends, and what its own counters say afterwards.
Other implementations of WireGuard are in peers.py. To add something else, write a class with the members of `Contender`
and name it in `run.py`.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Mapping, Protocol

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

    @property
    def encrypted(self) -> bool:
        """Whether every packet is sealed and opened, so that the limit of encryption applies."""

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
    encrypted: bool = False

    def address(self, end: str, family: int) -> str:
        return UNDERLAY[end, family]

    def start(self, rig: Rig) -> list[Process]:
        for family in PREFIX_LENGTH:
            rig.wait_until_reachable(self.address("b", family), [])
        return []

    def stop(self, processes: list[Process]) -> list[dict[str, int]]:
        return []


@dataclass(frozen=True)
class KeyPair:
    """A private key in a file, as programs want it, and its public key in base64."""

    private: Path
    public: str


def key_pair(rig: Rig, end: str) -> KeyPair:
    """A new pair for one end."""
    private = rig.run(end, ["wg", "genkey"])
    public = subprocess.run(["wg", "pubkey"], input=private, check=True, capture_output=True, text=True).stdout
    return KeyPair(rig.write(f"private-{end}", private), public.strip())


def endpoint(end: str, outer: int) -> str:
    """Where one end's datagrams arrive, over IPv4 or IPv6."""
    host = UNDERLAY[end, outer]
    return f"[{host}]:{PORT}" if outer == 6 else f"{host}:{PORT}"


def other_end(end: str) -> str:
    return "b" if end == "a" else "a"


@dataclass(frozen=True)
class Uringvpn:
    """Our tunnel, one process at each end; encrypted, or in plaintext mode to see what encryption costs."""

    label: str
    binary: Path
    driver: str = "auto"
    queues: int = 2
    mtu: int = 1420
    outer: int = 4
    disable: tuple[str, ...] = field(default=())
    encrypted: bool = True

    def address(self, end: str, family: int) -> str:
        return INNER[end, family]

    def command(self, end: str, keys: Mapping[str, KeyPair]) -> list[str]:
        """The whole command line of one end; the only place that knows the options."""
        other = other_end(end)
        allowed = "+".join(f"{INNER[other, family]}/{length}" for family, length in HOST_LENGTH.items())
        argv = [str(self.binary), "--foreground", "--tun", f"uvpn{end}", "--queues", str(self.queues)]
        argv += ["--private-key", str(keys[end].private)] if self.encrypted else ["--plaintext"]
        for family, length in PREFIX_LENGTH.items():
            argv += ["--address", f"{INNER[end, family]}/{length}"]
        peer = f"{keys[other].public}@" if self.encrypted else ""
        argv += ["--listen", str(PORT), "--peer", f"{peer}{endpoint(other, self.outer)},allowed-ips={allowed}"]
        argv += ["--mtu", str(self.mtu), "--io", self.driver, "--stats-interval", "1"]
        if self.disable:
            argv += ["--disable", ",".join(self.disable)]
        return argv

    def start(self, rig: Rig) -> list[Process]:
        keys = {end: key_pair(rig, end) for end in ENDS} if self.encrypted else {}
        processes = [rig.start(end, self.command(end, keys)) for end in ENDS]
        for family in PREFIX_LENGTH:
            rig.wait_until_reachable(self.address("b", family), processes)
        return processes

    def stop(self, processes: list[Process]) -> list[dict[str, int]]:
        return [parse.product_totals(process.stop()) for process in processes]
