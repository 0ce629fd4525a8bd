//! The protocol thread: owns the tunnel's keys and peers, makes sessions, keeps timers, obeys the configuration socket.
//!
//! It is never on the way of a data packet. It sleeps until a worker, an operator, the interface or a timer wants something,
//! does that, and then says what follows from it: datagrams to the network, orders to the workers. What it does is in
//! [`super::exchange`]; here are its sleep, its clock, its sockets and its operator.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use crossbeam_channel::{Receiver, never, select};
use nix::errno::Errno;

use super::exchange::Exchange;
use super::handoff::{Arrival, Inbox, Order, Orders};
use super::outer::Outer;
use super::tunnel::{Tunnel, gave_up};
use crate::control::endpoint::HostPort;
use crate::control::resolve::Resolver;
use crate::control::uapi::SetRequest;
use crate::control::uapi_socket::Command;
use crate::dataplane::view::Change;
use crate::io::clock;
use crate::proto::keys::PublicKey;
use crate::proto::output::Transmit;

/// Arrivals taken in one go before anything else gets its turn.
const ARRIVALS_AT_ONCE: usize = 64;

/// What the supervisor tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The interface's state.
    Link {
        /// Whether it is up.
        up: bool,
        /// Its MTU in bytes.
        mtu: u16,
    },
    /// End.
    Stop,
}

/// What the protocol thread listens to.
#[derive(Debug)]
pub struct Sources {
    /// The workers.
    pub inbox: Inbox,
    /// The configuration socket.
    pub commands: Receiver<Command>,
    /// The supervisor.
    pub notices: Receiver<Notice>,
    /// Addresses that were found for names.
    pub addresses: Receiver<(PublicKey, SocketAddr)>,
}

/// Peers whose endpoint is a host name.
#[derive(Debug)]
pub struct Names {
    /// Looks addresses up; `None` if there are no names.
    pub resolver: Option<Resolver>,
    /// The names.
    pub peers: HashMap<PublicKey, HostPort>,
}

impl Names {
    /// A peer that does not answer may have moved to another address of the same name.
    fn look_up_again(&self, change: &Change, tunnel: &Tunnel) {
        let Some(status) = gave_up(change).and_then(|peer| tunnel.device.peer(peer)) else { return };
        self.look_up(status.public_key);
    }

    fn look_up(&self, key: &PublicKey) {
        if let (Some(resolver), Some(name)) = (&self.resolver, self.peers.get(key)) {
            resolver.request(*key, name.clone());
        }
    }
}

/// The protocol thread's own.
pub struct Protocol {
    exchange: Exchange,
    outer: Outer,
    names: Names,
}

impl Protocol {
    /// Puts the parts together.
    pub fn new(tunnel: Tunnel, outer: Outer, workers: Vec<Orders>, names: Names) -> Protocol {
        Protocol { exchange: Exchange::new(tunnel, workers), outer, names }
    }

    /// Works until told to stop.
    pub fn run(mut self, sources: &Sources) {
        self.names.peers.keys().for_each(|key| self.names.look_up(key));
        let Sources { inbox, commands, notices, addresses } = sources;
        // A channel whose other end has gone is always ready: it must leave the selection.
        let (mut commands, mut addresses) = (commands.clone(), addresses.clone());
        loop {
            self.speak();
            select! {
                recv(inbox.news) -> peer => {
                    let Ok(peer) = peer else { return };
                    self.exchange.tunnel.device.handle_news(peer, clock::now(), clock::wall());
                }
                recv(inbox.arrivals) -> arrival => {
                    let Ok(arrival) = arrival else { return };
                    self.take_in(arrival, &inbox.arrivals);
                }
                recv(commands) -> command => match command {
                    Ok(command) => self.obey(command),
                    Err(_) => commands = never(),
                },
                recv(addresses) -> found => match found {
                    Ok((key, address)) => self.exchange.tunnel.set_endpoint(&key, address),
                    Err(_) => addresses = never(),
                },
                recv(notices) -> notice => match notice {
                    Ok(Notice::Link { up, mtu }) => {
                        self.exchange.link_changed(up, mtu, clock::now(), clock::wall());
                    }
                    Ok(Notice::Stop) | Err(_) => return,
                },
                default(self.patience()) => {}
            }
            if self.patience().is_zero() {
                self.exchange.tunnel.device.handle_timeout(clock::now(), clock::wall());
            }
        }
    }

    /// How long until a timer is due.
    fn patience(&self) -> Duration {
        // Without any timer it does not matter how often we look.
        const LONG: Duration = Duration::from_secs(3600);
        let deadline = self.exchange.tunnel.device.poll_timeout();
        deadline.map_or(LONG, |(at, _)| Duration::from_nanos(at.since(clock::now()).as_nanos()))
    }

    /// Says what follows from what happened.
    fn speak(&mut self) {
        let Protocol { exchange, outer, names } = self;
        exchange.speak(
            |change, tunnel| names.look_up_again(change, tunnel),
            |Transmit { to, bytes, tos, .. }| {
                if let Err(errno) = outer.mailer().send(bytes, *to, *tos) {
                    tracing::debug!("cannot send to {}: {errno}", to.remote);
                }
            },
        );
    }

    fn take_in(&mut self, first: Arrival, others: &Receiver<Arrival>) {
        self.handle(first, others.len());
        for arrival in others.try_iter().take(ARRIVALS_AT_ONCE) {
            self.handle(arrival, others.len());
        }
    }

    fn handle(&mut self, arrival: Arrival, queued: usize) {
        self.exchange.handle(arrival, queued, clock::now(), clock::wall());
    }

    /// Carries out a command. Whether its client still waits for the answer is its own affair.
    fn obey(&mut self, command: Command) {
        match command {
            Command::Get(reply) => {
                let _ = reply.send(self.exchange.tunnel.state(self.outer.port(), self.outer.fwmark()));
            }
            Command::Peers(reply) => {
                let _ = reply.send(self.exchange.tunnel.watched_peers());
            }
            Command::Set(request, reply) => {
                let _ = reply.send(self.set(*request));
            }
        }
    }

    /// Whole or not at all: what can fail comes first.
    fn set(&mut self, request: SetRequest) -> Result<(), Errno> {
        let former_mark = self.outer.fwmark();
        if let Some(fwmark) = request.fwmark {
            self.outer.set_mark(fwmark)?;
        }
        if let Some(port) = request.listen_port {
            match self.outer.listen_on(port) {
                Ok(sockets) => {
                    for (worker, sockets) in self.exchange.workers.iter_mut().zip(sockets) {
                        worker.give(Order::Rebind(sockets));
                    }
                }
                Err(errno) => {
                    let _ = self.outer.set_mark(former_mark);
                    return Err(errno);
                }
            }
        }
        for change in &request.peers {
            // Whoever sets or removes a peer by hand knows better than a name from the start.
            if change.remove || change.endpoint.is_some() {
                self.names.peers.remove(&change.public_key);
            }
        }
        self.exchange.tunnel.apply(request, clock::now(), clock::wall());
        Ok(())
    }
}
