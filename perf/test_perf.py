"""What the pure parts of perf/ promise. `python3 -m unittest discover -s perf`; no root, no processes."""

from __future__ import annotations

import tempfile
import unittest
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, Sequence

import compare
import flame
import parse
import peers
import report
import run
from contenders import KeyPair, Uringvpn
from measure import Sample, Traffic
from rig import RigError
from scenarios import DEFAULT, choose, matrix


def stream_sum(received: int, retransmits: int = 0, **udp: int) -> tuple[dict[str, float], dict[str, float]]:
    """What iperf3 says of the sender and of the receiver of one direction."""
    sent = {"bytes": received + 999, "seconds": 2.0, "retransmits": retransmits}
    return sent, {"bytes": received, "seconds": 2.0, **udp}


class Iperf3(unittest.TestCase):
    def test_only_what_arrived_counts(self) -> None:
        sent, received = stream_sum(250_000_000, retransmits=7)
        found = parse.transfer({"end": {"streams": [{}], "sum_sent": sent, "sum_received": received}})
        self.assertAlmostEqual(found.gbps, 1.0)
        self.assertEqual(found.retransmits, 7)

    def test_both_directions_add_up(self) -> None:
        end: dict[str, object] = {"streams": []}
        for suffix in ("", "_bidir_reverse"):
            end["sum_sent" + suffix], end["sum_received" + suffix] = stream_sum(125_000_000, retransmits=1)
        found = parse.transfer({"end": end})
        self.assertAlmostEqual(found.gbps, 1.0)
        self.assertEqual(found.retransmits, 2)

    def test_udp_has_losses_and_reordering(self) -> None:
        sent, received = stream_sum(1000, packets=200, lost_packets=50)
        streams = [{"udp": {"out_of_order": 2}}, {"udp": {"out_of_order": 1}}]
        found = parse.transfer({"end": {"streams": streams, "sum_sent": sent, "sum_received": received}})
        self.assertEqual((found.lost_percent, found.reordered), (25.0, 3))

    def test_a_failed_run_says_why(self) -> None:
        with self.assertRaisesRegex(RuntimeError, "refused"):
            parse.transfer({"error": "unable to connect: refused"})
        sent, received = stream_sum(0)
        with self.assertRaisesRegex(RuntimeError, "nothing arrived"):
            parse.transfer({"end": {"streams": [], "sum_sent": sent, "sum_received": received}})

    def test_warnings_before_the_report_are_skipped(self) -> None:
        self.assertEqual(parse.iperf3_report('warning: block size\n{"end": 1}'), {"end": 1})
        with self.assertRaises(ValueError):
            parse.iperf3_report("Killed")


class Proc(unittest.TestCase):
    def test_waiting_for_a_disk_is_idle(self) -> None:
        times = parse.cpu_times("cpu  10 1 20 400 50 3 4 6 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n")
        self.assertEqual(times, parse.CpuTimes(idle=450, stolen=6))

    def test_a_process_name_may_look_like_fields(self) -> None:
        self.assertEqual(parse.process_jiffies("42 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14"), 23)

    def test_status_gives_numbers_by_name(self) -> None:
        status = "Name:\tx\nVmHWM:\t    2048 kB\nThreads:\t3\nvoluntary_ctxt_switches:\t17\n"
        self.assertEqual(parse.status_numbers(status), {"VmHWM": 2048, "Threads": 3, "voluntary_ctxt_switches": 17})


class Ping(unittest.TestCase):
    OUTPUT = ("PING ::1 (::1) 56 data bytes\n[100.5] 64 bytes from ::1: icmp_seq=1 ttl=64 time=0.250 ms\n"
              "[101.5] 64 bytes from ::1: icmp_seq=2 ttl=64 time=12 ms\n[104.5] 64 bytes from ::1: icmp_seq=5 ttl=64 time=3 ms\n"
              "rtt min/avg/max/mdev = 0.1/0.2/0.3/0.0 ms\n")

    def test_the_series_keeps_its_order(self) -> None:
        self.assertEqual(parse.pings(self.OUTPUT).series_ms, [0.25, 12.0, 3.0])

    def test_only_answers_that_came_under_load_count(self) -> None:
        self.assertEqual(parse.pings(self.OUTPUT).within(101, 104).series_ms, [12.0])

    def test_an_answer_that_never_came_is_lost(self) -> None:
        self.assertAlmostEqual(parse.pings(self.OUTPUT).lost_percent, 40.0)
        self.assertEqual(parse.pings("").lost_percent, 100.0)

    def test_percentiles_are_values_that_occurred(self) -> None:
        values = [float(value) for value in range(1, 101)]
        self.assertEqual([parse.percentile(values, percent) for percent in (0, 50, 99, 100)], [1, 50, 99, 100])
        self.assertEqual(parse.percentile([3.0], 99), 3.0)


class ProductSummary(unittest.TestCase):
    TEXT = ("outbound  1 packets\ntotals: workers=2 enters=4 out_packets=90 in_datagrams=10 dropped_no_route=3 "
            "outbound_latency_ns_p50=900 outbound_latency_ns_p99=7000\n")

    def test_the_last_line_is_read(self) -> None:
        totals = parse.product_totals("totals: enters=1\n" + self.TEXT)
        self.assertEqual((totals["enters"], totals["dropped_no_route"]), (4, 3))
        self.assertEqual(parse.product_totals("it crashed"), {})

    def test_system_calls_are_per_packet_of_both_ends(self) -> None:
        totals = parse.product_totals(self.TEXT)
        self.assertEqual(parse.syscalls_per_segment([totals, totals]), 0.04)
        self.assertIsNone(parse.syscalls_per_segment([{}, {}]))

    def test_the_worst_residence_counts(self) -> None:
        self.assertEqual(parse.residence_p99_us([parse.product_totals(self.TEXT), {"inbound_latency_ns_p99": 9000}]), 9.0)
        self.assertIsNone(parse.residence_p99_us([{}]))


class Aead(unittest.TestCase):
    OUTPUT = ("seal_open/seal/1420     time:   [979.32 ns 989.50 ns 1.0285 µs]\n"
              "                        thrpt:  [1.2858 GiB/s 1.3370 GiB/s 1.3504 GiB/s]\n"
              "seal_open/open/1420     time:   [1.0008 µs 1.0105 µs 1.0297 µs]\n")

    def test_the_estimate_is_read_in_its_unit(self) -> None:
        self.assertEqual(parse.aead_cost(self.OUTPUT), parse.AeadCost(seal_ns=989.5, open_ns=1010.5))

    def test_a_missing_figure_is_an_error(self) -> None:
        with self.assertRaisesRegex(ValueError, "seal_open/open/1420"):
            parse.aead_cost(self.OUTPUT.splitlines()[0])

    def test_each_packet_is_sealed_and_opened_once(self) -> None:
        # A gigabit in packets that carry 1250 bytes each is 100,000 packets.
        self.assertAlmostEqual(parse.AeadCost(400, 600).cores_per_gbps(1250), 0.1)

    def test_only_packets_of_the_length_that_was_measured_have_a_limit(self) -> None:
        every = matrix()
        self.assertEqual(every["tcp4-1flow-forward-mtu1500"].sealed_payload_bytes, 1368)
        self.assertEqual(every["tcp6-1flow-forward-mtu1500"].sealed_payload_bytes, 1348)
        self.assertEqual(every["tcp4-1flow-forward-mtu9000"].sealed_payload_bytes, 0)
        self.assertEqual(every["udp4-64B-rate"].sealed_payload_bytes, 0)


class Commands(unittest.TestCase):
    KEYS = {"a": KeyPair(Path("/k/a"), "AAA="), "b": KeyPair(Path("/k/b"), "BBB=")}

    def test_the_other_end_is_the_peer(self) -> None:
        argv = Uringvpn("x", Path("/u"), driver="uring", outer=6, disable=("tso", "gro")).command("b", self.KEYS)
        self.assertIn("AAA=@[2001:db8::1]:51820,allowed-ips=10.77.0.1/32+fd77::1/128", argv)
        self.assertEqual(argv[argv.index("--private-key") + 1], "/k/b")
        self.assertEqual(argv[argv.index("--disable") + 1], "tso,gro")
        self.assertNotIn("--plaintext", argv)

    def test_the_plain_tunnel_has_no_keys(self) -> None:
        argv = Uringvpn("x", Path("/u"), encrypted=False).command("a", {})
        self.assertIn("192.0.2.2:51820,allowed-ips=10.77.0.2/32+fd77::2/128", argv)
        self.assertIn("--plaintext", argv)
        self.assertNotIn("--private-key", argv)

    def test_a_peer_gets_its_own_private_key_and_the_public_key_of_the_other(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            private = Path(folder, "b")
            private.write_text("PRIVATE=\n")
            keys = self.KEYS | {"b": KeyPair(private, "BBB=")}
            lines = peers.configuration("b", 4, keys).splitlines()
        self.assertIn("PrivateKey = PRIVATE=", lines)
        self.assertIn("PublicKey = AAA=", lines)
        self.assertIn("Endpoint = 192.0.2.1:51820", lines)
        self.assertIn("AllowedIPs = 10.77.0.1/32, fd77::1/128", lines)

    def test_an_unknown_peer_is_an_error(self) -> None:
        with self.assertRaisesRegex(RigError, "'nope'"):
            peers.peer("nope", 1420, 4)

    def test_the_direction_becomes_an_option(self) -> None:
        self.assertIn("-R", Traffic(direction="reverse").iperf3("::1", 3))
        self.assertNotIn("-u", Traffic().iperf3("::1", 3))
        self.assertIn("cubic", Traffic().iperf3("::1", 3))
        self.assertNotIn("cubic", Traffic("udp").iperf3("::1", 3))
        self.assertIn("-u", Traffic("udp").iperf3("::1", 3))


class Scenarios(unittest.TestCase):
    def test_names_are_unique_and_the_default_ones_exist(self) -> None:
        self.assertEqual(len(choose(DEFAULT, matrix().values())), len(DEFAULT))
        self.assertTrue(all(name == scenario.name for name, scenario in matrix().items()))

    def test_a_pattern_that_matches_nothing_is_an_error(self) -> None:
        with self.assertRaisesRegex(ValueError, "'nope'"):
            choose(["tcp4-*", "nope"], matrix().values())


def sample(gbps: float, cores_per_gbps: float, rtt: float | None = None) -> Sample:
    return Sample(gbps, cores_per_gbps, 1.0, 0, 0.0, 0, 0.0, rtt_p50_ms=rtt, rtt_p99_ms=rtt)


class Summaries(unittest.TestCase):
    def test_ratios_are_taken_within_a_round(self) -> None:
        found = run.summary([sample(1, 4), sample(4, 2)], [sample(2, 2), sample(8, 1)], [], encrypted=True)
        self.assertEqual(found["ratio_to_control"]["gbps"], {"median": 0.5, "min": 0.5, "max": 0.5})
        self.assertEqual(found["ratio_to_control"]["cores_per_gbps"]["median"], 2)
        self.assertEqual(found["spread"]["gbps"], {"median": 2.5, "min": 1, "max": 4})
        self.assertNotIn("rtt_p50_ms", found["spread"])
        self.assertEqual(len(found["samples"]), 2)
        self.assertNotIn("ratio_to_limit", found)

    def test_the_limit_is_that_of_the_round_and_of_encrypted_tunnels_only(self) -> None:
        own, control = [sample(1, 3), sample(1, 8)], [sample(1, 1)] * 2
        found = run.summary(own, control, [2.0, 4.0], encrypted=True)
        self.assertEqual(found["ratio_to_limit"]["cores_per_gbps"], {"median": 1.75, "min": 1.5, "max": 2})
        self.assertNotIn("ratio_to_limit", run.summary(own, control, [2.0, 4.0], encrypted=False))


class Report(unittest.TestCase):
    @staticmethod
    def document(rate_of_ours: float, rtt: float, limit: float = 1.0, rivals: Sequence[float] = (100e3, 150e3)) -> dict[str, Any]:
        def rated(packets: float, encrypted: bool = True) -> dict[str, Any]:
            return run.summary([replace(sample(1, 1), packets_per_second=packets)], [sample(1, 1)], [], encrypted)

        def bulk(gbps: float, encrypted: bool) -> dict[str, Any]:
            return run.summary([sample(gbps, 1.4, rtt)], [sample(40, 0.04)], [limit], encrypted)

        rates = {"direct": rated(1e6, False), "ours": rated(rate_of_ours)} | {
            name: rated(packets) for name, packets in zip(report.PEERS, rivals)}
        flows = {"direct": bulk(40, False), "ours": bulk(12, True), "ours/plain": bulk(20, False)}
        results = {report.BULK: flows, report.RATE: rates, report.PING: flows}
        return {
            "machine": {"cpu": "Abacus", "cores": 2, "kernel": "6.1", "peers": {"wireguard-go": "1.2"}}, "commit": "abc123",
            "options": {"rounds": 3, "seconds": 2}, "results": {name: {"contenders": each} for name, each in results.items()},
        }

    def verdicts(self, *arguments: Any, **named: Any) -> list[str]:
        found = report.goals(self.document(*arguments, **named)["results"])
        self.assertEqual({goal.contender for goal in found}, {"ours"})
        return [goal.verdict for goal in found]

    def test_goals_are_judged_by_their_own_sense(self) -> None:
        self.assertEqual(self.verdicts(300e3, 1.0), ["reached"] * 5)
        self.assertEqual(self.verdicts(299e3, 3.5, limit=0.9), ["reached", "missed", "missed", "missed", "missed"])

    def test_a_goal_whose_rival_is_missing_is_not_reached(self) -> None:
        self.assertEqual(self.verdicts(900e3, 1.0, rivals=(1.0,))[2], "not measured")

    def test_the_table_in_markdown_says_where_it_comes_from_and_leaves_empty_columns_out(self) -> None:
        text = report.markdown(self.document(300e3, 2.0))
        for part in ("Abacus, 2 cores, Linux 6.1, commit `abc123`", "3 rounds of 2 s", "wireguard-go 1.2", "|  | ours | 1.00 |"):
            self.assertIn(part, text)
        self.assertNotIn("RSS", text)
        self.assertEqual({line.count("|") for line in text.splitlines() if line.startswith("|")}, {12})

    def test_both_tables_show_every_contender_of_every_scenario(self) -> None:
        document = self.document(300e3, 2.0)
        lines = report.table(document["results"]).splitlines()
        self.assertEqual(len(lines), 1 + 3 + 4 + 3)
        self.assertEqual(len({len(line) for line in lines}), 1)


class Comparison(unittest.TestCase):
    @staticmethod
    def file(gbps: list[float], cost: list[float]) -> dict[str, Any]:
        own = [sample(*each) for each in zip(gbps, cost)]
        return {"results": {"s": {"contenders": {"c": run.summary(own, [sample(1, 1)] * len(own), [], encrypted=True)}}}}

    def verdicts(self, before: dict[str, Any], after: dict[str, Any]) -> dict[str, str]:
        return {each.metric: each.verdict for each in compare.differences(before, after)}

    def test_a_difference_within_the_spread_has_no_verdict(self) -> None:
        found = self.verdicts(self.file([1, 2, 3], [1, 1, 1]), self.file([2.5, 2.8, 2.9], [1, 1, 1]))
        self.assertEqual(set(found.values()), {""})

    def test_more_throughput_is_better_and_more_cpu_is_worse(self) -> None:
        found = self.verdicts(self.file([1, 2, 3], [1, 1, 1]), self.file([4, 5, 6], [2, 2, 2]))
        self.assertEqual((found["gbps"], found["cores_per_gbps"], found["gbps x control"]), ("better", "worse", "better"))

    def test_what_only_one_file_has_is_not_compared(self) -> None:
        self.assertEqual(self.verdicts(self.file([1], [1]), {"results": {}}), {})

    def test_a_plain_tunnel_is_not_compared_with_an_encrypted_one(self) -> None:
        plain, encrypted = self.file([1], [1]), self.file([1], [1])
        del plain["results"]["s"]["contenders"]["c"]["encrypted"]
        self.assertEqual(self.verdicts(plain, encrypted), {})

    def test_a_change_from_zero_is_infinite_and_none_is_zero(self) -> None:
        zero, one = parse.spread([0.0]), parse.spread([1.0])
        self.assertEqual(compare.Difference("s", "c", "lost_percent", zero, one, False).percent, float("inf"))
        self.assertEqual(compare.Difference("s", "c", "lost_percent", zero, zero, False).percent, 0.0)


class FlameGraph(unittest.TestCase):
    PERF = ("my worker  12 1.5: cpu-clock:pppH: \n\tffff81 copy<a::b>+0x1f ([kernel])\n\t  55aa uringvpn::run::h0123456789abcdef\n\n"
            "my worker  12 1.6: cpu-clock:pppH: \n\tffff81 copy<a::b>\n\t  55aa uringvpn::run\n\n"
            "swapper     0 1.7: cpu-clock:pppH: \n\tffff82 pv_native_safe_halt\n\tffff83 do_idle\n")

    def test_equal_stacks_are_counted_and_idle_ones_are_not(self) -> None:
        self.assertEqual(flame.fold(self.PERF.splitlines(True)), Counter({("my worker", "uringvpn::run", "copy<a::b>"): 2}))

    def test_folded_stacks_are_read_too(self) -> None:
        self.assertEqual(flame.fold(["main;a b;c 12\n", "main;d 3\n"]), Counter({("main", "a b", "c"): 12, ("main", "d"): 3}))

    def test_the_drawing_is_escaped_and_complete(self) -> None:
        drawing = flame.render(flame.fold(self.PERF.splitlines(True)))
        self.assertIn("copy&lt;a::b&gt;: 2 samples, 100.00 %", drawing)
        self.assertTrue(drawing.endswith("</svg>"))


if __name__ == "__main__":
    unittest.main()
