//! How long `show` takes to answer when the tunnel has many peers, idle and under full load.
//!
//! ```text
//! sudo env PATH="$PATH" cargo bench --bench show_answer -- [--peers 10000] [--asks 200] [--queues 2]
//! ```
//!
//! In a network namespace of its own, over loopback. One of the peers is this program: it makes a handshake and is then sent
//! UDP packets through the tunnel by as many threads as there are queues, as fast as they can; what comes back to it nobody
//! reads. The other peers are idle. Pauses between the answers are left to the tunnel.
//!
//! What varies is nothing; what is printed is the time from asking at the socket to the last byte of the answer, the time that
//! the command `uringvpn show --json` takes as a whole, and how long the answer is and how many packets the tunnel sealed
//! meanwhile, so that an answer that says less or a load that is none are seen.
//!
//! Without `--bench` (as in `cargo test`) it asks a few times to show that it works.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used)]

mod tunnel;

use std::io::{Read, Write};
use std::net::UdpSocket;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use tunnel::{PORT, address, interface, run};
use uringvpn::control::observer::DIRECTORY;
use uringvpn::proto::cookie::MacWriter;
use uringvpn::proto::crypto::AeadKey;
use uringvpn::proto::keys::PresharedKey;
use uringvpn::proto::noise::{LocalKeys, RemoteKeys, consume_response, create_initiation};
use uringvpn::proto::rng::Rng;
use uringvpn::proto::tai64n::Tai64n;
use uringvpn::stats::snapshot::Snapshot;
use uringvpn::time::{Time, WallTime};
use uringvpn::wire::message::{KEEPALIVE_BYTES, RESPONSE_BYTES, emit_data_header};

/// Between two answers.
const PAUSE: Duration = Duration::from_millis(20);

/// What the command line asks for.
struct Plan {
    peers: usize,
    asks: usize,
    queues: usize,
}

impl Plan {
    fn from_arguments() -> Plan {
        let words: Vec<String> = std::env::args().collect();
        let measured = words.iter().any(|word| word == "--bench");
        let value = |name: &str, default: usize| {
            let at = words.iter().position(|word| word == name);
            at.map_or(default, |at| words[at + 1].parse().expect("a number"))
        };
        let [peers, asks] = if measured { [10_000, 200] } else { [300, 3] };
        Plan { peers: value("--peers", peers), asks: value("--asks", asks), queues: value("--queues", 2) }
    }
}

/// Makes a session with the tunnel as its first peer, which from then on sends to `socket`.
fn make_session(socket: &UdpSocket, local: &LocalKeys, device: &LocalKeys, rng: &mut Rng) {
    let remote = RemoteKeys::new(Some(local), *device.public(), PresharedKey::NONE);
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let stamp = Tai64n::from_wall(WallTime::from_parts(seconds, 0));
    let (mut message, initiated) = create_initiation(local, &remote, rng.private_key(), stamp, 1).unwrap();
    MacWriter::new(device.public()).write_macs(&mut message, Time::default());
    socket.send(&message).unwrap();
    let mut response = [0; RESPONSE_BYTES];
    assert_eq!(socket.recv(&mut response).unwrap(), RESPONSE_BYTES);
    let keys = consume_response(local, &remote, &initiated, &response).expect("a response that opens");
    let mut keepalive = [0; KEEPALIVE_BYTES];
    emit_data_header(&mut keepalive, keys.remote_index, 0);
    keepalive[16..].copy_from_slice(&AeadKey::new(&keys.sealing).seal(0, &[], &mut []));
    socket.send(&keepalive).unwrap();
}

/// What the tunnel answers at its socket.
fn ask() -> String {
    let mut stream = UnixStream::connect(format!("{DIRECTORY}/{}.sock", interface())).unwrap();
    stream.write_all(b"show\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn run_command() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_uringvpn"));
    let status = command.args(["show", "--json", &interface()]).stdout(Stdio::null()).status().unwrap();
    assert!(status.success());
}

/// Does `work` so many times and prints how long it took.
fn time(name: &str, count: usize, mut work: impl FnMut()) {
    let mut took: Vec<Duration> = (0..count)
        .map(|_| {
            thread::sleep(PAUSE);
            let began = Instant::now();
            work();
            began.elapsed()
        })
        .collect();
    took.sort_unstable();
    let at =
        |share: f64| took[((count as f64 * share).ceil() as usize).clamp(1, count) - 1].as_secs_f64() * 1e3;
    let [p50, p99, max] = [0.5, 0.99, 1.0].map(at);
    println!("{name}: p50 {p50:.2} ms, p99 {p99:.2} ms, max {max:.2} ms of {count}");
}

fn measure(load: &str, plan: &Plan) {
    let sealed = |answer: &str| serde_json::from_str::<Snapshot>(answer).unwrap().counters["sent_datagrams"];
    let (began, before) = (Instant::now(), sealed(&ask()));
    time(&format!("{load}, answer"), plan.asks, || drop(ask()));
    time(&format!("{load}, command"), plan.asks, run_command);
    let answer = ask();
    let rate = (sealed(&answer) - before) as f64 / began.elapsed().as_secs_f64();
    println!("{load}: {} peers in {} bytes, {rate:.0} packets/s sealed meanwhile", plan.peers, answer.len());
}

/// Ends the load, also if something went wrong.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn main() {
    if !geteuid().is_root() {
        println!("SKIPPED: needs root");
        return;
    }
    let plan = Plan::from_arguments();
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    run("ip link set lo up");
    let mut rng = Rng::from_seed([1; 32]);
    let device = LocalKeys::new(rng.private_key());
    let peers: Vec<_> = (0..plan.peers).map(|_| LocalKeys::new(rng.private_key())).collect();
    let keys: Vec<_> = peers.iter().map(|peer| *peer.public()).collect();
    let files = tempfile::tempdir().unwrap();
    let queues = format!("--queues {}", plan.queues);
    let mut child = tunnel::start("env", &queues, files.path(), device.private(), &keys);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(("127.0.0.1", PORT)).unwrap();
    make_session(&socket, &peers[0], &device, &mut rng);

    measure("idle", &plan);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = Stop(&stop);
        for _ in 0..plan.queues {
            scope.spawn(|| {
                let source = UdpSocket::bind("10.0.0.1:0").unwrap();
                while !stop.load(Ordering::Relaxed) {
                    // A full queue is what is wanted.
                    let _ = source.send_to(&[7; 1392], (address(0), 9));
                }
            });
        }
        measure("full load", &plan);
    });
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    assert!(child.wait().unwrap().success());
}
