"""What the generator of small packets and the search for the highest rate promise. One test sends on loopback."""

from __future__ import annotations

import ctypes
import json
import random
import subprocess
import sys
import unittest
from typing import Callable

import blast
import rate


class Blast(unittest.TestCase):
    def test_numbers_that_come_in_a_row_are_counted_once_each(self) -> None:
        arrivals = blast.Arrivals()
        for first in range(0, 64_000, 64):
            arrivals.add(list(range(first, first + 64)))
        self.assertEqual(arrivals, blast.Arrivals(packets=64_000, duplicates=0, reordered=0))

    def test_losses_duplicates_and_disorder_are_told_apart(self) -> None:
        arrivals = blast.Arrivals()
        for sequences in ([0, 1, 2], [4, 3], [3, 6], [7, 8], [2_000_000], [0, 1]):
            arrivals.add(sequences)
        # New: 0 1 2, 4 3, 6, 7 8, 2000000. Again: 3, 0 1. Smaller than the one before: 3, 0.
        self.assertEqual(arrivals, blast.Arrivals(packets=9, duplicates=3, reordered=2))

    def test_counting_agrees_with_a_set_whatever_arrives(self) -> None:
        choose_number = random.Random(7)
        for _ in range(50):
            sent = [choose_number.randrange(100) if choose_number.random() < 0.2 else number for number in range(100)]
            arrivals, at = blast.Arrivals(), 0
            while at < len(sent):
                count = choose_number.randrange(1, 9)
                arrivals.add(sent[at:at + count])
                at += count
            self.assertEqual(arrivals.packets, len(set(sent)), sent)
            self.assertEqual(arrivals.duplicates, len(sent) - len(set(sent)), sent)
            self.assertEqual(arrivals.reordered, sum(after < before for before, after in zip(sent, sent[1:])), sent)

    def test_the_headers_are_those_of_the_kernel(self) -> None:
        self.assertEqual([ctypes.sizeof(each) for each in (blast.IoVec, blast.MsgHdr, blast.MmsgHdr)], [16, 56, 64])

    def test_a_datagram_begins_with_its_number(self) -> None:
        batch = blast.Batch(3, 24)
        batch.number_from(500)
        self.assertEqual(batch.sequences(2), [500, 501])
        iovecs = [ctypes.cast(header.header.iov, ctypes.POINTER(blast.IoVec)).contents for header in batch.headers]
        self.assertEqual([ctypes.c_uint64.from_address(each.base).value for each in iovecs], [500, 501, 502])
        self.assertEqual([each.bytes for each in iovecs], [24, 24, 24])

    def test_what_is_sent_arrives(self) -> None:
        receiver = subprocess.Popen([sys.executable, blast.__file__, "receive", "--address", "127.0.0.1"],
                                    stdout=subprocess.PIPE, text=True)
        with receiver:
            assert receiver.stdout is not None
            port = int(receiver.stdout.readline().split()[1])
            offer = blast.send("127.0.0.1", port, packets_per_second=2_000, seconds=0.2, flows=2, datagram_bytes=64)
            arrivals = json.loads(receiver.stdout.readline())
        self.assertGreater(offer.packets, 0)
        self.assertEqual((arrivals["packets"], arrivals["duplicates"]), (offer.packets, 0))

    def test_a_burst_is_what_is_due_in_a_quarter_of_a_millisecond(self) -> None:
        self.assertEqual([blast.batch_packets(rate) for rate in (100, 100_000, 10_000_000)], [1, 25, 64])


class RateSearch(unittest.TestCase):
    @staticmethod
    def search(holds: Callable[[float], bool]) -> tuple[rate.Trial | None, list[float]]:
        """Runs a search in which a rate holds if `holds` says so; what it found, and the rates it tried."""
        tried: list[float] = []

        def trial(asked: float) -> rate.Trial:
            tried.append(asked)
            sent = round(asked)
            return rate.Trial(asked, sent, sent if holds(asked) else sent // 2, 0, 1.0, 1.0, 0.0)

        return rate.highest_rate(trial), tried

    def test_the_highest_rate_is_found_within_the_resolution(self) -> None:
        for limit in (1_100, 70_000, 100_000, 333_333, 5_000_000):
            best, tried = self.search(lambda asked: asked <= limit)
            assert best is not None
            self.assertLessEqual(best.asked_per_second, limit)
            self.assertGreater(best.asked_per_second * rate.RESOLUTION, limit)
            self.assertLess(len(tried), 30)

    def test_what_carries_nothing_or_everything_ends_the_search(self) -> None:
        self.assertIsNone(self.search(lambda _: False)[0])
        best, _ = self.search(lambda _: True)
        assert best is not None
        self.assertLessEqual(best.asked_per_second, rate.HIGHEST_RATE)

    def test_one_hiccup_does_not_end_a_search(self) -> None:
        failed: set[float] = set()

        def holds(asked: float) -> bool:
            first = asked not in failed
            failed.add(asked)
            return asked <= 300_000 and not first

        best, _ = self.search(holds)
        assert best is not None
        self.assertGreater(best.asked_per_second * rate.RESOLUTION, 300_000)

    def test_a_rate_holds_if_it_was_offered_and_one_in_a_thousand_is_lost(self) -> None:
        def trial(sent: int, received: int) -> rate.Trial:
            return rate.Trial(100_000, sent, received, 0, 1.0, 1.0, 0.0)

        self.assertTrue(trial(100_000, 99_900).holds)
        self.assertFalse(trial(100_000, 99_899).holds)
        self.assertTrue(trial(98_000, 98_000).holds)
        self.assertFalse(trial(97_999, 97_999).holds)
        self.assertFalse(trial(0, 0).holds)


if __name__ == "__main__":
    unittest.main()
