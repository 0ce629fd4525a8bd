//! The public ports of a server: who has which, and how one is found.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use nix::errno::Errno;

use super::caller::Refusal;
use super::message::Uuid;
use super::sockets;
use crate::control::expose::ServerConfig;
use crate::io::tcp::datagrams::Udp;
use crate::io::tcp::{Id, IdMap};
use crate::proto::rng::Rng;
use crate::stats::exposed::public_port::{Protocol, PublicPort};
use crate::stats::exposed::recorder::{Port, Recorder};
use crate::time::{Span, Time};

/// Draws of a port when any will do. bore's.
const PORT_DRAWS: usize = 150;

/// A public port.
#[derive(Debug)]
pub(super) struct Tunnel {
    pub port: PublicPort,
    /// The connection of the client it belongs to; none while that is away.
    pub owner: Option<Id>,
    /// What the client has to prove when it comes back.
    pub lease: Option<Uuid>,
    /// Its owner understands our own messages.
    pub extended: bool,
    /// Carries its visitors; without one each gets a connection.
    pub carrier: Option<Id>,
    /// Without an owner: when the lease ends.
    pub held_until: Time,
    /// Visitors that wait, pairs, and flows.
    pub connections: usize,
    /// What is counted of it.
    pub seen: Arc<Port>,
    /// A UDP port that goes with the last of its flows; nobody else comes in.
    pub closing: bool,
}

/// All public ports, known by their listeners or, for UDP, by their sockets.
#[derive(Debug)]
pub(super) struct Ports {
    recorder: Arc<Recorder>,
    tunnels: IdMap<Tunnel>,
    by_number: HashMap<PublicPort, Id>,
}

impl Ports {
    /// None yet; those that will be are listed by `recorder`.
    pub fn new(recorder: Arc<Recorder>) -> Ports {
        Ports { recorder, tunnels: IdMap::default(), by_number: HashMap::new() }
    }

    pub fn at(&self, listener: Id) -> Option<&Tunnel> {
        self.tunnels.at(listener)
    }

    pub fn at_mut(&mut self, listener: Id) -> Option<&mut Tunnel> {
        self.tunnels.at_mut(listener)
    }

    pub fn len(&self) -> usize {
        self.tunnels.len()
    }

    /// The one that is kept for a lost client for the longest time.
    pub fn oldest_held(&self) -> Option<Id> {
        let held = self.tunnels.iter().filter(|(_, tunnel)| tunnel.owner.is_none() && !tunnel.closing);
        held.min_by_key(|(_, tunnel)| tunnel.held_until).map(|(listener, _)| listener)
    }

    /// How many have an owner, and how many are held for one.
    pub fn open_and_held(&self) -> [usize; 2] {
        let mut counts = [0; 2];
        for (_, tunnel) in self.tunnels.iter().filter(|(_, tunnel)| !tunnel.closing) {
            counts[usize::from(tunnel.owner.is_none())] += 1;
        }
        counts
    }

    pub fn listeners(&self) -> Vec<Id> {
        self.tunnels.iter().map(|(listener, _)| listener).collect()
    }

    /// The listener of a port that is in use.
    pub fn listener(&self, port: PublicPort) -> Option<Id> {
        self.by_number.get(&port).copied()
    }

    /// The TCP port with this lease.
    pub fn leased(&mut self, lease: Uuid) -> Option<&mut Tunnel> {
        let listener = self.tunnels.iter().find_map(|(listener, tunnel)| {
            let is_it = tunnel.lease == Some(lease) && tunnel.port.protocol == Protocol::Tcp;
            is_it.then_some(listener)
        })?;
        self.tunnels.at_mut(listener)
    }

    /// The port whose visitors come by `carrier`.
    pub fn carried_by(&mut self, carrier: Id) -> Option<&mut Tunnel> {
        let (listener, _) = self.tunnels.iter().find(|(_, tunnel)| tunnel.carrier == Some(carrier))?;
        self.tunnels.at_mut(listener)
    }

    /// Opens `port`, 0 being any, for a client that will own it; it may understand our own messages.
    pub fn open(
        &mut self,
        tcp: &mut impl Udp,
        rng: &mut Rng,
        config: &ServerConfig,
        port: PublicPort,
        extended: bool,
    ) -> Result<Id, Refusal> {
        let (listener, port) = self.bind(tcp, rng, config, port)?;
        let tunnel = Tunnel {
            port,
            owner: None,
            lease: (extended && config.lease > Span::ZERO).then(|| Uuid::random(rng)),
            extended,
            carrier: None,
            held_until: Time::default(),
            connections: 0,
            seen: self.recorder.port_opened(port, String::new()),
            closing: false,
        };
        self.tunnels.insert(listener, tunnel);
        self.by_number.insert(port, listener);
        if port.protocol == Protocol::Tcp {
            tcp.accept(listener);
        }
        Ok(listener)
    }

    /// Forgets a port; its listener is the caller's to close.
    pub fn remove(&mut self, listener: Id) -> Option<Tunnel> {
        let tunnel = self.tunnels.remove(listener)?;
        self.by_number.remove(&tunnel.port);
        self.recorder.port_closed(tunnel.port);
        Some(tunnel)
    }

    fn bind(
        &self,
        tcp: &mut impl Udp,
        rng: &mut Rng,
        config: &ServerConfig,
        port: PublicPort,
    ) -> Result<(Id, PublicPort), Refusal> {
        let range = &config.ports;
        let mut attempt = |number| self.try_bind(tcp, config.tunnels, PublicPort { number, ..port });
        if port.number > 0 {
            return if range.contains(&port.number) {
                attempt(port.number)
            } else {
                Err(Refusal::OutOfRange)
            };
        }
        let count = usize::from(*range.end() - *range.start()) + 1;
        let first = rng.below(count as u64) as usize;
        // A small range is tried whole, a large one by chance.
        for number in 0..count.min(PORT_DRAWS) {
            let offset = match count <= PORT_DRAWS {
                true => (first + number) % count,
                false => rng.below(count as u64) as usize,
            };
            if let Ok(bound) = attempt(range.start() + offset as u16) {
                return Ok(bound);
            }
        }
        Err(Refusal::NoPort)
    }

    fn try_bind(
        &self,
        tcp: &mut impl Udp,
        address: IpAddr,
        port: PublicPort,
    ) -> Result<(Id, PublicPort), Refusal> {
        if self.by_number.contains_key(&port) {
            return Err(Refusal::PortInUse);
        }
        let address = SocketAddr::new(address, port.number);
        let bound = match port.protocol {
            Protocol::Tcp => tcp.listen(address, &sockets::end()),
            Protocol::Udp => tcp.bind(address),
        };
        match bound {
            Ok((listener, bound)) => Ok((listener, PublicPort { number: bound.port(), ..port })),
            Err(Errno::EADDRINUSE) => Err(Refusal::PortInUse),
            Err(Errno::EACCES) => Err(Refusal::PermissionDenied),
            Err(_) => Err(Refusal::CannotBind),
        }
    }
}
