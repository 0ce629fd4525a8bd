//! Answers those who watch a tunnel, or a program that exposes ports: `uringvpn show` at `/var/run/uringvpn/NAME.sock`, Prometheus
//! over HTTP.
//!
//! One thread in one poll loop serves all of them. Its [`Source`] knows what they ask: of a tunnel [`Sources`] asks the stats thread
//! and the protocol thread, which never wait for it; of exposed ports [`super::exposed`] reads what relay threads leave in memory.
//! So no watcher, however slow or hostile, comes near a packet. What watchers may take is bounded: time and bytes each
//! ([`super::watcher`]), how many come in at once ([`super::door`]) and how many stay: of more than [`WATCHERS_MAX`] of a kind the
//! oldest goes. Metrics are made once per [`METRICS_PAUSE`] however many ask.
//!
//! | listener | question | answer |
//! |---|---|---|
//! | Unix socket, its owner's alone | `show` and a line feed | [`Snapshot`](crate::stats::snapshot::Snapshot), or [`ExposedSnapshot`](crate::stats::exposed::snapshot::ExposedSnapshot), as JSON |
//! | | `histograms` and a line feed | [`Histograms`] as JSON |
//! | | `capture`, [`Wanted`] as JSON, and a line feed | packets as pcapng: the capture thread takes the watcher over |
//! | `--metrics ADDR:PORT` or `unix:PATH` | `GET /metrics` ([`super::http`]) | OpenMetrics or the older text |

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::capture::{Captures, PeerName, Request, Wanted};
use super::door::{Door, Entrance, WATCHERS_MAX};
use super::http::{self, Format};
use super::uapi_socket::Command;
use super::unix_socket::Listener;
use super::watched::{self, WatchedPeer};
use super::watcher::{Answer, Body, Language, Stream, Watcher};
use crate::io::clock;
use crate::io::wake::Waker;
use crate::proto::timers::REJECT_AFTER_TIME;
use crate::stats::histograms::Histograms;
use crate::stats::openmetrics::{Metrics, PEERS_TOLD_MAX, Peers};
use crate::stats::text_format;
use crate::stats::thread::Question;
use crate::time::{Span, Time};

/// Where `show` looks for sockets.
pub const DIRECTORY: &str = "/var/run/uringvpn";

/// Where sockets of those may lie who may not write to [`DIRECTORY`], as `uringvpn local` may be run by anybody: a directory of
/// their own, if the system gives them one (XDG base directory specification).
pub fn directories() -> Vec<PathBuf> {
    let own = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    let own = own.map(|path| path.join("uringvpn"));
    [PathBuf::from(DIRECTORY)].into_iter().chain(own).collect()
}

/// For how long what was made for one scraper is good enough for the next.
pub const METRICS_PAUSE: Span = Span::from_millis(200);
/// How long the stats thread and the protocol thread may take to answer.
const ANSWER_TIME: Duration = Duration::from_secs(2);

/// Knows what watchers ask.
pub trait Source: Send + 'static {
    /// The answer to a line, JSON without its line end; `None` if it comes from elsewhere. `client` is who asked, if he came by a
    /// Unix socket.
    fn answer(&mut self, line: &[u8], client: Option<&UnixStream>) -> Option<Vec<u8>>;

    /// OpenMetrics; `None` if nobody answers.
    fn metrics(&mut self) -> Option<String>;

    /// Does what is due `now`; when there will be something again.
    fn keep_up(&mut self, now: Time) -> Option<Time> {
        let _ = now;
        None
    }
}

/// An answer that says why there is none.
pub(super) fn error(reason: &str) -> Vec<u8> {
    serde_json::json!({ "error": reason }).to_string().into_bytes()
}

/// Whom to ask about a tunnel.
#[derive(Clone, Debug)]
pub struct Sources {
    /// The stats thread.
    pub questions: Sender<Question>,
    /// The protocol thread; none in plaintext mode.
    pub commands: Option<Sender<Command>>,
    /// The capture thread.
    pub captures: Option<Captures>,
    /// Whether metrics tell of each peer.
    pub peer_series: bool,
}

impl Sources {
    /// All that is known, as JSON; `None` if a thread does not answer, as while the tunnel ends. Both are asked before either
    /// answer is waited for.
    fn shown(&self) -> Option<Vec<u8>> {
        let peers = self.ask_for_peers()?;
        let (reply, tunnel) = bounded(1);
        self.questions.send_timeout(Question::Snapshot(clock::now(), reply), ANSWER_TIME).ok()?;
        let tunnel = tunnel.recv_timeout(ANSWER_TIME).ok()?;
        let peers = match peers {
            Some(peers) => peers.recv_timeout(ANSWER_TIME).ok()?,
            None => Vec::new(),
        };
        watched::json(&tunnel, &peers).ok()
    }

    /// Asks for the peers, if there can be any, and returns where they will come.
    fn ask_for_peers(&self) -> Option<Option<Receiver<Vec<WatchedPeer>>>> {
        let Some(commands) = &self.commands else { return Some(None) };
        let (reply, peers) = bounded(1);
        commands.send_timeout(Command::Peers(reply), ANSWER_TIME).ok()?;
        Some(Some(peers))
    }

    /// Whether there is such a peer. In plaintext mode nobody here knows; then any address may be one.
    fn has(&self, wanted: &PeerName) -> bool {
        match (self.ask_for_peers(), wanted) {
            (Some(Some(peers)), PeerName::Key(key)) => {
                let peers = peers.recv_timeout(ANSWER_TIME).unwrap_or_default();
                peers.iter().any(|peer| peer.public_key == *key)
            }
            (Some(None), PeerName::Address(_)) => true,
            _ => false,
        }
    }

    /// Has a capture begin that goes to `client`.
    ///
    /// # Errors
    /// Why not.
    fn capture(&self, wanted: &[u8], client: &UnixStream) -> Result<(), String> {
        let wanted: Wanted = serde_json::from_slice(wanted).map_err(|error| error.to_string())?;
        if let Some(peer) = wanted.filter.peer.filter(|peer| !self.has(peer)) {
            return Err(format!("it has no peer {peer}"));
        }
        let client = client.try_clone().map_err(|error| error.to_string())?;
        let captures = self.captures.as_ref().ok_or("it has no capture thread")?;
        let begun = captures.begin(Request { wanted, client });
        begun.then_some(()).ok_or_else(|| "another capture of it is running; end that first".to_owned())
    }

    /// What was counted and recorded.
    fn recorded(&self) -> Option<Box<Metrics>> {
        let (reply, answer) = bounded(1);
        self.questions.send_timeout(Question::Metrics(clock::now(), reply), ANSWER_TIME).ok()?;
        answer.recv_timeout(ANSWER_TIME).ok()
    }

    fn histograms(&self) -> Option<Histograms> {
        let recorded = self.recorded()?;
        Some(Histograms::of(&recorded.workers, &recorded.distributions, recorded.uptime_seconds))
    }
}

impl Source for Sources {
    /// `None` if it is a file, and comes from the capture thread.
    fn answer(&mut self, line: &[u8], client: Option<&UnixStream>) -> Option<Vec<u8>> {
        let answer = match (line, client) {
            ([b'c', b'a', b'p', b't', b'u', b'r', b'e', b' ', wanted @ ..], Some(client)) => {
                Some(error(&self.capture(wanted, client).err()?))
            }
            (b"show", _) => self.shown(),
            (b"histograms", _) => {
                self.histograms().and_then(|histograms| serde_json::to_vec(&histograms).ok())
            }
            _ => Some(error("unknown question; `show`, `histograms` and `capture` are known")),
        };
        Some(answer.unwrap_or_else(|| error("the tunnel does not answer")))
    }

    fn metrics(&mut self) -> Option<String> {
        let watched = self.ask_for_peers()?;
        let mut metrics = self.recorded()?;
        if let Some(watched) = watched {
            metrics.peers = Some(peers(&watched.recv_timeout(ANSWER_TIME).ok()?, self.peer_series));
        }
        metrics.text().ok()
    }
}

/// The peers in numbers, and if `told` one by one.
fn peers(watched: &[WatchedPeer], told: bool) -> Peers {
    let limit = REJECT_AFTER_TIME.as_secs_f64();
    let connected = |peer: &&WatchedPeer| peer.keypair_age_seconds.is_some_and(|age| age < limit);
    Peers {
        count: watched.len(),
        connected: watched.iter().filter(connected).count(),
        told: told.then(|| watched.iter().take(PEERS_TOLD_MAX).map(WatchedPeer::snapshot).collect()),
    }
}

/// The thread that serves watchers. Dropped, it ends and removes its sockets.
#[derive(Debug)]
pub struct Observer {
    stop: Waker,
    thread: Option<JoinHandle<()>>,
}

/// Starts serving.
///
/// # Errors
/// No descriptors, no thread.
pub fn serve(show: Option<Listener>, metrics: Option<Entrance>, source: impl Source) -> io::Result<Observer> {
    let stop = Waker::new()?;
    let show = show.map(|listener| Door::new(Entrance::Unix(listener), Language::Lines));
    let metrics = metrics.map(|entrance| Door::new(entrance, Language::Http));
    let doors = show.into_iter().chain(metrics).collect::<io::Result<_>>()?;
    let desk = Desk { source: Box::new(source), metrics: None };
    let room = Room { doors, desk, watchers: VecDeque::new() };
    let bell = stop.clone();
    let thread = std::thread::Builder::new().name("observer".into()).spawn(move || room.run(&bell))?;
    Ok(Observer { stop, thread: Some(thread) })
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
    doors: Vec<Door>,
    desk: Desk,
    /// Oldest first.
    watchers: VecDeque<Watcher>,
}

impl Room {
    fn run(mut self, stop: &Waker) {
        while !stop.rang() {
            let due = self.desk.source.keep_up(clock::now());
            let Ok(ready) = self.wait(stop, due) else {
                tracing::warn!("nobody can watch any more: poll failed");
                return;
            };
            self.attend(&ready, clock::now());
            self.welcome(clock::now());
        }
    }

    /// Sleeps until somebody comes, asks or reads, or has waited long enough, or the source has something to do. For each watcher,
    /// whether it can go on.
    fn wait(&self, stop: &Waker, due: Option<Time>) -> nix::Result<Vec<bool>> {
        let now = clock::now();
        let (open, closed): (Vec<_>, Vec<_>) = self.doors.iter().partition(|door| door.closed_until <= now);
        let mut fds = vec![PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
        fds.extend(open.iter().map(|door| PollFd::new(door.as_fd(), PollFlags::POLLIN)));
        let others = fds.len();
        fds.extend(self.watchers.iter().map(|watcher| PollFd::new(watcher.as_fd(), watcher.wants())));
        let deadlines = self.watchers.iter().map(|watcher| watcher.deadline);
        let next = deadlines.chain(closed.iter().map(|door| door.closed_until)).chain(due).min();
        let timeout = next.map_or(PollTimeout::NONE, |at| {
            // Rounded up, so as not to wake just before.
            let millis = at.since(now).as_nanos().div_ceil(1_000_000);
            PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {
                Ok(fds[others..].iter().map(|fd| fd.any() == Some(true)).collect())
            }
            Err(errno) => Err(errno),
        }
    }

    /// Goes on with those who are `ready`. Whoever was in time is heard, even if others took long to be answered.
    fn attend(&mut self, ready: &[bool], now: Time) {
        let Room { desk, watchers, .. } = self;
        let mut ready = ready.iter();
        watchers.retain_mut(|watcher| {
            let can = ready.next() == Some(&true);
            (!can || watcher.go_on(|language, stream, question| desk.reply(language, stream, question)))
                && watcher.deadline > now
        });
    }

    /// Lets in who stands at the doors. Most have asked already and are answered on the spot.
    fn welcome(&mut self, now: Time) {
        for door in &mut self.doors {
            while let Some(stream) = door.let_in(now) {
                let mut watcher = Watcher::new(stream, door.language, now);
                let desk = &mut self.desk;
                if watcher.go_on(|language, stream, question| desk.reply(language, stream, question)) {
                    make_room(&mut self.watchers, door.language);
                    self.watchers.push_back(watcher);
                }
            }
        }
    }
}

/// Strangers at the metrics cannot crowd out the owner, nor he them.
fn make_room(watchers: &mut VecDeque<Watcher>, language: Language) {
    let alike = |watcher: &Watcher| watcher.language == language;
    if watchers.iter().filter(|watcher| alike(watcher)).count() == WATCHERS_MAX {
        let oldest = watchers.iter().position(alike);
        oldest.map(|index| watchers.remove(index));
    }
}

/// Where questions are answered.
struct Desk {
    source: Box<dyn Source>,
    /// What scrapers got last, in both formats, and when; `None` in it if the tunnel did not answer.
    metrics: Option<(Time, Option<[Body; 2]>)>,
}

impl Desk {
    /// The answer; `None` if somebody else gives it.
    fn reply(&mut self, language: Language, stream: &Stream, question: &[u8]) -> Option<Answer> {
        match language {
            Language::Lines => {
                let line = question.split(|byte| *byte == b'\n').next().unwrap_or_default();
                let mut json = self.source.answer(line, stream.unix())?;
                json.push(b'\n');
                Some(Answer { head: String::new(), body: Arc::new(json) })
            }
            Language::Http => Some(http::answer(question, |format| self.metrics(format))),
        }
    }

    /// However many ask however often, the source is asked once per [`METRICS_PAUSE`].
    fn metrics(&mut self, format: Format) -> Option<Body> {
        let fresh = self.metrics.take().filter(|(made, _)| clock::now().since(*made) < METRICS_PAUSE);
        let source = &mut self.source;
        let (_, texts) = self.metrics.insert(fresh.unwrap_or_else(|| {
            let texts =
                source.metrics().map(|text| [text_format::of(&text), text].map(|text| Arc::new(text.into())));
            // The pause begins when they are made, however long that took.
            (clock::now(), texts)
        }));
        let [text, openmetrics] = texts.clone()?;
        Some(match format {
            Format::Text => text,
            Format::OpenMetrics => openmetrics,
        })
    }
}
