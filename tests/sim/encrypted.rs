//! Two or three hosts of the encrypted tunnel, hostile drivers, a hostile network, hours of virtual time; the seed decides
//! everything.
//!
//! A run is a number of episodes: some hundred steps of workers, protocol threads, traffic and incidents, then a longer
//! time in which only timers and datagrams under way do anything. Then everything heals, and the laws demand the more.

use std::net::SocketAddr;

use uringvpn::dataplane::view::Change;
use uringvpn::io::driver::{Driver, Wait};
use uringvpn::io::fake::{Fake, Faults};
use uringvpn::proto::PeerIndex;
use uringvpn::proto::output::{Handled, Transmit, Update};
use uringvpn::stats::counters::Totals;
use uringvpn::stats::drop::DROP_REASONS;
use uringvpn::time::{Span, Time};
use uringvpn::worker::handoff::Arrival;

use crate::check::{Book, Broken, Checked, HOSTS_MAX, Law, require};
use crate::network::{self, Troubles};
use crate::node::{Identity, Node};
use crate::observer::{Inner, Observer};
use crate::plan::Plan;
use crate::random::Random;
use crate::sabotage::Sabotage;
use crate::superpacket;
use crate::trace::Trace;
use crate::wire::{Flight, Hostility, Wire};
use crate::workload::{Flow, PEERS, outer};

const PORT: u16 = 51_820;
/// The host number whose address is the attacker's.
const STRANGER: usize = 3;
/// Rounds after which everything must have come to rest at one moment.
const REST_ROUNDS: usize = 20_000;
/// Rounds without any change that mean rest.
const QUIET_ROUNDS: usize = 2;
/// From the end of all trouble until traffic must flow: a peer that has lost its session is found deaf after 15 seconds and
/// a third, an initiation may have to wait for 5 more, and a datagram from before may be 15 late.
pub const HEALING_TIME: Span = Span::from_secs(25);

pub struct World {
    pub(crate) plan: Plan,
    pub(crate) random: Random,
    pub(crate) now: Time,
    pub(crate) nodes: Vec<Node>,
    pub(crate) wire: Wire,
    pub(crate) flows: Vec<Flow>,
    pub(crate) book: Book,
    pub(crate) observer: Observer,
    /// Per host: junk reads by reason, and spoofed packets handed in and sent.
    pub(crate) junk: [[u64; DROP_REASONS]; HOSTS_MAX],
    pub(crate) spoofed: [[u64; 2]; HOSTS_MAX],
    /// When so many handshakes waited that cookies may be sent.
    loaded_at: [Option<Time>; HOSTS_MAX],
    /// The most packets that one read held.
    pub(crate) largest_read: usize,
    pub(crate) healed: bool,
    pub(crate) sabotage: Option<Sabotage>,
    pub(crate) trace: Trace,
}

/// What follows from one thing that the protocol thread did.
#[derive(Clone, Copy, Default)]
pub(crate) struct Cause {
    /// Nothing may follow.
    pub(crate) silent: bool,
    /// A peer may be there from now on.
    pub(crate) moves_to: Option<SocketAddr>,
    /// Somebody said where peers are.
    pub(crate) configured: bool,
}

impl World {
    pub fn new(seed: u64, plan: Plan) -> World {
        let mut random = Random::new(!seed);
        let hosts = plan.workers.len();
        let now = Time::from_nanos(1_000_000_000_000);
        let stranger = SocketAddr::new(outer(plan.outer_v6, STRANGER), 666);
        let latency = Span::from_millis(random.between(1, 60) as u64);
        let mut book = Book::default();
        book.arrives_in_order = plan.arrives_in_order();
        let mut world = World {
            wire: Wire::new(stranger, latency),
            nodes: Vec::new(),
            flows: Vec::new(),
            book,
            observer: Observer::default(),
            junk: [[0; DROP_REASONS]; HOSTS_MAX],
            spoofed: [[0; 2]; HOSTS_MAX],
            loaded_at: [None; HOSTS_MAX],
            largest_read: 0,
            healed: false,
            sabotage: None,
            trace: Trace::new(),
            plan,
            random,
            now,
        };
        for host in 0..hosts {
            let address = SocketAddr::new(outer(world.plan.outer_v6, host), PORT);
            let node = world.started(Identity { host, address, wall_ahead: 0 });
            world.nodes.push(node);
        }
        for host in 0..hosts {
            for to in (0..hosts).filter(|to| *to != host) {
                // Everybody has something to say to everybody.
                while !world.open_flow(host, to) {}
            }
            for _ in 0..world.random.below(4) {
                let to = (host + world.random.between(1, hosts - 1)) % hosts;
                world.open_flow(host, to);
            }
        }
        world
    }

    /// True if the other end exists.
    fn open_flow(&mut self, host: usize, to: usize) -> bool {
        let flow = Flow::new(host, to, self.plan.workers[host], &mut self.random);
        let arrives = flow.arrives;
        self.book.open_flow(arrives, self.plan.sends_in_order());
        self.flows.push(flow);
        arrives
    }

    pub fn sabotaged(self, sabotage: Sabotage) -> World {
        World { sabotage: Some(sabotage), ..self }
    }

    pub(crate) fn started(&mut self, identity: Identity) -> Node {
        let host = identity.host;
        let address = |other| SocketAddr::new(outer(self.plan.outer_v6, other), PORT);
        let hosts = self.plan.workers.len();
        let server = self.plan.server == Some(host);
        let endpoints: Vec<_> = (0..hosts).map(|other| (!server).then(|| address(other))).collect();
        let faults = if self.healed { Faults::default() } else { self.plan.faults };
        let random = &mut self.random;
        Node::start(identity, &self.plan, &endpoints, faults, self.now, || random.next())
    }

    /// Trouble, healing, and an orderly end. Gives the hash of all that was seen.
    pub fn run(self) -> Result<u64, Broken> {
        self.run_to_rest()?.stop()
    }

    /// What every host counted in a run up to the orderly end.
    pub fn totals_of_a_run(self) -> Result<Vec<Totals>, Broken> {
        Ok(self.run_to_rest()?.nodes.iter().map(Node::totals).collect())
    }

    fn run_to_rest(mut self) -> Result<World, Broken> {
        for host in 0..self.nodes.len() {
            self.introduce(host)?;
        }
        for _ in 0..self.plan.episodes {
            for _ in 0..self.random.between(50, 250) {
                self.step()?;
            }
            let millis = self.random.pick(&[1, 100, 5_000, 12_000, 70_000, 130_000, 200_000, 1_000_000]);
            self.pass(Span::from_millis(millis))?;
        }
        self.heal()?;
        self.check_life_goes_on()?;
        Ok(self)
    }

    /// The workers of `host` hear of the configuration before anything else happens.
    pub(crate) fn introduce(&mut self, host: usize) -> Checked {
        self.speak(host, Cause { configured: true, ..Cause::default() })?;
        self.nodes[host].seats.iter_mut().for_each(|seat| seat.hand_on(usize::MAX));
        Ok(())
    }

    fn step(&mut self) -> Checked {
        let host = self.random.below(self.nodes.len());
        match self.random.below(100) {
            0..50 => {
                let worker = self.random.below(self.plan.workers[host]);
                self.turn(host, worker)
            }
            50..65 => self.protocol_step(host),
            65..80 => {
                let flow = self.random.below(self.flows.len());
                self.hand_in(flow);
                Ok(())
            }
            80..90 => {
                let micros = self.random.below(20_000) as u64;
                self.now = self.now + Span::from_nanos(micros * 1000);
                self.deliver();
                Ok(())
            }
            90..94 => {
                self.attack(host);
                Ok(())
            }
            94..97 if self.plan.incidents.junk => {
                self.throw_junk(host);
                Ok(())
            }
            97 => self.incident(host),
            _ => Ok(()),
        }
    }

    /// A flow's kernel hands over a read.
    pub(crate) fn hand_in(&mut self, flow: usize) {
        let id = flow as u32;
        let flow = &mut self.flows[flow];
        let read = flow.read(id, &mut self.random);
        let packets = superpacket::packets(&read).expect("the workload is well-formed");
        self.largest_read = self.largest_read.max(packets.len());
        self.trace.note(self.now, flow.host, id, ("is handed", packets.len(), "packets of flow", id));
        self.book.handed_in(flow.host, id, packets);
        let (host, worker) = (flow.host, flow.worker);
        self.may_be_lost(host, &read);
        self.nodes[host].seats[worker].worker.driver_mut().tun_reads.push_back(read);
    }

    /// Every flow that has a receiver goes on.
    pub(crate) fn hand_in_all(&mut self) {
        for flow in 0..self.flows.len() {
            if self.flows[flow].arrives {
                self.hand_in(flow);
            }
        }
    }

    /// Brings what has arrived to the sockets it was steered to.
    fn deliver(&mut self) {
        while let Some(flights) = self.wire.arrived(self.now) {
            for group in flights.chunk_by(|one, other| (one.from, one.to) == (other.from, other.to)) {
                let (from, to) = (group[0].from, group[0].to);
                let node = self.nodes.iter_mut().find(|node| node.identity.address == to);
                let Some(node) = node.filter(|node| node.asleep_until <= self.now) else { continue };
                let workers = node.seats.len();
                // A train is steered whole, by its first datagram; where order is demanded, no train is mixed.
                let mixed = !self.book.arrives_in_order;
                let same =
                    |one: &Flight, other: &Flight| mixed || steer(one, workers) == steer(other, workers);
                for run in group.chunk_by(same) {
                    let datagrams = run.iter().map(|flight| flight.bytes.clone()).collect();
                    for (incoming, _) in network::join(from, to, datagrams, &mut self.random) {
                        let first = Flight { from, to, bytes: incoming.bytes.clone() };
                        let seat = &mut node.seats[steer(&first, workers)];
                        seat.worker.driver_mut().receives.push_back(incoming);
                    }
                }
            }
        }
    }

    /// One turn of one worker, and a look at everything it did.
    pub(crate) fn turn(&mut self, host: usize, worker: usize) -> Checked {
        if self.nodes[host].asleep_until > self.now {
            return Ok(());
        }
        let late = self.plan.incidents.held_up && !self.healed;
        let most = if late { self.random.below(4) } else { usize::MAX };
        self.mislead(host, worker);
        let seat = &mut self.nodes[host].seats[worker];
        seat.hand_on(most);
        if self.sabotage != Some(Sabotage::StopClock) || host > 0 {
            seat.worker.driver_mut().advance_to(self.now);
        }
        let turned = seat.worker.turn(Wait::Not);
        require(Law::Liveness, turned.is_ok(), || format!("a worker of host {host} ended: {turned:?}"))?;
        self.look_at(host, worker)
    }

    pub(crate) fn look_at(&mut self, host: usize, worker: usize) -> Checked {
        let node = &mut self.nodes[host];
        let (paused, from) = (node.paused(), node.identity.address);
        let seat = &mut node.seats[worker];
        let fake = seat.worker.driver_mut();
        self.now = self.now.max(fake.now());
        let handed_out = std::mem::take(&mut fake.handed_out);
        let mut sent = std::mem::take(&mut fake.sent);
        let mut written = std::mem::take(&mut fake.written);
        for received in &handed_out {
            self.observer.taken_in(host, seat, received, paused, self.now);
        }
        self.observer.lapsed.drain(..).for_each(|packet| self.book.excuse(&packet));
        seat.sent += sent.len() as u64;
        self.seal_again(&mut sent);
        let mut flights = Vec::new();
        for datagram in sent {
            self.data_sent(host, datagram.to, &datagram.bytes)?;
            flights.push(Flight { from, to: datagram.to, bytes: datagram.bytes });
        }
        self.tamper(host, &mut flights, &mut written);
        self.carry(flights);
        for write in &written {
            self.check_write(host, worker, write)?;
        }
        self.observer.check_sessions(host, self.now)?;
        self.check_counters(host, worker)
    }

    /// A data message left `host`: everything about it must be right.
    fn data_sent(&mut self, host: usize, to: SocketAddr, bytes: &[u8]) -> Checked {
        let (other, inner) = self.observer.data_sent(host, bytes, owner)?;
        self.trace.note(self.now, host, bytes, ("sends", bytes.len(), to));
        let peer = self.nodes[host].peer_of(other);
        let known = self.observer.places.get(&(host, peer)).is_some_and(|places| places.contains(&to));
        require(Law::Endpoint, known, || format!("host {host} sends to host {other} at {to}"))?;
        match inner {
            Inner::Keepalive => Ok(()),
            Inner::Spoofed => {
                self.spoofed[host][1] += 1;
                Ok(())
            }
            Inner::Packet(packet) => {
                self.book.sent(host, &packet)?;
                self.book.carried(&packet, 1);
                Ok(())
            }
        }
    }

    fn carry(&mut self, flights: Vec<Flight>) {
        let (troubles, hostility) = if self.healed {
            (Troubles::default(), Hostility::default())
        } else {
            (self.plan.troubles, self.plan.hostility)
        };
        self.wire.carry(flights, (&troubles, &hostility), self.now, &mut self.random);
    }

    /// What the protocol thread does between two sleeps: one thing that a worker handed over, then what is due.
    pub(crate) fn protocol_step(&mut self, host: usize) -> Checked {
        let now = self.now;
        let node = &self.nodes[host];
        if node.asleep_until.max(node.stuck_until) > now {
            return Ok(());
        }
        let wall = node.wall(now);
        self.unsettle(host);
        let node = &mut self.nodes[host];
        let news_first = self.random.chance(50);
        if news_first && let Ok(peer) = node.inbox.news.try_recv() {
            node.exchange.tunnel.device.handle_news(peer, now, wall);
            self.speak(host, Cause::default())?;
        } else if let Ok(arrival) = node.inbox.arrivals.try_recv().or_else(|_| node.inbox.cookies.try_recv())
        {
            self.take_in(host, arrival)?;
        }
        let device = &mut self.nodes[host].exchange.tunnel.device;
        if device.poll_timeout().is_some_and(|(time, _)| time <= now) {
            device.handle_timeout(now, wall);
            let next = device.poll_timeout();
            require(Law::Liveness, next.is_none_or(|(time, _)| time > now), || {
                format!("{next:?} at {now:?}")
            })?;
            self.speak(host, Cause::default())?;
        }
        Ok(())
    }

    pub(crate) fn take_in(&mut self, host: usize, arrival: Arrival) -> Checked {
        /// drivers/net/wireguard/receive.c: an eighth of 4096.
        const MANY: usize = 512;
        let now = self.now;
        let node = &mut self.nodes[host];
        let (queued, wall) = (node.inbox.arrivals.len(), node.wall(now));
        if queued >= MANY {
            self.loaded_at[host] = Some(now);
        }
        let handled = node.exchange.handle(arrival, queued, now, wall);
        let cause = match arrival {
            Arrival::Handshake { bytes, len, from } => {
                let handled = handled.expect("a handshake message");
                let accepted =
                    matches!(handled, Handled::InitiationAccepted(_) | Handled::ResponseAccepted(_));
                node.accepted += u64::from(accepted);
                let proven = self.observer.handshake_handled(host, &bytes[..len], handled)?;
                Cause { silent: !proven, moves_to: proven.then_some(from.remote), configured: false }
            }
            Arrival::Roamed { local_index, from } => {
                let came = self.observer.came_from(local_index, from.remote);
                Cause { silent: false, moves_to: came.then_some(from.remote), configured: false }
            }
        };
        self.speak(host, cause)
    }

    /// What follows goes its ways, and is judged.
    pub(crate) fn speak(&mut self, host: usize, cause: Cause) -> Checked {
        let now = self.now;
        let World { nodes, observer, trace, loaded_at, .. } = self;
        let Node { exchange, peers, identity, said, .. } = &mut nodes[host];
        let (mut verdict, mut transmits): (Checked, Vec<Transmit>) = (Ok(()), Vec::new());
        exchange.speak(
            |change, _| {
                let name = format!("{change:?}");
                let name = name.split("activity").next().unwrap_or_default();
                trace.note(now, host, name, name);
                let judged = judge_change(host, peers, observer, change, cause);
                if verdict.is_ok() {
                    verdict = judged;
                }
            },
            |transmit| transmits.push(*transmit),
        );
        verdict?;
        *said += transmits.iter().filter(|transmit| transmit.peer.is_some()).count() as u64;
        let from = identity.address;
        let loaded = loaded_at[host].is_some_and(|at| now.since(at) < Span::from_secs(1));
        for Transmit { peer, to, bytes, .. } in transmits {
            self.trace.note(now, host, &bytes[..], ("says", bytes, to.remote));
            let cookie = peer.is_none() && bytes[0] == 3 && loaded;
            require(Law::Silence, cookie || !cause.silent, || {
                format!("host {host} answered {} with a message of type {}", to.remote, bytes[0])
            })?;
            if bytes[0] == 4 {
                self.data_sent(host, to.remote, &bytes)?;
            } else {
                let other = peer.and_then(|peer| self.nodes[host].peers[peer as usize]);
                let peer = peer.unwrap_or(PeerIndex::MAX);
                self.observer.handshake_sent(host, peer, other, &bytes, now)?;
            }
            self.carry(vec![Flight { from, to: to.remote, bytes: bytes.to_vec() }]);
        }
        self.observer.check_sessions(host, now)
    }

    /// Lets everybody do what can be done without time passing, and sees what is left waiting.
    fn settle(&mut self) -> Checked {
        let mut quiet = 0;
        for _ in 0..REST_ROUNDS {
            let before = self.progress();
            let first = self.random.below(self.nodes.len());
            for step in 0..self.nodes.len() {
                let host = (first + step) % self.nodes.len();
                for worker in 0..self.plan.workers[host] {
                    self.turn(host, worker)?;
                }
                for _ in 0..4 {
                    self.protocol_step(host)?;
                }
            }
            quiet = if self.progress() == before && self.is_idle() { quiet + 1 } else { 0 };
            if quiet == QUIET_ROUNDS {
                return self.check_staged();
            }
        }
        Err(Broken { law: Law::Liveness, what: format!("no rest after {REST_ROUNDS} rounds") })
    }

    fn progress(&self) -> Vec<Totals> {
        let still = |node: &Node| {
            let mut totals = node.totals();
            (totals.turns, totals.enters) = (0, 0);
            totals
        };
        self.nodes.iter().map(still).collect()
    }

    fn is_idle(&mut self) -> bool {
        let now = self.now;
        self.nodes.iter_mut().all(|node| {
            let asleep = node.asleep_until > now;
            let inbox = &node.inbox;
            let empty = inbox.news.is_empty() && inbox.arrivals.is_empty() && inbox.cookies.is_empty();
            let stuck = node.stuck_until > now || empty;
            let still =
                |seat: &mut crate::node::Seat| !seat.is_held_up() && seat.worker.driver_mut().is_idle();
            asleep || stuck && node.seats.iter_mut().all(still)
        })
    }

    /// Lets time pass: timers, datagrams under way, and what follows from them.
    pub(crate) fn pass(&mut self, span: Span) -> Checked {
        const EVENTS_MAX: usize = 100_000;
        let end = self.now + span;
        for _ in 0..EVENTS_MAX {
            self.deliver();
            self.settle()?;
            let next = self.next_event().filter(|next| *next < end);
            self.now = self.now.max(next.unwrap_or(end));
            if self.now >= end {
                return Ok(());
            }
        }
        Err(Broken { law: Law::Liveness, what: format!("{EVENTS_MAX} events in {span:?}") })
    }

    fn next_event(&self) -> Option<Time> {
        let nodes = self.nodes.iter().map(|node| {
            let away = node.asleep_until.max(node.stuck_until);
            if away > self.now {
                return Some(away);
            }
            node.exchange.tunnel.device.poll_timeout().map(|(time, _)| time)
        });
        nodes.chain([self.wire.next()]).flatten().min()
    }

    /// No trouble from now on, and nobody is where he is not looked for.
    fn heal(&mut self) -> Checked {
        self.healed = true;
        for host in 0..self.nodes.len() {
            let node = &mut self.nodes[host];
            (node.asleep_until, node.stuck_until) = (Time::default(), Time::default());
            node.seats.iter_mut().for_each(|seat| seat.worker.driver_mut().heal());
            if node.paused() {
                self.set_link(host, true)?;
            }
            if self.plan.server != Some(host) {
                self.say_where_all_are(host)?;
            }
        }
        self.plant()?;
        let end = self.now + HEALING_TIME;
        while self.now < end {
            self.hand_in_all();
            self.pass(Span::from_millis(1_000))?;
        }
        self.book.healed();
        Ok(())
    }

    fn say_where_all_are(&mut self, host: usize) -> Checked {
        for other in (0..self.nodes.len()).filter(|other| *other != host) {
            let address = self.nodes[other].identity.address;
            let peer = self.nodes[host].peer_of(other);
            let device = &mut self.nodes[host].exchange.tunnel.device;
            let believed = device.peer(peer).and_then(|peer| peer.endpoint);
            if believed.is_none_or(|believed| believed.remote != address) {
                device.set_endpoint(peer, address);
            }
        }
        self.speak(host, Cause { configured: true, ..Cause::default() })
    }

    /// The workers are told to stop in the middle of work. What they still do must be right.
    fn stop(mut self) -> Result<u64, Broken> {
        for flow in 0..self.flows.len() {
            self.hand_in(flow);
        }
        for _ in 0..self.random.below(12) {
            let host = self.random.below(self.nodes.len());
            let worker = self.random.below(self.plan.workers[host]);
            self.turn(host, worker)?;
        }
        for host in 0..self.nodes.len() {
            self.finish(host)?;
        }
        for seat in self.nodes.into_iter().flat_map(|node| node.seats) {
            let home = seat.worker.into_driver().buffers_home();
            let total = Fake::buffers_total();
            require(Law::Buffers, home == total, || format!("{home} of {total} buffers came home"))?;
        }
        Ok(self.trace.finish())
    }
}

/// What workers are told of peers and sessions must have a reason.
fn judge_change(
    host: usize,
    peers: &[Option<usize>],
    observer: &mut Observer,
    change: &Change,
    cause: Cause,
) -> Checked {
    let Change::Peer(update) = change else { return Ok(()) };
    require(Law::Silence, !cause.silent, || format!("host {host} was moved by nobody to {update:?}"))?;
    match update {
        Update::SessionAdded(session) => {
            let other = peers[session.peer() as usize];
            let other =
                other.ok_or_else(|| Broken { law: Law::Silence, what: "a session with nobody".into() })?;
            observer.session_added(host, other, session)
        }
        Update::Endpoint { peer, endpoint: Some(endpoint) } => {
            let remote = endpoint.remote;
            observer.places.entry((host, *peer)).or_default().insert(remote);
            let before = observer.believed.insert((host, *peer), remote);
            // Our own address may be forgotten while the peer stays where it is.
            let reason = cause.configured || before == Some(remote) || cause.moves_to == Some(remote);
            require(Law::Endpoint, reason, || {
                format!("host {host} believes peer {peer} at {}", endpoint.remote)
            })
        }
        _ => Ok(()),
    }
}

/// The worker that a datagram is steered to: by the low byte of a data message's receiver index, others to the first.
fn steer(flight: &Flight, workers: usize) -> usize {
    match flight.bytes[..] {
        [4, _, _, _, low, ..] => usize::from(low) % workers,
        _ => 0,
    }
}

/// The host that owns a packet's source.
fn owner(packet: &[u8]) -> Option<usize> {
    match packet[0] >> 4 {
        4 => owner_of(&packet[12..16]),
        _ => owner_of(&packet[8..24]),
    }
}

pub(crate) fn destination(packet: &[u8]) -> Option<usize> {
    match packet[0] >> 4 {
        4 => owner_of(&packet[16..20]),
        _ => owner_of(&packet[24..40]),
    }
}

/// See [`crate::workload::inner`].
fn owner_of(address: &[u8]) -> Option<usize> {
    let (host, network) = match *address {
        [10, host, network, _] => (host, network),
        [0xfd, 0, 0, host, 0, network, ..] => (host, network),
        _ => return None,
    };
    (network < PEERS).then_some(host.into())
}
