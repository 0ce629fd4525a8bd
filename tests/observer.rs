//! Those who watch a tunnel: `show`'s socket and Prometheus's, with watchers of every kind.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::bounded;
use uringvpn::control::observer::{self, Observer, Sources, WATCHERS_MAX};
use uringvpn::control::uapi_socket;
use uringvpn::io::clock;
use uringvpn::stats::counters::WorkerCounters;
use uringvpn::stats::drop::DropReason;
use uringvpn::stats::histograms::Histograms;
use uringvpn::stats::recorder::{self, Delivery, Departure, Reporter};
use uringvpn::stats::snapshot::Snapshot;
use uringvpn::stats::thread::{self, Setup, StatsHandle};
use uringvpn::time::{Span, Time};

/// A stats thread, what one worker told it, and the observer before it.
struct Watched {
    path: PathBuf,
    metrics: SocketAddr,
    // In the order of their end: whoever asks goes before whoever answers.
    _observer: Observer,
    _stats: StatsHandle,
    _directory: tempfile::TempDir,
}

impl Watched {
    fn start() -> Watched {
        let worker = Arc::new(WorkerCounters::default());
        let (outbox, inbox) = recorder::channel(1);
        let (questions, asked) = bounded(8);
        let setup =
            Setup { interface: "uvpn7".to_owned(), started: Time::default(), report: None, questions: asked };
        let stats = thread::spawn(vec![worker.clone()], inbox, setup).unwrap();
        work(&worker, &mut Reporter::new(0, outbox, Time::default()));
        let directory = tempfile::tempdir().unwrap();
        let show = uapi_socket::bind_in(directory.path(), "uvpn7").unwrap();
        let metrics = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = metrics.local_addr().unwrap();
        let sources = Sources { questions, commands: None };
        let observer = observer::serve(Some(show), Some(metrics), sources).unwrap();
        let path = directory.path().join("uvpn7.sock");
        let watched =
            Watched { path, metrics: address, _observer: observer, _stats: stats, _directory: directory };
        // What was handed over may still be on its way.
        while watched.show().seconds.is_empty() {
            std::thread::yield_now();
        }
        watched
    }

    fn ask(&self, question: &[u8]) -> String {
        let mut stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.write_all(question).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn show(&self) -> Snapshot {
        serde_json::from_str(&self.ask(b"show\n")).unwrap()
    }

    fn http(&self, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.metrics).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        // An answer may come before all was asked.
        let _ = stream.write_all(request);
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    }
}

/// 45 packets out, 7 in, 2 dropped, 3 waiting.
fn work(worker: &WorkerCounters, reporter: &mut Reporter) {
    let now = clock::now();
    let at = |micros: u64| now + Span::from_nanos(micros * 1_000);
    worker.out_packets.add(50);
    worker.sent_datagrams.add(45);
    worker.count_drop(DropReason::NoRoute, 2);
    worker.staged.set(3);
    worker.in_datagrams.add(7);
    worker.written_packets.add(7);
    reporter.record_departure(Departure { read: at(0), sealed: at(30), sent: at(40) }, 45);
    let delivery = Delivery { received: at(0), reaped: at(10), opened: at(40), written: at(50) };
    reporter.record_delivery(delivery, 7);
    reporter.flush(at(50));
}

#[test]
fn a_snapshot_tells_what_was_counted_and_recorded() {
    let snapshot = Watched::start().show();
    assert_eq!((snapshot.schema, snapshot.interface.as_str(), snapshot.workers.len()), (1, "uvpn7", 1));
    assert_eq!(snapshot.counters["sent_datagrams"], 45);
    let drops: Vec<_> = snapshot.drops.iter().map(|drop| (drop.reason.as_str(), drop.packets)).collect();
    assert_eq!(drops, [("no_route", 2)]);
    let [outbound, inbound] = &snapshot.balance[..] else { panic!("two directions") };
    assert_eq!((outbound.taken_in, outbound.passed_on, outbound.dropped, outbound.staged), (50, 45, 2, 3));
    assert_eq!((outbound.in_flight, inbound.in_flight), (0, 0));
    let stage = |name: &str| snapshot.distributions.iter().find(|row| row.name == name).unwrap();
    assert_eq!(
        (stage("outbound").count, stage("outbound_seal").count, stage("inbound_open").count),
        (45, 45, 7)
    );
    assert!(stage("outbound_seal").p50.abs_diff(30_000) <= 300);
    assert_eq!(snapshot.workers[0].last_second.len(), snapshot.distributions.len());
    assert_eq!(snapshot.seconds[0].counters["written_packets"], 7);
}

#[test]
fn histograms_hold_every_value_that_was_recorded() {
    let watched = Watched::start();
    let answer: Histograms = serde_json::from_str(&watched.ask(b"histograms\n")).unwrap();
    assert_eq!((answer.schema, answer.counters["sent_datagrams"]), (1, 45));
    let snapshot = watched.show();
    for (ours, theirs) in answer.distributions.iter().zip(&snapshot.distributions) {
        assert_eq!(
            (&ours.name, ours.count(), ours.max().unwrap_or(0)),
            (&theirs.name, theirs.count, theirs.max)
        );
        assert_eq!(ours.at(0.5).unwrap_or(0), theirs.p50, "{}", ours.name);
    }
    let outbound = &answer.distributions[0];
    assert_eq!((outbound.name.as_str(), outbound.buckets.len(), outbound.buckets[0].1), ("outbound", 1, 45));
    assert!(outbound.buckets[0].0.abs_diff(40_000) <= 400);
}

#[test]
fn only_the_owner_may_look() {
    let watched = Watched::start();
    assert_eq!(watched.path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn prometheus_gets_its_text_and_others_their_status() {
    let watched = Watched::start();
    let answer = watched.http(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\nContent-Type: application/openmetrics-text"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}", body.len())));
    assert!(body.contains("uringvpn_sent_datagrams_total{worker=\"0\"} 45\n"));
    assert!(body.contains("uringvpn_staged_packets 3\n"));
    assert!(body.contains("uringvpn_outbound_seconds_bucket{le=\"0.00005\"} 45\n"));
    for (request, status) in [
        ("GET /metrics?x=1 HTTP/1.0\r\n\r\n", "200"),
        ("GET / HTTP/1.1\r\n\r\n", "200"),
        ("GET /secrets HTTP/1.1\r\n\r\n", "404"),
        ("POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\n", "405"),
        ("\r\n\r\n", "405"),
    ] {
        assert!(watched.http(request.as_bytes()).starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}");
    }
}

#[test]
fn nonsense_is_refused_or_ends_the_connection() {
    let watched = Watched::start();
    assert!(watched.ask(b"quit\n").starts_with("{\"error\":"));
    assert!(watched.ask(b"\xff\xfe\0\n").starts_with("{\"error\":"));
    // Without an end it is no question, and none will come of it.
    let endless = vec![b'a'; 64 << 10];
    assert_eq!(watched.http(&endless), "");
    let mut stream = UnixStream::connect(&watched.path).unwrap();
    let _ = stream.write_all(&endless);
    assert!(matches!(stream.read(&mut [0; 16]), Ok(0) | Err(_)));
    assert_eq!(watched.show().interface, "uvpn7");
}

#[test]
fn watchers_that_say_nothing_or_never_read_keep_nobody_out() {
    let watched = Watched::start();
    let mut crowd = Vec::new();
    for index in 0..4 * WATCHERS_MAX {
        let mut stream = TcpStream::connect(watched.metrics).unwrap();
        if index % 2 == 0 {
            stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
        }
        crowd.push(stream);
        if index % WATCHERS_MAX == 0 {
            crowd.extend(
                UnixStream::connect(&watched.path)
                    .map(|stream| TcpStream::from(std::os::fd::OwnedFd::from(stream))),
            );
            assert_eq!(watched.show().counters["sent_datagrams"], 45);
        }
    }
    assert!(watched.http(b"GET /metrics HTTP/1.1\r\n\r\n").contains("# EOF"));
    assert_eq!(watched.show().interface, "uvpn7");
}

#[test]
fn whoever_takes_too_long_to_ask_is_shown_out() {
    let watched = Watched::start();
    let mut stream = UnixStream::connect(&watched.path).unwrap();
    stream.write_all(b"sh").unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    assert_eq!(stream.read(&mut [0; 16]).unwrap(), 0);
}

#[test]
fn show_says_which_tunnel_does_not_run_and_which_name_cannot_be() {
    let show = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_uringvpn"));
        let output = command.arg("show").args(words).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let absent = (Some(1), "uringvpn: uvabsent0: no such tunnel is running\n".to_owned());
    assert_eq!(show(&["uvabsent0"]), absent);
    let (code, reason) = show(&["../etc"]);
    assert!(code == Some(1) && reason.contains("\"../etc\""), "{reason}");
    assert_eq!(show(&["uvabsent0", "--json", "--check"]).0, Some(2));
}
