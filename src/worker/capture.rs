//! The capture thread: asks the workers for packets, writes them as pcapng to whoever captures, one capture at a time.
//!
//! ```text
//! request ─▶ header ─▶ a tap to every worker ─▶ batches … ─▶ taps off, last batches ─▶ statistics ─▶ the next
//! ```
//! A client that reads slowly costs packets of its file and nothing else: it is waited for, batches run out, workers miss
//! packets and count them. It may take as long as it likes, until the tunnel ends; then it has a second.
//!
//! Packets of one worker come in order. Between workers the order is that of their batches: `reordercap` sorts a file.

use std::fmt::Write as _;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::RecvTimeoutError;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::handoff::{Order, Orders};
use super::tap::{self, Basin, Batch, Seen};
use crate::control::capture::{Captures, Desk, Request, Wanted, channel};
use crate::io::clock;
use crate::stats::pcapng::{self, Packet, Statistics};
use crate::time::{Span, Time};

/// How often to look whether the client has had enough, or the tunnel ends.
const TICK: Duration = Duration::from_millis(50);
/// How long a client may leave no room once the tunnel ends.
const LAST_PATIENCE: Span = Span::from_secs(1);
/// How long workers may take to let go of their taps: one turn.
const LET_GO_TIME: Duration = Duration::from_secs(1);

/// The running thread. Dropped, it ends the capture that runs, and then itself.
#[derive(Debug)]
pub struct Capturer {
    captures: Option<Captures>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Starts the thread for the tunnel `interface`, whose workers take `workers`.
///
/// # Errors
/// No thread.
pub fn start(interface: String, workers: Vec<Orders>) -> io::Result<Capturer> {
    let (captures, desk) = channel();
    let stop = Arc::new(AtomicBool::new(false));
    let told = stop.clone();
    let work = move || serve(&desk, &interface, workers, &told);
    let thread = std::thread::Builder::new().name("capture".into()).spawn(work)?;
    Ok(Capturer { captures: Some(captures), stop, thread: Some(thread) })
}

impl Capturer {
    /// Where requests go. To be dropped before this is.
    pub fn captures(&self) -> Option<Captures> {
        self.captures.clone()
    }
}

impl Drop for Capturer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.captures = None;
        if let Some(thread) = self.thread.take() {
            // A panic there was reported by its thread.
            let _ = thread.join();
        }
    }
}

fn serve(desk: &Desk, interface: &str, mut workers: Vec<Orders>, stop: &AtomicBool) {
    while let Some(Request { wanted, client }) = desk.next() {
        let (taps, basin) = tap::open(&wanted.filter, workers.len());
        let began = clock::now();
        let client = Client { stream: client, stop, patience: None };
        let mut capture =
            Capture { wanted, client, basin, began, written: 0, text: Vec::new(), comment: String::new() };
        tracing::info!("a capture of {interface} begins");
        let result = capture.begin(interface).and_then(|()| {
            tell(&mut workers, taps.into_iter().map(|tap| Order::Tap(Some(Box::new(tap)))));
            capture.run()
        });
        tell(&mut workers, std::iter::repeat_with(|| Order::Tap(None)));
        let result = result.and_then(|why| capture.finish(why));
        if result.is_err() {
            // Workers let go of their batches before we do: whoever is last frees them all.
            while capture.basin.full.recv_timeout(LET_GO_TIME).is_ok() {}
        }
        let how = result.err().map_or_else(String::new, |error| format!(", and its reader is gone: {error}"));
        let Capture { client, basin, written, .. } = capture;
        tracing::info!("the capture of {interface} ends: {written} packets, {} missed{how}", basin.missed());
        desk.finished();
        // Fails when the client is gone.
        let _ = client.stream.shutdown(Shutdown::Both);
    }
}

fn tell(workers: &mut [Orders], orders: impl Iterator<Item = Order>) {
    for (worker, order) in workers.iter_mut().zip(orders) {
        worker.give(order);
        worker.wake();
    }
}

/// One capture.
struct Capture<'a> {
    wanted: Wanted,
    client: Client<'a>,
    basin: Basin,
    began: Time,
    written: u64,
    /// Kept for their memory.
    text: Vec<u8>,
    comment: String,
}

impl Capture<'_> {
    fn begin(&mut self, interface: &str) -> io::Result<()> {
        pcapng::begin(&mut self.text, interface, self.wanted.filter.snap);
        self.client.write(&self.text)
    }

    /// Until there is a reason to end, which is told.
    fn run(&mut self) -> io::Result<&'static str> {
        let length = self.wanted.seconds.map(|seconds| Duration::from_secs(seconds.into()));
        loop {
            let age = Duration::from_nanos(clock::now().since(self.began).as_nanos());
            let left = length.map_or(TICK, |length| length.saturating_sub(age));
            match self.basin.full.recv_timeout(left.min(TICK)) {
                Ok(batch) => self.take(batch)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok("the tunnel ended"),
            }
            if self.is_full() {
                return Ok("as many packets as were wanted");
            }
            if left.is_zero() {
                return Ok("as long as was wanted");
            }
            if self.client.has_had_enough()? {
                return Ok("ended by its reader");
            }
        }
    }

    fn is_full(&self) -> bool {
        self.wanted.count.is_some_and(|count| self.written >= count)
    }

    /// Writes the packets of a batch, as many as are still wanted.
    fn take(&mut self, batch: Batch) -> io::Result<()> {
        let left = self.wanted.count.map_or(u64::MAX, |count| count - self.written);
        let left = usize::try_from(left).unwrap_or(usize::MAX);
        let offset = clock::realtime_offset();
        self.text.clear();
        for (seen, packet_bytes, kept) in batch.packets().take(left) {
            self.comment.clear();
            comment(&mut self.comment, &seen);
            let (at, direction) = (unix(seen.at, offset), seen.direction);
            let packet = Packet { at, direction, packet_bytes, kept, comment: &self.comment };
            pcapng::packet(&mut self.text, &packet);
            self.written += 1;
        }
        self.basin.give_back(batch);
        self.client.write(&self.text)
    }

    /// Writes what the workers still had, and the end.
    fn finish(&mut self, why: &str) -> io::Result<()> {
        while let Ok(batch) = self.basin.full.recv_timeout(LET_GO_TIME) {
            self.take(batch)?;
        }
        let offset = clock::realtime_offset();
        let statistics = Statistics {
            began: unix(self.began, offset),
            ended: unix(clock::now(), offset),
            written: self.written,
            missed: self.basin.missed(),
            comment: why.to_owned(),
        };
        self.text.clear();
        pcapng::end(&mut self.text, &statistics);
        self.client.write(&self.text)
    }
}

/// `peer KEY, dropped: REASON`, without what there is not.
fn comment(text: &mut String, seen: &Seen) {
    // Writing to a string does not fail.
    if let Some(peer) = &seen.peer {
        let _ = write!(text, "peer {peer}");
    }
    if let Some(reason) = seen.dropped {
        let gap = if text.is_empty() { "" } else { ", " };
        let _ = write!(text, "{gap}dropped: {}", reason.label());
    }
}

/// Nanoseconds since 1970, for a wall clock that is `offset` ahead.
fn unix(at: Time, offset: i64) -> u64 {
    at.as_nanos().saturating_add_signed(offset)
}

/// Whoever captures.
struct Client<'a> {
    stream: std::os::unix::net::UnixStream,
    /// The tunnel ends.
    stop: &'a AtomicBool,
    /// Until when it may leave no room, since the tunnel ends.
    patience: Option<Time>,
}

impl Client<'_> {
    /// Whether it has closed its half of the connection: it wants no more packets.
    fn has_had_enough(&mut self) -> io::Result<bool> {
        match self.stream.read(&mut [0; 64]) {
            Ok(bytes) => Ok(bytes == 0),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Writes all of `bytes`, however long that takes while the tunnel runs.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.stream.write(rest) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.wait_for_room()?,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn wait_for_room(&mut self) -> io::Result<()> {
        if self.stop.load(Ordering::Relaxed) {
            let patience = *self.patience.get_or_insert_with(|| clock::now() + LAST_PATIENCE);
            if patience <= clock::now() {
                return Err(ErrorKind::TimedOut.into());
            }
        }
        let mut fds = [PollFd::new(self.stream.as_fd(), PollFlags::POLLOUT)];
        let tick = PollTimeout::try_from(TICK).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, tick) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}
