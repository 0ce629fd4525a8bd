#!/usr/bin/env python3
"""Sends small UDP datagrams at a given rate, and counts what arrives: `blast.py receive`, then `blast.py send` to it.

Many datagrams per system call (sendmmsg, recvmmsg), but no segmentation offload: every datagram enters the kernel by
itself, so that a tunnel without UDP offload meets the same packets as one with it. The arrays the kernel reads are made
once; per batch only the sequence numbers change, the first eight bytes of each datagram. The receiver takes a new port
each time, so that what is left of one run never counts in the next. Each prints its result as one line of JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import socket
import sys
import time
from array import array
from contextlib import ExitStack
from dataclasses import asdict, dataclass

WORD = 8
# One receive may take this much: at the rate of one core more than arrives in one pause.
RECEIVE_BATCH = 2048
# The receiver looks that often instead of waking up for each packet, and the socket holds what comes meanwhile.
RECEIVE_PAUSE_SECONDS = 0.001
RECEIVE_BUFFER_BYTES = 256 << 20
# It is over once nothing has come for this long; what a tunnel still holds then is lost.
IDLE_SECONDS = 0.3
FIRST_SECONDS = 10.0
# A batch is what is due in this time, at most BATCH_MAX: no queue must see bursts because the generator likes them.
BATCH_SECONDS = 250e-6
BATCH_MAX = 64
# A generator that could not run makes up for this much at most; beyond, it has offered less than it should, and says so.
MAKE_UP_NS = 2_000_000
# linux/asm-generic/socket.h, linux/prctl.h
SO_RCVBUFFORCE = 33
PR_SET_TIMERSLACK = 29

libc = ctypes.CDLL(None, use_errno=True)


class IoVec(ctypes.Structure):
    """struct iovec."""

    _fields_ = [("base", ctypes.c_void_p), ("bytes", ctypes.c_size_t)]


class MsgHdr(ctypes.Structure):
    """struct msghdr."""

    _fields_ = [
        ("name", ctypes.c_void_p), ("name_bytes", ctypes.c_uint), ("iov", ctypes.c_void_p), ("iov_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p), ("control_bytes", ctypes.c_size_t), ("flags", ctypes.c_int),
    ]


class MmsgHdr(ctypes.Structure):
    """struct mmsghdr."""

    _fields_ = [("header", MsgHdr), ("moved", ctypes.c_uint)]


class Batch:
    """`count` datagrams back to back in one buffer, and the headers that point at them."""

    def __init__(self, count: int, datagram_bytes: int) -> None:
        if datagram_bytes % WORD or not datagram_bytes:
            raise ValueError(f"{datagram_bytes} bytes: must be a multiple of {WORD}")
        self.count = count
        buffer = bytearray(count * datagram_bytes)
        base = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        self._iovecs = (IoVec * count)(*(IoVec(base + index * datagram_bytes, datagram_bytes) for index in range(count)))
        self.headers = (MmsgHdr * count)()
        for header, iovec in zip(self.headers, self._iovecs):
            header.header.iov, header.header.iov_count = ctypes.addressof(iovec), 1
        # Every word that is the first of its datagram. Keeps the buffer alive.
        self._sequences = memoryview(buffer).cast("Q")[::datagram_bytes // WORD]

    def number_from(self, first: int) -> None:
        """Gives the datagrams the sequence numbers from `first` on."""
        self._sequences[:] = memoryview(array("Q", range(first, first + self.count)))

    def sequences(self, count: int) -> list[int]:
        """The numbers of the first `count` datagrams."""
        return self._sequences[:count].tolist()


@dataclass
class Arrivals:
    """What has arrived: each number once, however often it came."""

    packets: int = 0
    duplicates: int = 0
    reordered: int = 0
    """Times a number was followed by a smaller one; with several flows it means nothing."""

    def __post_init__(self) -> None:
        self._seen = bytearray()
        self._last = -1

    def add(self, sequences: list[int]) -> None:
        """Takes note of what one receive brought."""
        first, count = sequences[0], len(sequences)
        in_a_row = first == self._last + 1 and sequences == list(range(first, first + count))
        highest = sequences[-1] if in_a_row else max(sequences)
        if highest >= len(self._seen):
            self._seen.extend(bytes(highest + (1 << 20) - len(self._seen)))
        if in_a_row and not self._seen[first]:
            # The usual case, and the only one that has to be fast: whatever was seen ends right before it.
            new = count - self._seen.count(1, first, first + count)
            self._seen[first:first + count] = b"\1" * count
        else:
            new = 0
            for before, sequence in zip([self._last, *sequences], sequences):
                new += not self._seen[sequence]
                self._seen[sequence] = 1
                self.reordered += sequence < before
        self.packets += new
        self.duplicates += count - new
        self._last = sequences[-1]


def receive(address: str, datagram_bytes: int) -> Arrivals:
    """Prints the port, then takes what comes until nothing does. Empty if nothing ever came."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    batch, arrivals = Batch(RECEIVE_BATCH, datagram_bytes), Arrivals()
    with socket.socket(family, socket.SOCK_DGRAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
        listener.bind((address, 0))
        print(f"port {listener.getsockname()[1]}", flush=True)
        over = time.monotonic() + FIRST_SECONDS
        while time.monotonic() < over:
            count = libc.recvmmsg(listener.fileno(), batch.headers, batch.count, socket.MSG_DONTWAIT, None)
            if count > 0:
                arrivals.add(batch.sequences(count))
                over = time.monotonic() + IDLE_SECONDS
            if count < batch.count:
                time.sleep(RECEIVE_PAUSE_SECONDS)
    return arrivals


@dataclass(frozen=True)
class Offer:
    """What a generator sent, and in how many seconds."""

    packets: int
    seconds: float


def batch_packets(packets_per_second: float) -> int:
    """How many datagrams enter the kernel at once."""
    return max(1, min(BATCH_MAX, round(packets_per_second * BATCH_SECONDS)))


def send(address: str, port: int, packets_per_second: float, seconds: float, flows: int, datagram_bytes: int) -> Offer:
    """Sends at an even pace, batches taking turns among the flows (source ports)."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket(family, socket.SOCK_DGRAM)) for _ in range(flows)]
        for each in sockets:
            each.connect((address, port))
        return send_evenly([each.fileno() for each in sockets], packets_per_second, seconds, datagram_bytes)


def send_evenly(sockets: list[int], packets_per_second: float, seconds: float, datagram_bytes: int) -> Offer:
    """As `send`, on connected sockets."""
    batch = Batch(batch_packets(packets_per_second), datagram_bytes)
    gap_ns = round(batch.count / packets_per_second * 1e9)
    # Sleep until the batch is due, not up to 50 µs longer.
    libc.prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)
    sent = turn = 0
    began = due = time.monotonic_ns()
    end = began + round(seconds * 1e9)
    while due < end:
        ahead = due - time.monotonic_ns()
        if ahead > 0:
            time.sleep(ahead / 1e9)
        elif -ahead > MAKE_UP_NS:
            due -= ahead + MAKE_UP_NS
        batch.number_from(sent)
        count = libc.sendmmsg(sockets[turn % len(sockets)], batch.headers, batch.count, 0)
        if count < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"sendmmsg: {os.strerror(number)}")
        sent, turn, due = sent + count, turn + 1, due + gap_ns
    # The whole time counts: a generator that is done a little early has not sent faster.
    return Offer(sent, max(time.monotonic_ns() - began, end - began) / 1e9)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("role", choices=["send", "receive"])
    parser.add_argument("--address", required=True, help="of the receiver, in both roles")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--rate", type=float, default=100_000, help="packets per second")
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--flows", type=int, default=1)
    parser.add_argument("--realtime", action="store_true",
                        help="run before everything else, as if the generator were another machine; needs root")
    parser.add_argument("--bytes", type=int, default=64, help="UDP payload of each, a multiple of 8")
    options = parser.parse_args()
    # Everything made from here on is freed by counting; a collection would be a pause.
    gc.disable()
    try:
        if options.realtime:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        if options.role == "receive":
            result: Arrivals | Offer = receive(options.address, options.bytes)
        else:
            result = send(options.address, options.port, options.rate, options.seconds, options.flows, options.bytes)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(asdict(result)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
