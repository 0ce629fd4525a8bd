#!/usr/bin/env python3
"""Shows what the tunnel does, in a minute or two: the veth pair itself, the encrypted tunnel over it, the same without
encryption, and other WireGuard programs where they are installed.

`scripts/demo` builds the product and calls this. For numbers worth keeping use run.py: this has two rounds only.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import mean
from typing import Mapping, Sequence

from contenders import Contender, Direct, Uringvpn
from measure import Sample, Traffic, measure
from peers import PROGRAMS, find, peer
from rig import Rig, RigError
from run import machine

ROUNDS = 2
SECONDS = 2
BULK = "TCP, 1 flow"
TRAFFIC = {
    BULK: Traffic(ping=True),
    "TCP, 4 flows": Traffic(flows=4),
    "UDP, 500 Mbit": Traffic("udp", rate="500M"),
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
    return f"  {label:16} {kind:14} {gbps:8.2f} {cost:14.3f} {lost:>13} {rtt:>20}"


def chosen(binary: Path, need_peers: bool) -> list[Contender]:
    """The control, ours, ours without encryption, and the other programs: all of them, or those there are."""
    ours: list[Contender] = [Direct("direct veth"), Uringvpn("uringvpn", binary), Uringvpn("plain tunnel", binary, encrypted=False)]
    return ours + [peer(name, mtu=1420, outer=4) for name in PROGRAMS if need_peers or find(name)]


def verdict(found: Mapping[tuple[str, str], list[Sample]], contenders: Sequence[Contender]) -> str:
    """The one flow of the tunnel beside that of the others, in words."""

    def flow(label: str) -> tuple[float, float]:
        samples = found[label, BULK]
        return mean(each.gbps for each in samples), mean(each.cores_per_gbps for each in samples)

    (cable, cable_cost), (tunnel, cost), *_ = (flow(contender.label) for contender in contenders)
    lines = [f"Encrypted, the tunnel carried {tunnel:.1f} Gbit/s of one TCP flow: {tunnel / cable:.0%} of what the bare cable",
             f"carries, at {cost / cable_cost:.1f} times its CPU per gigabit."]
    for contender in contenders[2:]:
        other, other_cost = flow(contender.label)
        lines.append(f"Beside {contender.label}: {tunnel / other:.2f} times the throughput, {cost / other_cost:.2f} times the CPU per gigabit.")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, required=True)
    parser.add_argument("--peers", action="store_true", help=f"fail unless all of {', '.join(PROGRAMS)} are there")
    options = parser.parse_args()
    found: dict[tuple[str, str], list[Sample]] = {}
    try:
        contenders = chosen(options.binary.resolve(), options.peers)
        print("Two hosts (network namespaces) on this machine, one cable (veth, MTU 1500), iperf3 from one to the other.\n"
              "First over the cable itself, then through uringvpn: TUN, our process, encrypted UDP, our process, TUN.\n", flush=True)
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
    print(f"  {'contender':16} {'traffic':14} {'Gbit/s':>8} {'cores / Gbit/s':>14} {'retransmits':>13} {'RTT p50 / p99':>20}")
    for contender in contenders:
        for kind in TRAFFIC:
            print(row(contender.label, kind, found[contender.label, kind]))
    host = machine()
    print(f"\n{verdict(found, contenders)}\nCPU is that of the whole machine, iperf3 and kernel included; both hosts share "
          f"the same {host['cores']} cores\n({host['cpu']}, Linux {host['kernel']}).")
    return 0


if __name__ == "__main__":
    sys.exit(main())
