//! What goes through a tunnel in the tests.

use std::io::{Seek, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use tempfile::NamedTempFile;

use crate::rig::{Family, Host, PATIENCE, inner, wait_until};

/// Whether one ping of default size is answered within a second; for [`wait_until`], as a busy machine may take longer.
pub fn reaches(from: &Host, to: IpAddr) -> bool {
    is_answered(from, to, "1")
}

/// Whether nothing answers one ping of default size, as far as 300 ms can tell.
pub fn is_silent(from: &Host, to: IpAddr) -> bool {
    !is_answered(from, to, "0.3")
}

fn is_answered(from: &Host, to: IpAddr, seconds: &str) -> bool {
    let to = to.to_string();
    from.command(["ping", "-n", "-q", "-c", "1", "-W", seconds, &to]).output().unwrap().status.success()
}

/// Sends `count` pings at once whose IP packets have exactly `packet_bytes`, unfragmented; all must be answered.
#[track_caller]
pub fn ping(from: &Host, to: IpAddr, count: u32, packet_bytes: u32) {
    ping_with(from, to, count, packet_bytes, "");
}

/// [`ping`] with `options` of ping(8).
#[track_caller]
pub fn ping_with(from: &Host, to: IpAddr, count: u32, packet_bytes: u32, options: &str) {
    let headers = if to.is_ipv4() { 20 + 8 } else { 40 + 8 };
    let size = packet_bytes - headers;
    // Once there was an answer ping waits for the others no longer than its interval, which must outlast a busy machine.
    let words = format!("ping -n -q -M do -l {count} -i 60 -W 60 -c {count} -s {size} {options} {to}");
    let text = from.run(&words);
    assert!(text.contains(&format!("{count} received")), "{text}");
}

/// Sends `count` pings a tenth of a second apart; says how many were answered. Late answers are none, so this is for what
/// must not be answered.
#[track_caller]
pub fn answered(from: &Host, to: IpAddr, count: u32, options: &str) -> u32 {
    let words = format!("ping -n -q -i 0.1 -W 1 -c {count} {options} {to}");
    let output = from.command(words.split_whitespace()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let number = text.split(" received").next().and_then(|before| before.rsplit(' ').next()?.parse().ok());
    number.unwrap_or_else(|| panic!("{words}: {text}{}", String::from_utf8_lossy(&output.stderr)))
}

/// A random generator with a seed (splitmix64), so that a failure can be had again.
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// Overwrites `bytes`.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
    }
}

/// A file of random bytes and its hash.
pub struct Sample {
    file: NamedTempFile,
    bytes: u64,
    sha256: String,
}

impl Sample {
    /// Makes one.
    pub fn new(bytes: usize) -> Sample {
        let mut file = NamedTempFile::new().unwrap();
        let mut random = Random(bytes as u64);
        let mut block = vec![0; 1 << 16];
        let mut left = bytes;
        while left > 0 {
            let part = left.min(block.len());
            random.fill(&mut block[..part]);
            file.write_all(&block[..part]).unwrap();
            left -= part;
        }
        let reader = file.reopen().unwrap();
        Sample { file, bytes: bytes as u64, sha256: sha256(reader.into()) }
    }

    /// Sends the file over one TCP connection to `address` at `to`; what arrives must have the same hash.
    #[track_caller]
    pub fn cross(&self, from: &Host, to: &Host, address: IpAddr) {
        let listener = to.inside(|| TcpListener::bind((address, 0)).unwrap());
        let target = listener.local_addr().unwrap();
        let mut sender = from.inside(|| TcpStream::connect_timeout(&target, PATIENCE).unwrap());
        let receiver = listener.accept().unwrap().0;
        sender.set_write_timeout(Some(PATIENCE)).unwrap();
        receiver.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut file = self.file.reopen().unwrap();
        file.rewind().unwrap();
        let arrived = thread::scope(|scope| {
            let hash = scope.spawn(|| sha256(receiver.into()));
            assert_eq!(std::io::copy(&mut file, &mut sender).unwrap(), self.bytes);
            drop(sender);
            hash.join().unwrap()
        });
        assert_eq!(arrived, self.sha256, "{} bytes from a file to {target}", self.bytes);
    }
}

/// The hash of everything that can be read from `source`.
fn sha256(source: OwnedFd) -> String {
    let output = Command::new("sha256sum").stdin(source).output().unwrap();
    assert!(output.status.success(), "sha256sum: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Sends UDP superpackets (UDP_SEGMENT) from `from` to `address` at `to`, each waiting for the one before; every
/// datagram must arrive, unharmed and in order.
#[track_caller]
pub fn udp_trains_in_order(from: &Host, to: &Host, address: IpAddr, segment_bytes: usize) {
    let receiver = to.inside(|| UdpSocket::bind((address, 0)).unwrap());
    let target = receiver.local_addr().unwrap();
    let sender = from.inside(|| {
        let any: SocketAddr = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
        UdpSocket::bind(any).unwrap()
    });
    setsockopt(&sender, sockopt::UdpGsoSegment, &(segment_bytes as i32)).unwrap();
    receiver.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut random = Random(segment_bytes as u64);
    let mut buffer = vec![0; 1 << 16];
    for round in 0..200 {
        // The last segment may be shorter than the others.
        let mut train = vec![0; random.below(20 * segment_bytes) + 1];
        random.fill(&mut train);
        assert_eq!(sender.send_to(&train, target).unwrap(), train.len());
        for (index, sent) in train.chunks(segment_bytes).enumerate() {
            let bytes = receiver.recv(&mut buffer).unwrap_or_else(|error| {
                panic!("train {round}, segment {index} of {} bytes in all: {error}", train.len())
            });
            assert!(
                buffer[..bytes] == *sent,
                "train {round}, segment {index}: {bytes} of {} bytes",
                sent.len()
            );
        }
    }
}

/// A program that runs until it is dropped.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An iperf3 server on a host, one client at a time.
pub struct Iperf {
    _server: Running,
}

/// What an iperf3 client reported.
pub struct Measured(String);

impl Measured {
    /// The number called `name` in the object called `section`.
    #[track_caller]
    pub fn number(&self, section: &str, name: &str) -> f64 {
        let after = |text: &str, key: &str| {
            let key = format!("\"{key}\":");
            text.find(&key).map(|at| text[at + key.len()..].to_owned())
        };
        let end =
            after(&self.0, "end").and_then(|end| after(&end, section)).and_then(|rest| after(&rest, name));
        let end = end.unwrap_or_else(|| panic!("no {section}.{name} in {}", self.0));
        end.trim_start().split([',', '\n', '}']).next().unwrap().trim().parse().unwrap()
    }
}

impl Iperf {
    /// Starts a server and waits until it listens.
    pub fn start(host: &Host) -> Iperf {
        let mut command = host.command(["iperf3", "--server", "--port", "5201"]);
        let server = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_until("iperf3 listens", || !host.run("ss -Hltn sport = :5201").is_empty());
        Iperf { _server: Running(server) }
    }

    /// Starts a client with `options` and leaves it running.
    pub fn start_client(&self, from: &Host, to: IpAddr, options: &str) -> Running {
        let words = format!("iperf3 --port 5201 --client {to} {options}");
        let mut command = from.command(words.split_whitespace());
        Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    /// Runs a client with `options`, which must succeed.
    #[track_caller]
    pub fn run(&self, from: &Host, to: IpAddr, options: &str) -> Measured {
        let words = format!("iperf3 --json --port 5201 --connect-timeout 60000 --client {to} {options}");
        let mut command = from.command(words.split_whitespace());
        let give_up = Instant::now() + PATIENCE;
        loop {
            let output = command.output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            if output.status.success() {
                return Measured(text);
            }
            // The server needs a moment between two clients.
            assert!(Instant::now() < give_up && text.contains("busy"), "{words}: {text}");
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// A steady stream of UDP datagrams from one host to the other's inner address, until dropped.
pub struct Stream {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Stream {
    /// Starts it: datagrams of 1000 bytes, about 2000 per second.
    pub fn start(from: &Host, from_index: u8, to_index: u8) -> Stream {
        Stream::start_with(from, from_index, to_index, 1000, Duration::from_micros(500))
    }

    /// Starts one of datagrams of `bytes` bytes, with `pause` between two.
    pub fn start_with(from: &Host, from_index: u8, to_index: u8, bytes: usize, pause: Duration) -> Stream {
        let source = inner(Family::V4, from_index);
        let socket = from.inside(|| UdpSocket::bind((source, 0)).unwrap());
        let target = SocketAddr::new(inner(Family::V4, to_index), 9);
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count, datagram) = (stop.clone(), sent.clone(), vec![7; bytes]);
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                // While the interface is down there is no route; that is not this thread's business.
                count.fetch_add(u64::from(socket.send_to(&datagram, target).is_ok()), Ordering::Relaxed);
                thread::sleep(pause);
            }
        });
        Stream { stop, sent, thread: Mutex::new(Some(thread)) }
    }

    /// Datagrams the kernel took.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let _ = thread.map(JoinHandle::join);
    }
}
