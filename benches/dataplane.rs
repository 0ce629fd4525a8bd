//! One turn of the data worker on a driver that does nothing: what the data plane itself costs, without a kernel.
//!
//! Varies: direction, transport, packets per turn. Prints per case what one turn takes in and what comes out. A TUN read
//! is cut within its buffer, so the driver copies it in anew each turn; `copy` says what that costs.
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "../tests/packets/mod.rs"]
mod packets;

use std::hint::black_box;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use packets::{Packet, payload, split};
use uringvpn::dataplane::view::View;
use uringvpn::io::driver::{Completion, Driver, Effort, Send, Wait};
use uringvpn::io::lease::{self, Lease};
use uringvpn::io::udp::WorkerSockets;
use uringvpn::offload::Part;
use uringvpn::offload::coalesce::{Gather, Merge};
use uringvpn::offload::stride::Received;
use uringvpn::stats::counters::{Totals, WorkerCounters};
use uringvpn::stats::recorder::{self, Reporter};
use uringvpn::time::{Span, Time};
use uringvpn::worker::data::{DataWorker, Flags, Parts};
use uringvpn::worker::handoff;

/// Buffers for trains.
const SEND_BUFFERS: u16 = 16;
const PEER: &str = "192.0.2.2:51820";

/// What every turn brings.
#[derive(Clone)]
enum Arrival {
    /// A TUN read.
    Read(Vec<u8>),
    /// Datagrams of this stride.
    Receive(Vec<u8>, u16),
}

/// A driver without devices: the same arrivals turn after turn, in the same buffers, and everything queued is done.
struct Null {
    now: Time,
    peer: SocketAddr,
    /// The buffers that hold the arrivals, in their order; those of the others are send buffers.
    arrivals: Vec<(Arrival, Option<Lease>)>,
    free: Vec<Lease>,
    /// Lent since the last turn.
    lent: Vec<Lease>,
    done: Vec<Completion>,
}

impl Null {
    fn new(arrivals: Vec<Arrival>) -> Null {
        let count = arrivals.len() as u16;
        let mut leases = lease::map(count + SEND_BUFFERS).unwrap();
        let free = leases.split_off(usize::from(count));
        let fill = |(arrival, mut lease): (Arrival, Lease)| {
            let (Arrival::Read(bytes) | Arrival::Receive(bytes, _)) = &arrival;
            lease[..bytes.len()].copy_from_slice(bytes);
            (arrival, Some(lease))
        };
        let arrivals = arrivals.into_iter().zip(leases).map(fill).collect();
        Null {
            now: Time::from_nanos(1),
            peer: PEER.parse().unwrap(),
            arrivals,
            free,
            lent: Vec::new(),
            done: Vec::new(),
        }
    }
}

impl Driver for Null {
    fn now(&self) -> Time {
        self.now
    }

    fn clock(&self) -> Time {
        self.now
    }

    fn send_buffer(&mut self) -> Option<Lease> {
        self.free.pop()
    }

    fn lend(&mut self, lease: Lease) {
        self.lent.push(lease);
    }

    fn lent(&self, _part: Part) -> &[u8] {
        unreachable!("nothing is captured")
    }

    fn send(&mut self, send: Send) {
        self.done.push(Completion::Sent { send, result: Ok(()) });
    }

    fn write(&mut self, gather: Gather) {
        self.done.push(Completion::Written { gather, result: Ok(()) });
    }

    fn rebind(&mut self, _sockets: WorkerSockets) -> io::Result<()> {
        Ok(())
    }

    fn turn(&mut self, _wait: Wait, done: &mut Vec<Completion>) -> io::Result<()> {
        self.now = self.now + Span::from_nanos(1000);
        for lease in self.lent.drain(..) {
            match self.arrivals.get_mut(usize::from(lease.slot())) {
                Some((_, home)) => *home = Some(lease),
                None => self.free.push(lease),
            }
        }
        done.append(&mut self.done);
        for (arrival, home) in &mut self.arrivals {
            let Some(mut lease) = home.take() else { continue };
            done.push(match arrival {
                Arrival::Read(bytes) => {
                    lease[..bytes.len()].copy_from_slice(bytes);
                    Completion::TunRead { lease, bytes: bytes.len() as u32 }
                }
                Arrival::Receive(bytes, stride) => Completion::Received {
                    lease,
                    received: Received {
                        from: self.peer,
                        to: None,
                        start: 0,
                        bytes: bytes.len() as u32,
                        stride: *stride,
                        tos: 0,
                        truncated: false,
                        overflown: 0,
                        at: self.now,
                    },
                },
            });
        }
        Ok(())
    }

    fn take_effort(&mut self) -> Effort {
        Effort::default()
    }
}

fn worker(arrivals: Vec<Arrival>) -> (DataWorker<Null>, Arc<WorkerCounters>) {
    let mut view = View::default();
    let peer = view.add_peer(Some(PEER.parse::<SocketAddr>().unwrap()));
    for prefix in ["0.0.0.0/0", "::/0"] {
        view.add_route(prefix.parse().unwrap(), peer);
    }
    let counters = Arc::new(WorkerCounters::default());
    let (outbox, _) = recorder::channel(1);
    let parts = Parts {
        view,
        orders: handoff::to_worker(None).1,
        outbox: handoff::to_protocol().0,
        train_segments_max: 64,
        merge: Merge { tcp: true, udp: true },
        counters: counters.clone(),
        reporter: Reporter::new(0, outbox, Time::default()),
        self_check: Arc::default(),
        flags: Arc::new(Flags::default()),
    };
    (DataWorker::new(Null::new(arrivals), parts), counters)
}

/// 45 segments at MTU 1420.
fn superpacket(v6: bool) -> Vec<u8> {
    let mss = if v6 { 1348 } else { 1368 };
    Packet::tcp(v6, payload(45 * usize::from(mss), 1)).tun_read(mss)
}

fn train(v6: bool) -> Arrival {
    let segments = split(&superpacket(v6));
    let stride = segments[0].len() as u16;
    Arrival::Receive(segments.concat(), stride)
}

/// 64 packets of 64 bytes payload, of 16 flows in turn, none of which may be joined to another.
fn small_packets() -> Vec<Vec<u8>> {
    let packet = |flow: u16| {
        let ends: (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let flags = packets::ACK | packets::PSH;
        let packet = Packet::tcp(false, payload(64, flow.into()));
        Packet { ends: Some(ends), source_port: 1000 + flow, flags, ..packet }.bytes()
    };
    (0..64).map(|index| packet(index % 16)).collect()
}

fn bench_turn(criterion: &mut Criterion) {
    let small = small_packets();
    let read = |packet: &Vec<u8>| Arrival::Read([vec![0; 16], packet.clone()].concat());
    let cases: Vec<(&str, Vec<Arrival>)> = vec![
        ("outbound tcp v4 superpacket", vec![Arrival::Read(superpacket(false))]),
        ("outbound tcp v6 superpacket", vec![Arrival::Read(superpacket(true))]),
        ("outbound small reads", small.iter().map(read).collect()),
        ("inbound tcp v4 train", vec![train(false)]),
        ("inbound tcp v6 train", vec![train(true)]),
        ("inbound small train", vec![Arrival::Receive(small.concat(), small[0].len() as u16)]),
        ("inbound small receives", small.iter().map(|packet| Arrival::Receive(packet.clone(), 0)).collect()),
    ];
    let mut group = criterion.benchmark_group("dataplane");
    for (name, arrivals) in cases {
        let (mut worker, counters) = worker(arrivals);
        (0..16).for_each(|_| worker.turn(Wait::Not).unwrap());
        let before = Totals::of([&*counters]);
        worker.turn(Wait::Not).unwrap();
        let one = Totals::of([&*counters]).since(&before);
        let packets = one.sent_datagrams + one.written_packets;
        let bytes = one.out_bytes + one.in_bytes;
        println!(
            "dataplane {name}: {} reads, {} receives, {packets} packets, {bytes} bytes in; {} sends, {} writes",
            one.tun_reads, one.receives, one.trains, one.tun_writes
        );
        group.throughput(Throughput::ElementsAndBytes { elements: packets, bytes });
        let id = BenchmarkId::from_parameter(format!("{name}, {packets} packets, {bytes} bytes"));
        group.bench_function(id, |b| b.iter(|| worker.turn(Wait::Not).unwrap()));
        let totals = Totals::of([&*counters]);
        assert_eq!((totals.turns - 1) * packets, totals.sent_datagrams + totals.written_packets, "did less");
    }
    let read = superpacket(false);
    let mut buffer = lease::map(1).unwrap().remove(0);
    group.throughput(Throughput::Bytes(read.len() as u64));
    group.bench_function(BenchmarkId::from_parameter(format!("copy, {} bytes", read.len())), |b| {
        b.iter(|| buffer[..read.len()].copy_from_slice(black_box(&read)));
    });
    group.finish();
}

criterion_group!(benches, bench_turn);
criterion_main!(benches);
