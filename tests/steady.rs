//! A worker on a real driver, once it has seen the traffic it is to carry: it allocates nothing more, sealed or plain, and
//! while it is captured, too. So does a relay of TCP, also when its reader is slow.
//!
//! A pair of record sockets stands in for the TUN, and the worker is its own peer: what it sends comes back to it.
#![allow(clippy::unwrap_used)]

mod packets;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, recv, send, setsockopt, socketpair, sockopt,
};
use packets::{Packet, payload, split};
use uringvpn::control::capture::Filter;
use uringvpn::dataplane::view::{Change, View};
use uringvpn::expose::relay::{Limits, Relays};
use uringvpn::io::allocations::{self, Counting};
use uringvpn::io::clock;
use uringvpn::io::driver::{Driver, Wait};
use uringvpn::io::lease;
use uringvpn::io::message::Devices;
use uringvpn::io::ring::{self, Features};
use uringvpn::io::syscall::Syscall;
use uringvpn::io::tcp::{self, Event, Id, Options, Patience, Tcp};
use uringvpn::io::udp::{self, Steering, UdpRequest};
use uringvpn::io::uring::Uring;
use uringvpn::io::wake::Waker;
use uringvpn::offload::coalesce::Merge;
use uringvpn::proto::Endpoint;
use uringvpn::proto::crypto::Secret;
use uringvpn::proto::keys::PublicKey;
use uringvpn::proto::output::Update;
use uringvpn::proto::session::{Keys, Role, Session};
use uringvpn::stats::counters::{Totals, WorkerCounters};
use uringvpn::stats::drop::{Direction, DropReason};
use uringvpn::stats::exposed::recorder::Meter;
use uringvpn::stats::recorder::{self, Reporter};
use uringvpn::time::Span;
use uringvpn::worker::data::{DataWorker, Flags, Parts};
use uringvpn::worker::handoff::{self, Order};
use uringvpn::worker::tap::{self, Basin};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const INDEX: u32 = 0x2200;

/// What the worker reads: superpackets, single packets, acknowledgments of several flows.
fn traffic() -> Vec<Vec<u8>> {
    let mut reads = Vec::new();
    for v6 in [false, true] {
        for port in 0..3 {
            let flow = Packet { source_port: port, ..Packet::tcp(v6, payload(30_000, port.into())) };
            reads.push(flow.tun_read(1300));
            reads.push([vec![0; 16], flow.next(Vec::new()).bytes()].concat());
            let datagrams = Packet { source_port: port, ..Packet::udp(v6, payload(5_000, 1)) };
            reads.push(datagrams.tun_read(500));
            reads.push([vec![0; 16], datagrams.next(payload(99, 1)).bytes()].concat());
        }
    }
    reads
}

/// A worker that has one peer, itself.
struct Loop<D> {
    worker: DataWorker<D>,
    counters: Arc<WorkerCounters>,
    kernel: OwnedFd,
    /// Where captured packets arrive.
    basin: Basin,
    captured: usize,
    _stats: crossbeam_channel::Receiver<recorder::Full>,
    _inbox: handoff::Inbox,
}

impl<D: Driver> Loop<D> {
    fn new(sealed: bool, open: impl FnOnce(Devices, Waker) -> D) -> Loop<D> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let (tun, kernel) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        for end in [&tun, &kernel] {
            setsockopt(end, sockopt::SndBuf, &(4 << 20)).unwrap();
        }
        let mut sockets = udp::open(&UdpRequest {
            address: Some(Ipv4Addr::LOCALHOST.into()),
            port: 0,
            workers: 1,
            gro: true,
            gso: true,
            buffer_bytes: 4 << 20,
            steering: Steering::ReceiverIndex,
            steer: true,
            fwmark: 0,
            patience: udp::BUSY_PATIENCE,
        })
        .unwrap();
        let itself = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), sockets.port);
        let counters = Arc::new(WorkerCounters::default());
        let (outbox, stats) = recorder::channel(1);
        let (to_protocol, inbox) = handoff::to_protocol();
        let (mut orders, orders_out) = handoff::to_worker(None);
        let (mut taps, basin) = tap::open(&Filter::default(), 1);
        orders.give(Order::Tap(taps.pop().map(Box::new)));
        let parts = Parts {
            view: view(sealed, itself),
            orders: orders_out,
            outbox: to_protocol,
            train_segments_max: sockets.train_segments_max,
            merge: Merge { tcp: true, udp: true },
            counters: counters.clone(),
            reporter: Reporter::new(0, outbox, clock::now()),
            self_check: Arc::default(),
            flags: Arc::new(Flags::default()),
        };
        let devices = Devices { tun, sockets: sockets.workers.remove(0) };
        let worker = DataWorker::new(open(devices, Waker::new().unwrap()), parts);
        Loop { worker, counters, kernel, basin, captured: 0, _stats: stats, _inbox: inbox }
    }

    /// Hands `reads` in and turns until everything has come out at the TUN again; how often the worker allocated.
    fn carry(&mut self, reads: &[Vec<u8>], room: &mut [u8]) -> u64 {
        let mut allocated = 0;
        for read in reads {
            send(self.kernel.as_raw_fd(), read, MsgFlags::empty()).unwrap();
            // Several of them in some turns, one in others.
            if read.len() > 4_000 {
                continue;
            }
            let mut idle = 0;
            while idle < 3 {
                let before = allocations::of_this_thread();
                self.worker.turn(Wait::Not).unwrap();
                allocated += allocations::of_this_thread() - before;
                while let Ok(batch) = self.basin.full.try_recv() {
                    self.captured += batch.packets().count();
                    self.basin.give_back(batch);
                }
                let came = std::iter::from_fn(|| recv(self.kernel.as_raw_fd(), room, MsgFlags::empty()).ok());
                idle = if came.count() > 0 { 0 } else { idle + 1 };
            }
        }
        allocated
    }
}

fn view(sealed: bool, itself: SocketAddr) -> View {
    let mut view = if sealed { View::for_wireguard(1420) } else { View::default() };
    if sealed {
        let keys = Keys {
            peer: 0,
            local_index: INDEX,
            remote_index: INDEX,
            role: Role::Initiator,
            sealing: Secret::new([3; 32]),
            opening: Secret::new([3; 32]),
            created: clock::now(),
        };
        let session = Arc::new(Session::new(keys));
        let endpoint = Endpoint { remote: itself, local: Some(itself.ip()) };
        for update in [
            Update::PeerAdded {
                peer: 0,
                public_key: PublicKey::from_bytes([7; 32]),
                activity: Arc::default(),
            },
            Update::Endpoint { peer: 0, endpoint: Some(endpoint) },
            Update::SessionAdded(session.clone()),
            Update::Current { peer: 0, session: Some(session) },
        ] {
            view.apply(Change::Peer(update));
        }
    } else {
        view.add_peer(Some(itself));
    }
    for prefix in ["10.0.0.0/8", "192.168.0.0/16", "fd00::/16"] {
        view.add_route(prefix.parse().unwrap(), 0);
    }
    view
}

fn assert_allocates_nothing<D: Driver>(sealed: bool, open: impl FnOnce(Devices, Waker) -> D) {
    let reads = traffic();
    let packets: usize = reads.iter().map(|read| split(read).len()).sum();
    let mut room = vec![0; lease::BUFFER_BYTES];
    let mut turning = Loop::new(sealed, open);
    let first = turning.carry(&reads, &mut room);
    assert!(first > 0, "nothing counts allocations");
    for _ in 0..3 {
        turning.carry(&reads, &mut room);
    }
    let before = Totals::of([&*turning.counters]);
    let allocated: u64 = (0..20).map(|_| turning.carry(&reads, &mut room)).sum();
    let news = Totals::of([&*turning.counters]).since(&before);
    // It did carry them.
    assert_eq!((news.out_packets, news.written_packets), (20 * packets as u64, 20 * packets as u64));
    assert!(news.trains < news.sent_datagrams && news.tun_writes < news.written_packets);
    for direction in [Direction::Outbound, Direction::Inbound] {
        assert_eq!(news.drops(direction).collect::<Vec<_>>(), []);
    }
    // All of them, each way, but those of the last few milliseconds.
    assert!(turning.captured >= 2 * 20 * packets && turning.basin.missed() == 0, "{}", turning.captured);
    assert_eq!(allocated, 0, "{} packets", news.out_packets);
    assert_answers_allocate_nothing(&mut turning, &mut room);
}

/// So does telling senders that there is nowhere for their packets to go.
fn assert_answers_allocate_nothing<D: Driver>(turning: &mut Loop<D>, room: &mut [u8]) {
    let ends = [("10.200.255.1", "198.51.100.1"), ("fd00:1234::1", "2001:db8::1")];
    let lost = ends.map(|(source, destination)| {
        let ends = Some((source.parse().unwrap(), destination.parse().unwrap()));
        let packet = Packet { ends, ..Packet::udp(source.contains(':'), payload(1_300, 1)) };
        [vec![0; 16], packet.bytes()].concat()
    });
    turning.carry(&lost, room);
    let allocated: u64 = (0..20).map(|_| turning.carry(&lost, room)).sum();
    let totals = Totals::of([&*turning.counters]);
    assert_eq!((totals.icmp_errors, totals.dropped(DropReason::NoRoute)), (42, 42));
    assert_eq!(allocated, 0);
}

#[test]
fn a_worker_on_system_calls_allocates_nothing_for_traffic_it_has_seen() {
    for sealed in [false, true] {
        assert_allocates_nothing(sealed, |devices, waker| Syscall::new(devices, waker).unwrap());
    }
}

#[test]
fn a_worker_on_a_ring_allocates_nothing_for_traffic_it_has_seen() {
    if !has_ring() {
        return;
    }
    for sealed in [false, true] {
        assert_allocates_nothing(sealed, |devices, waker| {
            Uring::new(devices, waker, Features::default()).unwrap()
        });
    }
}

fn has_ring() -> bool {
    let Err(error) = ring::available(Features::default()) else { return true };
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "no io_uring ({error}), and CI=true forbids skipping"
    );
    eprintln!("SKIPPED: no io_uring ({error})");
    false
}

/// A relay between two connections, of which we hold the other ends.
struct Relay<T> {
    tcp: T,
    relays: Relays<()>,
    events: Vec<Event>,
    writer: TcpStream,
    reader: TcpStream,
}

impl<T: Tcp> Relay<T> {
    fn new(mut tcp: T) -> Relay<T> {
        let (writer, one) = connection(&mut tcp);
        let (reader, other) = connection(&mut tcp);
        let mut relays = Relays::new(Limits::default());
        relays.start(&mut tcp, [one, other], None, [0; 2], (), Meter::default());
        Relay { tcp, relays, events: Vec::new(), writer, reader }
    }

    /// One turn; how often it allocated.
    fn turn(&mut self) -> u64 {
        let before = allocations::of_this_thread();
        self.tcp.turn(Wait::Not, &mut self.events).unwrap();
        for event in self.events.drain(..) {
            assert!(self.relays.handle(&mut self.tcp, event).unwrap().is_none());
        }
        allocations::of_this_thread() - before
    }

    /// Writes until there is no room for more, which a reader that does not read brings about, then reads it all.
    fn carry(&mut self, bytes: &[u8], room: &mut [u8]) -> (usize, u64) {
        let (mut written, mut read, mut allocated, mut quiet) = (0, 0, 0, 0);
        while quiet < 20 {
            match self.writer.write(bytes) {
                Ok(count) => (written, quiet) = (written + count, 0),
                Err(_) => quiet += 1,
            }
            allocated += self.turn();
        }
        while read < written {
            read += self.reader.read(room).unwrap_or(0);
            allocated += self.turn();
        }
        (written, allocated)
    }
}

/// A connection of `tcp`, and our end of it, which does not wait.
fn connection(tcp: &mut impl Tcp) -> (TcpStream, Id) {
    let second = Span::from_secs(1);
    let patience = Patience { idle: second, interval: second, probes: 1, unacknowledged: None };
    let options = Options { patience, device: None };
    let (listener, address) = tcp.listen((Ipv4Addr::LOCALHOST, 0).into(), &options).unwrap();
    tcp.accept(listener);
    let ours = TcpStream::connect(address).unwrap();
    ours.set_nonblocking(true).unwrap();
    let mut events = Vec::new();
    loop {
        tcp.turn(Wait::Not, &mut events).unwrap();
        if let Some(Event::Accepted { id, .. }) = events.pop() {
            return (ours, id);
        }
    }
}

fn assert_relays_without_allocating(tcp: impl Tcp) {
    let (bytes, mut room) = (vec![7; 100_000], vec![0; 1 << 20]);
    let mut relay = Relay::new(tcp);
    let (_, first) = relay.carry(&bytes, &mut room);
    assert!(first > 0, "nothing counts allocations");
    for _ in 0..3 {
        relay.carry(&bytes, &mut room);
    }
    for _ in 0..5 {
        let (written, allocated) = relay.carry(&bytes, &mut room);
        assert!(written > 200_000, "{written} bytes");
        assert_eq!(allocated, 0, "{written} bytes");
    }
}

#[test]
fn a_relay_on_system_calls_allocates_nothing_once_it_has_seen_a_slow_reader() {
    assert_relays_without_allocating(tcp::epoll::Syscall::new(Waker::new().unwrap()).unwrap());
}

#[test]
fn a_relay_on_a_ring_allocates_nothing_once_it_has_seen_a_slow_reader() {
    if has_ring() {
        assert_relays_without_allocating(tcp::uring::Uring::new(Waker::new().unwrap()).unwrap());
    }
}
