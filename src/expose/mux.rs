//! Many visitors on one connection between client and server, the carrier: each a stream with a window of its own.
//!
//! ```text
//!  visitor ──▶ Received ──▶ a frame more in `out`                     server, or client with the service in the visitor's place
//!  visitor ──▶ Received ──▶ a frame more in `out` ──▶ one send, at the end of the turn ──▶ carrier
//!  visitor ◀── one send each ◀────────────────────── frames ◀── Received ◀──────────────── carrier
//! ```
//!
//! So many small messages cost one send and one receive of the carrier, where [`super::relay`] has one of each for every message.
//! No visitor waits for another: of each direction of a stream at most [`WINDOW_BYTES`](window::WINDOW_BYTES) are on their way,
//! what its reader does not take waits in memory here, and the carrier itself is always read. Half-close and RST are frames, and
//! mean what they mean on a connection. Only TCP itself can hold them all up together: when a segment of the carrier is lost.
//!
//! A carrier that breaks takes its streams along, but for those that both sides have ended; their sockets are reset.

mod carrier;
pub mod frames;
mod stream;
pub mod window;

use std::collections::VecDeque;
use std::net::SocketAddr;

use nix::errno::Errno;
use slab::Slab;

use super::relay::{End, Limits, Over, Silence};
use crate::io::lease::BUFFER_BYTES;
use crate::io::tcp::{Chunk, Close, Event, Id, IdMap, Tcp};
use crate::stats::exposed::recorder::Meter;
use crate::time::{Span, Time};
use carrier::{Breach, Carrier};
use frames::Piece;
use stream::{CARRIER, Joined, SOCKET, Stream};
use window::Window;

/// Bytes that wait for the carrier, above which nobody is received from anew and no stream opened. Who was asked before may still
/// bring a buffer each.
const OUT_BYTES_MAX: usize = 256 << 10;
/// Bytes of answers that wait for the carrier, above which the other side may not open streams: it does not read them.
const ANSWERS_BYTES_MAX: usize = 1 << 20;
/// Streams that are received from again in one turn when there is room in the carrier.
const RESUMED: usize = OUT_BYTES_MAX / BUFFER_BYTES + 1;
/// How long the other side may take to hear that a carrier is done.
const LEAVING_TIME: Span = Span::from_secs(15);
/// Memory that a carrier keeps for what goes out next, in bytes.
const SPARE_BYTES: usize = 64 << 10;

/// Names a stream of one [`Mux`]. Never used again for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StreamId {
    key: usize,
    serial: u64,
}

/// What the user of a [`Mux`] hears.
#[derive(Debug)]
pub enum Told<T> {
    /// The other side has a visitor. It waits for [`Mux::join`] or [`Mux::refuse`].
    Opened {
        /// Its stream.
        stream: StreamId,
        /// Who.
        from: SocketAddr,
    },
    /// A visitor that waited has gone.
    Withdrawn(StreamId),
    /// A stream that was joined is over.
    Over(Over<T>),
    /// A carrier is no more, and so are its streams.
    Lost {
        /// Which.
        carrier: Id,
        /// Why.
        reason: String,
    },
}

/// The carriers of one [`Tcp`] and their streams. `T` is what its user wants to know when one is over.
#[derive(Debug)]
pub struct Mux<T> {
    carriers: IdMap<Carrier>,
    streams: Slab<Stream<T>>,
    /// The streams of joined sockets.
    sockets: IdMap<usize>,
    /// The other side opens streams.
    accepts: bool,
    silence: Silence,
    serial: u64,
    /// Carriers that something is to be done for.
    list: Vec<Id>,
    /// Carriers that are leaving, and how long they may.
    leaving: VecDeque<(Time, Id)>,
    told: VecDeque<Told<T>>,
}

impl<T: Copy> Mux<T> {
    /// Without carriers. Either the other side opens streams, or we do.
    pub fn new(limits: Limits, accepts: bool) -> Mux<T> {
        Mux {
            carriers: IdMap::default(),
            streams: Slab::new(),
            sockets: IdMap::default(),
            accepts,
            silence: Silence::new(limits),
            serial: 0,
            list: Vec::new(),
            leaving: VecDeque::new(),
            told: VecDeque::new(),
        }
    }

    /// How many streams there are.
    pub fn len(&self) -> usize {
        self.streams.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// Whether there is no carrier either, so that nothing is on its way.
    pub fn is_over(&self) -> bool {
        self.is_empty() && self.carriers.is_empty()
    }

    /// Makes a connection a carrier, from which nothing is asked now. `brought` has come from it already, and `unsent` sends
    /// to it have not ended.
    pub fn carry(&mut self, tcp: &mut (impl Tcp + ?Sized), id: Id, brought: Option<Chunk>, unsent: u8) {
        self.carriers.insert(id, Carrier { unsent, ..Carrier::default() });
        match brought {
            Some(chunk) => self.carrier_received(tcp, id, chunk),
            None => tcp.receive(id),
        }
    }

    /// Whether streams can be opened on `carrier`.
    pub fn can_open(&self, carrier: Id) -> bool {
        self.carriers.at(carrier).is_some_and(|carrier| {
            !carrier.retiring && carrier.newest < u32::MAX && carrier.out.len() < OUT_BYTES_MAX
        })
    }

    /// Opens a stream for the visitor at `socket`, from which nothing is asked now.
    ///
    /// # Panics
    /// If it cannot be opened ([`Mux::can_open`]).
    pub fn open(
        &mut self,
        tcp: &mut (impl Tcp + ?Sized),
        carrier: Id,
        socket: Id,
        from: SocketAddr,
        tag: T,
        meter: Meter,
    ) {
        let carrying = self.carriers.at_mut(carrier).expect("it can be opened");
        let number = carrying.newest.checked_add(1).expect("it can be opened");
        let stream = self.insert(carrier, number, tcp.now());
        self.say(carrier, Piece::Open { stream: number, from });
        self.join(tcp, stream, socket, &[], tag, meter);
    }

    /// Joins a stream to `socket`, from which nothing is asked now, and which is sent `said` first. Nothing happens if the visitor
    /// has gone.
    pub fn join(
        &mut self,
        tcp: &mut (impl Tcp + ?Sized),
        id: StreamId,
        socket: Id,
        said: &[u8],
        tag: T,
        mut meter: Meter,
    ) {
        let Some(stream) = self.at_mut(id) else { return tcp.close(socket, Close::Reset) };
        let sending = (!said.is_empty()).then(|| {
            tcp.send_bytes(socket, said);
            0
        });
        if !stream.waiting.is_empty() {
            meter.passed(CARRIER, stream.waiting.len() as u64, tcp.now());
        }
        stream.joined = Some(Joined { socket, tag, meter, receiving: false, sending, shut_down: false });
        self.sockets.insert(socket, id.key);
        // Either reader may pause for as long as it likes.
        tcp.be_patient(socket);
        self.pass_on(tcp, id.key);
        self.feed(tcp, id.key);
        self.watch(id.key);
    }

    /// Turns the visitor of a stream away that is not joined.
    pub fn refuse(&mut self, id: StreamId) {
        if self.at_mut(id).is_some() {
            let stream = self.remove(id.key);
            self.say(stream.carrier, Piece::Reset(stream.number));
        }
    }

    /// No stream is opened on a carrier any more; it goes with the last of those it has.
    pub fn retire(&mut self, carrier: Id) {
        if let Some(carrying) = self.carriers.at_mut(carrier) {
            carrying.retiring = true;
            self.list(carrier);
        }
    }

    /// Acts on `event` if it is about a carrier or a stream; otherwise it comes back. What there is to tell is
    /// [`Mux::take_told`]'s.
    ///
    /// # Errors
    /// The event, which is not ours.
    pub fn handle(&mut self, tcp: &mut (impl Tcp + ?Sized), event: Event) -> Result<(), Event> {
        let (Event::Received { id, .. } | Event::Ended(id) | Event::Sent(id) | Event::Failed { id, .. }) =
            event
        else {
            return Err(event);
        };
        if let Some(&key) = self.sockets.at(id) {
            self.socket_event(tcp, key, event);
        } else if let Some(carrier) = self.carriers.at_mut(id) {
            match event {
                Event::Received { chunk, .. } => self.carrier_received(tcp, id, chunk),
                Event::Sent(_) => {
                    carrier.unsent -= 1;
                    self.list(id);
                }
                Event::Failed { error, .. } => self.lose(tcp, id, error, error.desc()),
                _ => self.carrier_ended(tcp, id),
            }
        } else {
            return Err(event);
        }
        Ok(())
    }

    /// The next thing to tell.
    pub fn take_told(&mut self) -> Option<Told<T>> {
        self.told.pop_front()
    }

    /// Sends what the turn has brought together. To be called when all events of a turn are handled.
    pub fn flush(&mut self, tcp: &mut (impl Tcp + ?Sized)) {
        for id in std::mem::take(&mut self.list) {
            let Some(carrier) = self.carriers.at_mut(id) else { continue };
            carrier.listed = false;
            if carrier.unsent > 0 {
                continue;
            }
            if !carrier.out.is_empty() {
                tcp.send_bytes(id, &carrier.out);
                carrier.unsent = 1;
                carrier.out.clear();
                carrier.answers_bytes = 0;
                carrier.out.shrink_to(SPARE_BYTES);
            } else if carrier.retiring && carrier.streams.is_empty() && !carrier.leaving {
                carrier.leaving = true;
                tcp.shut_down(id);
                self.leaving.push_back((tcp.now() + LEAVING_TIME, id));
            }
            self.resume(tcp, id);
        }
    }

    /// Whether [`Mux::flush`] has more to do after a turn in which nothing needs to happen.
    pub fn is_busy(&self) -> bool {
        !self.list.is_empty()
    }

    /// Ends all streams and carriers; their ends hear of a failure.
    pub fn break_off(&mut self, tcp: &mut (impl Tcp + ?Sized)) {
        let carriers: Vec<_> = self.carriers.iter().map(|(id, _)| id).collect();
        carriers.into_iter().for_each(|id| self.lose(tcp, id, Errno::ECONNABORTED, "we end"));
        let rest: Vec<_> = self.streams.iter().map(|(key, _)| key).collect();
        rest.into_iter().for_each(|key| self.end(tcp, key, End::Broken(Errno::ECONNABORTED)));
    }

    /// When [`Mux::expire`] has something to do.
    pub fn deadline(&self) -> Option<Time> {
        let leaving = self.leaving.front().map(|(at, _)| *at);
        self.silence.next().into_iter().chain(leaving).min()
    }

    /// Ends streams that were silent for too long, and carriers that nobody lets go.
    pub fn expire(&mut self, tcp: &mut (impl Tcp + ?Sized)) {
        let now = tcp.now();
        while let Some((_, id)) = self.leaving.pop_front_if(|(at, _)| *at <= now) {
            self.carriers.remove(id);
            tcp.close(id, Close::Finish);
        }
        while let Some((serial, key)) = self.silence.due(tcp.now()) {
            let Some(stream) = self.streams.get(key).filter(|stream| stream.serial == serial) else {
                continue;
            };
            if self.silence.is_over(stream.touched, stream.ended.contains(&true), tcp.now()) {
                self.break_stream(tcp, key, End::Idle);
            } else {
                self.watch(key);
            }
        }
    }

    fn at_mut(&mut self, id: StreamId) -> Option<&mut Stream<T>> {
        self.streams.get_mut(id.key).filter(|stream| stream.serial == id.serial)
    }

    fn insert(&mut self, carrier: Id, number: u32, now: Time) -> StreamId {
        self.serial += 1;
        let serial = self.serial;
        let key = self.streams.insert(Stream {
            serial,
            carrier,
            number,
            window: Window::default(),
            joined: None,
            waiting: Vec::new(),
            ended: [false; 2],
            bytes: [0; 2],
            started: now,
            touched: now,
        });
        if let Some(carrying) = self.carriers.at_mut(carrier) {
            carrying.newest = number;
            carrying.streams.insert(number, key);
        }
        StreamId { key, serial }
    }

    /// Forgets a stream, not its socket.
    fn remove(&mut self, key: usize) -> Stream<T> {
        let stream = self.streams.remove(key);
        if let Some(carrier) = self.carriers.at_mut(stream.carrier) {
            carrier.streams.remove(&stream.number);
            let (id, is_last) = (stream.carrier, carrier.retiring && carrier.streams.is_empty());
            if is_last {
                self.list(id);
            }
        }
        stream
    }

    fn list(&mut self, id: Id) {
        if let Some(carrier) = self.carriers.at_mut(id).filter(|carrier| !carrier.listed) {
            carrier.listed = true;
            self.list.push(id);
        }
    }

    fn say(&mut self, id: Id, piece: Piece<'_>) {
        // Whoever has ended its carrier can say nothing more; the other side ends what it still opens there.
        if let Some(carrier) = self.carriers.at_mut(id).filter(|carrier| !carrier.leaving) {
            let before = carrier.out.len();
            frames::put(piece, &mut carrier.out);
            if !matches!(piece, Piece::Data { .. }) {
                carrier.answers_bytes += carrier.out.len() - before;
            }
            self.list(id);
        }
    }

    /// Looks at a stream again when it may have been silent for too long.
    fn watch(&mut self, key: usize) {
        let Mux { silence, streams, .. } = self;
        let Some(stream) = streams.get(key) else { return };
        let half_open = stream.ended.contains(&true);
        silence.watch((stream.serial, key), stream.touched, half_open, streams.len(), |serial, key| {
            streams.get(key).is_some_and(|stream| stream.serial == serial)
        });
    }

    /// Receives from the socket of a stream again, if there is room for what comes.
    fn feed(&mut self, tcp: &mut (impl Tcp + ?Sized), key: usize) {
        let Mux { streams, carriers, .. } = self;
        let Some(stream) = streams.get_mut(key) else { return };
        let (Some(joined), Some(carrier)) = (&mut stream.joined, carriers.at_mut(stream.carrier)) else {
            return;
        };
        if joined.receiving || stream.ended[SOCKET] || !stream.window.has_room() {
            return;
        }
        joined.receiving = true;
        if carrier.out.len() < OUT_BYTES_MAX {
            tcp.receive(joined.socket);
        } else {
            carrier.paused.push_back(StreamId { key, serial: stream.serial });
        }
    }

    /// Receives from streams again that waited for room in the carrier.
    fn resume(&mut self, tcp: &mut (impl Tcp + ?Sized), id: Id) {
        let mut left = RESUMED;
        while left > 0 {
            let Some(stream) = self.carriers.at_mut(id).and_then(|carrier| carrier.paused.pop_front()) else {
                return;
            };
            if let Some(Stream { joined: Some(joined), .. }) = self.at_mut(stream) {
                tcp.receive(joined.socket);
                left -= 1;
            }
        }
        self.list(id);
    }

    fn socket_event(&mut self, tcp: &mut (impl Tcp + ?Sized), key: usize, event: Event) {
        let stream = &mut self.streams[key];
        let Some(joined) = &mut stream.joined else { return };
        stream.touched = tcp.now();
        let (carrier, number) = (stream.carrier, stream.number);
        match event {
            Event::Received { chunk, .. } => {
                joined.receiving = false;
                stream.window.sent(chunk.len());
                stream.bytes[SOCKET] += chunk.len() as u64;
                joined.meter.passed(SOCKET, chunk.len() as u64, stream.touched);
                self.say(carrier, Piece::Data { stream: number, bytes: &chunk });
                tcp.give_back(chunk);
                self.feed(tcp, key);
            }
            Event::Ended(_) => {
                joined.receiving = false;
                stream.ended[SOCKET] = true;
                self.say(carrier, Piece::End(number));
                self.watch(key);
            }
            Event::Sent(_) => {
                let passed_on = joined.sending.take().unwrap_or(0);
                // Who has ended sends no more, whatever it may.
                let told = stream.window.passed_on(passed_on).filter(|_| !stream.ended[CARRIER]);
                if let Some(bytes) = told {
                    self.say(carrier, Piece::Credit { stream: number, bytes });
                }
                self.pass_on(tcp, key);
            }
            Event::Failed { error, .. } => return self.break_stream(tcp, key, End::Broken(error)),
            _ => {}
        }
        self.end_if_finished(tcp, key);
    }

    fn carrier_received(&mut self, tcp: &mut (impl Tcp + ?Sized), id: Id, chunk: Chunk) {
        let mut rest = &chunk[..];
        let mut breach = None;
        while !rest.is_empty()
            && breach.is_none()
            && let Some(carrier) = self.carriers.at_mut(id)
        {
            match carrier.frames.take(rest) {
                Ok((count, piece)) => {
                    rest = &rest[count..];
                    breach = piece.and_then(|piece| self.take(tcp, id, piece).err());
                }
                Err(error) => breach = Some(error.into()),
            }
        }
        tcp.give_back(chunk);
        match breach {
            Some(breach) => self.lose(tcp, id, Errno::EPROTO, &format!("the other side sent {breach}")),
            None => tcp.receive(id),
        }
    }

    /// One piece of what a carrier brought.
    fn take(&mut self, tcp: &mut (impl Tcp + ?Sized), id: Id, piece: Piece<'_>) -> Result<(), Breach> {
        let Some(carrier) = self.carriers.at(id) else { return Ok(()) };
        match piece {
            Piece::Open { stream, from } => {
                if !self.accepts || stream <= carrier.newest {
                    return Err(Breach::Opened);
                }
                if carrier.answers_bytes > ANSWERS_BYTES_MAX {
                    return Err(Breach::Unread);
                }
                let retiring = carrier.retiring;
                let stream = self.insert(id, stream, tcp.now());
                match retiring {
                    true => self.refuse(stream),
                    false => self.told.push_back(Told::Opened { stream, from }),
                }
            }
            Piece::Data { stream, bytes } => {
                if let Some(key) = carrier.number(stream)? {
                    self.deliver(tcp, key, bytes)?;
                }
            }
            Piece::End(stream) => {
                if let Some(key) = carrier.number(stream)? {
                    self.end_direction(tcp, key)?;
                }
            }
            Piece::Reset(stream) => {
                if let Some(key) = carrier.number(stream)? {
                    self.end(tcp, key, End::Broken(Errno::ECONNRESET));
                }
            }
            Piece::Credit { stream, bytes } => {
                if let Some(key) = carrier.number(stream)? {
                    self.streams[key].window.credited(bytes)?;
                    self.feed(tcp, key);
                }
            }
        }
        Ok(())
    }

    /// Bytes for the socket of a stream.
    fn deliver(&mut self, tcp: &mut (impl Tcp + ?Sized), key: usize, bytes: &[u8]) -> Result<(), Breach> {
        let stream = &mut self.streams[key];
        if stream.ended[CARRIER] {
            return Err(Breach::Ended);
        }
        stream.window.came(bytes.len())?;
        stream.bytes[CARRIER] += bytes.len() as u64;
        stream.touched = tcp.now();
        if let Some(joined) = &mut stream.joined {
            joined.meter.passed(CARRIER, bytes.len() as u64, stream.touched);
        }
        match &mut stream.joined {
            Some(joined) if joined.sending.is_none() => {
                joined.sending = Some(bytes.len());
                tcp.send_bytes(joined.socket, bytes);
            }
            _ => stream.waiting.extend_from_slice(bytes),
        }
        Ok(())
    }

    /// Sends the socket of a stream what waits, one send at a time, and the carrier's end behind it.
    fn pass_on(&mut self, tcp: &mut (impl Tcp + ?Sized), key: usize) {
        let Some(Stream { joined: Some(joined), waiting, ended, .. }) = self.streams.get_mut(key) else {
            return;
        };
        if joined.sending.is_some() {
            return;
        }
        if !waiting.is_empty() {
            joined.sending = Some(waiting.len());
            tcp.send_bytes(joined.socket, &std::mem::take(waiting));
        } else if ended[CARRIER] && !joined.shut_down {
            joined.shut_down = true;
            tcp.shut_down(joined.socket);
        }
    }

    /// No more bytes for the socket of a stream.
    fn end_direction(&mut self, tcp: &mut (impl Tcp + ?Sized), key: usize) -> Result<(), Breach> {
        let stream = &mut self.streams[key];
        if std::mem::replace(&mut stream.ended[CARRIER], true) {
            return Err(Breach::Ended);
        }
        stream.touched = tcp.now();
        if stream.joined.is_some() {
            self.pass_on(tcp, key);
            self.watch(key);
        }
        self.end_if_finished(tcp, key);
        Ok(())
    }

    fn end_if_finished(&mut self, tcp: &mut (impl Tcp + ?Sized), key: usize) {
        if self.streams.get(key).is_some_and(Stream::finished) {
            self.end(tcp, key, End::Finished);
        }
    }

    /// Ends a stream, of which the other side hears.
    fn break_stream(&mut self, tcp: &mut (impl Tcp + ?Sized), key: usize, end: End) {
        let Stream { carrier, number, .. } = self.streams[key];
        self.say(carrier, Piece::Reset(number));
        self.end(tcp, key, end);
    }

    /// Ends a stream of which the other side knows that it is over.
    fn end(&mut self, tcp: &mut (impl Tcp + ?Sized), key: usize, end: End) {
        let stream = self.remove(key);
        let Some(Joined { socket, tag, meter, .. }) = stream.joined else {
            return self.told.push_back(Told::Withdrawn(StreamId { key, serial: stream.serial }));
        };
        self.sockets.remove(socket);
        tcp.close(socket, if end == End::Finished { Close::Finish } else { Close::Reset });
        let lasted = tcp.now().since(stream.started);
        meter.over(end.counted(), stream.bytes, lasted);
        self.told.push_back(Told::Over(Over { tag, end, bytes: stream.bytes, lasted }));
    }

    /// The other side sends no more on a carrier: because it is done with it, or without a reason that we know of.
    fn carrier_ended(&mut self, tcp: &mut (impl Tcp + ?Sized), id: Id) {
        let Mux { carriers, streams, .. } = self;
        let Some(carrier) = carriers.at_mut(id) else { return };
        if carrier.leaving {
            carriers.remove(id);
            self.leaving.retain(|(_, leaving)| *leaving != id);
            return tcp.close(id, Close::Finish);
        }
        // It has heard of the end of those that have both ended: a reader is all that they need.
        carrier.streams.retain(|_, key| streams[*key].ended != [true, true]);
        self.lose(tcp, id, Errno::ECONNRESET, "it ended the connection");
    }

    /// A carrier is of no use any more.
    fn lose(&mut self, tcp: &mut (impl Tcp + ?Sized), id: Id, error: Errno, reason: &str) {
        let Some(carrier) = self.carriers.remove(id) else { return };
        self.leaving.retain(|(_, leaving)| *leaving != id);
        let mut keys: Vec<_> = carrier.streams.into_values().collect();
        keys.sort_unstable();
        keys.into_iter().for_each(|key| self.end(tcp, key, End::Broken(error)));
        tcp.close(id, Close::Reset);
        if !carrier.leaving {
            self.told.push_back(Told::Lost { carrier: id, reason: reason.to_owned() });
        }
    }
}
