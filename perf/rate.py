"""The highest rate of small UDP packets that a contender carries without losing more than one in a thousand.

The generator runs before all other programs: on a real link packets do not wait for the receiving machine to have time.

One search: double the rate until a trial fails, then bisect. A trial offers one rate for a second and a half (blast.py) and
holds if nearly all of it could be offered and nearly all of that arrived.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from math import inf, sqrt
from pathlib import Path
from typing import Any, Callable

from contenders import Contender
from measure import CpuMeter, Sample, Traffic, process_figures, usage
from rig import Process, Rig, RigError, wait_until

BLAST = Path(__file__).resolve().parent / "blast.py"
LOST_PERCENT_MAX = 0.1
# Of the rate asked for: a generator that gets less processor than that has not offered it.
OFFERED_MIN = 0.98
TRIAL_SECONDS = 1.5
FIRST_RATE = 100_000
LOWEST_RATE = FIRST_RATE / 128
HIGHEST_RATE = 20_000_000
# The search ends when the lowest rate that failed is this close to the highest that held.
RESOLUTION = 1.05
# One hiccup of a machine that others use, too, must not end a search.
ATTEMPTS = 2


@dataclass(frozen=True)
class Trial:
    """What one trial asked for, what the generator managed, what arrived, and what the whole machine spent on it."""

    asked_per_second: float
    sent: int
    received: int
    reordered: int
    seconds: float
    busy_seconds: float
    stolen_seconds: float

    @property
    def lost_percent(self) -> float:
        return 100.0 * (self.sent - self.received) / self.sent if self.sent else 100.0

    @property
    def received_per_second(self) -> float:
        return self.received / self.seconds

    @property
    def holds(self) -> bool:
        """Whether this rate counts."""
        return self.sent / self.seconds >= self.asked_per_second * OFFERED_MIN and self.lost_percent <= LOST_PERCENT_MAX


def highest_rate(trial: Callable[[float], Trial]) -> Trial | None:
    """The trial of the highest rate that held; None if not even LOWEST_RATE did."""
    best, failed, rate = None, inf, float(FIRST_RATE)
    while LOWEST_RATE <= rate <= HIGHEST_RATE:
        held = next((found for found in (trial(rate) for _ in range(ATTEMPTS)) if found.holds), None)
        if held:
            best = held
        else:
            failed = rate
        if best is None:
            rate /= 2
        elif failed == inf:
            rate *= 2
        elif failed / best.asked_per_second > RESOLUTION:
            rate = sqrt(failed * best.asked_per_second)
        else:
            break
    return best


def measure_rate(rig: Rig, contender: Contender, traffic: Traffic) -> Sample:
    """Starts the contender afresh, searches its highest rate, stops it. Cost and losses are those of the best trial."""
    processes = contender.start(rig)
    used_before = usage(processes)
    meter = CpuMeter()
    best = highest_rate(lambda rate: run_trial(rig, contender, traffic, processes, rate))
    figures = process_figures(used_before, usage(processes), meter.read().elapsed, contender.stop(processes))
    if best is None:
        raise RigError(f"{contender.label}: loses more than {LOST_PERCENT_MAX} % of {LOWEST_RATE:.0f} packets a second")
    gbps = best.received_per_second * traffic.datagram_bytes * 8 / 1e9
    return Sample(
        gbps=gbps,
        cores_per_gbps=best.busy_seconds / best.seconds / gbps,
        busy_cores=best.busy_seconds / best.seconds,
        retransmits=0,
        lost_percent=best.lost_percent,
        reordered=best.reordered,
        stolen_seconds=best.stolen_seconds,
        packets_per_second=best.received_per_second,
        **figures,
    )


def run_trial(rig: Rig, contender: Contender, traffic: Traffic, needed: list[Process], rate: float) -> Trial:
    """Offers one rate from end a to end b."""
    address = contender.address("b", traffic.family)
    common = [sys.executable, str(BLAST), "--address", address, "--bytes", str(traffic.datagram_bytes)]
    receiver = rig.start("b", [*common, "receive"])
    wait_until(lambda: "port" in receiver.output(), [receiver, *needed], 5.0, "the receiver does not listen")
    port = receiver.output().split()[1]
    argv = [*common, "send", "--realtime", "--port", port, "--flows", str(traffic.flows), "--rate", str(rate),
            "--seconds", str(TRIAL_SECONDS)]
    meter = CpuMeter()
    sender = rig.start("a", argv)
    wait_until(lambda: sender.popen.poll() is not None, needed, TRIAL_SECONDS + 15.0, "the generator did not end")
    cpu = meter.read()
    wait_until(lambda: receiver.popen.poll() is not None, needed, 15.0, "the receiver did not end")
    offer, arrivals = result(sender), result(receiver)
    return Trial(rate, offer["packets"], arrivals["packets"], arrivals["reordered"], offer["seconds"],
                 cpu.busy_seconds, cpu.stolen_seconds)


def result(process: Process) -> Any:
    """The last line that an ended blast.py printed."""
    output = process.stop()
    try:
        return json.loads(output.splitlines()[-1])
    except (IndexError, ValueError) as error:
        raise RigError(f"{process.name}: {output[-500:] or 'printed nothing'}") from error
