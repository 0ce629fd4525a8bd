//! Nodes, a wire between them, and one clock.

use std::net::SocketAddr;

use uringvpn::proto::PeerIndex;
use uringvpn::proto::keys::PrivateKey;
use uringvpn::proto::output::Reason;
use uringvpn::time::{Span, Time};

use super::node::Node;

pub const INITIATION: u8 = 1;
pub const RESPONSE: u8 = 2;
pub const COOKIE: u8 = 3;
pub const DATA: u8 = 4;

/// A datagram under way, or one that was.
#[derive(Clone, Debug)]
pub struct Flight {
    pub sent: Time,
    pub arrives: Time,
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub tos: u8,
    pub bytes: Vec<u8>,
}

impl Flight {
    pub fn kind(&self) -> u8 {
        self.bytes[0]
    }

    /// The same, to where `node` really is.
    pub fn redirected(mut self, net: &Net, node: usize) -> Flight {
        self.to = net.nodes[node].address;
        self
    }
}

/// What becomes of a datagram that is sent.
pub type Fate = Box<dyn FnMut(&Flight) -> Vec<Flight>>;

pub struct Net {
    pub nodes: Vec<Node>,
    pub now: Time,
    pub latency: Span,
    pub under_way: Vec<Flight>,
    /// All that was ever sent.
    pub log: Vec<Flight>,
    /// Called for every datagram; without it each arrives once after `latency`.
    pub fate: Option<Fate>,
}

pub const A: usize = 0;
pub const B: usize = 1;
pub const C: usize = 2;
/// The index of the only peer of a node.
pub const PEER: PeerIndex = 0;

pub const fn secs(secs: u64) -> Span {
    Span::from_secs(secs)
}

pub const fn millis(millis: u64) -> Span {
    Span::from_millis(millis)
}

pub fn address(node: usize) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, node as u8 + 1], 51820))
}

impl Net {
    /// `count` nodes that are up and have keys, and no peers.
    pub fn new(count: usize, seed: u8) -> Net {
        let now = Time::from_nanos(1_000_000_000_000);
        let mut nodes = Vec::new();
        for index in 0..count {
            let mut node = Node::new(seed.wrapping_add(index as u8), address(index));
            let wall = node.wall(now);
            node.device.set_private_key(Some(node.key.clone()), now, wall);
            node.device.set_up(true, now, wall);
            nodes.push(node);
        }
        Net { nodes, now, latency: millis(10), under_way: Vec::new(), log: Vec::new(), fate: None }
    }

    /// Two nodes that know each other and where they are.
    pub fn pair() -> Net {
        Net::pair_with_seed(1)
    }

    pub fn pair_with_seed(seed: u8) -> Net {
        let mut net = Net::new(2, seed);
        net.introduce(A, B);
        net.introduce(B, A);
        net
    }

    /// A pair in which A has made a session with B, which both use.
    pub fn connected() -> Net {
        let mut net = Net::pair();
        net.send(A, b"first");
        net.run(secs(1));
        assert_eq!(net.delivered(B), 1, "the session must stand");
        net
    }

    /// Makes `other` a peer of `node`.
    pub fn introduce(&mut self, node: usize, other: usize) -> PeerIndex {
        let key = self.nodes[other].public_key();
        let device = &mut self.nodes[node].device;
        let peer = device.add_peer(key).unwrap();
        device.set_endpoint(peer, address(other));
        self.settle();
        peer
    }

    /// `node` sends a packet to its first peer.
    pub fn send(&mut self, node: usize, packet: &[u8]) {
        self.send_to(node, PEER, packet);
    }

    pub fn send_to(&mut self, node: usize, peer: PeerIndex, packet: &[u8]) {
        self.nodes[node].send(peer, packet, self.now);
        self.settle();
    }

    /// How many packets came out of the tunnel at `node`.
    pub fn delivered(&self, node: usize) -> usize {
        self.nodes[node].delivered.len()
    }

    /// Runs `work` on a node's device.
    pub fn with<R>(&mut self, node: usize, work: impl FnOnce(&mut Node, Time) -> R) -> R {
        let result = work(&mut self.nodes[node], self.now);
        self.settle();
        result
    }

    pub fn set_keepalive(&mut self, node: usize, seconds: u16) {
        self.with(node, |node, now| node.device.set_keepalive(PEER, seconds, now, node.wall(now)));
    }

    pub fn set_up(&mut self, node: usize, up: bool) {
        self.with(node, |node, now| node.device.set_up(up, now, node.wall(now)));
    }

    pub fn set_private_key(&mut self, node: usize, key: Option<PrivateKey>) {
        self.with(node, |node, now| node.device.set_private_key(key, now, node.wall(now)));
    }

    /// Everything that can happen without time passing.
    pub fn settle(&mut self) {
        for node in &mut self.nodes {
            node.settle(self.now);
            for out in node.out.drain(..) {
                let arrives = self.now + self.latency;
                let flight = Flight {
                    sent: self.now,
                    arrives,
                    from: node.address,
                    to: out.to.remote,
                    tos: out.tos,
                    bytes: out.bytes,
                };
                self.log.push(flight.clone());
                match &mut self.fate {
                    Some(fate) => self.under_way.extend(fate(&flight)),
                    None => self.under_way.push(flight),
                }
            }
        }
    }

    /// The node's deadline.
    pub fn timeout(&self, node: usize) -> Option<(Time, Reason)> {
        self.nodes[node].device.poll_timeout()
    }

    /// Lets `span` pass.
    pub fn run(&mut self, span: Span) {
        let end = self.now + span;
        self.settle();
        while let Some(time) = self.next_event().filter(|time| *time <= end) {
            self.now = self.now.max(time);
            self.happen();
        }
        self.now = end;
    }

    fn next_event(&self) -> Option<Time> {
        let arrivals = self.under_way.iter().map(|flight| flight.arrives);
        let timers = self.nodes.iter().filter_map(|node| Some(node.device.poll_timeout()?.0));
        arrivals.chain(timers).min()
    }

    /// What is due now.
    pub fn happen(&mut self) {
        let now = self.now;
        let due: Vec<Flight> = self.under_way.extract_if(.., |flight| flight.arrives <= now).collect();
        for flight in due {
            self.deliver(&flight);
        }
        for node in &mut self.nodes {
            if node.device.poll_timeout().is_some_and(|(time, _)| time <= now) {
                let wall = node.wall(now);
                node.device.handle_timeout(now, wall);
                let next = node.device.poll_timeout();
                assert!(next.is_none_or(|(time, _)| time > now), "{next:?} at {now:?}");
            }
        }
        self.settle();
    }

    /// `flight` arrives now, whatever happened to it before.
    pub fn deliver(&mut self, flight: &Flight) {
        self.deliver_from(flight, flight.from);
    }

    /// `flight` arrives now, from another address.
    pub fn deliver_from(&mut self, flight: &Flight, from: SocketAddr) {
        if let Some(node) = self.nodes.iter_mut().find(|node| node.address == flight.to) {
            node.receive(&flight.bytes, from, self.now);
        }
        self.settle();
    }

    /// Lets nothing arrive from now on.
    pub fn cut(&mut self) {
        self.fate = Some(Box::new(|_| Vec::new()));
    }

    /// Lets everything arrive again.
    pub fn heal(&mut self) {
        self.fate = None;
    }

    /// Loses what `lost` chooses.
    pub fn lose(&mut self, mut lost: impl FnMut(&Flight) -> bool + 'static) {
        self.fate =
            Some(Box::new(move |flight| if lost(flight) { Vec::new() } else { vec![flight.clone()] }));
    }

    /// What `node` has sent of one kind.
    pub fn sent(&self, node: usize, kind: u8) -> Vec<&Flight> {
        let from = self.nodes[node].address;
        self.log.iter().filter(|flight| flight.from == from && flight.kind() == kind).collect()
    }

    /// Keepalives that `node` has sent.
    pub fn keepalives(&self, node: usize) -> Vec<&Flight> {
        self.sent(node, DATA).into_iter().filter(|flight| flight.bytes.len() == 32).collect()
    }

    /// Sends on both sides and sees that both arrive within `span`.
    pub fn assert_both_ways(&mut self, span: Span) {
        let before = (self.delivered(A), self.delivered(B));
        self.send(A, b"to B");
        self.send(B, b"to A");
        self.run(span);
        assert!(
            self.nodes[B].delivered[before.1..].iter().any(|packet| packet.starts_with(b"to B")),
            "A to B"
        );
        assert!(
            self.nodes[A].delivered[before.0..].iter().any(|packet| packet.starts_with(b"to A")),
            "B to A"
        );
    }
}
