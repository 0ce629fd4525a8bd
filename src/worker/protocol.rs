//! The protocol thread: owns the tunnel's keys and peers, makes sessions, keeps timers, obeys the configuration socket.
//!
//! It is never on the way of a data packet. It sleeps until a worker, an operator, the interface or a timer wants something,
//! does that, and then says what follows from it: datagrams to the network, orders to the workers. What it does is in
//! [`super::exchange`]; here are its sleep, its clock, its sockets and its operator.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, never, select};
use nix::errno::Errno;

use super::exchange::Exchange;
use super::handoff::{Arrival, Inbox, Order};
use super::names::Names;
use super::outer::Outer;
use super::reload::{self, Followed};
use super::start;
use super::tunnel::{Tunnel, gave_up};
use crate::control::config::DeviceConfig;
use crate::control::uapi::SetRequest;
use crate::control::uapi_socket::Command;
use crate::dataplane::view::Change;
use crate::io::clock;
use crate::io::udp::BUSY_PATIENCE;
use crate::proto::keys::PublicKey;
use crate::proto::output::Transmit;
use crate::stats::settings::Settings;
use crate::time::{Span, Time};

/// Arrivals taken in one go before anything else gets its turn.
const ARRIVALS_AT_ONCE: usize = 64;
/// How often a port that a request waits for is tried.
const PORT_PAUSE: Span = Span::from_millis(20);

/// What the supervisor tells.
#[derive(Debug)]
pub enum Notice {
    /// The interface's state.
    Link {
        /// Whether it is up.
        up: bool,
        /// Its MTU in bytes.
        mtu: u16,
    },
    /// Become what this says, wholly or not at all.
    Follow(Box<DeviceConfig>, Sender<Followed>),
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

/// A request whose port is taken, perhaps only by what is left of a process that was killed. Requests that come meanwhile are
/// carried out before it.
struct Waiting {
    request: Box<SetRequest>,
    reply: Sender<Result<(), Errno>>,
    next_try: Time,
    give_up: Time,
}

/// The protocol thread's own.
pub struct Protocol {
    exchange: Exchange,
    outer: Outer,
    /// Told of another port.
    settings: Arc<Settings>,
    names: Names,
    /// One per client at most: clients wait for their answer.
    waiting: Vec<Waiting>,
}

impl Protocol {
    /// Puts the parts together.
    pub fn new(exchange: Exchange, outer: Outer, settings: Arc<Settings>, names: Names) -> Protocol {
        Protocol { exchange, outer, settings, names, waiting: Vec::new() }
    }

    /// Works until told to stop. What is to be said before anything happens was said by [`Protocol::speak`].
    pub fn run(mut self, sources: &Sources) {
        let Sources { inbox, commands, notices, addresses } = sources;
        // A channel whose other end has gone is always ready: it must leave the selection.
        let (mut commands, mut addresses) = (commands.clone(), addresses.clone());
        loop {
            select! {
                recv(inbox.news) -> peer => {
                    let Ok(peer) = peer else { return };
                    self.exchange.tunnel.device.handle_news(peer, clock::now(), clock::wall());
                }
                recv(inbox.arrivals) -> arrival => {
                    let Ok(arrival) = arrival else { return };
                    self.take_in(arrival, &inbox.arrivals);
                }
                recv(inbox.cookies) -> reply => {
                    let Ok(reply) = reply else { return };
                    self.take_in(reply, &inbox.cookies);
                }
                recv(commands) -> command => match command {
                    Ok(command) => self.obey(command),
                    Err(_) => commands = never(),
                },
                recv(addresses) -> found => match found {
                    Ok((key, address)) if self.names.counts(&key) => self.exchange.tunnel.set_endpoint(&key, address),
                    Ok(_) => {}
                    Err(_) => addresses = never(),
                },
                recv(notices) -> notice => match notice {
                    Ok(Notice::Link { up, mtu }) => {
                        self.exchange.link_changed(up, mtu, clock::now(), clock::wall());
                    }
                    Ok(Notice::Follow(config, reply)) => {
                        let followed = self.follow(&config);
                        self.speak();
                        let _ = reply.send(followed);
                    }
                    Ok(Notice::Stop) | Err(_) => return,
                },
                default(self.patience()) => {}
            }
            self.try_again();
            if self.patience().is_zero() {
                self.exchange.tunnel.device.handle_timeout(clock::now(), clock::wall());
            }
            self.speak();
        }
    }

    /// How long until a timer is due, or a port is to be tried again.
    fn patience(&self) -> Duration {
        // Without any timer it does not matter how often we look.
        const LONG: Duration = Duration::from_secs(3600);
        let timer = self.exchange.tunnel.device.poll_timeout().map(|(at, _)| at);
        let deadline = self.waiting.iter().map(|waiting| waiting.next_try).chain(timer).min();
        deadline.map_or(LONG, |at| Duration::from_nanos(at.since(clock::now()).as_nanos()))
    }

    /// Says what follows from what happened. Workers take orders in front of packets: what they were told before somebody sends
    /// one counts for it.
    pub fn speak(&mut self) {
        let Protocol { exchange, outer, names, .. } = self;
        exchange.speak(
            |change, tunnel| look_up_again(names, change, tunnel),
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
                let _ = reply.send(self.exchange.tunnel.watched_peers(clock::now(), clock::wall()));
            }
            Command::Set(request, reply) => {
                let now = clock::now();
                self.carry_out(Waiting { request, reply, next_try: now, give_up: now + BUSY_PATIENCE });
            }
        }
    }

    /// Sets now, or as soon as the port is free: nobody else waits for it.
    fn carry_out(&mut self, mut waiting: Waiting) {
        let result = self.set(&waiting.request);
        let now = clock::now();
        if result == Err(Errno::EADDRINUSE) && now < waiting.give_up {
            waiting.next_try = now + PORT_PAUSE;
            self.waiting.push(waiting);
        } else {
            // Whoever is told that it is done may send a packet at once.
            self.speak();
            let _ = waiting.reply.send(result);
        }
    }

    fn try_again(&mut self) {
        let now = clock::now();
        let due: Vec<_> = self.waiting.extract_if(.., |waiting| waiting.next_try <= now).collect();
        due.into_iter().for_each(|waiting| self.carry_out(waiting));
    }

    /// Whole or not at all: what can fail comes first.
    fn set(&mut self, request: &SetRequest) -> Result<(), Errno> {
        let sockets = self.outer.change(request.listen_port, request.fwmark)?;
        self.settings.set_listen_port(self.outer.port());
        for (worker, sockets) in self.exchange.workers.iter_mut().zip(sockets) {
            worker.give(Order::Rebind(sockets));
        }
        if request.replace_peers {
            self.names.forget_all();
        }
        for change in &request.peers {
            // Whoever sets or removes a peer by hand knows better than a name from the start.
            if change.remove || change.endpoint.is_some() {
                self.names.forget(&change.public_key);
            }
        }
        self.exchange.tunnel.apply(request, clock::now(), clock::wall());
        Ok(())
    }

    /// As `wg syncconf`. Does not wait for a port: the operator can signal again.
    fn follow(&mut self, config: &DeviceConfig) -> Followed {
        let present = self.exchange.tunnel.device.peers().map(|(_, status)| *status.public_key).collect();
        let endpoints = start::endpoints(&config.peers);
        // What can fail comes first.
        self.names.prepare(&endpoints).map_err(|_| Errno::EAGAIN)?;
        self.set(&reload::request(config, &present, self.names.given()))?;
        self.names.follow(endpoints, &present).map_err(|_| Errno::EAGAIN)
    }
}

/// A peer that does not answer may have moved to another address of the same name.
fn look_up_again(names: &Names, change: &Change, tunnel: &Tunnel) {
    let Some(status) = gave_up(change).and_then(|peer| tunnel.device.peer(peer)) else { return };
    names.look_up(status.public_key);
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::{bounded, unbounded};

    use super::*;
    use crate::control::uapi::PeerChange;
    use crate::io::udp::{self, Steering, UdpRequest};
    use crate::proto::output::Update;
    use crate::stats::recorder::Handshakes;
    use crate::worker::handoff;

    /// A protocol thread's own, on loopback, with one peer whose endpoint is a name, and where its addresses arrive.
    fn protocol(peer: PublicKey) -> (Protocol, Receiver<(PublicKey, SocketAddr)>) {
        let request = UdpRequest {
            address: Some(std::net::Ipv4Addr::LOCALHOST.into()),
            port: 0,
            workers: 1,
            gro: false,
            gso: false,
            buffer_bytes: 1,
            steering: Steering::ReceiverIndex,
            steer: false,
            fwmark: 0,
            patience: Span::ZERO,
        };
        let group = udp::open(&request).unwrap();
        let (found, addresses) = unbounded();
        let names = Names::new([(peer, "localhost:9".parse().unwrap())].into(), found).unwrap();
        let mut tunnel = Tunnel::new(1, [1; 32]);
        tunnel.device.add_peer(peer).unwrap();
        let exchange = Exchange::new(tunnel, Vec::new(), Handshakes::default());
        let outer = Outer::new(request, &group).unwrap();
        (Protocol::new(exchange, outer, Arc::default(), names), addresses)
    }

    #[test]
    fn workers_are_told_before_whoever_asked_is_answered() {
        let key = PublicKey::from_bytes([7; 32]);
        let (mut protocol, _addresses) = protocol(key);
        let (worker, orders) = handoff::to_worker(None);
        protocol.exchange.workers.push(worker);
        protocol.speak();
        assert_ne!(orders.try_iter().count(), 0, "the peer from the start");
        let removal = PeerChange {
            public_key: key,
            update_only: false,
            remove: true,
            preshared_key: None,
            endpoint: None,
            persistent_keepalive: None,
            replace_allowed_ips: false,
            allowed_ips: Vec::new(),
        };
        let request = SetRequest { peers: vec![removal], ..SetRequest::default() };
        // Without room: the answer waits for whoever looks at the orders first.
        let (reply, answer) = bounded(0);
        let obeying = std::thread::spawn(move || protocol.obey(Command::Set(Box::new(request), reply)));
        let told = orders.recv_timeout(Duration::from_secs(60)).unwrap();
        assert!(matches!(told, Order::Change(Change::Peer(Update::PeerRemoved { .. }))), "{told:?}");
        assert_eq!(answer.recv(), Ok(Ok(())));
        obeying.join().unwrap();
    }

    #[test]
    fn when_handshakes_were_given_up_the_peers_name_is_looked_up_again() {
        let key = PublicKey::from_bytes([7; 32]);
        let (protocol, addresses) = protocol(key);
        assert_eq!(addresses.recv().unwrap().0, key, "at the start");
        let peer = protocol.exchange.tunnel.device.find_peer(&key).unwrap();
        look_up_again(
            &protocol.names,
            &Change::Peer(Update::PeerRemoved { peer }),
            &protocol.exchange.tunnel,
        );
        look_up_again(&protocol.names, &Change::Peer(Update::DropStaged { peer }), &protocol.exchange.tunnel);
        assert_eq!(addresses.recv().unwrap().0, key);
        assert!(addresses.is_empty());
    }
}
