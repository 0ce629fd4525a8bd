#!/usr/bin/env python3
"""Measures contenders side by side and writes everything it saw to a JSON file.

    sudo python3 perf/run.py --binary target/release/uringvpn --peers
    sudo python3 perf/run.py --scenario 'tcp4-*' --rounds 7 --binary old/uringvpn:old --binary new/uringvpn:new
    python3 perf/run.py --list

In each round every contender runs once, the veth pair itself (the control) among them, and each round starts with
the next one: what drifts over minutes (clock speed, neighbours) hits all alike. Ratios are taken within a round.
`uringvpn report --from FILE` draws what was written.

With --aead, the benchmark seal_open runs in each round, too. What the cable costs plus one seal and one open per packet is
the least that an encrypted tunnel can cost: the limit. Build it with `cargo bench --no-run --bench seal_open`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any, Sequence

import parse
from contenders import Contender, Direct, Uringvpn
from measure import Sample, busy_cores, measure
from peers import PROGRAMS, peer, versions
from rate import measure_rate
from report import goals, markdown, table
from rig import Rig, RigError
from scenarios import DEFAULT, Scenario, choose, matrix

RATIOS = ("gbps", "cores_per_gbps")
BUSY_CORES_WORTH_A_WARNING = 0.1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", nargs="+", default=list(DEFAULT), metavar="NAME", help="names or shell patterns")
    parser.add_argument("--rounds", type=int, default=5, help="five or more for numbers worth keeping (default: 5)")
    parser.add_argument("--seconds", type=int, default=5, help="length of one transfer (default: 5)")
    parser.add_argument("--binary", action="append", default=[], metavar="PATH[:LABEL]",
                        help="a build of uringvpn; repeat to compare builds; none measures the control alone")
    parser.add_argument("--driver", nargs="+", default=["uring", "syscall"], choices=["auto", "uring", "syscall"])
    parser.add_argument("--mode", nargs="+", default=["encrypted", "plain"], choices=["encrypted", "plain"],
                        help="of each build: the tunnel as it is meant to be, and without keys as a control (default: both)")
    parser.add_argument("--peers", nargs="*", metavar="NAME[=PATH]",
                        help=f"other programs to measure beside ours; without a name all of {', '.join(PROGRAMS)}")
    parser.add_argument("--aead", type=Path, metavar="PATH", help="the built benchmark seal_open")
    parser.add_argument("--queues", type=int, default=2)
    parser.add_argument("--outer", type=int, default=4, choices=[4, 6], help="IP version of the UDP datagrams")
    parser.add_argument("--without-control", action="store_true",
                        help="leave the veth pair out, for profiling; the first build takes its place in the ratios")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="where the JSON goes")
    parser.add_argument("--markdown", action="store_true", help="print the table in Markdown")
    parser.add_argument("--list", action="store_true", help="print the names of all scenarios")
    options = parser.parse_args()
    # Not given: none. Given without names: all.
    options.peers = [] if options.peers is None else options.peers or list(PROGRAMS)
    return options


def contenders(options: argparse.Namespace, scenario: Scenario) -> list[Contender]:
    """The control first, then every build in every mode with every driver, then the peers."""
    chosen: list[Contender] = [] if options.without_control else [Direct()]
    for binary, mode, driver in product(options.binary, options.mode, options.driver):
        path, _, label = binary.partition(":")
        suffix = "/plain" if mode == "plain" else ""
        chosen.append(Uringvpn(
            label=f"{label or Path(path).name}/{driver}{suffix}", binary=Path(path).resolve(), driver=driver,
            queues=options.queues, mtu=scenario.tunnel_mtu, outer=options.outer, disable=scenario.disable,
            encrypted=mode == "encrypted",
        ))
    # What they cannot switch off they keep: without offloads they would be compared with something else.
    if scenario.offload:
        chosen += [peer(name, scenario.tunnel_mtu, options.outer, Path(path) if path else None)
                   for name, _, path in (each.partition("=") for each in options.peers)]
    if not chosen:
        raise RigError("nothing to measure: --without-control needs a --binary or --peers")
    labels = [contender.label for contender in chosen]
    if len(set(labels)) != len(labels):
        raise RigError(f"two contenders share a name, add :LABEL to --binary: {', '.join(labels)}")
    return chosen


def run_scenario(rig: Rig, options: argparse.Namespace, scenario: Scenario) -> dict[str, Any]:
    """All rounds of one scenario."""
    rig.set_underlay_mtu(scenario.underlay_mtu)
    chosen = contenders(options, scenario)
    samples: dict[str, list[Sample]] = {contender.label: [] for contender in chosen}
    costs: list[parse.AeadCost] = []
    for number in range(options.rounds):
        if options.aead and scenario.sealed_payload_bytes and not options.without_control:
            costs.append(aead_cost(options.aead))
        first = number % len(chosen)
        for contender in chosen[first:] + chosen[:first]:
            sample = sampled(rig, contender, scenario, options.seconds)
            samples[contender.label].append(sample)
            rate = f"{sample.packets_per_second / 1e3:8.0f} kpackets/s" if sample.packets_per_second else ""
            print(f"  round {number + 1}/{options.rounds}  {contender.label:24} {sample.gbps:7.2f} Gbit/s {rate}", file=sys.stderr)
    control = samples[chosen[0].label]
    limits = [cable.cores_per_gbps + cost.cores_per_gbps(scenario.sealed_payload_bytes) for cable, cost in zip(control, costs)]
    return {
        "control": chosen[0].label,
        "scenario": asdict(scenario),
        "aead": [asdict(cost) for cost in costs],
        "contenders": {contender.label: summary(samples[contender.label], control, limits, contender.encrypted)
                       for contender in chosen},
    }


def sampled(rig: Rig, contender: Contender, scenario: Scenario, seconds: int) -> Sample:
    """One measurement of the kind the scenario asks for."""
    if scenario.traffic.protocol == "rate":
        return measure_rate(rig, contender, scenario.traffic)
    return measure(rig, contender, scenario.traffic, seconds)


def aead_cost(benchmark: Path) -> parse.AeadCost:
    """Runs the benchmark seal_open, which takes about a second; it writes nothing."""
    argv = [str(benchmark.resolve()), "--bench", "--quick", "--discard-baseline", "--noplot", f"/{parse.AeadCost.PACKET_BYTES}$"]
    try:
        return parse.aead_cost(subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise RigError(f"{benchmark}: {error}") from error


def summary(samples: list[Sample], control: list[Sample], limits: Sequence[float], encrypted: bool) -> dict[str, Any]:
    """Every sample, the spread of every metric, and that of the ratios to the control and to the limit of the same round."""
    metrics = [sample.metrics() for sample in samples]
    reference = [sample.metrics() for sample in control]
    spreads = {name: parse.spread([each[name] for each in metrics])
               for name in metrics[0] if all(name in each for each in metrics)}
    ratios = {name: parse.spread([own[name] / other[name] for own, other in zip(metrics, reference)])
              for name in RATIOS}
    found = {"encrypted": encrypted, "samples": metrics, "spread": spreads, "ratio_to_control": ratios}
    if limits and encrypted:
        found["ratio_to_limit"] = {
            "cores_per_gbps": parse.spread([own.cores_per_gbps / limit for own, limit in zip(samples, limits)])}
    return found


def machine() -> dict[str, Any]:
    """What a reader needs to know before comparing with another file."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*: (.*)$", cpuinfo, re.MULTILINE)
    return {
        "cpu": model.group(1) if model else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "iperf3": subprocess.run(["iperf3", "--version"], capture_output=True, text=True, check=True).stdout.split("\n")[0],
    }


def commit() -> str:
    """Of the tree this file lies in, with a mark if the tree was changed since."""
    tree = Path(__file__).resolve().parent
    # The checkout usually belongs to somebody else than root.
    git = ["git", "-c", f"safe.directory={tree.parent}", "-C", str(tree), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def main() -> int:
    options = arguments()
    try:
        if options.list:
            print("\n".join(matrix()))
            return 0
        scenarios = choose(options.scenario, matrix().values())
        document: dict[str, Any] = {
            "machine": machine() | ({"peers": versions(options.peers)} if options.peers else {}),
            "commit": commit(),
            "busy_cores_before": round(busy_cores(0.5), 2),
            "options": {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()
                        if name not in ("output", "list", "markdown")},
            "results": {},
        }
        if document["busy_cores_before"] > BUSY_CORES_WORTH_A_WARNING:
            print(f"warning: others keep {document['busy_cores_before']} cores busy; expect noise", file=sys.stderr)
        with Rig() as rig:
            for scenario in scenarios:
                print(scenario.name, file=sys.stderr)
                document["results"][scenario.name] = run_scenario(rig, options, scenario)
                # After every scenario: hours of measuring should survive a failure in the last one.
                if options.output:
                    options.output.write_text(json.dumps(document, indent=1) + "\n")
    except (RigError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the namespaces are gone", file=sys.stderr)
        return 130
    print(markdown(document) if options.markdown else table(document["results"]))
    print("", *goals(document["results"]), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
