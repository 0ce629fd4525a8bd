#!/usr/bin/env python3
"""Shows what the tunnel does, in about a minute: the veth pair itself beside a plain tunnel over it.

`scripts/demo` builds the product and calls this. For numbers worth keeping use run.py: this has two rounds only.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import mean

from contenders import Contender, Direct, Uringvpn
from measure import Sample, Traffic, measure
from rig import Rig, RigError
from run import machine

ROUNDS = 2
SECONDS = 3
TRAFFIC = {
    "TCP, 1 flow": Traffic(),
    "TCP, 4 flows": Traffic(flows=4),
    "UDP, 500 Mbit": Traffic("udp", rate="500M"),
    "TCP + ping": Traffic(ping=True),
}


def progress(text: str) -> None:
    """One line that each call replaces; nothing where nobody watches."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def row(label: str, kind: str, samples: list[Sample]) -> str:
    """One line of the table, the mean of the rounds."""
    gbps = mean(sample.gbps for sample in samples)
    cost = mean(sample.cores_per_gbps for sample in samples)
    udp = TRAFFIC[kind].protocol == "udp"
    lost = (f"{mean(sample.lost_percent for sample in samples):.1f} % lost" if udp
            else f"{mean(sample.retransmits for sample in samples):.0f}")
    p50 = [sample.rtt_p50_ms for sample in samples if sample.rtt_p50_ms is not None]
    p99 = [sample.rtt_p99_ms for sample in samples if sample.rtt_p99_ms is not None]
    rtt = f"{mean(p50):.2f} / {mean(p99):.2f} ms" if p50 and p99 else ""
    return f"  {label:14} {kind:14} {gbps:8.2f} {cost:14.3f} {lost:>13} {rtt:>20}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, required=True)
    options = parser.parse_args()
    contenders: list[Contender] = [Direct("direct veth"), Uringvpn("plain tunnel", options.binary.resolve())]
    found: dict[tuple[str, str], list[Sample]] = {}
    print("Two hosts (network namespaces) on this machine, one cable (veth, MTU 1500), iperf3 from one to the other.\n"
          "First over the cable itself, then through uringvpn: TUN, our process, UDP, our process, TUN. Not encrypted.\n",
          flush=True)
    try:
        with Rig() as rig:
            for number in range(ROUNDS):
                for kind, traffic in TRAFFIC.items():
                    for contender in contenders:
                        progress(f"round {number + 1}/{ROUNDS}: {contender.label}, {kind}")
                        found.setdefault((contender.label, kind), []).append(measure(rig, contender, traffic, SECONDS))
    except RigError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; the namespaces are gone", file=sys.stderr)
        return 130
    progress("")
    print(f"  {'contender':14} {'traffic':14} {'Gbit/s':>8} {'cores / Gbit/s':>14} {'retransmits':>13} {'RTT p50 / p99':>20}")
    for contender in contenders:
        for kind in TRAFFIC:
            print(row(contender.label, kind, found[contender.label, kind]))
    direct, tunnel = ([mean(each.gbps for each in found[c.label, "TCP, 1 flow"]),
                       mean(each.cores_per_gbps for each in found[c.label, "TCP, 1 flow"])] for c in contenders)
    host = machine()
    print(f"\nThe tunnel carried {tunnel[0]:.1f} Gbit/s of one TCP flow: {tunnel[0] / direct[0]:.0%} of what the bare cable carries,\n"
          f"at {tunnel[1] / direct[1]:.1f} times its CPU per gigabit. CPU is that of the whole machine, iperf3 and kernel included;\n"
          f"both hosts share the same {host['cores']} cores ({host['cpu']}, Linux {host['kernel']}).")
    return 0


if __name__ == "__main__":
    sys.exit(main())
