//! Whom a worker tells that there is nowhere for a packet to go, how often, and that this upsets no counter. The worker is the
//! shipped one, on a driver in memory.
#![allow(clippy::unwrap_used)]

mod packets;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::errno::Errno;
use packets::icmp::IcmpError;
use packets::{Packet, payload};
use uringvpn::dataplane::view::{Change, View};
use uringvpn::io::driver::{Driver, Wait};
use uringvpn::io::fake::{Fake, Faults};
use uringvpn::offload::coalesce::Merge;
use uringvpn::proto::Endpoint;
use uringvpn::proto::keys::PublicKey;
use uringvpn::proto::output::Update;
use uringvpn::stats::counters::{Totals, WorkerCounters};
use uringvpn::stats::drop::{Direction, DropReason};
use uringvpn::stats::recorder::{self, Reporter};
use uringvpn::time::{Span, Time};
use uringvpn::worker::data::{DataWorker, End, Flags, Parts};
use uringvpn::worker::handoff;

const PEER: &str = "192.0.2.2:51820";
const US: [&str; 2] = ["10.9.0.1", "fd09::1"];
/// Who has a peer with an endpoint, who has one without, who has none.
const REACHED: [&str; 2] = ["10.9.1.1", "fd09:1::1"];
const SILENT: [&str; 2] = ["10.9.2.1", "fd09:2::1"];
const NOBODY: [&str; 2] = ["10.9.3.1", "fd09:3::1"];

struct Host {
    worker: DataWorker<Fake>,
    counters: Arc<WorkerCounters>,
    flags: Arc<Flags>,
    _stats: crossbeam_channel::Receiver<recorder::Full>,
    _inbox: handoff::Inbox,
}

impl Host {
    fn new(view: View, faults: Faults) -> Host {
        let (counters, flags) = (Arc::new(WorkerCounters::default()), Arc::new(Flags::default()));
        let (reports, stats) = recorder::channel(1);
        let (outbox, inbox) = handoff::to_protocol();
        let parts = Parts {
            view,
            orders: handoff::to_worker(None).1,
            outbox,
            train_segments_max: 64,
            merge: Merge { tcp: true, udp: true },
            counters: counters.clone(),
            reporter: Reporter::new(0, reports, Time::default()),
            flags: flags.clone(),
            self_check: Arc::default(),
        };
        let worker = DataWorker::new(Fake::new(faults, 1), parts);
        Host { worker, counters, flags, _stats: stats, _inbox: inbox }
    }

    /// Hands `reads` in; the packets that come of it at the TUN.
    fn carry(&mut self, reads: impl IntoIterator<Item = Vec<u8>>) -> Vec<Vec<u8>> {
        self.worker.driver_mut().tun_reads.extend(reads);
        while !self.worker.driver_mut().is_idle() {
            self.worker.turn(Wait::Not).unwrap();
        }
        // What is queued at a turn's end is carried out in the next, and its end told in that.
        (0..3).for_each(|_| self.worker.turn(Wait::Not).unwrap());
        let written = std::mem::take(&mut self.worker.driver_mut().written);
        let packet = |write: Vec<u8>| {
            assert_eq!(write[..16], [0; 16], "no offload is asked for");
            write[16..].to_vec()
        };
        written.into_iter().map(packet).collect()
    }

    fn totals(&self) -> Totals {
        Totals::of([&*self.counters])
    }

    /// Packets are accounted for, buffers are at home, and of what came in at the network nothing is told: nothing did.
    fn assert_settled(mut self, answers: u64, drops: &[(DropReason, u64)]) {
        let totals = self.totals();
        assert_eq!(
            (totals.icmp_errors, totals.drops(Direction::Outbound).collect::<Vec<_>>()),
            (answers, drops.to_vec())
        );
        assert_eq!((totals.tun_writes, totals.written_packets, totals.written_bytes), (0, 0, 0));
        assert_eq!(totals.drops(Direction::Inbound).count(), 0);
        assert_eq!(totals.check(), Ok(()));
        self.flags.stop.store(true, Ordering::Relaxed);
        self.worker.run().unwrap();
        assert_eq!(self.totals().check_drained(), Ok(()));
        assert_eq!(self.worker.into_driver().buffers_home(), Fake::buffers_total());
    }
}

/// A peer with an endpoint and one without, in either mode; nobody has a session.
fn view(sealed: bool) -> View {
    let peer: SocketAddr = PEER.parse().unwrap();
    let mut view = if sealed { View::for_wireguard(1420) } else { View::default() };
    for (index, endpoint) in [(0, Some(peer)), (1, None)] {
        if sealed {
            let public_key = PublicKey::from_bytes([index as u8; 32]);
            view.apply(Change::Peer(Update::PeerAdded { peer: index, public_key, activity: Arc::default() }));
            let endpoint = endpoint.map(|remote| Endpoint { remote, local: None });
            view.apply(Change::Peer(Update::Endpoint { peer: index, endpoint }));
        } else {
            view.add_peer(endpoint);
        }
    }
    for (peer, addresses) in [REACHED, SILENT].into_iter().enumerate() {
        for address in addresses {
            view.add_route(address.parse::<IpAddr>().unwrap().into(), peer as u32);
        }
    }
    view
}

fn to(addresses: [&str; 2], v6: bool) -> Packet {
    let [source, destination] = [US, addresses].map(|ends| ends[usize::from(v6)].parse().unwrap());
    Packet { ends: Some((source, destination)), ..Packet::tcp(v6, payload(5_000, 1)) }
}

fn single(packet: &Packet) -> Vec<u8> {
    [vec![0; 16], Packet { payload: Vec::new(), ..packet.clone() }.bytes()].concat()
}

#[test]
fn who_sends_to_nobody_or_to_a_peer_without_endpoint_is_told_once_whatever_is_lost() {
    for (sealed, v6) in [(false, false), (false, true), (true, false), (true, true)] {
        for (addresses, reason) in [(NOBODY, DropReason::NoRoute), (SILENT, DropReason::NoEndpoint)] {
            let mut host = Host::new(view(sealed), Faults::default());
            let packet = to(addresses, v6);
            // Five segments, then one packet.
            for read in [packet.tun_read(1000), single(&packet)] {
                let answers = host.carry([read.clone()]);
                assert_eq!(answers.len(), 1, "sealed {sealed}, IPv6 {v6}, {reason:?}");
                IcmpError::read(&answers[0]).unwrap().assert_answers(&read[16..]);
            }
            host.assert_settled(2, &[(reason, 6)]);
        }
    }
}

#[test]
fn who_must_wait_for_a_session_hears_nothing() {
    let mut host = Host::new(view(true), Faults::default());
    assert_eq!(host.carry((0..200).map(|_| single(&to(REACHED, false)))).len(), 0);
    assert_eq!(host.totals().staged, 128);
    host.assert_settled(0, &[(DropReason::StageFull, 72)]);
}

#[test]
fn what_is_dropped_for_another_reason_is_not_answered() {
    let mut host = Host::new(view(false), Faults::default());
    let mut odd = to(NOBODY, false).tun_read(1000);
    odd[1] = 0x7f;
    assert_eq!(host.carry([odd, vec![0xff; 60], vec![0; 3]]).len(), 0);
    host.assert_settled(0, &[(DropReason::OutMalformed, 2), (DropReason::OutBadOffload, 1)]);
}

#[test]
fn while_the_interface_is_down_nobody_is_told() {
    let mut host = Host::new(view(false), Faults::default());
    host.flags.paused.store(true, Ordering::Relaxed);
    assert_eq!(host.carry([single(&to(NOBODY, false))]).len(), 0);
    host.flags.paused.store(false, Ordering::Relaxed);
    assert_eq!(host.carry([single(&to(NOBODY, false))]).len(), 1);
    host.assert_settled(1, &[(DropReason::NoRoute, 2)]);
}

/// The fake has four buffers for TUN reads: each is away until the answer that quotes it is written.
#[test]
fn a_flood_gets_fifty_answers_and_a_hundred_a_second() {
    let mut host = Host::new(view(false), Faults { late: 50, ..Faults::default() });
    let mut flood = |reads: usize, after: Span| {
        let start = host.worker.driver_mut().now() + after;
        host.worker.driver_mut().advance_to(start);
        let answers = host.carry((0..reads).map(|_| single(&to(NOBODY, false)))).len() as u64;
        let took = host.worker.driver_mut().now().since(start).as_nanos();
        assert!(
            (50 + took / 11_000_000..=50 + took / 10_000_000).contains(&answers),
            "{answers} in {took} ns"
        );
        (answers, took)
    };
    let (first, took) = flood(20_000, Span::default());
    assert!(took > 1_000_000_000 && first < 1_000, "{first} in {took} ns");
    let (second, _) = flood(1_000, Span::from_secs(3600));
    host.assert_settled(first + second, &[(DropReason::NoRoute, 21_000)]);
}

#[test]
fn an_answer_that_the_tun_refuses_is_not_counted_and_nothing_is_lost() {
    for error in [Errno::EIO, Errno::EINVAL] {
        let mut host = Host::new(view(false), Faults::default());
        host.worker.driver_mut().write_error = Some(error);
        assert_eq!(host.carry([to(NOBODY, false).tun_read(1000)]).len(), 0);
        host.assert_settled(0, &[(DropReason::NoRoute, 5)]);
    }
}

#[test]
fn an_answer_tells_when_the_tun_is_gone() {
    let mut host = Host::new(view(false), Faults::default());
    host.worker.driver_mut().write_error = Some(Errno::EBADFD);
    host.carry([single(&to(NOBODY, false))]);
    host.flags.stop.store(true, Ordering::Relaxed);
    assert_eq!(host.worker.run().unwrap(), End::TunGone);
}

#[test]
fn a_worker_that_is_told_to_stop_writes_the_answers_it_owes() {
    let mut host = Host::new(view(false), Faults::default());
    host.worker.driver_mut().tun_reads.extend((0..3).map(|_| single(&to(NOBODY, false))));
    // Read and answered, but nothing is carried out yet.
    while host.totals().out_packets < 3 {
        host.worker.turn(Wait::Not).unwrap();
    }
    host.flags.stop.store(true, Ordering::Relaxed);
    assert_eq!(host.worker.run().unwrap(), End::Stopped);
    assert_eq!((host.totals().icmp_errors, host.worker.driver_mut().written.len()), (3, 3));
    assert_eq!(host.worker.into_driver().buffers_home(), Fake::buffers_total());
}
