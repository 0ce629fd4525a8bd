//! Answers those who watch the tunnel: `uringvpn show` at `/var/run/uringvpn/NAME.sock`, Prometheus over HTTP.
//!
//! One thread in one poll loop serves all of them. It asks the stats thread and the protocol thread, which never wait for
//! it, and so no watcher, however slow or hostile, comes near a packet. A watcher has [`PATIENCE`] to ask and again to
//! read; of more than [`WATCHERS_MAX`] of a kind at once the oldest goes.
//!
//! | listener | question | answer |
//! |---|---|---|
//! | Unix socket, its owner's alone | `show` and a line feed | [`Snapshot`] as JSON |
//! | | `histograms` and a line feed | [`Histograms`] as JSON |
//! | `--metrics ADDR:PORT` | `GET /metrics` | OpenMetrics text |

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Sender, bounded};
use ipnet::IpNet;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::uapi_socket::{Command, Listener};
use crate::io::clock;
use crate::io::wake::Waker;
use crate::proto::keys::PublicKey;
use crate::stats::histograms::Histograms;
use crate::stats::openmetrics::{CONTENT_TYPE, Metrics};
use crate::stats::snapshot::{PeerSnapshot, Snapshot};
use crate::stats::thread::Question;
use crate::time::{Span, Time, WallTime};

/// Where `show` looks for sockets.
pub const DIRECTORY: &str = "/var/run/uringvpn";
/// Watchers at once, of each kind.
pub const WATCHERS_MAX: usize = 64;
/// How long a watcher may take to ask, and to read its answer.
pub const PATIENCE: Span = Span::from_secs(5);
/// Longest question in bytes, HTTP's headers included.
const QUESTION_BYTES_MAX: usize = 8192;
/// How long the stats thread and the protocol thread may take to answer.
const ANSWER_TIME: Duration = Duration::from_secs(2);
/// How long to leave new watchers alone when there are no descriptors for them.
const ACCEPT_PAUSE: Span = Span::from_millis(100);

/// Whom to ask.
#[derive(Clone, Debug)]
pub struct Sources {
    /// The stats thread.
    pub questions: Sender<Question>,
    /// The protocol thread; none in plaintext mode.
    pub commands: Option<Sender<Command>>,
}

impl Sources {
    /// All that is known; `None` if a thread does not answer, as while the tunnel ends.
    fn snapshot(&self) -> Option<Box<Snapshot>> {
        let (reply, answer) = bounded(1);
        self.questions.send_timeout(Question::Snapshot(clock::now(), reply), ANSWER_TIME).ok()?;
        let mut snapshot = answer.recv_timeout(ANSWER_TIME).ok()?;
        if let Some(commands) = &self.commands {
            let (reply, answer) = bounded(1);
            commands.send_timeout(Command::Peers(reply), ANSWER_TIME).ok()?;
            let peers = answer.recv_timeout(ANSWER_TIME).ok()?;
            snapshot.peers = peers.iter().map(|peer| peer.snapshot(clock::wall())).collect();
        }
        Some(snapshot)
    }

    /// What was counted and recorded.
    fn recorded(&self) -> Option<Box<Metrics>> {
        let (reply, answer) = bounded(1);
        self.questions.send_timeout(Question::Metrics(clock::now(), reply), ANSWER_TIME).ok()?;
        answer.recv_timeout(ANSWER_TIME).ok()
    }

    fn metrics(&self) -> Option<String> {
        self.recorded()?.text().ok()
    }

    fn histograms(&self) -> Option<Histograms> {
        let recorded = self.recorded()?;
        Some(Histograms::of(&recorded.workers, &recorded.distributions, recorded.uptime_seconds))
    }
}

/// What may be shown of a peer: everything but its secrets.
#[derive(Clone, Debug)]
pub struct WatchedPeer {
    /// Its name.
    pub public_key: PublicKey,
    /// Where it is.
    pub endpoint: Option<SocketAddr>,
    /// Prefixes routed to it.
    pub allowed_ips: Vec<IpNet>,
    /// When the newest session was proven to both sides.
    pub last_handshake: Option<WallTime>,
    /// UDP payload bytes received, authenticated.
    pub rx_bytes: u64,
    /// UDP payload bytes sent.
    pub tx_bytes: u64,
    /// Seconds between persistent keepalives; 0 for none.
    pub persistent_keepalive: u16,
}

impl WatchedPeer {
    fn snapshot(&self, now: WallTime) -> PeerSnapshot {
        let seconds = |wall: WallTime| wall.secs() as f64 + f64::from(wall.nanos()) / 1e9;
        // A clock that was set back makes it no younger than just now.
        let age = |handshake| (seconds(now) - seconds(handshake)).max(0.0);
        PeerSnapshot {
            public_key: self.public_key.to_string(),
            endpoint: self.endpoint.map(|endpoint| endpoint.to_string()),
            allowed_ips: self.allowed_ips.iter().map(IpNet::to_string).collect(),
            handshake_age_seconds: self.last_handshake.map(age),
            rx_bytes: self.rx_bytes,
            tx_bytes: self.tx_bytes,
            persistent_keepalive: self.persistent_keepalive,
        }
    }
}

/// The thread that serves watchers. Dropped, it ends and removes its socket.
#[derive(Debug)]
pub struct Observer {
    stop: Waker,
    thread: Option<JoinHandle<()>>,
}

/// Starts serving.
///
/// # Errors
/// No descriptors, no thread.
pub fn serve(show: Option<Listener>, metrics: Option<TcpListener>, sources: Sources) -> io::Result<Observer> {
    let stop = Waker::new()?;
    if let Some(listener) = &show {
        listener.socket().set_nonblocking(true)?;
    }
    if let Some(listener) = &metrics {
        listener.set_nonblocking(true)?;
    }
    let room = Room { show, metrics, sources, watchers: VecDeque::new(), closed_until: Time::default() };
    let bell = stop.clone();
    let thread = std::thread::Builder::new().name("observer".into()).spawn(move || room.run(&bell))?;
    Ok(Observer { stop, thread: Some(thread) })
}

/// Listens for Prometheus.
///
/// # Errors
/// The address is taken or not ours.
pub fn listen_metrics(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address)
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.stop.wake();
        if let Some(thread) = self.thread.take() {
            // A panic there was reported by its thread.
            let _ = thread.join();
        }
    }
}

/// The thread's own.
struct Room {
    show: Option<Listener>,
    metrics: Option<TcpListener>,
    sources: Sources,
    /// Oldest first.
    watchers: VecDeque<Watcher>,
    /// No new watchers before then.
    closed_until: Time,
}

impl Room {
    fn run(mut self, stop: &Waker) {
        while !stop.rang() {
            if self.wait(stop).is_err() {
                tracing::warn!("nobody can watch the tunnel any more: poll failed");
                return;
            }
            let now = clock::now();
            if now >= self.closed_until {
                self.welcome(now);
            }
            let sources = &self.sources;
            // Whoever was in time is heard, even if others took long to be answered.
            self.watchers.retain_mut(|watcher| watcher.go_on(sources) && watcher.deadline > now);
        }
    }

    /// Sleeps until somebody comes, asks or reads, or has waited long enough.
    fn wait(&self, stop: &Waker) -> nix::Result<()> {
        let now = clock::now();
        let open = now >= self.closed_until;
        let listeners =
            [self.show.as_ref().map(|show| show.socket().as_fd()), self.metrics.as_ref().map(AsFd::as_fd)];
        let listeners = listeners.into_iter().flatten().filter(|_| open);
        let mut fds = vec![PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
        fds.extend(listeners.map(|listener| PollFd::new(listener, PollFlags::POLLIN)));
        fds.extend(self.watchers.iter().map(|watcher| PollFd::new(watcher.stream.as_fd(), watcher.wants())));
        let deadlines = self.watchers.iter().map(|watcher| watcher.deadline);
        let next = deadlines.chain((!open).then_some(self.closed_until)).min();
        let timeout = next.map_or(PollTimeout::NONE, |at| {
            // Rounded up, so as not to wake just before.
            let millis = at.since(now).as_nanos().div_ceil(1_000_000);
            PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    fn welcome(&mut self, now: Time) {
        for _ in 0..WATCHERS_MAX {
            let stream = match self.accept() {
                Ok(stream) => stream,
                Err(error) => {
                    if !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) {
                        self.closed_until = now + ACCEPT_PAUSE;
                    }
                    return;
                }
            };
            self.make_room(&stream);
            self.watchers.push_back(Watcher::new(stream, now));
        }
    }

    /// Strangers at the metrics cannot crowd out the owner, nor he them.
    fn make_room(&mut self, newcomer: &Stream) {
        let kind = std::mem::discriminant(newcomer);
        let alike = |watcher: &Watcher| std::mem::discriminant(&watcher.stream) == kind;
        if self.watchers.iter().filter(|watcher| alike(watcher)).count() == WATCHERS_MAX {
            let oldest = self.watchers.iter().position(alike);
            oldest.map(|index| self.watchers.remove(index));
        }
    }

    fn accept(&self) -> io::Result<Stream> {
        let nobody = || Err(ErrorKind::WouldBlock.into());
        let show = self.show.as_ref().map_or_else(nobody, |show| accept_unix(show.socket()));
        match show {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            other => return other,
        }
        self.metrics.as_ref().map_or_else(nobody, |metrics| {
            let (stream, _) = metrics.accept()?;
            stream.set_nonblocking(true)?;
            Ok(Stream::Http(stream))
        })
    }
}

fn accept_unix(listener: &UnixListener) -> io::Result<Stream> {
    let (stream, _) = listener.accept()?;
    stream.set_nonblocking(true)?;
    Ok(Stream::Show(stream))
}

/// Somebody who watches.
struct Watcher {
    stream: Stream,
    question: Vec<u8>,
    /// Empty until it was asked for.
    answer: Vec<u8>,
    written: usize,
    deadline: Time,
}

enum Stream {
    Show(UnixStream),
    Http(TcpStream),
}

impl Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Stream::Show(stream) => stream.as_fd(),
            Stream::Http(stream) => stream.as_fd(),
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Show(stream) => stream.read(buffer),
            Stream::Http(stream) => stream.read(buffer),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Show(stream) => stream.write(bytes),
            Stream::Http(stream) => stream.write(bytes),
        }
    }
}

impl Watcher {
    fn new(stream: Stream, now: Time) -> Watcher {
        Watcher { stream, question: Vec::new(), answer: Vec::new(), written: 0, deadline: now + PATIENCE }
    }

    fn wants(&self) -> PollFlags {
        if self.answer.is_empty() { PollFlags::POLLIN } else { PollFlags::POLLOUT }
    }

    /// Reads what was asked, then writes the answer, as far as that goes without waiting. False when there is no more to do.
    fn go_on(&mut self, sources: &Sources) -> bool {
        if self.answer.is_empty() {
            match self.listen() {
                Ok(true) => {
                    self.answer = self.reply(sources);
                    self.deadline = clock::now() + PATIENCE;
                }
                Ok(false) => return true,
                Err(()) => return false,
            }
        }
        self.talk()
    }

    /// Whether the question is complete; an error when it never will be.
    fn listen(&mut self) -> Result<bool, ()> {
        let mut buffer = [0; 1024];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(()),
                Ok(bytes) => self.question.extend_from_slice(&buffer[..bytes]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(self.is_complete()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(()),
            }
            if self.is_complete() {
                return Ok(true);
            }
            if self.question.len() > QUESTION_BYTES_MAX {
                return Err(());
            }
        }
    }

    fn is_complete(&self) -> bool {
        match self.stream {
            Stream::Show(_) => self.question.contains(&b'\n'),
            Stream::Http(_) => self.question.windows(4).any(|window| window == b"\r\n\r\n"),
        }
    }

    fn reply(&self, sources: &Sources) -> Vec<u8> {
        match self.stream {
            Stream::Show(_) => reply_to_show(&self.question, sources),
            Stream::Http(_) => reply_to_http(&self.question, sources),
        }
    }

    /// Writes on; false when all is written or nobody reads.
    fn talk(&mut self) -> bool {
        while self.written < self.answer.len() {
            match self.stream.write(&self.answer[self.written..]) {
                Ok(0) => return false,
                Ok(bytes) => self.written += bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        false
    }
}

/// JSON and a line feed.
fn reply_to_show(question: &[u8], sources: &Sources) -> Vec<u8> {
    let line = question.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let answer = match line {
        b"show" => sources.snapshot().and_then(|snapshot| serde_json::to_vec(&snapshot).ok()),
        b"histograms" => sources.histograms().and_then(|histograms| serde_json::to_vec(&histograms).ok()),
        _ => Some(br#"{"error":"unknown question; `show` and `histograms` are known"}"#.to_vec()),
    };
    let mut json = answer.unwrap_or_else(|| br#"{"error":"the tunnel does not answer"}"#.to_vec());
    json.push(b'\n');
    json
}

/// HTTP/1.1, and the connection ends with the answer.
fn reply_to_http(question: &[u8], sources: &Sources) -> Vec<u8> {
    const PLAIN: &str = "text/plain; charset=utf-8";
    let first = question.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut words = first.split(|byte| *byte == b' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = target.split(|byte| *byte == b'?').next().unwrap_or_default();
    let (status, kind, body) = match (method, path) {
        (b"GET", b"/metrics") => match sources.metrics() {
            Some(text) => ("200 OK", CONTENT_TYPE, text),
            None => ("503 Service Unavailable", PLAIN, "the tunnel does not answer\n".to_owned()),
        },
        (b"GET", b"/") => ("200 OK", PLAIN, "uringvpn: see /metrics\n".to_owned()),
        (b"GET", _) => ("404 Not Found", PLAIN, "not found; see /metrics\n".to_owned()),
        _ => ("405 Method Not Allowed", PLAIN, "only GET\n".to_owned()),
    };
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
    .into_bytes()
}
