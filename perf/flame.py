#!/usr/bin/env python3
"""Draws a flame graph: `perf script | python3 perf/flame.py > out.svg`. Also reads folded stacks (`a;b;c 12`).

Width is samples, the bottom row is the thread's name, each row above was called by the one below it. Hover for numbers;
a click zooms in, a click on the bottom row zooms out.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from html import escape
from typing import Iterable, Iterator
from zlib import crc32

WIDTH, ROW, NARROWEST = 1200.0, 17, 0.4
# A core that waits is not where time goes. Only as the innermost frame: interrupts that hit an idle core do count.
IDLE = {"default_idle", "pv_native_safe_halt", "native_safe_halt", "mwait_idle", "intel_idle", "acpi_safe_halt"}

SCRIPT = """
function frames() { return [...document.querySelectorAll('g.f')] }
function zoom(event) {
  const g = event.currentTarget, from = +g.dataset.x, span = +g.dataset.w, depth = +g.dataset.d;
  for (const f of frames()) {
    const x = +f.dataset.x, w = +f.dataset.w, inside = x >= from - 1e-6 && x + w <= from + span + 1e-6;
    const below = +f.dataset.d < depth && x <= from + 1e-6 && x + w >= from + span - 1e-6;
    f.style.display = inside || below ? '' : 'none';
    const left = below ? 0 : (x - from) / span * 1200, wide = below ? 1200 : w / span * 1200;
    const [r, t] = [f.querySelector('rect'), f.querySelector('text')];
    r.setAttribute('x', left); r.setAttribute('width', wide); t.setAttribute('x', left + 3);
    t.textContent = wide < 24 ? '' : f.dataset.n.slice(0, wide / 6.6);
  }
}
for (const f of frames()) f.addEventListener('click', zoom);
"""


def fold(lines: Iterable[str]) -> Counter[tuple[str, ...]]:
    """Counts equal stacks, outermost frame first, in the output of `perf script` or in folded stacks."""
    stacks: Counter[tuple[str, ...]] = Counter()
    thread = ""
    frames: list[str] = []
    for line in [*lines, ""]:
        line = line.rstrip("\n")
        folded = re.fullmatch(r"(\S.*;.*) (\d+)", line)
        if not line.strip():
            if thread and not (frames and frames[0] in IDLE):
                stacks[(thread, *reversed(frames))] += 1
            thread, frames = "", []
        elif folded and not thread:
            stacks[tuple(folded.group(1).split(";"))] += int(folded.group(2))
        elif not line[0].isspace():
            # "name with spaces  1234 [001] 12.3:  1 cpu-clock:": the name ends where the number of the thread begins.
            thread, frames = re.split(r"\s+\d+(?:/\d+)?\s", line, maxsplit=1)[0], []
        else:
            # "    ffffffff81 tcp_sendmsg+0x27 ([kernel.kallsyms])"
            symbol = re.fullmatch(r"\s+[0-9a-f]+ (.*?)(?:\+0x[0-9a-f]+)?(?: \(.*\))?", line)
            frames.append(re.sub(r"::h[0-9a-f]{16}$", "", symbol.group(1)) if symbol else line.strip())
    return stacks


@dataclass
class Node:
    """One box: a function reached by one path."""

    name: str
    samples: int = 0
    children: dict[str, Node] = field(default_factory=dict)


def tree(stacks: Counter[tuple[str, ...]]) -> Node:
    """All stacks merged from the outermost frame on."""
    root = Node("all")
    for stack, samples in stacks.items():
        node = root
        node.samples += samples
        for name in stack:
            node = node.children.setdefault(name, Node(name))
            node.samples += samples
    return root


def boxes(node: Node, left: float, scale: float, depth: int) -> Iterator[tuple[Node, float, float, int]]:
    """Every box wide enough to see: node, left edge, width, row."""
    width = node.samples * scale
    if width < NARROWEST:
        return
    yield node, left, width, depth
    for child in sorted(node.children.values(), key=lambda each: each.name):
        yield from boxes(child, left, scale, depth + 1)
        left += child.samples * scale


def render(stacks: Counter[tuple[str, ...]]) -> str:
    """A complete SVG with nothing to load."""
    root = tree(stacks)
    placed = list(boxes(root, 0.0, WIDTH / max(root.samples, 1), 0))
    height = (max((depth for *_, depth in placed), default=0) + 1) * ROW
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:.0f} {height}" font-family="monospace" font-size="11">']
    for node, left, width, depth in placed:
        top, name = height - (depth + 1) * ROW, escape(node.name, quote=True)
        hue = crc32(node.name.encode()) % 50  # equal functions have equal colours in every graph
        label = escape(node.name[: int(width / 6.6)]) if width >= 24 else ""
        out.append(
            f'<g class="f" data-x="{left:.3f}" data-w="{width:.3f}" data-d="{depth}" data-n="{name}">'
            f"<title>{name}: {node.samples} samples, {100 * node.samples / root.samples:.2f} %</title>"
            f'<rect x="{left:.2f}" y="{top}" width="{width:.2f}" height="{ROW - 1}" fill="hsl({hue},85%,62%)"/>'
            f'<text x="{left + 3:.2f}" y="{top + 12}">{label}</text></g>')
    return "\n".join([*out, f"<script><![CDATA[{SCRIPT}]]></script></svg>"])


if __name__ == "__main__":
    found = fold(sys.stdin)
    if not found:
        sys.exit("error: no stacks on standard input")
    print(render(found))
