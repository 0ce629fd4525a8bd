//! One host of the encrypted simulation: the workers and the protocol thread's exchange as they ship, and between them
//! queues that the simulation may hold up.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam_channel::Receiver;
use ipnet::IpNet;
use uringvpn::control::uapi::{AllowedIpChange, PeerChange, SetRequest};
use uringvpn::dataplane::view::{Change, View};
use uringvpn::io::fake::{Fake, Faults};
use uringvpn::proto::PeerIndex;
use uringvpn::proto::keys::{PresharedKey, PrivateKey};
use uringvpn::proto::output::Update;
use uringvpn::proto::session::Session;
use uringvpn::stats::counters::{Totals, WorkerCounters};
use uringvpn::stats::drop::DROP_REASONS;
use uringvpn::stats::recorder::{self, Full, Handshakes, Reporter};
use uringvpn::time::{Time, WallTime};
use uringvpn::worker::data::{DataWorker, Flags, Parts};
use uringvpn::worker::exchange::Exchange;
use uringvpn::worker::handoff::{self, ARRIVALS_MAX, Inbox, Order, Orders};
use uringvpn::worker::tunnel::Tunnel;

use crate::plan::Plan;
use crate::workload::{ABSENT, PEERS, SILENT, inner, outer};

/// The wall clock of a host that nobody has set.
const WALL_START: u64 = 1_700_000_000;

/// What a host is told at its start and keeps over a restart.
pub struct Identity {
    pub host: usize,
    /// Where it is.
    pub address: SocketAddr,
    /// Seconds that its wall clock is ahead.
    pub wall_ahead: i64,
}

impl Identity {
    pub fn wall(&self, now: Time) -> WallTime {
        let secs = WALL_START.saturating_add_signed(self.wall_ahead) + now.as_nanos() / 1_000_000_000;
        WallTime::from_parts(secs, (now.as_nanos() % 1_000_000_000) as u32)
    }
}

pub fn private_key(host: usize) -> PrivateKey {
    PrivateKey::from_bytes([(host as u8).wrapping_mul(29).wrapping_add(1); 32])
}

/// One worker and the way to it.
pub struct Seat {
    pub worker: DataWorker<Fake>,
    pub counters: Arc<WorkerCounters>,
    /// Orders that the exchange gave and that are held up.
    held_up: Receiver<Order>,
    orders: Orders,
    /// The sessions whose messages the worker can open.
    pub sessions: HashMap<u32, Arc<Session>>,
    /// Datagrams that must have been sent, and packets written.
    pub sent: u64,
    pub written: u64,
    /// What came in and what it must have been counted as.
    pub due: Due,
}

/// Counts of what came in, as they must be.
#[derive(Default)]
pub struct Due {
    pub datagrams: u64,
    pub packets: u64,
    pub keepalives: u64,
    pub handshakes: u64,
    pub drops: [u64; DROP_REASONS],
}

pub struct Node {
    pub identity: Identity,
    pub exchange: Exchange,
    pub inbox: Inbox,
    pub seats: Vec<Seat>,
    pub flags: Arc<Flags>,
    _latency: Receiver<Full>,
    /// The host behind each peer, by the peer's index; nobody is behind the last two.
    pub peers: Vec<Option<usize>>,
    /// What workers counted before the last restart.
    pub past: Totals,
    /// Handshake messages that were accepted, and messages that the protocol thread sent to peers.
    pub accepted: u64,
    pub said: u64,
    /// What the protocol thread recorded.
    pub handshakes: Handshakes,
    /// The machine sleeps until then.
    pub asleep_until: Time,
    /// The protocol thread gets no time until then.
    pub stuck_until: Time,
}

impl Node {
    /// A host that has just started; `endpoints` are where it believes the others to be.
    pub fn start(
        identity: Identity,
        plan: &Plan,
        endpoints: &[Option<SocketAddr>],
        faults: Faults,
        now: Time,
        mut draw: impl FnMut() -> u64,
    ) -> Node {
        let host = identity.host;
        let workers = plan.workers[host];
        // Where the protocol thread is slow to look, a little room is soon none.
        let room = if draw().is_multiple_of(4) { 2 } else { ARRIVALS_MAX };
        let (outbox, inbox) = handoff::to_protocol_with_room(room);
        let flags = Arc::new(Flags::default());
        let (recorders, full) = recorder::channel(workers);
        let mut ways = Vec::new();
        let mut seat = || {
            let (way, held_up) = handoff::to_worker(None);
            ways.push(way);
            let (orders, received) = handoff::to_worker(None);
            let counters = Arc::new(WorkerCounters::default());
            let parts = Parts {
                view: View::for_wireguard(plan.mtu),
                orders: received,
                outbox: outbox.clone(),
                train_segments_max: plan.train_segments_max,
                merge: plan.merge,
                counters: counters.clone(),
                reporter: Reporter::new(0, recorders.clone(), now),
                self_check: Arc::default(),
                flags: flags.clone(),
            };
            let worker = DataWorker::new(Fake::new(faults, draw()), parts);
            let sessions = HashMap::new();
            Seat { worker, counters, held_up, orders, sessions, sent: 0, written: 0, due: Due::default() }
        };
        let seats = (0..workers).map(|_| seat()).collect();
        let mut seed = [0; 32];
        seed.chunks_mut(8).for_each(|bytes| bytes.copy_from_slice(&draw().to_le_bytes()));
        let wall = identity.wall(now);
        let handshakes = Handshakes::default();
        let mut exchange = Exchange::new(Tunnel::new(workers, seed), ways, handshakes.clone());
        let others: Vec<_> = (0..plan.workers.len()).filter(|other| *other != host).collect();
        exchange.tunnel.apply(&request(host, &others, plan, endpoints), now, wall);
        exchange.link_changed(true, plan.mtu, now, wall);
        Node {
            identity,
            exchange,
            inbox,
            seats,
            flags,
            _latency: full,
            peers: others.into_iter().map(Some).chain([None, None]).collect(),
            past: Totals::default(),
            accepted: 0,
            said: 0,
            handshakes,
            asleep_until: Time::default(),
            stuck_until: Time::default(),
        }
    }

    pub fn wall(&self, now: Time) -> WallTime {
        self.identity.wall(now)
    }

    /// The peer that `other` is.
    pub fn peer_of(&self, other: usize) -> PeerIndex {
        self.peers.iter().position(|peer| *peer == Some(other)).expect("all hosts know one another")
            as PeerIndex
    }

    /// All that was counted since the first start.
    pub fn totals(&self) -> Totals {
        let mut totals = self.past.clone();
        self.seats.iter().for_each(|seat| totals.add(&seat.counters));
        totals
    }

    pub fn pause(&self, paused: bool) {
        self.flags.paused.store(paused, Ordering::Relaxed);
    }

    pub fn paused(&self) -> bool {
        self.flags.paused.load(Ordering::Relaxed)
    }
}

impl Seat {
    pub fn is_held_up(&self) -> bool {
        !self.held_up.is_empty()
    }

    /// Lets the worker have the oldest orders, `most` of them.
    pub fn hand_on(&mut self, most: usize) {
        for order in self.held_up.try_iter().take(most) {
            match &order {
                Order::Change(Change::Peer(Update::SessionAdded(session))) => {
                    self.sessions.insert(session.local_index(), session.clone());
                }
                Order::Change(Change::Peer(Update::SessionRemoved { local_index })) => {
                    self.sessions.remove(local_index);
                }
                _ => {}
            }
            self.orders.give(order);
        }
    }

    /// Gives the worker an order that the exchange knows nothing of.
    pub fn smuggle(&mut self, order: Order) {
        self.orders.give(order);
    }
}

/// The configuration of `host`: the others, one peer that is switched off, one whose address nobody knows.
fn request(host: usize, others: &[usize], plan: &Plan, endpoints: &[Option<SocketAddr>]) -> SetRequest {
    let prefixes = |owner: usize, network: u8| {
        [(false, 24), (true, 48)].map(|(v6, length)| {
            let prefix = IpNet::new(inner(v6, owner, network, 0), length).expect("in range");
            AllowedIpChange { prefix, remove: false }
        })
    };
    let known = others.iter().map(|other| {
        let (lower, higher) = (host.min(*other), host.max(*other));
        let shared = plan.preshared.then(|| PresharedKey::from_bytes([(lower * 3 + higher) as u8; 32]));
        PeerChange {
            preshared_key: shared,
            endpoint: endpoints[*other],
            persistent_keepalive: Some(plan.keepalive[host]),
            replace_allowed_ips: true,
            allowed_ips: (0..PEERS).flat_map(|network| prefixes(*other, network)).collect(),
            ..PeerChange::new(private_key(*other).public_key())
        }
    });
    let nobody = [(ABSENT, Some(SocketAddr::new(outer(plan.outer_v6, 4), 9))), (SILENT, None)];
    let nobody = nobody.into_iter().map(|(network, endpoint)| PeerChange {
        endpoint,
        allowed_ips: others.iter().flat_map(|other| prefixes(*other, network)).collect(),
        ..PeerChange::new(private_key(usize::from(network)).public_key())
    });
    SetRequest {
        private_key: Some(Some(private_key(host))),
        peers: known.chain(nobody).collect(),
        ..SetRequest::default()
    }
}
