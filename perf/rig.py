"""Two hosts on one machine: network namespaces joined by a veth pair, and the processes we run in them.

    uvpn-a-PID                          uvpn-b-PID
    ┌───────────────────────┐           ┌───────────────────────┐
    │ iperf3 client, ping   │           │          iperf3 server│
    │ 10.77.0.1 fd77::1     │           │     10.77.0.2 fd77::2 │  a tunnel's inner addresses
    │      contender        │           │        contender      │
    │ 192.0.2.1 2001:db8::1 ├── veth0 ──┤ 192.0.2.2 2001:db8::2 │
    └───────────────────────┘           └───────────────────────┘

`Rig` is a context manager; whatever happens inside it, namespaces and processes are gone afterwards. A process dies
with us even if we are killed (PDEATHSIG), and namespaces of a killed run are swept by the next one. Needs root.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Callable, Mapping

ENDS = ("a", "b")
UNDERLAY = {("a", 4): "192.0.2.1", ("b", 4): "192.0.2.2", ("a", 6): "2001:db8::1", ("b", 6): "2001:db8::2"}
PREFIX_LENGTH = {4: 24, 6: 64}
STOP_SECONDS = 5.0
# Where WireGuard programs listen for wg(8). Files, so namespaces share them, and names of interfaces have to differ.
CONTROL_SOCKETS = Path("/var/run/wireguard")


class RigError(Exception):
    """The measurement cannot go on; the text is for the operator."""


@dataclass
class Process:
    """A program we started in one of the namespaces; its output collects in a file nobody has to read in time."""

    name: str
    popen: subprocess.Popen[bytes]
    log: IO[bytes]

    @property
    def pid(self) -> int:
        return self.popen.pid

    def output(self) -> str:
        """Everything printed so far."""
        return os.pread(self.log.fileno(), 1 << 26, 0).decode(errors="replace")

    def check_alive(self) -> None:
        """Raises RigError with the last words of a program that has ended."""
        if self.popen.poll() is not None:
            raise RigError(f"{self.name} ended with {self.popen.returncode}:\n{self.output()[-2000:]}")

    def stop(self) -> str:
        """Asks it to end, then makes it end; returns its output."""
        killed = False
        if self.popen.poll() is None:
            self.popen.terminate()
            try:
                self.popen.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait()
                killed = True
        output = self.output()
        self.log.close()
        if killed:
            print(f"warning: {self.name} did not end within {STOP_SECONDS} s of SIGTERM", file=sys.stderr)
        return output


class Rig:
    """The two namespaces and everything that runs in them."""

    def __init__(self) -> None:
        self._processes: list[Process] = []
        self._namespaces: list[str] = []
        # For keys and settings; only we can look into it.
        self._scratch = tempfile.TemporaryDirectory(prefix="uvpn-")
        self._old_sigterm: signal.Handlers | Callable[[int, FrameType | None], object] | int | None = None

    def __enter__(self) -> Rig:
        if os.geteuid() != 0:
            raise RigError("network namespaces need root; try again with sudo")
        # Being asked to end must clean up like an exception does.
        self._old_sigterm = signal.signal(signal.SIGTERM, _exit_on_signal)
        try:
            _sweep_killed_runs()
            self._set_up()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A second Ctrl-C must not leave half of it behind.
        old_sigint = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            for process in reversed(self._processes):
                if not process.log.closed:
                    process.stop()
            for namespace in self._namespaces:
                subprocess.run(["ip", "netns", "del", namespace], check=False, capture_output=True)
        finally:
            self._processes.clear()
            self._namespaces.clear()
            self._scratch.cleanup()
            signal.signal(signal.SIGINT, old_sigint)
            signal.signal(signal.SIGTERM, self._old_sigterm)

    def namespace(self, end: str) -> str:
        """The name of one end's namespace."""
        return f"uvpn-{end}-{os.getpid()}"

    def write(self, name: str, text: str) -> Path:
        """A file that lasts as long as the rig and that only we can read."""
        path = Path(self._scratch.name) / name
        path.touch(0o600)
        path.write_text(text)
        return path

    def interface(self, end: str) -> str:
        """The name of one end's tunnel, where it must differ from that of all others on this machine."""
        return f"uvpn{end}{os.getpid()}"

    def _set_up(self) -> None:
        for end in ENDS:
            self._namespaces.append(self.namespace(end))
            ip("netns", "add", self.namespace(end))
        ip("link", "add", "veth0", "netns", self.namespace("a"), "type", "veth",
           "peer", "name", "veth0", "netns", self.namespace("b"))
        for end in ENDS:
            # Round n must not start with what round n-1 learned about the path.
            self.run(end, ["sysctl", "-qw", "net.ipv4.tcp_no_metrics_save=1"])
            ip("-n", self.namespace(end), "link", "set", "lo", "up")
            for family, length in PREFIX_LENGTH.items():
                nodad = ["nodad"] if family == 6 else []
                ip("-n", self.namespace(end), "address", "add", f"{UNDERLAY[end, family]}/{length}",
                   "dev", "veth0", *nodad)
            ip("-n", self.namespace(end), "link", "set", "veth0", "up")
        for family in PREFIX_LENGTH:
            self.wait_until_reachable(UNDERLAY["b", family], [])

    def set_underlay_mtu(self, mtu: int) -> None:
        """The MTU of the wire between the two hosts."""
        for end in ENDS:
            ip("-n", self.namespace(end), "link", "set", "veth0", "mtu", str(mtu))

    def command(self, end: str, argv: list[str]) -> list[str]:
        """`argv` to run at one end; the process id stays ours, and dies with us."""
        return ["ip", "netns", "exec", self.namespace(end), "setpriv", "--pdeathsig", "KILL", *argv]

    def run(self, end: str, argv: list[str], timeout: float = 30.0) -> str:
        """Runs a short program to its end and returns its standard output."""
        return _checked(self.command(end, argv), timeout)

    def start(self, end: str, argv: list[str], settings: Mapping[str, str] | None = None) -> Process:
        """Starts a program that stays, with `settings` in its environment; `stop` it, or leaving the rig will."""
        log = tempfile.TemporaryFile(prefix="uvpn-")
        # Tunnels read options from URINGVPN_… and WG_…: the operator's must not change what we measure.
        env = {name: value for name, value in os.environ.items() if not name.startswith(("URINGVPN_", "WG_"))}
        popen = subprocess.Popen(self.command(end, argv), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                 env=env | dict(settings or {}))
        process = Process(f"{Path(argv[0]).name} at end {end}", popen, log)
        self._processes.append(process)
        return process

    def wait_until_reachable(self, address: str, needed: list[Process], seconds: float = 10.0) -> None:
        """Returns when end a can ping `address`; fails as soon as one of the `needed` processes has ended."""
        wait_until(
            lambda: subprocess.run(
                self.command("a", ["ping", "-n", "-q", "-c", "1", "-W", "0.2", address]),
                check=False, capture_output=True, timeout=5,
            ).returncode == 0,
            needed, seconds, f"no answer from {address}",
        )


def wait_until(ready: Callable[[], bool], needed: list[Process], seconds: float, complaint: str) -> None:
    """Polls `ready`; the only place that sleeps."""
    deadline = time.monotonic() + seconds
    while not ready():
        for process in needed:
            process.check_alive()
        if time.monotonic() > deadline:
            outputs = "\n".join(f"{process.name}:\n{process.output()[-1000:]}" for process in needed)
            raise RigError(f"{complaint} after {seconds:.0f} s\n{outputs}")
        time.sleep(0.02)


def ip(*argv: str) -> str:
    """Runs ip(8)."""
    return _checked(["ip", *argv], 10.0)


def _checked(argv: list[str], timeout: float) -> str:
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=timeout)
    if done.returncode != 0:
        raise RigError(f"{' '.join(argv)}: exit code {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _exit_on_signal(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _sweep_killed_runs() -> None:
    """Removes namespaces and control sockets of rigs whose process no longer exists."""
    for socket in CONTROL_SOCKETS.glob("uvpn[ab]*.sock"):
        if not Path(f"/proc/{socket.stem[5:]}").exists():
            socket.unlink(missing_ok=True)
    for name in re.findall(r"^(uvpn-[ab]-\d+)\b", ip("netns", "list"), re.MULTILINE):
        if not Path(f"/proc/{name.rpartition('-')[2]}").exists():
            ip("netns", "del", name)
