//! Calls: a visitor brought to the local service.

use std::net::SocketAddr;

use super::{Alarm, CALL_TIME, Call, Client, Leg, Local, Role};
use crate::expose::auth::Authenticator;
use crate::expose::control::proof;
use crate::expose::message::{ClientMessage, Frames, ServerMessage, Uuid, frame};
use crate::expose::mux::StreamId;
use crate::expose::news::News;
use crate::expose::proxy;
use crate::io::tcp::datagrams::Udp;
use crate::io::tcp::{Chunk, Close, Id};
use crate::stats::exposed::public_port::Protocol;
use crate::stats::exposed::reasons::TurnedAway;
use crate::stats::exposed::recorder::Meter;

/// The side of a pair that the service is on.
const SERVICE: usize = 1;
/// The same of a flow: that of its socket.
const FLOW_SERVICE: usize = 0;

impl<T: Udp> Client<T> {
    pub(super) fn call(&mut self, visitor: Uuid, from: Option<SocketAddr>) {
        let Some(address) = self.server else { return };
        self.recorder.visitor_came(self.seen.as_deref());
        let server = match self.tcp.connect(address, &self.leg) {
            Ok(id) => id,
            Err(error) => {
                self.recorder.turn_away(self.seen.as_deref(), TurnedAway::ServerUnreachable);
                return self.news.push(News::Unserved { reason: error.desc().to_owned() });
            }
        };
        let frames = Frames::default();
        let number =
            self.begin(from, Leg::Connection { id: server, visitor, frames, accepted: false, unsent: 0 });
        self.roles.insert(server, Role::Server(number));
        if self.config.protocol == Protocol::Tcp {
            self.connect_local(number, 0, "its name has no address");
        }
    }

    /// The same for a visitor who is a stream of the carrier's.
    pub(super) fn call_from_stream(&mut self, stream: StreamId, from: SocketAddr) {
        self.recorder.visitor_came(self.seen.as_deref());
        self.carrier_failures = 0;
        let number = self.begin(Some(from), Leg::Stream(stream));
        self.streams.insert(stream, number);
        self.connect_local(number, 0, "its name has no address");
    }

    fn begin(&mut self, from: Option<SocketAddr>, leg: Leg) -> u64 {
        self.calls_made += 1;
        let (number, came) = (self.calls_made, self.tcp.now());
        self.calls.insert(number, Call { came, from, leg, local: Local::Datagrams });
        self.count_present();
        self.alarms.set(came + CALL_TIME, Alarm::Call(number));
        number
    }

    /// Tries the local service's addresses from `index` on; `reason` is why those before did not do.
    pub(super) fn connect_local(&mut self, number: u64, index: usize, reason: &str) {
        let Some(call) = self.calls.get_mut(&number) else { return };
        let Some(address) = self.addresses.local.get(index) else {
            call.local = Local::Failed;
            let reason = format!("{}: {reason}", self.config.local);
            self.news.push(News::Unserved { reason });
            return self.join(number);
        };
        match self.tcp.connect(*address, &self.end) {
            Ok(id) => {
                call.local = Local::Connecting(id, index);
                self.roles.insert(id, Role::Local(number));
            }
            Err(error) => self.connect_local(number, index + 1, error.desc()),
        }
    }

    /// The server asks who we are before it gives us a visitor.
    pub(super) fn challenged(&mut self, number: u64, id: Id, chunk: Chunk) {
        let Some(Call { leg: Leg::Connection { frames, .. }, .. }) = self.calls.get_mut(&number) else {
            return self.tcp.give_back(chunk);
        };
        let answer = answer(self.auth.as_ref(), frames, &chunk);
        self.tcp.give_back(chunk);
        match answer {
            Ok(None) => self.tcp.receive(id),
            Ok(Some(proof)) => self.accept(number, proof),
            Err(reason) => self.give_up(number, TurnedAway::NoChallenge, reason),
        }
    }

    /// Tells the server which visitor we take, behind `said`.
    pub(super) fn accept(&mut self, number: u64, mut said: Vec<u8>) {
        let Some(Call { leg: Leg::Connection { id, visitor, accepted, unsent, .. }, .. }) =
            self.calls.get_mut(&number)
        else {
            return;
        };
        said.extend(frame(&ClientMessage::Accept(*visitor)));
        *accepted = true;
        *unsent += 1;
        self.tcp.send_bytes(*id, &said);
        self.join(number);
    }

    /// Joins the two sides of a call when both are there.
    pub(super) fn join(&mut self, number: u64) {
        let Some(call) = self.calls.get(&number) else { return };
        if matches!(call.leg, Leg::Connection { accepted: false, .. }) {
            return;
        }
        match call.local {
            Local::Connecting(..) => {}
            // The visitor sees the connection end; if it shares one, a RST.
            Local::Failed => drop(self.end_call(number, Close::Finish, TurnedAway::LocalUnreachable)),
            Local::Datagrams => self.start_flow(number),
            Local::Ready(local) => self.join_to(number, local),
        }
    }

    fn join_to(&mut self, number: u64, local: Id) {
        let Some(call) = self.calls.remove(&number) else { return };
        self.roles.remove(local);
        let to = self.server.map(|server| SocketAddr::new(server.ip(), self.port.unwrap_or(0)));
        let header = match self.config.proxy_protocol {
            true => proxy::header(call.from.zip(to)),
            false => Vec::new(),
        };
        let meter = Meter::joined(&self.recorder, self.seen.as_ref(), call.came, self.tcp.now(), SERVICE);
        match call.leg {
            Leg::Connection { id, unsent, .. } => {
                self.roles.remove(id);
                if !header.is_empty() {
                    self.tcp.send_bytes(local, &header);
                }
                let unsent = [unsent, u8::from(!header.is_empty())];
                self.relays.start(&mut self.tcp, [id, local], None, unsent, (), meter);
            }
            Leg::Stream(stream) => {
                self.streams.remove(&stream);
                self.mux.join(&mut self.tcp, stream, local, &header, (), meter);
            }
        }
        self.count_present();
    }

    /// Joins the connection of a call to a socket of its own towards the local service.
    fn start_flow(&mut self, number: u64) {
        let Some(Call { came, leg: Leg::Connection { id, unsent, .. }, .. }) = self.calls.get(&number) else {
            return;
        };
        let (came, id, unsent) = (*came, *id, *unsent);
        let Client { flows, tcp, addresses, recorder, seen, .. } = self;
        let now = tcp.now();
        let meter = || Meter::joined(recorder, seen.as_ref(), came, now, FLOW_SERVICE);
        match flows.start(tcp, &addresses.local, id, unsent, (), meter) {
            Ok(()) => {
                self.roles.remove(id);
                self.calls.remove(&number);
                self.count_present();
            }
            Err(error) => {
                let reason = format!("{}: {}", self.config.local, error.desc());
                self.give_up(number, TurnedAway::LocalUnreachable, &reason);
            }
        }
    }

    pub(super) fn give_up(&mut self, number: u64, counted: TurnedAway, reason: &str) {
        if self.end_call(number, Close::Reset, counted).is_some() {
            self.news.push(News::Unserved { reason: reason.to_owned() });
        }
    }

    pub(super) fn end_call(&mut self, number: u64, how: Close, reason: TurnedAway) -> Option<()> {
        let call = self.calls.remove(&number)?;
        // It was to blame first, whatever came after.
        let reason = if matches!(call.local, Local::Failed) { TurnedAway::LocalUnreachable } else { reason };
        self.recorder.turn_away(self.seen.as_deref(), reason);
        self.count_present();
        match call.leg {
            Leg::Connection { id, .. } => {
                self.roles.remove(id);
                self.tcp.close(id, how);
            }
            Leg::Stream(stream) => {
                self.streams.remove(&stream);
                self.mux.refuse(stream);
            }
        }
        if let Local::Connecting(local, _) | Local::Ready(local) = call.local {
            self.roles.remove(local);
            self.tcp.close(local, Close::Reset);
        }
        Some(())
    }
}

/// What it means when somebody else speaks first.
const NO_CHALLENGE: &str = "the server did not ask for our secret";

/// What to say to a server that asks who we are; `None` while not all of that has come.
///
/// # Errors
/// Why it is no challenge. What else a server has to say comes behind our answer, not before.
pub(super) fn answer(
    auth: Option<&Authenticator>,
    frames: &mut Frames,
    bytes: &[u8],
) -> Result<Option<Vec<u8>>, &'static str> {
    let (count, complete) = frames.take(bytes).map_err(|_| NO_CHALLENGE)?;
    let Some(message) = complete.map(|frame| frame.parse::<ServerMessage>()) else { return Ok(None) };
    match (message, auth) {
        (Ok((ServerMessage::Challenge(challenge), _)), Some(auth)) if count == bytes.len() => {
            Ok(Some(proof(auth, challenge)))
        }
        _ => Err(NO_CHALLENGE),
    }
}
