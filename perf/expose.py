#!/usr/bin/env python3
"""Measures `uringvpn local` and `uringvpn server` beside bore, alternating within each round, on the loopback of a network
namespace: one stream, requests on many connections, the first byte of a new connection, and memory of idle ones.

CPU and memory are those of the two programs of the contender; the service (nginx) and the visitors (iperf3, wrk) are not
included. Prints one line per contender and measurement, the median of the rounds, and writes everything found as JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import shutil
import socket
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Callable

from measure import JIFFIES_PER_SECOND
from rig import Process, Rig, RigError, wait_until

HOST = "127.0.0.1"
SERVICE_PORT, IPERF_PORT, RELAY_PORT = 8000, 5201, 8100
FIRST_BYTES = 200
# linux/sched.h
CLONE_NEWNET = 0x40000000
# A page of twelve bytes, as cheap as a web server can make it.
NGINX = f"""
daemon off; worker_processes 1; pid DIR/pid; error_log DIR/log;
events {{ worker_connections 20000; }}
http {{
    access_log off; keepalive_requests 100000000;
    client_body_temp_path DIR/a; proxy_temp_path DIR/b; fastcgi_temp_path DIR/c; uwsgi_temp_path DIR/d; scgi_temp_path DIR/e;
    server {{ listen {HOST}:{SERVICE_PORT} backlog=4096; location / {{ return 200 "hello, world"; }} }}
}}
"""


# One thread was as fast as two on the two cores of the rig.
HAPROXY = f"""
global
    nbthread 1
    maxconn 4000
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
listen relay
    bind {HOST}:{RELAY_PORT}
    server service SERVICE
"""


def start_service(rig: Rig, directory: Path) -> Process:
    """The web server behind all contenders."""
    nginx = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if nginx is None:
        raise RigError("nginx is missing (package nginx-light)")
    config = directory / "nginx.conf"
    config.write_text(NGINX.replace("DIR", str(directory)))
    service = rig.start("b", [nginx, "-c", str(config)])
    # It writes its number when it listens.
    wait_until((directory / "pid").exists, [service], 20.0, "nginx does not start")
    return service


@dataclass(frozen=True)
class Contender:
    """One way to expose a port: how both programs are started, and what the client says when the port is public."""

    label: str
    program: str
    options: tuple[str, ...] = ()
    client_options: tuple[str, ...] = ()

    def start(self, rig: Rig, local_port: int) -> tuple[list[Process], int]:
        """Both programs, and the public port of `local_port`."""
        server = rig.start("b", [self.program, "server", *self.options], {"RUST_LOG": "info"})
        ready = ("waiting for clients", "server listening")
        wait_until(lambda: any(text in server.output() for text in ready), [server], 20.0, "the server does not start")
        local = [self.program, "local", str(local_port), "--local-host", HOST, "--to", HOST, *self.options, *self.client_options]
        client = rig.start("b", local, {"RUST_LOG": "info"})
        public = re.compile(rf"listening at {HOST}:(\d+)")
        wait_until(lambda: public.search(client.output()) is not None, [server, client], 20.0, "no public port")
        found = public.search(client.output())
        assert found is not None
        if "--mux" in self.client_options:
            shared = "share one connection"
            wait_until(lambda: shared in server.output(), [server, client], 20.0, "visitors share no connection")
        return [server, client], int(found.group(1))


@dataclass(frozen=True)
class OneRelay(Contender):
    """One TCP relay where the others have two programs: what can be reached at all by relaying in user space."""

    def start(self, rig: Rig, local_port: int) -> tuple[list[Process], int]:
        """HAProxy, and the port at which it listens."""
        config = Path(self.options[0]) / "haproxy.cfg"
        config.write_text(HAPROXY.replace("SERVICE", f"{HOST}:{local_port}"))
        relay = rig.start("b", [self.program, "-db", "-f", str(config)])
        wait_until(lambda: listens(RELAY_PORT), [relay], 20.0, "HAProxy does not start")
        return [relay], RELAY_PORT


def listens(port: int) -> bool:
    """Whether somebody accepts connections there."""
    with closing(socket.socket()) as visitor:
        return visitor.connect_ex((HOST, port)) == 0


def cpu_seconds(processes: list[Process]) -> float:
    """User and system time of the processes so far."""
    fields = [Path(f"/proc/{process.pid}/stat").read_text().rsplit(") ", 1)[1].split() for process in processes]
    return sum(int(stat[11]) + int(stat[12]) for stat in fields) / JIFFIES_PER_SECOND


def resident_bytes(processes: list[Process]) -> int:
    """Memory of the processes that is in RAM."""
    texts = [Path(f"/proc/{process.pid}/status").read_text() for process in processes]
    return sum(int(found.group(1)) * 1024 for text in texts if (found := re.search(r"VmRSS:\s+(\d+)", text)))


def one_stream(rig: Rig, programs: list[Process], port: int, seconds: int) -> dict[str, float]:
    """One TCP flow from the visitor to the service."""
    before = cpu_seconds(programs)
    argv = ["iperf3", "-c", HOST, "-p", str(port), "-t", str(seconds), "-J"]
    end = json.loads(rig.run("b", argv, timeout=seconds + 30.0))["end"]["sum_received"]
    return {"gbps": end["bits_per_second"] / 1e9, "cpu_s_per_gb": (cpu_seconds(programs) - before) / (end["bytes"] / 1e9)}


def requests(connections: int) -> Callable[[Rig, list[Process], int, int], dict[str, float]]:
    """HTTP requests, one after the other on each of so many connections."""

    def measure(rig: Rig, programs: list[Process], port: int, seconds: int) -> dict[str, float]:
        before = cpu_seconds(programs)
        argv = ["wrk", "-t", "1", "-c", str(connections), "-d", f"{seconds}s", f"http://{HOST}:{port}/"]
        found = re.search(r"(\d+) requests in .*?Requests/sec:\s+([\d.]+)", rig.run("b", argv, seconds + 60.0), re.DOTALL)
        if found is None:
            raise RigError("wrk said nothing of requests")
        cost = (cpu_seconds(programs) - before) / int(found.group(1)) * 1e6
        return {"requests_per_s": float(found.group(2)), "cpu_us_per_request": cost}

    return measure


def first_byte(_rig: Rig, _programs: list[Process], port: int, _seconds: int) -> dict[str, float]:
    """From the visitor's connect to the first byte of the answer, new connections one after the other."""
    times = []
    for _ in range(FIRST_BYTES):
        began = time.monotonic()
        with closing(socket.create_connection((HOST, port), 20)) as visitor:
            visitor.sendall(b"GET / HTTP/1.1\r\n\r\n")
            visitor.recv(1)
        times.append((time.monotonic() - began) * 1e3)
    times.sort()
    return {"p50_ms": median(times), "p99_ms": times[len(times) * 99 // 100]}


def idle(connections: int) -> Callable[[Rig, list[Process], int, int], dict[str, float]]:
    """Memory that so many connections cost while nothing happens on them."""

    def measure(_rig: Rig, programs: list[Process], port: int, _seconds: int) -> dict[str, float]:
        before, visitors = resident_bytes(programs), []
        try:
            for _ in range(connections):
                visitors.append(socket.create_connection((HOST, port), 20))
                visitors[-1].sendall(b"GET / HTTP/1.1\r\n\r\n")
                visitors[-1].recv(100)
            return {"kib_per_connection": (resident_bytes(programs) - before) / connections / 1024}
        finally:
            for visitor in visitors:
                visitor.close()

    return measure


MEASUREMENTS: dict[str, tuple[int, Callable[[Rig, list[Process], int, int], dict[str, float]]]] = {
    "one stream": (IPERF_PORT, one_stream),
    "100 connections": (SERVICE_PORT, requests(100)),
    "1000 connections": (SERVICE_PORT, requests(1000)),
    "first byte": (SERVICE_PORT, first_byte),
    "1000 idle": (SERVICE_PORT, idle(1000)),
}


def enter(rig: Rig, end: str) -> None:
    """This process itself opens its sockets at `end` from now on."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{rig.namespace(end)}", "rb") as namespace:
        if libc.setns(namespace.fileno(), CLONE_NEWNET) != 0:
            raise RigError(f"setns: {os.strerror(ctypes.get_errno())}")


def measure_all(rig: Rig, directory: Path, contenders: list[Contender], names: list[str], rounds: int, seconds: int) -> dict[str, dict[str, list[dict[str, float]]]]:
    """What each contender did, by measurement, round by round."""
    start_service(rig, directory)
    iperf = rig.start("b", ["iperf3", "-s", "-B", HOST, "-p", str(IPERF_PORT), "--forceflush"])
    wait_until(lambda: "listening" in iperf.output(), [iperf], 20.0, "iperf3 does not start")
    enter(rig, "b")
    found: dict[str, dict[str, list[dict[str, float]]]] = {name: {c.label: [] for c in contenders} for name in names}
    for number in range(rounds):
        for name, (local_port, measurement) in ((name, MEASUREMENTS[name]) for name in names):
            # Who comes first changes with every round.
            turn = number % len(contenders)
            for contender in contenders[turn:] + contenders[:turn]:
                programs, port = contender.start(rig, local_port)
                found[name][contender.label].append(measurement(rig, programs, port, seconds))
                for program in reversed(programs):
                    program.stop()
    return found


def table(found: dict[str, dict[str, list[dict[str, float]]]]) -> str:
    """The medians, a line per measurement and contender."""
    lines = []
    for name, by_contender in found.items():
        for label, samples in by_contender.items():
            values = "  ".join(f"{key} {median(s[key] for s in samples):.3f}" for key in samples[0])
            lines.append(f"{name:18} {label:16} {values}")
    return "\n".join(lines)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, required=True, help="the uringvpn to measure, a release build")
    parser.add_argument("--bore", default=shutil.which("bore"), help="the bore to measure beside it, if it is not in PATH")
    parser.add_argument("--haproxy", action="store_true", help="measure HAProxy too, one relay where the others have two programs")
    parser.add_argument("--only", nargs="+", choices=list(MEASUREMENTS), default=list(MEASUREMENTS), help="what to measure; all of it otherwise")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5, help="per measurement of a rate")
    parser.add_argument("--json", type=Path, help="where to write all that was found")
    arguments = parser.parse_args()
    ours = str(arguments.binary.resolve())
    contenders = [
        Contender("io_uring", ours, ("--io", "uring")),
        Contender("system calls", ours, ("--io", "syscall")),
        Contender("io_uring, mux", ours, ("--io", "uring"), ("--mux",)),
    ]
    if arguments.bore is not None:
        contenders.append(Contender("bore", str(Path(arguments.bore).resolve())))
    try:
        with Rig() as rig, TemporaryDirectory() as directory:
            # Its worker is another user.
            os.chmod(directory, 0o755)
            if arguments.haproxy:
                program = shutil.which("haproxy", path=os.environ.get("PATH", "") + ":/usr/sbin")
                if program is None:
                    raise RigError("haproxy is missing (package haproxy)")
                contenders.append(OneRelay("one HAProxy", program, (directory,)))
            found = measure_all(rig, Path(directory), contenders, arguments.only, arguments.rounds, arguments.seconds)
    except RigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table(found))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
