//! Handshakes that the shipped program completes as responder: through its socket, its threads and its interface.
//!
//! ```text
//! sudo env PATH="$PATH" cargo bench --bench handshake_rate -- [--seconds 10] [--peers 2000] [--window 64] [--queues 1]
//! ```
//!
//! In a network namespace of its own, over loopback. The program has one core to itself and this generator another. Each
//! peer's initiations are made beforehand; a handshake is complete when its response has been verified and the program has
//! taken the keepalive that confirms it, which its own final count must say, too.
//!
//! At most `window` handshakes are under way, fewer than the 512 waiting messages from which on a device asks for cookies
//! and lets each source have 20 a second: so all may come from one address. What varies is nothing; what is printed is how
//! many were done, how many of them per second, and how many per second of the program's processor time.
//!
//! Without `--bench` (as in `cargo test`) it makes a few hundred to show that it works.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used)]

mod tunnel;

use std::collections::VecDeque;
use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use tunnel::{PORT, run};
use uringvpn::proto::cookie::MacWriter;
use uringvpn::proto::crypto::AeadKey;
use uringvpn::proto::keys::PresharedKey;
use uringvpn::proto::noise::{Initiated, LocalKeys, RemoteKeys, consume_response, create_initiation};
use uringvpn::proto::rng::Rng;
use uringvpn::proto::tai64n::Tai64n;
use uringvpn::time::{Time, WallTime};
use uringvpn::wire::message::{
    INITIATION_BYTES, KEEPALIVE_BYTES, RESPONSE_BYTES, emit_data_header, response,
};

/// A response that takes longer is given up.
const PATIENCE: Duration = Duration::from_secs(1);
/// More handshakes than this in a second are not prepared for.
const PER_SECOND_MAX: usize = 16_000;

/// What the command line asks for.
struct Plan {
    seconds: usize,
    peers: usize,
    window: usize,
    queues: usize,
    handshakes_max: usize,
}

impl Plan {
    fn from_arguments() -> Plan {
        let words: Vec<String> = std::env::args().collect();
        let value = |name: &str, default: usize| {
            let at = words.iter().position(|word| word == name);
            at.map_or(default, |at| words[at + 1].parse().expect("a number"))
        };
        let measured = words.iter().any(|word| word == "--bench");
        let seconds = value("--seconds", 10);
        let peers = value("--peers", if measured { 2000 } else { 300 });
        let handshakes_max = if measured { seconds * PER_SECOND_MAX } else { peers };
        Plan { seconds, peers, window: value("--window", 64), queues: value("--queues", 1), handshakes_max }
    }
}

/// An initiation on its way.
struct Prepared {
    peer: usize,
    message: [u8; INITIATION_BYTES],
    initiated: Initiated,
}

/// The other side of all peers.
struct Generator {
    peers: Vec<(LocalKeys, RemoteKeys)>,
    socket: UdpSocket,
    /// By index; taken when it was answered.
    prepared: Vec<Option<Prepared>>,
    next: usize,
    under_way: VecDeque<(usize, Instant)>,
    completed: usize,
    lost: usize,
}

impl Generator {
    /// Prepares `count` more initiations, one peer after the other.
    fn prepare(&mut self, count: usize, macs: &mut MacWriter, rng: &mut Rng) {
        let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        for _ in 0..count {
            let index = self.prepared.len();
            let peer = index % self.peers.len();
            let (local, remote) = &self.peers[peer];
            // Each round is a second later than the one before, as far as the stamp goes.
            let stamp = Tai64n::from_wall(WallTime::from_parts(began + (index / self.peers.len()) as u64, 0));
            let created = create_initiation(local, remote, rng.private_key(), stamp, index as u32);
            let (mut message, initiated) = created.expect("keys are of full order");
            macs.write_macs(&mut message, Time::default());
            self.prepared.push(Some(Prepared { peer, message, initiated }));
        }
    }

    /// Makes handshakes until the prepared ones are used up or `end` has come.
    fn run(&mut self, window: usize, end: Instant) {
        let mut buffer = [0; 2048];
        loop {
            let now = Instant::now();
            while self.under_way.front().is_some_and(|(index, sent)| {
                self.prepared[*index].is_none() || now.duration_since(*sent) > PATIENCE
            }) {
                let (index, _) = self.under_way.pop_front().unwrap();
                self.lost += usize::from(self.prepared[index].take().is_some());
            }
            let open = now < end && self.next < self.prepared.len();
            if open && self.in_flight() < window {
                let message = &self.prepared[self.next].as_ref().unwrap().message;
                self.socket.send(message).unwrap();
                self.under_way.push_back((self.next, now));
                self.next += 1;
            } else if !open && self.under_way.is_empty() {
                return;
            } else if let Ok(length) = self.socket.recv(&mut buffer) {
                self.take(&buffer[..length]);
            }
        }
    }

    fn in_flight(&self) -> usize {
        self.next - self.completed - self.lost
    }

    /// Verifies a response and confirms the session.
    fn take(&mut self, message: &[u8]) {
        let Ok(message) = <&[u8; RESPONSE_BYTES]>::try_from(message) else { return };
        let index = u32::from_le_bytes(message[response::RECEIVER].try_into().unwrap()) as usize;
        let Some(Prepared { peer, initiated, .. }) = self.prepared[index].take() else { return };
        let (local, remote) = &self.peers[peer];
        let keys = consume_response(local, remote, &initiated, message).expect("a response that opens");
        let mut keepalive = [0; KEEPALIVE_BYTES];
        emit_data_header(&mut keepalive, keys.remote_index, 0);
        let tag = AeadKey::new(&keys.sealing).seal(0, &[], &mut []);
        keepalive[16..].copy_from_slice(&tag);
        self.socket.send(&keepalive).unwrap();
        self.completed += 1;
    }
}

/// Processor time of each thread of a process, by name, in hundredths of seconds.
fn processor_time(pid: u32) -> Vec<(String, u64)> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let time = |path: &Path| -> Option<(String, u64)> {
        let stat = fs::read_to_string(path.join("stat")).ok()?;
        let (name, rest) = stat.split_once('(')?.1.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        Some((name.to_owned(), fields[11].parse::<u64>().ok()? + fields[12].parse::<u64>().ok()?))
    };
    threads.filter_map(|thread| time(&thread.path())).collect()
}

/// The program's core, and the generator's: the same if there is but one.
fn cores() -> [usize; 2] {
    static CORES: OnceLock<[usize; 2]> = OnceLock::new();
    *CORES.get_or_init(|| {
        let allowed = core_affinity::get_core_ids().unwrap();
        [allowed[0].id, allowed[allowed.len() - 1].id]
    })
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
    let peers: Vec<_> = (0..plan.peers)
        .map(|_| {
            let local = LocalKeys::new(rng.private_key());
            let remote = RemoteKeys::new(Some(&local), *device.public(), PresharedKey::NONE);
            (local, remote)
        })
        .collect();
    let files = tempfile::tempdir().unwrap();
    let keys: Vec<_> = peers.iter().map(|(local, _)| *local.public()).collect();
    let core = format!("taskset -c {}", cores()[0]);
    let queues = format!("--queues {}", plan.queues);
    let mut child = tunnel::start(&core, &queues, files.path(), device.private(), &keys);
    let mut ours = CpuSet::new();
    ours.set(cores()[1]).unwrap();
    sched_setaffinity(Pid::from_raw(0), &ours).unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(("127.0.0.1", PORT)).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let under_way = VecDeque::new();
    let mut generator =
        Generator { peers, socket, prepared: Vec::new(), next: 0, under_way, completed: 0, lost: 0 };
    // What the program computes once per peer is not what we measure.
    let mut macs = MacWriter::new(device.public());
    generator.prepare(plan.peers + plan.handshakes_max, &mut macs, &mut rng);
    let rest = generator.prepared.split_off(plan.peers);
    generator.run(plan.window, Instant::now() + Duration::from_secs(600));
    let warmed_up = generator.completed;
    generator.prepared.extend(rest);

    let before = processor_time(child.id());
    let began = Instant::now();
    generator.run(plan.window, began + Duration::from_secs(plan.seconds as u64));
    let took = began.elapsed().as_secs_f64();
    let after = processor_time(child.id());
    let completed = generator.completed - warmed_up;
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    assert!(child.wait().unwrap().success());

    let printed = fs::read_to_string(files.path().join("out")).unwrap();
    let confirmed = printed.split_whitespace().find_map(|word| word.strip_prefix("keepalives="));
    assert_eq!(confirmed.map(str::parse), Some(Ok(generator.completed)), "{printed}");
    let used: Vec<(&str, f64)> = before
        .iter()
        .zip(&after)
        .map(|((name, before), (_, after))| (name.as_str(), (after - before) as f64 / 100.0))
        .collect();
    let seconds: f64 = used.iter().map(|(_, seconds)| seconds).sum();
    println!("{completed} handshakes of {} peers in {took:.2} s, {} lost", plan.peers, generator.lost);
    println!("{:.0} per second", completed as f64 / took);
    println!("{:.0} per second of the program's processor time: {used:?}", completed as f64 / seconds);
}
