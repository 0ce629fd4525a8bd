//! Visitors: from a public port until a caller takes them over.

use std::net::SocketAddr;
use std::sync::Arc;

use super::{Alarm, Role, Server, VISITOR_TIME, Visitor, Who, allows};
use crate::expose::caller::Refusal;
use crate::expose::flows::Over;
use crate::expose::message::{ServerMessage, Uuid, frame};
use crate::expose::news::News;
use crate::expose::relay::End;
use crate::io::tcp::datagrams::{Endpoint, Udp};
use crate::io::tcp::{Chunk, Close, Id};
use crate::stats::exposed::reasons::{Loss, Reason, Refused, TurnedAway};
use crate::stats::exposed::recorder::{Meter, Port};

/// The side of a pair that the service is on: the caller's.
const SERVICE: usize = 0;
/// The same of a flow: that of its connection.
const FLOW_SERVICE: usize = 1;

impl<T: Udp> Server<T> {
    pub(super) fn visitor_came(&mut self, listener: Id, id: Id, from: SocketAddr) {
        let Some(tunnel) = self.ports.at(listener) else {
            self.recorder.visitor_came(None);
            self.recorder.turn_away(None, TurnedAway::PortClosed);
            return self.tcp.close(id, Close::Reset);
        };
        let (port, seen, carrier) = (tunnel.port, tunnel.seen.clone(), tunnel.carrier);
        self.recorder.visitor_came(Some(&seen));
        let refusal = self.why_not_allowed(from).or_else(|| self.why_no_connection(listener));
        if let Some(reason) = refusal {
            self.turned_away(&seen, from, reason);
            return self.tcp.close(id, Close::Reset);
        }
        if let Some(carrier) = carrier.filter(|carrier| self.mux.can_open(*carrier)) {
            self.news.push(News::Visitor { port, from });
            return self.open_stream(carrier, listener, id, from, &seen);
        }
        let name = Uuid::random(&mut self.rng);
        self.wait(
            name,
            Visitor { who: Who::Connection(id), tunnel: listener, from, came: self.tcp.now(), seen },
        );
        self.roles.insert(id, Role::Visitor(name));
        self.alarms.set(self.tcp.now() + VISITOR_TIME, Alarm::Visitor(id));
        self.news.push(News::Visitor { port, from });
        self.announce(name);
    }

    /// A visitor is its port's carrier's from now on.
    fn open_stream(&mut self, carrier: Id, listener: Id, id: Id, from: SocketAddr, seen: &Arc<Port>) {
        if let Some(tunnel) = self.ports.at_mut(listener) {
            tunnel.connections += 1;
        }
        let now = self.tcp.now();
        let meter = Meter::joined(&self.recorder, Some(seen), now, now, SERVICE);
        self.mux.open(&mut self.tcp, carrier, id, from, listener, meter);
        self.count_present();
    }

    /// A caller carries the visitors of a port from now on, instead of whoever did.
    pub(super) fn take_carrier(&mut self, id: Id, lease: Uuid, brought: Chunk) {
        let Some(tunnel) = self.ports.leased(lease) else {
            self.tcp.give_back(brought);
            return self.refuse(id, Refusal::UnknownLease);
        };
        let (before, port) = (tunnel.carrier.replace(id), tunnel.port);
        let Some(Role::Caller { unsent, .. }) = self.roles.remove(id) else { return };
        self.callers_count -= 1;
        self.mux.carry(&mut self.tcp, id, Some(brought), unsent);
        before.into_iter().for_each(|carrier| self.mux.retire(carrier));
        self.news.push(News::Carried { port });
    }

    /// A visitor waits at its port from now on.
    fn wait(&mut self, name: Uuid, visitor: Visitor) {
        if let Some(tunnel) = self.ports.at_mut(visitor.tunnel) {
            tunnel.connections += 1;
        }
        self.visitors.insert(name, visitor);
        self.count_present();
    }

    fn turned_away(&mut self, seen: &Port, from: SocketAddr, reason: TurnedAway) {
        self.recorder.turn_away(Some(seen), reason);
        let reason = match reason {
            TurnedAway::NotAllowed => "not from an allowed network",
            TurnedAway::TooMany => "too many connections in all",
            TurnedAway::TooManyOfClient => "too many connections of this client",
            TurnedAway::TooManyWaiting => "too many visitors that nobody has taken yet",
            TurnedAway::NotTaken => "its client did not take it within 10 seconds",
            TurnedAway::PortClosed => "the port is closed",
            other => other.label(),
        };
        self.news.push(News::TurnedAway { port: seen.public(), from, reason: reason.to_owned() });
    }

    /// The first datagram of somebody at a public UDP port. Where there is no room, somebody without an answer makes some.
    pub(super) fn datagram_came(&mut self, socket: Id, source: Endpoint, chunk: Chunk) {
        let from = SocketAddr::new(source.remote.ip().to_canonical(), source.remote.port());
        let Some(tunnel) = self.ports.at(socket).filter(|tunnel| !tunnel.closing) else {
            self.flows.lose(Loss::TurnedAway);
            return self.tcp.give_back(chunk);
        };
        let (port, seen) = (tunnel.port, tunnel.seen.clone());
        self.recorder.visitor_came(Some(&seen));
        if let Some(reason) = self.why_not_allowed(from).or_else(|| self.why_no_flow(socket)) {
            self.flows.lose(Loss::TurnedAway);
            self.turned_away(&seen, from, reason);
            return self.tcp.give_back(chunk);
        }
        let name = Uuid::random(&mut self.rng);
        let flow = self.flows.open(&mut self.tcp, socket, source, chunk, (socket, name));
        self.wait(name, Visitor { who: Who::Flow(flow), tunnel: socket, from, came: self.tcp.now(), seen });
        self.news.push(News::Visitor { port, from });
        self.announce(name);
    }

    fn why_not_allowed(&self, from: SocketAddr) -> Option<TurnedAway> {
        (!allows(&self.config.allow_visitors, from.ip())).then_some(TurnedAway::NotAllowed)
    }

    /// Why a port cannot have one more visitor now, beside so many in all.
    fn why_no_room(&self, listener: Id, total: usize) -> Option<TurnedAway> {
        let of_client = self.ports.at(listener).map_or(0, |tunnel| tunnel.connections);
        if total >= self.config.connections_max {
            Some(TurnedAway::TooMany)
        } else if of_client >= self.config.connections_per_client_max {
            Some(TurnedAway::TooManyOfClient)
        } else {
            None
        }
    }

    /// Why a TCP port cannot, after a flow whose visitor may be forged has made room. Flows that wait take no descriptors.
    fn why_no_connection(&mut self, listener: Id) -> Option<TurnedAway> {
        let total = |server: &Server<T>| server.visitors.len() - server.flows.waiting() + server.joined();
        if self.why_no_room(listener, total(self)) == Some(TurnedAway::TooMany) {
            self.evict(None);
        }
        self.why_no_room(listener, total(self))
    }

    /// The same of a UDP port.
    fn why_no_flow(&mut self, socket: Id) -> Option<TurnedAway> {
        if !self.flows.has_room(socket) {
            return Some(TurnedAway::TooManyWaiting);
        }
        let total = |server: &Server<T>| server.visitors.len() + server.joined();
        match self.why_no_room(socket, total(self)) {
            Some(TurnedAway::TooMany) => self.evict(None),
            Some(_) => self.evict(Some(socket)),
            None => {}
        }
        self.why_no_room(socket, total(self))
    }

    fn evict(&mut self, socket: Option<Id>) {
        let over = self.flows.evict(&mut self.tcp, socket);
        over.iter().for_each(|over| self.visitor_flow_over(over));
    }

    /// Tells the owner of a visitor, if there is an owner now.
    pub(super) fn announce(&mut self, name: Uuid) {
        let Some(visitor) = self.visitors.get(&name) else { return };
        let Some(tunnel) = self.ports.at(visitor.tunnel) else { return };
        let Some(owner) = tunnel.owner else { return };
        let message = match tunnel.extended {
            true => ServerMessage::Visitor(name, visitor.from),
            false => ServerMessage::Connection(name),
        };
        self.say(owner, &frame(&message));
    }

    /// The visitors of a port that nobody has taken yet.
    pub(super) fn waiting_at(&self, listener: Id) -> Vec<Uuid> {
        let waiting = self.visitors.iter().filter(|(_, visitor)| visitor.tunnel == listener);
        waiting.map(|(name, _)| *name).collect()
    }

    /// A caller takes a visitor over; `brought` are the first bytes for it.
    pub(super) fn take_visitor(&mut self, id: Id, name: Uuid, brought: Chunk) {
        let Some(visitor) = self.visitors.remove(&name) else {
            self.tcp.give_back(brought);
            if let Some(Role::Caller { from, .. }) = self.roles.at(id) {
                self.recorder.refused.count(Refused::UnknownVisitor);
                let reason = format!("no visitor {name}, or no longer");
                self.news.push(News::Refused { client: *from, reason });
            }
            return self.leave(id, Close::Finish);
        };
        let Some(Role::Caller { unsent, .. }) = self.roles.remove(id) else { return };
        self.callers_count -= 1;
        let Visitor { who, tunnel, came, seen, .. } = visitor;
        let Server { relays, flows, tcp, recorder, .. } = self;
        let service = if matches!(who, Who::Flow(_)) { FLOW_SERVICE } else { SERVICE };
        let meter = Meter::joined(recorder, Some(&seen), came, tcp.now(), service);
        match who {
            Who::Connection(other) => {
                self.roles.remove(other);
                relays.start(tcp, [id, other], Some(brought), [unsent, 0], tunnel, meter);
            }
            Who::Flow(flow) => {
                let over = flows.take(tcp, flow, id, brought, unsent, meter);
                over.into_iter().for_each(|over| self.visitor_flow_over(&over));
            }
        }
        self.count_present();
    }

    /// A flow is over, or its visitor was turned away.
    pub(super) fn visitor_flow_over(&mut self, over: &Over<(Id, Uuid)>) {
        let (socket, name) = over.tag;
        let waited = self.visitors.remove(&name);
        if let Some(tunnel) = self.ports.at_mut(socket) {
            tunnel.connections -= 1;
        }
        match waited {
            None => self.news.push(News::flow_ended(over, over.inward, over.outward)),
            Some(Visitor { from, seen, .. }) => {
                let reason = match over.end {
                    End::Idle => TurnedAway::NotTaken,
                    End::Finished | End::Broken(_) => TurnedAway::PortClosed,
                };
                self.turned_away(&seen, from, reason);
            }
        }
        self.count_present();
        self.close_if_over(socket);
    }

    /// Closes a public UDP port when the last of its flows is over; they last as long as nobody is silent for a second.
    pub(super) fn close_datagrams(&mut self, socket: Id) {
        let Some(tunnel) = self.ports.at_mut(socket) else { return };
        (tunnel.closing, tunnel.lease) = (true, None);
        tunnel.seen.left_alone();
        if let Some(owner) = tunnel.owner.take() {
            self.leave(owner, Close::Finish);
        }
        self.count_ports();
        let over = self.flows.hurry(&mut self.tcp, |(of, _)| of == socket);
        over.iter().for_each(|over| self.visitor_flow_over(over));
        self.close_if_over(socket);
    }

    fn close_if_over(&mut self, socket: Id) {
        if self.ports.at(socket).is_some_and(|tunnel| tunnel.closing && tunnel.connections == 0) {
            self.ports.remove(socket);
            self.tcp.close(socket, Close::Finish);
            self.count_ports();
        }
    }

    /// A connection of a visitor that waits goes, or is turned away.
    pub(super) fn drop_visitor(&mut self, name: Uuid, reason: Option<TurnedAway>) {
        let Some(visitor) = self.visitors.remove(&name) else { return };
        if let Who::Connection(id) = visitor.who {
            self.roles.remove(id);
            self.tcp.close(id, Close::Reset);
        }
        if let Some(tunnel) = self.ports.at_mut(visitor.tunnel) {
            tunnel.connections -= 1;
        }
        match reason {
            Some(reason) => self.turned_away(&visitor.seen, visitor.from, reason),
            None => self.recorder.counters.left.add(1),
        }
        self.count_present();
    }
}
