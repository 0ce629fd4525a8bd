#!/usr/bin/env python3
"""Measures contenders side by side and writes everything it saw to a JSON file.

    sudo python3 perf/run.py --binary target/release/uringvpn
    sudo python3 perf/run.py --scenario 'tcp4-*' --rounds 7 --binary old/uringvpn:old --binary new/uringvpn:new
    python3 perf/run.py --list

In each round every contender runs once, the veth pair itself (the control) among them, and each round starts with
the next one: what drifts over minutes (clock speed, neighbours) hits all alike. Ratios are taken within a round.
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
from pathlib import Path
from typing import Any

import parse
from contenders import Contender, Direct, Uringvpn
from measure import Sample, busy_cores, measure
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
    parser.add_argument("--queues", type=int, default=2)
    parser.add_argument("--outer", type=int, default=4, choices=[4, 6], help="IP version of the UDP datagrams")
    parser.add_argument("--without-control", action="store_true",
                        help="leave the veth pair out, for profiling; the first build takes its place in the ratios")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="where the JSON goes")
    parser.add_argument("--list", action="store_true", help="print the names of all scenarios")
    return parser.parse_args()


def contenders(options: argparse.Namespace, scenario: Scenario) -> list[Contender]:
    """The control first, then every build with every driver."""
    chosen: list[Contender] = [] if options.without_control else [Direct()]
    for binary in options.binary:
        path, _, label = binary.partition(":")
        for driver in options.driver:
            chosen.append(Uringvpn(
                label=f"{label or Path(path).name}/{driver}", binary=Path(path).resolve(), driver=driver,
                queues=options.queues, mtu=scenario.tunnel_mtu, outer=options.outer, disable=scenario.disable,
            ))
    if not chosen:
        raise RigError("nothing to measure: --without-control needs a --binary")
    labels = [contender.label for contender in chosen]
    if len(set(labels)) != len(labels):
        raise RigError(f"two contenders share a name, add :LABEL to --binary: {', '.join(labels)}")
    return chosen


def run_scenario(rig: Rig, options: argparse.Namespace, scenario: Scenario) -> dict[str, Any]:
    """All rounds of one scenario."""
    rig.set_underlay_mtu(scenario.underlay_mtu)
    chosen = contenders(options, scenario)
    samples: dict[str, list[Sample]] = {contender.label: [] for contender in chosen}
    for number in range(options.rounds):
        first = number % len(chosen)
        for contender in chosen[first:] + chosen[:first]:
            sample = measure(rig, contender, scenario.traffic, options.seconds)
            samples[contender.label].append(sample)
            print(f"  round {number + 1}/{options.rounds}  {contender.label:24} {sample.gbps:7.2f} Gbit/s", file=sys.stderr)
    control = samples[chosen[0].label]
    return {
        "control": chosen[0].label,
        "scenario": asdict(scenario),
        "contenders": {label: summary(own, control) for label, own in samples.items()},
    }


def summary(samples: list[Sample], control: list[Sample]) -> dict[str, Any]:
    """Every sample, the spread of every metric, and that of the ratios to the control of the same round."""
    metrics = [sample.metrics() for sample in samples]
    reference = [sample.metrics() for sample in control]
    spreads = {name: parse.spread([each[name] for each in metrics])
               for name in metrics[0] if all(name in each for each in metrics)}
    ratios = {name: parse.spread([own[name] / other[name] for own, other in zip(metrics, reference)])
              for name in RATIOS}
    return {"samples": metrics, "spread": spreads, "ratio_to_control": ratios}


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


def table(results: dict[str, Any]) -> str:
    """Medians for people; `x` columns are ratios to the control."""
    lines = [f"{'scenario':38} {'contender':24} {'Gbit/s':>8} {'x':>5} {'cores/Gbit/s':>13} {'x':>5} {'retrans':>8}"
             f" {'lost %':>7} {'rtt p50/p99 ms':>15} {'RSS MiB':>8} {'calls/seg':>9}"]
    for name, result in results.items():
        for label, found in result["contenders"].items():
            spread, ratio = found["spread"], found["ratio_to_control"]

            def median(metric: str, form: str) -> str:
                return format(spread[metric]["median"], form) if metric in spread else "-"

            rtt = f"{median('rtt_p50_ms', '.2f')}/{median('rtt_p99_ms', '.2f')}" if "rtt_p50_ms" in spread else "-"
            lines.append(
                f"{name:38} {label:24} {median('gbps', '.2f'):>8} {ratio['gbps']['median']:5.2f}"
                f" {median('cores_per_gbps', '.4f'):>13} {ratio['cores_per_gbps']['median']:5.2f}"
                f" {median('retransmits', '.0f'):>8} {median('lost_percent', '.2f'):>7} {rtt:>15}"
                f" {median('rss_mib', '.1f'):>8} {median('syscalls_per_segment', '.4f'):>9}")
    return "\n".join(lines)


def main() -> int:
    options = arguments()
    try:
        if options.list:
            print("\n".join(matrix()))
            return 0
        scenarios = choose(options.scenario, matrix().values())
        document: dict[str, Any] = {
            "machine": machine(), "commit": commit(), "busy_cores_before": round(busy_cores(0.5), 2),
            "options": {name: value for name, value in vars(options).items() if name not in ("output", "list")},
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
    print(table(document["results"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
