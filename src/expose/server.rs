//! The server: public ports, the clients they belong to, and the visitors who come there.
//!
//! Generic over [`Udp`], so that the tests run the server that ships on a network in memory. One thread, no waiting but in
//! [`Tcp::turn`](crate::io::tcp::Tcp::turn).
//!
//! | who | from | until |
//! |---|---|---|
//! | caller | accepted at the control port | it says what it wants, three seconds per message |
//! | owner | a caller that got a public port | its connection ends |
//! | visitor | accepted at a public port, or a source address that is new to a UDP port | a caller takes it over, ten seconds |
//! | pair, flow | a caller and the visitor it took | [`super::relay`], [`super::flows`] |
//! | carrier | a caller that said so; visitors are its streams | [`super::mux`] |
//!
//! A port may outlive its owner: with a lease it stays open for a while, visitors wait, and whoever proves the lease goes on
//! with it. A lease is offered only to clients that show they understand it. With a secret its proof is enough for a port whose
//! owner is away; one that has an owner goes only to whoever proves its lease.

mod owners;
mod visitors;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use nix::errno::Errno;

use super::alarms::Alarms;
use super::auth::Authenticator;
use super::caller::{Asked, Caller, Refusal};
use super::flows::{self, FlowId, Flows};
use super::message::{Frames, Uuid, frame};
use super::mux::{Mux, Told};
use super::news::News;
use super::ports::Ports;
use super::relay::{Limits, Over, Relays};
use super::sockets;
use super::turn::{Parts, Relaying};
use crate::control::expose::ServerConfig;
use crate::io::tcp::datagrams::Udp;
use crate::io::tcp::{Chunk, Close, Event, Id, IdMap};
use crate::proto::rng::Rng;
use crate::stats::exposed::reasons::{Refused, TurnedAway};
use crate::stats::exposed::recorder::{Port, Recorder};
use crate::time::{Span, Time};

/// Between two heartbeats. bore's server sends one at least that often.
pub const HEARTBEAT: Span = Span::from_millis(500);
/// How long a visitor waits for its owner to take it. bore's.
pub const VISITOR_TIME: Span = Span::from_secs(10);
/// How long an owner may leave what we say unread.
const OWNER_TIME: Span = Span::from_secs(15);
/// Bytes that may wait for an owner who reads slowly: some 20,000 visitors, far more than come before we hear of what it read.
const OWNER_BYTES_MAX: usize = 2 << 20;
/// How long whoever was refused may take to read why.
const LEAVING_TIME: Span = Span::from_secs(1);
/// How long to accept nobody when there are no descriptors.
const ACCEPT_PAUSE: Span = Span::from_millis(100);

/// Why an owner is given up.
const READS_NOTHING: &str = "it reads nothing";

/// How often to look whether the tunnel was removed and made again.
const TUNNEL_LOOK: Span = Span::from_secs(2);

enum Role {
    Caller {
        caller: Caller,
        from: SocketAddr,
        unsent: u8,
    },
    Owner {
        tunnel: Id,
        frames: Frames,
        unsent: u8,
        /// Said behind what is unsent.
        waiting: Vec<u8>,
        stuck_since: Time,
    },
    Visitor(Uuid),
    /// A caller that was told why it is refused.
    Leaving,
}

/// What stands for a visitor here.
#[derive(Clone, Copy)]
enum Who {
    Connection(Id),
    Flow(FlowId),
}

struct Visitor {
    who: Who,
    tunnel: Id,
    from: SocketAddr,
    /// When it was accepted, and at which port.
    came: Time,
    seen: Arc<Port>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Alarm {
    Caller(Id),
    Heartbeat(Id),
    Visitor(Id),
    Leaving(Id),
    Accept(Id),
    Lease(Id),
    Tunnel,
}

/// The server. See the module.
pub struct Server<T> {
    tcp: T,
    config: ServerConfig,
    auth: Option<Authenticator>,
    rng: Rng,
    control: Id,
    control_address: SocketAddr,
    /// The interface that the control port is bound to, if it is to one.
    tunnel_index: Option<u32>,
    roles: IdMap<Role>,
    /// Callers, and those who are leaving, in the order in which they came; and some who are none any more.
    callers: VecDeque<Id>,
    callers_count: usize,
    ports: Ports,
    visitors: HashMap<Uuid, Visitor>,
    relays: Relays<Id>,
    mux: Mux<Id>,
    /// Each with its port and its name.
    flows: Flows<(Id, Uuid)>,
    alarms: Alarms<Alarm>,
    events: Vec<Event>,
    news: Vec<News>,
    recorder: Arc<Recorder>,
    draining: bool,
}

impl<T: Udp> Server<T> {
    /// Waits for clients.
    ///
    /// # Errors
    /// The control port cannot be had.
    pub fn new(mut tcp: T, config: ServerConfig, rng: Rng) -> Result<Server<T>, Errno> {
        let through = config.how.through.as_deref();
        let tunnel_index = through.and_then(|name| tcp.interface_index(name));
        let (control, control_address) = tcp.listen(config.control, &sockets::leg(through))?;
        tcp.accept(control);
        let mut alarms = Alarms::default();
        if through.is_some() {
            alarms.set(tcp.now() + TUNNEL_LOOK, Alarm::Tunnel);
        }
        let limits = Limits { idle: config.idle, half_open: config.half_open };
        let recorder = Arc::<Recorder>::default();
        let flow_limits = flows::Limits { waiting: VISITOR_TIME, idle: config.idle.unwrap_or(flows::IDLE) };
        Ok(Server {
            tcp,
            auth: config.secret.as_ref().map(|secret| Authenticator::new(secret.as_bytes())),
            config,
            rng,
            control,
            control_address,
            tunnel_index,
            roles: IdMap::default(),
            callers: VecDeque::new(),
            callers_count: 0,
            ports: Ports::new(recorder.clone()),
            visitors: HashMap::new(),
            relays: Relays::new(limits),
            mux: Mux::new(limits, false),
            flows: Flows::new(flow_limits, recorder.lost.clone()),
            alarms,
            events: Vec::new(),
            news: vec![News::Serving { control: control_address }],
            recorder,
            draining: false,
        })
    }

    /// Where clients come to.
    pub fn control_address(&self) -> SocketAddr {
        self.control_address
    }

    /// What the server stands on.
    pub fn tcp(&mut self) -> &mut T {
        &mut self.tcp
    }

    /// What it counts and times.
    pub fn recorder(&self) -> Arc<Recorder> {
        self.recorder.clone()
    }

    /// Takes what happened since the last call.
    pub fn take_news(&mut self) -> Vec<News> {
        std::mem::take(&mut self.news)
    }

    /// Lets nobody in any more; what is relayed goes on.
    pub fn drain(&mut self) {
        self.draining = true;
        self.tcp.close(self.control, Close::Finish);
        self.ports.listeners().into_iter().for_each(|tunnel| self.close_tunnel(tunnel));
        let rest: Vec<_> = self.roles.iter().map(|(id, _)| id).collect();
        rest.into_iter().for_each(|id| self.leave(id, Close::Finish));
    }

    /// Whether nothing is relayed.
    pub fn is_idle(&self) -> bool {
        let carried = if self.draining { self.mux.is_over() } else { self.mux.is_empty() };
        carried && self.relays.is_empty() && self.flows.is_empty()
    }

    /// Ends what is still relayed; both ends of it hear of a failure.
    pub fn break_off(&mut self) {
        self.relays.break_off(&mut self.tcp);
        self.mux.break_off(&mut self.tcp);
    }

    /// Waits until something happens, at most until `limit`, and acts on it.
    ///
    /// # Errors
    /// As [`Tcp::turn`](crate::io::tcp::Tcp::turn).
    pub fn turn(&mut self, limit: Option<Time>) -> io::Result<()> {
        let result = self.take_turn(limit);
        self.count_present();
        result
    }

    /// Not only after a turn: whoever looks in the middle of one should find every visitor somewhere.
    fn count_present(&self) {
        let present = &self.recorder.present;
        present.open.set(self.joined() as u64);
        present.waiting.set(self.visitors.len() as u64);
        present.pending_callers.set(self.callers_count as u64);
    }

    /// Visitors whose client has taken them.
    fn joined(&self) -> usize {
        self.relays.len() + self.mux.len() + self.flows.taken()
    }

    /// Call it when a port was opened or closed, or its owner came or went.
    fn count_ports(&self) {
        let [open, held] = self.ports.open_and_held();
        self.recorder.present.ports_open.set(open as u64);
        self.recorder.present.ports_held.set(held as u64);
    }

    /// Listens again if the tunnel was made anew: the old control port belongs to an interface that is no more.
    fn look_at_tunnel(&mut self) {
        let Some(name) = self.config.how.through.as_deref().filter(|_| !self.draining) else { return };
        self.alarms.set(self.tcp.now() + TUNNEL_LOOK, Alarm::Tunnel);
        let index = self.tcp.interface_index(name);
        if index.is_none() || index == self.tunnel_index {
            return;
        }
        self.tcp.close(self.control, Close::Finish);
        match self.tcp.listen(self.control_address, &sockets::leg(Some(name))) {
            Ok((control, _)) => {
                (self.control, self.tunnel_index) = (control, index);
                self.tcp.accept(control);
                self.news.push(News::Serving { control: self.control_address });
            }
            Err(error) => self.news.push(News::Starved { reason: self.config.how.reason(error) }),
        }
    }

    fn accepted(&mut self, listener: Id, id: Id, from: SocketAddr) {
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        if self.draining {
            if listener != self.control {
                self.recorder.visitor_came(None);
                self.recorder.turn_away(None, TurnedAway::Draining);
            }
            self.tcp.close(id, Close::Reset);
        } else if listener == self.control {
            self.caller_came(id, from);
        } else {
            self.visitor_came(listener, id, from);
        }
    }

    fn caller_came(&mut self, id: Id, from: SocketAddr) {
        self.recorder.counters.callers.add(1);
        if !allows(&self.config.allow_clients, from.ip()) {
            self.recorder.refused.count(Refused::NotAllowed);
            let reason = "not from an allowed network".to_owned();
            self.news.push(News::Refused { client: from, reason });
            return self.tcp.close(id, Close::Reset);
        }
        let challenge = self.auth.is_some().then(|| Uuid::random(&mut self.rng));
        let (caller, greeting) = Caller::new(challenge, self.tcp.now());
        self.alarms.set(caller.deadline(), Alarm::Caller(id));
        self.roles.insert(id, Role::Caller { caller, from, unsent: 0 });
        self.callers.push_back(id);
        self.callers_count += 1;
        if !greeting.is_empty() {
            self.say(id, &greeting);
        }
        self.tcp.receive(id);
        self.leave_oldest();
    }

    /// Lets the oldest go as long as there are too many callers, and forgets those who are callers no more.
    fn leave_oldest(&mut self) {
        while let Some(&oldest) = self.callers.front() {
            let waits = matches!(self.roles.at(oldest), Some(Role::Caller { .. } | Role::Leaving));
            if waits && self.callers_count <= self.config.callers_max {
                return;
            }
            self.callers.pop_front();
            if let Some(Role::Caller { .. }) = self.roles.at(oldest) {
                self.recorder.refused.count(Refused::CrowdedOut);
            }
            if waits {
                self.leave(oldest, Close::Reset);
            }
        }
    }

    /// Says something to a caller or an owner; to an owner in one piece with all that has to wait for what was said before.
    fn say(&mut self, id: Id, bytes: &[u8]) {
        let now = self.tcp.now();
        match self.roles.at_mut(id) {
            Some(Role::Caller { unsent, .. }) => *unsent += 1,
            Some(Role::Owner { unsent: 1.., waiting, .. }) => {
                waiting.extend_from_slice(bytes);
                if waiting.len() > OWNER_BYTES_MAX {
                    self.owner_left(id, Some(READS_NOTHING));
                }
                return;
            }
            Some(Role::Owner { unsent, stuck_since, .. }) => (*unsent, *stuck_since) = (1, now),
            _ => {}
        }
        self.tcp.send_bytes(id, bytes);
    }

    fn sent(&mut self, id: Id) {
        let now = self.tcp.now();
        match self.roles.at_mut(id) {
            Some(Role::Caller { unsent, .. }) => *unsent -= 1,
            Some(Role::Owner { unsent, waiting, stuck_since, .. }) => {
                *unsent -= 1;
                *stuck_since = now;
                if *unsent == 0 && !waiting.is_empty() {
                    let bytes = std::mem::take(waiting);
                    self.say(id, &bytes);
                }
            }
            _ => {}
        }
    }

    fn received(&mut self, id: Id, mut chunk: Chunk) {
        loop {
            let now = self.tcp.now();
            let asked = match self.roles.at_mut(id) {
                Some(Role::Caller { caller, .. }) => match caller.take(&chunk, self.auth.as_ref(), now) {
                    Ok((count, asked)) => {
                        chunk.advance(count);
                        asked
                    }
                    Err(refusal) => {
                        self.refuse(id, refusal);
                        continue;
                    }
                },
                Some(Role::Owner { .. }) => return self.owner_said(id, chunk),
                Some(Role::Leaving) => break,
                Some(Role::Visitor(_)) | None => return self.tcp.give_back(chunk),
            };
            match asked {
                Some(Asked::Visitor(name)) => return self.take_visitor(id, name, chunk),
                Some(Asked::Carrier(lease)) => return self.take_carrier(id, lease, chunk),
                Some(Asked::Port { port, extended }) => self.open(id, port, extended),
                Some(Asked::Leased { port, challenge, answer }) => self.resume(id, port, challenge, &answer),
                None if chunk.is_empty() => break,
                None => {}
            }
        }
        self.tcp.give_back(chunk);
        self.tcp.receive(id);
    }

    /// Tells a caller why not, and gives it time to read it: closed at once, bytes of its own that are unread would turn the
    /// end into a RST, and the answer would be lost.
    fn refuse(&mut self, id: Id, refusal: Refusal) {
        if let Some(Role::Caller { from, .. }) = self.roles.at(id) {
            self.news.push(News::Refused { client: *from, reason: refusal.to_string() });
            self.recorder.refused.count(refusal.counted());
        }
        let Some(message) = refusal.message() else { return self.leave(id, Close::Finish) };
        self.tcp.send_bytes(id, &frame(&message));
        self.tcp.shut_down(id);
        // Still counts as a caller.
        self.roles.insert(id, Role::Leaving);
        self.alarms.set(self.tcp.now() + LEAVING_TIME, Alarm::Leaving(id));
    }

    /// Forgets a connection that is not relayed.
    fn leave(&mut self, id: Id, how: Close) {
        if let Some(Role::Caller { .. } | Role::Leaving) = self.roles.remove(id) {
            self.callers_count -= 1;
        }
        self.tcp.close(id, how);
    }

    /// A connection that is not relayed ended or failed.
    fn ended(&mut self, id: Id, reason: &str) {
        match self.roles.at(id) {
            Some(Role::Owner { .. }) => self.owner_left(id, Some(reason)),
            Some(Role::Visitor(name)) => {
                let name = *name;
                self.drop_visitor(name, None);
            }
            Some(Role::Caller { .. } | Role::Leaving) => self.leave(id, Close::Finish),
            None => {}
        }
    }
}

impl<T: Udp> Relaying for Server<T> {
    type Tcp = T;
    type Tag = Id;
    type FlowTag = (Id, Uuid);
    type Alarm = Alarm;

    fn parts(&mut self) -> Parts<'_, Self> {
        let Server { tcp, relays, flows, mux, alarms, events, .. } = self;
        Parts { tcp, relays, flows, mux, alarms, events }
    }

    fn on(&mut self, event: Event) {
        match event {
            Event::Accepted { listener, id, from } => self.accepted(listener, id, from),
            Event::AcceptFailed { listener, error } => {
                self.recorder.counters.starved.add(1);
                self.news.push(News::Starved { reason: error.desc().to_owned() });
                self.alarms.set(self.tcp.now() + ACCEPT_PAUSE, Alarm::Accept(listener));
            }
            Event::Received { id, chunk } => self.received(id, chunk),
            Event::Ended(id) => self.ended(id, "it ended the connection"),
            Event::Failed { id, error } => self.ended(id, error.desc()),
            Event::Sent(id) => self.sent(id),
            Event::Datagram { id, from, chunk } => self.datagram_came(id, from, chunk),
            Event::Undelivered { error, .. } => self.flows.lose(flows::loss_of(error)),
            Event::Passed { .. } | Event::Connected(_) | Event::Woken => {}
            // The flows count them.
            Event::Overflown { .. } => {}
        }
    }

    fn relay_over(&mut self, over: Over<Id>) {
        if let Some(tunnel) = self.ports.at_mut(over.tag) {
            tunnel.connections -= 1;
        }
        self.count_present();
        let [bytes_out, bytes_in] = over.bytes;
        self.news.push(News::closed(over.end, bytes_in, bytes_out, over.lasted));
    }

    fn flow_over(&mut self, over: flows::Over<(Id, Uuid)>) {
        self.visitor_flow_over(&over);
    }

    fn told(&mut self, told: Told<Id>) {
        match told {
            Told::Over(over) => self.relay_over(over),
            Told::Lost { carrier, reason } => {
                if let Some(tunnel) = self.ports.carried_by(carrier) {
                    tunnel.carrier = None;
                    let port = tunnel.port;
                    self.news.push(News::CarrierLost { port, reason });
                }
            }
            // We open streams, and each is joined at once.
            Told::Opened { .. } | Told::Withdrawn(_) => {}
        }
    }

    fn ring(&mut self, alarm: Alarm) {
        let now = self.tcp.now();
        match alarm {
            Alarm::Caller(id) => {
                if let Some(Role::Caller { caller, .. }) = self.roles.at(id) {
                    match caller.deadline() {
                        deadline if deadline <= now => self.refuse(id, Refusal::Silent),
                        later => self.alarms.set(later, alarm),
                    }
                }
            }
            Alarm::Heartbeat(id) => self.heartbeat(id, now),
            Alarm::Visitor(id) => {
                if let Some(Role::Visitor(name)) = self.roles.at(id) {
                    let name = *name;
                    self.drop_visitor(name, Some(TurnedAway::NotTaken));
                }
            }
            Alarm::Leaving(id) => {
                if let Some(Role::Leaving) = self.roles.at(id) {
                    self.leave(id, Close::Finish);
                }
            }
            Alarm::Accept(listener) => self.tcp.accept(listener),
            Alarm::Tunnel => self.look_at_tunnel(),
            Alarm::Lease(listener) => {
                if let Some(tunnel) = self.ports.at(listener).filter(|tunnel| tunnel.owner.is_none())
                    && tunnel.held_until <= now
                    && !tunnel.closing
                {
                    self.free(listener);
                }
            }
        }
    }

    fn thin_out_alarms(&mut self) {
        let Server { alarms, roles, ports, .. } = self;
        alarms.thin_out(roles.len() + ports.len(), |at, alarm| match *alarm {
            Alarm::Caller(id) => matches!(roles.at(id), Some(Role::Caller { .. })),
            Alarm::Heartbeat(id) => matches!(roles.at(id), Some(Role::Owner { .. })),
            Alarm::Visitor(id) => matches!(roles.at(id), Some(Role::Visitor(_))),
            Alarm::Leaving(id) => matches!(roles.at(id), Some(Role::Leaving)),
            Alarm::Accept(_) | Alarm::Tunnel => true,
            Alarm::Lease(listener) => {
                ports.at(listener).is_some_and(|tunnel| tunnel.owner.is_none() && tunnel.held_until == at)
            }
        });
    }
}

/// Whether a network of the list holds the address; an empty list holds all.
fn allows(networks: &[ipnet::IpNet], address: IpAddr) -> bool {
    networks.is_empty() || networks.iter().any(|network| network.contains(&address))
}
