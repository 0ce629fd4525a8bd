//! Owners: how a caller gets a public port, keeps it, comes back to it, and loses it.

use super::{Alarm, HEARTBEAT, OWNER_TIME, READS_NOTHING, Role, Server};
use crate::expose::auth::Authenticator;
use crate::expose::caller::Refusal;
use crate::expose::message::{ClientMessage, Frames, ServerMessage, Uuid, frame};
use crate::expose::news::News;
use crate::io::tcp::datagrams::Udp;
use crate::io::tcp::{Chunk, Close, Id};
use crate::stats::exposed::public_port::{Protocol, PublicPort};
use crate::stats::exposed::reasons::TurnedAway;
use crate::time::{Span, Time};

impl<T: Udp> Server<T> {
    /// All that an owner may say is that it ends. Whoever says anything else is no client.
    pub(super) fn owner_said(&mut self, id: Id, mut chunk: Chunk) {
        let mut verdict = None;
        if let Some(Role::Owner { frames, .. }) = self.roles.at_mut(id) {
            while verdict.is_none() && !chunk.is_empty() {
                match frames.take(&chunk) {
                    Ok((count, complete)) => {
                        verdict = complete.map(|frame| frame.parse() == Ok((ClientMessage::Release, false)));
                        chunk.advance(count);
                    }
                    Err(_) => verdict = Some(false),
                }
            }
        }
        self.tcp.give_back(chunk);
        match verdict {
            None => self.tcp.receive(id),
            Some(released) => {
                self.owner_left(id, if released { None } else { Some("a message out of turn") })
            }
        }
    }

    /// A caller asks for a port.
    pub(super) fn open(&mut self, id: Id, port: PublicPort, extended: bool) {
        if port.protocol == Protocol::Udp && !self.config.udp {
            return self.refuse(id, Refusal::NoUdp);
        }
        let listener = self.ports.listener(port);
        let leased =
            listener.and_then(|listener| self.ports.at(listener)).filter(|tunnel| tunnel.lease.is_some());
        match (listener, leased) {
            (Some(listener), Some(tunnel)) if tunnel.owner.is_none() && self.auth.is_some() => {
                self.take_over(id, listener, extended);
            }
            (Some(_), Some(_)) if extended => self.challenge_lease(id, port),
            _ => self.open_new(id, port, extended),
        }
    }

    /// Asks a caller for the proof that the lease of a port is its own.
    fn challenge_lease(&mut self, id: Id, port: PublicPort) {
        let challenge = Uuid::random(&mut self.rng);
        let now = self.tcp.now();
        if let Some(Role::Caller { caller, .. }) = self.roles.at_mut(id) {
            let said = caller.challenge_lease(port, challenge, now);
            self.alarms.set(caller.deadline(), Alarm::Caller(id));
            self.say(id, &said);
        }
    }

    /// Opens a port that is not in use; of those that are held the oldest makes room.
    fn open_new(&mut self, id: Id, port: PublicPort, extended: bool) {
        let full = self.ports.len() >= self.config.ports_max;
        let yields = if full { self.ports.oldest_held() } else { None };
        if full && yields.is_none() {
            return self.refuse(id, Refusal::TooManyPorts);
        }
        let Server { ports, tcp, rng, config, .. } = self;
        match ports.open(tcp, rng, config, port, extended) {
            Ok(listener) => {
                self.adopt(id, listener, false);
                yields.into_iter().for_each(|held| self.make_room(held));
            }
            Err(refusal) => self.refuse(id, refusal),
        }
    }

    /// Closes a held port at once, so that another can have its place: a UDP port does not wait for its flows.
    fn make_room(&mut self, held: Id) {
        self.free(held);
        let over = self.flows.end_all(&mut self.tcp, |(socket, _)| socket == held);
        over.iter().for_each(|over| self.visitor_flow_over(over));
    }

    /// Closes a port whose client did not come back.
    pub(super) fn free(&mut self, listener: Id) {
        let Some(tunnel) = self.ports.at(listener) else { return };
        self.news.push(News::Freed { port: tunnel.port });
        self.close_tunnel(listener);
    }

    /// Gives a caller that has proven the secret a port whose client is away: it may be that client, started again, which knows
    /// of no lease any more. The lease is a new one, so that of two clients with one port only one can have it in the end.
    fn take_over(&mut self, id: Id, listener: Id, extended: bool) {
        if let Some(tunnel) = self.ports.at_mut(listener) {
            tunnel.lease = extended.then(|| Uuid::random(&mut self.rng));
            tunnel.extended = extended;
        }
        self.go_on(id, listener);
    }

    /// The port of a client that was away is a caller's, and so are the visitors who waited.
    fn go_on(&mut self, id: Id, listener: Id) {
        if let Some(tunnel) = self.ports.at_mut(listener) {
            // It came from where its client was before.
            tunnel.carrier.take().into_iter().for_each(|carrier| self.mux.retire(carrier));
        }
        self.adopt(id, listener, true);
        self.waiting_at(listener).into_iter().for_each(|name| self.announce(name));
    }

    /// A caller says that the lease of a port is its own.
    pub(super) fn resume(&mut self, id: Id, port: PublicPort, challenge: Uuid, answer: &str) {
        let Some(listener) = self.ports.listener(port) else { return self.open(id, port, true) };
        let secret = self.config.secret.as_ref().map(|secret| secret.as_bytes());
        let tunnel = self.ports.at(listener).expect("a port has a tunnel");
        let proven = tunnel
            .lease
            .is_some_and(|lease| Authenticator::for_lease(secret, lease).accepts(challenge, answer));
        if !proven {
            return self.refuse(id, Refusal::PortInUse);
        }
        if let Some(old) = tunnel.owner {
            // It has gone, and we have not noticed yet.
            self.leave(old, Close::Reset);
        }
        self.go_on(id, listener);
    }

    /// Makes a caller the owner of a port.
    fn adopt(&mut self, id: Id, listener: Id, kept: bool) {
        let Some(Role::Caller { from, unsent, .. }) = self.roles.at(id) else { return };
        let (client, unsent) = (*from, *unsent);
        self.callers_count -= 1;
        let now = self.tcp.now();
        self.roles.insert(
            id,
            Role::Owner {
                tunnel: listener,
                frames: Frames::default(),
                unsent,
                waiting: Vec::new(),
                stuck_since: now,
            },
        );
        let Some(tunnel) = self.ports.at_mut(listener) else { return };
        tunnel.owner = Some(id);
        tunnel.seen.taken_by(client.to_string());
        let (port, lease) = (tunnel.port, tunnel.lease);
        // The lease comes first: whoever has the port can keep it.
        let mut said = lease.map(|lease| frame(&ServerMessage::Lease(lease))).unwrap_or_default();
        said.extend(frame(&ServerMessage::Hello(port.number)));
        self.say(id, &said);
        self.recorder.counters.reconnects.add(u64::from(kept));
        self.count_ports();
        self.news.push(News::Opened { client, port, kept });
        self.alarms.set(now, Alarm::Heartbeat(id));
    }

    /// An owner's connection is of no use any more; without a `reason` it said so itself.
    pub(super) fn owner_left(&mut self, id: Id, reason: Option<&str>) {
        let Some(Role::Owner { tunnel: listener, .. }) = self.roles.at(id) else { return };
        let listener = *listener;
        self.leave(id, Close::Finish);
        let Some(tunnel) = self.ports.at_mut(listener) else { return };
        let port = tunnel.port;
        let hold = reason.and(tunnel.lease).map(|_| self.config.lease);
        tunnel.owner = None;
        tunnel.seen.left_alone();
        self.recorder.counters.lost.add(u64::from(reason.is_some()));
        match hold {
            Some(span) => {
                tunnel.held_until = self.tcp.now() + span;
                self.alarms.set(tunnel.held_until, Alarm::Lease(listener));
            }
            None => self.close_tunnel(listener),
        }
        self.count_ports();
        let reason = reason.unwrap_or("its client is done").to_owned();
        let held_seconds = hold.unwrap_or(Span::ZERO).as_nanos() / 1_000_000_000;
        self.news.push(News::Left { port, reason, held_seconds });
    }

    /// Closes a public port; who waits there hears of it, what is relayed goes on.
    pub(super) fn close_tunnel(&mut self, listener: Id) {
        if self.ports.at(listener).is_some_and(|tunnel| tunnel.port.protocol == Protocol::Udp) {
            return self.close_datagrams(listener);
        }
        let Some(tunnel) = self.ports.remove(listener) else { return };
        self.tcp.close(listener, Close::Finish);
        tunnel.carrier.into_iter().for_each(|carrier| self.mux.retire(carrier));
        if let Some(owner) = tunnel.owner {
            self.leave(owner, Close::Finish);
        }
        self.waiting_at(listener)
            .into_iter()
            .for_each(|name| self.drop_visitor(name, Some(TurnedAway::PortClosed)));
        self.count_ports();
    }

    pub(super) fn heartbeat(&mut self, id: Id, now: Time) {
        let Some(Role::Owner { unsent, stuck_since, .. }) = self.roles.at(id) else { return };
        if *unsent > 0 && now.since(*stuck_since) >= OWNER_TIME {
            return self.owner_left(id, Some(READS_NOTHING));
        }
        if *unsent == 0 {
            self.say(id, &frame(&ServerMessage::Heartbeat));
        }
        self.alarms.set(now + HEARTBEAT, Alarm::Heartbeat(id));
    }
}
