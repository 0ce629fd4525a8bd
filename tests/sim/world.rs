//! Two hosts, each with its workers, and a network between them; the seed decides everything.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam_channel::Receiver;
use hdrhistogram::Histogram;
use ipnet::IpNet;
use uringvpn::dataplane::view::View;
use uringvpn::io::driver::{Driver, Wait};
use uringvpn::io::fake::{Fake, Faults};
use uringvpn::offload::coalesce::Merge;
use uringvpn::stats::counters::{Totals, WorkerCounters};
use uringvpn::stats::distributions::Distributions;
use uringvpn::stats::drop::{DROP_REASONS, Direction, DropReason};
use uringvpn::stats::recorder::{self, Full, Reporter};
use uringvpn::time::Time;
use uringvpn::worker::data::{DataWorker, End, Flags, Parts};
use uringvpn::worker::handoff;

use crate::check::{Book, Broken, Checked, Law, require};
use crate::network::{self, Troubles};
use crate::random::Random;
use crate::superpacket;
use crate::workload::{self, ABSENT, Flow, NOBODY, PEERS, SILENT, inner, outer};

/// Rounds after which a healed world must have come to rest.
const REST_ROUNDS: usize = 5_000;
/// Rounds without any change that mean rest.
const QUIET_ROUNDS: usize = 4;
const PORT: u16 = 51_820;

/// What a run consists of.
#[derive(Clone, Debug)]
pub struct Plan {
    pub workers: [usize; 2],
    pub outer_v6: bool,
    pub train_segments_max: u16,
    pub merge: Merge,
    pub faults: Faults,
    pub troubles: Troubles,
    /// The hosts' own packets and the network's may be junk.
    pub junk: bool,
    /// The supervisor says that an interface is down, for a while.
    pub pauses: bool,
    pub steps: usize,
}

impl Plan {
    /// Of all faults each run has a random half; one run in eight has none.
    pub fn of(seed: u64) -> Plan {
        let random = &mut Random::new(seed);
        let calm = seed.is_multiple_of(8);
        let mut percent =
            |most: usize| if calm || random.chance(50) { 0 } else { random.between(1, most) as u8 };
        let faults = Faults {
            late: percent(60),
            ended: percent(50),
            short_read: percent(20),
            truncated: percent(20),
            receive_error: percent(30),
            send_error: percent(20),
            refuses_trains: percent(1) > 0,
            tun_down: percent(20),
            refused_write: percent(30),
        };
        let troubles =
            Troubles { lost: percent(10), duplicated: percent(10), swapped: percent(5), padded: percent(10) };
        let (junk, pauses) = (percent(1) > 0, percent(1) > 0);
        Plan {
            workers: [random.between(1, 3), random.between(1, 3)],
            outer_v6: random.chance(50),
            train_segments_max: random.pick(&[1, 2, 64, 128]),
            merge: Merge { tcp: random.chance(80), udp: random.chance(80) },
            faults,
            troubles,
            junk,
            pauses,
            steps: random.between(40, 120),
        }
    }

    /// Nothing goes wrong.
    pub fn calm(seed: u64) -> Plan {
        Plan { train_segments_max: 64, ..Plan::of(seed.wrapping_mul(8)) }
    }

    /// What is sent again after a refusal (a train, a source address that has gone) is sent behind what was queued
    /// meanwhile.
    fn sends_in_order(&self) -> bool {
        self.faults.send_error == 0 && !self.faults.refuses_trains
    }
}

/// Something done behind the checks' back, which they must notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    FlipByte,
    LoseDatagram,
    DuplicateDatagram,
    SwapDatagrams,
    LeakBuffer,
    CountTwice,
    DropWithoutReason,
    HoldReceives,
}

pub struct World {
    plan: Plan,
    random: Random,
    hosts: [Host; 2],
    flows: Vec<Flow>,
    book: Book,
    healed: bool,
    sabotage: Option<Sabotage>,
}

struct Host {
    workers: Vec<DataWorker<Fake>>,
    counters: Vec<Arc<WorkerCounters>>,
    flags: Arc<Flags>,
    full: Receiver<Full>,
    /// What the workers recorded and have handed over.
    recorded: Distributions<u64>,
    /// What the fakes did, by worker.
    sent: Vec<u64>,
    written: Vec<u64>,
    /// Trains that may be refused at most, known from the first refusal on.
    refusals_max: Vec<Option<u64>>,
    /// Datagrams that the network brought.
    arrived: u64,
    /// What the junk must be dropped as.
    junk: [u64; DROP_REASONS],
}

impl World {
    pub fn new(seed: u64, plan: Plan) -> World {
        let mut random = Random::new(!seed);
        let hosts = [0, 1].map(|host| Host::new(host, &plan, &mut random));
        let mut book = Book::default();
        // What the TUN refused comes behind what was written with it.
        book.arrives_in_order = plan.troubles.swapped == 0 && plan.faults.refused_write == 0;
        book.renumbers = plan.troubles.duplicated > 0;
        let mut world = World { plan, random, hosts, flows: Vec::new(), book, healed: false, sabotage: None };
        for host in [0, 1] {
            for _ in 0..world.random.between(2, 8) {
                let flow = Flow::new(host, 1 - host, world.plan.workers[host], &mut world.random);
                world.book.open_flow(flow.arrives, world.plan.sends_in_order());
                world.flows.push(flow);
            }
        }
        world
    }

    pub fn sabotaged(mut self, sabotage: Sabotage) -> World {
        self.book.renumbers |= sabotage == Sabotage::DuplicateDatagram;
        World { sabotage: Some(sabotage), ..self }
    }

    /// Trouble, healing, and an orderly end.
    pub fn run(self) -> Checked {
        self.run_to_rest()?.stop().map(drop)
    }

    /// As [`World::run`], and the workers finish all that they read.
    pub fn run_to_the_last_packet(self) -> Checked {
        let mut stopped = self.run_to_rest()?.stop()?;
        for host in [0, 1] {
            let balance = stopped.totals(host).check_drained();
            require(Law::Conservation, balance.is_ok(), || format!("host {host} has stopped: {balance:?}"))?;
            stopped.hosts[host].collect();
            stopped.check_recorded(host)?;
        }
        for worker in stopped.hosts.into_iter().flat_map(|host| host.workers) {
            let home = worker.into_driver().buffers_home();
            let total = Fake::buffers_total();
            require(Law::Buffers, home == total, || format!("{home} of {total} buffers came home"))?;
        }
        Ok(())
    }

    /// The kernel refuses trains and nothing else is wrong. Once a worker has learned it, every datagram leaves once
    /// and in order, and no train is tried again.
    pub fn run_without_trains(mut self) -> Checked {
        for _ in 0..30 {
            self.hand_in();
        }
        self.rest()?;
        for (id, flow) in self.flows.iter().enumerate() {
            if self.hosts[flow.host].counters[flow.worker].train_retries.get() > 0 {
                self.book.demand_order(id);
            }
        }
        let learned = self.train_retries();
        for _ in 0..self.plan.steps {
            self.step()?;
        }
        self.rest()?;
        self.check_rested()?;
        for (before, after) in learned.into_iter().zip(self.train_retries()) {
            require(Law::Trains, before == 0 || before == after, || {
                format!("{before} refused trains became {after}")
            })?;
        }
        Ok(())
    }

    fn train_retries(&self) -> Vec<u64> {
        let counters = self.hosts.iter().flat_map(|host| &host.counters);
        counters.map(|counters| counters.train_retries.get()).collect()
    }

    /// What all workers counted together in a run up to the orderly end.
    pub fn totals_of_a_run(self) -> Result<Totals, Broken> {
        let world = self.run_to_rest()?;
        let counters = world.hosts.iter().flat_map(|host| &host.counters);
        Ok(Totals::of(counters.map(|counters| &**counters)))
    }

    fn run_to_rest(mut self) -> Result<World, Broken> {
        for _ in 0..self.plan.steps {
            self.step()?;
        }
        self.heal();
        self.rest()?;
        self.check_rested()?;
        self.check_life_goes_on()?;
        Ok(self)
    }

    fn step(&mut self) -> Checked {
        let host = self.random.below(2);
        match self.random.below(100) {
            0..70 => {
                let worker = self.random.below(self.plan.workers[host]);
                self.turn(host, worker)
            }
            70..92 => {
                self.hand_in();
                Ok(())
            }
            92..98 if self.plan.junk => {
                self.throw_junk(host);
                Ok(())
            }
            98 if self.plan.pauses => {
                self.hosts[host].flags.paused.fetch_xor(true, Ordering::Relaxed);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// A flow's kernel hands over a read.
    fn hand_in(&mut self) {
        let flow = self.random.below(self.flows.len());
        let id = flow as u32;
        let flow = &mut self.flows[flow];
        let read = flow.read(id, &mut self.random);
        let packets = superpacket::packets(&read).expect("the workload is well-formed");
        self.book.handed_in(flow.host, id, packets);
        self.hosts[flow.host].workers[flow.worker].driver_mut().tun_reads.push_back(read);
    }

    fn throw_junk(&mut self, host: usize) {
        let worker = self.random.below(self.plan.workers[host]);
        let target = &mut self.hosts[host];
        let fake = target.workers[worker].driver_mut();
        if self.random.chance(50) {
            let junk = workload::tun_junk(host, 1 - host, &mut self.random);
            target.junk[junk.reason as usize] += junk.packets;
            self.book.lost(host, &junk.what, junk.reason);
            fake.tun_reads.push_back(junk.what);
        } else {
            let junk = workload::network_junk(host, self.plan.outer_v6, &mut self.random);
            target.junk[junk.reason as usize] += junk.packets;
            target.arrived += junk.packets;
            fake.receives.push_back(junk.what);
        }
    }

    /// One turn of one worker, and a look at everything it did.
    fn turn(&mut self, host: usize, worker: usize) -> Checked {
        let turned = self.hosts[host].workers[worker].turn(Wait::Not);
        require(Law::Liveness, turned.is_ok(), || format!("a worker of host {host} ended: {turned:?}"))?;
        self.look_at(host, worker)
    }

    fn look_at(&mut self, host: usize, worker: usize) -> Checked {
        let fake = self.hosts[host].workers[worker].driver_mut();
        let mut sent = std::mem::take(&mut fake.sent);
        let written = std::mem::take(&mut fake.written);
        fake.handed_out.clear();
        self.hosts[host].sent[worker] += sent.len() as u64;
        let known = [outer(self.plan.outer_v6, 1 - host), outer(self.plan.outer_v6, 2)];
        for datagram in &sent {
            let to = datagram.to;
            require(Law::Bytes, known.contains(&to.ip()), || format!("host {host} sent to {to}"))?;
            self.book.sent(host, &datagram.bytes)?;
        }
        for write in &written {
            self.check_write(host, worker, write)?;
        }
        self.check_counters(host, worker)?;
        sent.retain(|datagram| datagram.to.ip() == known[0]);
        self.carry(host, worker, sent.into_iter().map(|datagram| datagram.bytes).collect());
        Ok(())
    }

    fn check_write(&mut self, host: usize, worker: usize, write: &[u8]) -> Checked {
        let packets = superpacket::packets(write)
            .map_err(|what| Broken { law: Law::Bytes, what: format!("host {host} wrote: {what}") })?;
        let Merge { tcp, udp } = self.plan.merge;
        let allowed = match superpacket::gso_type(write) {
            0 => true,
            5 => udp && packets.len() <= 128,
            _ => tcp,
        };
        require(Law::Bytes, allowed, || format!("host {host} joined {} packets", packets.len()))?;
        self.hosts[host].written[worker] += packets.len() as u64;
        packets.iter().try_for_each(|packet| self.book.delivered(host, packet))
    }

    /// Every packet that was counted was recorded, and no other.
    fn check_recorded(&self, host: usize) -> Checked {
        let (totals, recorded) = (self.totals(host), &self.hosts[host].recorded);
        for (name, histogram, counted) in [
            ("outbound", &recorded.outbound, totals.sent_datagrams),
            ("outbound_seal", &recorded.outbound_seal, totals.sent_datagrams),
            ("outbound_send", &recorded.outbound_send, totals.sent_datagrams),
            ("inbound", &recorded.inbound, totals.written_packets),
            ("inbound_queue", &recorded.inbound_queue, totals.written_packets),
            ("inbound_open", &recorded.inbound_open, totals.written_packets),
            ("inbound_write", &recorded.inbound_write, totals.written_packets),
            ("train_datagrams", &recorded.train_datagrams, totals.trains),
            ("write_packets", &recorded.write_packets, totals.tun_writes),
            ("read_bytes", &recorded.read_bytes, totals.tun_reads),
            ("receive_datagrams", &recorded.receive_datagrams, totals.receives),
            ("turn_bytes", &recorded.turn_bytes, recorded.turn_completions.len()),
        ] {
            let len = histogram.len();
            require(Law::Conservation, len == counted, || {
                format!("host {host} recorded {len} values as {name} and counted {counted}")
            })?;
        }
        // A turn that only ended sends and writes says nothing, one that took something in says all that it moved.
        let sum = |histogram: &Histogram<u64>| histogram.mean() * histogram.len() as f64;
        let (moved, taken_in) =
            (sum(&recorded.turn_bytes), sum(&recorded.read_bytes) + totals.in_bytes as f64);
        let all = taken_in + (totals.sent_bytes + totals.written_bytes) as f64;
        require(Law::Conservation, (taken_in * 0.99..=all * 1.01).contains(&moved), || {
            format!("host {host} moved {moved} bytes in its turns, not {taken_in} to {all}")
        })?;
        Ok(())
    }

    fn check_counters(&mut self, host: usize, worker: usize) -> Checked {
        let state = &mut self.hosts[host];
        state.collect();
        let totals = Totals::of([&*state.counters[worker]]);
        let balance = totals.check();
        require(Law::Conservation, balance.is_ok(), || {
            format!("worker {worker} of host {host}: {balance:?}")
        })?;
        let counted = (totals.sent_datagrams, totals.written_packets + totals.icmp_errors);
        let done = (state.sent[worker], state.written[worker]);
        require(Law::Conservation, counted == done, || {
            format!("worker {worker} of host {host} counted {counted:?} sent and written, it was {done:?}")
        })?;
        if totals.train_retries > 0 {
            // Only trains that were under way when the first one came back may still be refused, of two datagrams each.
            let under_way = totals.in_flight(Direction::Outbound) as u64 / 2;
            let limit = *state.refusals_max[worker].get_or_insert(totals.train_retries + under_way);
            require(Law::Trains, totals.train_retries <= limit, || {
                format!(
                    "worker {worker} of host {host} had {} trains refused, not {limit}",
                    totals.train_retries
                )
            })?;
        }
        Ok(())
    }

    /// Brings what worker `worker` of `host` sent to the worker that its source port steers to.
    fn carry(&mut self, host: usize, worker: usize, datagrams: Vec<Vec<u8>>) {
        if datagrams.is_empty() {
            return;
        }
        let other = 1 - host;
        let troubles = if self.healed { Troubles::default() } else { self.plan.troubles };
        let datagrams: Vec<_> = troubles.befall(datagrams, &mut self.random);
        let mut arriving = Vec::new();
        for (datagram, copies) in datagrams {
            self.book.carried(&datagram, copies);
            for _ in 0..copies {
                arriving.push(troubles.pad(datagram.clone(), &mut self.random));
            }
        }
        self.tamper(&mut arriving);
        let port = PORT + worker as u16;
        let from = SocketAddr::new(outer(self.plan.outer_v6, host), port);
        let to = SocketAddr::new(outer(self.plan.outer_v6, other), PORT);
        let receiver = usize::from(port) % self.plan.workers[other];
        for (incoming, count) in network::join(from, to, arriving, &mut self.random) {
            self.hosts[other].arrived += count;
            self.hosts[other].workers[receiver].driver_mut().receives.push_back(incoming);
        }
    }

    /// The sabotage on the wire, once.
    fn tamper(&mut self, arriving: &mut Vec<Vec<u8>>) {
        let done = match self.sabotage {
            Some(Sabotage::FlipByte) => {
                let last = arriving[0].last_mut().expect("a packet");
                *last ^= 1;
                true
            }
            Some(Sabotage::LoseDatagram) => {
                arriving.remove(0);
                true
            }
            Some(Sabotage::DuplicateDatagram) => {
                arriving.insert(0, arriving[0].clone());
                true
            }
            Some(Sabotage::SwapDatagrams) if arriving.len() > 1 && arriving[0].len() == arriving[1].len() => {
                arriving.swap(0, 1);
                true
            }
            _ => false,
        };
        if done {
            self.sabotage = None;
        }
    }

    fn heal(&mut self) {
        self.healed = true;
        for host in &mut self.hosts {
            host.flags.paused.store(false, Ordering::Relaxed);
            host.workers.iter_mut().for_each(|worker| worker.driver_mut().heal());
        }
        match self.sabotage {
            Some(Sabotage::LeakBuffer) => {
                let leaked =
                    std::iter::from_fn(|| self.hosts[0].workers[0].driver_mut().send_buffer()).take(2);
                assert!(leaked.count() > 1, "buffers to leak");
            }
            Some(Sabotage::CountTwice) => self.hosts[0].counters[0].written_packets.add(1),
            Some(Sabotage::DropWithoutReason) => {
                self.hosts[0].counters[0].out_packets.add(1);
                self.hosts[0].counters[0].count_drop(DropReason::SendError, 1);
            }
            _ => {}
        }
    }

    /// Turns everybody until nothing changes any more.
    fn rest(&mut self) -> Checked {
        let mut quiet = 0;
        for _ in 0..REST_ROUNDS {
            let before = self.progress();
            for host in [0, 1] {
                for worker in 0..self.plan.workers[host] {
                    self.turn(host, worker)?;
                }
            }
            quiet = if self.progress() == before && self.is_idle() { quiet + 1 } else { 0 };
            if quiet == QUIET_ROUNDS {
                return Ok(());
            }
        }
        Err(Broken { law: Law::Liveness, what: format!("no rest after {REST_ROUNDS} rounds") })
    }

    fn progress(&self) -> [Totals; 2] {
        [0, 1].map(|host| {
            let mut totals = self.totals(host);
            (totals.turns, totals.enters) = (0, 0);
            totals
        })
    }

    fn totals(&self, host: usize) -> Totals {
        Totals::of(self.hosts[host].counters.iter().map(|counters| &**counters))
    }

    fn is_idle(&mut self) -> bool {
        let mut workers = self.hosts.iter_mut().flat_map(|host| &mut host.workers);
        workers.all(|worker| worker.driver_mut().is_idle())
    }

    /// What must add up when all is at rest.
    fn check_rested(&mut self) -> Checked {
        for host in [0, 1] {
            for (worker, counters) in self.hosts[host].counters.iter().enumerate() {
                let balance = Totals::of([&**counters]).check_drained();
                require(Law::Conservation, balance.is_ok(), || {
                    format!("worker {worker} of host {host}: {balance:?}")
                })?;
            }
            self.check_outbound(host)?;
            self.check_inbound(host)?;
        }
        for (host, state) in self.hosts.iter_mut().enumerate() {
            for worker in &mut state.workers {
                // A worker may keep one buffer for the next train.
                let away = Fake::buffers_total() - worker.driver_mut().buffers_home();
                require(Law::Buffers, away <= 1, || format!("host {host}: {away} buffers are not at home"))?;
            }
        }
        Ok(())
    }

    fn check_outbound(&self, host: usize) -> Checked {
        let (totals, faults) = (self.totals(host), &self.plan.faults);
        let junk = &self.hosts[host].junk;
        self.check_fault(host, DropReason::SendError, faults.send_error > 0)?;
        if faults.short_read > 0 {
            return Ok(());
        }
        let reasons = [
            DropReason::OutMalformed,
            DropReason::OutBadOffload,
            DropReason::NoRoute,
            DropReason::NoEndpoint,
        ];
        reasons.iter().try_for_each(|reason| self.check_exact(host, *reason))?;
        let outbound = DropReason::ALL.iter().filter(|reason| reason.direction() == Direction::Outbound);
        let thrown: u64 = outbound.map(|reason| junk[*reason as usize]).sum();
        let taken_in = self.book.handed[host] + thrown;
        require(Law::Conservation, totals.out_packets == taken_in, || {
            format!("host {host} was handed {taken_in} packets and counted {}", totals.out_packets)
        })?;
        let heard = faults.tun_down == 0 && !self.plan.pauses;
        self.book.check_answers(host, totals.icmp_errors, heard)?;
        let (unsent, errors) = (self.book.unsent(host), totals.dropped(DropReason::SendError));
        require(Law::Loss, unsent == errors, || {
            format!("host {host}: {unsent} packets were never sent, {errors} counted as send errors")
        })
    }

    fn check_inbound(&self, host: usize) -> Checked {
        let (totals, faults) = (self.totals(host), &self.plan.faults);
        self.check_fault(host, DropReason::Truncated, faults.truncated > 0)?;
        self.check_fault(host, DropReason::TunDown, faults.tun_down > 0 || self.plan.pauses)?;
        self.check_fault(host, DropReason::TunWriteError, false)?;
        let failures = totals.receive_errors;
        require(Law::Drops, failures == 0 || faults.receive_error > 0, || {
            format!("{failures} receives failed")
        })?;
        if faults.truncated > 0 {
            return Ok(());
        }
        let arrived = self.hosts[host].arrived;
        require(Law::Conservation, totals.in_datagrams == arrived, || {
            format!("{arrived} datagrams arrived at host {host}, it counted {}", totals.in_datagrams)
        })?;
        if self.plan.pauses {
            return Ok(());
        }
        let reasons = [DropReason::UnknownSource, DropReason::InMalformed, DropReason::SourceNotAllowed];
        reasons.iter().try_for_each(|reason| self.check_exact(host, *reason))?;
        let (missing, down) = (self.book.undelivered(host), totals.dropped(DropReason::TunDown));
        require(Law::Loss, missing == down, || {
            format!("host {host}: {missing} packets were not delivered, the TUN was down for {down}")
        })
    }

    /// A reason that only a fault can give.
    fn check_fault(&self, host: usize, reason: DropReason, there_was: bool) -> Checked {
        let dropped = self.totals(host).dropped(reason);
        require(Law::Drops, there_was || dropped == 0, || {
            format!("host {host} dropped {dropped} packets as {}", reason.label())
        })
    }

    /// A reason that only junk can give, as often as there was some.
    fn check_exact(&self, host: usize, reason: DropReason) -> Checked {
        let dropped = self.totals(host).dropped(reason);
        let thrown = self.hosts[host].junk[reason as usize];
        require(Law::Drops, dropped == thrown, || {
            format!("host {host} dropped {dropped} packets as {}, {thrown} deserved it", reason.label())
        })
    }

    /// After the trouble everything arrives.
    fn check_life_goes_on(&mut self) -> Checked {
        self.book.healed();
        let before = [0, 1].map(|host| self.totals(host));
        for _ in 0..20 {
            self.hand_in();
        }
        if self.sabotage == Some(Sabotage::HoldReceives) {
            for host in &mut self.hosts {
                host.flags.paused.store(true, Ordering::Relaxed);
            }
        }
        self.rest()?;
        self.book.all_arrived_since_healing()?;
        for (host, before) in before.iter().enumerate() {
            let news = self.totals(host).since(before);
            for direction in [Direction::Outbound, Direction::Inbound] {
                let drops: Vec<_> = news.drops(direction).collect();
                require(Law::Drops, drops.is_empty(), || format!("healed host {host} dropped {drops:?}"))?;
            }
        }
        self.check_rested()
    }

    /// The workers are told to stop in the middle of work. What they still do must be right.
    fn stop(mut self) -> Result<World, Broken> {
        for _ in 0..20 {
            self.hand_in();
        }
        for _ in 0..self.random.below(12) {
            let host = self.random.below(2);
            let worker = self.random.below(self.plan.workers[host]);
            self.turn(host, worker)?;
        }
        for host in [0, 1] {
            self.hosts[host].flags.stop.store(true, Ordering::Relaxed);
            for worker in 0..self.plan.workers[host] {
                let ended = self.hosts[host].workers[worker].run();
                require(Law::Liveness, matches!(ended, Ok(End::Stopped)), || format!("{ended:?}"))?;
                self.look_at(host, worker)?;
            }
        }
        Ok(self)
    }
}

impl Host {
    /// As the stats thread does.
    fn collect(&mut self) {
        for full in self.full.try_iter() {
            self.recorded.add(&full.recorder);
            full.give_back();
        }
    }

    fn new(host: usize, plan: &Plan, random: &mut Random) -> Host {
        let workers = plan.workers[host];
        let view = view(host, plan.outer_v6);
        let (to_protocol, _) = handoff::to_protocol();
        let flags = Arc::new(Flags::default());
        let (outbox, full) = recorder::channel(workers);
        let counters: Vec<_> = (0..workers).map(|_| Arc::new(WorkerCounters::default())).collect();
        let worker = |counters: &Arc<WorkerCounters>| {
            let parts = Parts {
                view: view.clone(),
                orders: handoff::to_worker(None).1,
                outbox: to_protocol.clone(),
                train_segments_max: plan.train_segments_max,
                merge: plan.merge,
                counters: counters.clone(),
                reporter: Reporter::new(0, outbox.clone(), Time::default()),
                self_check: Arc::default(),
                flags: flags.clone(),
            };
            DataWorker::new(Fake::new(plan.faults, random.next()), parts)
        };
        Host {
            workers: counters.iter().map(worker).collect(),
            sent: vec![0; workers],
            written: vec![0; workers],
            refusals_max: vec![None; workers],
            counters,
            flags,
            full,
            recorded: Distributions::new(),
            arrived: 0,
            junk: [0; DROP_REASONS],
        }
    }
}

/// What `host` knows: the other host as several peers, one peer that is away, one that was never heard of.
fn view(host: usize, outer_v6: bool) -> View {
    let mut view = View::default();
    let mut add = |network: u8, endpoint: Option<SocketAddr>| {
        let peer = view.add_peer(endpoint);
        for (v6, length) in [(false, 24), (true, 48)] {
            let prefix = IpNet::new(inner(v6, 1 - host, network, 0), length).expect("in range");
            view.add_route(prefix, peer);
        }
    };
    for peer in 0..PEERS {
        add(peer, Some(SocketAddr::new(outer(outer_v6, 1 - host), PORT + u16::from(peer) * 256)));
    }
    add(ABSENT, Some(SocketAddr::new(outer(outer_v6, 2), PORT)));
    add(SILENT, None);
    assert!(view.routes.lookup(inner(true, 1 - host, NOBODY, 1)).is_none());
    view
}
