//! `uringvpn report` of what perf/run.py measured, as its own code writes it.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// Writes a file as perf/run.py does, of a tunnel that moved so many gigabits per second.
const WRITER: &str = r#"
import json, sys
sys.path.insert(0, "perf")
from dataclasses import asdict
from measure import Sample
from run import summary
from scenarios import matrix
speed = float(sys.argv[1])
def samples(factor):
    return [Sample(gbps=speed * factor * (1 + number / 100), cores_per_gbps=0.5 / speed, busy_cores=1.9, retransmits=0,
                   lost_percent=0.0, reordered=0, stolen_seconds=0.0, rtt_p50_ms=1.0, rtt_p99_ms=3.0 / speed,
                   lost_pings_percent=0.0) for number in range(3)]
cable, ours = samples(10), samples(1)
scenario = next(iter(matrix().values()))
print(json.dumps({
    "machine": {"cpu": "A CPU", "cores": 2, "kernel": "6.18", "iperf3": "iperf 3.12", "peers": {"wireguard-go": "0.0.1"}},
    "commit": "abc123", "busy_cores_before": 0.02, "options": {"rounds": 3, "seconds": 5, "peers": []},
    "results": {scenario.name: {"control": "direct", "scenario": asdict(scenario), "aead": [], "contenders": {
        "direct": summary(cable, cable, [], False), "ours/uring": summary(ours, cable, [0.1] * 3, True)}}}}, indent=1))
"#;

fn measured(directory: &TempDir, name: &str, speed: &str) -> String {
    let python = Command::new("python3")
        .args(["-B", "-c", WRITER, speed])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(python.status.success(), "{}", String::from_utf8_lossy(&python.stderr));
    write(directory, name, &python.stdout)
}

fn write(directory: &TempDir, name: &str, bytes: &[u8]) -> String {
    let path = directory.path().join(name);
    fs::write(&path, bytes).unwrap();
    path.to_str().unwrap().to_owned()
}

fn report(options: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_uringvpn"));
    command.arg("report").args(options).stdin(Stdio::null()).output().unwrap()
}

/// The page that `options` make.
#[track_caller]
fn page(options: &[&str]) -> String {
    let output = report(&[options, &["-o", "-"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// No report, for a reason in one line.
#[track_caller]
fn assert_refused(options: &[&str], reason: &str) {
    let output = report(options);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1), "{said}");
    assert!(said.starts_with("uringvpn: ") && said.contains(reason), "{said}");
    assert_eq!(output.stdout, b"");
}

#[test]
fn measurements_become_a_page_with_rounds_ratios_round_trips_and_cpu() {
    let directory = tempfile::tempdir().unwrap();
    let page = page(&["--from", &measured(&directory, "perf.json", "4")]);
    for part in [
        "<h1>commit abc123",
        "ours/uring",
        "Throughput, Gbit/s",
        "CPU, cores per Gbit/s",
        "Round trip p99, ms",
        "<th>of the limit</th>",
        "4.04<br/>",
        "0.10<br/>",
        "wireguard-go 0.0.1",
    ] {
        assert!(page.contains(part), "{part}");
    }
    // Two contenders in four pictures: nobody measured packets per second.
    assert_eq!(page.matches("<polyline").count(), 8);
    assert!(!page.contains("Thousand packets") && !page.contains("NaN"));
}

#[test]
fn two_measurements_stand_side_by_side_with_differences_marked() {
    let directory = tempfile::tempdir().unwrap();
    let [slow, fast] =
        [("slow.json", "4"), ("fast.json", "8")].map(|(name, speed)| measured(&directory, name, speed));
    let beside = page(&["--from", &fast, "--against", &slow]);
    assert!(beside.contains("class=\"better\">+100 %") && beside.contains("class=\"better\">-50 %"));
    assert_eq!(beside.matches("<polyline").count(), 16);
    // The page is the data of the next.
    let again = write(&directory, "page.html", beside.as_bytes());
    let same = page(&["--from", &fast, "--against", &again]);
    assert!(same.contains("class=\"same\">=") && !same.contains("class=\"better\">+"));
}

#[test]
fn what_cannot_be_drawn_of_measurements_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let perf = measured(&directory, "perf.json", "4");
    let half = write(&directory, "half.json", &fs::read(&perf).unwrap()[..500]);
    let target = directory.path().join("report.html");
    let target = target.to_str().unwrap();
    let hlog = directory.path().to_str().unwrap();
    assert_refused(&["--from", &perf, "-o", target, "--hlog", hlog], "--hlog needs a watch of a tunnel");
    assert_refused(&["--against", &perf, "-o", target], "one tells what a tunnel did");
    assert_refused(
        &["--from", &half, "-o", target],
        "neither a report of uringvpn nor its data, nor a file of perf/run.py",
    );
    assert_refused(&["--from", &perf, "-o", "/dev/full"], "cannot write /dev/full: No space left on device");
    assert!(!Path::new(target).exists());
}
