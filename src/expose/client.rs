//! The client: keeps a local service public, and brings each visitor to it.
//!
//! Generic over [`Udp`], so that the tests run the client that ships on a network in memory. One thread; names are looked up
//! elsewhere ([`Client::look_up`], [`Client::found`]).
//!
//! For each visitor two connections are made at once, to the server and to the local service, and joined when both are
//! there; of a UDP service a connection to the server and a socket, joined as a flow. When the control connection is lost, those
//! that are joined go on, and the client comes back for the same port: with the lease, if the server gave one, else by asking for
//! it again.
//!
//! With [`ClientConfig::mux`] one more connection is made to a server of ours, the carrier ([`super::mux`]), and a visitor is a
//! stream of it. While there is none each visitor has a connection as above.

mod calls;
mod carrier;
mod link;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use super::alarms::Alarms;
use super::auth::Authenticator;
use super::caller::MESSAGE_TIME;
use super::control::{Control, ControlError};
use super::flows::{self, Flows};
use super::message::{ClientMessage, Frames, Uuid, frame};
use super::mux::{Mux, StreamId, Told};
use super::news::News;
use super::relay::{Limits, Over, Relays};
use super::sockets;
use super::turn::{Parts, Relaying};
use crate::control::expose::ClientConfig;
use crate::io::tcp::datagrams::Udp;
use crate::io::tcp::{Chunk, Close, Event, Id, IdMap, Options};
use crate::proto::rng::Rng;
use crate::stats::exposed::reasons::TurnedAway;
use crate::stats::exposed::recorder::{Port, Recorder};
use crate::time::{Span, Time};

/// How long one address of the server may take to answer. bore NETWORK_TIMEOUT.
const CONNECT_TIME: Span = Span::from_secs(3);
/// How long it may take to serve a visitor; the server gives up after ten seconds.
const CALL_TIME: Span = Span::from_secs(8);
/// How long the server may take to hear that we end.
const LEAVING_TIME: Span = Span::from_secs(1);
/// Wait before the first new attempt; doubles with each.
const RETRY_FIRST: Span = Span::from_millis(200);
/// Longest wait between two attempts: whoever is back is found within two seconds.
const RETRY_MAX: Span = Span::from_millis(1600);
/// Refusals of a port that we were only given by chance, after which another will do.
const REFUSALS_MAX: u32 = 5;

/// What names turned out to mean.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// The server's control port, best first.
    pub server: Vec<SocketAddr>,
    /// The local service, best first.
    pub local: Vec<SocketAddr>,
}

enum Link {
    /// Nobody has been asked yet, or too long ago.
    Unknown,
    LookingUp,
    /// Tries this address of the server.
    Connecting {
        id: Id,
        index: usize,
    },
    Up {
        id: Id,
        control: Box<Control>,
    },
    /// Said that it ends, and waits for the server to hear it.
    Leaving {
        id: Id,
    },
    /// Until the next attempt.
    Waiting,
    /// No more.
    Done,
}

/// The connection that carries visitors.
enum Carrier {
    /// There is none, and none is wanted now.
    None,
    /// Connected to, or asked by the server who we are.
    Coming {
        id: Id,
        frames: Frames,
    },
    Up {
        id: Id,
    },
}

#[derive(Clone, Copy)]
enum Role {
    Link,
    Carrier,
    Server(u64),
    Local(u64),
}

enum Local {
    /// To the address with this index.
    Connecting(Id, usize),
    Ready(Id),
    /// Not connected to: it gets a socket when the visitor is ours.
    Datagrams,
    Failed,
}

/// How a visitor comes to us.
enum Leg {
    Connection {
        id: Id,
        visitor: Uuid,
        frames: Frames,
        /// We told the server which visitor this is about.
        accepted: bool,
        unsent: u8,
    },
    Stream(StreamId),
}

/// A visitor that is being brought to the local service.
struct Call {
    /// When we were told of it.
    came: Time,
    from: Option<SocketAddr>,
    leg: Leg,
    local: Local,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Alarm {
    /// The next attempt is due.
    Retry,
    Connecting(Id),
    Silence(Id),
    Leaving,
    Call(u64),
    /// The next attempt to have a carrier is due.
    Carrier,
    CarrierComing(Id),
}

/// The client. See the module.
pub struct Client<T> {
    tcp: T,
    config: ClientConfig,
    /// How sockets towards the server are made, and towards the local service.
    leg: Options,
    end: Options,
    auth: Option<Authenticator>,
    rng: Rng,
    addresses: Addresses,
    link: Link,
    /// The server's address that answered.
    server: Option<SocketAddr>,
    /// The public port we have or had.
    port: Option<u16>,
    lease: Option<Uuid>,
    failures: u32,
    refusals: u32,
    roles: IdMap<Role>,
    calls: HashMap<u64, Call>,
    calls_made: u64,
    /// Those that are streams.
    streams: HashMap<StreamId, u64>,
    relays: Relays<()>,
    carrier: Carrier,
    /// Attempts to have one that failed, since one was there; and when the next is due.
    carrier_failures: u32,
    carrier_retry: Time,
    mux: Mux<()>,
    flows: Flows<()>,
    alarms: Alarms<Alarm>,
    events: Vec<Event>,
    news: Vec<News>,
    failure: Option<ControlError>,
    recorder: Arc<Recorder>,
    /// What is counted of the public port.
    seen: Option<Arc<Port>>,
    /// Gives its port back as soon as the server hears it.
    draining: bool,
}

impl<T: Udp> Client<T> {
    /// A client that waits for [`Client::found`].
    pub fn new(tcp: T, config: ClientConfig, rng: Rng) -> Client<T> {
        let limits = Limits { idle: config.idle, half_open: config.half_open };
        let recorder = Arc::<Recorder>::default();
        let flow_limits = flows::Limits { waiting: CALL_TIME, idle: config.idle.unwrap_or(flows::IDLE) };
        Client {
            tcp,
            auth: config.secret.as_ref().map(|secret| Authenticator::new(secret.as_bytes())),
            leg: sockets::leg(config.how.through.as_deref()),
            end: sockets::end(),
            config,
            rng,
            addresses: Addresses::default(),
            link: Link::Unknown,
            server: None,
            port: None,
            lease: None,
            failures: 0,
            refusals: 0,
            roles: IdMap::default(),
            calls: HashMap::new(),
            calls_made: 0,
            streams: HashMap::new(),
            relays: Relays::new(limits),
            carrier: Carrier::None,
            carrier_failures: 0,
            carrier_retry: Time::default(),
            mux: Mux::new(limits, true),
            flows: Flows::new(flow_limits, recorder.lost.clone()),
            alarms: Alarms::default(),
            events: Vec::new(),
            news: Vec::new(),
            failure: None,
            recorder,
            seen: None,
            draining: false,
        }
    }

    /// What it was started with.
    pub fn config(&self) -> &ClientConfig {
        &self.config
    }

    /// What the client stands on.
    pub fn tcp(&mut self) -> &mut T {
        &mut self.tcp
    }

    /// The public port, while it is ours.
    pub fn public_port(&self) -> Option<u16> {
        match &self.link {
            Link::Up { control, .. } if control.is_open() => self.port,
            _ => None,
        }
    }

    /// What it counts and times.
    pub fn recorder(&self) -> Arc<Recorder> {
        self.recorder.clone()
    }

    /// Takes what happened since the last call.
    pub fn take_news(&mut self) -> Vec<News> {
        std::mem::take(&mut self.news)
    }

    /// Why the client has ended by itself.
    pub fn failure(&self) -> Option<&ControlError> {
        self.failure.as_ref()
    }

    /// Whether names are to be looked up now, and [`Client::found`] called with what they mean.
    pub fn look_up(&mut self) -> bool {
        let wanted = matches!(self.link, Link::Unknown);
        if wanted {
            self.link = Link::LookingUp;
        }
        wanted
    }

    /// What the names mean, or why they mean nothing.
    pub fn found(&mut self, found: Result<Addresses, String>) {
        if !matches!(self.link, Link::LookingUp) {
            return;
        }
        match found {
            Ok(addresses) => {
                self.addresses = addresses;
                self.connect(0, ControlError::Io("its name has no address".to_owned()));
            }
            Err(reason) => self.lost(ControlError::Io(reason)),
        }
    }

    /// Takes no more visitors and gives the port back; what is joined goes on. If the server keeps the port for us while we are not
    /// connected, one attempt is made at once to tell it; if that takes more than a second, the port is free when its lease ends.
    /// If we have asked for a port and not heard yet whether we have it, the answer is waited for like any other.
    ///
    /// A flow of datagrams goes on until it has been silent for a second.
    pub fn drain(&mut self) {
        self.draining = true;
        self.flows.hurry_all(&mut self.tcp);
        let asked = matches!(&self.link, Link::Up { control, .. } if control.awaits_port());
        if self.lease.is_none() && !asked {
            return self.drop_link(Link::Done);
        }
        let patience = if asked { MESSAGE_TIME } else { LEAVING_TIME };
        self.alarms.set(self.tcp.now() + patience, Alarm::Leaving);
        match &self.link {
            Link::Up { id, control } if control.is_open() => self.release(*id),
            Link::Waiting => self.link = Link::Unknown,
            Link::Unknown | Link::LookingUp | Link::Connecting { .. } | Link::Up { .. } => {}
            Link::Leaving { .. } | Link::Done => {}
        }
    }

    /// Says that we end, to a server that would keep the port otherwise.
    fn release(&mut self, id: Id) {
        if self.lease.is_none() {
            return self.drop_link(Link::Done);
        }
        // Closed at once, what we have not read would turn the end into a RST, which may overtake what we said.
        self.tcp.send_bytes(id, &frame(&ClientMessage::Release));
        self.tcp.shut_down(id);
        self.link = Link::Leaving { id };
    }

    /// Whether no visitor is being served and, when it ends, the server has heard it.
    pub fn is_idle(&self) -> bool {
        let left = match self.draining {
            true => matches!(self.link, Link::Done) && self.mux.is_over(),
            false => self.mux.is_empty(),
        };
        left && self.relays.is_empty() && self.flows.is_empty() && self.calls.is_empty()
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
        // A stream whose service is still connected to is a call.
        let streams = self.mux.len().saturating_sub(self.streams.len());
        present.open.set((self.relays.len() + streams + self.flows.len()) as u64);
        present.waiting.set(self.calls.len() as u64);
        let is_open = self.public_port().is_some();
        present.ports_open.set(u64::from(is_open));
        present.ports_held.set(u64::from(!is_open && self.seen.is_some()));
    }

    fn connected(&mut self, id: Id) {
        match self.roles.at(id).copied() {
            Some(Role::Link) => self.link_connected(id),
            Some(Role::Carrier) if self.auth.is_some() => self.tcp.receive(id),
            Some(Role::Carrier) => self.carry(id, Vec::new()),
            Some(Role::Server(_)) if self.auth.is_some() => self.tcp.receive(id),
            Some(Role::Server(number)) => self.accept(number, Vec::new()),
            Some(Role::Local(number)) => {
                if let Some(call) = self.calls.get_mut(&number) {
                    let waited = self.tcp.now().since(call.came);
                    self.recorder.distributions.connect.record(waited.as_nanos());
                    call.local = Local::Ready(id);
                    self.join(number);
                }
            }
            None => {}
        }
    }

    fn received(&mut self, id: Id, chunk: Chunk) {
        match self.roles.at(id).copied() {
            Some(Role::Link) => self.link_received(id, chunk),
            Some(Role::Carrier) => self.carrier_challenged(id, chunk),
            Some(Role::Server(number)) => self.challenged(number, id, chunk),
            Some(Role::Local(_)) | None => self.tcp.give_back(chunk),
        }
    }

    fn ended(&mut self, id: Id, error: ControlError) {
        match self.roles.at(id).copied() {
            Some(Role::Link) => match self.link {
                Link::Connecting { index, .. } => {
                    self.roles.remove(id);
                    self.tcp.close(id, Close::Reset);
                    self.connect(index + 1, error);
                }
                Link::Leaving { .. } => self.drop_link(Link::Done),
                Link::Up { ref control, .. } if error == ControlError::Ended => {
                    let end = control.end();
                    self.lost(end);
                }
                _ => self.lost(error),
            },
            Some(Role::Carrier) => self.carrier_lost(error.to_string()),
            Some(Role::Server(number)) => {
                let reason = format!("no connection to the server: {error}");
                self.give_up(number, TurnedAway::ServerUnreachable, &reason);
            }
            Some(Role::Local(number)) => {
                self.roles.remove(id);
                self.tcp.close(id, Close::Reset);
                let tried = match self.calls.get(&number).map(|call| &call.local) {
                    Some(Local::Connecting(_, index)) => *index,
                    // It was there and went before anything was sent.
                    _ => self.addresses.local.len(),
                };
                self.connect_local(number, tried + 1, &error.to_string());
            }
            None => {}
        }
    }
}

impl<T: Udp> Relaying for Client<T> {
    type Tcp = T;
    type Tag = ();
    type FlowTag = ();
    type Alarm = Alarm;

    fn parts(&mut self) -> Parts<'_, Self> {
        let Client { tcp, relays, flows, mux, alarms, events, .. } = self;
        Parts { tcp, relays, flows, mux, alarms, events }
    }

    fn on(&mut self, event: Event) {
        match event {
            Event::Connected(id) => self.connected(id),
            Event::Received { id, chunk } => self.received(id, chunk),
            Event::Ended(id) => self.ended(id, ControlError::Ended),
            Event::Failed { id, error } => self.ended(id, ControlError::Io(error.desc().to_owned())),
            Event::Sent(id) => {
                if let Some(Role::Server(call)) = self.roles.at(id)
                    && let Some(Call { leg: Leg::Connection { unsent, .. }, .. }) = self.calls.get_mut(call)
                {
                    *unsent -= 1;
                }
            }
            Event::Datagram { chunk, .. } => self.tcp.give_back(chunk),
            Event::Passed { .. } | Event::Accepted { .. } | Event::AcceptFailed { .. } => {}
            // Of a socket that was closed meanwhile.
            Event::Undelivered { .. } | Event::Woken => {}
            // The flows count them.
            Event::Overflown { .. } => {}
        }
    }

    fn relay_over(&mut self, over: Over<()>) {
        self.count_present();
        let [bytes_in, bytes_out] = over.bytes;
        self.news.push(News::closed(over.end, bytes_in, bytes_out, over.lasted));
    }

    fn flow_over(&mut self, over: flows::Over<()>) {
        self.news.push(News::flow_ended(&over, over.outward, over.inward));
    }

    fn told(&mut self, told: Told<()>) {
        match told {
            Told::Opened { stream, .. } if self.draining => self.mux.refuse(stream),
            Told::Opened { stream, from } => self.call_from_stream(stream, from),
            Told::Withdrawn(stream) => {
                if let Some(number) = self.streams.get(&stream) {
                    self.end_call(*number, Close::Reset, TurnedAway::ServerUnreachable);
                }
            }
            Told::Lost { carrier, reason } => {
                if matches!(self.carrier, Carrier::Up { id } if id == carrier) {
                    self.carrier_lost(reason);
                }
            }
            Told::Over(over) => self.relay_over(over),
        }
    }

    fn ring(&mut self, alarm: Alarm) {
        match (alarm, &self.link) {
            (Alarm::Retry, Link::Waiting) => self.link = Link::Unknown,
            (Alarm::Connecting(which), Link::Connecting { id, .. }) if *id == which => {
                self.ended(which, ControlError::Io("no answer within 3 seconds".to_owned()));
            }
            (Alarm::Silence(which), Link::Up { id, control }) if *id == which => match control.deadline() {
                deadline if deadline > self.tcp.now() => self.alarms.set(deadline, alarm),
                _ => self.lost(control.silence()),
            },
            (Alarm::Carrier, _) if self.carrier_retry <= self.tcp.now() => self.look_at_carrier(),
            (Alarm::CarrierComing(which), _) => {
                if matches!(self.carrier, Carrier::Coming { id, .. } if id == which) {
                    self.carrier_lost("no answer within 3 seconds".to_owned());
                }
            }
            (Alarm::Leaving, _) => self.drop_link(Link::Done),
            (Alarm::Call(number), _) => {
                self.give_up(number, TurnedAway::TooSlow, "it took longer than 8 seconds");
            }
            _ => {}
        }
    }

    fn thin_out_alarms(&mut self) {
        let Client { alarms, roles, calls, carrier_retry, .. } = self;
        alarms.thin_out(roles.len(), |at, alarm| match alarm {
            Alarm::Retry | Alarm::Leaving => true,
            Alarm::Carrier => at == *carrier_retry,
            Alarm::Connecting(id) | Alarm::Silence(id) | Alarm::CarrierComing(id) => roles.at(*id).is_some(),
            Alarm::Call(number) => calls.contains_key(number),
        });
    }
}
