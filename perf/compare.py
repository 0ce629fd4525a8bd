#!/usr/bin/env python3
"""Compares two files written by run.py: what changed, and whether it is more than the rounds differ among themselves.

    python3 perf/compare.py before.json after.json

A difference is marked when each median lies outside the range of the other file's rounds: `better` or `worse` by the
metric's own sense. Unmarked differences are noise until more rounds say otherwise.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Mapping

# What is compared, and whether more of it is good. Ratios first: they cancel much of what the machine did that day.
RATIO_METRICS = {"gbps": True, "cores_per_gbps": False}
METRICS = {
    "gbps": True, "packets_per_second": True, "cores_per_gbps": False, "busy_cores": False, "lost_percent": False,
    "rtt_p50_ms": False, "rtt_p99_ms": False, "lost_pings_percent": False,
    "residence_p99_us": False, "rss_mib": False, "switches_per_second": False, "syscalls_per_segment": False,
}


@dataclass(frozen=True)
class Difference:
    """One metric of one contender in one scenario, before and after."""

    scenario: str
    contender: str
    metric: str
    before: Mapping[str, float]
    after: Mapping[str, float]
    more_is_better: bool

    @property
    def percent(self) -> float:
        """Change of the median; infinite from zero to something."""
        old, new = self.before["median"], self.after["median"]
        if old == new:
            return 0.0
        return (new / old - 1) * 100 if old else float("inf")

    @property
    def verdict(self) -> str:
        """`better`, `worse`, or nothing if the difference lies within the spread."""
        if within(self.after["median"], self.before) or within(self.before["median"], self.after):
            return ""
        return "better" if (self.after["median"] > self.before["median"]) == self.more_is_better else "worse"

    def __str__(self) -> str:
        return (f"{self.scenario:38} {self.contender:24} {self.metric:24} {show(self.before):>32}"
                f" {show(self.after):>32} {self.percent:+8.1f} % {self.verdict}")


def within(value: float, spread: Mapping[str, float]) -> bool:
    """Whether the rounds of the other file reach this value."""
    return spread["min"] <= value <= spread["max"]


def show(spread: Mapping[str, float]) -> str:
    """Median and range."""
    return f"{spread['median']:.4g} [{spread['min']:.4g} .. {spread['max']:.4g}]"


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Difference]:
    """Every metric both files have, in the order of the first."""
    for scenario, result in before["results"].items():
        others = after["results"].get(scenario, {}).get("contenders", {})
        for contender, old in result["contenders"].items():
            new = others.get(contender)
            # The plain tunnel of one file is no measure for the encrypted one of the other.
            if new is None or old.get("encrypted", False) != new.get("encrypted", False):
                continue
            groups = (("ratio_to_control", "x control", RATIO_METRICS), ("ratio_to_limit", "x limit", RATIO_METRICS),
                      ("spread", "", METRICS))
            for group, suffix, metrics in groups:
                for metric, more_is_better in metrics.items():
                    if metric in old.get(group, {}) and metric in new.get(group, {}):
                        yield Difference(scenario, contender, f"{metric} {suffix}".strip(), old[group][metric],
                                         new[group][metric], more_is_better)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--all", action="store_true", help="also print differences within the spread")
    options = parser.parse_args()
    try:
        before, after = (json.loads(path.read_text()) for path in (options.before, options.after))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if before["machine"] != after["machine"]:
        print(f"warning: different machines:\n  {before['machine']}\n  {after['machine']}", file=sys.stderr)
    found = list(differences(before, after))
    shown = [each for each in found if options.all or each.verdict]
    print(f"{before['commit']} -> {after['commit']}: {len(found)} compared, "
          f"{sum(bool(each.verdict) for each in found)} outside the spread")
    for each in shown:
        print(each)
    return 0


if __name__ == "__main__":
    sys.exit(main())
