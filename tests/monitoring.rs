//! What comes with the program for those who watch it by Prometheus and Grafana, against what it really tells.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use uringvpn::stats::counters::Totals;
use uringvpn::stats::exposed::Kind;
use uringvpn::stats::exposed::openmetrics::ExposedMetrics;
use uringvpn::stats::exposed::snapshot::{PortSnapshot, Sums};
use uringvpn::stats::openmetrics::{Metrics, Peers};
use uringvpn::stats::snapshot::PeerSnapshot;
use uringvpn::stats::text_format;
use uringvpn::time::WallTime;

/// All that a tunnel can tell, as Prometheus's older text.
fn of_tunnel() -> String {
    let peer = PeerSnapshot {
        public_key: "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=".to_owned(),
        handshake_age_seconds: Some(7.5),
        ..PeerSnapshot::default()
    };
    let metrics = Metrics {
        interface: "wg0".to_owned(),
        workers: vec![Totals::default(); 2],
        peers: Some(Peers { count: 1, connected: 1, told: Some(vec![peer]) }),
        ..Metrics::default()
    };
    text_format::of(&metrics.text().unwrap())
}

/// The same of a program that exposes ports.
fn of_exposed(kind: Kind) -> String {
    let metrics = ExposedMetrics {
        kind,
        name: "server-7835".to_owned(),
        uptime_seconds: 1.0,
        started: WallTime::from_parts(1_700_000_000, 0),
        sums: Sums::default(),
        ports: vec![PortSnapshot { port: 53, protocol: "udp".to_owned(), ..PortSnapshot::default() }],
    };
    text_format::of(&metrics.text().unwrap())
}

fn everything() -> [String; 3] {
    [of_tunnel(), of_exposed(Kind::Server), of_exposed(Kind::Local)]
}

fn read(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(file)).unwrap()
}

/// Words of `text` that name metrics of ours.
fn metrics_named(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("uringvpn_")).collect()
}

#[test]
fn dashboard_and_alerts_name_only_what_is_told() {
    let told = everything().concat();
    let told = metrics_named(&told);
    for file in ["grafana/uringvpn.json", "prometheus/alerts.yml", "prometheus/alerts_test.yml"] {
        let text = read(file);
        let named = metrics_named(&text);
        assert!(named.len() > 5, "{file}: {named:?}");
        let unknown: Vec<_> = named.difference(&told).collect();
        assert!(unknown.is_empty(), "{file}: {unknown:?}");
    }
}

#[test]
fn alerts_ask_only_for_reasons_that_are_told() {
    let told = everything().concat();
    let rules = read("prometheus/alerts.yml");
    let asked: Vec<_> = rules.split("{reason").skip(1).collect();
    assert!(asked.len() >= 3);
    for matcher in asked {
        // As in {reason!~"one|other"}.
        for reason in matcher.split('"').nth(1).unwrap().split('|') {
            assert!(told.contains(&format!("reason=\"{reason}\"")), "{reason}");
        }
    }
}

#[test]
fn every_alert_has_a_test() {
    let (rules, tests) = (read("prometheus/alerts.yml"), read("prometheus/alerts_test.yml"));
    let alerts: Vec<_> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() > 5);
    for alert in alerts {
        assert!(tests.contains(&format!("alertname: {alert}}}")), "{alert} never stays quiet");
        assert!(tests.contains(&format!("alertname=\"{alert}\"")), "{alert} never fires");
    }
}

#[test]
fn panels_of_the_dashboard_lie_beside_each_other() {
    let dashboard: serde_json::Value = serde_json::from_str(&read("grafana/uringvpn.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut cells = BTreeSet::new();
    let mut ids = BTreeSet::new();
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{}", panel["title"]);
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().unwrap());
        assert!(x + w <= 24, "{}", panel["title"]);
        for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
            assert!(cells.insert(cell), "{} lies on another", panel["title"]);
        }
        let targets = panel["targets"].as_array();
        assert_eq!(targets.is_none(), panel["type"] == "row", "{}", panel["title"]);
    }
    assert!(panels.iter().filter(|panel| panel["type"] == "heatmap").count() == 2);
}

/// Runs `promtool` in the folder of the rules; it must be content.
fn promtool(words: &[&str], input: &str) {
    let mut command = Command::new("promtool");
    command.args(words).current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/prometheus"));
    let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let Ok(mut child) = spawned else {
        assert!(
            std::env::var("CI").as_deref() != Ok("true"),
            "promtool is missing, scripts/test installs it"
        );
        eprintln!("SKIPPED: no promtool: {words:?}");
        return;
    };
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(output.status.success(), "promtool {words:?}: {}", said.concat());
    assert!(!words.contains(&"metrics") || said.concat().trim().is_empty(), "{}", said.concat());
}

#[test]
fn promtool_finds_nothing_amiss_in_metrics_and_rules() {
    everything().iter().for_each(|told| promtool(&["check", "metrics"], told));
    promtool(&["check", "rules", "alerts.yml"], "");
    promtool(&["test", "rules", "alerts_test.yml"], "");
}
