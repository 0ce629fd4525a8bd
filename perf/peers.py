"""Other WireGuard programs, to be measured beside ours: both ends the same program, set up with wg(8) and ip(8)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterable, Mapping

from contenders import HOST_LENGTH, INNER, PORT, KeyPair, endpoint, key_pair, other_end
from rig import CONTROL_SOCKETS, ENDS, PREFIX_LENGTH, Process, Rig, RigError, ip, wait_until

# Arguments before the name of the interface, and the environment, that keep each in the foreground.
PROGRAMS: Mapping[str, tuple[str, tuple[str, ...], Mapping[str, str]]] = {
    "wireguard-go": ("wireguard-go", ("-f",), {"WG_PROCESS_FOREGROUND": "1"}),
    "boringtun": ("boringtun-cli", ("-f", "--disable-drop-privileges"), {}),
}
TREE = Path(__file__).resolve().parent.parent


def find(name: str) -> Path | None:
    """A peer's program: on PATH, or where `scripts/demo --peers` and `cargo install` put it."""
    program = PROGRAMS[name][0]
    cargo_home = Path(os.environ.get("CARGO_HOME", Path.home() / ".cargo"))
    folders = [os.environ.get("PATH", os.defpath), "/usr/sbin", TREE / "target" / "peers" / "bin", cargo_home / "bin"]
    found = shutil.which(program, path=os.pathsep.join(map(str, folders)))
    return Path(found) if found else None


def peer(name: str, mtu: int, outer: int, program: Path | None = None) -> WireGuardProgram:
    """One of PROGRAMS, ready to start; `program` to measure another build than the one installed.

    Raises RigError if there is none.
    """
    if name not in PROGRAMS:
        raise RigError(f"no peer is called {name!r}; there are {', '.join(PROGRAMS)}")
    path = program or find(name)
    if path is None:
        raise RigError(f"{PROGRAMS[name][0]} is not installed; `scripts/demo --peers` installs it, or leave out --peers {name}")
    _, arguments, environment = PROGRAMS[name]
    return WireGuardProgram(name, path, arguments, environment, mtu, outer)


def versions(names: Iterable[str]) -> dict[str, str]:
    """What each says it is, or that it does not; `names` as the operator gave them, NAME or NAME=PATH."""
    said = {}
    for name, _, path in (each.partition("=") for each in names):
        program = Path(path) if path else find(name) if name in PROGRAMS else None
        argv = [str(program), "--version"]
        output = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=10).stdout if program else ""
        numbers = re.search(r"\d+(?:\.\d+)+\S*", output)
        said[name] = numbers.group() if numbers else "of unknown version"
    return said


def configuration(end: str, outer: int, keys: Mapping[str, KeyPair]) -> str:
    """What `wg setconf` reads."""
    other = other_end(end)
    allowed = ", ".join(f"{INNER[other, family]}/{length}" for family, length in HOST_LENGTH.items())
    return (f"[Interface]\nPrivateKey = {keys[end].private.read_text().strip()}\nListenPort = {PORT}\n"
            f"[Peer]\nPublicKey = {keys[other].public}\nEndpoint = {endpoint(other, outer)}\nAllowedIPs = {allowed}\n")


@dataclass(frozen=True)
class WireGuardProgram:
    """A userspace WireGuard that makes its interface itself and listens for wg(8)."""

    label: str
    program: Path
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    mtu: int = 1420
    outer: int = 4
    encrypted: bool = True

    def address(self, end: str, family: int) -> str:
        return INNER[end, family]

    def start(self, rig: Rig) -> list[Process]:
        keys = {end: key_pair(rig, end) for end in ENDS}
        processes = [rig.start(end, [str(self.program), *self.arguments, rig.interface(end)], self.environment) for end in ENDS]
        for end, process in zip(ENDS, processes):
            control = CONTROL_SOCKETS / f"{rig.interface(end)}.sock"
            wait_until(control.exists, [process], 10.0, f"{process.name} made no {control}")
            self._set_up(rig, end, keys)
        for family in PREFIX_LENGTH:
            rig.wait_until_reachable(self.address("b", family), processes)
        return processes

    def _set_up(self, rig: Rig, end: str, keys: Mapping[str, KeyPair]) -> None:
        name = rig.interface(end)
        rig.run(end, ["wg", "setconf", name, str(rig.write(f"wg-{end}.conf", configuration(end, self.outer, keys)))])
        for family, length in PREFIX_LENGTH.items():
            nodad = ["nodad"] if family == 6 else []
            ip("-n", rig.namespace(end), "address", "add", f"{INNER[end, family]}/{length}", "dev", name, *nodad)
        ip("-n", rig.namespace(end), "link", "set", name, "mtu", str(self.mtu), "up")

    def stop(self, processes: list[Process]) -> list[dict[str, int]]:
        """Ends both; they print no counters."""
        for process in processes:
            process.stop()
        # Not all remove it themselves.
        for control in CONTROL_SOCKETS.glob(f"uvpn[ab]{os.getpid()}.sock"):
            control.unlink(missing_ok=True)
        return []
