#!/usr/bin/env python3
"""Turns a file written by run.py into text: a table for people, one in Markdown, and how far the goals are.

    python3 perf/report.py --markdown results.json
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping

BULK, RATE, PING = "tcp4-1flow-forward-mtu1500", "udp4-64B-rate", "ping-under-tcp"
PEERS = ("wireguard-go", "boringtun")


def median(found: Mapping[str, Any], group: str, metric: str) -> float | None:
    """The median of one metric of one contender, if it was measured."""
    spread = found.get(group, {}).get(metric)
    return spread["median"] if spread else None


def show(value: float | None, form: str) -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None else format(value, form)


@dataclass(frozen=True)
class Column:
    """One column of both tables."""

    title: str
    width: int
    text: Callable[[Mapping[str, Any]], str]


def of(group: str, metric: str, form: str, scale: float = 1.0) -> Callable[[Mapping[str, Any]], str]:
    """Formats one median."""

    def text(found: Mapping[str, Any]) -> str:
        value = median(found, group, metric)
        return show(None if value is None else value * scale, form)

    return text


def pair(metric: str, other: str, form: str) -> Callable[[Mapping[str, Any]], str]:
    """Formats two medians of the same kind."""
    first, second = of("spread", metric, form), of("spread", other, form)
    return lambda found: "-" if first(found) == "-" else f"{first(found)} / {second(found)}"


COLUMNS = (
    Column("Gbit/s", 8, of("spread", "gbps", ".2f")),
    Column("x cable", 8, of("ratio_to_control", "gbps", ".2f")),
    Column("kpackets/s", 11, of("spread", "packets_per_second", ".0f", 1e-3)),
    Column("cores per Gbit/s", 17, of("spread", "cores_per_gbps", ".3f")),
    Column("x cable", 8, of("ratio_to_control", "cores_per_gbps", ".1f")),
    Column("x limit", 8, of("ratio_to_limit", "cores_per_gbps", ".2f")),
    Column("retransmits", 12, of("spread", "retransmits", ".0f")),
    Column("lost %", 7, of("spread", "lost_percent", ".2f")),
    Column("RTT p50 / p99 ms", 17, pair("rtt_p50_ms", "rtt_p99_ms", ".2f")),
    Column("lost pings %", 12, of("spread", "lost_pings_percent", ".2f")),
    Column("RSS MiB", 8, of("spread", "rss_mib", ".1f")),
    Column("calls / segment", 16, of("spread", "syscalls_per_segment", ".3f")),
)


def rows(results: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Every contender of every scenario."""
    for scenario, result in results.items():
        for label, found in result["contenders"].items():
            yield scenario, label, found


def table(results: Mapping[str, Any]) -> str:
    """Medians in columns; `x` columns are ratios taken within a round."""
    lines = [f"{'scenario':38} {'contender':24} " + " ".join(f"{column.title:>{column.width}}" for column in COLUMNS)]
    for scenario, label, found in rows(results):
        lines.append(f"{scenario:38} {label:24} " + " ".join(f"{column.text(found):>{column.width}}" for column in COLUMNS))
    return "\n".join(lines)


def origin(document: Mapping[str, Any]) -> str:
    """What the numbers were measured on, in a sentence."""
    machine, options = document["machine"], document["options"]
    versions = "; ".join(f"{name} {version}" for name, version in machine.get("peers", {}).items())
    text = (f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}, commit `{document['commit']}`; "
            f"{options['rounds']} rounds of {options['seconds']} s, contenders taking turns; medians")
    return f"{text}; {versions}." if versions else f"{text}."


def markdown(document: Mapping[str, Any]) -> str:
    """The same table for the README, without columns that would be empty."""
    every = list(rows(document["results"]))
    columns = [column for column in COLUMNS if any(column.text(found) != "-" for _, _, found in every)]
    lines = [origin(document), "", "| traffic | contender | " + " | ".join(column.title for column in columns) + " |",
             "|---" * (len(columns) + 2) + "|"]
    last = ""
    for scenario, label, found in every:
        cells = [column.text(found) for column in columns]
        lines.append(f"| {'' if scenario == last else scenario} | {label} | " + " | ".join(cells) + " |")
        last = scenario
    return "\n".join(lines)


@dataclass(frozen=True)
class Goal:
    """One thing we aim for, and what was found; `found` is None if a part of it was not measured."""

    contender: str
    text: str
    found: float | None
    aim: float
    more_is_better: bool

    @property
    def verdict(self) -> str:
        """`reached`, `missed`, or that it is unknown."""
        if self.found is None:
            return "not measured"
        reached = self.found >= self.aim if self.more_is_better else self.found <= self.aim
        return "reached" if reached else "missed"

    def __str__(self) -> str:
        sign = ">=" if self.more_is_better else "<="
        return f"{self.contender:24} {self.text:52} {show(self.found, '.2f'):>8} {sign} {self.aim:<6g} {self.verdict}"


def goals(results: Mapping[str, Any]) -> list[Goal]:
    """The goals of the encrypted tunnel, for every build and driver that was measured."""

    def found(scenario: str, label: str) -> Mapping[str, Any]:
        return results.get(scenario, {}).get("contenders", {}).get(label, {})

    ours = dict.fromkeys(label for _, label, each in rows(results) if each.get("encrypted") and label not in PEERS)
    rivals = [median(found(RATE, label), "spread", "packets_per_second") or 0.0 for label in PEERS]
    every = []
    for label in ours:
        rate = median(found(RATE, label), "spread", "packets_per_second")
        every += [
            Goal(label, "one TCP flow, of what the cable carries", median(found(BULK, label), "ratio_to_control", "gbps"), 0.26, True),
            Goal(label, "its CPU per gigabit, of the limit", median(found(BULK, label), "ratio_to_limit", "cores_per_gbps"), 1.5, False),
            Goal(label, "64-byte packets, of the best of both peers", rate / max(rivals) if rate and all(rivals) else None, 2.0, True),
            Goal(label, "round trip beside a TCP flow, p50 ms", median(found(PING, label), "spread", "rtt_p50_ms"), 1.0, False),
            Goal(label, "round trip beside a TCP flow, p99 ms", median(found(PING, label), "spread", "rtt_p99_ms"), 3.0, False),
        ]
    return every


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    try:
        document = json.loads(options.file.read_text())
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(markdown(document) if options.markdown else table(document["results"]))
    print("", *goals(document["results"]), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
