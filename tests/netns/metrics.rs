//! Metrics as a real Prometheus scrapes them, and the ways in which they cannot be served.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use tempfile::TempDir;

use crate::ends::installed;
use crate::modes::{EVERYTHING, Ends, Mode, interface};
use crate::refusals::assert_refused;
use crate::rig::{Family, Host, PATIENCE, Rig, inner, wait_at_most, wait_equal, wait_until};
use crate::traffic::{Iperf, Running};
use crate::tunnel::{PROGRAM, Tunnel};

/// Where tunnels serve metrics, on whichever host.
const METRICS: &str = "127.0.0.1:9586";
const PROMETHEUS_PORT: u16 = 9090;

/// A Prometheus that scrapes the tunnel of its host every second and follows our rules.
struct Prometheus<'h> {
    host: &'h Host,
    directory: TempDir,
    _process: Running,
}

impl<'h> Prometheus<'h> {
    fn start(host: &'h Host) -> Prometheus<'h> {
        let directory = tempfile::tempdir().unwrap();
        let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/prometheus/alerts.yml");
        let config = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\n\
             rule_files: ['{}']\n\
             scrape_configs: [{{job_name: uringvpn, static_configs: [{{targets: ['{METRICS}']}}]}}]\n",
            rules.display()
        );
        let file = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        fs::write(file("config.yml"), config).unwrap();
        let log = fs::File::create(file("log")).unwrap();
        let mut command = host.command([
            "prometheus".to_owned(),
            format!("--config.file={}", file("config.yml")),
            format!("--storage.tsdb.path={}", file("data")),
            format!("--web.listen-address=127.0.0.1:{PROMETHEUS_PORT}"),
        ]);
        let process = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        Prometheus { host, directory, _process: Running(process) }
    }

    /// What the API answers, if it answers.
    fn api(&self, path: &str, query: &[(&str, &str)]) -> Option<Value> {
        let query: Vec<_> = query.iter().map(|(key, value)| format!("{key}={}", escaped(value))).collect();
        let request = format!("GET /api/v1/{path}?{} HTTP/1.0\r\n\r\n", query.join("&"));
        let answer = self.host.inside(|| {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, PROMETHEUS_PORT)).ok()?;
            exchange(&mut stream, &request)
        })?;
        let answer: Value = serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()?;
        assert_eq!(answer["status"], "success", "{request}: {answer}");
        Some(answer["data"].clone())
    }

    /// The samples that `expression` has now: labels and value of each.
    fn samples(&self, expression: &str) -> Vec<(Value, f64)> {
        let data = self.api("query", &[("query", expression)]).unwrap_or_default();
        let found = data["result"].as_array().cloned().unwrap_or_default();
        let value = |sample: &Value| sample["value"][1].as_str().unwrap().parse().unwrap();
        found.iter().map(|sample| (sample["metric"].clone(), value(sample))).collect()
    }

    /// Waits until `expression` has one sample that `is_right`.
    #[track_caller]
    fn wait_for(&self, expression: &str, is_right: impl Fn(f64) -> bool) {
        self.wait_for_sample(expression, |_, value| is_right(value));
    }

    /// The same with the labels of the sample.
    #[track_caller]
    fn wait_for_sample(&self, expression: &str, is_right: impl Fn(&Value, f64) -> bool) {
        let mut samples = Vec::new();
        let right = catch_unwind(AssertUnwindSafe(|| {
            wait_until(expression, || {
                samples = self.samples(expression);
                matches!(&samples[..], [(labels, value)] if is_right(labels, *value))
            });
        }));
        assert!(right.is_ok(), "{expression} is {samples:?}");
    }
}

impl Drop for Prometheus<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", fs::read_to_string(self.directory.path().join("log")).unwrap_or_default());
        }
    }
}

/// For a URL.
fn escaped(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// Sends `request` and reads to the end.
fn exchange(stream: &mut (impl Read + Write), request: &str) -> Option<String> {
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// What `uringvpn show` tells.
fn shown(name: &str) -> Value {
    let output = Command::new(PROGRAM).args(["show", name, "--json"]).output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Expressions of the dashboard with its variables filled in.
fn expressions() -> Vec<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/grafana/uringvpn.json");
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let filled = |text: &str| {
        let ranges = text.replace("$__rate_interval", "1m").replace("$__range", "5m");
        ranges.replace("$instance", ".*")
    };
    targets.map(|target| filled(target["expr"].as_str().unwrap())).collect()
}

#[test]
fn prometheus_scrapes_a_tunnel_and_answers_the_dashboards_questions() {
    let Some(rig) = Rig::pair() else { return };
    if !installed("prometheus") {
        return;
    }
    let options = format!("--queues 2 --metrics {METRICS} --metrics-peers");
    let ends = Ends::start(&rig, Mode::Sealed, &options, EVERYTHING);
    let prometheus = Prometheus::start(&rig.hosts[0]);
    let name = ends.links[0].as_str();
    // It takes its time to start.
    wait_at_most(3 * PATIENCE, "the first scrape", || {
        matches!(prometheus.samples("up{job='uringvpn'}")[..], [(_, 1.0)])
    });
    Iperf::start(&rig.hosts[1]).run(&rig.hosts[0], inner(Family::V4, 1), "--bytes 20M");

    // Counters and quantiles are those that `show` tells.
    let counted = || shown(name)["counters"]["sent_datagrams"].as_f64().unwrap();
    prometheus.wait_for("sum(uringvpn_sent_datagrams_total)", |value| value > 10_000.0 && value == counted());
    let latency = || {
        let rows = shown(name)["distributions"].as_array().unwrap().clone();
        let row = rows.iter().find(|row| row["name"] == "outbound").unwrap();
        row["p50"].as_f64().unwrap() / 1e9
    };
    // Within a bucket, whose bounds are at most 2.5 apart.
    let near = |value: f64| (0.39..2.6).contains(&(value / latency()));
    prometheus.wait_for("histogram_quantile(0.5, sum by (le) (uringvpn_outbound_seconds_bucket))", near);
    prometheus.wait_for("uringvpn_connected_peers", |peers| peers == 1.0);
    // Each value is that of the newest scrape, which may be older than what was waited for before. iperf3 ends when it has
    // written everything; what is still on its way then is not sent any more.
    let sent = || shown(name)["peers"][0]["tx_bytes"].as_f64().unwrap();
    prometheus.wait_for_sample("uringvpn_peer_sent_bytes_total", |labels, bytes| {
        labels["public_key"].as_str().unwrap().len() == 44 && bytes > 10e6 && bytes == sent()
    });
    prometheus.wait_for_sample("uringvpn_build_info", |labels, _| labels["interface"] == name);

    // Only OpenMetrics tells units.
    let told = |of: &str| {
        let metadata = prometheus.api("metadata", &[("metric", "uringvpn_outbound_seconds")]);
        metadata.unwrap_or_default()["uringvpn_outbound_seconds"][0][of].clone()
    };
    wait_equal("metadata", ["histogram", "seconds"].map(Value::from), || ["type", "unit"].map(told));

    // What is only there when something is wrong may be absent. A tunnel exposes no ports.
    for expression in expressions().into_iter().filter(|expression| !expression.contains("uringvpn_exposed_"))
    {
        let wanted = !expression.contains("> 0");
        wait_until(&expression, || !wanted || !prometheus.samples(&expression).is_empty());
    }
    wait_until("all rules to be evaluated", || {
        let Some(groups) = prometheus.api("rules", &[]) else { return false };
        let of_group = |group: &Value| group["rules"].as_array().unwrap().clone();
        let rules: Vec<_> = groups["groups"].as_array().unwrap().iter().flat_map(of_group).collect();
        assert!(rules.iter().all(|rule| rule["health"] != "err"), "{groups}");
        rules.len() > 5 && rules.iter().all(|rule| rule["health"] == "ok")
    });
    drop(prometheus);
    ends.stop();
}

#[test]
fn metrics_that_cannot_be_served_end_the_start_and_leave_nothing() {
    let Some(rig) = Rig::pair() else { return };
    let host = &rig.hosts[0];
    let directory = tempfile::tempdir().unwrap();
    let within = |name: &str| format!("unix:{}", directory.path().join(name).display());
    let _holder = host.inside(|| TcpListener::bind(METRICS).unwrap());
    let _listener = UnixListener::bind(directory.path().join("taken")).unwrap();
    fs::write(directory.path().join("file"), "mine").unwrap();
    for (place, words) in [
        (METRICS.to_owned(), &[METRICS, "in use", "free"][..]),
        ("192.0.2.99:9586".to_owned(), &["192.0.2.99:9586", "one of this host"]),
        (within("taken"), &["taken", "in use by another process"]),
        (within("file"), &["file", "no socket is in its place"]),
        (within("none/x"), &["none/x", "ENOENT"]),
        (within(&"x".repeat(120)), &["cannot use this name"]),
        ("unix:/sys/x".to_owned(), &["/sys/x", "no permission to create it"]),
    ] {
        for process in ["-f", ""] {
            let name = interface();
            let line = format!(
                "{PROGRAM} {process} --plaintext --tun {name} --peer 192.0.2.2:51820 --metrics {place}"
            );
            let words = [&["cannot serve metrics"], words].concat();
            assert_refused(&mut host.command(line.split_whitespace()), &words);
            assert!(!host.has_link(&name), "{place}");
            assert!(!Path::new(&format!("/var/run/uringvpn/{name}.sock")).exists(), "{place}");
        }
    }
    assert_eq!(fs::read_to_string(directory.path().join("file")).unwrap(), "mine");
    let left = fs::read_dir(directory.path()).unwrap().count();
    assert_eq!(left, 2, "what was there is still there, and nothing else");
}

#[test]
fn a_metrics_socket_is_the_owners_and_goes_with_the_tunnel() {
    let Some(rig) = Rig::pair() else { return };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("metrics");
    let name = interface();
    let line = format!(
        "{PROGRAM} -f --plaintext --tun {name} --stats-interval 86400 --peer 192.0.2.2:51820 --metrics unix:{}",
        path.display()
    );
    let start = || {
        let tunnel = Tunnel::spawn(rig.hosts[0].command(line.split_whitespace()).stdin(Stdio::null()));
        tunnel.wait_up();
        wait_until("an answer", || {
            let answer = UnixStream::connect(&path)
                .ok()
                .and_then(|mut stream| exchange(&mut stream, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"));
            answer.is_some_and(|answer| answer.contains(&format!("build_info{{interface=\"{name}\"")))
        });
        tunnel
    };
    // What the first leaves behind the second replaces.
    let killed = start();
    kill(killed.pid(), Signal::SIGKILL).unwrap();
    killed.wait();
    assert!(path.exists());
    let tunnel = start();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    tunnel.end(Signal::SIGTERM);
    assert!(!path.exists());
}
