"""Tests of expose.py: what it says of what it found."""

from __future__ import annotations

import unittest

import expose


class TableTest(unittest.TestCase):
    def test_a_line_per_measurement_and_contender_has_the_medians_of_the_rounds(self) -> None:
        rounds = [{"gbps": 1.0, "cpu_s_per_gb": 0.5}, {"gbps": 9.0, "cpu_s_per_gb": 0.1}, {"gbps": 2.0, "cpu_s_per_gb": 0.3}]
        text = expose.table({"one stream": {"io_uring": rounds, "bore": rounds[:1]}})
        self.assertEqual(
            text.splitlines(),
            [
                "one stream         io_uring         gbps 2.000  cpu_s_per_gb 0.300",
                "one stream         bore             gbps 1.000  cpu_s_per_gb 0.500",
            ],
        )

    def test_all_measurements_have_a_service_to_go_to(self) -> None:
        ports = {port for port, _ in expose.MEASUREMENTS.values()}
        self.assertLessEqual(ports, {expose.SERVICE_PORT, expose.IPERF_PORT})


if __name__ == "__main__":
    unittest.main()
