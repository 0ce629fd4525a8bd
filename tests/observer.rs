//! Those who watch a tunnel: `show`'s socket and Prometheus's, with watchers of every kind.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::Value;
use uringvpn::control::door::{Entrance, WATCHERS_MAX, listen_metrics};
use uringvpn::control::endpoint::MetricsAddress;
use uringvpn::control::observer::{self, METRICS_PAUSE, Observer, Sources};
use uringvpn::control::uapi_socket;
use uringvpn::control::unix_socket;
use uringvpn::control::watched::{self, WatchedPeer};
use uringvpn::io::clock;
use uringvpn::proto::keys::PublicKey;
use uringvpn::stats::counters::WorkerCounters;
use uringvpn::stats::drop::DropReason;
use uringvpn::stats::histograms::Histograms;
use uringvpn::stats::recorder::{self, Delivery, Departure, Handshakes, Reporter};
use uringvpn::stats::snapshot::{PeerSnapshot, Snapshot};
use uringvpn::stats::thread::{self, Question, Setup, StatsHandle};
use uringvpn::time::{Span, Time, WallTime};

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
        Watched::start_with(None)
    }

    /// The observer asks there for peers.
    fn start_with(commands: Option<Sender<uapi_socket::Command>>) -> Watched {
        let worker = Arc::new(WorkerCounters::default());
        let (outbox, inbox) = recorder::channel(1);
        let (questions, asked) = bounded(8);
        let setup = Setup {
            interface: "uvpn7".to_owned(),
            started: Time::default(),
            started_wall: WallTime::default(),
            report: None,
            questions: asked,
            handshakes: Handshakes::default(),
            settings: Arc::default(),
            self_check: Arc::default(),
        };
        let stats = thread::spawn(vec![worker.clone()], inbox, setup).unwrap();
        work(&worker, &mut Reporter::new(0, outbox, Time::default()));
        let directory = tempfile::tempdir().unwrap();
        let show = unix_socket::bind_in(directory.path(), "uvpn7").unwrap();
        let (metrics, address) = listen();
        let sources = Sources { questions, commands, captures: None, peer_series: false };
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
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        // Whoever is shown out hears nothing.
        let _ = stream.write_all(question);
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        answer
    }

    fn show(&self) -> Snapshot {
        for _ in 0..20 {
            let began = Instant::now();
            let answer = self.ask(b"show\n");
            match serde_json::from_str(&answer) {
                Ok(snapshot) => return snapshot,
                // The observer waits seconds for others, and a machine may make it wait as long for us; never less.
                Err(error) => assert!(began.elapsed() >= Duration::from_secs(2), "{error}: {answer}"),
            }
        }
        panic!("no answer");
    }

    fn http(&self, request: &[u8]) -> String {
        http(self.metrics, request)
    }
}

/// A listener for metrics on a port of the kernel's choice.
fn listen() -> (Entrance, SocketAddr) {
    let entrance = listen_metrics(&"127.0.0.1:0".parse().unwrap()).unwrap();
    let Entrance::Tcp(listener) = &entrance else { panic!("a TCP listener") };
    let address = listener.local_addr().unwrap();
    (entrance, address)
}

fn http(metrics: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(metrics).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    // An answer may come before all was asked.
    let _ = stream.write_all(request);
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

const SCRAPE: &[u8] = b"GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text\r\n\r\n";

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

/// A peer of which everything is known.
fn watched_peer(number: u64) -> WatchedPeer {
    let mut key = [7; 32];
    key[..8].copy_from_slice(&number.to_le_bytes());
    WatchedPeer {
        public_key: PublicKey::from_bytes(key),
        endpoint: Some("[2001:db8::1]:51820".parse().unwrap()),
        allowed_ips: ["10.9.0.2/32", "fd00::/64"].map(|prefix| prefix.parse().unwrap()).into(),
        handshake_age_seconds: Some(1.5),
        keypair_age_seconds: Some(2.5),
        handshakes: 3,
        handshake_ns_last: 4,
        handshake_ns_min: 5,
        rx_bytes: 6,
        rx_packets: 7,
        tx_bytes: 8,
        tx_packets: 9,
        drops: vec![(DropReason::StageFull, 10), (DropReason::Replayed, 11)],
        persistent_keepalive: 25,
    }
}

/// Somebody who knows so many peers, until nobody asks any more.
fn peers(count: u64) -> Sender<uapi_socket::Command> {
    let (commands, asked) = bounded(1);
    std::thread::spawn(move || {
        while let Ok(uapi_socket::Command::Peers(reply)) = asked.recv() {
            reply.send((0..count).map(watched_peer).collect()).unwrap();
        }
    });
    commands
}

#[test]
fn a_peer_is_told_as_it_is_read() {
    let read = PeerSnapshot {
        public_key: "CwAAAAAAAAAHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=".to_owned(),
        endpoint: Some("[2001:db8::1]:51820".to_owned()),
        allowed_ips: vec!["10.9.0.2/32".to_owned(), "fd00::/64".to_owned()],
        handshake_age_seconds: Some(1.5),
        keypair_age_seconds: Some(2.5),
        handshakes: 3,
        handshake_ns_last: 4,
        handshake_ns_min: 5,
        rx_bytes: 6,
        rx_packets: 7,
        tx_bytes: 8,
        tx_packets: 9,
        drops: [("stage_full".to_owned(), 10), ("replayed".to_owned(), 11)].into(),
        persistent_keepalive: 25,
    };
    assert_eq!(watched_peer(11).snapshot(), read);
    let mut snapshot = Snapshot { interface: "uvpn7".to_owned(), ..Snapshot::default() };
    let told = watched::json(&snapshot, &[watched_peer(11), watched_peer(11)]).unwrap();
    let none = watched::json(&snapshot, &[]).unwrap();
    assert_eq!(serde_json::from_slice::<Snapshot>(&none).unwrap(), snapshot);
    snapshot.peers = vec![read.clone(), read];
    // Also as JSON: no name that is read lacks, no other is told.
    let [told_json, read_json]: [Value; 2] =
        [serde_json::from_slice(&told).unwrap(), serde_json::to_value(&snapshot).unwrap()];
    assert_eq!(told_json, read_json);
    assert_eq!(serde_json::from_slice::<Snapshot>(&told).unwrap(), snapshot);
}

#[test]
fn ten_thousand_peers_are_told_whole_and_in_order_also_to_a_slow_reader() {
    let watched = Watched::start_with(Some(peers(10_000)));
    let mut stream = UnixStream::connect(&watched.path).unwrap();
    stream.write_all(b"show\n").unwrap();
    let mut answer = Vec::new();
    let mut piece = [0; 50_000];
    loop {
        let bytes = stream.read(&mut piece).unwrap();
        if bytes == 0 {
            break;
        }
        answer.extend_from_slice(&piece[..bytes]);
        std::thread::yield_now();
    }
    let snapshot: Snapshot = serde_json::from_slice(&answer).unwrap();
    let keys = snapshot.peers.iter().map(|peer| peer.public_key.parse::<PublicKey>().unwrap());
    assert!(keys.eq((0..10_000).map(|number| watched_peer(number).public_key)));
    assert_eq!(snapshot.counters["sent_datagrams"], 45);
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
    let answer = watched.http(SCRAPE);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\nContent-Type: application/openmetrics-text"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}", body.len())));
    assert!(body.contains("uringvpn_sent_datagrams_total{worker=\"0\"} 45\n"));
    assert!(body.contains("uringvpn_staged_packets 3\n"));
    assert!(body.contains("uringvpn_outbound_seconds_bucket{le=\"0.00005\"} 45\n"));
    assert!(body.contains("uringvpn_build_info{interface=\"uvpn7\",version="));
    let text = watched.http(b"GET /metrics HTTP/1.0\r\n\r\n");
    assert!(text.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4"), "{text}");
    assert!(text.contains("# TYPE uringvpn_sent_datagrams_total counter\n") && !text.contains("# EOF"));
    let head = watched.http(b"HEAD /metrics HTTP/1.1\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    for (request, status) in
        [("GET / HTTP/1.1\r\n\r\n", "200"), ("GET /secrets HTTP/1.1\r\n\r\n", "404"), ("\r\n\r\n", "400")]
    {
        assert!(watched.http(request.as_bytes()).starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}");
    }
}

/// Whoever writes more than one question must not lose the answer to it.
#[test]
fn what_follows_a_question_is_not_answered_and_does_not_cut_the_answer() {
    let watched = Watched::start();
    let pipelined = [SCRAPE; 40].concat();
    for request in [&pipelined[..], b"POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello"] {
        let mut stream = TcpStream::connect(watched.metrics).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(request).unwrap();
        let mut answer = String::new();
        // To the end, and no reset.
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{head}");
    }
    let refused = watched.http(b"POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello");
    assert!(
        refused.starts_with("HTTP/1.1 405 ") && refused.contains("\r\nAllow: GET, HEAD\r\n"),
        "{refused}"
    );
}

#[test]
fn a_question_that_never_ends_or_breaks_off_is_not_answered_and_harms_nobody() {
    let watched = Watched::start();
    let endless = [b"GET /".to_vec(), vec![b'a'; 1 << 20]].concat();
    assert_eq!(watched.http(&endless), "");
    let mut half = TcpStream::connect(watched.metrics).unwrap();
    half.write_all(&SCRAPE[..20]).unwrap();
    half.shutdown(Shutdown::Write).unwrap();
    assert_eq!(half.read(&mut [0; 16]).unwrap(), 0, "nothing more will come of it");
    // In pieces it is a question all the same.
    let mut slow = TcpStream::connect(watched.metrics).unwrap();
    for piece in SCRAPE.chunks(7) {
        slow.write_all(piece).unwrap();
        assert_eq!(watched.show().interface, "uvpn7");
    }
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("# EOF\n"));
}

#[test]
fn however_many_scrape_the_tunnel_is_asked_a_few_times_a_second() {
    let (questions, asked) = bounded(8);
    let tunnel = std::thread::spawn(move || {
        let recorded = |question| match question {
            Question::Metrics(_, reply) => reply.send(Box::default()).is_ok(),
            Question::Snapshot(..) => false,
        };
        asked.iter().map(recorded).filter(|answered| *answered).count()
    });
    let (metrics, address) = listen();
    let sources = Sources { questions, commands: None, captures: None, peer_series: false };
    let observer = observer::serve(None, Some(metrics), sources).unwrap();
    let began = Instant::now();
    for _ in 0..200 {
        assert!(http(address, SCRAPE).ends_with("# EOF\n"));
    }
    let took = began.elapsed().as_nanos() as u64;
    drop(observer);
    let answered = tunnel.join().unwrap() as u64;
    assert!((1..=1 + took / METRICS_PAUSE.as_nanos()).contains(&answered), "{answered} in {took} ns");
}

#[test]
fn metrics_are_served_on_a_socket_of_the_owners_that_goes_with_the_observer() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("metrics");
    let address = MetricsAddress::Unix(path.clone());
    assert_eq!(format!("unix:{}", path.display()).parse(), Ok(address.clone()));
    let (questions, _asked) = bounded(8);
    let sources =
        || Sources { questions: questions.clone(), commands: None, captures: None, peer_series: false };
    // What a process that was killed leaves is replaced.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let observer = observer::serve(None, Some(listen_metrics(&address).unwrap()), sources()).unwrap();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let refused = listen_metrics(&address).unwrap_err().to_string();
    assert!(refused.contains("cannot serve metrics") && refused.contains("in use"), "{refused}");
    let mut stream = UnixStream::connect(&path).unwrap();
    stream.write_all(b"GET /nowhere HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    drop(observer);
    assert!(!path.exists());
    // A file of somebody else's stays what it is.
    std::fs::write(&path, "a file").unwrap();
    let refused = listen_metrics(&address).unwrap_err().to_string();
    assert!(refused.contains("no socket is in its place"), "{refused}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "a file");
}

#[test]
fn an_address_that_is_taken_or_not_ours_is_refused_with_its_name() {
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    for address in [holder.local_addr().unwrap(), "192.0.2.77:9586".parse().unwrap()] {
        let refused = listen_metrics(&MetricsAddress::Tcp(address)).unwrap_err().to_string();
        assert!(refused.starts_with(&format!("cannot serve metrics at {address}: ")), "{refused}");
    }
}

#[test]
fn nonsense_is_refused_or_ends_the_connection() {
    let watched = Watched::start();
    assert!(watched.ask(b"quit\n").starts_with("{\"error\":"));
    assert!(watched.ask(b"\xff\xfe\0\n").starts_with("{\"error\":"));
    for wanted in ["", "{", "{\"filter\":{\"peer\":\"nobody\"}}", "{\"count\":-1}"] {
        let answer = watched.ask(format!("capture {wanted}\n").as_bytes());
        assert!(answer.starts_with("{\"error\":") && !answer.contains("thread"), "{wanted}: {answer}");
    }
    assert_eq!(watched.ask(b"capture {}\n"), "{\"error\":\"it has no capture thread\"}\n");
    // Without an end it is no question, and none will come of it.
    let endless = vec![b'a'; 64 << 10];
    assert_eq!(watched.http(&endless), "");
    let mut stream = UnixStream::connect(&watched.path).unwrap();
    let _ = stream.write_all(&endless);
    assert!(matches!(stream.read(&mut [0; 16]), Ok(0) | Err(_)));
    assert_eq!(watched.show().interface, "uvpn7");
}

#[test]
fn a_thousand_watchers_that_say_nothing_or_never_read_keep_nobody_out() {
    let watched = Watched::start();
    let mut crowd = Vec::new();
    for index in 0..1000 {
        let mut stream = TcpStream::connect(watched.metrics).unwrap();
        if index % 2 == 0 {
            stream.write_all(SCRAPE).unwrap();
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
    assert!(watched.http(SCRAPE).ends_with("# EOF\n"));
    assert_eq!(watched.show().interface, "uvpn7");
}

#[test]
fn whoever_takes_too_long_to_ask_is_shown_out() {
    let watched = Watched::start();
    let mut show = UnixStream::connect(&watched.path).unwrap();
    show.write_all(b"sh").unwrap();
    let mut scrape = TcpStream::connect(watched.metrics).unwrap();
    scrape.write_all(&SCRAPE[..20]).unwrap();
    show.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    scrape.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    assert_eq!((show.read(&mut [0; 16]).unwrap(), scrape.read(&mut [0; 16]).unwrap()), (0, 0));
}

#[test]
fn a_thousand_watchers_of_whom_none_reads_keep_nobody_out_and_few_descriptors() {
    let watched = Watched::start_with(Some(peers(1_000)));
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let long = watched.ask(b"show\n").len();
    assert!(long > 300_000, "{long} bytes: more than a socket holds by itself");
    let mut crowd = Vec::new();
    for index in 0..1_000 {
        let mut stream = UnixStream::connect(&watched.path).unwrap();
        if index % 2 == 0 {
            // Whoever is shown out before is spared the question.
            let _ = stream.write_all(b"show\n");
        }
        crowd.push(stream);
        if index % 200 == 0 {
            assert_eq!(watched.show().peers.len(), 1_000);
        }
    }
    assert_eq!(watched.show().peers.len(), 1_000);
    // At the other ends of those that were shown out there is nobody.
    let left = |stream: &UnixStream| {
        let mut fds = [PollFd::new(stream.as_fd(), PollFlags::empty())];
        poll(&mut fds, PollTimeout::ZERO).unwrap();
        !fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP))
    };
    assert!(crowd.iter().filter(|stream| left(stream)).count() <= WATCHERS_MAX);
}

#[test]
fn whoever_reads_a_long_answer_too_late_finds_it_whole_or_sees_that_it_broke_off() {
    let watched = Watched::start_with(Some(peers(10_000)));
    let mut stream = UnixStream::connect(&watched.path).unwrap();
    stream.write_all(b"show\n").unwrap();
    // Where the socket may not take it whole, the rest waits for him, and then he is shown out.
    let gone = |stream: &UnixStream| {
        let mut fds = [PollFd::new(stream.as_fd(), PollFlags::empty())];
        poll(&mut fds, PollTimeout::from(60_000_u16)).unwrap();
        fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP))
    };
    assert!(gone(&stream));
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let whole = serde_json::from_slice(&answer).is_ok_and(|told: Snapshot| told.peers.len() == 10_000);
    assert_eq!(answer.ends_with(b"\n"), whole, "{} bytes", answer.len());
    assert_eq!(watched.show().peers.len(), 10_000);
}

#[test]
fn a_capture_that_cannot_begin_says_why() {
    let capture = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_uringvpn"));
        let output = command.arg("capture").args(words).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let absent = (Some(1), "uringvpn: uvabsent0: nothing of this name is running\n".to_owned());
    assert_eq!(capture(&["uvabsent0", "-w", "/nowhere/file"]), absent);
    for (words, reason) in [
        (&["uvabsent0"][..], "--write <FILE>"),
        (&["uvabsent0", "-w", "-", "--count", "0"], "--count <N>"),
        (&["uvabsent0", "-w", "-", "--seconds", "1e9"], "--seconds <N>"),
        (&["uvabsent0", "-w", "-", "--peer", "nobody"], "not a key"),
        (&["uvabsent0", "-w", "-", "--direction", "up"], "inbound, outbound"),
    ] {
        let (code, said) = capture(words);
        assert!(code == Some(2) && said.contains(reason), "{words:?}: {said}");
    }
}

#[test]
fn show_says_which_tunnel_does_not_run_and_which_name_cannot_be() {
    let show = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_uringvpn"));
        let output = command.arg("show").args(words).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let absent = (Some(1), "uringvpn: uvabsent0: nothing of this name is running\n".to_owned());
    assert_eq!(show(&["uvabsent0"]), absent);
    let (code, reason) = show(&["../etc"]);
    assert!(code == Some(1) && reason.contains("\"../etc\""), "{reason}");
    assert_eq!(show(&["uvabsent0", "--json", "--check"]).0, Some(2));
}

#[test]
fn metrics_of_peers_need_a_place_for_metrics() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_uringvpn"));
    let output = command.args(["--plaintext", "--peer", "192.0.2.7:1", "--metrics-peers"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(2) && said.contains("--metrics-peers needs --metrics"), "{said}");
}
