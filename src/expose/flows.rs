//! Flows: what one visitor and the service say to each other in datagrams, on a connection of its own.
//!
//! ```text
//!                         server                                  client
//!  visitors ══▶ shared socket ─▶ Flow ◀── connection, frames ──▶ Flow ─▶ socket of its own ──▶ service
//! ```
//!
//! A visitor is a source address, and the address of ours that it asked. Its first datagram opens a flow at the server, which
//! waits for a connection as any visitor does; until then a few datagrams are kept ([`WAITING_DATAGRAMS_MAX`]). At the client
//! every flow has a socket of its own, so that the service can tell visitors apart.
//!
//! Nobody is made to wait, as with UDP itself: a datagram that finds no room is lost, and counted by [`Loss`]. On its way to
//! the connection a flow holds at most [`BYTES_MAX`]; from there at most what comes in one receive.
//!
//! A flow ends when either end of its connection does, or after a silence, which may be long only once the visitor has gone on
//! after an answer: whoever forges source addresses gets none. Where there is no room for a newcomer, the oldest flow goes
//! that is taken and has not come so far ([`Flows::evict`]).

mod passing;
mod service;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use nix::errno::Errno;
use slab::Slab;

use super::alarms::Alarms;
use super::frames::{Frames, HEADER_BYTES};
use super::relay::End;
use crate::io::tcp::datagrams::{Endpoint, Udp};
use crate::io::tcp::{Chunk, Close, Event, Id, IdMap};
use crate::stats::exposed::reasons::{ByReason, Loss};
use crate::stats::exposed::recorder::Meter;
use crate::time::{Span, Time};
use service::Service;

/// Bytes on their way to one connection: with the kernel, or waiting for that.
pub const BYTES_MAX: usize = 256 << 10;
/// Datagrams of one flow that are kept until somebody takes it.
pub const WAITING_DATAGRAMS_MAX: usize = 16;
/// Their bytes, with their headers; one of full length fits.
pub const WAITING_BYTES_MAX: usize = 64 << 10;
/// The same of all flows together.
const WAITING_BYTES_TOTAL: usize = 16 << 20;
/// Flows of one socket that nobody has taken yet: as many as are announced at once.
const WAITING_FLOWS_MAX: usize = 512;
/// The same of all sockets together.
const WAITING_FLOWS_TOTAL: usize = 16_384;
/// Datagrams that leave a connection in one turn; what came with them waits for the next one.
const DATAGRAMS_PER_TURN: usize = 64;
/// Flows of which something waits that have their turn.
const FLOWS_PER_TURN: usize = 16;
/// Longest silence of a flow if nothing else was said.
pub const IDLE: Span = Span::from_secs(60);
/// The same until the visitor has gone on after an answer; at the client, until the service has answered.
pub const UNASSURED: Span = Span::from_secs(10);
/// The same of a flow that is to end.
const HURRIED: Span = Span::from_secs(1);

/// How long a flow may last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Until somebody takes it.
    pub waiting: Span,
    /// In silence; without an answer [`UNASSURED`] if that is shorter.
    pub idle: Span,
}

/// Names a flow. Never used again for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlowId {
    serial: u64,
    key: usize,
}

/// Datagrams that were passed on, and their payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// How many.
    pub datagrams: u64,
    /// In bytes.
    pub bytes: u64,
}

impl Traffic {
    fn add(&mut self, payload_bytes: usize) {
        self.datagrams += 1;
        self.bytes += payload_bytes as u64;
    }
}

/// A flow that is over. Its connection is closed, and so is a socket of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Over<T> {
    /// What it was started with.
    pub tag: T,
    /// Somebody had taken it.
    pub taken: bool,
    /// Why.
    pub end: End,
    /// From the datagram socket to the connection.
    pub inward: Traffic,
    /// From the connection to the datagram socket.
    pub outward: Traffic,
    /// Datagrams that were lost here.
    pub lost: u64,
    /// How long it lasted.
    pub lasted: Span,
}

/// A visitor as its socket knows it: the socket, whence, and whereto.
type Source = (Id, SocketAddr, Option<IpAddr>);

/// What the kernel meant when it did not send.
pub fn loss_of(error: Errno) -> Loss {
    match error {
        Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM => Loss::NoRoom,
        Errno::EMSGSIZE => Loss::TooLong,
        Errno::ECONNREFUSED => Loss::Refused,
        _ => Loss::Unsent,
    }
}

/// To a [`Meter`]: what comes from the datagram socket, and what comes from the connection.
const INWARD: usize = 0;
const OUTWARD: usize = 1;

#[derive(Debug)]
enum Outside {
    /// Somebody at a shared socket.
    Visitor(Endpoint),
    /// The service, at a socket of the flow's own.
    Service(Service),
}

#[derive(Debug)]
struct Flow<T> {
    tag: T,
    serial: u64,
    socket: Id,
    outside: Outside,
    /// None until somebody takes it.
    connection: Option<Id>,
    /// Sends to the connection that have not ended, and their bytes.
    under_way: u8,
    under_way_bytes: usize,
    /// Frames that wait for that, or for a connection.
    pending: Vec<u8>,
    pending_count: usize,
    /// Counts it from when somebody has taken it.
    meter: Option<Meter>,
    frames: Frames,
    /// What came from the connection and waits for the next turn. Nothing is received meanwhile.
    rest: Vec<u8>,
    answered: bool,
    /// The visitor went on after an answer, so it does live where it says; at the client, the service has answered.
    assured: bool,
    hurried: bool,
    inward: Traffic,
    outward: Traffic,
    lost: u64,
    started: Time,
    /// When it got its connection.
    taken: Time,
    /// When a datagram came last.
    touched: Time,
}

impl<T> Flow<T> {
    fn count(&mut self, from: usize, payload_bytes: usize, now: Time) {
        if let Some(meter) = &mut self.meter {
            meter.passed(from, payload_bytes as u64, now);
        }
    }

    fn ends_at(&self, limits: Limits) -> Time {
        let limit = match self {
            Flow { connection: None, .. } => return self.started + limits.waiting,
            Flow { hurried: true, .. } => HURRIED.min(limits.idle),
            Flow { assured: false, .. } => UNASSURED.min(limits.idle),
            _ => limits.idle,
        };
        self.touched + limit
    }

    fn source(&self) -> Option<Source> {
        match &self.outside {
            Outside::Visitor(from) => Some((self.socket, from.remote, from.local)),
            Outside::Service(_) => None,
        }
    }
}

/// All flows of one [`Udp`]. `T` is what its user wants to know when one is over.
#[derive(Debug)]
pub struct Flows<T> {
    flows: Slab<Flow<T>>,
    /// By their connections.
    connections: IdMap<usize>,
    /// By their visitors.
    sources: HashMap<Source, usize>,
    /// By sockets of their own.
    sockets: IdMap<usize>,
    /// Those of visitors that are taken and not assured, by age.
    unassured: BTreeMap<u64, usize>,
    /// How many of each shared socket nobody has taken.
    waiting: HashMap<Id, usize>,
    waiting_bytes: usize,
    /// Those of which something waits for its turn.
    busy: VecDeque<FlowId>,
    /// Where the service answered last.
    service: Option<SocketAddr>,
    losses: Arc<ByReason<Loss>>,
    limits: Limits,
    /// New ones are to end, too.
    ending: bool,
    alarms: Alarms<FlowId>,
    started: u64,
}

impl<T: Copy> Flows<T> {
    /// None yet; lost datagrams are counted in `losses`.
    pub fn new(limits: Limits, losses: Arc<ByReason<Loss>>) -> Flows<T> {
        Flows {
            flows: Slab::new(),
            connections: IdMap::default(),
            sources: HashMap::new(),
            sockets: IdMap::default(),
            unassured: BTreeMap::new(),
            waiting: HashMap::new(),
            waiting_bytes: 0,
            busy: VecDeque::new(),
            service: None,
            losses,
            limits,
            ending: false,
            alarms: Alarms::default(),
            started: 0,
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// How many of them have a connection.
    pub fn taken(&self) -> usize {
        self.connections.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// Counts a datagram that belongs to no flow.
    pub fn lose(&self, loss: Loss) {
        self.losses.count(loss);
    }

    /// Whether one more flow of a shared socket may wait to be taken.
    pub fn has_room(&self, socket: Id) -> bool {
        let of_socket = self.waiting.get(&socket).copied().unwrap_or_default();
        of_socket < WAITING_FLOWS_MAX && self.waiting() < WAITING_FLOWS_TOTAL
    }

    /// How many wait to be taken.
    pub fn waiting(&self) -> usize {
        self.flows.len() - self.taken()
    }

    /// Opens a flow that waits to be taken, for a visitor whose first datagram has come to a shared socket.
    pub fn open(
        &mut self,
        udp: &mut (impl Udp + ?Sized),
        socket: Id,
        from: Endpoint,
        first: Chunk,
        tag: T,
    ) -> FlowId {
        let id = self.insert(udp.now(), socket, Outside::Visitor(from), tag);
        self.sources.insert((socket, from.remote, from.local), id.key);
        *self.waiting.entry(socket).or_default() += 1;
        self.pass_in(udp, id.key, first);
        self.set_alarm(id.key);
        id
    }

    /// Gives a waiting flow its connection, from which nothing is asked now. `brought` has come from there already, and
    /// `unsent` sends to it have not ended. A flow that is over by now leaves the connection closed. To `meter` the datagram
    /// socket is side 0, the connection side 1.
    pub fn take(
        &mut self,
        udp: &mut (impl Udp + ?Sized),
        id: FlowId,
        connection: Id,
        brought: Chunk,
        unsent: u8,
        meter: Meter,
    ) -> Option<Over<T>> {
        let waits =
            self.flows.get(id.key).is_some_and(|flow| flow.serial == id.serial && flow.connection.is_none());
        if !waits {
            udp.give_back(brought);
            udp.close(connection, Close::Finish);
            meter.over(End::Finished.counted(), [0, 0], Span::ZERO);
            return None;
        }
        self.no_longer_waits(id.key);
        self.unassured.insert(id.serial, id.key);
        self.connect(udp, id.key, connection, unsent, meter);
        self.pass_out(udp, id.key, brought)
    }

    /// Starts a flow between a connection, of which what [`Flows::take`] says is true, and the service, which has one of
    /// `addresses`. The meter is asked for when it is sure to start.
    ///
    /// # Errors
    /// There is no socket for it; the connection is left as it is.
    pub fn start(
        &mut self,
        udp: &mut (impl Udp + ?Sized),
        addresses: &[SocketAddr],
        connection: Id,
        unsent: u8,
        tag: T,
        meter: impl FnOnce() -> Meter,
    ) -> Result<(), Errno> {
        let (service, socket) = Service::new(udp, addresses, self.service)?;
        let id = self.insert(udp.now(), socket, Outside::Service(service), tag);
        self.sockets.insert(socket, id.key);
        self.connect(udp, id.key, connection, unsent, meter());
        udp.receive(connection);
        Ok(())
    }

    /// Acts on `event` if it is about a flow; otherwise it comes back.
    ///
    /// # Errors
    /// The event, which is not ours.
    pub fn handle(&mut self, udp: &mut (impl Udp + ?Sized), event: Event) -> Result<Option<Over<T>>, Event> {
        match event {
            Event::Datagram { id, from, chunk } => {
                let own = self.sockets.at(id).or_else(|| self.sources.get(&(id, from.remote, from.local)));
                let Some(&key) = own else { return Err(Event::Datagram { id, from, chunk }) };
                self.datagram(udp, key, chunk);
                Ok(None)
            }
            Event::Undelivered { id, .. } => {
                let Some(&key) = self.sockets.at(id) else { return Err(event) };
                self.refused(udp, key);
                Ok(None)
            }
            Event::Overflown { id, count } => {
                // At a shared socket they may have been anybody's.
                if let Some(&key) = self.sockets.at(id) {
                    self.flows[key].lost += u64::from(count);
                }
                self.losses.count_many(Loss::Overflown, count.into());
                Ok(None)
            }
            Event::Received { id, .. } | Event::Ended(id) | Event::Sent(id) | Event::Failed { id, .. } => {
                let Some(&key) = self.connections.at(id) else { return Err(event) };
                Ok(self.connection_event(udp, key, event))
            }
            other => Err(other),
        }
    }

    /// When [`Flows::expire`] has something to do; long ago if it has now.
    pub fn deadline(&self) -> Option<Time> {
        if self.busy.is_empty() { self.alarms.next() } else { Some(Time::default()) }
    }

    /// Goes on where something waits for its turn, and ends one flow whose time has come. Once per turn, and again as long as
    /// one is over.
    pub fn expire(&mut self, udp: &mut (impl Udp + ?Sized)) -> Option<Over<T>> {
        for _ in 0..self.busy.len().min(FLOWS_PER_TURN) {
            let id = self.busy.pop_front()?;
            if self.flows.get(id.key).is_some_and(|flow| flow.serial == id.serial) {
                let rest = std::mem::take(&mut self.flows[id.key].rest);
                if let Some(over) = self.pass_out_bytes(udp, id.key, &rest) {
                    return Some(over);
                }
            }
        }
        let now = udp.now();
        while let Some(id) = self.alarms.due(now) {
            let Some(flow) = self.flows.get(id.key).filter(|flow| flow.serial == id.serial) else { continue };
            if flow.ends_at(self.limits) <= now {
                return Some(self.end(udp, id.key, End::Idle));
            }
            self.set_alarm(id.key);
        }
        None
    }

    /// Ends the oldest flow of `socket`, or of any, that is taken and whose visitor may be forged, to make room.
    pub fn evict(&mut self, udp: &mut (impl Udp + ?Sized), socket: Option<Id>) -> Option<Over<T>> {
        let mut oldest = self.unassured.values().copied();
        let key = oldest.find(|key| socket.is_none_or(|socket| self.flows[*key].socket == socket))?;
        Some(self.end(udp, key, End::Idle))
    }

    /// Ends all flows for which `wanted` holds.
    pub fn end_all(&mut self, udp: &mut (impl Udp + ?Sized), wanted: impl Fn(T) -> bool) -> Vec<Over<T>> {
        let flows = self.flows.iter().filter(|(_, flow)| wanted(flow.tag));
        let keys: Vec<_> = flows.map(|(key, _)| key).collect();
        keys.into_iter().map(|key| self.end(udp, key, End::Finished)).collect()
    }

    /// Those for which `wanted` holds are to end: soon, when they have been silent for a second, and at once if nobody has
    /// taken them. Gives the latter.
    pub fn hurry(&mut self, udp: &mut (impl Udp + ?Sized), wanted: impl Fn(T) -> bool) -> Vec<Over<T>> {
        let keys: Vec<_> =
            self.flows.iter().filter(|(_, flow)| wanted(flow.tag)).map(|(key, _)| key).collect();
        let mut over = Vec::new();
        for key in keys {
            match self.flows[key].connection {
                None => over.push(self.end(udp, key, End::Finished)),
                Some(_) => {
                    self.flows[key].hurried = true;
                    self.set_alarm(key);
                }
            }
        }
        over
    }

    /// All are to end, and those that begin later: soon, when they have been silent for a second.
    pub fn hurry_all(&mut self, udp: &mut (impl Udp + ?Sized)) {
        self.ending = true;
        let over = self.hurry(udp, |_| true);
        assert!(over.is_empty(), "{} flows wait where they have a connection from the start", over.len());
    }

    fn insert(&mut self, now: Time, socket: Id, outside: Outside, tag: T) -> FlowId {
        self.started += 1;
        let serial = self.started;
        let flow = Flow {
            tag,
            serial,
            socket,
            outside,
            connection: None,
            under_way: 0,
            under_way_bytes: 0,
            pending: Vec::new(),
            pending_count: 0,
            meter: None,
            frames: Frames::default(),
            rest: Vec::new(),
            answered: false,
            assured: false,
            hurried: self.ending,
            inward: Traffic::default(),
            outward: Traffic::default(),
            lost: 0,
            started: now,
            taken: now,
            touched: now,
        };
        FlowId { serial, key: self.flows.insert(flow) }
    }

    fn connect(
        &mut self,
        udp: &mut (impl Udp + ?Sized),
        key: usize,
        connection: Id,
        unsent: u8,
        mut meter: Meter,
    ) {
        self.connections.insert(connection, key);
        let flow = &mut self.flows[key];
        if flow.inward.datagrams > 0 {
            meter.passed(INWARD, flow.inward.bytes, udp.now());
        }
        flow.taken = udp.now();
        flow.meter = Some(meter);
        (flow.connection, flow.under_way, flow.touched) = (Some(connection), unsent, udp.now());
        self.send_pending(udp, key);
        self.set_alarm(key);
    }

    fn no_longer_waits(&mut self, key: usize) {
        let flow = &self.flows[key];
        self.waiting_bytes -= flow.pending.len();
        if let Some(waiting) = self.waiting.get_mut(&flow.socket) {
            *waiting -= 1;
            if *waiting == 0 {
                self.waiting.remove(&flow.socket);
            }
        }
    }

    fn set_alarm(&mut self, key: usize) {
        let flow = &self.flows[key];
        self.alarms.set(flow.ends_at(self.limits), FlowId { serial: flow.serial, key });
        let flows = &self.flows;
        let lives = |id: &FlowId| flows.get(id.key).is_some_and(|flow| flow.serial == id.serial);
        self.alarms.thin_out(flows.len(), |_, id| lives(id));
    }

    /// Both sides have shown that they are there.
    fn assure(&mut self, key: usize) {
        let flow = &mut self.flows[key];
        if !std::mem::replace(&mut flow.assured, true) {
            self.unassured.remove(&flow.serial);
            if let Outside::Service(service) = &mut flow.outside {
                self.service = Some(service.answered());
            }
        }
    }

    /// What still waits for the connection goes nowhere.
    fn lose_pending(&mut self, key: usize) {
        let flow = &mut self.flows[key];
        let count = flow.pending_count;
        flow.inward.datagrams -= count as u64;
        flow.inward.bytes -= (flow.pending.len() - count * HEADER_BYTES) as u64;
        let loss = if flow.connection.is_some() { Loss::Unsent } else { Loss::TurnedAway };
        (0..count).for_each(|_| self.lost(key, loss));
    }

    fn lost(&mut self, key: usize, loss: Loss) {
        self.flows[key].lost += 1;
        self.losses.count(loss);
    }

    fn end(&mut self, udp: &mut (impl Udp + ?Sized), key: usize, end: End) -> Over<T> {
        if self.flows[key].connection.is_none() {
            self.no_longer_waits(key);
        }
        self.lose_pending(key);
        let flow = self.flows.remove(key);
        self.unassured.remove(&flow.serial);
        match flow.source() {
            Some(source) => drop(self.sources.remove(&source)),
            None => {
                self.sockets.remove(flow.socket);
                udp.close(flow.socket, Close::Finish);
            }
        }
        if let Some(connection) = flow.connection {
            self.connections.remove(connection);
            udp.close(connection, if matches!(end, End::Broken(_)) { Close::Reset } else { Close::Finish });
        }
        let lasted = udp.now().since(flow.started);
        if let Some(meter) = flow.meter {
            let bytes = [flow.inward.bytes, flow.outward.bytes];
            meter.over(end.counted(), bytes, udp.now().since(flow.taken));
        }
        Over {
            tag: flow.tag,
            taken: flow.connection.is_some(),
            end,
            inward: flow.inward,
            outward: flow.outward,
            lost: flow.lost,
            lasted,
        }
    }
}
