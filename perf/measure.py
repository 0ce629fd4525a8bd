"""One measurement: one contender, one kind of traffic, a few seconds; what it moved and what it cost."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import parse
from contenders import Contender
from rig import Process, Rig, RigError, wait_until

IPERF_PORT = 5201
JIFFIES_PER_SECOND = os.sysconf("SC_CLK_TCK")
PING_INTERVAL_SECONDS = 0.005
SLOW_START_SECONDS = 0.3


@dataclass(frozen=True)
class Traffic:
    """What crosses. `forward` flows from end a to end b, `reverse` back, `bidir` both at once.

    `rate` is iperf3's -b per flow, "0" for as fast as it goes. With `ping` a series of pings runs beside the load.
    The protocol "rate" is no iperf3: UDP at the highest rate that arrives, forward (rate.py).
    """

    protocol: str = "tcp"
    flows: int = 1
    direction: str = "forward"
    family: int = 4
    datagram_bytes: int = 1372
    rate: str = "0"
    ping: bool = False

    def iperf3(self, address: str, seconds: int) -> list[str]:
        """The command of the client."""
        argv = ["iperf3", "-c", address, "-p", str(IPERF_PORT), "-t", str(seconds), "-P", str(self.flows), "-J"]
        if self.protocol == "udp":
            argv += ["-u", "-b", self.rate, "-l", str(self.datagram_bytes)]
        else:
            # The same everywhere: where BBR is the default its timers send from the other core, and the cable reorders.
            argv += ["-C", "cubic"]
        return argv + {"forward": [], "reverse": ["-R"], "bidir": ["--bidir"]}[self.direction]


@dataclass(frozen=True)
class Sample:
    """What one measurement found. `None` where the contender has no process or no counters of its own."""

    gbps: float
    cores_per_gbps: float
    """Whole-system CPU seconds, iperf3 and kernel included, per gigabit that arrived."""
    busy_cores: float
    """The same CPU time per second: what to compare where the rate is given."""
    retransmits: int
    lost_percent: float
    reordered: int
    stolen_seconds: float
    rtt_p50_ms: float | None = None
    rtt_p99_ms: float | None = None
    lost_pings_percent: float | None = None
    packets_per_second: float | None = None
    """Small packets that arrived, at the highest rate at which nearly all of them do."""
    process_cores: float | None = None
    rss_mib: float | None = None
    switches_per_second: float | None = None
    syscalls_per_segment: float | None = None
    dropped_packets: int | None = None
    residence_p99_us: float | None = None
    """How long the tunnel itself kept a packet, by its own histograms: the worst end and direction."""

    def metrics(self) -> dict[str, float]:
        """Those that have a value, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Usage:
    """What the contender's processes have used since they started."""

    jiffies: int
    switches: int
    rss_peak_kib: int


def usage(processes: list[Process]) -> Usage:
    """Adds up /proc over both ends; the resident set is that of the larger end."""
    jiffies, switches, rss = 0, 0, 0
    for process in processes:
        process.check_alive()
        proc = Path("/proc") / str(process.pid)
        jiffies += parse.process_jiffies((proc / "stat").read_text())
        rss = max(rss, parse.status_numbers((proc / "status").read_text())["VmHWM"])
        # The process's own status counts the switches of its main thread only.
        for task in (proc / "task").iterdir():
            status = parse.status_numbers((task / "status").read_text())
            switches += status["voluntary_ctxt_switches"] + status["nonvoluntary_ctxt_switches"]
    return Usage(jiffies, switches, rss)


@dataclass(frozen=True)
class CpuUse:
    """Seconds passed, core seconds not idle (the stolen ones included), core seconds stolen."""

    elapsed: float
    busy_seconds: float
    stolen_seconds: float


class CpuMeter:
    """CPU time the whole system uses from the making of the meter on."""

    def __init__(self) -> None:
        self._before, self._began = self._now(), time.monotonic()
        self._cores = os.cpu_count() or 1

    @staticmethod
    def _now() -> parse.CpuTimes:
        return parse.cpu_times(Path("/proc/stat").read_text())

    def read(self) -> CpuUse:
        """What was used so far."""
        after, elapsed = self._now(), time.monotonic() - self._began
        idle = (after.idle - self._before.idle) / JIFFIES_PER_SECOND
        stolen = (after.stolen - self._before.stolen) / JIFFIES_PER_SECOND
        return CpuUse(elapsed, max(elapsed * self._cores - idle, 0.0), stolen)


def busy_cores(seconds: float) -> float:
    """How many cores others keep busy while we do nothing: measurements on a busy machine mean little."""
    meter = CpuMeter()
    time.sleep(seconds)
    cpu = meter.read()
    return cpu.busy_seconds / cpu.elapsed


def measure(rig: Rig, contender: Contender, traffic: Traffic, seconds: int) -> Sample:
    """Starts the contender afresh, runs the traffic through it, stops it."""
    processes = contender.start(rig)
    address = contender.address("b", traffic.family)
    server = rig.start("b", ["iperf3", "-s", "-1", "-p", str(IPERF_PORT), "--forceflush"])
    wait_until(lambda: "Server listening" in server.output(), [server], 5.0, "the iperf3 server does not listen")
    ping = start_ping(rig, address, seconds) if traffic.ping else None

    used_before, meter, began = usage(processes), CpuMeter(), time.time()
    client = rig.start("a", traffic.iperf3(address, seconds))
    wait_until(lambda: client.popen.poll() is not None, processes, seconds + 15.0, "iperf3 did not end")
    cpu, used_after, ended = meter.read(), usage(processes), time.time()

    transfer = iperf3_report(client)
    server.stop()
    # Pings before the flow has grown and after it has gone would flatter the tunnel.
    pings = parse.pings(ping.stop()).within(began + SLOW_START_SECONDS, ended) if ping else None
    if pings and not pings.series_ms:
        raise RigError(f"{contender.label}: no ping came back under load")
    return Sample(
        gbps=transfer.gbps,
        cores_per_gbps=cpu.busy_seconds / (transfer.received_bytes * 8 / 1e9),
        busy_cores=cpu.busy_seconds / cpu.elapsed,
        retransmits=transfer.retransmits,
        lost_percent=transfer.lost_percent,
        reordered=transfer.reordered,
        stolen_seconds=cpu.stolen_seconds,
        rtt_p50_ms=parse.percentile(pings.series_ms, 50) if pings else None,
        rtt_p99_ms=parse.percentile(pings.series_ms, 99) if pings else None,
        lost_pings_percent=pings.lost_percent if pings else None,
        **process_figures(used_before, used_after, cpu.elapsed, contender.stop(processes)),
    )


def process_figures(before: Usage, after: Usage, elapsed: float, totals: list[dict[str, int]]) -> dict[str, Any]:
    """What a sample says of the contender's processes; nothing if it has none, less if they count nothing themselves."""
    if not after.rss_peak_kib:
        return {}
    counted = [each for each in totals if each]
    dropped = sum(value for each in counted for name, value in each.items() if name.startswith("dropped_"))
    return {
        "process_cores": (after.jiffies - before.jiffies) / JIFFIES_PER_SECOND / elapsed,
        "rss_mib": after.rss_peak_kib / 1024,
        "switches_per_second": (after.switches - before.switches) / elapsed,
        "syscalls_per_segment": parse.syscalls_per_segment(counted),
        "dropped_packets": dropped if counted else None,
        "residence_p99_us": parse.residence_p99_us(counted),
    }


def start_ping(rig: Rig, address: str, seconds: int) -> Process:
    """Pings until stopped, at the latest a little after the load has ended. The kernel takes the time of the answers."""
    return rig.start("a", ["ping", "-n", "-D", "-i", str(PING_INTERVAL_SECONDS), "-w", str(seconds + 1), address])


def iperf3_report(client: Process) -> parse.Transfer:
    """What the client says it moved."""
    output = client.output()
    try:
        return parse.transfer(parse.iperf3_report(output))
    except (ValueError, KeyError, RuntimeError) as error:
        raise RigError(f"{client.name}: {error}\n{output[-500:]}") from error
    finally:
        client.stop()
