"""Text in, numbers out: what iperf3, ping, /proc and the product print. Pure, so the tests need no root."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from statistics import median
from typing import Any, ClassVar, Iterable, Mapping, Sequence


@dataclass(frozen=True)
class Transfer:
    """What one iperf3 run moved. Bytes are those that arrived, in both directions together.

    Losses and reordering are known for UDP only, retransmits for TCP only; the others stay 0.
    """

    received_bytes: int
    seconds: float
    retransmits: int
    lost_percent: float
    reordered: int

    @property
    def gbps(self) -> float:
        """Inner payload that arrived, in gigabits per second."""
        return self.received_bytes * 8 / 1e9 / self.seconds


def iperf3_report(output: str) -> Any:
    """The JSON in what iperf3 printed; warnings may come before it."""
    return json.loads(output[output.find("{"):] if "{" in output else output)


def transfer(report: Mapping[str, Any]) -> Transfer:
    """Reads the JSON report of the iperf3 client (3.12 and later).

    Raises RuntimeError with iperf3's own words if the run failed.
    """
    if "error" in report:
        raise RuntimeError(report["error"])
    end = report["end"]
    directions = [suffix for suffix in ("", "_bidir_reverse") if "sum_received" + suffix in end]
    received = [end["sum_received" + suffix] for suffix in directions]
    sent = [end["sum_sent" + suffix] for suffix in directions]
    received_bytes = sum(each["bytes"] for each in received)
    if received_bytes == 0:
        raise RuntimeError("nothing arrived")
    expected = sum(each.get("packets", 0) for each in received)
    lost = sum(each.get("lost_packets", 0) for each in received)
    return Transfer(
        received_bytes=received_bytes,
        seconds=max(each["seconds"] for each in received),
        retransmits=sum(each.get("retransmits", 0) for each in sent),
        lost_percent=100.0 * lost / expected if expected else 0.0,
        reordered=sum(stream.get("udp", {}).get("out_of_order", 0) for stream in end["streams"]),
    )


@dataclass(frozen=True)
class Pings:
    """The answers to a series of pings: Unix time of arrival, sequence number, round trip in milliseconds."""

    answers: tuple[tuple[float, int, float], ...]

    def within(self, began: float, ended: float) -> Pings:
        """Those that arrived between two Unix times."""
        return Pings(tuple(answer for answer in self.answers if began <= answer[0] <= ended))

    @property
    def series_ms(self) -> list[float]:
        """Round-trip times in the order they were printed."""
        return [answer[2] for answer in self.answers]

    @property
    def lost_percent(self) -> float:
        """Of those sent between the first and the last that were answered."""
        numbers = {answer[1] for answer in self.answers}
        return 100.0 * (1 - len(numbers) / (max(numbers) - min(numbers) + 1)) if numbers else 100.0


def pings(output: str) -> Pings:
    """Reads what `ping -D` printed."""
    lines = re.findall(r"^\[([0-9.]+)\] .*icmp_seq=(\d+) .*time=([0-9.]+) ms$", output, re.MULTILINE)
    return Pings(tuple((float(at), int(number), float(ms)) for at, number, ms in lines))


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that `percent` of all values do not exceed (nearest rank)."""
    if not values:
        raise ValueError("percentile of nothing")
    ordered = sorted(values)
    rank = max(1, -(-len(ordered) * percent // 100))
    return ordered[int(rank) - 1]


@dataclass(frozen=True)
class CpuTimes:
    """Jiffies of all cores since boot. `stolen` was taken by the hypervisor: neither idle nor ours."""

    idle: int
    stolen: int


def cpu_times(proc_stat: str) -> CpuTimes:
    """Reads the first line of /proc/stat.

    Idle time (waiting for disks included), because the kernel measures it; busy time it usually samples, 250 times a
    second, and work that runs on a timer of its own, like iperf3 at a given rate, hides between the samples.
    """
    _user, _nice, _system, idle, iowait, _irq, _softirq, steal = map(int, proc_stat.split("\n", 1)[0].split()[1:9])
    return CpuTimes(idle=idle + iowait, stolen=steal)


def process_jiffies(proc_pid_stat: str) -> int:
    """User plus system jiffies of all threads, from /proc/PID/stat. The name may hold spaces and parentheses."""
    fields = proc_pid_stat.rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def status_numbers(proc_status: str) -> dict[str, int]:
    """The numeric lines of /proc/PID/status, by name: VmRSS and VmHWM in KiB, context switches, Threads."""
    return {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+)(?: kB)?$", proc_status, re.MULTILINE)}


def product_totals(stderr: str) -> dict[str, int]:
    """The numbers of the last line `totals: name=value …` that uringvpn prints when it ends; empty without one."""
    lines = re.findall(r"^totals: (.*)$", stderr, re.MULTILINE)
    if not lines:
        return {}
    return {name: int(value) for name, value in re.findall(r"(\w+)=(-?\d+)", lines[-1])}


def syscalls_per_segment(totals: Iterable[Mapping[str, int]]) -> float | None:
    """System calls of the data path per packet that entered a tunnel end from either side."""
    totals = [each for each in totals if each]
    segments = sum(each["out_packets"] + each["in_datagrams"] for each in totals)
    return sum(each["enters"] for each in totals) / segments if segments else None


def residence_p99_us(totals: Iterable[Mapping[str, int]]) -> float | None:
    """The largest of the 99th percentiles a tunnel printed for its own part of the latency."""
    names = ("outbound_latency_ns_p99", "inbound_latency_ns_p99")
    printed = [each[name] / 1e3 for each in totals for name in names if name in each]
    return max(printed, default=None)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range of the samples of one metric."""
    return {"median": median(values), "min": min(values), "max": max(values)}


@dataclass(frozen=True)
class AeadCost:
    """What encrypting and decrypting one packet of PACKET_BYTES takes, in nanoseconds of one core."""

    PACKET_BYTES: ClassVar[int] = 1420
    seal_ns: float
    open_ns: float

    def cores_per_gbps(self, payload_bytes: int) -> float:
        """One seal and one open for each packet, of whose bytes `payload_bytes` are counted as throughput."""
        packets_per_gigabit = 1e9 / 8 / payload_bytes
        return packets_per_gigabit * (self.seal_ns + self.open_ns) / 1e9


NANOSECONDS = {"ps": 1e-3, "ns": 1.0, "µs": 1e3, "us": 1e3, "ms": 1e6}


def aead_cost(criterion: str) -> AeadCost:
    """Reads what the benchmark seal_open printed: `seal_open/seal/1420 time: [low estimate high]`, each with its unit.

    Raises ValueError if a figure is missing.
    """
    found = {}
    for name in ("seal", "open"):
        line = re.search(rf"^seal_open/{name}/{AeadCost.PACKET_BYTES}\s+time:\s+\[\S+ \S+ ([0-9.]+) (\S+) \S+ \S+\]$",
                         criterion, re.MULTILINE)
        if line is None:
            raise ValueError(f"no figure for seal_open/{name}/{AeadCost.PACKET_BYTES} in:\n{criterion[-500:]}")
        found[name] = float(line.group(1)) * NANOSECONDS[line.group(2)]
    return AeadCost(found["seal"], found["open"])
